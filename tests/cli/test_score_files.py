"""`charlstm eval --jsonl`: one line for each file, completed by the same command after an interruption."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import charlstm
from tests.helpers.commands import here, model_file

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a directory with three texts and, beside it, a model; it is the current directory's child."""
    monkeypatch.chdir(tmp_path)
    model_file(tmp_path / "model.safetensors")
    (tmp_path / "texts").mkdir()
    for name, text in {"a": "abcabc", "b": "bad cab", "c": "a\nb\n"}.items():
        (tmp_path / "texts" / f"{name}.txt").write_text(text)
    return tmp_path / "texts"


ARGUMENTS = ("eval", "texts", "-c", "model.safetensors", "--jsonl", "scores.jsonl")


def records() -> list[dict[str, object]]:
    return [json.loads(line) for line in Path("scores.jsonl").read_text().splitlines()]


@pytest.mark.usefixtures("texts")
def test_each_file_gets_the_score_that_it_has_alone(capfd: Capture) -> None:
    assert here(capfd, *ARGUMENTS).status == 0
    found = {record["file"]: record["bits_per_char"] for record in records()}
    assert [*found] == ["texts/a.txt", "texts/b.txt", "texts/c.txt"]
    model = charlstm.load("model.safetensors")
    assert found == {file: model.evaluate(Path(str(file)).read_text()).bits_per_char for file in found}


def test_an_interrupted_command_is_completed_by_the_same_command(texts: Path, capfd: Capture) -> None:
    assert here(capfd, *ARGUMENTS).status == 0
    whole = Path("scores.jsonl").read_bytes()
    assert here(capfd, *ARGUMENTS).err == (
        "charlstm: scores.jsonl exists: add --skip-done to complete it, or name another file\n"
    )
    assert Path("scores.jsonl").read_bytes() == whole
    for cut in (len(whole) - 1, len(whole) // 2, 5, 0):  # a kill while a line is written
        Path("scores.jsonl").write_bytes(whole[:cut])
        assert here(capfd, *ARGUMENTS, "--skip-done").status == 0
        assert Path("scores.jsonl").read_bytes() == whole
    (texts / "a.txt").write_text("another text of a file that has a score")
    assert here(capfd, *ARGUMENTS, "--skip-done").status == 0
    assert Path("scores.jsonl").read_bytes() == whole, "its name has a line"
    model_file(Path("model.safetensors"), "\n abcdefghi")  # negative control: scores of another model do not count
    assert here(capfd, *ARGUMENTS, "--skip-done").status == 1
    assert len(records()) == 6


def test_a_file_that_cannot_be_scored_has_an_error_and_is_tried_again(texts: Path, capfd: Capture) -> None:
    (texts / "b.txt").write_bytes(b"\xff\xfe")
    done = here(capfd, *ARGUMENTS)
    assert done.status == 1
    assert done.err.startswith("charlstm: texts/b.txt: ")
    assert ["error" in record for record in records()] == [False, True, False]
    (texts / "b.txt").write_text("bad cab")
    assert here(capfd, *ARGUMENTS, "--skip-done").status == 0
    assert [record["file"] for record in records()][-1] == "texts/b.txt"
    assert len(records()) == 4


@pytest.mark.usefixtures("texts")
def test_a_file_that_is_no_list_of_scores_is_not_changed(capfd: Capture) -> None:
    Path("scores.jsonl").write_text("a diary\n")
    done = here(capfd, *ARGUMENTS, "--skip-done")
    assert done.err == "charlstm: scores.jsonl is not a file of scores: line 1 has no entry 'file'\n"
    assert Path("scores.jsonl").read_text() == "a diary\n"
    assert "--skip-done requires --jsonl" in here(capfd, "eval", "-c", "model.safetensors", "--skip-done").err
