"""Output of `charlstm eval`: one row per line, one row per character, or the text coloured by surprisal."""

from __future__ import annotations

import codecs
import itertools
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from charlstm.cli.console import is_plain, writing_stdout
from charlstm.errors import Field, UsageError
from charlstm.terminal import TextOut, escape

if TYPE_CHECKING:
    from charlstm.inference.surprisal import CharBlock, LineScore
    from charlstm.text.vocabulary import Vocabulary

ROWS = 4096  # of characters that are formatted together

# The minimum surprisal in bits, and a background of xterm's 256 colours, from pale to red. The text on it is black, so
# that it is readable whatever the colours of the terminal. Characters with less surprisal keep the terminal's colours.
HEAT = ((2.0, 230), (3.5, 222), (5.0, 215), (7.0, 209), (10.0, 203))


def show_lines(scores: Iterable[LineScore], boundary: str | None, as_json: bool) -> None:
    """Write the bits per character, length, number and text of each line as TSV or JSON lines, flushed line by line.

    Args:
        scores: the scores of the lines.
        boundary: the boundary between documents; it is not written, and neither is the line break.
        as_json: write JSON lines.
    """
    out = TextOut(1, buffering="line")
    with writing_stdout():
        for score in scores:
            end = boundary if boundary is not None and score.text.endswith(boundary) else "\n"
            text = score.text.removesuffix(end)
            if as_json:
                row = {
                    "bits_per_char": score.bits_per_char,
                    "bits": score.bits,
                    "chars": score.chars,
                    "line": score.number,
                    "text": text,
                    "unknown": score.unknown,
                }
                out.write(json.dumps(row) + "\n")
            else:  # the text is the last column, because it may contain tabs
                out.write(f"{score.bits_per_char:.4f}\t{score.chars}\t{score.number}\t{text}\n")
        out.close()


def show_chars(vocabulary: Vocabulary, blocks: Iterable[CharBlock], as_json: bool) -> None:
    """Write the bits, position and spelling of each character, and the most probable ones, as TSV or JSON lines.

    The rows of a block are formatted by one expression: that takes less time than the scores.
    """
    from charlstm.inference.surprisal import first_place

    out, names, first = TextOut(1), _Names(vocabulary, as_json), first_place(vocabulary)
    with writing_stdout():
        for block in blocks:
            for start in range(0, len(block.bits), ROWS):
                out.write(_rows(block, slice(start, start + ROWS), names, first))
        out.close()


class _Names(dict[int, str]):
    """The spelling of each symbol in rows, computed once."""

    def __init__(self, vocabulary: Vocabulary, as_json: bool) -> None:
        super().__init__()
        self.vocabulary, self.as_json = vocabulary, as_json

    def __missing__(self, symbol: int) -> str:
        name = self.vocabulary.name(symbol)
        self[symbol] = found = json.dumps(name) if self.as_json else spell(name)
        return found


def _rows(block: CharBlock, part: slice, names: _Names, first: int) -> str:
    """Return the rows of a part of a block. A row with NaN or infinite logits has no most probable characters."""
    bits, best, shares = block.bits[part], block.best[part], block.shares[part]
    if best.shape[1] and not math.isfinite(shares.sum()):
        ids, begin, alone = block.ids[part], block.start + part.start, slice(0, 1)
        lengths = ((shares == shares).all(axis=1) * best.shape[1]).tolist()
        rows = (
            replace(block, start=begin + k, ids=ids[k:], bits=bits[k:], best=best[k:, :n], shares=shares[k:, :n])
            for k, n in enumerate(lengths)
        )
        return "".join(_rows(row, alone, names, first) for row in rows)
    begin = block.start + part.start + first
    columns = [bits.tolist(), range(begin, begin + len(bits)), [names[k] for k in block.ids[part].tolist()]]
    for column in range(best.shape[1]):
        columns += [[names[k] for k in best[:, column].tolist()], shares[:, column].tolist()]
    if names.as_json:
        pairs = ", ".join(["[%s, %.9g]"] * best.shape[1])
        row = '{"bits": %r, "place": %d, "char": %s' + (f', "likeliest": [{pairs}]' if pairs else "") + "}\n"
    else:
        row = "%.4f\t%d\t%s" + "\t%s %.4f" * best.shape[1] + "\n"
    text = row * len(bits) % tuple(itertools.chain.from_iterable(zip(*columns, strict=True)))
    return text if math.isfinite(bits.sum()) or not names.as_json else _with_json_constants(text)


def _with_json_constants(rows: str) -> str:
    """Return rows with bits that are NaN or infinite as `json.dumps` writes them."""
    return rows.replace('{"bits": nan', '{"bits": NaN').replace('{"bits": inf', '{"bits": Infinity')


def require_colours(instead: str) -> None:
    """Check that colours can be written.

    Args:
        instead: the field of the option that shows the same without colours.

    Raises:
        UsageError: the user or the terminal disables colours.
    """
    if is_plain():
        raise UsageError(Field("heat"), " needs colours, which NO_COLOR or TERM=dumb disables: use ", Field(instead))


def show_heat(first: str, scores: Iterable[tuple[str, float]]) -> None:
    """Write the text with the background of each character coloured by its surprisal.

    If the symbols are bytes, the surprisal of a character is the sum over its bytes.

    Args:
        first: the first symbol, which has no surprisal and no colour.
        scores: the other symbols and their bits.
    """
    out = TextOut(1, raw=True)  # `heated` escapes the text
    with writing_stdout():
        try:
            for piece in heated(characters(first, scores)):
                out.write(piece)
        finally:  # also after Ctrl-C
            out.write("\x1b[0m")
            out.close()


def characters(first: str, scores: Iterable[tuple[str, float]]) -> Iterator[tuple[str, float]]:
    """Yield each character and its bits; the bits of a character of several bytes are summed."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    bits = 0.0
    for symbol, surprise in itertools.chain([(first, 0.0)], scores):
        chars = decoder.decode(symbol.encode("utf-8", "surrogateescape"))
        bits += surprise
        for char in chars:
            yield char, bits / len(chars)
        bits = 0.0 if chars else bits
    for char in decoder.decode(b"", final=True):
        yield char, bits


def heated(scores: Iterable[tuple[str, float]]) -> Iterator[str]:
    """Yield the characters with the escape sequences of their colours; a line break with a colour is shown as ↵."""
    shown: int | None = None
    for char, bits in scores:
        colour = _colour(bits)
        if colour != shown:
            yield _escape_sequence(colour)
        shown = colour
        if char == "\n":
            yield "\n" if colour is None else "↵\x1b[0m\n"
            shown = None
        else:
            yield spell(char) if is_byte(char) else escape(char, keep="\t")


def _colour(bits: float) -> int | None:
    """Return the background colour for a surprisal; None for the terminal's own."""
    return next((colour for least, colour in reversed(HEAT) if bits >= least), None)


def _escape_sequence(colour: int | None) -> str:
    return "\x1b[0m" if colour is None else f"\x1b[38;5;16;48;5;{colour}m"


def heated_rows(vocabulary: Vocabulary, block: CharBlock) -> str:
    """Return one row per symbol: the symbol with its colour, its probability, and the most probable symbols."""
    rows = []
    columns = zip(block.ids.tolist(), block.bits.tolist(), block.best.tolist(), block.shares.tolist(), strict=True)
    for symbol, bits, best, shares in columns:
        others = [f"{spell(vocabulary.name(k))} {share:.4f}" for k, share in zip(best, shares, strict=True)]
        char = f"{_escape_sequence(_colour(bits))}{spell(vocabulary.name(symbol))}\x1b[0m"
        rows.append("\t".join([char, f"{2**-bits:.4f}", *others]) + "\n")
    return "".join(rows)


def spell(char: str) -> str:
    r"""Return a visible form of a character: \n, \t, \\, and \xNN for control characters."""
    if is_byte(char):
        return f"\\x{ord(char) - 0xDC00:02x}"
    return {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\\": "\\\\"}.get(char) or escape(char)


def is_byte(char: str) -> bool:
    """Return whether a character represents a byte that is not part of valid UTF-8: see `charlstm.text.vocabulary`."""
    return "\udc80" <= char <= "\udcff"
