"""Resume a run: find it, check that its record is valid, and compare it with the text, model and options given now.

`checkpoint.load` has checked the file, the model and the weights. Because a checkpoint may come from a stranger, its
training record is checked here before any of it is used. The optimizer, which knows the shapes, checks its moments
itself. Nothing here needs torch.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from charlstm import checkpoint, runs
from charlstm.checkpoint import Checkpoint
from charlstm.config import UNITS, SymbolKind, TrainingConfig, TrainingOptions, from_json, to_json
from charlstm.errors import CheckpointError, CorpusError, Field, ResumeError, UsageError
from charlstm.model import Model
from charlstm.provenance import BaseRecord, TextRecord
from charlstm.runs import LAST
from charlstm.terminal import escape
from charlstm.text.corpus import Corpus
from charlstm.text.documents import describe_division
from charlstm.text.vocabulary import Vocabulary
from charlstm.training.counters import Counters

CHANGEABLE = {
    *("epochs", "steps", "seconds", "lr", "warmup", "weight_decay", "beta1", "beta2", "clip"),
    *("dropout", "reset", "on_divergence", "validations", "sample_chars", "patience", "keep", "device", "threads"),
    "precision",
}
"""Options that may change when a run is resumed. The others shape the model or the streams."""

MAX_COUNT = 2**53
_ENTRIES = {"options", "tally", "cursor", "seconds"}  # of the saved record; "tally" holds the counters
_COUNTER_TYPES = {field.name: str(field.type) for field in fields(Counters)}

# Two numbers in the state of torch's random generator on the CPU: how many values are left, and the index of the next.
_GENERATOR = struct.Struct("<8xi4xQ")
_GENERATOR_BYTES, _GENERATOR_VALUES = 5056, 624


@dataclass(frozen=True)
class TrainingRecord:
    """What a checkpoint stores of its training besides tensors.

    Attributes:
        options: those of the run.
        counters: the progress of the run.
        cursor: windows that the streams have returned.
        seconds: time spent if the budget is a time, else None.
    """

    options: TrainingConfig
    counters: Counters
    cursor: int
    seconds: float | None

    @classmethod
    def of(cls, saved: Checkpoint) -> TrainingRecord:
        """Return the record of a checkpoint, after checking that a run can have written it and the tensors beside it.

        Raises:
            ResumeError: the checkpoint has no training record, or an invalid one.
        """
        values = saved.training
        if values is None:
            raise ResumeError(f"the checkpoint holds weights only: resume from {LAST} in its run directory")
        if values.keys() != _ENTRIES:
            raise invalid_state(f"its entries are not {', '.join(sorted(_ENTRIES))}")
        try:
            options = from_json(TrainingConfig, values["options"])
            counters = from_json(Counters, values["tally"])
        except UsageError as error:
            raise invalid_state(str(error)) from error
        _check_counters(counters)
        if counters.step != saved.step:
            raise invalid_state(f"step is {counters.step} in its counters and {saved.step} in the checkpoint")
        _check_number("cursor", values["cursor"], whole=True)
        if values["seconds"] is not None:
            _check_number("seconds", values["seconds"], whole=False)
        _check_tensors(saved, options.batch_size)
        return cls(options, replace(counters, kept=tuple(counters.kept)), values["cursor"], values["seconds"])

    def to_json(self) -> dict[str, Any]:
        """Return the record as a JSON object."""
        return {
            "options": to_json(self.options),
            "tally": asdict(self.counters),
            "cursor": self.cursor,
            "seconds": self.seconds,
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
    for file in sorted(root.glob(f"*/{LAST}"), key=_saved_at, reverse=True):
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
                raise UsageError(
                    *(
                        "the text can be read only once, but the runs read it in different ways: name one by ",
                        Field("run"),
                    )
                )
            try:
                texts[way] = read(saved.vocabulary, encoding)
            except CorpusError as error:  # it may still be readable in the way of an older run
                texts[way], refusal = None, error
        text = texts[way]
        if text is not None and text.sha256 == saved.corpus.sha256:
            return file.parent, text
    if refusal is not None and not any(texts.values()):
        raise refusal
    raise CheckpointError(
        *(f"no run of this text in {root}: name a run by ", Field("run")),
        *(", or start a new one without ", Field("resume")),
    )


def _saved_at(file: Path) -> float:
    """Return when a file was written, in seconds; 0 if it was removed meanwhile."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def options_of(record: TrainingRecord, changes: Mapping[str, Any]) -> TrainingConfig:
    """Return the options to resume with: the saved ones with `changes`.

    Raises:
        ResumeError: a change concerns an option that shapes the model or the streams.
    """
    options = record.options
    if changes.get("precision") == "auto":  # keep what was chosen at the start
        changes = {name: value for name, value in changes.items() if name != "precision"}
    refused = [
        (Field(name), f" {changes[name]} (saved: {getattr(options, name)})")
        for name in (field.name for field in fields(TrainingOptions))
        if name in changes and name not in CHANGEABLE and changes[name] != getattr(options, name)
    ]
    if refused:
        listed = [part for name, values in refused for part in (", ", name, values)][1:]
        raise ResumeError("a resumed run keeps the shape of its model and streams, but these options differ: ", *listed)
    if changes.keys() & {"epochs", "steps", "seconds"}:  # a new budget replaces the saved one, also of another unit
        changes = {"epochs": None, "steps": None, "seconds": None, **changes}
    return replace(options, **changes)


def check_text(saved: Checkpoint, corpus: Corpus, *, allow_new: bool) -> bool:
    """Return whether a text is the one that the run was started with.

    Raises:
        ResumeError: it is another text, and `allow_new` is false or the vocabulary of the run does not contain it; or
            the checkpoint does not record its text.
    """
    vocabulary, record = saved.vocabulary, saved.corpus
    if record.sha256 is None or record.chars is None:
        raise invalid_state("it does not record the training text")
    same = corpus.sha256 == record.sha256
    if not same and not allow_new:
        raise ResumeError(
            f"this run was started with another text, of {record.chars} {UNITS[vocabulary.unit]}s and sha256 "
            f"{escape(record.sha256)[:16]}…, but the text given has {len(corpus.ids)} and {corpus.sha256[:16]}…: "
            "give the same text, or ",
            Field("allow_new_corpus"),
        )
    if corpus.vocabulary.kind != vocabulary.kind:
        kind = vocabulary.kind
        raise ResumeError(f"the symbols of this run are {kind}: read the text with ", Field("symbols"), f" {kind}")
    if corpus.vocabulary.boundary != vocabulary.boundary:
        theirs, ours = describe_division(vocabulary.boundary), describe_division(corpus.vocabulary.boundary)
        raise ResumeError(f"the text of this run is {theirs}, not {ours}")
    if foreign := {*corpus.vocabulary.symbols} - {*vocabulary.symbols}:
        raise ResumeError(
            f"the new text has {len(foreign)} other characters, which are not in the vocabulary of the run: a resumed "
            "run keeps its vocabulary"
        )
    return same


def check_base(saved: Checkpoint, given: Model | None) -> BaseRecord | None:
    """Return the model that the run was fine-tuned from, if it was.

    Raises:
        ResumeError: `given` is another model, or the checkpoint does not record the model.
    """
    base = saved.base
    if base is not None and base.sha256 is None:
        raise invalid_state("it does not record which weights the run started with")
    base = None if base is None else replace(base, checkpoint=base.checkpoint and escape(base.checkpoint))
    if given is not None and (base is None or given.digest.hex() != base.sha256):
        then = "random weights" if base is None else base.checkpoint
        raise ResumeError(
            *(f"this run was started with {then}, not with {escape(str(given.path))} as it is now: leave out ",),
            Field("from_"),
        )
    return base


def check_validation(saved: Checkpoint, valid: Corpus | None) -> None:
    """Compare the separate validation text of the run, if it has one, with the one given now.

    Raises:
        ResumeError: they differ, or the checkpoint does not record the validation text.
    """
    then = saved.corpus.validation
    if then is not None and (then.sha256 is None or not then.names):
        raise invalid_state("it does not record the validation text")
    now = None if valid is None else TextRecord.of(valid)
    if (then and then.sha256) != (now and now.sha256):
        raise ResumeError(
            f"the validation text of this run is {_shown(then)}, not {_shown(now)}: give ",
            Field("valid"),
            " as at the start of the run",
        )


def changes_of_environment(saved: Checkpoint, now: Mapping[str, str]) -> list[str]:
    """Return a warning for each version, thread count or device that differs from those of the saved run.

    Args:
        saved: its facts may hold anything; what is shown of them is short and safe to print.
        now: the current values by name.
    """
    versions = saved.facts.get("versions")
    found = {**versions} if isinstance(versions, Mapping) else {}
    found |= {name: saved.facts[name] for name in ("threads", "device", "workers") if name in saved.facts}
    if "workers" in now:
        found.setdefault("workers", 1)
    then = {name: escape(str(value)[:60]) for name, value in found.items()}
    return [
        f"{name} was {then.get(name, 'unknown')} when this run was saved and is {value} now: "
        "the result may differ in the last digits"
        for name, value in now.items()
        if then.get(name) != value
    ]


def invalid_state(reason: str) -> ResumeError:
    """Return the error for a saved state that no run can have written."""
    return ResumeError(f"the saved training state is invalid: {reason}")


def _shown(text: TextRecord | None) -> str:
    if text is None:
        return "the held-out part of its text"
    return f"{escape(', '.join(text.names))} with sha256 {escape(str(text.sha256))[:16]}…"


def _check_counters(counters: Counters) -> None:
    for name, value in vars(counters).items():
        kind = _COUNTER_TYPES[name]
        values = value if isinstance(value, (list, tuple)) and kind.startswith("tuple") else (value,)
        for number in values:
            if not (number is None and kind.endswith("None")):
                _check_number(name, number, whole="int" in kind)


def _check_number(name: str, value: Any, *, whole: bool) -> None:
    limit = MAX_COUNT if whole else 1e300
    if type(value) not in ((int,) if whole else (int, float)) or not 0 <= value <= limit:
        raise invalid_state(f"{name} is {escape(str(value)[:60])}")


def _check_tensors(saved: Checkpoint, batch_size: int) -> None:
    carried, shape = saved.tensors.get("state/carried"), saved.model.state_shape(batch_size)
    if carried is None or carried.dtype != np.float32 or carried.shape != shape:
        raise invalid_state(f"state/carried is not float32 {shape}")
    for name, array in saved.tensors.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise invalid_state(f"{escape(name)} holds values that are NaN or infinite")
        if name.startswith("rng/"):
            _check_generator(name, array)


def _check_generator(name: str, state: np.ndarray[Any, Any]) -> None:
    """Torch checks the size, but would read beyond the end of a state that contradicts itself."""
    if state.nbytes == _GENERATOR_BYTES:
        left, following = _GENERATOR.unpack_from(state.tobytes())
        if (left, following) != (1, 0) and not (following > 0 and left + following == _GENERATOR_VALUES + 1):
            raise invalid_state(f"{name} is not the state of a random generator")
