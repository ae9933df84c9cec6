"""The training record of a file from a stranger with a valid digest: resumed, or rejected in one line."""

from __future__ import annotations

import dataclasses
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from charlstm import checkpoint
from charlstm.checkpoint import Checkpoint
from charlstm.config import TrainingOptions
from charlstm.errors import CharlstmError
from charlstm.runs import LAST
from charlstm.text import corpus
from charlstm.training import resume
from charlstm.training.trainer import Trainer
from tests.helpers.commands import here
from tests.helpers.faults import mutate_value

TEXT = "the cat sat on the mat.\n" * 12
SMALL: dict[str, Any] = {
    "hidden": 4,
    "embedding": 2,
    "batch_size": 3,
    "seq_len": 8,
    "sample_chars": 0,
    "validations": 1,
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    folder = tmp_path_factory.mktemp("saved")
    (folder / "text").write_text(TEXT)
    list(Trainer.start(corpus.read([folder / "text"]), folder / "run", TrainingOptions(**SMALL, steps=4)).events())
    return checkpoint.load(folder / "run" / LAST, training=True)


def generator(left: int, following: int) -> Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]:
    """Return a function that sets the two counters of a state of torch's generator."""

    def change(state: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        data = bytearray(state.tobytes())
        struct.pack_into("<i4xQ", data, 8, left, following)
        return np.frombuffer(bytes(data), np.uint8)

    return change


MEAN, SQUARE = "optim/exp_avg/projection.bias", "optim/exp_avg_sq/projection.bias"
BAD: dict[str, tuple[str, Any, str]] = {  # entry, its new value (or a function of the old one), part of the message
    "no record": ("training", None, "weights only"),
    "an empty record": ("training", {}, "entries"),
    "an unknown entry": ("training/x", 1, "entries"),
    "no options": ("training/options", [], "must be an object"),
    "an unknown option": ("training/options/x", 1, "no field"),
    "an impossible option": ("training/options/hidden", "4", "hidden must be"),
    "another batch size than that of the state": ("training/options/batch_size", 2**20, "state/carried"),
    "no counters": ("training/tally", None, "must be an object"),
    "a step of text": ("training/tally/step", "x", "step is x"),
    "a step below 0": ("training/tally/step", -1, "step is -1"),
    "a step of float": ("training/tally/step", 4.0, "step is 4.0"),
    "a counter that is true": ("training/tally/rollbacks", True, "rollbacks is True"),
    "another step than that of the checkpoint": ("training/tally/step", 5, "step is 5 in its counters and 4 in"),
    "a weight below 0": ("training/tally/weight", -0.0102, "weight is"),
    "a best loss of text": ("training/tally/best_nats", "\x1b[2J", "best_nats is"),
    "a step that is null": ("training/tally/step", None, "step is None"),
    "a kept step that is a path": ("training/tally/kept", ["../x"], "kept is ../x"),
    "kept steps that are not a list": ("training/tally/kept", "12", "kept is 12"),
    "an enormous cursor": ("training/cursor", 10**30, "cursor is"),
    "a cursor of float": ("training/cursor", 1.5, "cursor is 1.5"),
    "a cursor below 0": ("training/cursor", -1, "cursor is -1"),
    "seconds of text": ("training/seconds", "1", "seconds is 1"),
    "a list of seconds": ("training/seconds", [1], "seconds is"),
    "no text": ("facts/corpus", 3, "does not record the training text"),
    "no sha256": ("facts/corpus/sha256", None, "does not record the training text"),
    "a validation text of text": ("facts/corpus/validation", "dev", "does not record the validation text"),
    "an unnamed validation text": ("facts/corpus/validation", {"sha256": "0", "names": 1}, "not record the valid"),
    "a validation text of controls": ("facts/corpus/validation", {"sha256": "0", "names": ["\x1b[2J"]}, "x1b[2J with"),
    "a base of text": ("facts/base", "\x1b[2J", "which weights the run started with"),
    "no length": ("facts/corpus/chars", "many", "does not record the training text"),
    "moments that are too short": (f"tensors/{MEAN}", lambda array: array[:3], "projection.bias is"),
    "moments of another type": (f"tensors/{MEAN}", lambda array: array.astype(np.float64), "projection.bias is"),
    "moments of NaN": (f"tensors/{MEAN}", lambda array: array * np.nan, "NaN or infinite"),
    "second moments below 0": (f"tensors/{SQUARE}", lambda array: -1 - array, "negative squares"),
    "no moments": (f"tensors/{MEAN}", None, MEAN),
    "no carried state": ("tensors/state/carried", None, "state/carried is not"),
    "a carried state of another type": ("tensors/state/carried", lambda a: a.astype("f8"), "state/carried is not"),
    "a carried state of another shape": ("tensors/state/carried", lambda a: a[..., :2], "state/carried is not"),
    "a carried state of infinity": ("tensors/state/carried", lambda array: array * np.inf, "NaN or infinite"),
    "no generator": ("tensors/rng/mask", None, "rng/mask"),
    "a generator that is too short": ("tensors/rng/generator", lambda array: array[:5], "RNG state"),
    "a generator of another type": ("tensors/rng/generator", lambda a: a.astype(np.int32), "RNG state"),
    "a generator beyond its end": ("tensors/rng/generator", generator(300, 624), "not the state of a random generator"),
    "a generator at its end": ("tensors/rng/generator", generator(0, 0), "not the state of a random generator"),
}  # fmt: skip


def changed(saved: Checkpoint, path: str, value: Any) -> Checkpoint:
    """Return the checkpoint with one entry changed; a tensor is removed if the value is None."""
    entry, *keys = path.split("/") if not path.startswith("tensors/") else ["tensors", path.removeprefix("tensors/")]
    if not keys:
        return dataclasses.replace(saved, **{entry: value})

    def within(holder: Any, keys: list[str]) -> dict[str, Any]:
        key, *rest = keys
        new = within(holder[key], rest) if rest else value(holder[key]) if callable(value) else value
        if new is None and entry == "tensors":
            return {name: array for name, array in holder.items() if name != key}
        return {**holder, key: new}

    changes: dict[str, Any] = {entry: within(getattr(saved, entry), keys)}
    return dataclasses.replace(saved, **changes)


@pytest.mark.fault("R90")
@pytest.mark.parametrize("kind", BAD)
def test_an_invalid_training_record_is_rejected_in_one_line(
    kind: str, saved: Checkpoint, memory: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path, value, says = BAD[kind]
    file = memory / "run" / LAST
    file.parent.mkdir()
    (memory / "text").write_text(TEXT)
    checkpoint.save(file, changed(saved, path, value))
    before = file.read_bytes()
    done = here(capfd, "train", memory / "text", "--resume", "-o", memory / "run", "--steps", 6, "--quiet")
    assert (done.status, done.out, done.err.count("\n")) == (1, b"", 1)
    assert says in done.err
    assert done.err[:-1].isprintable()
    assert file.read_bytes() == before


def test_the_unchanged_record_is_accepted(saved: Checkpoint) -> None:
    """Negative control of the test above."""
    assert resume.TrainingRecord.of(saved).options.hidden == 4


def test_invalid_versions_and_threads_are_shown_safely(saved: Checkpoint) -> None:
    damaged: list[Any] = [3, None, [], {"torch": {"a": ["\x1b[2J" * 99]}}, {"\x1b": 1}]
    for versions in damaged:
        facts = {"corpus": saved.facts["corpus"], "versions": versions, "threads": "\x1b[2J"}
        found = resume.changes_of_environment(dataclasses.replace(saved, facts=facts), {"torch": "2", "threads": "1"})
        assert all(warning.isprintable() and len(warning) < 500 for warning in found)
        assert len(found) == 2
        assert found[1].startswith("threads was \\x1b[2J when")


@pytest.mark.fault("R30")
@pytest.mark.parametrize("count", [150, pytest.param(20_000, marks=pytest.mark.slow)])
def test_a_randomly_changed_record_is_either_resumed_or_rejected(count: int, saved: Checkpoint, memory: Path) -> None:
    """Each file is a complete checkpoint with a valid digest; an accepted one trains for two more steps."""
    rng, trained, messages = random.Random(8), 0, set()
    (memory / "text").write_text(TEXT)
    text, file = corpus.read([memory / "text"]), memory / "run" / LAST
    file.parent.mkdir()
    for _ in range(count):
        training, facts, tensors = saved.training, saved.facts, dict(saved.tensors)
        kind = rng.random()
        if kind < 0.6:
            training = mutate_value(training, rng)
        elif kind < 0.75:
            facts = mutate_value(facts, rng)
        else:
            name = rng.choice(sorted(tensors))
            data = bytearray(tensors[name].tobytes())
            for _ in range(rng.choice((1, 3, 30))):
                data[rng.randrange(min(len(data), 40))] = rng.randrange(256)
            tensors[name] = np.frombuffer(bytes(data), tensors[name].dtype).reshape(tensors[name].shape)
        try:
            checkpoint.save(file, dataclasses.replace(saved, training=training, facts=facts, tensors=tensors))
        except (ValueError, AttributeError, TypeError):
            continue  # no checkpoint can hold it
        try:
            list(Trainer.resume(text, file, {"steps": 6, "epochs": None, "seconds": None}).events())
        except CharlstmError as error:
            messages.add(str(error))
        else:
            trained += 1
            assert all(np.isfinite(array).all() for array in checkpoint.load(file).weights.values())
    assert trained > count / 10
    assert all(message.isprintable() for message in messages)
    assert len({"".join(filter(str.isalpha, message))[:60] for message in messages}) > 5
