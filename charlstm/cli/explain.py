"""`charlstm explain`: write a page that shows what a model has learned."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from charlstm.cli.console import print_table, warn_of_unusable_kernels, write_stdout
from charlstm.cli.options import UNKNOWN, Json, ModelOptions, Options, with_options
from charlstm.config import UNITS, Unknown, check, mutually_exclusive, setting

if TYPE_CHECKING:
    from charlstm.explain.explanation import Explanation
    from charlstm.model import Model

EXAMPLES = """\
charlstm explain --open                  the newest run and its held-out text
charlstm explain book.txt -c runs/book -o book.html
charlstm explain --beside runs/rnn --beside runs/gru
charlstm explain --json > explain.json   the same data, for programs"""

DEFAULT_OUTPUT = Path("explain.html")
MAX_CHARS = 20_000  # every character of the text is an element of the page
SHOWN_UNITS = 5


@dataclass(frozen=True)
class ExplainOptions:
    """What the page shows and where it is written."""

    output: Path | None = setting(None, "The file to write.", "FILE", unset=str(DEFAULT_OUTPUT))
    beside: tuple[Path, ...] = setting(
        (), "Run or checkpoint whose gradients and use of context are shown beside; may be repeated.", "RUN"
    )
    chars: int = setting(5000, "Number of characters of the text, from its beginning.", "N", low=2, high=MAX_CHARS)
    unknown: Unknown = field(default="error", metadata=UNKNOWN)
    encoding: str = setting("utf-8", "Encoding of the text.", "NAME")
    open: bool = setting(False, "Open the page in the browser.")

    def __post_init__(self) -> None:
        check(self, ExplainOptions)


@with_options
def explain(
    model_options: Annotated[ModelOptions, Options(only=("checkpoint", "precision"))],
    options: Annotated[ExplainOptions, Options()],
    text: Annotated[
        str | None,
        typer.Argument(
            metavar="TEXT",
            help="Text to show: a file, a directory or a .gz file; - is stdin. [default: the held-out part]",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write one HTML file that shows what a model has learned and how.

    The page contains the model and runs it in the browser, without a network. It shows the text coloured by any unit or
    gate, which unit follows what, why gradients survive, and what the model writes if a gate is held at a value.

    With --precision auto the weights are in fp32 if they take at most 4 MB, and in int8 otherwise.
    """
    if as_json and (options.output is not None or options.open):
        raise mutually_exclusive("as_json", "output" if options.output is not None else "open")

    # With two threads numpy's products gain 0.3 s on an idle machine, and take seven times as long on a busy one,
    # because each thread waits for the other. It must be set before numpy is loaded.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from charlstm.model import load

    if not as_json:
        warn_of_unusable_kernels()
    model = load(model_options.checkpoint, precision="fp32")
    beside = [load(path, precision="fp32") for path in options.beside]
    given = None if text is None else _beginning(text, options, model)
    found = model.explain(given, chars=options.chars, beside=beside, unknown=options.unknown)
    if as_json:
        write_stdout(json.dumps(found.to_json()) + "\n")
        return

    from charlstm import atomicfile
    from charlstm.explain.page.build import build

    page = build(found, model, model_options.precision).encode()
    output = options.output or DEFAULT_OUTPUT
    atomicfile.replace(output, [page])
    print_table([("file", str(output)), ("size", f"{len(page):,} bytes"), *_rows(found)])
    if options.open:
        import webbrowser

        webbrowser.open(output.resolve().as_uri())


def _beginning(source: str, options: ExplainOptions, model: Model) -> str:
    """Return at least `options.chars` symbols of a text, if it has as many, without reading all of a long one."""
    from charlstm.text.reading import TextFormat, iter_text

    vocabulary = model.vocabulary
    how = TextFormat(options.encoding, vocabulary.kind, boundary=vocabulary.boundary)
    return _joined(iter_text([source], how), options.chars)


def _joined(blocks: Iterable[str], chars: int) -> str:
    parts: list[str] = []
    length = 0
    for block in blocks:
        parts.append(block)
        length += len(block)
        if length >= chars:
            break
    return "".join(parts)


def _rows(found: Explanation) -> list[tuple[str, str]]:
    """Return what a reader learns without opening the page: the score, and the best named units."""
    unit = UNITS[found.vocabulary.unit]
    rows = [("text", f"{len(found.trace.ids):,} {unit}s, {found.bits_per_char:.3f} bits per {unit}")]
    if found.units is not None:
        layers = found.config.layers
        for layer, k in found.units.best(SHOWN_UNITS):
            name = f"unit {k}" if layers == 1 else f"unit {k} of layer {layer + 1}"
            feature = found.units.features[found.units.name[layer, k]]
            score, chance = found.units.score[layer, k], found.units.chance[layer, k]
            rows.append((name, f"{feature}: {score:.2f} (shuffled {chance:.2f})"))
    rows += [(part, reason) for part, reason in found.missing.items()]
    return rows
