"""`charlstm eval`: how well a model foresees a text."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from charlstm.cli.options import Checkpoint, Encoding, Json, Precise, Threads
from charlstm.cli.talk import facts, put

EXAMPLES = """\
charlstm eval                          on the part kept from training
charlstm eval chapter.txt              on any text
zcat log.gz | charlstm eval - --json   on stdin, for a program"""


def evaluate(
    text: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT...",
            help="Text to score: files, folders, .gz of them; - is stdin. [default: the validation part of its corpus]",
            show_default=False,
        ),
    ] = None,
    checkpoint: Checkpoint = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Score the text as one stream, not as parts side by side. Slower.")
    ] = False,
    precision: Precise = "auto",
    threads: Threads = None,
    encoding: Encoding = "utf-8",
    as_json: Json = False,
) -> None:
    """Measure how well a model foresees a text.

    The lower the bits per character, the better: 0 knows each character before it comes, log2 of the vocabulary's size
    knows nothing. Of N characters N - 1 are scored, each once; the first has nothing before it.
    """
    from charlstm import corpus, library

    model = library.load(checkpoint, precision=precision, threads=threads)
    read = corpus.read_text(text, encoding=encoding) if text else None
    score = model.evaluate(read, exact=exact)
    used = {"checkpoint": str(model.path), "engine": model.scorer.description}
    result = {**asdict(score), **used, "text": text}
    if precision == "int8":
        in_fp32 = library.load(model.path, precision="fp32", threads=threads).evaluate(read, exact=exact)
        result["int8_cost_bits_per_char"] = cost = score.bits_per_char - in_fp32.bits_per_char
        used["cost of int8"] = f"{cost:+.5f} bits per character"
    if as_json:
        put(json.dumps(result) + "\n")
        return
    facts(
        [
            ("bits per character", f"{score.bits_per_char:.4f}"),
            ("nats per character", f"{score.nats_per_char:.4f}"),
            ("perplexity", f"{score.perplexity:.4f}"),
            ("characters", f"{score.chars:,}"),
            ("transitions scored", f"{score.transitions:,}"),
            ("text", ", ".join(text) if text else "the validation part of its corpus"),
            ("protocol", score.protocol),
            *used.items(),
        ]
    )
