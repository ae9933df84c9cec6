"""Symbols and their ids: the distinct code points of a text, in sorted order; or all bytes.

A text is a str in both. Where the symbols are bytes it is their UTF-8, and a byte that is not UTF-8 is the lone
surrogate U+DC00 + byte, as Python's `surrogateescape` has it: so every sequence of bytes is a text, and back again.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import numpy as np

from charlstm import terminal
from charlstm.config import MAX_VOCABULARY, SymbolKind, Unknown
from charlstm.errors import CorpusError, UnknownSymbols, UsageError
from charlstm.text import documents, utf8

COUNTED = 1 << 22  # symbols of an endless text, for the error that tells what is unknown
_BLOCK = 1 << 18  # characters worked on at a time: what numpy needs for its indices (8 bytes each) stays in the cache
_SURROGATES = range(0xD800, 0xE000)
_NO_BYTE = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # the surrogates that stand for none


class Vocabulary:
    """Immutable: symbol ↔ id, where the id is the symbol's rank by code point.

    Args:
        symbols: distinct code points in ascending order, without surrogates.
        boundary: what stands between the documents of a text; None where a text is one. One symbol of the vocabulary
            stands for it (see `documents`).

    Raises:
        ValueError: anything else.
    """

    __slots__ = ("_boundary", "_codes", "_symbols", "_table")

    kind: SymbolKind = "chars"
    unit: Literal["char", "byte"] = "char"
    follows: np.ndarray[Any, Any] | None = None
    """The automaton of well-formed texts, where not every sequence of symbols is one: a `Rule`'s."""

    def __init__(self, symbols: str, boundary: str | None = None) -> None:
        codes = code_points(symbols)
        if not 1 <= len(codes) <= MAX_VOCABULARY:
            raise ValueError(f"a vocabulary has from 1 to {MAX_VOCABULARY} symbols, not {len(codes)}")
        if not np.all(codes[1:] > codes[:-1]):
            raise ValueError("the vocabulary's symbols are not distinct and in ascending order")
        if np.any((codes >= _SURROGATES.start) & (codes < _SURROGATES.stop)):
            raise ValueError("the vocabulary holds a surrogate, which is not a character")
        self._symbols = symbols
        self._boundary = self._checked(boundary)
        self._codes = codes
        # Code point → id; len(self) stands for "unknown", also in the last entry, for all that lies beyond it.
        self._table = np.full(int(codes[-1]) + 2, len(codes), dtype=_smallest(len(codes)))
        self._table[codes] = np.arange(len(codes))

    def _checked(self, boundary: str | None) -> str | None:
        try:
            if boundary is not None and documents.symbol_of(boundary, self.kind) not in self._symbols:
                raise ValueError(f"no symbol of the vocabulary stands for its boundary {ascii(boundary)[:60]}")
        except UsageError as error:
            raise ValueError(str(error)) from error
        return boundary

    @classmethod
    def of(cls, text: str) -> Vocabulary:
        """The vocabulary of a text.

        Raises:
            CorpusError: an empty text, or one with a lone surrogate.
        """
        seen = np.zeros(MAX_VOCABULARY, dtype=bool)
        for _, codes in _blocks(text):
            seen[codes] = True
        return cls.of_seen(seen)

    @classmethod
    def of_seen(cls, seen: np.ndarray[Any, Any]) -> Vocabulary:
        """The vocabulary of the code points c for which `seen[c]` is true; `seen` is (1114112,) bool.

        Raises:
            CorpusError: none is, or a surrogate.
        """
        if np.any(seen[_SURROGATES.start : _SURROGATES.stop]):
            raise CorpusError("the text holds a lone surrogate, which is no character; decode its bytes again")
        codes = np.flatnonzero(seen).astype("<u4")
        if not len(codes):
            raise CorpusError("the text is empty; there is nothing to learn from")
        return cls(codes.tobytes().decode("utf-32-le"))

    def union(self, *others: Vocabulary) -> Vocabulary:
        """The vocabulary of all texts together, with the boundary of this one; a symbol may have another id there.

        Raises:
            UsageError: as `check_kind`.
        """
        self.check_kind(*others)
        if self.kind == "bytes":
            return self
        joined = Vocabulary.of("".join(vocabulary.symbols for vocabulary in (self, *others)))
        return Vocabulary(joined.symbols, self.boundary)

    def with_boundary(self, boundary: str) -> Vocabulary:
        """The same, of documents, and with the symbol that stands for what is between them.

        Raises:
            UsageError: a boundary that cannot be one.
        """
        symbol = documents.symbol_of(boundary, self.kind)
        return Vocabulary("".join(sorted({*self._symbols, symbol})), boundary)

    def check_kind(self, *others: Vocabulary) -> None:
        """Raises UsageError where the symbols of some are bytes, and of others characters; or where some are of
        documents that are divided otherwise than those of this one.
        """
        if {other.kind for other in others} - {self.kind}:
            raise UsageError("bytes and characters do not go together: give --symbols as the model was trained with")
        for boundary in {other.boundary for other in others if other.boundary is not None} - {self.boundary}:
            raise UsageError(
                f"{documents.divided(self.boundary)} and {documents.divided(boundary)} do not go together: "
                "read both with the same --boundary"
            )

    @property
    def symbols(self) -> str:
        """All symbols; `symbols[k]` has the id k."""
        return self._symbols

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest unsigned type that holds every id."""
        return _smallest(len(self) - 1)

    @property
    def boundary(self) -> str | None:
        """What stands between the documents of a text; None where a text is one."""
        return self._boundary

    @property
    def boundary_symbol(self) -> str | None:
        """The symbol that is read for it."""
        return None if self._boundary is None else documents.symbol_of(self._boundary, self.kind)

    @property
    def boundary_id(self) -> int | None:
        """That symbol's id."""
        symbol = self.boundary_symbol
        return None if symbol is None else self._symbols.index(symbol)

    def name(self, symbol: int) -> str:
        """What an id stands for: its symbol, but of a boundary the text."""
        found: str = self._symbols[symbol]
        return found if self._boundary is None or found != self.boundary_symbol else self._boundary

    def __len__(self) -> int:
        return len(self._symbols)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Vocabulary):
            return False
        return self._symbols == other._symbols and self._boundary == other._boundary

    def __hash__(self) -> int:
        return hash((self._symbols, self._boundary))

    def __repr__(self) -> str:
        return f"Vocabulary({len(self)} symbols)"

    def encode(self, text: str) -> np.ndarray[Any, Any]:
        """The ids of a text, (len(text),) in `dtype`. Needs one id a character and half a dozen megabytes besides.

        Raises:
            UnknownSymbols: characters that are not in the vocabulary, each named with how often it occurs.
        """
        return self.encode_known(text)[0]

    def encode_known(self, text: str, unknown: Unknown = "error") -> tuple[np.ndarray[Any, Any], dict[str, int]]:
        """The ids of a text, and the characters that were skipped or replaced, each with how often it occurs.

        Args:
            unknown: 'skip' leaves out what is not in the vocabulary; 'replace' puts `replacement` there.

        Raises:
            UnknownSymbols: there are such characters, and unknown is 'error'.
        """
        return self.lookup(self.marked(text), unknown)

    def marked(self, text: str) -> str:
        """A text with one symbol for each boundary in it."""
        symbol = self.boundary_symbol
        return text if self._boundary is None or symbol is None else text.replace(self._boundary, symbol)

    def framed(self, parts: Iterable[str]) -> Iterator[str]:
        """A text in parts as it is trained on and scored: documents have a boundary in front and behind."""
        symbol = self.boundary_symbol
        if self._boundary is None or symbol is None:
            return iter(parts)
        return itertools.chain([symbol], documents.marked(parts, self._boundary, symbol))

    def lookup(self, symbols: str, unknown: Unknown = "error") -> tuple[np.ndarray[Any, Any], dict[str, int]]:
        """As `encode_known`, of what stands for itself: no boundary is looked for."""
        ids = np.empty(len(symbols), dtype=self.dtype)
        end = 0
        foreign: dict[str, int] = {}
        for _, codes in _blocks(symbols):
            block = self._table.take(codes.astype(np.intp), mode="clip")
            if block.max() == len(self):
                strange = block == len(self)
                for code, count in zip(*np.unique(codes[strange], return_counts=True), strict=True):
                    foreign[chr(code)] = foreign.get(chr(code), 0) + int(count)
                if unknown == "skip":
                    block = block[~strange]
                else:
                    block[strange] = self._symbols.index(self.replacement)
            ids[end : end + len(block)] = block
            end += len(block)
        if foreign and unknown == "error":
            raise _unknown(foreign)
        return ids[:end], foreign

    def lookup_each(
        self, parts: Iterable[str], foreign: Counter[str], unknown: Unknown = "error"
    ) -> Iterator[np.ndarray[Any, Any]]:
        """As `lookup`, the ids of each part in turn; what is not in the vocabulary is counted in `foreign`.

        Raises:
            UnknownSymbols: there was something, and unknown is 'error'. To count it, the text is read on before, but no
                further than some COUNTED symbols from its beginning.
        """
        looked_at = 0
        for part in parts:
            ids, found = self.lookup(part, "skip" if unknown == "error" else unknown)
            foreign.update(found)
            looked_at += len(part)
            if foreign and unknown == "error" and looked_at > COUNTED:
                raise _unknown(foreign, looked_at)
            yield ids
        if foreign and unknown == "error":
            raise _unknown(foreign)

    @property
    def replacement(self) -> str:
        """What stands for an unknown character: the first known of U+FFFD, '?' and space; else the first symbol that is
        no boundary.
        """
        plain = [symbol for symbol in ("\ufffd", "?", " ", *self._symbols[:2]) if symbol != self.boundary_symbol]
        return next((symbol for symbol in plain if symbol in self._symbols), str(self._symbols[0]))

    def decode(self, ids: Any) -> str:
        """The text of a sequence of ids: `decode(encode(text)) == text`.

        Raises:
            ValueError: an id that the vocabulary does not have.
        """
        array = np.asarray(ids)
        if not array.size:
            return ""
        if array.min() < 0 or array.max() >= len(self):
            raise ValueError(f"ids must lie from 0 to {len(self) - 1}, not {array.min()} to {array.max()}")
        text, symbol = self._spelled(array.ravel()), self.boundary_symbol
        return text if self._boundary is None or symbol is None else text.replace(symbol, self._boundary)

    def _spelled(self, ids: np.ndarray[Any, Any]) -> str:
        return str(self._codes[ids].tobytes(), "utf-32-le")

    def unfinished(self, ids: np.ndarray[Any, Any]) -> int:
        """How many of the last ids (N,) are no character yet, but may become one with those that follow."""
        return 0

    def phase(self, ids: np.ndarray[Any, Any]) -> int:
        """The state of `follows` after ids (N,), where all but the unfinished ones are done with."""
        return 0

    def to_json(self) -> dict[str, Any]:
        """For a checkpoint's metadata."""
        return self._described({"kind": "code points", "symbols": self._symbols})

    def _described(self, described: dict[str, Any]) -> dict[str, Any]:
        return described if self._boundary is None else {**described, "boundary": self._boundary}

    @staticmethod
    def from_json(values: object) -> Vocabulary:
        """What `to_json` gave.

        Raises:
            ValueError: anything else.
        """
        boundary = values.get("boundary") if isinstance(values, dict) else None
        if isinstance(values, dict) and "boundary" in values:
            if not isinstance(boundary, str):
                raise ValueError("a vocabulary's boundary must be a string")
            values = {name: value for name, value in values.items() if name != "boundary"}
        if values == {"kind": "bytes"}:
            return ByteVocabulary(boundary)
        if not isinstance(values, dict) or set(values) != {"kind", "symbols"}:
            raise ValueError("a vocabulary must be an object with kind and symbols")
        if values["kind"] != "code points":
            kind = terminal.escape(str(values["kind"]))[:40]
            raise ValueError(f"a vocabulary of {kind} is not known to this charlstm")
        if not isinstance(values["symbols"], str):
            raise ValueError("a vocabulary's symbols must be one string")
        return Vocabulary(values["symbols"], boundary)


class ByteVocabulary(Vocabulary):
    """All 256 bytes, each its own id, so that nothing is unknown."""

    __slots__ = ()

    kind = "bytes"
    unit = "byte"
    follows = utf8.TABLE

    def __init__(self, boundary: str | None = None) -> None:
        self._symbols = bytes(range(256)).decode("utf-8", "surrogateescape")
        self._boundary = self._checked(boundary)

    def with_boundary(self, boundary: str) -> ByteVocabulary:
        """The same, of documents.

        Raises:
            UsageError: a boundary that cannot be one.
        """
        documents.symbol_of(boundary, self.kind)
        return ByteVocabulary(boundary)

    def lookup(self, symbols: str, unknown: Unknown = "error") -> tuple[np.ndarray[Any, Any], dict[str, int]]:
        """The bytes of a text, (N,) uint8. Unknown are only the surrogates that stand for no byte.

        Raises:
            UnknownSymbols: there are such, and unknown is 'error'.
        """
        foreign: dict[str, int] = {}
        try:
            encoded = symbols.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            foreign = dict(Counter(_NO_BYTE.findall(symbols)))
            if unknown == "error":
                raise _unknown(foreign) from None
            symbols = _NO_BYTE.sub("" if unknown == "skip" else self.replacement, symbols)
            encoded = symbols.encode("utf-8", "surrogateescape")
        return np.frombuffer(encoded, np.uint8), foreign

    @property
    def replacement(self) -> str:
        """What stands for an unknown character: U+FFFD."""
        return "\ufffd"

    def _spelled(self, ids: np.ndarray[Any, Any]) -> str:
        return ids.astype(np.uint8).tobytes().decode("utf-8", "surrogateescape")

    def unfinished(self, ids: np.ndarray[Any, Any]) -> int:
        """How many of the last ids (N,) are the beginning of a character in UTF-8: from 0 to 3."""
        return utf8.beginning(ids)[0]

    def phase(self, ids: np.ndarray[Any, Any]) -> int:
        """The state of `follows` after ids (N,): 0 but within a character. What is not UTF-8 is done with."""
        return utf8.beginning(ids)[1]

    def to_json(self) -> dict[str, Any]:
        """For a checkpoint's metadata."""
        return self._described({"kind": "bytes"})


def code_points(text: str) -> np.ndarray[Any, Any]:
    """The code points of a text, (len(text),) uint32, read-only."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def _blocks(text: str) -> Iterator[tuple[int, np.ndarray[Any, Any]]]:
    for start in range(0, len(text), _BLOCK):
        yield start, code_points(text[start : start + _BLOCK])


def _smallest(largest: int) -> np.dtype[Any]:
    return np.min_scalar_type(largest)


def _unknown(foreign: Mapping[str, int], looked_at: int | None = None) -> UnknownSymbols:
    """The error; `looked_at` is how many symbols of a longer text were."""
    some = "1 character is" if len(foreign) == 1 else f"{len(foreign)} different characters are"
    choose = "choose --unknown skip or replace"
    where = "" if looked_at is None else f" in the first {looked_at:,}"
    return UnknownSymbols(f"{some} not in the model's vocabulary: {listed(foreign)}{where}; {choose}")


def listed(foreign: Mapping[str, int]) -> str:
    """Characters with how often each occurs, the most frequent first and no more than ten; safe to print."""
    often = sorted(foreign, key=lambda char: (-foreign[char], char))
    shown = ", ".join(f"'{terminal.escape(char)}' × {foreign[char]}" for char in often[:10])
    return shown + (f" and {len(often) - 10} more" if len(often) > 10 else "")
