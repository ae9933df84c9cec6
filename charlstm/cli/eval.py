"""`charlstm eval`: measure how well a model predicts a text."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from charlstm.cli import ranking, score_display
from charlstm.cli.console import print_table, require_torch, write_stdout
from charlstm.cli.options import MAX_CHARS, UNKNOWN, Json, ModelOptions, Options, with_options
from charlstm.cli.progress_bar import counting
from charlstm.cli.score_files import score_files
from charlstm.config import UNITS, DynamicConfig, Unknown, check, mutually_exclusive, requires, setting
from charlstm.errors import Field, UsageError

if TYPE_CHECKING:
    from charlstm.inference.evaluation import Score
    from charlstm.model import Model
    from charlstm.progress import Report
    from charlstm.text.corpus import Symbols

EXAMPLES = """\
charlstm eval                          score the validation part of the corpus
charlstm eval chapter.txt              score any text
zcat log.gz | charlstm eval - --json   score stdin, with JSON output
tail -f log | charlstm eval --per-line --unknown replace - | awk '$1 > 3'
charlstm eval books/ --jsonl scores.jsonl --skip-done   many files, one by one
charlstm eval chapter.txt --heat       colour each character by its surprisal
charlstm eval -c new --against old     compare two models
charlstm eval --rank en --rank ru --per-line mail    the language of each line"""

VALIDATION_PART = "the validation part of the model's corpus"  # or the validation text of its training


@dataclass(frozen=True)
class ScoreOptions:
    """How the text is scored and how the result is shown."""

    exact: bool = setting(False, "Score the text as one stream instead of in parallel parts; slower.")
    per_line: bool = setting(
        False, "Write one row per line: bits per character, number of characters, line number, text."
    )
    carry: bool = setting(False, "With --per-line: carry the state over from line to line.")
    per_char: bool = setting(False, "Write one row per character (or byte): bits, position, character.")
    top: int = setting(
        0, "With --per-char: also write the N most probable characters at each position.", "N", low=0, high=2**53
    )
    heat: bool = setting(False, "Print the text with each character coloured by its surprisal.")
    against: Path | None = setting(None, "Compare with a second model.", "CKPT")
    rank: tuple[str, ...] = setting(
        (),
        "Show which of several models gives each file, or with --per-line each line, the fewest bits; one option each.",
        "CKPT",
    )
    jsonl: Path | None = setting(
        None, "Score each file by itself and append a JSON line for each to this file.", "FILE"
    )
    skip_done: bool = setting(False, "With --jsonl: skip the files that the file has scores of, and keep its lines.")
    dynamic: bool = setting(False, "Dynamic evaluation: let the model learn from the text while it scores the text.")

    def __post_init__(self) -> None:
        check(self, ScoreOptions)
        modes = ("exact", "per_line", "per_char", "heat", "against", "jsonl", "dynamic")
        chosen = [name for name in modes if getattr(self, name)]
        if len(chosen) > 1 and chosen != ["exact", "per_char"]:
            raise mutually_exclusive(*chosen)
        if self.rank and (conflicting := [name for name in chosen if name != "per_line"] + ["carry"] * self.carry):
            raise mutually_exclusive("rank", conflicting[0])
        if self.rank and len(set(self.rank)) < max(2, len(self.rank)):
            raise UsageError(Field("rank"), " needs two or more different checkpoints, with one option each")
        if self.carry and not self.per_line:
            raise requires("carry", "per_line")
        if self.skip_done and self.jsonl is None:
            raise requires("skip_done", "jsonl")
        if self.top and not self.per_char:
            raise requires("top", "per_char")


@dataclass(frozen=True)
class LearningOptions(DynamicConfig):
    """The options of dynamic evaluation."""

    save: Path | None = setting(None, "Save the model as it is after the last update.", "FILE")


@dataclass(frozen=True)
class ReadingOptions:
    """How the text is read."""

    unknown: Unknown = field(default="error", metadata=UNKNOWN)
    encoding: str = setting("utf-8", "Encoding of the text.", "NAME")
    max_chars: int | None = field(default=None, metadata=MAX_CHARS)

    def __post_init__(self) -> None:
        check(self, ReadingOptions)


@with_options
def evaluate(
    model_options: Annotated[ModelOptions, Options()],
    how: Annotated[ScoreOptions, Options()],
    learning: Annotated[LearningOptions, Options(prefix="dynamic_", heading="Dynamic evaluation")],
    reading: Annotated[ReadingOptions, Options()],
    text: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="TEXT...",
            help=f"Text to score: files, directories, .gz files; - is stdin. [default: {VALIDATION_PART}]",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure how well a model predicts a text.

    The result is the mean surprisal in bits per character; lower is better. A model that predicts every character with
    certainty has 0 bits. A model that gives every character the same probability has log2 of the vocabulary size. Of N
    characters, N - 1 are scored, because the first has no preceding text.
    """
    if how.rank:
        _check_ranking(model_options, reading, text)
    if how.heat and not as_json:
        score_display.require_colours("per_char")
    if how.heat and as_json:
        raise UsageError(Field("heat"), " has no JSON output: use ", Field("per_char"), " with ", Field("as_json"))
    if not how.dynamic and learning != LearningOptions():
        changed = next(name for name, value in asdict(learning).items() if value != getattr(LearningOptions(), name))
        raise requires(changed, "dynamic")

    from charlstm.inference import surprisal
    from charlstm.text.reading import MAX_CHARS, TextFormat, iter_text, read_text, report_progress

    if how.rank:
        how_read = TextFormat(reading.encoding, max_chars=reading.max_chars)
        ranking.show_ranking(how.rank, model_options, text or (), how_read, per_line=how.per_line, as_json=as_json)
        return
    model = model_options.load(warn=not as_json)
    vocabulary, unknown = model.vocabulary, reading.unknown
    how_read = TextFormat(reading.encoding, vocabulary.kind, boundary=vocabulary.boundary, max_chars=reading.max_chars)
    if how.jsonl is not None:
        if not text:
            raise UsageError(Field("jsonl"), " needs texts: give files or directories")
        if not score_files(model, text, how_read, unknown, how.jsonl, skip_done=how.skip_done):
            raise typer.Exit(1)
        return
    if how.per_line:
        parts = iter_text(text, how_read) if text else model.validation_text()
        lines = model.score_lines(parts, carry=how.carry, unknown=unknown)
        score_display.show_lines(lines, vocabulary.boundary, as_json)
        return
    if how.against is not None:
        other = model_options.load(how.against, warn=False)
        _show_comparison(model, other, read_text(text, how_read) if text else None, unknown, as_json)
        return
    how_read = replace(how_read, max_chars=reading.max_chars or MAX_CHARS)
    with counting("reading", vocabulary.kind, not as_json) as report:
        given = report_progress(iter_text(text, how_read), report) if text else None
        ids, foreign = model.encode(given, unknown)
    if how.per_char:
        blocks = surprisal.char_blocks(model.scorer, ids, how.top, exact=how.exact)
        score_display.show_chars(vocabulary, blocks, as_json)
        return
    if how.heat:
        first = vocabulary.decode(ids[:1]) if vocabulary.boundary is None else ""
        scores = surprisal.chars(model.scorer, vocabulary, ids)
        score_display.show_heat(first, ((score.char, score.bits) for score in scores))
        return
    used: dict[str, Any] = {"checkpoint": str(model.path)}
    with counting("scoring", vocabulary.kind, not as_json) as report:
        if how.dynamic:
            score = _learn(model, ids, learning, report)
        else:
            score = _score(model, ids, how, model_options, report, used)
    _show(model, replace(score, unknown=foreign), used, text, unknown, as_json)


def _check_ranking(model_options: ModelOptions, reading: ReadingOptions, text: list[str] | None) -> None:
    """Check the options of a command that ranks models.

    Raises:
        UsageError: an option has no meaning there, or no text is given.
    """
    if model_options.checkpoint is not None:
        raise mutually_exclusive("rank", "checkpoint")
    if reading.unknown != "error":
        raise mutually_exclusive("rank", "unknown")
    if not text:
        raise UsageError(Field("rank"), " needs a text: give one or more files, or - for stdin")


def _score(
    model: Model, ids: Symbols, how: ScoreOptions, options: ModelOptions, report: Report | None, used: dict[str, Any]
) -> Score:
    """Score a text, and add the engine, and the cost of int8 if the user asked for int8, to `used`."""
    from charlstm.inference import evaluation

    unit = UNITS[model.vocabulary.unit]
    score = evaluation.evaluate(model.scorer, ids, exact=how.exact, unit=unit, report=report)
    used["engine"] = model.scorer.description
    if options.precision == "int8":
        used["int8_cost_bits_per_char"] = model.int8_cost(ids, exact=how.exact, report=report, int8_score=score)
    return score


def _show(
    model: Model, score: Score, used: dict[str, Any], text: list[str] | None, unknown: Unknown, as_json: bool
) -> None:
    if as_json:
        write_stdout(json.dumps({**asdict(score), "unit": model.vocabulary.unit, **used, "text": text}) + "\n")
        return
    unit = UNITS[model.vocabulary.unit]
    if (cost := used.pop("int8_cost_bits_per_char", None)) is not None:
        used["cost of int8"] = f"{cost:+.5f} bits per {unit}"
    print_table(
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
    """Return the name of the text that is scored if none is given."""
    own = model.corpus.validation
    name = VALIDATION_PART if own is None else ", ".join(own.names)
    if score.chars != model.corpus.valid_chars:
        return name
    return f"the first {score.chars:,} {UNITS[model.vocabulary.unit]}s of {name}"


def _foreign(score: Score, model: Model, unknown: Unknown) -> list[tuple[str, str]]:
    """Return a row with the number of unknown characters, if there are any."""
    if not score.unknown:
        return []
    done = "skipped" if unknown == "skip" else f"replaced by '{score_display.spell(model.vocabulary.replacement)}'"
    return [("unknown characters", f"{score.unknown:,}, {done}")]


def _show_comparison(model: Model, other: Model, read: str | None, unknown: Unknown, as_json: bool) -> None:
    compared = model.compare(other, read, unknown=unknown)
    if as_json:
        checkpoints = {"unit": model.vocabulary.unit, "checkpoint": str(model.path), "against": str(other.path)}
        write_stdout(json.dumps({**asdict(compared), **checkpoints}) + "\n")
        return
    found, unit = compared.difference, UNITS[model.vocabulary.unit]
    error = "too short for a standard error" if found.standard_error is None else f"± {found.standard_error:.4f}"
    print_table(
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


def _learn(model: Model, ids: Symbols, learning: LearningOptions, report: Report | None) -> Score:
    """Score a text by dynamic evaluation, and save the adapted model if a file is given."""
    require_torch()
    from charlstm.training import dynamic_evaluation

    unit = UNITS[model.vocabulary.unit]
    score, weights = dynamic_evaluation.evaluate(model.config, model.weights, ids, learning, unit, report)
    if learning.save is not None:
        dynamic_evaluation.save_adapted(learning.save, model, weights)
    return score
