"""Output of `charlstm eval`: one row per line, one row per character, or the text coloured by surprisal."""

from __future__ import annotations

import codecs
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from charlstm.cli.console import is_plain, writing_stdout
from charlstm.errors import Field, UsageError
from charlstm.terminal import TextOut, escape

if TYPE_CHECKING:
    from charlstm.inference.surprisal import CharScore, LineScore

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


def show_chars(scores: Iterable[CharScore], as_json: bool) -> None:
    """Write the bits, position and spelling of each character, and the most probable ones, as TSV or JSON lines."""
    out = TextOut(1)
    with writing_stdout():
        for score in scores:
            if as_json:
                row = {"bits": score.bits, "place": score.place, "char": score.char}
                out.write(json.dumps({**row, "likeliest": score.likeliest} if score.likeliest else row) + "\n")
            else:
                columns = [f"{score.bits:.4f}", str(score.place), spell(score.char)]
                columns += [f"{spell(char)} {probability:.4f}" for char, probability in score.likeliest]
                out.write("\t".join(columns) + "\n")
        out.close()


def show_heat(first: str, scores: Iterable[CharScore]) -> None:
    """Write the text with the background of each character coloured by its surprisal.

    If the symbols are bytes, the surprisal of a character is the sum over its bytes.

    Args:
        first: the first symbol, which has no surprisal and no colour.
        scores: the scores of the other symbols.

    Raises:
        UsageError: the user or the terminal disables colours.
    """
    if is_plain():
        raise UsageError(Field("heat"), " needs colours, which NO_COLOR or TERM=dumb disables: use ", Field("per_char"))
    out = TextOut(1, raw=True)  # `heated` escapes the text
    with writing_stdout():
        try:
            for piece in heated(characters(first, scores)):
                out.write(piece)
        finally:  # also after Ctrl-C
            out.write("\x1b[0m")
            out.close()


def characters(first: str, scores: Iterable[CharScore]) -> Iterator[tuple[str, float]]:
    """Yield each character and its bits; the bits of a character of several bytes are summed."""
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    bits = 0.0
    for symbol, surprise in itertools.chain([(first, 0.0)], ((score.char, score.bits) for score in scores)):
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
        colour = next((colour for least, colour in reversed(HEAT) if bits >= least), None)
        if colour != shown:
            yield "\x1b[0m" if colour is None else f"\x1b[38;5;16;48;5;{colour}m"
        shown = colour
        if char == "\n":
            yield "\n" if colour is None else "↵\x1b[0m\n"
            shown = None
        else:
            yield spell(char) if is_byte(char) else escape(char, keep="\t")


def spell(char: str) -> str:
    r"""Return a visible form of a character: \n, \t, \\, and \xNN for control characters."""
    if is_byte(char):
        return f"\\x{ord(char) - 0xDC00:02x}"
    return {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\\": "\\\\"}.get(char) or escape(char)


def is_byte(char: str) -> bool:
    """Return whether a character represents a byte that is not part of valid UTF-8: see `charlstm.text.vocabulary`."""
    return "\udc80" <= char <= "\udcff"
