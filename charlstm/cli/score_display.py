"""Where a text surprises, as `charlstm eval` shows it: a row a line, a row a character, or the text in colours."""

from __future__ import annotations

import codecs
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from charlstm.cli.console import is_plain, writing_stdout
from charlstm.errors import UsageError
from charlstm.terminal import TextOut, escape

if TYPE_CHECKING:
    from charlstm.inference.surprisal import CharScore, LineScore

# From so many bits on, a background of xterm's 256 colours, pale to red; with black on it, each is readable, whatever
# the colours of the terminal are. What surprises less keeps those.
HEAT = ((2.0, 230), (3.5, 222), (5.0, 215), (7.0, 209), (10.0, 203))


def show_lines(scores: Iterable[LineScore], boundary: str | None, as_json: bool) -> None:
    """Bits per character, characters, number and text of each line: TSV or JSON lines, each handed on at once. The line
    is shown without the line break or the boundary of documents that ended it.
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
            else:  # the text comes last, so that a tab in it separates nothing
                out.write(f"{score.bits_per_char:.4f}\t{score.chars}\t{score.number}\t{text}\n")
        out.close()


def show_chars(scores: Iterable[CharScore], as_json: bool) -> None:
    """Bits, place and spelling of each character, and of the likeliest in its place: TSV or JSON lines."""
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
    """The text, each character on a background for its bits; the first symbol, that has none, is as it is. Where the
    symbols are bytes, a character has those of its bytes together.

    Raises:
        UsageError: the user or the terminal wants no colours.
    """
    if is_plain():
        raise UsageError("--heat is nothing but colours, and NO_COLOR or TERM=dumb forbids them: use --per-char")
    out = TextOut(1, raw=True)  # the colours are ours; what the text says is escaped on its way
    with writing_stdout():
        try:
            for piece in heated(characters(first, scores)):
                out.write(piece)
        finally:  # also where Ctrl-C ends it
            out.write("\x1b[0m")
            out.close()


def characters(first: str, scores: Iterable[CharScore]) -> Iterator[tuple[str, float]]:
    """Characters and their bits, from those of symbols."""
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
    """Characters, given with their bits, with the colours around them; a line break that surprises is marked at the end
    of its line.
    """
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
    r"""A character in a column: \n, \t, \\ and \xNN for what would not be seen or would drive a terminal."""
    if is_byte(char):
        return f"\\x{ord(char) - 0xDC00:02x}"
    return {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\\": "\\\\"}.get(char) or escape(char)


def is_byte(char: str) -> bool:
    """Whether it stands for a byte that is no character, as `charlstm.text.vocabulary` has it."""
    return "\udc80" <= char <= "\udcff"
