"""`charlstm explain` writes a page or JSON without torch, and answers every unusable input with one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from charlstm import checkpoint
from charlstm.checkpoint import Checkpoint
from charlstm.cli import explain
from charlstm.config import ModelConfig
from charlstm.text.vocabulary import Vocabulary
from tests.helpers.commands import here, model_file, spawn

Capture = pytest.CaptureFixture[str]
TEXT = "a cab had\nbag " * 30


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text"
    path.write_text(TEXT)
    return path


def test_the_page_is_written_and_described(tmp_path: Path, text: Path, capfd: Capture) -> None:
    model = model_file(tmp_path / "run" / "best.safetensors")
    page = tmp_path / "page.html"
    done = here(capfd, "explain", text, "-c", model, "-o", page, "--chars", 300)
    assert (done.status, done.err) == (0, "")
    rows = dict(line.split("  ", 1) for line in done.text.splitlines())
    assert rows["file"].strip() == str(page)
    assert rows["size"].strip() == f"{page.stat().st_size:,} bytes"
    assert rows["text"].strip().startswith("300 characters")
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_no_torch_is_needed(tmp_path: Path, text: Path) -> None:
    model = model_file(tmp_path / "model")
    (tmp_path / "torch.py").write_text("raise ImportError")
    done = spawn(["explain", text, "-c", model], cwd=tmp_path, PYTHONPATH=f"{tmp_path}:{Path(__file__).parents[2]}")
    assert (done.status, done.err) == (0, "")
    assert (tmp_path / "explain.html").stat().st_size > 100_000


def test_json_has_the_data_and_no_page_is_written(
    tmp_path: Path, text: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = model_file(tmp_path / "model")
    done = here(capfd, "explain", text, "-c", model, "--chars", 250, "--json")
    found: dict[str, Any] = json.loads(done.out)
    assert found["text"] == TEXT[:250]
    assert len(found["bits"]) == 250
    assert not Path("explain.html").exists()
    assert here(capfd, "explain", text, "-c", model, "--json", "-o", "x.html").status == 2
    assert here(capfd, "explain", text, "-c", model, "--json", "--open").status == 2


def test_runs_beside_the_model_are_compared(tmp_path: Path, text: Path, capfd: Capture) -> None:
    first, second = (model_file(tmp_path / name / "best.safetensors") for name in ("first", "second"))
    done = here(capfd, "explain", text, "-c", first, "--beside", second, "--beside", tmp_path / "first", "--json")
    names = [found["name"] for found in json.loads(done.out)["gradients"]]
    assert names == ["first (lstm)", "second (lstm)", "first (lstm)"]


def test_the_browser_is_opened_on_request(
    tmp_path: Path, text: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    model = model_file(tmp_path / "model")
    page = tmp_path / "a page.html"
    here(capfd, "explain", text, "-c", model, "-o", page)
    assert opened == []
    here(capfd, "explain", text, "-c", model, "-o", page, "--open")
    assert opened == [page.as_uri()]


def test_only_the_beginning_of_a_long_text_is_read() -> None:
    blocks = iter(["abc", "defg", "never"])
    assert explain._joined(blocks, 5) == "abcdefg"
    assert list(blocks) == ["never"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"a", "1 character"),
        (b"abc xyz", "'x'"),
        (b"ab\xff\xfe", "UTF-8"),
    ],
)
def test_an_unusable_text_is_one_line(tmp_path: Path, capfd: Capture, content: bytes, words: str) -> None:
    model = model_file(tmp_path / "model")
    (tmp_path / "text").write_bytes(content)
    page = tmp_path / "page.html"
    done = here(capfd, "explain", tmp_path / "text", "-c", model, "-o", page)
    assert done.status == 1
    assert done.err.count("\n") == 1
    assert words in done.err
    assert not page.exists()


def test_unknown_characters_can_be_replaced(tmp_path: Path, capfd: Capture) -> None:
    model = model_file(tmp_path / "model")
    (tmp_path / "text").write_text("abc xyz " * 20)
    done = here(capfd, "explain", tmp_path / "text", "-c", model, "--unknown", "skip", "--json")
    assert json.loads(done.out)["text"] == "abc  " * 20


@pytest.mark.parametrize("value", [np.nan, np.inf, 3e38])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, text: Path, capfd: Capture, value: float) -> None:
    vocabulary = Vocabulary.of(TEXT)
    config = ModelConfig(len(vocabulary), 4, 1, 3)
    weights = {name: np.full(shape, 0.1, np.float32) for name, shape in config.shapes().items()}
    weights["projection.weight"][0] = value
    model = tmp_path / "model"
    checkpoint.save(model, Checkpoint(config, vocabulary, weights))
    done = here(capfd, "explain", text, "-c", model, "-o", tmp_path / "page.html")
    assert done.status == (0 if value == 3e38 else 1)
    assert done.err.count("\n") == (0 if value == 3e38 else 1)
    assert (tmp_path / "page.html").exists() == (done.status == 0)


def test_a_page_that_cannot_be_written_is_one_line(tmp_path: Path, text: Path, capfd: Capture) -> None:
    model = model_file(tmp_path / "model")
    done = here(capfd, "explain", text, "-c", model, "-o", tmp_path / "missing" / "page.html")
    assert (done.status, done.err.count("\n")) == (1, 1)
    assert "missing" in done.err
    for chars in (1, 20_001):
        done = here(capfd, "explain", text, "-c", model, "--chars", chars)
        assert (done.status, done.err.count("\n")) == (2, 1)
        assert "--chars" in done.err
