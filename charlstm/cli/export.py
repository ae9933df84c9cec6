"""`charlstm export`: write a model in a form that runs without charlstm."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

from charlstm.cli.console import print_table, write_stdout
from charlstm.cli.options import CHECKPOINT_HELP, Json
from charlstm.config import UNITS
from charlstm.errors import CorpusError

EXAMPLES = """\
charlstm export c -c runs/small -o poet.c
cc -O2 -DCHARLSTM_MAIN poet.c -o poet && ./poet 500 0.8 7
charlstm export c -o poet.c --json       size and cost, for programs"""

SCORED_SYMBOLS = 20_000


def export(
    kind: Annotated[Literal["c"], typer.Argument(metavar="FORMAT", help="c: one file of C99 without any library.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write.")],
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            "--checkpoint",
            "-c",
            metavar="CKPT",
            help=f"{CHECKPOINT_HELP} [default: the newest run]",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a model as C source for a small device.

    The weights are rounded to 8 bits, and the program computes in integers: one seed gives the same text on every
    processor. The command shows the memory that the program needs, and what the rounding costs in bits per character
    on the first 20,000 characters of the held-out part.
    """
    from charlstm.export.c import export_c, rounding_loss
    from charlstm.model import load

    model = load(checkpoint)
    footprint = export_c(model, output)
    try:
        loss, reason = rounding_loss(model, model.validation_part()[:SCORED_SYMBOLS]), ""
    except CorpusError as error:  # the text is not here, or nothing was held out
        loss, reason = None, str(error)
    if as_json:
        found = {"file": str(output), **asdict(footprint), "rounding": None if loss is None else asdict(loss)}
        write_stdout(json.dumps({**found, "checkpoint": str(model.path)}) + "\n")
        return
    unit = UNITS[model.vocabulary.unit]
    cost = reason
    if loss is not None:
        added = loss.rounded_bits_per_char - loss.exact_bits_per_char
        cost = f"{added:+.4f} bits per {unit} ({loss.exact_bits_per_char:.4f} before, {loss.chars:,} {unit}s)"
    print_table(
        [
            ("file", str(output)),
            ("constants", f"{footprint.flash_bytes:,} bytes of flash"),
            ("state", f"{footprint.ram_bytes:,} bytes of RAM"),
            (f"multiply-adds per {unit}", f"{footprint.multiply_adds:,}"),
            ("cost of rounding", cost),
        ]
    )
