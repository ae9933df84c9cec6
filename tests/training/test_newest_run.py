"""The newest run of a text, which `train --resume` continues if no directory is given."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from charlstm import checkpoint
from charlstm.errors import CheckpointError, CorpusError, Field, UsageError
from charlstm.provenance import CorpusRecord, TextRecord
from charlstm.runs import LAST
from charlstm.text import corpus
from charlstm.text.corpus import Corpus
from charlstm.text.vocabulary import Vocabulary
from charlstm.training.resume import newest_run_of
from tests.helpers.faults import example

Read = Callable[[Vocabulary, str], Corpus]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text("a\nbc ac\ncab\n" * 5)
    return file


def run_of(text: Corpus, folder: Path, saved_at: int) -> Path:
    """Save a checkpoint of a run that was trained on this text, last at this time."""
    folder.mkdir(parents=True)
    record = CorpusRecord(**vars(TextRecord.of(text)))
    model = dataclasses.replace(example().model, vocab_size=len(text.vocabulary), boundary=text.vocabulary.boundary_id)
    weights = {name: np.zeros(shape, np.float32) for name, shape in model.shapes().items()}
    saved = dataclasses.replace(
        example(), model=model, vocabulary=text.vocabulary, weights=weights, facts={"corpus": record.to_json()}
    )
    checkpoint.save(folder / LAST, saved)
    os.utime(folder / LAST, (saved_at, saved_at))
    return folder


def reader_of(text: Path, calls: list[tuple[str, str | None, str]]) -> Read:
    """Return a function that reads a text as a run did, and records how it was called."""

    def read(vocabulary: Vocabulary, encoding: str) -> Corpus:
        calls.append((vocabulary.kind, vocabulary.boundary, encoding))
        if vocabulary.kind == "bytes":
            return corpus.read([text], symbols="bytes")
        return corpus.read([text], boundary=vocabulary.boundary, encoding=encoding)

    return read


def test_the_newest_of_the_runs_of_a_text_is_found(text: Path, tmp_path: Path) -> None:
    root, given = tmp_path / "runs", corpus.read([text])
    (tmp_path / "other.txt").write_text("another text" * 9)
    run_of(given, root / "old", saved_at=1000)
    newest = run_of(given, root / "new", saved_at=2000)
    run_of(corpus.read([tmp_path / "other.txt"]), root / "of another text", saved_at=3000)
    (root / "damaged").mkdir()
    (root / "damaged" / LAST).write_text("x")
    calls: list[tuple[str, str | None, str]] = []
    found, read = newest_run_of(reader_of(text, calls), root=root)
    assert (found, read.sha256) == (newest, given.sha256)
    assert calls == [("chars", None, "utf-8")], "the text is read once"


def test_the_text_is_read_as_each_run_read_it(text: Path, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    lines = run_of(corpus.read([text], boundary="\n"), root / "lines", saved_at=1000)
    raw = run_of(corpus.read([text], symbols="bytes"), root / "bytes", saved_at=2000)
    read = reader_of(text, [])
    assert newest_run_of(read, root=root)[0] == raw
    assert newest_run_of(read, symbols="bytes", root=root)[0] == raw
    assert newest_run_of(read, symbols="chars", root=root)[0] == lines
    assert newest_run_of(read, boundary="\n", root=root)[0] == lines


def test_without_a_run_of_the_text_the_error_names_the_options(text: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run of this text") as raised:
        newest_run_of(reader_of(text, []), root=tmp_path / "runs")
    assert raised.value.fields == (Field("run"), Field("resume"))


def test_a_text_that_can_be_read_only_once_is_not_read_in_two_ways(text: Path, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    older = run_of(corpus.read([text], boundary="\n"), root / "lines", saved_at=1000)
    (tmp_path / "other.txt").write_text("another text" * 9)
    run_of(corpus.read([tmp_path / "other.txt"]), root / "other", saved_at=2000)
    with pytest.raises(UsageError, match="can be read only once") as raised:
        newest_run_of(reader_of(text, []), only_once=True, root=root)
    assert raised.value.fields == (Field("run"),)
    assert newest_run_of(reader_of(text, []), root=root)[0] == older


def test_a_text_that_no_run_can_read_gives_the_error_of_reading(text: Path, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    run_of(corpus.read([text]), root / "chars", saved_at=2000)
    text.write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(CorpusError, match=r"text\.txt"):
        newest_run_of(reader_of(text, []), symbols="chars", root=root)
    as_bytes = run_of(corpus.read([text], symbols="bytes"), root / "bytes", saved_at=1000)
    assert newest_run_of(reader_of(text, []), root=root)[0] == as_bytes


def test_a_run_that_is_removed_during_the_search_is_skipped(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, given = tmp_path / "runs", corpus.read([text])
    kept, removed = run_of(given, root / "kept", 1), run_of(given, root / "removed", 2)
    found = [kept / LAST, removed / LAST]
    (removed / LAST).unlink()
    monkeypatch.setattr(Path, "glob", lambda *_: iter(found))
    assert newest_run_of(reader_of(text, []), root=root)[0] == kept
