"""Symbols and their ids: the distinct code points of a text in sorted order, or all bytes.

A text is a str for both kinds. If the symbols are bytes, they are the UTF-8 encoding of the str, and a byte that is not
UTF-8 is the lone surrogate U+DC00 + byte, as with Python's `surrogateescape`. So every sequence of bytes is a text, and
decoding and encoding are inverse to each other.
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
from charlstm.errors import CorpusError, Field, UnknownSymbols, UsageError
from charlstm.text import documents, utf8

MAX_COUNTED = 1 << 22  # symbols of an endless text that are searched for unknown characters, for the error message
_BLOCK = 1 << 18  # characters that are looked up at a time: numpy's indices (8 bytes each) then stay in the cache
_SURROGATES = range(0xD800, 0xE000)
_NOT_A_BYTE = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # the surrogates that represent no byte

Ids = np.ndarray[Any, Any]


class Vocabulary:
    """An immutable mapping between symbols and ids. The id of a symbol is its rank by code point.

    This class is the vocabulary of code points; `ByteVocabulary` is that of bytes.

    Args:
        symbols: distinct code points in ascending order, without surrogates.
        boundary: the text between two documents; None if the text is not divided into documents. One symbol of the
            vocabulary represents it (see `documents`).

    Attributes:
        kind: 'chars' or 'bytes'.
        unit: the name of one symbol.
        transitions: (S, V) uint8, the automaton that accepts the valid sequences of symbols: the state after each
            symbol in each state, or `utf8.NEVER`. None if all sequences are valid.

    Raises:
        ValueError: the symbols or the boundary are invalid.
    """

    __slots__ = ("_boundary", "_codes", "_symbols", "_table")

    kind: SymbolKind = "chars"
    unit: Literal["char", "byte"] = "char"
    transitions: np.ndarray[Any, Any] | None = None

    def __init__(self, symbols: str, boundary: str | None = None) -> None:
        codes = code_points(symbols)
        if not 1 <= len(codes) <= MAX_VOCABULARY:
            raise ValueError(f"a vocabulary has from 1 to {MAX_VOCABULARY} symbols, not {len(codes)}")
        if not np.all(codes[1:] > codes[:-1]):
            raise ValueError("the vocabulary's symbols are not distinct and in ascending order")
        if np.any((codes >= _SURROGATES.start) & (codes < _SURROGATES.stop)):
            raise ValueError("the vocabulary contains a surrogate, which is not a character")
        self._symbols = symbols
        self._boundary = self._checked_boundary(boundary)
        self._codes = codes
        # Code point → id. The value len(self) is "unknown"; the last entry is for all larger code points.
        self._table = np.full(int(codes[-1]) + 2, len(codes), dtype=np.min_scalar_type(len(codes)))
        self._table[codes] = np.arange(len(codes))

    def _checked_boundary(self, boundary: str | None) -> str | None:
        try:
            if boundary is not None and documents.symbol_of(boundary, self.kind) not in self._symbols:
                raise ValueError(f"the vocabulary lacks the symbol of its boundary {ascii(boundary)[:60]}")
        except UsageError as error:
            raise ValueError(str(error)) from error
        return boundary

    @classmethod
    def of(cls, text: str) -> Vocabulary:
        """Return the vocabulary of a text.

        Raises:
            CorpusError: the text is empty or contains a lone surrogate.
        """
        seen = np.zeros(MAX_VOCABULARY, dtype=bool)
        for codes in _code_point_blocks(text):
            seen[codes] = True
        return cls.of_seen(seen)

    @classmethod
    def of_seen(cls, seen: np.ndarray[Any, Any]) -> Vocabulary:
        """Return the vocabulary of the code points that occur in a text.

        Args:
            seen: (1114112,) bool, whether each code point occurs.

        Raises:
            CorpusError: no code point occurs, or a surrogate does.
        """
        if np.any(seen[_SURROGATES.start : _SURROGATES.stop]):
            raise CorpusError("the text contains a lone surrogate, which is not a character; decode its bytes again")
        codes = np.flatnonzero(seen).astype("<u4")
        if not len(codes):
            raise CorpusError("the text is empty; it needs one character or more")
        return cls(codes.tobytes().decode("utf-32-le"))

    def union(self, *others: Vocabulary) -> Vocabulary:
        """Return the vocabulary of the symbols of all, with the boundary of this one. The ids may differ.

        Raises:
            UsageError: as `check_compatible`.
        """
        self.check_compatible(*others)
        joined = Vocabulary.of("".join(vocabulary.symbols for vocabulary in (self, *others)))
        return Vocabulary(joined.symbols, self.boundary)

    def with_boundary(self, boundary: str) -> Vocabulary:
        """Return the vocabulary of a text of documents: with the boundary, and with the symbol that represents it.

        Raises:
            UsageError: the boundary is invalid.
        """
        symbol = documents.symbol_of(boundary, self.kind)
        return Vocabulary("".join(sorted({*self._symbols, symbol})), boundary)

    def check_compatible(self, *others: Vocabulary) -> None:
        """Check that texts of the other vocabularies can be used together with texts of this one.

        Raises:
            UsageError: the symbols of one are bytes, of another characters; or another has a different boundary.
        """
        if {other.kind for other in others} - {self.kind}:
            raise UsageError(
                "bytes and characters cannot be mixed: use the ", Field("symbols"), " that the model was trained with"
            )
        for boundary in {other.boundary for other in others if other.boundary is not None} - {self.boundary}:
            raise UsageError(
                f"{documents.describe_division(self.boundary)} and {documents.describe_division(boundary)} cannot be "
                "mixed: read both with the same ",
                Field("boundary"),
            )

    @property
    def symbols(self) -> str:
        """All symbols; `symbols[k]` has the id k."""
        return self._symbols

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest unsigned type that holds every id."""
        return np.min_scalar_type(len(self) - 1)

    @property
    def boundary(self) -> str | None:
        """The text between two documents; None if the text is not divided into documents."""
        return self._boundary

    @property
    def boundary_symbol(self) -> str | None:
        """The symbol that represents the boundary."""
        return None if self._boundary is None else documents.symbol_of(self._boundary, self.kind)

    @property
    def boundary_id(self) -> int | None:
        """The id of the symbol that represents the boundary."""
        symbol = self.boundary_symbol
        return None if symbol is None else self._symbols.index(symbol)

    def name(self, symbol: int) -> str:
        """Return the text of an id: its symbol, or the boundary."""
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

    def encode(self, text: str) -> Ids:
        """Return the ids of a text, (N,) in `dtype`. The memory needed is one id per character and about 6 MB.

        Raises:
            UnknownSymbols: the text has characters outside the vocabulary; the message lists and counts them.
        """
        return self.encode_known(text)[0]

    def encode_known(self, text: str, unknown: Unknown = "error") -> tuple[Ids, dict[str, int]]:
        """Return the ids of a text, and the number of occurrences of each character that was skipped or replaced.

        Args:
            text: boundaries in it are encoded as one symbol each.
            unknown: 'skip' omits the characters outside the vocabulary; 'replace' encodes `replacement` instead.

        Raises:
            UnknownSymbols: there are such characters, and `unknown` is 'error'.
        """
        symbol = self.boundary_symbol
        if self._boundary is not None and symbol is not None:
            text = text.replace(self._boundary, symbol)
        return self.lookup(text, unknown)

    def insert_boundaries(self, blocks: Iterable[str]) -> Iterator[str]:
        """Yield a text as it is trained on and scored: documents with the boundary symbol before and after each.

        Args:
            blocks: a text in blocks; it is unchanged if the vocabulary has no boundary.
        """
        symbol = self.boundary_symbol
        if self._boundary is None or symbol is None:
            return iter(blocks)
        return itertools.chain([symbol], documents.replace_boundaries(blocks, self._boundary, symbol))

    def lookup(self, symbols: str, unknown: Unknown = "error") -> tuple[Ids, dict[str, int]]:
        """Return the ids of symbols, and the counts of the unknown ones, as `encode_known`, but ignore boundaries."""
        ids = np.empty(len(symbols), dtype=self.dtype)
        end = 0
        counts: dict[str, int] = {}
        for codes in _code_point_blocks(symbols):
            block = self._table.take(codes.astype(np.intp), mode="clip")
            if block.max() == len(self):
                is_unknown = block == len(self)
                for code, count in zip(*np.unique(codes[is_unknown], return_counts=True), strict=True):
                    counts[chr(code)] = counts.get(chr(code), 0) + int(count)
                if unknown == "skip":
                    block = block[~is_unknown]
                else:
                    block[is_unknown] = self._symbols.index(self.replacement)
            ids[end : end + len(block)] = block
            end += len(block)
        if counts and unknown == "error":
            raise _unknown_symbols(counts)
        return ids[:end], counts

    def lookup_blocks(self, blocks: Iterable[str], counts: Counter[str], unknown: Unknown = "error") -> Iterator[Ids]:
        """Yield the ids of each block of a text, as `lookup`.

        Args:
            blocks: a text in blocks.
            counts: the number of occurrences of each unknown character is added here.
            unknown: as in `encode_known`.

        Raises:
            UnknownSymbols: there are unknown characters, and `unknown` is 'error'. To count them the text is read on
                first, but not further than about MAX_COUNTED symbols from its beginning.
        """
        searched = 0
        for block in blocks:
            ids, found = self.lookup(block, "skip" if unknown == "error" else unknown)
            counts.update(found)
            searched += len(block)
            if counts and unknown == "error" and searched > MAX_COUNTED:
                raise _unknown_symbols(counts, searched)
            yield ids
        if counts and unknown == "error":
            raise _unknown_symbols(counts)

    @property
    def replacement(self) -> str:
        """The replacement for an unknown character.

        The first of U+FFFD, '?' and space that is in the vocabulary, else the first symbol that is not the boundary.
        """
        plain = [symbol for symbol in ("\ufffd", "?", " ", *self._symbols[:2]) if symbol != self.boundary_symbol]
        return next((symbol for symbol in plain if symbol in self._symbols), str(self._symbols[0]))

    def decode(self, ids: Any) -> str:
        """Return the text of ids, so that `decode(encode(text)) == text`.

        Args:
            ids: integers of any shape.

        Raises:
            ValueError: an id is outside the vocabulary.
        """
        array = np.asarray(ids)
        if not array.size:
            return ""
        if array.min() < 0 or array.max() >= len(self):
            raise ValueError(f"ids must be from 0 to {len(self) - 1}, not {array.min()} to {array.max()}")
        text, symbol = self._decode_symbols(array.ravel()), self.boundary_symbol
        return text if self._boundary is None or symbol is None else text.replace(symbol, self._boundary)

    def _decode_symbols(self, ids: Ids) -> str:
        return str(self._codes[ids].tobytes(), "utf-32-le")

    def incomplete_suffix_length(self, ids: Ids) -> int:
        """Return the number of ids at the end of (N,) that are the beginning of an incomplete character."""
        return 0

    def state_after(self, ids: Ids) -> int:
        """Return the state of `transitions` after ids (N,)."""
        return 0

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that a checkpoint stores."""
        return self._with_boundary_entry({"kind": "code points", "symbols": self._symbols})

    def _with_boundary_entry(self, values: dict[str, Any]) -> dict[str, Any]:
        return values if self._boundary is None else {**values, "boundary": self._boundary}

    @staticmethod
    def from_json(values: object) -> Vocabulary:
        """Return the vocabulary that `to_json` described.

        Raises:
            ValueError: the value does not describe a vocabulary.
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
            raise ValueError(f"a vocabulary of {kind} is not supported by this version of charlstm")
        if not isinstance(values["symbols"], str):
            raise ValueError("a vocabulary's symbols must be one string")
        return Vocabulary(values["symbols"], boundary)


class ByteVocabulary(Vocabulary):
    """The vocabulary of all 256 bytes; each byte is its own id, so that no byte is unknown.

    Args:
        boundary: the text between two documents; None if the text is not divided into documents.

    Raises:
        ValueError: the boundary is invalid.
    """

    __slots__ = ()

    kind = "bytes"
    unit = "byte"
    transitions = utf8.TRANSITIONS

    def __init__(self, boundary: str | None = None) -> None:
        self._symbols = bytes(range(256)).decode("utf-8", "surrogateescape")
        self._boundary = self._checked_boundary(boundary)

    @classmethod
    def of(cls, text: str) -> ByteVocabulary:
        """Return the vocabulary of all bytes, whatever the text."""
        return cls()

    @classmethod
    def of_seen(cls, seen: np.ndarray[Any, Any]) -> ByteVocabulary:
        """Return the vocabulary of all bytes, whatever occurs."""
        return cls()

    def union(self, *others: Vocabulary) -> ByteVocabulary:
        """Return this vocabulary, which has all bytes.

        Raises:
            UsageError: as `check_compatible`.
        """
        self.check_compatible(*others)
        return self

    def with_boundary(self, boundary: str) -> ByteVocabulary:
        """Return the vocabulary of a text of documents.

        Raises:
            UsageError: the boundary is invalid.
        """
        documents.symbol_of(boundary, self.kind)
        return ByteVocabulary(boundary)

    def lookup(self, symbols: str, unknown: Unknown = "error") -> tuple[Ids, dict[str, int]]:
        """Return the bytes of a text, (N,) uint8, and the counts of unknown symbols.

        Raises:
            UnknownSymbols: the text has surrogates that represent no byte, and `unknown` is 'error'.
        """
        counts: dict[str, int] = {}
        try:
            encoded = symbols.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            counts = dict(Counter(_NOT_A_BYTE.findall(symbols)))
            if unknown == "error":
                raise _unknown_symbols(counts) from None
            symbols = _NOT_A_BYTE.sub("" if unknown == "skip" else self.replacement, symbols)
            encoded = symbols.encode("utf-8", "surrogateescape")
        return np.frombuffer(encoded, np.uint8), counts

    @property
    def replacement(self) -> str:
        """The replacement for an unknown character: U+FFFD."""
        return "\ufffd"

    def _decode_symbols(self, ids: Ids) -> str:
        return ids.astype(np.uint8).tobytes().decode("utf-8", "surrogateescape")

    def incomplete_suffix_length(self, ids: Ids) -> int:
        """Return the number of bytes at the end of (N,) that begin a UTF-8 character without completing it: 0 to 3."""
        return utf8.incomplete_suffix(ids)[0]

    def state_after(self, ids: Ids) -> int:
        """Return the state of `transitions` after ids (N,): 0 except within a character. Invalid bytes are ignored."""
        return utf8.incomplete_suffix(ids)[1]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object that a checkpoint stores."""
        return self._with_boundary_entry({"kind": "bytes"})


def code_points(text: str) -> np.ndarray[Any, Any]:
    """Return the code points of a text, (len(text),) uint32, read-only."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def format_counts(counts: Mapping[str, int]) -> str:
    """Return at most ten characters with their counts, the most frequent first; safe to print."""
    ordered = sorted(counts, key=lambda char: (-counts[char], char))
    listed = ", ".join(f"'{terminal.escape(char)}' × {counts[char]}" for char in ordered[:10])
    return listed + (f" and {len(ordered) - 10} more" if len(ordered) > 10 else "")


def _code_point_blocks(text: str) -> Iterator[np.ndarray[Any, Any]]:
    for start in range(0, len(text), _BLOCK):
        yield code_points(text[start : start + _BLOCK])


def _unknown_symbols(counts: Mapping[str, int], searched: int | None = None) -> UnknownSymbols:
    """Return the error for unknown characters.

    Args:
        counts: the number of occurrences of each.
        searched: the number of symbols that were searched, if this is not the whole text.
    """
    some = "1 character is" if len(counts) == 1 else f"{len(counts)} different characters are"
    where = "" if searched is None else f" in the first {searched:,}"
    listed = format_counts(counts)
    return UnknownSymbols(
        f"{some} not in the model's vocabulary: {listed}{where}; choose ", Field("unknown"), " skip or replace"
    )
