"""Settings that do not stand on the command line: from the environment, and from a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import typer.main
from commands import Done, here, model_file

from charlstm import checkpoint
from charlstm.cli import app

TEXT = "the cat sat on the mat.\n" * 60
TINY = {"hidden": 8, "embedding": 4, "batch-size": 4, "seq-len": 8, "threads": 1}

Train = Callable[..., Done]


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Train:
    """Train on the file `text.txt` in an empty folder that is the current one, with nothing on the command line."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    return lambda *arguments: here(capfd, "train", "text.txt", *arguments)


def options(run: str = "run") -> dict[str, object]:
    """What a run has kept of its options."""
    training = checkpoint.load(Path(run) / checkpoint.LAST, training=True).training
    assert training is not None
    return dict(training["options"])


def test_options_come_from_the_environment_and_the_command_line_goes_first(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**TINY, "output": "run", "quiet": 1, "hidden": 12, "time": "1m"}.items():
        monkeypatch.setenv(f"CHARLSTM_TRAIN_{name.upper().replace('-', '_')}", str(value))
    monkeypatch.delenv("CHARLSTM_TRAIN_TIME")
    assert train("--steps", 2, "--hidden", 5) == (0, b"", "")
    found = options()
    assert (found["hidden"], found["seq_len"], found["batch_size"], found["steps"]) == (5, 8, 4, 2)


def test_a_variable_has_the_name_of_the_flag(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHARLSTM_TRAIN_TIME", "soon")
    done = train()
    assert done.status == 2
    assert "--time wants a duration" in done.err


def test_a_bad_value_of_a_variable_is_one_line(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHARLSTM_TRAIN_HIDDEN", "wide")
    done = train()
    assert done.status == 2
    assert done.err.count("\n") == 1
    assert "--hidden" in done.err
    assert "wide" in done.err


def test_every_option_of_every_command_has_a_variable_of_its_own() -> None:
    found: list[str] = []
    for command in typer.main.get_command(app).commands.values():  # type: ignore[attr-defined]
        found += [parameter.envvar for parameter in command.params if parameter.param_type_name == "option"]
    assert {"CHARLSTM_TRAIN_SEQ_LEN", "CHARLSTM_SAMPLE_TEMP", "CHARLSTM_EVAL_JSON", "CHARLSTM_INFO_VERIFY"} <= {*found}
    assert len(found) == len({*found})


def test_the_environment_reaches_the_other_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CHARLSTM_SAMPLE_CHECKPOINT", str(model_file(tmp_path / "model.safetensors")))
    monkeypatch.setenv("CHARLSTM_SAMPLE_LENGTH", "7")
    assert len(here(capfd, "sample").text) == 7
    assert len(here(capfd, "sample", "-n", 9).text) == 9
