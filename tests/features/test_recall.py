"""The documented way to measure memory: it agrees with a naive count, and it tells a model that remembers from others.

A small GRU learns a lag of 12 in a second, if a window holds a whole line. The two controls are the same training with
windows that cut every line, and the model before training.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

import charlstm
from charlstm import Model
from charlstm.text import datasets
from tests.helpers.commands import ROOT, spawn

LAG = 12
OPTIONS: dict[str, Any] = {
    "cell": "gru",
    "hidden": 16,
    "dropout": 0.0,
    "batch_size": 10,
    "lr": 0.03,
    "reset": 0.0,
    "memory_length": LAG,
    "threads": 1,
    "validations": 1,
    "sample_chars": 0,
    "seed": 1,
}
PAGE = (ROOT / "docs" / "recall.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Model]:
    """A model that was trained in windows of a line, one in windows of a third of a line, and one almost untrained."""
    pytest.importorskip("torch")
    folder = tmp_path_factory.mktemp("recall")
    text = charlstm.read([f"recall:{LAG}"], boundary="\n")
    return {
        "line": charlstm.train(text, folder / "line", **OPTIONS, seq_len=LAG + 3, steps=250),
        "cut": charlstm.train(text, folder / "cut", **OPTIONS, seq_len=5, steps=250),
        "untrained": charlstm.train(text, folder / "untrained", **OPTIONS, seq_len=LAG + 3, steps=1),
    }


def naive(model: Model) -> float:
    """Return how often the most probable character after the question mark is the key, over the last 500 lines."""
    lines = datasets.generate(f"recall:{LAG}").splitlines()[-500:]
    answers = [model.next(line[: LAG + 1], top=1)[0][0] for line in lines]
    return sum(answer == line[0] for answer, line in zip(answers, lines, strict=True)) / len(lines)


def test_a_model_recalls_the_symbol_only_if_a_window_holds_a_whole_line(models: dict[str, Model]) -> None:
    right = {name: naive(model) for name, model in models.items()}
    assert right["line"] > 0.95
    assert right["cut"] < 0.6
    assert right["untrained"] < 0.25  # chance is 1 in 8


@pytest.mark.skipif(os.name == "nt", reason="the documented command is for a POSIX shell")
def test_the_documented_command_prints_the_accuracy(models: dict[str, Model]) -> None:
    program = re.search(r"--top 1 \| awk -F '\\t' '(.*?)'", PAGE, re.DOTALL)
    assert program is not None
    for model in models.values():
        assert model.path is not None
        scored = spawn(["eval", "-c", model.path, "--per-char", "--top", "1"])
        assert scored.status == 0, scored.err
        counted = subprocess.run(
            ["awk", "-F", "\t", program[1]], input=scored.out, capture_output=True, check=True
        ).stdout.decode()
        assert float(counted.split()[0]) == pytest.approx(naive(model), abs=1e-5)
        assert counted.endswith(" of 500 lines\n")


def test_the_documented_command_trains_with_windows_of_a_whole_line(tmp_path: Path) -> None:
    """The options of the page exist, and give no hint about a window that is too short."""
    pytest.importorskip("torch")
    command = re.search(r"^charlstm (train .*?)\ncharlstm", PAGE, re.DOTALL | re.MULTILINE)
    assert command is not None
    words = command[1].replace("\\\n", " ").replace("runs/recall", str(tmp_path / "run")).split()
    words[words.index("--steps") + 1] = "2"
    done = spawn([*words, "--valid-chars", "1000"])
    assert done.status == 0, done.err
    assert "most documents" not in done.err
    assert "10 streams × 203 characters" in done.err
    words[words.index("--seq-len") + 1] = "202"
    assert "most documents" in spawn([*words, "-o", str(tmp_path / "short"), "--valid-chars", "1000"]).err
