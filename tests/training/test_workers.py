"""Several processes that train one run: the same result as one process, exact resume, and errors that name a worker."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from charlstm import checkpoint
from charlstm.config import ModelConfig, TrainingOptions
from charlstm.errors import UsageError
from charlstm.runs import BEST, LAST
from charlstm.training import recurrence, scan_native
from charlstm.training.run_dir import METRICS
from charlstm.training.streams import Part, Streams
from charlstm.training.workers import Workers
from tests.helpers import launches
from tests.helpers.commands import ROOT, spawn
from tests.helpers.models import CELLS, real_text

OPTIONS = ["--hidden", 16, "--batch-size", 6, "--seq-len", 12, "--seed", 5, "--dropout", 0.2, "--threads", 1, "-q"]
OPTIONS += ["--sample-chars", 0]
FREQUENT_SAVES = [str(ROOT / "tests" / "helpers" / "frequent_saves.py")]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Return a text file in a directory of its own."""
    file = tmp_path / "text.txt"
    file.write_text(real_text(20_000), encoding="utf-8")
    return file


def losses(run: Path) -> list[float]:
    """Return the training losses that a run logged, by their order."""
    events = [json.loads(line) for line in (run / METRICS).read_text(encoding="utf-8").splitlines()]
    return [event["train_bits_per_char"] for event in events if event["event"] == "curve"]


def alone(text: Path, run: str, *options: object) -> Path:
    """Train in this one process's child, without other workers, and return the run directory."""
    done = spawn(["train", text, "-o", run, *OPTIONS, *options], cwd=text.parent)
    assert done.status == 0, done.err
    return text.parent / run


def together(count: int, text: Path, run: str, *options: object) -> Path:
    """Train in `count` workers and return the run directory."""
    launches.train(count, [text, "-o", run, *OPTIONS, *options], text.parent)
    return text.parent / run


def difference(one: Path, other: Path) -> float:
    """Return the largest relative difference of the losses of two runs."""
    a, b = np.array(losses(one)), np.array(losses(other))
    assert a.shape == b.shape
    assert len(a) > 10
    return float((abs(a - b) / a).max())


# The parts of a batch


def test_the_parts_of_the_workers_are_the_whole_batch() -> None:
    class Of(Workers):
        def __init__(self, rank: int, size: int) -> None:
            self.rank, self.size = rank, size

    for size in (1, 2, 3, 5):
        parts = [Of(rank, size).part(7) for rank in range(size)]
        assert [k for part in parts for k in range(part.first, part.first + part.count)] == [*range(7)]
        assert {part.total for part in parts} == {7}
        assert max(part.count for part in parts) - min(part.count for part in parts) <= 1
    with pytest.raises(UsageError, match="fewer streams than there are workers, 8"):
        Of(0, 8).part(7)


def test_streams_of_parts_are_the_columns_of_the_whole_batch() -> None:
    ids = np.arange(1000)
    whole = Streams(ids, 5, 7)
    parts = [Streams(ids, 5, 7, Part(0, 2, 5)), Streams(ids, 5, 7, Part(2, 3, 5))]
    for _ in range(2 * whole.windows_per_epoch):
        columns = [part.next() for part in parts]
        for k, expected in enumerate(whole.next()):
            np.testing.assert_array_equal(np.concatenate([column[k] for column in columns], -1), expected)


@pytest.mark.parametrize("path", ["plain", *(["native"] if scan_native.NATIVE else [])])
def test_dropout_of_a_part_drops_what_it_drops_of_the_whole_batch(path: str) -> None:
    x = torch.ones(9, 5, 70)

    def dropped(x: torch.Tensor, part: Part | None) -> torch.Tensor:
        return recurrence._drop(path, x, 0.3, torch.Generator().manual_seed(1), part)

    whole = dropped(x, None)
    assert 0.2 < float((whole == 0).float().mean()) < 0.4
    for first, count in ((0, 2), (2, 3), (4, 1)):
        part = dropped(x[:, first : first + count], Part(first, count, 5))
        assert torch.equal(part, whole[:, first : first + count])
    assert not torch.equal(dropped(x[:, 2:], None), whole[:, 2:])  # negative control: the part matters


# The same result as one process


@pytest.mark.fault("R93")
def test_two_workers_train_like_one_process(text: Path) -> None:
    steps = ("--steps", 60)
    one = alone(text, "one", *steps)
    two = together(2, text, "two", *steps)
    assert difference(one, two) < 1e-5
    weights, others = (checkpoint.load(run / BEST).weights for run in (one, two))
    for name, array in weights.items():
        np.testing.assert_allclose(others[name], array, atol=1e-4)
    assert "workers" not in checkpoint.load(one / LAST).facts
    assert checkpoint.load(two / LAST).facts["workers"] == 2
    assert difference(one, alone(text, "other-seed", *steps, "--seed", 6)) > 1e-3  # negative control


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("count", [2, 4])
def test_200_steps_of_every_cell_are_those_of_one_process(text: Path, cell: str, count: int) -> None:
    given = ("--steps", 200, "--cell", cell, "--layers", 2)
    assert difference(alone(text, "one", *given), together(count, text, "many", *given)) < 1e-5


@pytest.mark.slow
def test_documents_bytes_and_fine_tuning_are_those_of_one_process(text: Path) -> None:
    base = alone(text, "base", "--steps", 30)
    for name, given in {
        "documents": ("--boundary", "\n"),
        "bytes": ("--symbols", "bytes"),
        "tuned": ("--from", base),
    }.items():
        options = [option for option in OPTIONS if name != "tuned" or option not in ("--hidden", 16)]
        launches.train(2, [text, "-o", f"{name}-2", *options, "--steps", 60, *given], text.parent)
        done = spawn(["train", text, "-o", f"{name}-1", *options, "--steps", 60, *given], cwd=text.parent)
        assert done.status == 0, done.err
        assert difference(text.parent / f"{name}-1", text.parent / f"{name}-2") < 1e-5


# Interruption and resuming


def interrupted(text: Path, run: str, rank: int, number: signal.Signals) -> Path:
    """Train in two workers, send a signal to one of them when the run has made steps, and return the directory."""
    arguments = ["train", text, "-o", run, *OPTIONS, "--steps", 240]
    workers = launches.start(2, arguments, text.parent)
    log = text.parent / run / METRICS
    wait_for(lambda: log.exists() and len(log.read_bytes().splitlines()) > 20)
    workers[rank].send_signal(number)
    (status, err), (other, _) = launches.finish(workers)
    assert (status, other) == (128 + (number if rank == 0 else signal.SIGTERM), 0), err
    assert 0 < checkpoint.load(text.parent / run / LAST).step < 240
    return text.parent / run


def wait_for(condition: Callable[[], bool], seconds: float = 90) -> None:
    """Wait until a condition holds."""
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, "the condition did not hold in time"
        time.sleep(0.01)


@pytest.mark.fault("R93")
def test_two_workers_that_were_interrupted_and_resumed_end_in_the_same_bytes(text: Path) -> None:
    straight = together(2, text, "straight", "--steps", 240)
    for rank, number in ((0, signal.SIGINT), (1, signal.SIGTERM)):
        run = interrupted(text, f"stopped-{rank}", rank, number)
        before = checkpoint.load(run / LAST, training=True)
        launches.train(2, [text, "-o", run, "--resume", "--threads", 1, "-q"], text.parent)
        for name in (LAST, BEST):
            assert (run / name).read_bytes() == (straight / name).read_bytes()
    # Negative control: a carried state of the wrong worker is noticed.
    before.tensors["state/carried"][:] = before.tensors["state/carried"][:, :, ::-1].copy()
    checkpoint.save(run / LAST, before)
    launches.train(2, [text, "-o", run, "--resume", "--threads", 1, "-q"], text.parent)
    assert (run / LAST).read_bytes() != (straight / LAST).read_bytes()


@pytest.mark.parametrize("count", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_run_of_two_workers_is_resumed_by_another_number_of_workers(text: Path, count: int) -> None:
    straight = alone(text, "straight", "--steps", 240)
    run = interrupted(text, "stopped", 0, signal.SIGTERM)
    step = checkpoint.load(run / LAST).step
    if count == 1:
        done = spawn(["train", text, "-o", run, "--resume", "--threads", 1, "-q"], cwd=text.parent)
        assert done.status == 0
        assert "workers was 2 when this run was saved and is 1 now" in done.err
    else:
        launches.train(count, [text, "-o", run, "--resume", "--threads", 1, "-q"], text.parent)
    assert checkpoint.load(run / LAST).step == 240 > step
    assert difference(straight, run) < 1e-3  # rounding differences grow over the steps


# Errors


def failures(done: list[tuple[int, str]]) -> list[str]:
    """Return the lines that the workers printed; every worker must have failed."""
    assert all(status != 0 for status, _ in done), done
    return [line for _, err in done for line in err.splitlines() if line.startswith("charlstm: ")]


def test_fewer_streams_than_workers_is_one_line_of_one_worker(text: Path) -> None:
    done = launches.finish(launches.start(3, ["train", text, "-o", "run", *OPTIONS, "--batch-size", 2], text.parent))
    (line,) = failures(done)
    assert re.fullmatch(
        r"charlstm: worker \d of 3 on \S+: --batch-size 2 gives fewer streams than there are workers, 3: .*", line
    )


def test_different_texts_on_two_hosts_are_an_error_that_names_the_worker(text: Path) -> None:
    program = [
        "-c",
        "import os, sys; from charlstm.cli.main import run; "
        "sys.argv[2] = sys.argv[2 + int(os.environ['RANK'])]; del sys.argv[3]; sys.exit(run(sys.argv[1:]))",
    ]
    other = text.with_name("other.txt")
    other.write_text(real_text(20_000)[::-1], encoding="utf-8")
    given = ["train", text, other, "-o", "run", *OPTIONS, "--steps", 5]
    (line,) = failures(launches.finish(launches.start(2, given, text.parent, program=program)))
    assert "worker 1 on " in line
    assert "has another training text" in line
    assert not (text.parent / "run" / LAST).exists()
    other.write_bytes(text.read_bytes())  # the same text under another name is accepted
    done = launches.finish(launches.start(2, given, text.parent, program=program))
    assert [status for status, _ in done] == [0, 0], done


def test_a_directory_that_cannot_be_written_is_an_error_of_worker_0(text: Path) -> None:
    (text.parent / "file").write_text("")
    given = ["train", text, "-o", "file/run", *OPTIONS, "--steps", 5]
    lines = failures(launches.finish(launches.start(2, given, text.parent)))
    assert lines[0].startswith("charlstm: worker 0 of 2 on ")
    assert "cannot train into file/run" in lines[0]


def test_stdin_is_refused(text: Path) -> None:
    lines = failures(launches.finish(launches.start(2, ["train", "-", *OPTIONS], text.parent)))
    assert lines == ["charlstm: several workers cannot read stdin: give a file that all of them can read"] * 2


def test_a_port_in_use_is_one_line(text: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        variables: dict[str, Any] = {
            "RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        done = spawn(["train", text, *OPTIONS, "--steps", 5], cwd=text.parent, **variables)
    assert done.status == 1
    (line,) = [line for line in done.err.splitlines() if line.startswith("charlstm: ")]
    assert line.startswith("charlstm: cannot join the other workers: ")
    assert str(port) in line


@pytest.mark.skipif(os.name != "posix", reason="SIGSTOP exists on POSIX only")
def test_a_worker_that_hangs_is_named_after_the_time_out(text: Path) -> None:
    given = ["train", text, "-o", "run", *OPTIONS, "--steps", 10**6, "--worker-timeout", 4]
    workers = launches.start(3, given, text.parent)
    log = text.parent / "run" / METRICS
    wait_for(lambda: log.exists() and len(log.read_bytes().splitlines()) > 1)
    workers[1].send_signal(signal.SIGSTOP)
    try:
        errors = [workers[rank].communicate(timeout=60)[1].decode() for rank in (0, 2)]
    finally:
        launches.stop(workers)
    lines = [line for err in errors for line in err.splitlines() if line.startswith("charlstm: ")]
    assert len(lines) == 1
    assert "worker 1 did not answer within 4 s" in lines[0]


# torchrun


def kill_one(launch: subprocess.Popen[bytes], rank: int | None = None) -> None:
    """Kill a worker of a launch by its rank; None takes any."""
    children = Path(f"/proc/{launch.pid}/task/{launch.pid}/children").read_text().split()
    found = {}
    for child in children:
        variables = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        ranks = [int(v[5:]) for v in variables if v.startswith(b"RANK=")]
        if ranks:
            found[ranks[0]] = int(child)
    if found:
        os.kill(found[random.choice([*found]) if rank is None else rank], signal.SIGKILL)


def killed(text: Path, run: str, kills: int, *options: object, rank: int | None = None, named: bool = True) -> Path:
    """Train by torchrun with two workers, of which one is killed several times, and return the run directory."""
    where = ["-o", run] if named else []
    given = ["train", text, *where, *OPTIONS, "--steps", 240, *options]
    launch = launches.torchrun(
        2, given, text.parent, options=[f"--max-restarts={kills}", "--monitor-interval=0.1"], program=FREQUENT_SAVES
    )
    last = text.parent / run / LAST
    try:
        for _ in range(kills):
            saved = last.stat().st_mtime_ns if last.exists() else 0
            wait_for(lambda: launch.poll() is not None or (last.exists() and last.stat().st_mtime_ns > saved))  # noqa: B023
            time.sleep(random.uniform(0, 0.3))
            if launch.poll() is None:
                kill_one(launch, rank)
        _, err = launch.communicate(timeout=120)
    finally:
        if launch.poll() is None:
            os.killpg(launch.pid, signal.SIGKILL)  # of its workers, too
        launches.stop([launch])
    assert launch.returncode == 0, err.decode()
    return text.parent / run


@pytest.mark.fault("R94")
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="workers are found through /proc")
def test_torchrun_restarts_the_workers_and_the_run_ends_in_the_same_bytes(text: Path) -> None:
    straight = together(2, text, "straight", "--steps", 240)
    shutil.rmtree(text.parent / "checkpoints", ignore_errors=True)
    run = killed(text, "checkpoints/text", 2, named=False)
    for name in (LAST, BEST):
        assert (run / name).read_bytes() == (straight / name).read_bytes()
    assert [path.name for path in (text.parent / "checkpoints").iterdir()] == ["text"], "the restart made another run"


@pytest.mark.slow
@pytest.mark.parametrize("kill", range(20))
def test_100_kills_of_workers_change_no_byte(text: Path, kill: int) -> None:
    straight = together(2, text, "straight", "--steps", 240)
    run = killed(text, "killed", 5, rank=0 if kill < 4 else None)  # worker 0 writes
    for name in (LAST, BEST):
        assert (run / name).read_bytes() == (straight / name).read_bytes()


def test_options_and_models_are_not_changed_by_workers() -> None:
    """The classes that a checkpoint stores know nothing of workers, so that any number of them can resume it."""
    fields: Any = {*ModelConfig.__dataclass_fields__, *TrainingOptions.__dataclass_fields__}
    assert not {name for name in fields if "worker" in name}
