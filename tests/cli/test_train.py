"""`charlstm train` on a text so small that a run takes less than a second."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import charlstm
from charlstm import checkpoint, runs
from charlstm.cli import training_display
from tests.helpers.commands import COMMAND, Done, here, in_terminal

TEXT = "the cat sat on the mat.\n" * 60
SMALL = ("--hidden", "8", "--embedding", "4", "--batch-size", "4", "--seq-len", "8", "--steps", "6", "--threads", "1")

Train = Callable[..., Done]


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Train:
    """Train on the file `text.txt` in an empty current directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)

    def run(*arguments: object, text: str = "text.txt") -> Done:
        return here(capfd, "train", text, *SMALL, *arguments)

    return run


def weights(run: str) -> bytes:
    loaded = checkpoint.load(Path(run) / runs.LAST)
    return b"".join(loaded.weights[name].tobytes() for name in sorted(loaded.weights))


def test_a_run_is_named_after_its_text_and_never_overwrites_another(train: Train) -> None:
    for name in ("text", "text-2", "text-3"):
        done = train()
        assert (done.status, done.out) == (0, b"")
        assert f"next: charlstm sample -c checkpoints/{name}\n" in done.err
        assert {file.name for file in Path("checkpoints", name).iterdir()} >= {
            "best.safetensors",
            "last.safetensors",
            "metrics.jsonl",
        }


def test_a_log_has_the_settings_first_and_the_result_last(train: Train) -> None:
    lines = train("-o", "run").err.splitlines()
    assert lines[0].split() == ["run", "run"]
    assert "text       1,440 characters, 12 distinct" in lines
    assert any(line.startswith("model      lstm 1 × 8, embedding 4: ") for line in lines)
    assert "budget     6 steps" in lines
    assert any("validation" in line and "bits/char" in line for line in lines)
    assert "saved step 6 to run/last.safetensors" in lines
    assert lines[-2].startswith("done: 6 steps in 0:0")


def test_reading_a_slow_training_text_shows_the_progress(tmp_path: Path) -> None:
    command = (
        """(head -c 300000 /dev/zero; sleep 1.1; head -c 300000 /dev/zero) | tr '\\0' a | "$@" - -o run --steps 1"""
    )
    shown = in_terminal(["bash", "-c", f"cd {tmp_path}; {command} --hidden 4", "-", *COMMAND, "train"])
    assert shown.status == 0
    assert re.search(rb"\rreading: [0-9.]+kchar ", shown.out)


def test_a_count_of_one_is_printed_in_the_singular(train: Train) -> None:
    said = train("-o", "run", "--steps", "1", "--threads", "1", "--batch-size", "1").err
    assert re.search(r"^training   1 stream × \d+ characters, ", said, re.MULTILINE)
    assert re.search(r"^device     cpu, 1 thread, ", said, re.MULTILINE)
    assert re.search(r"^budget     1 step$", said, re.MULTILINE)
    assert re.search(r"^done: 1 step in 0:0", said, re.MULTILINE)


def test_json_writes_one_event_per_line_to_stdout_and_nothing_to_stderr(train: Train) -> None:
    done = train("-o", "run", "--json")
    events = [json.loads(line) for line in done.out.splitlines()]
    assert (done.status, done.err) == (0, "")
    assert events[0]["event"] == "started"
    assert events[0]["hidden"] == 8
    assert events[-1]["event"] == "stopped"
    assert events[-1]["reason"] == "finished"
    assert events[-1]["last"] == "run/last.safetensors"
    assert {"validated", "saved"} <= {event["event"] for event in events}


def test_eval_reads_the_validation_part_in_the_encoding_of_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text = "Être ou ne pas être, déjà. " * 40
    Path("text").write_bytes(text.encode("latin-1"))
    options = ("--encoding", "latin1", "--steps", 2, "--hidden", 4)
    assert here(capfd, "train", "text", "-o", "run", *options).status == 0
    scored = json.loads(here(capfd, "eval", "-c", "run", "--json").out)
    assert scored["bits_per_char"] == charlstm.load("run").evaluate(text[-108:]).bits_per_char
    shutil.copytree("run", "checkpoints/run")
    for way in ((), ("-o", "run"), ("-o", "run", "--encoding", "latin1")):
        assert here(capfd, "train", "text", "--resume", *way, "--steps", 3).status == 0
    assert here(capfd, "train", "text", "--resume", "--encoding", "cp1250", "--steps", 3).status == 1  # another text
    Path("text").write_bytes(text.encode())
    assert here(capfd, "train", "text", "-o", "again", "--config", "run/config.toml").status == 0
    assert here(capfd, "sample", "-c", "again", "-n", 3, "--prime", "é").status == 1  # it was read as latin-1 again


def test_the_table_and_eval_show_how_much_of_the_validation_part_is_scored(
    train: Train, capfd: pytest.CaptureFixture[str]
) -> None:
    assert "for validation, of which the first 20 are scored\n" in train("--valid-chars", "20").err
    scored = "text                the first 20 characters of the validation part of the model's corpus"
    assert scored in here(capfd, "eval").text
    assert " are scored" not in train().err
    assert "text                the validation part of the model's corpus" in here(capfd, "eval").text


def test_quiet_prints_nothing(train: Train) -> None:
    assert train("--quiet") == (0, b"", "")


def test_every_option_reaches_the_training(train: Train) -> None:
    given = {
        "--cell": "gru", "--layers": "2", "--dropout": "0.2", "--forget-bias": "0.5", "--lr": "0.003",
        "--warmup": "0.1", "--weight-decay": "0.3", "--beta1": "0.8", "--beta2": "0.9", "--clip": "2", "--reset": "0.2",
        "--valid-share": "0.2", "--valid-chars": "100", "--validations": "3", "--sample-chars": "7",
        "--patience": "8", "--keep": "4", "--device": "cpu", "--seed": "9",
    }  # fmt: skip
    done = train("-o", "run", "--quiet", *(word for pair in given.items() for word in pair))
    assert done.status == 0
    saved = checkpoint.load(Path("run") / runs.LAST)
    assert saved.training is not None
    options = saved.training["options"]
    for name, value in given.items():
        assert str(options[name[2:].replace("-", "_")]) in (value, value + ".0"), name
    for name, value in zip(SMALL[::2], SMALL[1::2], strict=True):
        assert str(options[name[2:].replace("-", "_")]) == value


@pytest.mark.fault("R51")
def test_stdin_a_directory_and_a_gzip_file_give_the_same_weights_as_the_file(
    train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    import gzip

    train("-o", "file", "--quiet")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    assert train("-o", "pipe", "--quiet", text="-").status == 0
    Path("folder").mkdir()
    Path("folder", "a").write_text(TEXT[:99])
    Path("folder", "b").write_text(TEXT[99:])
    assert train("-o", "two", "--quiet", text="folder").status == 0
    Path("text.gz").write_bytes(gzip.compress(TEXT.encode()))
    assert train("-o", "zipped", "--quiet", text="text.gz").status == 0
    assert weights("file") == weights("pipe") == weights("two") == weights("zipped")
    train("-o", "other", "--quiet", "--seed", "2")
    assert weights("file") != weights("other")


@pytest.mark.fault("R43", "R44", "R46")
@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
@pytest.mark.parametrize("when", ["print_settings", "validation_line"])  # before the first step, and after some steps
def test_an_interrupted_run_resumes_to_the_same_bytes(
    when: str, name: str, status: int, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("--steps", "20", "--valid-share", "0.01")  # a validation part this short is also scored during the run
    train("-o", "straight", "--quiet", *more)

    def interrupt(*_: object) -> str:
        signal.raise_signal(getattr(signal, name))
        return ""

    with monkeypatch.context() as patch:
        patch.setattr(training_display, when, interrupt)
        stopped = train("-o", "run", *more)
    assert stopped.status == status
    assert stopped.err.splitlines()[-1].endswith("to resume: charlstm train text.txt -o run --resume")
    assert checkpoint.load("run/last.safetensors").step < 20
    assert train("-o", "run", "--resume", "--quiet", *more).status == 0
    assert Path("run/last.safetensors").read_bytes() == Path("straight/last.safetensors").read_bytes()


@pytest.mark.fault("R39")
def test_resume_without_a_run_directory_uses_the_newest_run_of_the_text(train: Train) -> None:
    train("--quiet")
    train("--quiet")
    later = os.stat("checkpoints/text-2/last.safetensors").st_mtime + 1  # two saves may have the same time stamp
    os.utime("checkpoints/text/last.safetensors", (later, later))
    Path("other.txt").write_text(TEXT[::-1])
    train("--quiet", text="other.txt")
    Path("checkpoints/broken").mkdir()
    Path("checkpoints/broken/last.safetensors").write_bytes(b"no checkpoint")
    os.utime("checkpoints/broken/last.safetensors", (later + 1, later + 1))
    done = train("--resume")
    assert (done.status, done.out) == (0, b"")
    assert "checkpoints/text has used its budget: 6 steps" in done.err


def test_a_larger_budget_continues_a_finished_run(train: Train) -> None:
    train("-o", "run", "--quiet")
    done = train("-o", "run", "--resume", "--steps", "9")
    assert done.status == 0
    assert "from step 6" in done.err
    assert checkpoint.load("run/last.safetensors").step == 9


@pytest.mark.fault("R38")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--resume", "--hidden", "9"), "--hidden 9 (saved: 8)"),
        (("--resume", "--cell", "gru"), "--cell gru (saved: lstm)"),
        ((), "already holds a model"),
    ],
)
def test_options_that_would_damage_a_run_are_refused(arguments: tuple[str, ...], said: str, train: Train) -> None:
    train("-o", "run", "--quiet")
    before = Path("run/last.safetensors").read_bytes()
    done = train("-o", "run", *arguments)
    assert (done.status, done.out, done.err.count("\n")) == (1, b"", 1)
    assert said in done.err
    assert Path("run/last.safetensors").read_bytes() == before


@pytest.mark.fault("R37")
def test_another_text_is_refused_without_the_option_that_allows_it(train: Train) -> None:
    train("-o", "run", "--quiet")
    Path("text.txt").write_text(TEXT[:-2] + TEXT[-1] + TEXT[-2])
    done = train("-o", "run", "--resume", "--steps", "8")
    assert (done.status, done.err.count("\n")) == (1, 1)
    assert "sha256" in done.err
    assert "--allow-new-corpus" in done.err
    assert train("-o", "run", "--resume", "--steps", "8", "--allow-new-corpus", "--quiet").status == 0


@pytest.mark.fault("R12")
def test_a_run_in_use_by_another_process_is_refused(train: Train) -> None:
    from charlstm.atomicfile import FolderLock

    Path("run").mkdir()
    lock = FolderLock(Path("run"))
    done = train("-o", "run")
    lock.close()
    assert (done.status, done.err.count("\n")) == (1, 1)
    assert str(os.getpid()) in done.err


@pytest.mark.fault("R53")
def test_a_divergence_prints_one_line_and_exits_with_status_1(train: Train) -> None:
    done = train("-o", "run", "--lr", "1e20", "--steps", "50", "--on-divergence", "stop", "--quiet")
    assert (done.status, done.out, done.err.count("\n")) == (1, b"", 1)
    assert done.err.startswith("charlstm: ")
    for file in Path("run").glob("*.safetensors"):
        assert all(np.isfinite(array).all() for array in checkpoint.load(file).weights.values())


@pytest.mark.fault("R55")
def test_a_rollback_is_reported_and_the_run_continues_or_ends_with_an_error(train: Train) -> None:
    done = train("-o", "run", "--lr", "1e20", "--steps", "50", "--quiet")
    assert done.out == b""
    assert all(line.startswith("charlstm: ") for line in done.err.splitlines())
    assert "returned to step" in done.err


def test_a_run_without_improvement_reports_it_and_exits_with_status_0(train: Train) -> None:
    more = ("--steps", "90", "--lr", "1e-30", "--patience", "2", "--valid-share", "0.02", "--keep", "1")
    done = train("-o", "run", *more)
    lines = done.err.splitlines()
    assert (done.status, done.out) == (0, b"")
    assert "budget     90 steps, or 2 validations without improvement" in lines
    assert lines[-3] == "stopped by --patience: 2 validations without improvement"
    assert lines[-1] == "next: charlstm sample -c run"
    assert len([*Path("run").glob("step-*.safetensors")]) == 1
    before = Path("run/last.safetensors").read_bytes()
    done = train("-o", "run", "--resume", *more)
    assert done.status == 0
    assert "stopped by --patience" in done.err
    assert Path("run/last.safetensors").read_bytes() == before
