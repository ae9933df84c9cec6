"""A run from its start to its end: exact resume, files, losses that are NaN or infinite, patience, signals."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import charlstm
from charlstm import checkpoint
from charlstm.cells import GATES
from charlstm.config import TrainingOptions, setting_of
from charlstm.errors import (
    CharlstmError,
    CheckpointError,
    CorpusError,
    DivergenceError,
    ResumeError,
    RunBusy,
    UsageError,
)
from charlstm.inference import evaluation
from charlstm.inference.engine import Engine
from charlstm.runs import BEST, LAST
from charlstm.text import corpus
from charlstm.training import divergence, hardware, loop, precision, trainer
from charlstm.training.counters import Counters
from charlstm.training.events import CheckpointSaved, Event, Progress, Started, Stopped, Validated, Warned, to_json
from charlstm.training.run import CURVE_POINTS
from charlstm.training.run_dir import METRICS, Metrics
from charlstm.training.state import Step
from charlstm.training.trainer import Trainer
from charlstm.training.validation import ValidationSchedule
from tests.helpers.models import interrupt

TEXT = "".join(f"{k} green bottles hanging on the wall, and if {k % 7} green bottles should fall; " for k in range(60))
SMALL: dict[str, Any] = {"hidden": 12, "embedding": 5, "batch_size": 3, "seq_len": 9, "sample_chars": 20, "seed": 5}


@pytest.fixture
def tmp_path(memory: Path) -> Path:
    """A directory in memory, because these tests save hundreds of times."""
    return memory


@pytest.fixture
def text(tmp_path: Path) -> corpus.Corpus:
    file = tmp_path / "bottles.txt"
    file.write_text(TEXT)
    return corpus.read([file])


def finish(run: Trainer, stop_at: int | None = None) -> list[Event]:
    """Return all events of a run; with `stop_at`, a signal arrives during that step."""
    if stop_at is not None:
        interrupt(run, stop_at)
    return list(run.events())


def straight(text: corpus.Corpus, run: Path, **options: Any) -> bytes:
    finish(Trainer.start(text, run, TrainingOptions(**{**SMALL, **options})))
    return (run / LAST).read_bytes()


def interrupted(text: corpus.Corpus, run: Path, at: int, **options: Any) -> bytes:
    events = finish(Trainer.start(text, run, TrainingOptions(**{**SMALL, **options})), stop_at=at)
    assert isinstance(events[-1], Stopped)
    assert (events[-1].reason, events[-1].signal, events[-1].step) == ("interrupted", signal.SIGINT, at)
    finish(Trainer.resume(text, run))
    return (run / LAST).read_bytes()


@pytest.mark.fault("R34")
@pytest.mark.parametrize("cell", GATES)
@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("chars", [700, pytest.param(len(TEXT), marks=pytest.mark.slow)])
def test_a_stopped_and_resumed_run_ends_in_the_same_bytes(
    tmp_path: Path, cell: str, dropout: float, chars: int
) -> None:
    (tmp_path / "bottles.txt").write_text(TEXT[:chars])
    text = corpus.read([tmp_path / "bottles.txt"])
    options = {"cell": cell, "dropout": dropout, "layers": 2, "epochs": 1.2, "reset": 0.2}
    expected = straight(text, tmp_path / "straight", **options)
    steps = checkpoint.load(tmp_path / "straight" / LAST).step
    assert steps > 20
    for at in (1, steps // 3, round(steps / 1.2), steps - 1):
        assert interrupted(text, tmp_path / f"at{at}", at, **options) == expected
        assert (tmp_path / f"at{at}" / BEST).read_bytes() == (tmp_path / "straight" / BEST).read_bytes()


@pytest.mark.parametrize("budget", [{"seconds": 0.2}, {"steps": 2}])
def test_the_speed_is_measured_only_for_a_budget_in_time(
    text: corpus.Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: dict[str, Any]
) -> None:
    measured: list[tuple[str, str]] = []

    def speed(device: torch.device, precision: str = "fp32") -> float:
        measured.append((device.type, precision))
        return 1e10

    monkeypatch.setattr(hardware, "speed", speed)
    monkeypatch.setattr(precision, "is_fast", lambda _: True)
    monkeypatch.setattr(precision, "speedup", lambda *_: 1.0)
    run = Trainer.start(text, tmp_path / "run", TrainingOptions(**SMALL, **budget))
    *_, stopped = finish(run)
    assert measured == ([("cpu", "fp32"), ("cpu", "bf16")] if "seconds" in budget else [])
    assert isinstance(stopped, Stopped)
    assert 0 < stopped.step_seconds < stopped.seconds


@pytest.mark.fault("R35")
@pytest.mark.parametrize("lost", ["state", "generator", "mask", "cursor", "moments"])
def test_resuming_without_one_part_of_the_state_is_noticed(
    text: corpus.Corpus, tmp_path: Path, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control of the test above: each part of the saved state is needed for the same bytes."""
    options = {"dropout": 0.5, "steps": 30, "reset": 0.2}
    expected = straight(text, tmp_path / "straight", **options)
    load = checkpoint.load

    def forgetful(path: Path, **arguments: Any) -> checkpoint.Checkpoint:
        saved = load(path, **arguments)
        for name, array in saved.tensors.items():
            if (lost, name) == ("state", "state/carried") or (lost == "moments" and name.startswith("optim/")):
                array[:] = 0
            if (lost, name) in (("generator", "rng/generator"), ("mask", "rng/mask")):
                array[:] = torch.Generator().manual_seed(99).get_state().numpy()
        if lost == "cursor" and saved.training is not None:
            saved = dataclasses.replace(saved, training={**saved.training, "cursor": 0})
        return saved

    finish(Trainer.start(text, tmp_path / "run", TrainingOptions(**{**SMALL, **options})), stop_at=11)
    monkeypatch.setattr(checkpoint, "load", forgetful)
    finish(Trainer.resume(text, tmp_path / "run"))
    assert (tmp_path / "run" / LAST).read_bytes() != expected


SCRIPT = """
import json, os, signal, sys
from charlstm.text import corpus
from charlstm.config import TrainingOptions, setting_of
from charlstm.training.events import CheckpointSaved
from charlstm.training.trainer import Trainer
text, run, options = sys.argv[1:]
given = corpus.read([text])
saves = 0
for event in Trainer.start(given, run, TrainingOptions(**json.loads(options))).events():
    saves += isinstance(event, CheckpointSaved)
    if saves == 1 and isinstance(event, CheckpointSaved):
        os.kill(os.getpid(), signal.SIGTERM)
assert event.reason == "interrupted", event
list(Trainer.resume(given, run).events())
"""


@pytest.mark.fault("R33")
def test_two_processes_with_the_same_seed_write_the_same_bytes_even_if_one_is_interrupted(
    text: corpus.Corpus, tmp_path: Path
) -> None:
    options = {**SMALL, "dropout": 0.2, "steps": 120, "sample_chars": 0}
    expected = straight(text, tmp_path / "here", **options)
    words = [text.names[0], str(tmp_path / "there"), json.dumps(options)]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *words], capture_output=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "there" / LAST).read_bytes() == expected
    assert straight(text, tmp_path / "other", **{**options, "seed": 6}) != expected


@pytest.mark.fault("R39")
def test_resuming_a_finished_run_reports_it_and_changes_no_file(text: corpus.Corpus, tmp_path: Path) -> None:
    before = straight(text, tmp_path / "run", steps=5)
    stamp = (tmp_path / "run" / LAST).stat().st_mtime_ns
    events = finish(Trainer.resume(text, tmp_path / "run"))
    assert isinstance(events[-1], Stopped)
    assert events[-1].reason == "already-finished"
    assert (tmp_path / "run" / LAST).read_bytes() == before
    assert (tmp_path / "run" / LAST).stat().st_mtime_ns == stamp


def test_a_finished_run_continues_with_a_larger_budget(text: corpus.Corpus, tmp_path: Path) -> None:
    straight(text, tmp_path / "run", steps=5)
    events = finish(Trainer.resume(text, tmp_path / "run", {"steps": 8}))
    assert isinstance(events[-1], Stopped)
    assert (events[-1].reason, events[-1].step) == ("finished", 8)


@pytest.mark.fault("R37")
def test_another_text_on_resume_is_an_error_unless_allowed(text: corpus.Corpus, tmp_path: Path) -> None:
    straight(text, tmp_path / "run", steps=5)
    (tmp_path / "other.txt").write_text(TEXT.replace("3 green", "4 green"))
    other = corpus.read([tmp_path / "other.txt"])
    with pytest.raises(ResumeError, match=f"{text.sha256[:16]}.*{other.sha256[:16]}.*allow_new_corpus"):
        Trainer.resume(other, tmp_path / "run", {"steps": 6})
    events = finish(Trainer.resume(other, tmp_path / "run", {"steps": 6}, allow_new_corpus=True))
    assert isinstance(events[-1], Stopped)
    assert events[-1].step == 6
    (tmp_path / "strange.txt").write_text(TEXT + "ß")
    with pytest.raises(ResumeError, match="other characters"):
        Trainer.resume(corpus.read([tmp_path / "strange.txt"]), tmp_path / "run", allow_new_corpus=True)


@pytest.mark.fault("R38")
def test_another_shape_on_resume_is_an_error_with_both_values(text: corpus.Corpus, tmp_path: Path) -> None:
    straight(text, tmp_path / "run", steps=5)
    with pytest.raises(ResumeError, match=r"cell gru \(saved: lstm\), hidden 64 \(saved: 12\)"):
        Trainer.resume(text, tmp_path / "run", {"hidden": 64, "cell": "gru"})


@pytest.mark.fault("R40")
def test_a_checkpoint_without_training_state_cannot_be_resumed(text: corpus.Corpus, tmp_path: Path) -> None:
    straight(text, tmp_path / "run", steps=5)
    with pytest.raises(ResumeError, match=LAST):
        Trainer.resume(text, tmp_path / "run" / BEST)


@pytest.mark.fault("R42")
def test_another_version_or_thread_count_on_resume_is_a_warning(text: corpus.Corpus, tmp_path: Path) -> None:
    straight(text, tmp_path / "run", steps=5)
    saved = checkpoint.load(tmp_path / "run" / LAST, training=True)
    saved.facts["versions"]["torch"] = "1.0"
    checkpoint.save(tmp_path / "run" / LAST, saved)
    threads = torch.get_num_threads()
    try:
        events = finish(Trainer.resume(text, tmp_path / "run", {"steps": 6, "threads": threads + 1}))
    finally:
        torch.set_num_threads(threads)
    warnings = " ".join(event.message for event in events if isinstance(event, Warned))
    assert "torch was 1.0" in warnings
    assert f"threads was {threads} " in warnings


@pytest.mark.fault("R12")
def test_a_second_trainer_in_the_same_directory_gets_an_error_with_the_process_id(
    text: corpus.Corpus, tmp_path: Path
) -> None:
    first = Trainer.start(text, tmp_path / "run", TrainingOptions(**SMALL, steps=2))
    with pytest.raises(RunBusy, match=str(os.getpid())):
        Trainer.start(text, tmp_path / "run", TrainingOptions(**SMALL, steps=2))
    finish(first)
    with pytest.raises(CheckpointError, match="resume"):
        Trainer.start(text, tmp_path / "run", TrainingOptions(**SMALL, steps=2))


@pytest.mark.fault("R8")
def test_a_directory_that_cannot_be_created_is_an_error_before_the_first_step(
    text: corpus.Corpus, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="Not a directory"):
        Trainer.start(text, tmp_path / "file" / "run", TrainingOptions(**SMALL, steps=2))


class _Poisoned:
    """Make the loss of one step NaN, or a gradient infinite."""

    def __init__(self, run: Trainer, what: str, at: int) -> None:
        self.run, self.what, self.at, self.calls = run, what, at, 0
        if what == "gradient":
            run.state.network.projection.bias.register_hook(self.gradient)
        else:
            run.state.network.register_forward_hook(self.logits)

    def gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return gradient * math.inf if self.calls == self.at else gradient

    def logits(self, _module: Any, _inputs: Any, output: tuple[torch.Tensor, torch.Tensor]) -> Any:
        if not torch.is_grad_enabled():
            return None
        self.calls += 1
        return (output[0] * math.nan, output[1]) if self.calls == self.at else None


@pytest.mark.fault("R53", "R54")
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_neither_weights_nor_files(
    text: corpus.Corpus, tmp_path: Path, what: str
) -> None:
    run = Trainer.start(text, tmp_path / "run", TrainingOptions(**SMALL, steps=20, on_divergence="stop"))
    _Poisoned(run, what, at=7)
    before: dict[str, np.ndarray[Any, Any]] = {}
    step = run.state.step

    def watched(share: float) -> Step:
        before.update(run.state.network.weights())
        return step(share)

    run.state.step = watched  # type: ignore[method-assign]
    with pytest.raises(DivergenceError, match=r"step 7: .*(nan|inf)"):
        list(run.events())
    after = run.state.network.weights()
    assert all(np.array_equal(before[name], after[name]) for name in after)
    assert not (tmp_path / "run" / LAST).exists() or checkpoint.load(tmp_path / "run" / LAST).step < 7


@pytest.mark.fault("R53", "R54")
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_without_the_finite_check_one_step_ruins_the_weights(text: corpus.Corpus, tmp_path: Path, what: str) -> None:
    """Negative control of the test above: the optimizer is given a finite norm for every gradient."""
    run = Trainer.start(text, tmp_path / "run", TrainingOptions(**SMALL, steps=20, on_divergence="stop"))
    _Poisoned(run, what, at=7)
    step = run.state.optimizer.step

    def unchecked(share: float, norm: torch.Tensor, factor: float = 1.0) -> float:
        return step(share, torch.ones_like(norm), factor)

    run.state.optimizer.step = unchecked  # type: ignore[method-assign]
    with pytest.raises(DivergenceError):
        list(run.events())
    assert not all(np.isfinite(array).all() for array in run.state.network.weights().values())


def test_a_finite_step_changes_every_weight(text: corpus.Corpus, tmp_path: Path) -> None:
    """Negative control of the test above: an ordinary step is not skipped."""
    run = Trainer.start(text, tmp_path / "run", TrainingOptions(**SMALL, steps=20))
    before = run.state.network.weights()
    list(run.events())
    after = run.state.network.weights()
    assert not any(np.array_equal(before[name], after[name]) for name in after)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_run_that_diverges_is_rolled_back_and_continues_at_half_the_learning_rate(
    text: corpus.Corpus, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(divergence, "GOOD_STEPS", 5)
    run = Trainer.start(text, tmp_path / "run", TrainingOptions(**SMALL, steps=20))
    _Poisoned(run, what, at=8)
    events = finish(run)
    (warning,) = [event for event in events if isinstance(event, Warned)]
    assert warning.message.startswith("step 8 diverged")
    assert "returned to step 5 with half the learning rate (rollback 1 of at most 3)" in warning.message
    assert isinstance(events[-1], Stopped)
    assert (events[-1].reason, events[-1].step) == ("finished", 20)
    saved = checkpoint.load(tmp_path / "run" / LAST, training=True)
    assert saved.training is not None
    assert saved.training["tally"]["rollbacks"] == 1


def test_a_run_that_always_diverges_stops_after_three_rollbacks(text: corpus.Corpus, tmp_path: Path) -> None:
    run = Trainer.start(text, tmp_path / "run", TrainingOptions(**SMALL, steps=20))
    run.state.network.projection.bias.register_hook(lambda gradient: gradient * math.nan)
    seen: list[Event] = []
    with pytest.raises(DivergenceError, match="lower lr or clip"):
        seen.extend(run.events())
    assert not (tmp_path / "run" / LAST).exists()


def test_a_spike_of_the_loss_is_rolled_back(text: corpus.Corpus, tmp_path: Path) -> None:
    run = Trainer.start(text, tmp_path / "run", TrainingOptions(**SMALL, steps=400))
    step = run.state.step

    def jolted(share: float) -> Step:
        if run.state.counters.step == 300 and run.state.counters.rollbacks == 0:
            with torch.no_grad():
                run.state.network.projection.weight.mul_(-30)
        return step(share)

    run.state.step = jolted  # type: ignore[method-assign]
    events = finish(run)
    assert [event.step for event in events if isinstance(event, Warned)] != []
    assert isinstance(events[-1], Stopped)
    assert events[-1].best_valid_bits_per_char is not None
    assert events[-1].best_valid_bits_per_char < 2.5


@pytest.mark.fault("R55")
def test_an_extreme_learning_rate_ends_in_a_clear_error_or_a_finite_model(text: corpus.Corpus, tmp_path: Path) -> None:
    run = Trainer.start(text, tmp_path / "run", TrainingOptions(**SMALL, steps=50, lr=1e20))
    with contextlib.suppress(DivergenceError):
        list(run.events())
    for file in (tmp_path / "run").glob("*.safetensors"):
        assert all(np.isfinite(array).all() for array in checkpoint.load(file).weights.values())


@pytest.mark.fault("R59")
def test_best_is_replaced_only_by_a_strictly_better_finite_value(
    text: corpus.Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([3.0, math.nan, 2.5, 2.5, 2.7, 2.4, math.inf, 2.9])
    monkeypatch.setattr(
        evaluation, "evaluate", lambda *_: evaluation.Score(9, 8, value := next(values), value, 0.0, "canned")
    )
    monkeypatch.setattr(ValidationSchedule, "due", lambda _, step, _seconds: step % 5 == 0)
    events = finish(Trainer.start(text, tmp_path / "run", TrainingOptions(**SMALL, steps=40)))
    best = [event.best for event in events if isinstance(event, Validated)]
    assert best == [True, False, True, False, False, True, False, False]
    assert checkpoint.load(tmp_path / "run" / BEST).step == 30
    shown = [json.loads(line) for line in (tmp_path / "run" / METRICS).read_text().splitlines()]
    assert math.isnan([line for line in shown if line["event"] == "validated"][1]["valid_nats_per_char"])  # R56


@pytest.fixture
def canned(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Make a run validate every five steps and get these losses."""

    def give(*values: float) -> None:
        coming = iter(values)
        monkeypatch.setattr(ValidationSchedule, "due", lambda _, step, _seconds: step % 5 == 0)
        monkeypatch.setattr(
            evaluation, "evaluate", lambda *_: evaluation.Score(9, 8, value := next(coming), value, 0.0, "canned")
        )

    return give


WORSE_AFTER_25 = (3.0, 2.5, 2.6, 2.7, 2.4, 2.5, 2.6, 2.6, 2.3, 2.9, 2.9, 2.9, 2.9)


def test_a_run_out_of_patience_stops_and_stops_again_when_resumed(
    text: corpus.Corpus, tmp_path: Path, canned: Callable[..., None]
) -> None:
    canned(*WORSE_AFTER_25)
    run = tmp_path / "run"
    events = finish(Trainer.start(text, run, TrainingOptions(**SMALL, steps=100, patience=3)))
    assert isinstance(events[-1], Stopped)
    assert (events[-1].reason, events[-1].step, events[-1].no_better) == ("patience", 40, 3)
    assert [checkpoint.load(run / name).step for name in (BEST, LAST)] == [25, 40]
    before = (run / LAST).read_bytes()
    again = finish(Trainer.resume(text, run))
    assert [type(event) for event in again] == [Started, Stopped]
    assert (again[-1].reason, again[-1].step) == ("patience", 40)  # type: ignore[union-attr]
    assert (run / LAST).read_bytes() == before
    more = finish(Trainer.resume(text, run, {"patience": 4}))
    assert (more[-1].reason, more[-1].step) == ("patience", 65)  # type: ignore[union-attr]


@pytest.mark.parametrize("at", [24, 26, 38])
def test_a_resumed_run_stops_at_the_same_step_as_an_uninterrupted_one(
    text: corpus.Corpus, tmp_path: Path, canned: Callable[..., None], at: int
) -> None:
    canned(*WORSE_AFTER_25)
    expected = straight(text, tmp_path / "straight", steps=100, patience=3)
    canned(*WORSE_AFTER_25)
    assert interrupted(text, tmp_path / "run", at, steps=100, patience=3) == expected


def test_patience_requires_a_validation_text(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("abcabcabc")
    with pytest.raises(UsageError, match="patience counts validations"):
        Trainer.start(
            corpus.read([tmp_path / "short.txt"]), tmp_path / "run", TrainingOptions(hidden=4, steps=3, patience=1)
        )


def test_patience_survives_a_rollback(
    text: corpus.Corpus, tmp_path: Path, canned: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record of the files is not rolled back with the weights: three worse validations count as three."""
    canned(3.0, 3.1, 3.2, 3.3)
    monkeypatch.setattr(divergence, "GOOD_STEPS", 1000)
    run = Trainer.start(text, tmp_path / "run", TrainingOptions(**SMALL, steps=100, patience=3, keep=2))
    _Poisoned(run, "loss", at=12)
    events = finish(run)
    assert [event.step for event in events if isinstance(event, Validated)] == [5, 10, 5, 10]
    assert events[-1].reason == "patience"  # type: ignore[union-attr]
    assert sorted(file.name for file in (tmp_path / "run").glob("step-*")) == [
        "step-000005.safetensors",
        "step-000010.safetensors",
    ]


def kept(run: Path) -> list[str]:
    return sorted(file.name for file in run.glob("step-*"))


def test_the_weights_of_the_latest_validations_are_kept_and_no_other_file_is_removed(
    text: corpus.Corpus, tmp_path: Path, canned: Callable[..., None]
) -> None:
    canned(*WORSE_AFTER_25)
    run = tmp_path / "run"
    theirs = ["step-000001.safetensors", "step-000010.safetensors.bak", "step-notes.txt"]
    made: dict[str, set[str]] = {}
    for event in Trainer.start(text, run, TrainingOptions(**SMALL, steps=30, keep=2)).events():
        if isinstance(event, Started):
            for name in theirs:
                (run / name).write_text("mine")
        elif isinstance(event, CheckpointSaved):
            made[event.path.name] = {*kept(run)} - {*theirs}
    assert made["step-000015.safetensors"] == {f"step-0000{step}.safetensors" for step in ("05", "10", "15")}
    assert kept(run) == sorted([*theirs, "step-000025.safetensors", "step-000030.safetensors"])
    assert all((run / name).read_text() == "mine" for name in theirs)
    last, latest = checkpoint.load(run / LAST), checkpoint.load(run / "step-000030.safetensors", training=True)
    assert (latest.step, latest.training, latest.tensors) == (30, None, {})
    assert all(np.array_equal(last.weights[name], latest.weights[name]) for name in last.weights)


def test_a_resumed_run_keeps_the_same_files_as_an_uninterrupted_one(text: corpus.Corpus, tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 40, "validations": 8, "valid_share": 0.01, "keep": 3}
    expected = straight(text, tmp_path / "straight", **options)
    assert interrupted(text, tmp_path / "run", 22, **options) == expected
    assert kept(tmp_path / "run") == kept(tmp_path / "straight")
    assert len(kept(tmp_path / "run")) == 3
    for name in kept(tmp_path / "run"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_old_weights_are_removed_only_after_the_new_ones_are_stored(
    text: corpus.Corpus, tmp_path: Path, canned: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    canned(*WORSE_AFTER_25)
    save = checkpoint.save

    def full_at_15(path: Path, what: checkpoint.Checkpoint) -> None:
        if path.name == "step-000015.safetensors":
            raise CheckpointError("No space left on device")
        save(path, what)

    monkeypatch.setattr(checkpoint, "save", full_at_15)
    events = finish(Trainer.start(text, tmp_path / "run", TrainingOptions(**SMALL, steps=15, keep=2)))
    assert kept(tmp_path / "run") == ["step-000005.safetensors", "step-000010.safetensors"]
    assert [event.step for event in events if isinstance(event, Warned)] == [15]


def test_a_checkpoint_from_before_an_option_existed_is_resumed(text: corpus.Corpus, tmp_path: Path) -> None:
    options = {"steps": 30, "dropout": 0.5}
    expected = straight(text, tmp_path / "straight", **options)
    finish(Trainer.start(text, tmp_path / "run", TrainingOptions(**{**SMALL, **options})), stop_at=11)
    saved = checkpoint.load(tmp_path / "run" / LAST, training=True)
    assert saved.training is not None
    for part, kind in (("options", TrainingOptions), ("tally", Counters)):
        later = [field.name for field in dataclasses.fields(kind) if setting_of(field).later]
        assert later
        for name in later:
            saved.training[part].pop(name, None)  # one that is None was left out
    checkpoint.save(tmp_path / "run" / LAST, saved)
    finish(Trainer.resume(text, tmp_path / "run"))
    assert (tmp_path / "run" / LAST).read_bytes() == expected
    saved.training["tally"]["luck"] = 7
    checkpoint.save(tmp_path / "run" / LAST, saved)
    with pytest.raises(ResumeError, match="luck"):
        Trainer.resume(text, tmp_path / "run")


@pytest.mark.fault("R56")
def test_a_validation_loss_of_nan_is_reported_and_the_run_is_saved(
    text: corpus.Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = evaluation.Score(9, 8, math.nan, math.nan, math.nan, "canned")
    monkeypatch.setattr(evaluation, "evaluate", lambda *_: nowhere)
    events = finish(Trainer.start(text, tmp_path / "run", TrainingOptions(**SMALL, steps=6)))
    assert [event for event in events if isinstance(event, Validated) and math.isnan(event.valid_nats_per_char)]
    assert isinstance(events[-1], Stopped)
    assert checkpoint.load(tmp_path / "run" / LAST).facts["valid_nats_per_char"] is None
    assert "NaN" in (tmp_path / "run" / METRICS).read_text()


@pytest.mark.fault("R7")
def test_a_save_that_fails_during_a_run_is_a_warning_and_is_repeated(
    text: corpus.Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)
    save, calls = checkpoint.save, iter(range(10**6))

    def full_at_times(path: Path, what: checkpoint.Checkpoint) -> None:
        if next(calls) in (0, 2):
            raise CheckpointError("No space left on device")
        save(path, what)

    monkeypatch.setattr(checkpoint, "save", full_at_times)
    events = finish(Trainer.start(text, tmp_path / "run", TrainingOptions(**SMALL, steps=9)))
    warned = [event.step for event in events if isinstance(event, Warned) and "will try again" in event.message]
    assert warned == [1, 3]
    assert [event.step for event in events if isinstance(event, CheckpointSaved)][:2] == [2, 4]


@pytest.mark.fault("R7")
def test_a_save_that_fails_at_the_end_is_an_error(
    text: corpus.Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, failing = checkpoint.save, LAST

    def full(path: Path, what: checkpoint.Checkpoint) -> None:
        if path.name == failing:
            raise CheckpointError("No space left on device")
        save(path, what)

    monkeypatch.setattr(checkpoint, "save", full)
    for failing in (LAST, BEST):
        with pytest.raises(CheckpointError, match="No space left"):
            finish(Trainer.start(text, tmp_path / failing, TrainingOptions(**SMALL, steps=6)))


def test_a_removed_directory_is_created_again(text: corpus.Corpus, tmp_path: Path) -> None:
    run = Trainer.start(text, tmp_path / "run", TrainingOptions(**SMALL, steps=30))
    for event in run.events():
        if isinstance(event, Started):
            shutil.rmtree(tmp_path / "run")
    assert checkpoint.load(tmp_path / "run" / LAST).step == 30


def test_a_log_that_cannot_be_written_gives_one_warning(text: corpus.Corpus, tmp_path: Path) -> None:
    run = Trainer.start(text, tmp_path / "run", TrainingOptions(**SMALL, steps=6))
    (tmp_path / "run" / METRICS).mkdir()
    events = finish(run)
    assert [event.message for event in events if isinstance(event, Warned) and METRICS in event.message]
    assert len([event for event in events if isinstance(event, Warned)]) == 1
    assert isinstance(events[-1], Stopped)


@pytest.mark.fault("R45")
def test_the_second_interrupt_stops_at_once_and_leaves_a_complete_checkpoint(
    text: corpus.Corpus, tmp_path: Path
) -> None:
    run = Trainer.start(text, tmp_path / "run", TrainingOptions(**SMALL, steps=500))

    def watch() -> None:
        for event in run.events():
            if isinstance(event, CheckpointSaved):
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        watch()
    assert checkpoint.load(tmp_path / "run" / BEST).step >= 1
    assert not run.run.directory.is_locked


@pytest.mark.fault("R46")
def test_a_signal_that_nohup_ignores_stays_ignored(text: corpus.Corpus, tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run = Trainer.start(text, tmp_path / "run", TrainingOptions(**SMALL, steps=10))
        reasons = []
        for event in run.events():
            signal.raise_signal(signal.SIGHUP)
            reasons += [event.reason] if isinstance(event, Stopped) else []
    finally:
        signal.signal(signal.SIGHUP, before)
    assert reasons == ["finished"]


@pytest.mark.fault("R47")
def test_signal_handlers_are_restored_and_are_not_set_in_a_thread(text: corpus.Corpus, tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    for event in Trainer.start(text, tmp_path / "main", TrainingOptions(**SMALL, steps=3)).events():
        if isinstance(event, Progress):
            assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == before
    with ThreadPoolExecutor(1) as pool:
        thread = pool.submit(straight, text, tmp_path / "thread", steps=3)
        assert thread.result() == (tmp_path / "main" / LAST).read_bytes()


@pytest.mark.fault("R61", "R62", "R72")
@pytest.mark.parametrize("characters", [2, 3, 5, 9, 17, 50])
def test_short_texts_train_with_smaller_windows(tmp_path: Path, characters: int) -> None:
    (tmp_path / "short.txt").write_text("abcabc"[:characters] + "x" * max(0, characters - 6))
    events = finish(
        Trainer.start(
            corpus.read([tmp_path / "short.txt"]), tmp_path / "run", TrainingOptions(hidden=4, steps=3, sample_chars=0)
        )
    )
    assert isinstance(events[0], Started)
    assert events[0].batch_size * events[0].seq_len <= events[0].train_chars - 1
    assert isinstance(events[-1], Stopped)
    assert charlstm.load(tmp_path / "run").sample(length=5)


@pytest.mark.fault("R61")
def test_a_text_of_one_character_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("a")
    with pytest.raises(CorpusError, match="2 or more"):
        Trainer.start(corpus.read([tmp_path / "one.txt"]), tmp_path / "run", TrainingOptions(steps=1))
    assert not (tmp_path / "run").exists()


@pytest.mark.fault("R62")
def test_a_text_of_a_single_symbol_has_a_loss_of_zero(tmp_path: Path) -> None:
    (tmp_path / "aaaa.txt").write_text("a" * 500)
    finish(Trainer.start(corpus.read([tmp_path / "aaaa.txt"]), tmp_path / "run", TrainingOptions(hidden=4, steps=2)))
    model = charlstm.load(tmp_path / "run")
    assert model.sample(length=4) == "aaaa"
    assert model.evaluate("a" * 100).bits_per_char == 0


def test_the_reported_validation_loss_is_that_of_an_evaluation(text: corpus.Corpus, tmp_path: Path) -> None:
    events = finish(Trainer.start(text, tmp_path / "run", TrainingOptions(**SMALL, steps=40)))
    reported = [event for event in events if isinstance(event, Validated) and event.best][-1]
    saved = checkpoint.load(tmp_path / "run" / BEST)
    engine = Engine(saved.model, saved.weights, precision="fp32")
    _, valid = text.split(0.1)
    assert evaluation.evaluate(engine, valid).nats_per_char == pytest.approx(reported.valid_nats_per_char, abs=1e-6)


def test_a_run_with_a_budget_in_time_ends_by_the_clock_and_can_be_resumed(text: corpus.Corpus, tmp_path: Path) -> None:
    first = finish(Trainer.start(text, tmp_path / "run", TrainingOptions(**SMALL, seconds=0.5)))
    assert isinstance(first[-1], Stopped)
    assert 0.3 < first[-1].seconds < 30
    second = finish(Trainer.resume(text, tmp_path / "run", {"seconds": first[-1].seconds + 0.5}))
    assert isinstance(second[-1], Stopped)
    assert second[-1].step > first[-1].step
    assert second[-1].seconds > first[-1].seconds


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_an_unavailable_device_is_an_error_that_names_it(text: corpus.Corpus, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="device cuda"):
        Trainer.start(text, tmp_path / "run", TrainingOptions(**SMALL, steps=3, device="cuda"))


def test_a_model_that_does_not_fit_in_memory_is_an_error_before_it_is_allocated(
    text: corpus.Corpus, tmp_path: Path
) -> None:
    with pytest.raises(CharlstmError, match=r"GB of memory.*reduce hidden"):
        Trainer.start(text, tmp_path / "run", TrainingOptions(hidden=65536, layers=64, steps=1))


def test_a_step_that_runs_out_of_memory_ends_in_a_clear_error(text: corpus.Corpus, tmp_path: Path) -> None:
    run = Trainer.start(text, tmp_path / "run", TrainingOptions(**SMALL, steps=3))

    def hungry(share: float) -> Step:
        torch.empty(2**60)
        raise AssertionError("no machine has this much memory")

    run.state.step = hungry  # type: ignore[method-assign]
    with pytest.raises(CharlstmError, match=r"not enough memory .*batch_size"):
        list(run.events())


def test_events_are_written_as_json(text: corpus.Corpus, tmp_path: Path) -> None:
    for event in finish(Trainer.start(text, tmp_path / "run", TrainingOptions(**SMALL, steps=3))):
        assert json.loads(json.dumps(to_json(event)))["event"] == event.name
    lines = [json.loads(line) for line in (tmp_path / "run" / METRICS).read_text().splitlines()]
    assert [line["event"] for line in lines] == ["started", *["curve"] * 3, "validated", "stopped"]


def curve(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    return [line for line in lines if line["event"] == "curve"]


@pytest.mark.parametrize("steps", [37, 200, 333])
def test_the_log_holds_the_curves_at_a_fixed_number_of_points(text: corpus.Corpus, tmp_path: Path, steps: int) -> None:
    trainer = Trainer.start(text, tmp_path / "run", TrainingOptions(**SMALL, steps=steps))
    finish(trainer)
    points = curve(tmp_path / "run")
    assert len(points) == min(CURVE_POINTS, steps)
    assert points[-1]["step"] == steps
    for point in points:
        assert point["share"] == point["step"] / steps
        assert point["lr"] == trainer.state.optimizer.rate((point["step"] - 1) / steps)
        assert point["chars_per_second"] >= 1
    assert points[-1]["train_bits_per_char"] == trainer.state.counters.train_nats / math.log(2)
    assert len({point["train_bits_per_char"] for point in points}) == len(points)


def test_the_curves_of_a_run_with_a_budget_in_time_end_with_it(text: corpus.Corpus, tmp_path: Path) -> None:
    events = finish(Trainer.start(text, tmp_path / "run", TrainingOptions(**SMALL, seconds=0.3)))
    points = curve(tmp_path / "run")
    assert len({point["step"] for point in points}) == len(points) <= CURVE_POINTS
    assert isinstance(events[-1], Stopped)
    assert (points[-1]["step"], points[-1]["share"]) == (events[-1].step, 1)


def repeatable(run: Path) -> list[tuple[str, int, float | None]]:
    """Return what the log says of curves and validations, without what depends on the clock."""
    lines = [json.loads(line) for line in (run / METRICS).read_text().splitlines()]
    return [
        (line["event"], line["step"], line["train_bits_per_char"])
        for line in lines
        if line["event"] in ("curve", "validated")
    ]


@pytest.mark.parametrize("is_forgotten", [True, False])
def test_the_log_of_a_resumed_run_has_each_event_once(
    text: corpus.Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_forgotten: bool
) -> None:
    """A killed process has logged events after its last save. They are removed; the control keeps them."""
    options: dict[str, Any] = {"steps": 300, "validations": 7}
    straight(text, tmp_path / "straight", **options)
    run = tmp_path / "run"
    finish(Trainer.start(text, run, TrainingOptions(**SMALL, **options)), stop_at=101)
    saved = (run / LAST).read_bytes()
    finish(Trainer.resume(text, run), stop_at=222)
    (run / LAST).write_bytes(saved)  # as if the second process had been killed before its first save
    if not is_forgotten:
        monkeypatch.setattr(Metrics, "forget_after", lambda self, step: None)
    finish(Trainer.resume(text, run))
    assert (repeatable(run) == repeatable(tmp_path / "straight")) is is_forgotten
    started = [line for line in (run / METRICS).read_text().splitlines() if '"started"' in line]
    assert [json.loads(line)["resumed_step"] for line in started] == [0, 101, 101]


def test_a_log_repeats_the_steps_after_a_rollback(text: corpus.Corpus, tmp_path: Path) -> None:
    run = Trainer.start(text, tmp_path / "run", TrainingOptions(**SMALL, steps=150))
    step, is_broken = run.state.step, [True]

    def diverging(share: float) -> Step:
        if run.state.counters.step == 120 and is_broken.pop():
            is_broken.append(False)
            return Step(0.1, torch.tensor(math.nan), torch.tensor(1.0))
        return step(share)

    run.state.step = diverging  # type: ignore[method-assign]
    finish(run)
    steps = [point["step"] for point in curve(tmp_path / "run")]
    assert steps == [*range(1, 121), *range(101, 151)]


def test_a_memory_length_is_saved_and_cannot_change_on_resume(text: corpus.Corpus, tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 20, "memory_length": 30}
    expected = straight(text, tmp_path / "straight", **options)
    assert interrupted(text, tmp_path / "run", 7, **options) == expected
    assert straight(text, tmp_path / "other", steps=20) != expected
    with pytest.raises(ResumeError, match=r"memory_length 40 \(saved: 30\)"):
        Trainer.resume(text, tmp_path / "run", {"memory_length": 40})


def hints(run: Trainer) -> list[str]:
    return [event.message for event in finish(run) if isinstance(event, Warned) and "most documents" in event.message]


@pytest.mark.parametrize(("seq_len", "is_hinted"), [(9, True), (10, True), (11, False), (33, False)])
def test_a_window_shorter_than_most_documents_is_a_hint(tmp_path: Path, seq_len: int, is_hinted: bool) -> None:
    """Two thirds of the lines have ten characters; with the boundary, a document has eleven."""
    (tmp_path / "t").write_text("abc\n0123456789\n0123456789\n" * 30)
    documents = corpus.read([tmp_path / "t"], boundary="\n")
    run = Trainer.start(documents, tmp_path / "run", TrainingOptions(**{**SMALL, "steps": 1, "seq_len": seq_len}))
    found = hints(run)
    assert bool(found) is is_hinted
    for hint in found:
        assert f"(median length 10) are longer than a window of {seq_len}" in hint
        assert "a sequence length of 33 " in hint
    finish(Trainer.resume(documents, tmp_path / "run", {"steps": 2}))


def test_a_text_without_documents_and_one_document_give_no_hint(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("0123456789\n" * 30)
    options = TrainingOptions(**SMALL, steps=1)
    assert not hints(Trainer.start(corpus.read([tmp_path / "t"]), tmp_path / "a", options))
    one = corpus.read([tmp_path / "t"], documents=True)
    assert not hints(Trainer.start(one, tmp_path / "b", options))


def test_train_returns_the_best_model(text: corpus.Corpus, tmp_path: Path) -> None:
    seen: list[Event] = []
    model = trainer.train(text, tmp_path / "run", on_event=seen.append, **SMALL, steps=30)
    assert isinstance(seen[-1], Stopped)
    assert model.evaluate().bits_per_char == pytest.approx(seen[-1].best_valid_bits_per_char, abs=1e-5)


@pytest.mark.parametrize(("valid_chars", "scored"), [(100, 100), (0, 443), (10**6, 443)])
def test_a_validation_and_an_evaluation_score_the_first_characters_of_the_held_out_part(
    text: corpus.Corpus, tmp_path: Path, valid_chars: int, scored: int
) -> None:
    options = TrainingOptions(**SMALL, steps=5, valid_chars=valid_chars)
    events = finish(Trainer.start(text, tmp_path / "run", options))
    started, validated = events[0], next(event for event in reversed(events) if isinstance(event, Validated))
    assert isinstance(started, Started)
    assert (started.held_out_chars, started.valid_chars) == (443, scored)
    model = charlstm.load(tmp_path / "run")
    score = model.evaluate()
    assert score.chars == scored
    assert score == model.evaluate(TEXT[-443:][:scored])
    assert score.nats_per_char == pytest.approx(validated.valid_nats_per_char, rel=1e-6)


def test_the_learning_rate_warms_up_and_falls_to_zero(text: corpus.Corpus, tmp_path: Path) -> None:
    run = Trainer.start(text, tmp_path / "run", TrainingOptions(**{**SMALL, "steps": 5, "lr": 2.0, "warmup": 0.2}))
    rates = [run.state.optimizer.rate(share) for share in (0, 0.1, 0.2, 0.6, 1)]
    assert rates == pytest.approx([0.04, 1.02, 2, 1.5, 0])
    constant = Trainer.start(text, tmp_path / "other", TrainingOptions(**{**SMALL, "steps": 5, "lr": 2.0, "warmup": 1}))
    assert constant.state.optimizer.rate(1) == 2


def test_options_chosen_from_an_estimated_speed_are_chosen_again_when_the_speed_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The estimate is less than one epoch; then forty steps read the text more than 30 times."""
    (tmp_path / "short.txt").write_text("abc" * 8)
    short = corpus.read([tmp_path / "short.txt"])
    monkeypatch.setattr(hardware, "speed", lambda *_: 1.0)
    options = {**SMALL, "seq_len": 6, "dropout": None, "seconds": 1e6}

    def begin(name: str, **given: Any) -> Trainer:
        run = Trainer.start(short, tmp_path / name, TrainingOptions(**{**options, **given}))
        run.run.budget = dataclasses.replace(run.run.budget, seconds=None, steps=40)
        return run

    for given, expected in (({}, (0.5, 0.1)), ({"dropout": 0.2}, (0.2, 0.1)), ({"weight_decay": 0.0}, (0.5, 0.0))):
        run = begin(str(given), **given)
        before = run.run.options
        assert (before.dropout, before.weight_decay) == (given.get("dropout", 0.0), given.get("weight_decay", 0.02))
        (warning,) = [event.message for event in run.events() if isinstance(event, Warned)]
        assert "42.9 epochs will be read" in warning
        assert (run.run.options.dropout, run.run.options.weight_decay) == expected
        assert run.state.optimizer.weight_decay == expected[1]
        saved = checkpoint.load(tmp_path / str(given) / LAST, training=True)
        assert saved.training is not None
        assert saved.training["options"]["weight_decay"] == expected[1]
    both = begin("both", dropout=0.2, weight_decay=0.5)
    assert not [event for event in both.events() if isinstance(event, Warned)]


@pytest.mark.parametrize("ending", ["finished", "abandoned"])
def test_the_settings_of_the_process_are_restored_after_a_run(text: corpus.Corpus, tmp_path: Path, ending: str) -> None:
    """Also if the caller stops iterating. Settings of the C allocator cannot be read; `run_settings` resets them."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    run = Trainer.start(text, tmp_path / "run", TrainingOptions(**SMALL, steps=5, threads=threads + 1))
    assert torch.get_num_threads() == threads, "a constructor changes nothing"
    events = run.events()
    started = next(events)
    assert isinstance(started, Started)
    assert started.threads == torch.get_num_threads() == threads + 1  # negative control: the run does change it
    if ending == "abandoned":
        events.close()  # type: ignore[attr-defined]
    else:
        assert isinstance(list(events)[-1], Stopped)
        assert checkpoint.load(tmp_path / "run" / LAST).facts["threads"] == threads + 1
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (threads, precision)
    assert not run.run.directory.is_locked


def test_a_divergence_carries_its_step_loss_and_gradient_norm(text: corpus.Corpus, tmp_path: Path) -> None:
    run = Trainer.start(text, tmp_path / "run", TrainingOptions(**SMALL, steps=20, on_divergence="stop"))
    _Poisoned(run, "gradient", at=7)
    with pytest.raises(DivergenceError) as raised:
        list(run.events())
    error = raised.value
    assert error.step == 7
    assert error.loss is not None
    assert math.isfinite(error.loss)
    assert error.grad_norm is not None
    assert not math.isfinite(error.grad_norm)
    assert error.fields == ("lr", "clip")
