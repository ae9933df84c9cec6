"""`charlstm next`: what may come after a text, and how likely it is."""

from __future__ import annotations

import json
import math
from typing import Annotated

import typer

from charlstm.cli.console import facts, put, tell_of_stale_kernels
from charlstm.cli.options import (
    Ban,
    Checkpoint,
    Escapes,
    Json,
    LoadState,
    MinP,
    Only,
    Precise,
    RepeatPenalty,
    RepeatWindow,
    Temperature,
    Threads,
    TopK,
    TopP,
    Typical,
    UnknownChars,
    known,
    unescaped,
)
from charlstm.cli.score_display import spell
from charlstm.config import SamplingConfig, SamplingKeywords

EXAMPLES = """\
charlstm next "to be or n"                   the ten likeliest characters
charlstm next "to be or n" --top-p 0.9       what a filter leaves of them
charlstm next -e "\\n" --top 0 --json         all that may begin a line"""

DEFAULT = SamplingConfig(temperature=1.0)


def following(
    text: Annotated[
        str, typer.Argument(metavar="TEXT", help="What the model reads. [default: nothing]", show_default=False)
    ] = "",
    checkpoint: Checkpoint = None,
    top: Annotated[int, typer.Option("--top", metavar="N", min=0, help="So many; 0 is all that may come.")] = 10,
    escapes: Escapes = False,
    unknown: UnknownChars = "error",
    load_state: LoadState = None,
    precision: Precise = "auto",
    threads: Threads = None,
    as_json: Json = False,
    ban: Ban = DEFAULT.ban,
    only: Only = DEFAULT.only,
    repeat_penalty: RepeatPenalty = DEFAULT.repeat_penalty,
    repeat_window: RepeatWindow = DEFAULT.repeat_window,
    temp: Temperature = DEFAULT.temperature,
    top_k: TopK = DEFAULT.top_k,
    top_p: TopP = DEFAULT.top_p,
    min_p: MinP = DEFAULT.min_p,
    typical: Typical = DEFAULT.typical,
) -> None:
    """Show the likeliest next characters after a text, with their probabilities.

    They are the model's own, at temperature 1; with the options of `sample` they are those that it would draw from.
    """
    if escapes:
        text, ban = unescaped(text, "TEXT"), unescaped(ban, "--ban")
        only = None if only is None else unescaped(only, "--only")
    options: SamplingKeywords = {
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "typical": typical,
        "repeat_penalty": repeat_penalty,
        "repeat_window": repeat_window,
        "ban": ban,
        "only": only,
    }
    SamplingConfig(temp, **options)  # a bad option is reported before anything is read

    from charlstm.model import load

    if not as_json:
        tell_of_stale_kernels()
    model = load(checkpoint, precision=precision, threads=threads)
    context = model.load_state(load_state) if load_state is not None else None
    text = known(model.vocabulary, text, unknown)
    found = model.next(text, top or None, temperature=temp, context=context, **options)
    if as_json:
        likeliest = [{"char": char, "probability": share, "bits": -math.log2(share)} for char, share in found]
        settings = {"temperature": temp, **options}
        put(json.dumps({"text": text, "next": likeliest, "settings": settings, "checkpoint": str(model.path)}) + "\n")
    else:
        facts([(f"'{spell(char)}'", f"{share:.4f}") for char, share in found])
