"""Documents: what stands between them in a text, and the one symbol that it is read as.

A text of several documents is read as

    boundary, document, boundary, document, …, boundary

so that the first character of each is predicted from the boundary alone, and its end is predicted as the boundary. In
the text itself it may be any string: one of a single symbol is that symbol, a longer one is read as RECORD_SEPARATOR
and written out again where a model writes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from charlstm.config import SymbolKind
from charlstm.errors import UsageError
from charlstm.terminal import escape

RECORD_SEPARATOR = "\x1e"  # of ASCII, for just this
_P = TypeVar("_P", str, bytes)


def symbol_of(boundary: str, kind: SymbolKind) -> str:
    """The symbol that a boundary is read as.

    Raises:
        UsageError: a boundary of nothing, or a longer one with the symbol that it would be read as, or a surrogate.
    """
    try:
        size = len(boundary.encode()) if kind == "bytes" else len(boundary.encode("utf-32-le")) // 4
    except UnicodeEncodeError:
        raise UsageError(f"--boundary {ascii(boundary)[:60]} is no text: it has a lone surrogate") from None
    if not size:
        raise UsageError("--boundary wants a text of one character or more")
    if size == 1:
        return boundary
    if RECORD_SEPARATOR in boundary:
        raise UsageError("--boundary may be U+001E, but a longer text with it in it is read as U+001E: choose another")
    return RECORD_SEPARATOR


def marked(parts: Iterable[_P], boundary: _P, symbol: _P) -> Iterator[_P]:
    """A text in parts, with one symbol for each boundary and one at its end where there is none; not if it is empty.

    What may be the beginning of a boundary at a part's end waits for the next part.
    """
    held = boundary[:0]
    last = symbol  # nothing has begun
    for part in parts:
        *whole, rest = (held + part).split(boundary)
        certain = len(rest) - _beginning(rest, boundary)
        held = rest[certain:]
        if given := symbol.join([*whole, rest[:certain]]):
            last = given[-len(symbol) :]
            yield given
    if held:
        yield held
    if held or last != symbol:
        yield symbol


def _beginning(text: _P, boundary: _P) -> int:
    """How much of a text's end a boundary may begin with."""
    most = min(len(text), len(boundary) - 1)
    return next((n for n in range(most, 0, -1) if text.endswith(boundary[:n])), 0)


def divided(boundary: str | None) -> str:
    """How a text is divided, within a sentence."""
    return "one text" if boundary is None else f"documents with {shown(boundary)} between"


def shown(boundary: str) -> str:
    """A boundary within a sentence."""
    spelled = boundary.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
    return f"'{escape(spelled)[:60]}'"
