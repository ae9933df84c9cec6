"""Features of a text that a unit may follow: inside quotes, bracket depth, indentation, column, and others.

A feature has one value for each symbol and describes the text up to and including this symbol. The two features whose
names begin with "before" also need the next character.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from charlstm.explain.trace import Ids
from charlstm.text.vocabulary import Vocabulary

MIN_COUNT = 8  # occurrences of a binary feature, and of its absence, in each half of the text
CHARACTERS = 40  # of the most frequent characters are features
TAB = 8
MAX_QUOTE = 400  # characters after which a quotation mark without a partner is ignored
QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "「": "」", "『": "』"}
OPENING, CLOSING = "([{（［｛", ")]}）］｝"
SENTENCE_END = ".!?。！？"
VOWELS = set("aeiouyAEIOUY")


@dataclass(frozen=True)
class Features:
    """F features of a text of T symbols.

    Attributes:
        names: (F,) what each feature is, in words.
        values: (F, T) its value at each symbol.
    """

    names: tuple[str, ...]
    values: NDArray[np.float32]


def characters(vocabulary: Vocabulary, ids: Ids) -> tuple[list[str], NDArray[np.int64]]:
    """Return the characters of a text and the number of symbols of each.

    A boundary between documents is one character, the empty string. A character of a model of bytes has as many symbols
    as its UTF-8 encoding; a byte that is not UTF-8 is a character of its own.

    Args:
        vocabulary: the vocabulary of the model.
        ids: (T,) the symbols.
    """
    symbol = vocabulary.boundary_id
    ends = [] if symbol is None else np.flatnonzero(ids == symbol).tolist()
    chars: list[str] = []
    plain = Vocabulary.from_json({k: v for k, v in vocabulary.to_json().items() if k != "boundary"})
    begin = 0
    for end in [*ends, len(ids)]:
        chars += plain.decode(ids[begin:end])
        if end < len(ids):
            chars.append("")
        begin = end + 1
    if vocabulary.kind == "chars":
        return chars, np.ones(len(chars), np.int64)
    sizes = [len(char.encode("utf-8", "surrogateescape")) or 1 for char in chars]
    return chars, np.array(sizes, np.int64)


def features(vocabulary: Vocabulary, ids: Ids) -> Features:
    """Return the features of a text that vary enough in both of its halves.

    Args:
        vocabulary: the vocabulary of the model.
        ids: (T,) the symbols.
    """
    chars, sizes = characters(vocabulary, ids)
    columns: dict[str, NDArray[np.float32]] = {}
    for name, values in _all(chars):
        columns[name] = np.repeat(np.asarray(values, np.float32), sizes)
    if (sizes > 1).any():
        place = np.arange(len(ids)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        columns["byte of a longer character"] = (np.repeat(sizes, sizes) > 1).astype(np.float32)
        columns["position in the bytes of a character"] = place.astype(np.float32)
    kept = {name: values for name, values in columns.items() if _varies(values)}
    return Features(tuple(kept), np.array(list(kept.values()), np.float32).reshape(len(kept), len(ids)))


def _varies(values: NDArray[np.float32]) -> bool:
    """Return whether a feature has at least MIN_COUNT values besides its most frequent one in each half."""
    for half in (values[: len(values) // 2], values[len(values) // 2 :]):
        if len(half) == 0 or len(half) - int(np.unique(half, return_counts=True)[1].max()) < MIN_COUNT:
            return False
    return True


def _all(chars: list[str]) -> Iterator[tuple[str, list[float] | NDArray[np.float32]]]:
    """Yield the name and the values of each feature, one value per character."""
    yield from _lines(chars)
    yield from _words(chars)
    yield from _nesting(chars)
    yield "in a comment", _comments(chars)
    yield from _classes(chars)
    following = [*chars, ""][1:]
    yield "before a space", [char == " " for char in following]
    yield "before a line break", [char == "\n" for char in following]
    for char, _ in Counter(char for char in chars if char).most_common(CHARACTERS):
        if char not in " \n":
            yield f"character {char}", [c == char for c in chars]
    yield "space", [char == " " for char in chars]
    yield "line break", [char == "\n" for char in chars]


def _lines(chars: list[str]) -> Iterator[tuple[str, list[float]]]:
    """Yield the features of the place in a line, in an indentation and in a document."""
    column, indentation, length, document = 0.0, 0.0, 0.0, 0.0
    is_leading = True
    names = ("column", "column, logarithm", "indentation", "in the indentation", "start of a line", "empty line")
    found: dict[str, list[float]] = {name: [] for name in names}
    lines: list[float] = []
    for char in chars:
        document = 0 if char == "" else document + 1
        is_break = char in ("", "\n")
        is_empty = is_break and length == 0 and bool(lines)
        if is_break:
            column = indentation = length = 0
            is_leading = True
        else:
            column += 1
            length += 1
            if is_leading and char in " \t":
                indentation += 1 if char == " " else TAB - indentation % TAB
            elif is_leading:
                is_leading = False
        lines.append(document)
        rows = (column, np.log1p(column), indentation, is_leading and not is_break, column == 1, is_empty)
        for values, value in zip(found.values(), rows, strict=True):
            values.append(float(value))
    yield from found.items()
    if "" in chars[1:]:
        yield "position in the document", lines
        yield "boundary of documents", [float(char == "") for char in chars]


def _words(chars: list[str]) -> Iterator[tuple[str, list[float]]]:
    """Yield the features of the place in a word, in a number and in a sentence."""
    place, words, since = 0, 0, 0
    is_capital = is_upper = False
    names = (
        "in a word",
        "position in the word",
        "first letter of a word",
        "in a word with a capital",
        "in a word of capitals",
        "in a number",
        "words since the start of the sentence",
        "characters since the start of the sentence",
    )
    found: dict[str, list[float]] = {name: [] for name in names}
    for char in chars:
        is_letter = char.isalpha()
        place = place + 1 if is_letter else 0
        if place == 1:
            is_capital = is_upper = char.isupper()
            words += 1
        elif is_letter:
            is_upper = is_upper and char.isupper()
        since += 1
        if char == "" or char in SENTENCE_END:
            words = since = 0
        rows = (
            is_letter,
            place,
            place == 1,
            is_letter and is_capital,
            place > 1 and is_upper,
            char.isdigit(),
            words,
            since,
        )
        for values, value in zip(found.values(), rows, strict=True):
            values.append(float(value))
    yield from found.items()


def _nesting(chars: list[str]) -> Iterator[tuple[str, list[float]]]:
    """Yield whether each character is in quotes and in brackets, and how deep.

    An apostrophe is a quotation mark if no letter or digit precedes it. A quotation ends at an empty line, at the end
    of the document and after MAX_QUOTE characters.
    """
    depths = dict.fromkeys(OPENING, 0)
    close, since = "", 0
    quoted, depth, kinds = [], [], {bracket: list[float]() for bracket in OPENING}
    previous = ""
    for char in chars:
        since += 1
        if char == "" or (char == "\n" and previous == "\n") or since > MAX_QUOTE:
            close = ""
        if char == "":
            depths = dict.fromkeys(OPENING, 0)
        elif close and char == close:
            close = ""
        elif not close and char in QUOTES and not (char == "'" and previous.isalnum()):
            close, since = QUOTES[char], 0
        elif char in OPENING:
            depths[char] += 1
        elif char in CLOSING:
            opening = OPENING[CLOSING.index(char)]
            depths[opening] = max(0, depths[opening] - 1)
        quoted.append(float(close != ""))
        depth.append(float(sum(depths.values())))
        for bracket, values in kinds.items():
            values.append(float(depths[bracket] > 0))
        previous = char
    yield "inside quotes", quoted
    yield "bracket depth", depth
    for bracket, values in kinds.items():
        yield f"inside {bracket} {CLOSING[OPENING.index(bracket)]}", values


def _comments(chars: list[str]) -> list[float]:
    """Return whether each character is in a comment: from # or // to the end of the line, or within /* */."""
    found: list[float] = []
    kind, previous = "", ""
    for char in chars:
        if kind == "*":
            found.append(1)
            if previous + char == "*/":
                kind = ""
        elif kind:
            kind = kind if char not in ("", "\n") else ""
            found.append(float(kind != ""))
        else:
            pair = previous + char
            kind = "#" if char == "#" or pair == "//" else "*" if pair == "/*" else ""
            found.append(float(kind != ""))
        previous = char
    return found


def _classes(chars: list[str]) -> Iterator[tuple[str, list[float]]]:
    """Yield the features of the character itself."""
    yield "capital letter", [float(char.isupper()) for char in chars]
    yield "vowel", [float(char in VOWELS) for char in chars]
    yield "punctuation", [float(char != "" and unicodedata.category(char)[0] == "P") for char in chars]
    yield "white space", [float(char.isspace()) for char in chars]
    blocks = {"hiragana": (0x3041, 0x309F), "katakana": (0x30A0, 0x30FF), "han character": (0x3400, 0x9FFF)}
    for name, (low, high) in blocks.items():
        yield name, [float(char != "" and low <= ord(char) <= high) for char in chars]
