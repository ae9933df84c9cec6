"""`charlstm export`: write a model in a form that runs without charlstm."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from charlstm.cli.console import print_table, write_stdout
from charlstm.cli.options import CHECKPOINT_HELP, Json
from charlstm.config import UNITS, Precision
from charlstm.errors import CorpusError, Field, UsageError

if TYPE_CHECKING:
    from charlstm.model import Model

Described = tuple[dict[str, Any], list[tuple[str, str]]]  # the result for --json, and its rows for a reader

EXAMPLES = """\
charlstm export c -c runs/small -o poet.c
cc -O2 -DCHARLSTM_MAIN poet.c -o poet && ./poet 500 0.8 7
charlstm export onnx -o model.onnx
charlstm export html -o play.html        a page with a playground
charlstm export c -o poet.c --json       size and cost, for programs"""

FORMAT_HELP = (
    "c: one file of C99 without any library; onnx: one graph, which reads symbols and a state; html: one page that "
    "runs the model in a browser."
)
PRECISION_HELP = "Precision of the weights in a page: fp32 is exact, int8 is smaller. [default: fp32 up to 4 MB]"
SCORED_SYMBOLS = 20_000


def export(
    kind: Annotated[Literal["c", "onnx", "html"], typer.Argument(metavar="FORMAT", help=FORMAT_HELP)],
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
    precision: Annotated[Precision, typer.Option("--precision", help=PRECISION_HELP, show_default=False)] = "auto",
    as_json: Json = False,
) -> None:
    """Write a model in a form that runs without charlstm.

    C: the weights are rounded to 8 bits, and the program computes in integers: one seed gives the same text on every
    processor. The command shows the memory that the program needs, and what the rounding costs in bits per character
    on the first 20,000 characters of the held-out part.

    ONNX: the weights are those of the model. The command compares the graph with the model in onnxruntime before it
    writes the file, and shows the largest difference. It needs pip install 'charlstm[onnx]'.

    HTML: one page that needs no network. It generates the text that `charlstm sample` generates for the same seed,
    precision and options, while the probabilities of the next character are shown.
    """
    from charlstm.model import load

    if precision != "auto" and kind != "html":
        raise UsageError(Field("precision"), f" applies to html only; {kind} has one precision")
    model = load(checkpoint)
    if kind == "html":
        values, rows = _export_html(model, output, precision)
    else:
        values, rows = {"c": _export_c, "onnx": _export_onnx}[kind](model, output)
    if as_json:
        write_stdout(json.dumps({"file": str(output), **values, "checkpoint": str(model.path)}) + "\n")
    else:
        print_table([("file", str(output)), *rows])


def _export_c(model: Model, output: Path) -> Described:
    from charlstm.export.c import export_c, rounding_loss
    from charlstm.export.integer_model import IntegerModel

    rounded = IntegerModel(model.config, model.weights)
    footprint = export_c(model, rounded, output)
    try:
        loss, cost = rounding_loss(model, rounded, model.validation_part()[:SCORED_SYMBOLS]), ""
    except CorpusError as error:  # the text is not here, or nothing was held out
        loss, cost = None, str(error)
    unit = UNITS[model.vocabulary.unit]
    if loss is not None:
        added = loss.rounded_bits_per_char - loss.exact_bits_per_char
        cost = f"{added:+.4f} bits per {unit} ({loss.exact_bits_per_char:.4f} before, {loss.chars:,} {unit}s)"
    rows = [
        ("constants", f"{footprint.flash_bytes:,} bytes of flash"),
        ("state", f"{footprint.ram_bytes:,} bytes of RAM"),
        (f"multiply-adds per {unit}", f"{footprint.multiply_adds:,}"),
        ("cost of rounding", cost),
    ]
    return {**asdict(footprint), "rounding": None if loss is None else asdict(loss)}, rows


def _export_onnx(model: Model, output: Path) -> Described:
    from charlstm.export.onnx import export_onnx

    written = export_onnx(model, output)
    layers, states, _, hidden = model.config.state_shape(1)
    rows = [
        ("size", f"{written.bytes:,} bytes"),
        ("inputs", f"symbols int64 (T, B), state float32 ({layers}, {states}, B, {hidden})"),
        ("outputs", f"logits float32 (T, B, {model.config.vocab_size}), state_out"),
        ("largest difference", f"{written.largest_difference:.1e} from the model, in onnxruntime"),
    ]
    return asdict(written), rows


def _export_html(model: Model, output: Path, precision: Precision) -> Described:
    from charlstm.export.html import export_html

    written = export_html(model, output, precision)
    rows = [
        ("size", f"{written.bytes:,} bytes"),
        ("weights", f"{written.weight_bytes:,} bytes in {written.precision}"),
    ]
    return asdict(written), rows
