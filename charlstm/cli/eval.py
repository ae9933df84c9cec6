"""`charlstm eval`: how well a model foresees a text, and where it does not."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from charlstm.cli import score_display
from charlstm.cli.console import before_torch, facts, put, tell_of_stale_kernels
from charlstm.cli.options import Checkpoint, Encoding, Json, MaxChars, Precise, Threads, UnknownChars
from charlstm.cli.progress_bar import counting
from charlstm.config import UNITS, DynamicConfig, Unknown
from charlstm.errors import UsageError

if TYPE_CHECKING:
    from charlstm.inference.evaluation import Score
    from charlstm.model import Model
    from charlstm.progress import Report
    from charlstm.text.corpus import Symbols

EXAMPLES = """\
charlstm eval                          on the part kept from training
charlstm eval chapter.txt              on any text
zcat log.gz | charlstm eval - --json   on stdin, for a program
tail -f log | charlstm eval --per-line --unknown replace - | awk '$1 > 3'
charlstm eval chapter.txt --heat       where it is surprised, in colours
charlstm eval -c new --against old     which of two models is better?"""

VALIDATION_PART = "the validation part of its corpus"  # or the validation text that its training was given
DYNAMIC = DynamicConfig()


def evaluate(
    text: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT...",
            help=f"Text to score: files, folders, .gz of them; - is stdin. [default: {VALIDATION_PART}]",
            show_default=False,
        ),
    ] = None,
    checkpoint: Checkpoint = None,
    exact: Annotated[
        bool, typer.Option("--exact", help="Score the text as one stream, not as parts side by side. Slower.")
    ] = False,
    per_line: Annotated[
        bool,
        typer.Option(
            "--per-line", help="A row a line, as it comes: bits per character, characters (or bytes), number, text."
        ),
    ] = False,
    carry: Annotated[
        bool, typer.Option("--carry", help="With --per-line: go on from line to line, not each from a line's start.")
    ] = False,
    per_char: Annotated[
        bool, typer.Option("--per-char", help="A row a character (or byte): bits, place, itself.")
    ] = False,
    top: Annotated[
        int, typer.Option("--top", metavar="N", min=0, help="With --per-char: the N likeliest beside each.")
    ] = 0,
    heat: Annotated[bool, typer.Option("--heat", help="The text itself, coloured by surprise.")] = False,
    against: Annotated[
        Path | None, typer.Option("--against", metavar="CKPT", help="Compare with another model.", show_default=False)
    ] = None,
    dynamic: Annotated[
        bool, typer.Option("--dynamic", help="Let the model learn from the text as it reads it.")
    ] = False,
    dynamic_rate: Annotated[
        float, typer.Option("--dynamic-rate", metavar="X", help="With --dynamic: how fast it learns.")
    ] = DYNAMIC.rate,
    dynamic_decay: Annotated[
        float, typer.Option("--dynamic-decay", metavar="P", help="With --dynamic: how fast it forgets that again.")
    ] = DYNAMIC.decay,
    dynamic_segment: Annotated[
        int, typer.Option("--dynamic-segment", metavar="N", help="With --dynamic: characters between two updates.")
    ] = DYNAMIC.segment,
    dynamic_save: Annotated[
        Path | None,
        typer.Option(
            "--dynamic-save", metavar="FILE", help="With --dynamic: keep the model it became.", show_default=False
        ),
    ] = None,
    unknown: UnknownChars = "error",
    precision: Precise = "auto",
    threads: Threads = None,
    encoding: Encoding = "utf-8",
    max_chars: MaxChars = None,
    as_json: Json = False,
) -> None:
    """Measure how well a model foresees a text.

    The lower the bits per character, the better: 0 knows each character before it comes, log2 of the vocabulary's size
    knows nothing. Of N characters N - 1 are scored, each once; the first has nothing before it.
    """
    ways = {"--per-line": per_line, "--per-char": per_char, "--heat": heat, "--against": against, "--dynamic": dynamic}
    chosen = [name for name, value in {"--exact": exact, **ways}.items() if value]
    if len(chosen) > 1:
        raise UsageError(f"{' and '.join(chosen)} are different ways to score: give one")
    if carry and not per_line:
        raise UsageError("--carry makes sense with --per-line only")
    if top and not per_char:
        raise UsageError("--top makes sense with --per-char only")
    if heat and as_json:
        raise UsageError("--heat is for eyes: with --json, give --per-char")
    learning = DynamicConfig(dynamic_rate, dynamic_decay, dynamic_segment)
    if not dynamic and (learning != DYNAMIC or dynamic_save is not None):
        raise UsageError("the --dynamic-… options make sense with --dynamic only")

    from charlstm.inference import evaluation, surprisal
    from charlstm.model import load
    from charlstm.text import corpus

    if not as_json:
        tell_of_stale_kernels()
    model = load(checkpoint, precision=precision, threads=threads)
    vocabulary = model.vocabulary
    way: dict[str, Any] = {"encoding": encoding, "symbols": vocabulary.kind, "boundary": vocabulary.boundary}
    way["max_chars"] = max_chars
    if per_line:
        parts = corpus.parts(text, **way) if text else model.validation_text()
        lines = model.score_lines(parts, carry=carry, unknown=unknown)
        score_display.show_lines(lines, vocabulary.boundary, as_json)
        return
    if against is not None:
        other = load(against, precision=precision, threads=threads)
        _show_comparison(model, other, corpus.read_text(text, **way) if text else None, unknown, as_json)
        return
    way["max_chars"] = max_chars or corpus.MAX_CHARS
    with counting("reading", vocabulary.kind, not as_json) as report:
        given = corpus.told(corpus.parts(text, **way), report) if text else None
        ids, foreign = model.encode(given, unknown)
    if per_char:
        score_display.show_chars(surprisal.chars(model.scorer, vocabulary, ids, top), as_json)
    elif heat:
        first = vocabulary.decode(ids[:1]) if vocabulary.boundary is None else ""
        score_display.show_heat(first, surprisal.chars(model.scorer, vocabulary, ids))
    elif dynamic:
        with counting("scoring", vocabulary.kind, not as_json) as report:
            score = _learn(model, ids, learning, dynamic_save, report)
        _show(model, replace(score, unknown=foreign), {"checkpoint": str(model.path)}, text, unknown, as_json)
    else:
        with counting("scoring", vocabulary.kind, not as_json) as report:
            how: dict[str, Any] = {"exact": exact, "unit": UNITS[vocabulary.unit], "report": report}
            score = evaluation.evaluate(model.scorer, ids, **how)
            used: dict[str, Any] = {"checkpoint": str(model.path), "engine": model.scorer.description}
            if precision == "int8":
                cost = model.int8_cost(ids, exact=exact, report=report, int8_score=score)
                used["int8_cost_bits_per_char"] = cost
        _show(model, replace(score, unknown=foreign), used, text, unknown, as_json)


def _show(
    model: Model, score: Score, used: dict[str, Any], text: list[str] | None, unknown: Unknown, as_json: bool
) -> None:
    if as_json:
        put(json.dumps({**asdict(score), "unit": model.vocabulary.unit, **used, "text": text}) + "\n")
        return
    unit = UNITS[model.vocabulary.unit]
    if (cost := used.pop("int8_cost_bits_per_char", None)) is not None:
        used["cost of int8"] = f"{cost:+.5f} bits per {unit}"
    facts(
        [
            (f"bits per {unit}", f"{score.bits_per_char:.4f}"),
            (f"nats per {unit}", f"{score.nats_per_char:.4f}"),
            ("perplexity", f"{score.perplexity:.4f}"),
            (f"{unit}s", f"{score.chars:,}"),
            ("transitions scored", f"{score.transitions:,}"),
            *_foreign(score, model, unknown),
            ("text", ", ".join(text) if text else _validation_part(model, score)),
            ("protocol", score.protocol),
            *used.items(),
        ]
    )


def _validation_part(model: Model, score: Score) -> str:
    """What is scored where no text is given: what the training's validations scored."""
    own = model.corpus.validation
    name = VALIDATION_PART if own is None else ", ".join(own.names)
    if score.chars != model.corpus.valid_chars:
        return name
    return f"the first {score.chars:,} {UNITS[model.vocabulary.unit]}s of {name}"


def _foreign(score: Score, model: Model, unknown: Unknown) -> list[tuple[str, str]]:
    """A row on characters that the model does not know, where there are any."""
    if not score.unknown:
        return []
    done = "skipped" if unknown == "skip" else f"replaced by '{score_display.spell(model.vocabulary.replacement)}'"
    return [("unknown characters", f"{score.unknown:,}, {done}")]


def _show_comparison(model: Model, other: Model, read: str | None, unknown: Unknown, as_json: bool) -> None:
    compared = model.compare(other, read, unknown=unknown)
    if as_json:
        checkpoints = {"unit": model.vocabulary.unit, "checkpoint": str(model.path), "against": str(other.path)}
        put(json.dumps({**asdict(compared), **checkpoints}) + "\n")
        return
    found, unit = compared.difference, UNITS[model.vocabulary.unit]
    error = "too short for a standard error" if found.standard_error is None else f"± {found.standard_error:.4f}"
    facts(
        [
            (str(model.path), f"{compared.ours.bits_per_char:.4f} bits per {unit}"),
            (str(other.path), f"{compared.theirs.bits_per_char:.4f} bits per {unit}"),
            ("difference", f"{found.bits_per_char:+.4f} {error}"),
            ("standard error", f"of the mean of {found.blocks:,} blocks"),
            (f"{unit}s", f"{compared.ours.chars:,}"),
            *_foreign(compared.ours, model, unknown),
            *[(f"{name}, {other.path}", value) for name, value in _foreign(compared.theirs, other, unknown)],
            ("protocol", compared.ours.protocol),
        ]
    )


def _learn(model: Model, ids: Symbols, learning: DynamicConfig, keep: Path | None, report: Report | None) -> Score:
    """Score a text with a model that learns from it, and save the adapted model if a file is given."""
    before_torch()
    from charlstm.training import dynamic_evaluation

    unit = UNITS[model.vocabulary.unit]
    score, weights = dynamic_evaluation.evaluate(model.config, model.weights, ids, learning, unit, report)
    if keep is not None:
        dynamic_evaluation.save_adapted(keep, model, weights)
    return score
