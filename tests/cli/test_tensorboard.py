"""`--tensorboard`: the curves of a training run, read by TensorBoard."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from charlstm.cli.tensorboard import TensorBoardWriter
from charlstm.training.events import Progress, Started, Stopped, Validated, Warned
from tests.helpers.commands import Done, here

TEXT = "the cat sat on the mat.\n" * 60
TINY = ("--hidden", "8", "--embedding", "4", "--batch-size", "4", "--seq-len", "8", "--threads", "1", "--steps", "20")
VALID = ("--valid-share", "0.02", "--validations", "4")
TRAINED, FOUND = "bits_per_char/train", "bits_per_char/validation"

needs_tensorboard = pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="not installed")


@pytest.fixture
def train(memory: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    monkeypatch.chdir(memory)
    Path("text.txt").write_text(TEXT)
    return lambda *words: here(capfd, "train", "text.txt", *TINY, *words)


def curves(folder: str) -> dict[str, dict[int, float]]:
    """Return the curves that TensorBoard reads: name → step → value."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(folder)
    read.Reload()
    return {name: {point.step: point.value for point in read.Scalars(name)} for name in read.Tags()["scalars"]}


def started(resumed_step: int = 0) -> Started:
    values: dict[str, Any] = {field.name: 1 for field in fields(Started)}
    return Started(**{**values, "resumed_step": resumed_step})


def progress(step: int, seconds: float, bits: float = 2.5) -> Progress:
    return Progress(step, step / 9, bits, 71_234.0, step * 32, seconds, 9.0, 0.25 / step)


@needs_tensorboard
def test_tensorboard_shows_the_numbers_of_the_training_events(
    train: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("charlstm.training.loop.PROGRESS_SECONDS", 0.0)  # the run may be shorter than the default
    done = train("-o", "run", "--tensorboard", "curves", "--json", *VALID)
    assert (done.status, done.err) == (0, "")
    told = [json.loads(line) for line in done.out.splitlines()]
    found = curves("curves")
    assert {*found} == {TRAINED, FOUND, "learning_rate", "chars_per_second"}
    validated = {event["step"]: event["valid_bits_per_char"] for event in told if event["event"] == "validated"}
    assert len(validated) >= 3
    assert found[FOUND] == pytest.approx(validated, rel=1e-6)
    steps = {event["step"]: event for event in told if event["event"] == "progress"}
    shown = [*found["learning_rate"]]
    assert shown[0] == min(steps)
    assert found["learning_rate"] == pytest.approx({step: steps[step]["lr"] for step in shown}, rel=1e-6)
    for step in shown:
        assert found[TRAINED][step] == pytest.approx(steps[step]["train_bits_per_char"], rel=1e-6)


@needs_tensorboard
def test_a_curve_has_one_point_per_second(memory: Path) -> None:
    with TensorBoardWriter(memory) as board:
        board(started())
        for step in range(1, 41):
            board(progress(step, step * 0.1))
        board(Validated(40, 4.0, 2.25, 1.56, 2.5, True, ""))
    found = curves(str(memory))
    assert [*found["learning_rate"]] == [1, 11, 21, 31]
    assert found["learning_rate"][11] == pytest.approx(0.25 / 11)
    assert found["chars_per_second"][1] == 71_234
    assert found[FOUND] == {40: 2.25}


@needs_tensorboard
def test_a_resumed_run_replaces_the_points_after_its_first_step(memory: Path) -> None:
    for resumed, steps, bits in ((0, range(1, 8), 3.0), (4, range(5, 10), 2.0)):
        with TensorBoardWriter(memory) as board:
            board(started(resumed))
            for step in steps:
                board(progress(step, step * 2.0, bits))
    assert curves(str(memory))[TRAINED] == {step: 3.0 if step < 5 else 2.0 for step in range(1, 10)}


@needs_tensorboard
def test_a_full_disk_ends_the_curves_and_not_the_run(
    memory: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.summary.writer import record_writer

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with TensorBoardWriter(memory) as board:
        board(started())
        monkeypatch.setattr(record_writer.RecordWriter, "write", full)
        for step in range(1, 400):
            board(progress(step, step * 2.0))
    said = capfd.readouterr().err
    assert said == f"charlstm: {memory}: No space left on device; training continues without TensorBoard\n"


@needs_tensorboard
def test_the_writer_prints_nothing(memory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with TensorBoardWriter(memory) as board:
        for event in (started(), Warned(1, "look"), Stopped(9, 9.0, "finished", 2.25, memory, memory)):
            board(event)
    assert capfd.readouterr() == ("", "")


@needs_tensorboard
def test_an_unusable_directory_prints_one_line_before_the_first_step(train: Callable[..., Done]) -> None:
    Path("file").write_text("")
    done = train("-o", "run", "-q", "--tensorboard", "file/curves")
    assert (done.status, done.out, done.err.count("\n")) == (1, b"", 1)
    assert "file/curves" in done.err
    assert not Path("run", "last.safetensors").exists()
    assert train("-o", "run", "-q") == (0, b"", "")


def test_without_tensorboard_one_line_says_how_to_install_it(
    train: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    done = train("-o", "run", "--tensorboard", "curves")
    assert (done.status, done.out) == (1, b"")
    assert done.err == "charlstm: --tensorboard requires another package: pip install 'charlstm[tensorboard]'\n"
    assert not Path("run").exists()
