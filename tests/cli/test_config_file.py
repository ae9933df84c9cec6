"""Options from environment variables and from a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import typer.main

from charlstm import checkpoint, runs
from charlstm.cli.app import app
from tests.helpers.commands import Done, here, model_file

TEXT = "the cat sat on the mat.\n" * 60
TINY = {"hidden": 8, "embedding": 4, "batch-size": 4, "seq-len": 8, "threads": 1}

Train = Callable[..., Done]


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Train:
    """Train on the file `text.txt` in an empty current directory, without other arguments."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    return lambda *arguments: here(capfd, "train", "text.txt", *arguments)


def options(run: str = "run") -> dict[str, object]:
    """Return the options that a run has saved."""
    training = checkpoint.load(Path(run) / runs.LAST, training=True).training
    assert training is not None
    return dict(training["options"])


def test_the_command_line_has_priority_over_the_environment(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**TINY, "output": "run", "quiet": 1, "hidden": 12, "time": "1m"}.items():
        monkeypatch.setenv(f"CHARLSTM_TRAIN_{name.upper().replace('-', '_')}", str(value))
    monkeypatch.delenv("CHARLSTM_TRAIN_TIME")
    assert train("--steps", 2, "--hidden", 5) == (0, b"", "")
    found = options()
    assert (found["hidden"], found["seq_len"], found["batch_size"], found["steps"]) == (5, 8, 4, 2)


def test_an_environment_variable_has_the_name_of_the_flag(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHARLSTM_TRAIN_TIME", "soon")
    done = train()
    assert done.status == 2
    assert "--time must be a duration" in done.err


def test_an_invalid_value_of_a_variable_prints_one_line(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHARLSTM_TRAIN_HIDDEN", "wide")
    done = train()
    assert done.status == 2
    assert done.err.count("\n") == 1
    assert "--hidden" in done.err
    assert "wide" in done.err
    assert "(from the environment: CHARLSTM_TRAIN_HIDDEN)" in done.err


def test_a_message_names_exactly_the_variables_that_set_its_options(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHARLSTM_TRAIN_SEED", "1")
    monkeypatch.setenv("CHARLSTM_TRAIN_BATCH_SIZE", "4")
    monkeypatch.setenv("CHARLSTM_TRAIN_HIDDEN", "0")
    done = train()
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert done.err.endswith(" (from the environment: CHARLSTM_TRAIN_HIDDEN)\n")
    done = train("--hidden", "0")  # it has priority over the environment
    assert (done.status, "environment" in done.err) == (2, False)
    monkeypatch.delenv("CHARLSTM_TRAIN_HIDDEN")
    done = train("--lr", "-1")
    assert (done.status, "environment" in done.err) == (2, False)


def test_every_option_of_every_command_has_a_variable_of_its_own() -> None:
    found: list[str] = []
    for command in typer.main.get_command(app).commands.values():  # type: ignore[attr-defined]
        found += [parameter.envvar for parameter in command.params if parameter.param_type_name == "option"]
    assert {"CHARLSTM_TRAIN_SEQ_LEN", "CHARLSTM_SAMPLE_TEMP", "CHARLSTM_EVAL_JSON", "CHARLSTM_INFO_VERIFY"} <= {*found}
    assert len(found) == len({*found})


def test_the_environment_sets_options_of_the_other_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CHARLSTM_SAMPLE_CHECKPOINT", str(model_file(tmp_path / "model.safetensors")))
    monkeypatch.setenv("CHARLSTM_SAMPLE_LENGTH", "7")
    assert len(here(capfd, "sample").text) == 7
    assert len(here(capfd, "sample", "-n", 9).text) == 9


def config(**more: object) -> str:
    """Write a file of options for a small model, and return its name."""
    lines = {**TINY, "output": "run", "quiet": True, **more}
    words = {True: "true", False: "false"}
    Path("my.toml").write_text(
        "".join(f"{key} = {words[v] if isinstance(v, bool) else repr(v)}\n" for key, v in lines.items())
    )
    return "my.toml"


def test_the_command_line_and_the_environment_have_priority_over_a_file(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHARLSTM_TRAIN_EMBEDDING", "6")
    monkeypatch.setenv("CHARLSTM_TRAIN_SEED", "7")
    file = config(steps=2, seed=5, cell="gru", weight_decay=0.5)
    assert train("--config", file, "--seed", 9) == (0, b"", "")
    found = options()
    assert [found[name] for name in ("cell", "hidden", "embedding", "seed")] == ["gru", 8, 6, 9]
    assert [found[name] for name in ("weight_decay", "clip")] == [0.5, 1.0]


def test_the_saved_options_of_a_run_train_the_same_model_again(train: Train) -> None:
    assert train("--config", config(), "--steps", 4, "--lr", 0.02, "--dropout", 0.1).status == 0
    assert train("--config", "run/config.toml", "-o", "again").status == 0
    assert Path("again/config.toml").read_text() == Path("run/config.toml").read_text()
    assert options("again") == options()
    first, second = (checkpoint.load(Path(run) / runs.LAST).weights for run in ("run", "again"))
    assert all((first[name] == second[name]).all() for name in first)
    assert train("--config", "run/config.toml", "-o", "other", "--seed", 2).status == 0
    other = checkpoint.load(Path("other") / runs.LAST).weights
    assert any((first[name] != other[name]).any() for name in first)


def test_the_budget_of_the_command_line_replaces_that_of_the_file(train: Train) -> None:
    file = config(time="1h")
    assert train("--config", file, "--steps", 2).status == 0
    assert (options()["steps"], options()["seconds"]) == (2, None)
    done = train("--config", config(time="1h", epochs=1), "-o", "two")
    assert (done.status, "are mutually exclusive" in done.err) == (2, True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hiden = 8", "my.toml: hiden is not an option of charlstm train; similar options: hidden"),
        ("seq_length = 8", "similar options: seq-len"),
        ("xyzzy = 8", "xyzzy is not an option of charlstm train"),
        ("config = 'my.toml'", "config is not an option"),
        ("hidden = 8.5", "my.toml: hidden: '8.5' is not a valid"),
        ("hidden = true", "my.toml: hidden: 'True' is not a valid"),
        ("cell = 'gur'", "my.toml: cell: 'gur' is not one of"),
        ("hidden = [8]", "my.toml: hidden must be a string in quotes, a number, true or false"),
        ("[train]\nhidden = 8", "my.toml: train is not an option"),
        ("hidden = 0", "--hidden must be a whole number from 1"),
        ("hidden: 8", "my.toml is not valid TOML"),
        ("hidden = '\x1b[31m'", "my.toml is not valid TOML"),
    ],
)
def test_an_error_in_a_file_prints_one_line_that_names_the_file(train: Train, text: str, message: str) -> None:
    Path("my.toml").write_text(text)
    done = train("--config", "my.toml")
    assert done.status == 2
    assert message in done.err
    assert done.err.count("\n") == 1
    assert "\x1b" not in done.err


def test_a_missing_file_prints_one_line(train: Train) -> None:
    assert train("--config", "none.toml") == (1, b"", "charlstm: none.toml: No such file or directory\n")
