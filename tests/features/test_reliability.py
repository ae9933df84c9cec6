"""Rows of the table in docs/reliability.md that concern several modules.

Trainings that are killed, interrupted or run out of disk space; every command with every damaged file; unusual
environments; the GPU.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from charlstm import checkpoint
from charlstm.cli.training_display import JsonLines, Lines
from charlstm.config import ModelConfig, TrainingOptions
from charlstm.errors import DivergenceError
from charlstm.inference import evaluation
from charlstm.inference.engine import Engine
from charlstm.inference.filters import SamplingRule, distribution
from charlstm.runs import BEST, LAST
from charlstm.text import corpus
from charlstm.training import divergence
from charlstm.training.divergence import DivergenceGuard
from charlstm.training.events import CheckpointSaved, Event, Progress, Stopped, Validated, Warned
from charlstm.training.run_dir import METRICS, SETTINGS
from charlstm.training.state import Step
from charlstm.training.trainer import Trainer
from charlstm.training.validation import ValidationSchedule
from tests.helpers.checkpoint_files import (
    DAMAGED_ENTRIES,
    DAMAGED_HEADERS,
    digest,
    put_together,
    take_apart,
    time_limit,
    written,
)
from tests.helpers.command_line import OPTIONS
from tests.helpers.commands import Done, here, model_file
from tests.helpers.faults import Forks
from tests.helpers.models import equations, interrupt, losses, random_weights, real_ids

TEXT = "the cat sat on the mat, and the dog sat on the cat.\n" * 40
TINY = ("--hidden", "8", "--embedding", "4", "--batch-size", "4", "--seq-len", "8", "--threads", "1")
SMALL: dict[str, Any] = {"hidden": 8, "embedding": 4, "batch_size": 4, "seq_len": 8, "sample_chars": 0, "dropout": 0.2}

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    warm = Forks("charlstm.training", "charlstm.cli.main")
    yield warm
    warm.close()


@pytest.fixture
def text(memory: Path) -> Path:
    path = memory / "text.txt"
    path.write_text(TEXT)
    return path


# --- trainings that are killed


class Life(NamedTuple):
    """The events of one process of `charlstm train --json`, and its status (negative: the number of a signal)."""

    events: list[dict[str, Any]]
    status: int

    @property
    def acknowledged(self) -> int:
        """Return the step of the last resumable checkpoint that it reported as saved, or 0."""
        return max(
            (event["step"] for event in self.events if event["event"] == "saved" and LAST in event["path"]), default=0
        )


def send(pid: int, number: int) -> None:
    """Send a signal to a child that may just have ended; its id is not reused that soon."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def live(
    forks: Forks, words: tuple[str, ...], number: int | None, delay: float, from_save: bool, **options: Any
) -> Life:
    """Run a process that saves after every step, and send it a signal `delay` seconds after its start or first save."""
    pid = forks.start("charlstm", *words, "--json", **{"save_seconds": 0.0, **options})
    events: list[dict[str, Any]] = []
    said = forks.lines()
    if number is not None and not from_save:
        time.sleep(delay)
        send(pid, number)
        number = None
    for line in said:
        if "exit" in line:
            return Life(events, line["exit"])
        events.append(line)
        if number is not None and line["event"] == "saved":
            time.sleep(delay)
            send(pid, number)
            number = None
    raise AssertionError("the child did not end")


def is_whole(run: Path, acknowledged: int) -> None:
    """Check that both files load, and that the resumable one is of the last acknowledged step or a later one."""
    if acknowledged:
        assert checkpoint.load(run / LAST, training=True).step >= acknowledged
    for file in run.glob("*.safetensors"):
        assert checkpoint.verify(file) == []


def lead_to_the_end(
    forks: Forks, text: Path, run: Path, more: tuple[str, ...], count: int, kind: int | None, rng: random.Random
) -> int:
    """Train to the end with `count` interruptions at random instants; return how many processes a signal ended."""
    ended = 0
    begin = ("train", str(text), "-o", str(run), *TINY, *more)
    while ended < count:
        words = (*begin, "--resume") if (run / LAST).exists() else begin
        if not (run / LAST).exists():
            shutil.rmtree(run, ignore_errors=True)  # the best checkpoint may exist before the resumable one
        number = kind if kind is not None else rng.choice((signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
        from_save = rng.random() < 0.75
        before = checkpoint.load(run / LAST).step if (run / LAST).exists() else 0
        life = live(forks, words, number, rng.uniform(0, 0.03 if from_save else 0.2), from_save)
        stopped = [event for event in life.events if event["event"] == "stopped"]
        if kind is not None:
            assert life.status == -kind or stopped
        elif stopped and stopped[0]["reason"] == "interrupted":
            assert life.status == 128 + stopped[0]["signal"]
            assert life.acknowledged == stopped[0]["step"]
        else:
            assert stopped or life.status in (130, -number)  # it had not started
        is_whole(run, max(before, life.acknowledged))
        ended += life.status != 0
        if stopped and stopped[0]["reason"] != "interrupted":
            break  # it ended before the signal
    assert live(forks, (*begin, "--resume") if (run / LAST).exists() else begin, None, 0, False).status == 0
    return ended


@pytest.mark.fault("R1", "R36", "R33")
@pytest.mark.parametrize(("count", "a_run"), [(4, 4), pytest.param(300, 15, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_and_resumed_repeatedly_ends_with_the_same_bytes(
    forks: Forks, text: Path, count: int, a_run: int
) -> None:
    more, rng, killed = ("--steps", "150", "--dropout", "0.2"), random.Random(count), 0
    assert (
        live(forks, ("train", str(text), "-o", str(text.parent / "straight"), *TINY, *more), None, 0, False).status == 0
    )
    for number in itertools.count():
        run = text.parent / f"run-{number}"
        killed += lead_to_the_end(forks, text, run, more, a_run, signal.SIGKILL, rng)
        for name in (LAST, BEST):
            assert (run / name).read_bytes() == (text.parent / "straight" / name).read_bytes()
        assert sorted(os.listdir(run)) == [".lock", ".lock.pid", BEST, SETTINGS, LAST, METRICS]  # and no temporary file
        shutil.rmtree(run)
        if killed >= count:
            break
    print(f"{killed} kills")


@pytest.mark.fault("R34", "R43", "R44", "R46")
@pytest.mark.parametrize("count", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_run_that_is_interrupted_repeatedly_ends_with_the_same_bytes(forks: Forks, text: Path, count: int) -> None:
    more, run = ("--steps", "150", "--reset", "0.1"), text.parent / "run"
    assert live(forks, ("train", str(text), "-o", str(text.parent / "one"), *TINY, *more), None, 0, False).status == 0
    lead_to_the_end(forks, text, run, more, count, None, random.Random(7))
    assert (run / LAST).read_bytes() == (text.parent / "one" / LAST).read_bytes()


@pytest.mark.fault("R45")
@pytest.mark.parametrize("count", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_the_second_ctrl_c_stops_immediately_and_leaves_valid_files(forks: Forks, text: Path, count: int) -> None:
    run, rng = text.parent / "run", random.Random(3)
    for number in range(count):
        shutil.rmtree(run, ignore_errors=True)
        words = ("train", str(text), "-o", str(run), *TINY, "--steps", "100000", "--json")
        pid, said, events = forks.start("charlstm", *words, save_seconds=0.0), forks.lines(), []
        for line in said:
            events.append(line)
            if line.get("event") == "saved":
                break
        time.sleep(rng.uniform(0, 0.02))
        os.kill(pid, signal.SIGINT)
        time.sleep(0.005 * (number % 2))
        send(pid, signal.SIGINT)
        *more, end = said
        assert end["exit"] == 130
        is_whole(run, Life([*events, *more], 130).acknowledged)


@pytest.mark.fault("R7")
def test_a_run_on_a_full_disk_continues_and_fails_at_its_end_with_the_old_file_valid(forks: Forks, text: Path) -> None:
    run = text.parent / "run"
    words = ("train", str(text), "-o", str(run), *TINY, "--reset", "0")
    assert live(forks, (*words, "--steps", "20"), None, 0, False).status == 0
    old = (run / LAST).read_bytes()
    life = live(forks, (*words, "--steps", "40", "--resume"), None, 0, False, file_limit=len(old) // 2)
    assert life.status == 1
    warned = [event for event in life.events if event["event"] == "warned" and "File too large" in event["message"]]
    warned = [event for event in warned if LAST in event["message"]]  # the log reaches the limit, too
    assert [event["step"] for event in warned][:19] == [*range(21, 40)]  # each step tries again
    assert (run / LAST).read_bytes() == old
    assert sorted(os.listdir(run)) == [".lock", ".lock.pid", BEST, SETTINGS, LAST, METRICS]
    assert live(forks, (*words, "--steps", "40", "--resume"), None, 0, False).status == 0
    assert live(forks, (*words[:3], str(text.parent / "one"), *words[4:], "--steps", "40"), None, 0, False).status == 0
    assert checkpoint.load(run / LAST).step == 40


@pytest.mark.fault("R12")
def test_a_second_run_in_the_same_directory_is_refused_and_the_first_continues(forks: Forks, text: Path) -> None:
    run = text.parent / "run"
    words = ["train", str(text), "-o", str(run), *TINY]
    first = Trainer.start(corpus.read([text]), run, TrainingOptions(**SMALL, steps=4))
    assert live(forks, (*words, "--steps", "3"), None, 0, False) == Life([], 1)
    assert isinstance(list(first.events())[-1], Stopped)
    assert live(forks, (*words, "--steps", "6", "--resume"), None, 0, False).status == 0


# --- trainings that go wrong, or whose surroundings do


def run_of(text: Path, name: str, **options: Any) -> Trainer:
    return Trainer.start(corpus.read([text]), text.parent / name, TrainingOptions(**{**SMALL, **options}))


@pytest.mark.fault("R70")
def test_truncating_or_removing_the_text_after_the_start_changes_nothing(text: Path) -> None:
    list(run_of(text, "straight", steps=12).events())
    cut = run_of(text, "cut", steps=12)
    os.truncate(text, 0)
    text.unlink()
    list(cut.events())
    assert (text.parent / "cut" / LAST).read_bytes() == (text.parent / "straight" / LAST).read_bytes()


@pytest.mark.fault("R56")
def test_a_loss_of_nan_is_shown_as_nan_everywhere(capfd: pytest.CaptureFixture[str], text: Path) -> None:
    nan = math.nan
    events: list[Event] = [
        Progress(3, 0.5, nan, 1000.0, 96, 1.0, 1.0, 0.01),
        Validated(3, 1.0, nan, nan, nan, False, ""),
    ]
    lines = Lines(["text"])
    lines._last_line_at = -1e9  # as if the last line were long ago
    for event in events:
        lines(event)
    said = capfd.readouterr().err
    assert said.count("train nan") == 2
    assert "validation nan" in said
    for event in events:
        JsonLines()(event)
    for line in capfd.readouterr().out.splitlines():
        assert math.isnan(json.loads(line)["train_bits_per_char"])


@pytest.mark.fault("R58")
@pytest.mark.parametrize("cell", ["lstm", "peephole", "coupled", "gru", "rnn"])
@pytest.mark.parametrize("size", [1e4, 1e30])
def test_extreme_weights_continue_training_or_end_with_a_clear_error(text: Path, cell: str, size: float) -> None:
    run = run_of(text, "run", cell=cell, layers=2, steps=5, on_divergence="stop")
    with torch.no_grad():
        for parameter in run.state.network.parameters():
            parameter.copy_(torch.where(torch.arange(parameter.numel()).view_as(parameter) % 3 > 0, size, -size))
    with contextlib.suppress(DivergenceError):
        list(run.events())
    for file in (text.parent / "run").glob("*.safetensors"):
        assert all(np.isfinite(array).all() for array in checkpoint.load(file).weights.values())


@pytest.mark.fault("R59")
def test_best_is_kept_through_a_rollback(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = iter([3.0, 2.0, 2.5, 2.2, 1.9])
    monkeypatch.setattr(divergence, "GOOD_STEPS", 4)
    monkeypatch.setattr(
        evaluation, "evaluate", lambda *_: evaluation.Score(9, 8, value := next(values), value, 0.0, "canned")
    )
    monkeypatch.setattr(ValidationSchedule, "due", lambda _, step, _seconds: step in (3, 6, 9))
    run = run_of(text, "run", steps=10)
    step = run.state.step

    def poisoned(share: float) -> Step:
        done = step(share)
        if run.state.counters.step == 7 and not run.state.counters.rollbacks:  # back to 4
            return done._replace(loss=torch.tensor(math.nan))
        return done

    run.state.step = poisoned  # type: ignore[method-assign]
    events = list(run.events())
    best = [(event.step, event.best) for event in events if isinstance(event, Validated)]
    assert best == [(3, True), (6, True), (6, False), (9, False), (10, True)]
    assert sum(isinstance(event, Warned) for event in events) == 1
    saves = [event for event in events if isinstance(event, CheckpointSaved)]
    assert [event.step for event in saves if event.path.name == BEST] == [3, 6, 10]


def test_a_state_with_a_rising_loss_is_not_used_for_a_rollback(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(divergence, "GOOD_STEPS", 10)
    run = run_of(text, "run", steps=60)
    observe, spike = run.state.counters.observe, {48: 6.0, 49: 6.0, 50: 6.0, 51: 60.0}

    def jolted(nats: float) -> None:
        observe(nats if run.state.counters.rollbacks else spike.get(run.state.counters.step, nats))

    monkeypatch.setattr(run.state.counters, "observe", jolted)
    events = list(run.events())
    (warning,) = [event.message for event in events if isinstance(event, Warned)]
    assert "step 51 diverged" in warning
    assert "returned to step 40 " in warning  # 50 was already raised


def test_a_truncated_line_of_the_log_does_not_damage_the_next_line(text: Path) -> None:
    (text.parent / "run").mkdir()
    log = text.parent / "run" / METRICS
    log.write_text('{"event": "started", "ru')
    list(run_of(text, "run", steps=3).events())
    first, *rest = log.read_text().splitlines()
    assert first == '{"event": "started", "ru'
    assert [json.loads(line)["event"] for line in rest] == ["started", *["curve"] * 3, "validated", "stopped"]


# --- every command on every damaged file

# The ways in which each command takes a checkpoint, and a text. A new command must be added here or to NEITHER.
TAKES_CHECKPOINT = [
    "sample -c {}",
    "next a -c {}",
    "eval -c {}",
    "eval {text} -c {}",
    "info {}",
    "info --json {}",
    "info --verify {}",
    "verify {}",
    "train {text} --resume -o {run}",
    "explain -c {} -o {run}/explain.html",
    "explain {text} -c {} --json",
    "export c -c {} -o {run}/model.c",
    "export onnx -c {} -o {run}/model.onnx",
    "export html -c {} -o {run}/play.html",
]
TAKES_TEXT = [
    "train {}",
    "train {text} {}",
    "eval -c {model} {}",
    "explain -c {model} {} --json",
    "sample -c {model} --prime-file {}",
]
NEITHER = ["", "corpus"]


def words_of(template: str, file: Path, **others: Path) -> list[str]:
    """Return the arguments of a command that takes `file`, or the run directory of `file`."""
    return [word.format(file, run=file.parent, **others) for word in template.split(" ")]


@pytest.mark.fault("R90", "R91")
def test_every_command_is_tested_with_bad_files() -> None:
    tried = {template.split(" ")[0] for template in (*TAKES_CHECKPOINT, *TAKES_TEXT, *NEITHER)}
    assert tried == set(OPTIONS)


def damaged(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Every kind of damage in the tests of the loader, each in a file whose digest is valid where possible."""
    data = written(folder)
    length = int.from_bytes(data[:8], "little")
    for kind, change in DAMAGED_HEADERS.items():
        yield kind, put_together(change(data[8 : 8 + length]), data[8 + length :])
    for kind, damage in DAMAGED_ENTRIES.items():
        header, body = take_apart(data)
        damage(header)
        with contextlib.suppress(KeyError, TypeError, AttributeError, ValueError):
            if not kind.startswith("digest"):
                header["__metadata__"]["sha256"] = digest(header, body)
        yield kind, put_together(header, body)
    yield "empty", b""
    yield "half", data[: len(data) // 2]
    yield "more", data + b"\0"
    yield "pickle", b"\x80\x04\x95."
    yield "zip", b"PK\x03\x04" + data


@pytest.mark.fault("R17", "R19", "R20", "R22", "R24", "R90")
@pytest.mark.parametrize("command", TAKES_CHECKPOINT)
def test_every_command_answers_a_damaged_checkpoint_with_one_line_and_status_1(
    command: str, memory: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = memory / "run" / LAST
    file.parent.mkdir()
    (memory / "text").write_text("abc\n")
    kinds = 0
    for kind, data in damaged(memory):
        if len(data) > 1 << 20:  # the tests of the loader cover these
            continue
        file.write_bytes(data)
        is_refused(here(capfd, *words_of(command, file, text=memory / "text")), kind)
        assert file.read_bytes() == data, kind
        kinds += 1
    assert kinds > 70


def is_refused(done: Done, kind: str) -> None:
    """Check for one line on stderr that is safe to print, nothing on stdout, and status 1."""
    assert (done.status, done.out) == (1, b""), kind
    assert done.err.startswith("charlstm: "), kind
    assert done.err.count("\n") == 1, kind
    assert done.err[:-1].isprintable(), kind


def no_files(folder: Path) -> dict[str, Path]:
    """Paths that are not regular files: a directory, a pipe without a writer, devices, a missing file."""
    found = {"missing": folder / "missing", "no text": Path("/dev/zero"), "no end": Path("/dev/urandom")}
    for kind in ("empty", "sparse", "folder", "loop", "pipe"):
        found[kind] = folder / kind
    found["empty"].touch()
    found["sparse"].touch()
    os.truncate(found["sparse"], 10 << 30)
    found["folder"].mkdir()
    found["loop"].symlink_to("loop")
    os.mkfifo(found["pipe"])
    return {kind: path for kind, path in found.items() if kind == "missing" or os.path.lexists(path)}


@pytest.mark.fault("R28", "R90")
@pytest.mark.parametrize("command", TAKES_CHECKPOINT)
def test_every_command_immediately_answers_an_invalid_checkpoint_path_with_one_line(
    command: str, memory: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = memory / "run"
    run.mkdir()
    (memory / "text").write_text("abc\n")
    for kind, path in no_files(memory).items():
        (run / LAST).unlink(missing_ok=True)
        (run / LAST).symlink_to(path)
        with time_limit(2):
            done = here(capfd, *words_of(command, run / LAST, text=memory / "text"))
        is_refused(done, kind)


@pytest.mark.fault("R60", "R69", "R90")
@pytest.mark.parametrize("command", TAKES_TEXT)
def test_every_command_immediately_answers_an_invalid_text_path_with_one_line(
    command: str, memory: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_file(memory / "model")
    (memory / "text").write_text("abc" * 20)
    (memory / "latin").write_bytes(b"caf\xe9")
    monkeypatch.chdir(memory)
    paths = {**no_files(memory), "latin": memory / "latin"}
    del paths["pipe"]  # a text may come from a pipe
    if "{text}" in command:
        del paths["empty"]  # an empty text adds nothing to the other one
    for kind, path in paths.items():
        with time_limit(2):
            done = here(capfd, *words_of(command, path, text=memory / "text", model=model))
        is_refused(done, kind)
    assert not (memory / "checkpoints").exists()  # no run was started


@pytest.mark.fault("R27")
def test_facts_of_an_untrusted_file_are_escaped_on_a_terminal(memory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    evil = "\x1b]0;owned\x07\x9b2J\u202e"
    corpus_facts = {"names": [evil], "chars": 9, "sha256": evil, "valid_share": evil, "validation": {"names": [evil]}}
    facts = {
        "corpus": corpus_facts,
        "base": {"checkpoint": evil},
        "versions": {evil: evil},
        "best_valid_nats_per_char": 1.0,
    }
    file = model_file(memory / "m", "\n\x1b\x9b\u202eab", facts=facts)
    (memory / "text").write_text("ab")
    for words in (["info", file], ["verify", file], ["eval", "-c", file], ["eval", "-c", file, memory / "text"]):
        done = here(capfd, *words)
        assert not set(done.text + done.err) & set("\x1b\x07\x9b\u202e"), words
        assert "Traceback" not in done.err
    known = here(capfd, "info", "--json", file).out
    assert b"\x1b" not in known  # JSON escapes control characters
    assert json.loads(known)["facts"]["versions"] == {evil: evil}


# --- unusual environments


@pytest.mark.fault("R92")
def test_all_commands_work_without_home_terminal_or_current_directory(
    memory: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (memory / "text").write_text(TEXT)
    assert (
        here(capfd, "train", memory / "text", "-o", memory / "before", *TINY, "--steps", "1").status == 0
    )  # loads torch
    gone = memory / "gone"
    gone.mkdir()
    for name in ("HOME", "LANG", "USER", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.chdir(gone)
    gone.rmdir()
    run = memory / "run"
    for words in (
        ["train", memory / "text", "-o", run, *TINY, "--steps", "3"],
        ["train", memory / "text", "-o", run, *TINY, "--steps", "4", "--resume"],
        ["sample", "-c", run, "-n", "9"],
        ["eval", "-c", run],
        ["eval", "-c", run, memory / "text"],
        ["info", run],
        ["verify", run],
        ["corpus"],
        ["--help"],
        ["train", "--help"],
    ):
        done = here(capfd, *words)
        assert done.status == 0, (words, done.err)
    for words in (["train", memory / "text", *TINY, "--steps", "3"], ["sample"], ["verify", "run"], ["train", "."]):
        done = here(capfd, *words)
        assert (done.status, done.err.count("\n")) == (1, 1), words
        assert done.err.startswith("charlstm: ")


# --- sampling and scoring


@pytest.mark.fault("R74")
def test_ties_are_sampled_evenly_except_at_temperature_0() -> None:
    ties = np.array([1.0, 2.0, 2.0, 2.0, -np.inf])
    assert distribution(ties, SamplingRule(0.0)).tolist() == [0, 1, 0, 0, 0]  # always the first
    even = distribution(ties, SamplingRule(1e-3))
    assert even[1] == even[2] == even[3] == pytest.approx(1 / 3)


@pytest.mark.fault("R80")
def test_a_score_does_not_depend_on_chunks_and_only_by_rounding_on_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, vocabulary = real_ids(10_000)
    config = ModelConfig(len(vocabulary), hidden=16, embedding=8)
    weights = random_weights(config)
    weights["projection.weight"] *= 5
    engine = Engine(config, weights, precision="fp32")
    logits, _ = equations(config, weights, ids[:-1, None], np.zeros(config.state_shape(1)))
    expected = losses(logits, ids[1:, None]).mean() / math.log(2)
    found = []
    for streams, chunk in itertools.product((1, 3, 64), (16, 1024)):
        monkeypatch.setattr(evaluation, "CHUNK", chunk)
        found.append(evaluation.evaluate(engine, ids, streams=streams).bits_per_char)
    found.append(evaluation.evaluate(engine, ids, exact=True).bits_per_char)
    assert np.ptp(found) < 1e-6
    assert np.abs(np.array(found) - expected).max() < 1e-6


# --- GPUs


@pytest.mark.gpu
@needs_cuda
@pytest.mark.fault("R41")
def test_on_a_gpu_two_runs_and_a_resumed_run_end_with_the_same_bytes(
    text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    try:
        for name in ("one", "two"):
            list(run_of(text, name, steps=40, device="cuda").events())
        run = run_of(text, "three", steps=40, device="cuda")
        interrupt(run, 18)
        list(run.events())
        list(Trainer.resume(corpus.read([text]), text.parent / "three").events())
    finally:
        torch.use_deterministic_algorithms(False)
    one, two, three = ((text.parent / name / LAST).read_bytes() for name in ("one", "two", "three"))
    assert one == two == three


@pytest.mark.gpu
@needs_cuda
@pytest.mark.fault("R57")
def test_on_a_gpu_the_finite_check_does_not_block_a_step(text: Path) -> None:
    run = run_of(text, "run", steps=100, device="cuda")
    for _ in range(3):  # the first steps allocate
        run.state.step(0.5)
    torch.cuda.synchronize()
    guard = DivergenceGuard("stop")
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            step = run.state.step(0.5)
            guard.add(step.loss, step.grad_norm)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert guard.check(run.state.counters) is None
