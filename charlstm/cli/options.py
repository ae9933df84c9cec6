"""Options that several commands share, and what they have to say of a prime."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from charlstm import config
from charlstm.cli.console import complain
from charlstm.errors import UnknownSymbols, UsageError
from charlstm.terminal import escape

if TYPE_CHECKING:
    from charlstm.text.vocabulary import Vocabulary

NEWEST = "A run's folder or a checkpoint. [default: the newest run]"
DRAWING = "Which characters are drawn, in this order"
ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "\\": "\\"}

Checkpoint = Annotated[Path | None, typer.Option("--checkpoint", "-c", metavar="CKPT", help=NEWEST, show_default=False)]
CheckpointArgument = Annotated[Path | None, typer.Argument(metavar="CKPT", help=NEWEST, show_default=False)]
CheckpointToo = Annotated[
    Path | None,
    typer.Option("--checkpoint", "-c", metavar="CKPT", help="The same, as other commands take it.", show_default=False),
]
Precise = Annotated[
    config.Precision, typer.Option("--precision", help="Of the weights: fp32 is exact, int8 smaller and faster.")
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", metavar="N", min=1, help="Threads of the CPU. [default: auto]", show_default=False),
]
Encoding = Annotated[str, typer.Option("--encoding", metavar="NAME", help="Encoding of the text.")]
MaxChars = Annotated[
    int | None,
    typer.Option(
        "--max-chars", metavar="N", min=1, help="Refuse a longer text. [default: 2147483648]", show_default=False
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, for programs.")]
UnknownChars = Annotated[
    config.Unknown,
    typer.Option("--unknown", help="Characters that the model does not know: refuse the text, skip or replace them."),
]
LoadState = Annotated[
    Path | None, typer.Option("--load-state", metavar="FILE", help="Go on where a text of the same model was kept.")
]
Escapes = Annotated[
    bool, typer.Option("--escapes", "-e", help=r"Read \n, \t, \\, \xNN and \uNNNN in every TEXT and CHARS.")
]
Ban = Annotated[
    str, typer.Option("--ban", metavar="CHARS", help="Never these.", rich_help_panel=DRAWING, show_default=False)
]
Only = Annotated[str | None, typer.Option("--only", metavar="CHARS", help="Only these.", rich_help_panel=DRAWING)]
RepeatPenalty = Annotated[
    float,
    typer.Option(
        "--repeat-penalty",
        metavar="X",
        help="Above 1, against what was drawn lately: its logits are divided by X, or multiplied where negative.",
        rich_help_panel=DRAWING,
    ),
]
RepeatWindow = Annotated[
    int, typer.Option("--repeat-window", metavar="N", help="Lately: so many characters.", rich_help_panel=DRAWING)
]
Temperature = Annotated[
    float,
    typer.Option(
        "--temp", "-t", metavar="X", help="Below 1 calmer, above 1 wilder; 0 is greedy.", rich_help_panel=DRAWING
    ),
]
TopK = Annotated[int, typer.Option("--top-k", metavar="N", help="The N likeliest; 0 is all.", rich_help_panel=DRAWING)]
TopP = Annotated[
    float,
    typer.Option("--top-p", metavar="P", help="The likeliest that make up this probability.", rich_help_panel=DRAWING),
]
MinP = Annotated[
    float,
    typer.Option(
        "--min-p", metavar="P", help="Those at least P times as likely as the likeliest.", rich_help_panel=DRAWING
    ),
]
Typical = Annotated[
    float,
    typer.Option(
        "--typical",
        metavar="P",
        help="Those about as surprising as is to be expected that make up this probability.",
        rich_help_panel=DRAWING,
    ),
]


def one_checkpoint(bare: Path | None, named: Path | None) -> Path | None:
    """The checkpoint of a command that takes it as an argument and as an option.

    Raises:
        UsageError: two.
    """
    if bare is not None and named is not None:
        raise UsageError(f"{escape(str(bare))} or --checkpoint {escape(str(named))}: give one of the two")
    return named if bare is None else bare


def unescaped(text: str, flag: str) -> str:
    r"""What the escapes in an option's value stand for: \n, \t, \r, \0, \\, \xNN, \uNNNN and \UNNNNNNNN.

    Raises:
        UsageError: a backslash before anything else.
    """

    def character(match: re.Match[str]) -> str:
        code = match[1][1:]
        if match[1] in ESCAPES:
            return ESCAPES[match[1]]
        if code and int(code, 16) < 0x110000 and not 0xD800 <= int(code, 16) < 0xE000:
            return chr(int(code, 16))
        raise UsageError(f"{flag} has '{escape(match[0])}', which is no escape; a backslash itself is \\\\")

    hexadecimal = "x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|U[0-9A-Fa-f]{8}"
    return re.sub(rf"\\({hexadecimal}|.|$)", character, text, flags=re.DOTALL)


def known(vocabulary: Vocabulary, prime: str, unknown: config.Unknown, name: str = "the prime") -> str:
    """The prime without the characters that the model does not know, or with others for them; stderr is told.

    Raises:
        UnknownSymbols: there are such characters, and unknown is 'error'.
    """
    from charlstm.text.vocabulary import listed

    try:
        ids, foreign = vocabulary.encode_known(prime, unknown)
    except UnknownSymbols as error:
        raise UnknownSymbols(f"{name}: {error}") from error
    if not foreign:
        return prime
    done = "skipped" if unknown == "skip" else "replaced"
    complain(f"unknown characters of {name}, {done}: {listed(foreign)}")
    return vocabulary.decode(ids)
