"""Whether a saved run may go on: with other options, on this text, validated on that one, named with this model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from charlstm import checkpoint, runs
from charlstm.checkpoint import Checkpoint
from charlstm.config import UNITS, SymbolKind, TrainingConfig, TrainingOptions, flag
from charlstm.errors import CheckpointError, CorpusError, ResumeError, UsageError
from charlstm.model import Model
from charlstm.provenance import BaseRecord
from charlstm.runs import LAST
from charlstm.terminal import escape
from charlstm.text.corpus import Corpus
from charlstm.text.documents import describe_division
from charlstm.text.vocabulary import Vocabulary
from charlstm.training import records

CHANGEABLE = {
    *("epochs", "steps", "seconds", "lr", "warmup", "weight_decay", "beta1", "beta2", "clip"),
    *("dropout", "reset", "on_divergence", "validations", "sample_chars", "patience", "keep", "device", "threads"),
}


def newest_run_of(
    read: Callable[[Vocabulary, str], Corpus],
    *,
    symbols: SymbolKind | None = None,
    boundary: str | None = None,
    only_once: bool = False,
    root: Path = runs.ROOT,
) -> tuple[Path, Corpus]:
    """Find the newest run that was trained on a text, and read the text as that run read it.

    Torch is not needed. Run directories whose `last.safetensors` is damaged are skipped.

    Args:
        read: reads the text. It is called with the vocabulary of a run and the encoding of the run's text, at most once
            for each combination of symbols, boundary and encoding.
        symbols: consider only runs with these symbols; None considers all.
        boundary: consider only runs with this boundary between documents; None considers all.
        only_once: the text can be read only once, such as standard input.
        root: the directory that contains the run directories.

    Returns:
        The run directory, and the text.

    Raises:
        CheckpointError: no run was trained on this text.
        CorpusError: the text could not be read in the way of any run.
        UsageError: the text can be read only once, but runs read it in different ways.
    """
    texts: dict[tuple[SymbolKind, str | None, str], Corpus | None] = {}
    refusal: CorpusError | None = None
    for file in sorted(root.glob(f"*/{LAST}"), key=lambda file: file.stat().st_mtime, reverse=True):
        try:
            saved = checkpoint.load(file)
        except CheckpointError:
            continue
        encoding = saved.corpus.encoding
        way = (saved.vocabulary.kind, saved.vocabulary.boundary, encoding)
        if symbols not in (None, way[0]) or boundary not in (None, way[1]):
            continue
        if way not in texts:
            if texts and only_once:
                raise UsageError("stdin is read once, and there are runs that read it in other ways: name one with -o")
            try:
                texts[way] = read(saved.vocabulary, encoding)
            except CorpusError as error:  # it may still be readable in the way of an older run
                texts[way], refusal = None, error
        text = texts[way]
        if text is not None and text.sha256 == saved.corpus.sha256:
            return file.parent, text
    if refusal is not None and not any(texts.values()):
        raise refusal
    raise CheckpointError(f"no run of this text in {root}; name one with -o, or leave out --resume to begin one")


def options_of(saved: Checkpoint, changes: Mapping[str, Any]) -> TrainingConfig:
    """The options to go on with: the saved ones, but for those that are given.

    Raises:
        ResumeError: given ones that differ and shape the model or the streams; or a record that is none.
    """
    options = records.options_of(saved)
    refused = [
        f"{flag(f.name)} {changes[f.name]} (saved: {getattr(options, f.name)})"
        for f in fields(TrainingOptions)
        if f.name in changes and f.name not in CHANGEABLE and changes[f.name] != getattr(options, f.name)
    ]
    if refused:
        raise ResumeError(f"a resumed run keeps its shape, but these differ: {', '.join(refused)}")
    if changes.keys() & {"epochs", "steps", "seconds"}:  # of the three budgets there is one
        changes = {"epochs": None, "steps": None, "seconds": None, **changes}
    return replace(options, **changes)


def check_text(saved: Checkpoint, corpus: Corpus, *, allow_new: bool) -> bool:
    """Whether a text is the very one that a run began with.

    Raises:
        ResumeError: it is another, and that is not allowed; or one that the run's vocabulary cannot read.
    """
    vocabulary = saved.vocabulary
    sha256, chars = records.text_of(saved)
    same = corpus.sha256 == sha256
    if not same and not allow_new:
        known = f"{chars} {UNITS[vocabulary.unit]}s and sha256 {sha256[:16]}…"
        raise ResumeError(
            f"this run began with another text, of {known}; "
            f"given are {len(corpus.ids)}, {corpus.sha256[:16]}…: give the same text, or --allow-new-corpus"
        )
    if corpus.vocabulary.kind != vocabulary.kind:
        raise ResumeError(f"this run's symbols are {vocabulary.kind}: give --symbols {vocabulary.kind}")
    if corpus.vocabulary.boundary != vocabulary.boundary:
        theirs, ours = describe_division(vocabulary.boundary), describe_division(corpus.vocabulary.boundary)
        raise ResumeError(f"this run's text is {theirs}, not {ours}")
    if foreign := {*corpus.vocabulary.symbols} - {*vocabulary.symbols}:
        raise ResumeError(
            f"the new text has other characters than the run's vocabulary, {len(foreign)} of them; resume "
            "keeps the vocabulary"
        )
    return same


def check_base(saved: Checkpoint, given: Model | None) -> BaseRecord | None:
    """What a run began with, as `records.base_of` has it. The model may be left out.

    Raises:
        ResumeError: the one that is given is another.
    """
    base = records.base_of(saved)
    if given is not None and (base is None or given.digest.hex() != base.sha256):
        then = "fresh weights" if base is None else base.checkpoint
        raise ResumeError(f"this run began with {then}, not with {escape(str(given.path))} as it is: leave out --from")
    return base


def check_validation(saved: Checkpoint, valid: Corpus | None) -> None:
    """Raises ResumeError where a run goes on with another validation text than it began with."""
    known = records.validation_of(saved)
    given = None if valid is None else (valid.sha256, ", ".join(valid.names))
    if (known and known[0]) != (given and given[0]):
        then, now = (
            f"{text[1]} of sha256 {text[0][:16]}…" if text else "a part of its text" for text in (known, given)
        )
        raise ResumeError(f"this run is validated on {then}, not on {now}: give --valid as at its start")
