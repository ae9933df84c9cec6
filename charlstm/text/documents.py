"""Documents: the boundary between them in a text, and the one symbol that represents it.

A text of several documents is read as

    boundary, document, boundary, document, …, boundary

so that the first character of each document is predicted from the boundary alone, and the end of each document is
predicted as the boundary. In the text the boundary may be any string. A boundary of a single symbol represents itself.
A longer one is represented by RECORD_SEPARATOR, and generated text contains the original string again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from charlstm.config import SymbolKind
from charlstm.errors import Field, UsageError
from charlstm.terminal import escape

RECORD_SEPARATOR = "\x1e"  # the control character of ASCII for this purpose
_B = TypeVar("_B", str, bytes)


def symbol_of(boundary: str, kind: SymbolKind) -> str:
    """Return the symbol that represents a boundary.

    Args:
        boundary: the text between two documents.
        kind: the kind of the symbols of the text.

    Raises:
        UsageError: the boundary is empty, has a lone surrogate, or is longer than one symbol and contains U+001E.
    """
    try:
        size = len(boundary.encode()) if kind == "bytes" else len(boundary.encode("utf-32-le")) // 4
    except UnicodeEncodeError:
        shown = ascii(boundary)[:60]
        raise UsageError(
            Field("boundary"), f" must be valid Unicode text, but {shown} has a lone surrogate", value=boundary
        ) from None
    if not size:
        raise UsageError(Field("boundary"), " must have one character or more", value=boundary)
    if size == 1:
        return boundary
    if RECORD_SEPARATOR in boundary:
        raise UsageError(
            Field("boundary"),
            " may be U+001E itself, but not a longer text that contains it: choose another",
            value=boundary,
        )
    return RECORD_SEPARATOR


def replace_boundaries(blocks: Iterable[_B], boundary: _B, symbol: _B) -> Iterator[_B]:
    """Replace each boundary in a text by its symbol, and add the symbol to the end if the text does not end with it.

    An empty text stays empty. The end of a block that may be the beginning of a boundary is kept for the next block.

    Args:
        blocks: a text in blocks.
        boundary: the text between two documents.
        symbol: the symbol that represents it.
    """
    kept = boundary[:0]
    last = symbol  # an empty text needs no symbol at its end
    for block in blocks:
        *before, rest = (kept + block).split(boundary)
        complete = len(rest) - _partial_boundary_length(rest, boundary)
        kept = rest[complete:]
        if replaced := symbol.join([*before, rest[:complete]]):
            last = replaced[-len(symbol) :]
            yield replaced
    if kept:
        yield kept
    if kept or last != symbol:
        yield symbol


def _partial_boundary_length(text: _B, boundary: _B) -> int:
    """Return the length of the longest end of a text that is the beginning of a boundary, but not all of it."""
    longest = min(len(text), len(boundary) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(boundary[:n])), 0)


def describe_division(boundary: str | None) -> str:
    """Return a noun phrase for a text with this boundary between its documents, or None."""
    return "a single text" if boundary is None else f"documents separated by {quote_boundary(boundary)}"


def quote_boundary(boundary: str) -> str:
    """Return a boundary in quotes for a message; it is safe to print."""
    spelled = boundary.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
    return f"'{escape(spelled)[:60]}'"
