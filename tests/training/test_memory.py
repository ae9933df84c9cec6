"""A run that does not fit into the memory of the machine is refused before anything is allocated."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from charlstm.config import ModelConfig, TrainingConfig, TrainingOptions
from charlstm.errors import CharlstmError
from charlstm.text import corpus
from charlstm.training import memory
from charlstm.training.defaults import choose
from charlstm.training.trainer import Trainer

CPU, CUDA = "cpu", "cuda"
MODEL = ModelConfig(65, hidden=128, layers=1, embedding=64)


def options(**given: object) -> TrainingConfig:
    return choose(TrainingOptions(steps=1, **given), 1_000_000, 65)  # type: ignore[arg-type]


@pytest.fixture
def gigabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 2 * 10**9)


@pytest.mark.usefixtures("gigabytes")
def test_a_window_that_does_not_fit_names_the_batch_size_and_the_window_length() -> None:
    with pytest.raises(CharlstmError, match=r"2\.0 GB are available") as caught:
        memory.check(MODEL, options(batch_size=1000, seq_len=1000), CPU, 1000)
    assert caught.value.fields == ("batch_size", "seq_len")
    assert isinstance(caught.value.value, int)
    assert caught.value.value > 4 * 10**9
    memory.check(MODEL, options(batch_size=1000, seq_len=100), CPU, 1000)


@pytest.mark.usefixtures("gigabytes")
def test_a_model_that_does_not_fit_names_the_hidden_size() -> None:
    with pytest.raises(CharlstmError) as caught:
        memory.check(ModelConfig(65, hidden=8192), options(), CPU, 1000)
    assert caught.value.fields == ("hidden",)
    memory.check(ModelConfig(65, hidden=1024), options(), CPU, 1000)


@pytest.mark.usefixtures("gigabytes")
def test_a_gpu_keeps_the_window_in_its_own_memory() -> None:
    memory.check(MODEL, options(batch_size=1000, seq_len=1000), CUDA, 1000)
    with pytest.raises(CharlstmError):
        memory.check(ModelConfig(65, hidden=8192), options(), CUDA, 1000)


@pytest.mark.usefixtures("gigabytes")
def test_the_logits_of_a_validation_count() -> None:
    wide = ModelConfig(20_000, hidden=32, embedding=8)
    memory.check(wide, options(batch_size=1, seq_len=10), CPU, 100)
    memory.check(wide, options(batch_size=1, seq_len=10), CPU, 10**6)
    with pytest.raises(CharlstmError):
        memory.check(ModelConfig(150_000, hidden=32, embedding=8), options(batch_size=1, seq_len=10), CPU, 10**6)
    memory.check(ModelConfig(150_000, hidden=32, embedding=8), options(batch_size=1, seq_len=10), CPU, 100)


def test_a_run_that_does_not_fit_is_refused_at_its_start_and_when_it_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "text.txt"
    path.write_text("A text that is long enough for a window. " * 200)
    text, options = corpus.read([path]), TrainingOptions(steps=1, hidden=8, batch_size=4, seq_len=8)
    list(Trainer.start(text, tmp_path / "run", options).events())
    monkeypatch.setattr(memory, "available_bytes", lambda: 10**6)
    monkeypatch.setattr(torch.nn.Embedding, "__init__", None)  # nothing is allocated
    with pytest.raises(CharlstmError, match="available: reduce"):
        Trainer.start(text, tmp_path / "other", options)
    with pytest.raises(CharlstmError, match="available: reduce"):
        Trainer.resume(text, tmp_path / "run")


@pytest.mark.skipif(sys.platform != "linux", reason="the address space is limited on Linux only")
def test_a_batch_and_a_window_longer_than_the_text_are_an_error_of_one_line(tmp_path: Path) -> None:
    """Run a command that once ran out of memory, in a process that is limited to 16 GB."""
    (tmp_path / "text.txt").write_text("All the letters of a text, again. " * 45_000)
    command = ["train", "text.txt", "--hidden", "4096", "--batch-size", "100000", "--seq-len", "100000", "--steps", "1"]
    program = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34));"
        "from charlstm.training import memory; memory.available_bytes = lambda: 10 * 2**30;"
        f"sys.argv = ['charlstm', *{command!r}]; import runpy; runpy.run_module('charlstm', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    (line,) = (line for line in done.stderr.splitlines() if "memory" in line)
    assert "13 streams of 100,000 characters" in line
    assert re.search(r"GB are available: reduce \S*batch.size or \S*seq.len$", line)


def test_the_formula_gives_the_hand_worked_example_of_the_documentation() -> None:
    """2 LSTM layers of 512, B 64, T 128, V 65, dropout: 408.3 MB in docs/training.md, without the carried states."""
    step = memory.step_memory(ModelConfig(65, 512, 2, 512), 64, 128, dropout=0.3)
    carried = 4 * 3 * 2 * 64 * 2 * 512
    assert step.states == carried
    assert step.total - carried == pytest.approx(408.3e6, abs=0.05e6)
    gru = memory.step_memory(ModelConfig(65, 512, 2, 512, "gru"), 64, 128)
    assert gru.total - gru.states == pytest.approx(356.7e6, abs=0.05e6)


def test_the_limit_of_a_control_group_or_of_one_that_contains_it_counts(tmp_path: Path) -> None:
    physical = memory.available_bytes(tmp_path)
    assert physical is not None
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("4:cpu,memory:/job\n0::/outer/inner\n")
    inner = tmp_path / "sys/fs/cgroup/outer/inner"
    inner.mkdir(parents=True)
    (inner / "memory.max").write_text("max\n")
    assert memory.available_bytes(tmp_path) == physical
    (inner.parent / "memory.max").write_text("9000000\n")
    assert memory.available_bytes(tmp_path) == 9_000_000
    version_1 = tmp_path / "sys/fs/cgroup/memory"
    version_1.mkdir()
    (version_1 / "memory.limit_in_bytes").write_text("8000000\n")  # a container: its own group is the top one
    assert memory.available_bytes(tmp_path) == 8_000_000
