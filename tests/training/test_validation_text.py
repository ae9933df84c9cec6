"""A separate validation text (`--valid`), and training without validation (`--valid-share 0`)."""

from __future__ import annotations

import io
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import charlstm
from charlstm import checkpoint
from charlstm.config import TrainingOptions
from charlstm.errors import CorpusError, ResumeError, UsageError
from charlstm.runs import BEST, LAST
from charlstm.text import corpus
from charlstm.training.events import Event, Started, Stopped, Validated
from charlstm.training.trainer import Trainer
from tests.helpers.commands import Done, here
from tests.helpers.models import interrupt

TEXT = "the cat sat on the mat, and the dog sat on the cat.\n" * 30
CUT = 1400
DEV = "A cat: the dog sat – and sat.\n" * 6
SMALL: dict[str, Any] = {
    "hidden": 12, "embedding": 5, "batch_size": 3, "seq_len": 9, "dropout": 0.2, "sample_chars": 0, "seed": 5,
    "threads": 1,
}  # fmt: skip


@pytest.fixture(autouse=True)
def texts(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a new working directory with the texts."""
    monkeypatch.chdir(memory)
    Path("text.txt").write_text(TEXT)
    Path("dev.txt").write_text(DEV)
    Path("begin.txt").write_text(TEXT[:CUT])
    Path("end.txt").write_text(TEXT[CUT:])


def events(text: str, run: str, valid: str | None = None, **options: Any) -> list[Event]:
    given = None if valid is None else corpus.read([valid])
    options = {**SMALL, "steps": 30, **options}
    return list(Trainer.start(corpus.read([text]), run, TrainingOptions(**options), valid=given).events())


def test_the_whole_text_trains_as_if_the_validation_text_were_held_out_of_it() -> None:
    share = 1 - CUT / len(TEXT)
    plain, own = events("text.txt", "plain", valid_share=share), events("begin.txt", "own", "end.txt")
    assert isinstance(plain[0], Started)
    assert isinstance(own[0], Started)
    assert plain[0].train_chars == own[0].train_chars == own[0].chars == CUT
    assert own[0].valid == ("end.txt",)
    scores = [[event.valid_nats_per_char for event in run if isinstance(event, Validated)] for run in (plain, own)]
    assert scores[0] == scores[1] != []
    for name in (BEST, LAST):
        first, second = (checkpoint.load(Path(run, name)).weights for run in ("plain", "own"))
        assert all(np.array_equal(first[weight], second[weight]) for weight in first)


def test_the_vocabulary_is_that_of_both_texts_and_eval_scores_the_validation_text() -> None:
    seen = events("text.txt", "run", "dev.txt")
    best = [event for event in seen if isinstance(event, Validated) and event.best][-1]
    model = charlstm.load("run")
    assert model.vocabulary.symbols == "".join(sorted({*TEXT, *DEV}))
    assert model.evaluate() == model.evaluate(DEV)
    assert model.evaluate().nats_per_char == pytest.approx(best.valid_nats_per_char, rel=1e-5)
    Path("dev.txt").write_text(DEV + ".")
    with pytest.raises(CorpusError, match=r"dev\.txt is not the text that the model was validated on"):
        model.evaluate()
    Path("dev.txt").unlink()
    with pytest.raises(CorpusError, match=r"dev\.txt: no such file; give the text"):
        model.evaluate()


def test_the_validation_text_is_scored_up_to_the_same_length_as_a_held_out_part() -> None:
    seen = events("text.txt", "run", "dev.txt", valid_chars=50)
    assert isinstance(seen[0], Started)
    assert (seen[0].held_out_chars, seen[0].valid_chars) == (len(DEV), 50)
    model = charlstm.load("run")
    assert model.evaluate() == model.evaluate(DEV[:50])


def test_resume_checks_the_validation_text_and_ends_in_the_same_bytes() -> None:
    text, dev = corpus.read(["text.txt"]), corpus.read(["dev.txt"])
    events("text.txt", "straight", "dev.txt")
    run = Trainer.start(text, "run", TrainingOptions(**SMALL, steps=30), valid=dev)
    interrupt(run, 13)
    list(run.events())
    with pytest.raises(
        ResumeError,
        match=r"validation text of this run is dev\.txt with sha256 \w{16}…, not the held-out part of its text",
    ):
        Trainer.resume(text, "run")
    with pytest.raises(ResumeError, match=r"dev\.txt with sha256 .* not end\.txt with sha256"):
        Trainer.resume(text, "run", valid=corpus.read(["end.txt"]))
    list(Trainer.resume(text, "run", valid=dev).events())
    for name in (BEST, LAST):
        assert Path("run", name).read_bytes() == Path("straight", name).read_bytes()
    events("text.txt", "plain")
    with pytest.raises(ResumeError, match=r"the held-out part of its text, not dev\.txt"):
        Trainer.resume(text, "plain", {"steps": 31}, valid=dev)


def test_a_new_text_on_resume_may_lack_characters_of_the_run() -> None:
    events("text.txt", "run", steps=5)
    Path("cat.txt").write_text("the cat sat. " * 20)
    list(Trainer.resume(corpus.read(["cat.txt"]), "run", {"steps": 8}, allow_new_corpus=True).events())
    model = charlstm.load("run/last.safetensors")
    assert model.vocabulary.symbols == "".join(sorted({*TEXT}))
    assert model.evaluate().chars == 26


@pytest.mark.parametrize("share", [0, 0.0, 1e-9])
def test_a_share_of_zero_holds_out_nothing(share: float) -> None:
    seen = events("text.txt", "run", valid_share=share)
    assert isinstance(seen[0], Started)
    assert (seen[0].train_chars, seen[0].held_out_chars) == (len(TEXT), 0)
    assert not [event for event in seen if isinstance(event, Validated)]
    assert isinstance(seen[-1], Stopped)
    assert seen[-1].best_valid_bits_per_char is None
    first, second = (checkpoint.load(Path("run", name)).weights for name in (BEST, LAST))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    with pytest.raises(CorpusError, match="nothing was held out"):
        charlstm.load("run").evaluate()


def test_contradictory_options_and_texts_too_short_to_score_are_errors() -> None:
    with pytest.raises(UsageError, match=r"valid_share 0\.2 and valid are mutually exclusive"):
        events("text.txt", "run", "dev.txt", valid_share=0.2)
    with pytest.raises(UsageError, match="patience"):
        events("text.txt", "run", valid_share=0, patience=3)
    Path("dev.txt").write_text("x")
    with pytest.raises(CorpusError, match="no transition to score"):
        events("text.txt", "run", "dev.txt")
    assert not Path("run").exists()


# the command line

TINY = ("--hidden", "8", "--embedding", "4", "--batch-size", "4", "--seq-len", "8", "--threads", "1", "--steps", "6")


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    return lambda *words: here(capfd, *words)


def test_the_validation_text_is_shown_saved_and_required_on_resume(run: Callable[..., Done]) -> None:
    done = run("train", "text.txt", "--valid", "dev.txt", "-o", "run", *TINY)
    assert (done.status, done.out) == (0, b"")
    assert f"split      {len(TEXT):,} for training, {len(DEV)} for validation, dev.txt" in done.err.splitlines()
    assert "text                dev.txt" in run("eval", "-c", "run").text
    assert f"validation text  dev.txt: {len(DEV)} characters" in run("info", "run").text
    assert run("train", "text.txt", "--config", "run/config.toml", "-o", "again", "-q") == (0, b"", "")
    assert Path("again", LAST).read_bytes() == Path("run", LAST).read_bytes()
    done = run("train", "text.txt", "-o", "run", "--resume", "--steps", "8")
    assert (done.status, done.err.count("\n")) == (1, 1)
    assert "validation text of this run is dev.txt" in done.err
    assert run("train", "text.txt", "--valid", "dev.txt", "-o", "run", "--resume", "--steps", "8", "-q").status == 0


def test_the_command_to_resume_names_the_validation_text(
    run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    from charlstm.cli import training_display

    monkeypatch.setattr(training_display, "print_settings", lambda _: signal.raise_signal(signal.SIGINT))
    done = run("train", "text.txt", "--valid", "dev.txt", "-o", "run", *TINY)
    assert done.err.endswith("to resume: charlstm train text.txt --valid dev.txt -o run --resume\n")


def test_stdin_may_be_one_of_the_two_texts_but_not_both(
    run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(DEV.encode())))
    assert run("train", "text.txt", "--valid", "-", "-o", "run", "-q", *TINY) == (0, b"", "")
    done = run("eval", "-c", "run")
    assert (done.status, done.err.count("\n")) == (1, 1)
    assert "give the text to evaluate" in done.err
    done = run("train", "-", "--valid", "-", "-o", "other", *TINY)
    assert (done.status, done.err.count("\n")) == (2, 1)
    assert "stdin can be read only once" in done.err


@pytest.mark.parametrize("valid", ["nothing.txt", "empty.txt", "latin.txt"])
def test_an_invalid_validation_text_is_an_error_in_one_line(run: Callable[..., Done], valid: str) -> None:
    Path("empty.txt").write_text("")
    Path("latin.txt").write_bytes(b"caf\xe9 au lait")
    done = run("train", "text.txt", "--valid", valid, *TINY)
    assert (done.status, done.out, done.err.count("\n")) == (1, b"", 1)
    assert valid in done.err
    assert not Path("checkpoints").exists()
