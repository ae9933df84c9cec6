"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from charlstm import config

NEWEST = "A run's folder or a checkpoint. [default: the newest run]"

Checkpoint = Annotated[Path | None, typer.Option("--checkpoint", "-c", metavar="CKPT", help=NEWEST, show_default=False)]
CheckpointArgument = Annotated[Path | None, typer.Argument(metavar="CKPT", help=NEWEST, show_default=False)]
Precise = Annotated[
    config.Precision, typer.Option("--precision", help="Of the weights: fp32 is exact, int8 smaller and faster.")
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", metavar="N", min=1, help="Threads of the CPU. [default: auto]", show_default=False),
]
Encoding = Annotated[str, typer.Option("--encoding", metavar="NAME", help="Encoding of the text.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, for programs.")]
UnknownChars = Annotated[
    config.Unknown,
    typer.Option("--unknown", help="Characters that the model does not know: refuse the text, skip or replace them."),
]
