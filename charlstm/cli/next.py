"""`charlstm next`: print the probabilities of the next character."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Annotated

import typer

from charlstm.cli.console import print_table, write_stdout
from charlstm.cli.options import ContextOptions, Json, ModelOptions, Options, known_prime, unescaped, with_options
from charlstm.cli.score_display import spell
from charlstm.config import SamplingConfig

EXAMPLES = """\
charlstm next "to be or n"                   the 10 most probable characters
charlstm next "to be or n" --top-p 0.9       only those that a filter keeps
charlstm next -e "\\n" --top 0 --json         all that may begin a line"""

FILTERS = ("top_k", "top_p", "min_p", "typical", "repeat_penalty", "repeat_window", "ban", "only")


@with_options
def next_characters(
    model_options: Annotated[ModelOptions, Options()],
    sampling: Annotated[SamplingConfig, Options(only=("temperature", *FILTERS), defaults={"temperature": 1.0})],
    context_options: Annotated[ContextOptions, Options()],
    text: Annotated[
        str, typer.Argument(metavar="TEXT", help="Text that the model reads. [default: none]", show_default=False)
    ] = "",
    top: Annotated[
        int,
        typer.Option(
            "--top",
            metavar="N",
            min=0,
            help="Number of characters to list; 0 lists all. [default: 10]",
            show_default=False,
        ),
    ] = 10,
    as_json: Json = False,
) -> None:
    """Print the most probable next characters after a text, with their probabilities.

    Without sampling options they are the model's own probabilities. With them they are the probabilities from which
    `sample` chooses.
    """
    sampling = context_options.decoded(sampling)
    if context_options.escapes:
        text = unescaped(text, "text")
    model = model_options.load(warn=not as_json)
    state = context_options.load_state
    context = model.load_state(state) if state is not None else None
    text = known_prime(model.vocabulary, text, context_options.unknown)
    filters = {name: value for name, value in asdict(sampling).items() if name in FILTERS}
    found = model.next(text, top or None, temperature=sampling.temperature, context=context, **filters)
    if as_json:
        likeliest = [{"char": char, "probability": share, "bits": -math.log2(share)} for char, share in found]
        settings = {"temperature": sampling.temperature, **{name: filters[name] for name in FILTERS}}
        record = {"text": text, "next": likeliest, "settings": settings, "checkpoint": str(model.path)}
        write_stdout(json.dumps(record) + "\n")
    else:
        print_table([(f"'{spell(char)}'", f"{share:.4f}") for char, share in found])
