"""The ids of a long text in a file: they equal those in memory, are found again, and are rebuilt if invalid."""

from __future__ import annotations

import errno
import gzip
import io
import itertools
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import charlstm
from charlstm.config import DynamicConfig, ModelConfig, TrainingOptions, Unknown
from charlstm.errors import CorpusError, UnknownSymbols
from charlstm.model import Model
from charlstm.text import corpus, id_file, reading, vocabulary
from charlstm.text.corpus import Corpus, read
from charlstm.text.id_file import IdFile, StoredIds
from charlstm.text.reading import Block
from charlstm.text.vocabulary import Vocabulary
from charlstm.training import dynamic_evaluation
from charlstm.training.streams import Streams
from tests.helpers.faults import Forks
from tests.helpers.models import random_weights

TEXT = "".join(f"{k} Flaschen an der Wänd, und {k % 7} fallen; " for k in range(100))


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    warm = Forks()
    yield warm
    warm.close()


@pytest.fixture
def folder(memory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the ids; a text of more than 500 characters is stored there."""
    monkeypatch.setattr(id_file, "folder", lambda: memory / "ids")
    monkeypatch.setattr(corpus, "IN_MEMORY_CHARS", 500)
    monkeypatch.setattr(reading, "MIN_FINGERPRINTED_BYTES", 501)
    monkeypatch.setattr(reading, "BLOCK_BYTES", 100)
    return memory / "ids"


@pytest.fixture
def text(memory: Path) -> Path:
    path = memory / "text"
    path.write_bytes(TEXT.encode())
    return path


def text_of(found: Corpus) -> str:
    return found.vocabulary.decode(np.asarray(found.ids))


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob("*"))


def in_file(found: Corpus) -> bool:
    return isinstance(found.ids, StoredIds)


def of_stdin(data: bytes, monkeypatch: pytest.MonkeyPatch) -> Corpus:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    return read(["-"])


def unread(*_: object) -> Iterator[str]:
    raise AssertionError("the text was read")


# --- the same values


def test_training_on_ids_in_a_file_gives_the_same_bytes_as_in_memory(
    folder: Path, text: Path, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from charlstm.runs import BEST, LAST
    from charlstm.training.trainer import Trainer

    options = TrainingOptions(
        hidden=12, embedding=5, batch_size=3, seq_len=9, epochs=1.5, valid_chars=200, validations=4
    )
    runs = []
    for name, limit in (("file", 500), ("found", 500), ("memory", 10**6)):
        monkeypatch.setattr(corpus, "IN_MEMORY_CHARS", limit)
        monkeypatch.setattr(reading, "MIN_FINGERPRINTED_BYTES", limit)
        found = read([text])
        assert in_file(found) == (name != "memory")
        list(Trainer.start(found, memory / name, options).events())
        scored = charlstm.load(memory / name).evaluate()
        runs.append(((memory / name / BEST).read_bytes(), (memory / name / LAST).read_bytes(), scored))
    assert runs[0] == runs[1] == runs[2]


@given(st.binary(max_size=40), st.sampled_from(["u1", "u2", "u4"]), st.lists(st.integers(-50, 50), max_size=6))
def test_a_slice_of_a_slice_equals_that_of_an_array(
    memory_file: Path, data: bytes, dtype: str, cuts: list[int]
) -> None:
    expected: Any = np.frombuffer(data[: len(data) // 4 * 4], dtype)
    memory_file.write_bytes(b"before" + expected.tobytes() + b"behind")
    found = StoredIds(IdFile.open(memory_file), expected.dtype, 6, len(expected))
    for start, stop in zip(cuts[::2], cuts[1::2], strict=False):
        found, expected = found[start:stop], expected[start:stop]
        assert len(found) == len(expected)
        assert np.array_equal(np.asarray(found), expected)
    assert np.asarray(found, np.int64).dtype == np.int64


@pytest.fixture(scope="module")
def memory_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ids") / "file"


def test_streams_over_a_file_equal_those_over_an_array(folder: Path, text: Path) -> None:
    found = read([text])
    array = np.asarray(found.ids)
    ours, expected = Streams(found.ids, 7, 11), Streams(array, 7, 11)
    for _ in range(3 * expected.windows_per_epoch):
        for window, other in zip(ours.next(), expected.next(), strict=True):
            assert np.array_equal(window, other)


def test_all_of_unicode_needs_four_bytes_per_id(folder: Path, memory: Path) -> None:
    text = "".join(chr(c) for c in range(0x20, 0x11000) if not 0xD800 <= c < 0xE000)
    (memory / "text").write_bytes(text.encode())
    for found in (read([memory / "text"]), read([memory / "text"])):
        assert found.ids.dtype == np.uint32
        assert text_of(found) == text


# --- found again


def test_stored_ids_are_found_and_the_text_is_not_read_again(
    folder: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = read([text])
    monkeypatch.setattr(reading, "iter_symbols", unread)
    again = read([text])
    assert in_file(first)
    assert in_file(again)
    assert text_of(first) == text_of(again) == TEXT
    assert (again.vocabulary, again.sha256, again.names) == (first.vocabulary, first.sha256, first.names)
    with pytest.raises(AssertionError, match="was read"):
        read([text], encoding="utf-16")  # the same bytes in another encoding
    with pytest.raises(AssertionError, match="was read"):
        read([text], max_chars=10)


def test_a_short_text_is_in_memory_and_stores_no_file(folder: Path, memory: Path) -> None:
    (memory / "text").write_text(TEXT[:500])
    assert not in_file(read([memory / "text"]))
    assert not folder.exists()


@pytest.mark.parametrize("place", [0, 3, 16, 20, 30, 200, 1000, -1000, -33, -32, -1])
def test_a_corrupt_file_is_rebuilt(folder: Path, text: Path, place: int) -> None:
    read([text])
    (file,) = kept(folder)
    whole = file.read_bytes()
    damaged = bytearray(whole)
    damaged[place] ^= 1
    file.write_bytes(damaged)
    assert text_of(read([text])) == TEXT
    assert file.read_bytes() == whole


@pytest.mark.parametrize("length", [0, 10, 24, 100, 2000, -32, -1, +5])
def test_a_truncated_or_extended_file_is_rebuilt(folder: Path, text: Path, length: int) -> None:
    read([text])
    (file,) = kept(folder)
    whole = file.read_bytes()
    file.write_bytes(whole + b"12345" if length == 5 else whole[:length])
    assert text_of(read([text])) == TEXT
    assert file.read_bytes() == whole


def rewrite(path: Path, memory: Path) -> None:
    times = path.stat()
    path.write_bytes(TEXT.replace("7", "8").encode())
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def exchange(path: Path, memory: Path) -> None:
    times = path.stat()
    (memory / "other").write_bytes(TEXT.replace("7", "8").encode())
    os.utime(memory / "other", ns=(times.st_atime_ns, times.st_mtime_ns))
    os.replace(memory / "other", path)


@pytest.mark.parametrize("change", [rewrite, exchange])
def test_a_changed_text_is_read_again_even_if_its_size_and_time_are_the_same(
    folder: Path, text: Path, memory: Path, change: Callable[[Path, Path], None]
) -> None:
    first = read([text])
    change(text, memory)
    assert text_of(read([text])) == TEXT.replace("7", "8")
    assert text_of(first) == TEXT  # the previous view is still valid


def test_a_file_truncated_while_it_is_used_is_an_error(folder: Path, text: Path) -> None:
    found = read([text])
    os.truncate(kept(folder)[0], 500)
    with pytest.raises(CorpusError, match="cannot be read: the file was truncated"):
        np.asarray(found.ids)


def test_the_reading_of_a_long_text_is_reported_twice_and_of_a_short_one_once(folder: Path, text: Path) -> None:
    told: list[tuple[int, int | None]] = []
    read([text], report=lambda *now: told.append(now))
    first, second = ([now for now in told if (now[1] is None) == is_first] for is_first in (True, False))
    assert told == first + second
    for times in (first, second):
        assert [done for done, _ in times] == sorted({done for done, _ in times})
        assert times[-1][0] == len(TEXT)
    assert {total for _, total in second} == {len(TEXT)}
    told.clear()
    read([text], report=lambda *now: told.append(now))
    assert told == []  # its ids were found
    text.write_text("short", encoding="utf-8")
    read([text], report=lambda *now: told.append(now))
    assert told == [(5, None)]


# --- sources that cannot be read twice


def test_the_ids_of_a_pipe_are_stored_as_long_as_they_are_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = of_stdin(TEXT.encode(), monkeypatch)
    assert in_file(found)
    assert kept(folder) == []
    assert text_of(found) == TEXT


def test_a_named_pipe_and_a_small_gzip_file_can_be_long_texts(folder: Path, memory: Path) -> None:
    os.mkfifo(memory / "pipe")
    writer = threading.Thread(target=(memory / "pipe").write_bytes, args=(TEXT.encode(),))
    writer.start()
    assert text_of(read([memory / "pipe"])) == TEXT
    writer.join()
    (memory / "x.gz").write_bytes(gzip.compress(b"ab" * 5000))
    found = read([memory / "x.gz"])
    assert in_file(found)
    assert text_of(found) == "ab" * 5000
    assert kept(folder) == []


# --- a folder that cannot be used


def test_without_a_writable_folder_the_text_is_in_memory(
    folder: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.write_text("in the way")
    assert not in_file(read([text]))
    assert text_of(of_stdin(TEXT.encode(), monkeypatch)) == TEXT
    monkeypatch.setattr(reading, "max_chars_in_memory", lambda: 1000)
    refusals: tuple[Callable[[], object], ...] = (
        lambda: read([text]),
        lambda: of_stdin(TEXT.encode(), monkeypatch),
    )
    for refused in refusals:
        with pytest.raises(CorpusError) as caught:
            refused()
        assert str(caught.value).startswith(f"a text of more than 1000 characters cannot be stored in {folder}: ")
        assert str(caught.value).endswith("free some disk space, or set XDG_CACHE_HOME to another directory")


def test_a_full_disk_is_an_error_and_leaves_no_file(folder: Path, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(CorpusError, match=r"ids of the text, 0 MB, cannot be stored in .*: No space left on device"):
        read([text])
    assert kept(folder) == []
    with pytest.MonkeyPatch.context() as patch, open("/dev/full", "wb", buffering=0) as full:
        patch.setattr(id_file, "temporary_file", lambda: full)
        with pytest.raises(CorpusError, match=r"the text cannot be stored in .*: No space left on device"):
            of_stdin(TEXT.encode(), monkeypatch)


# --- a text to score


@pytest.mark.parametrize("boundary", [None, "; "])
@pytest.mark.parametrize("unknown", ["skip", "replace"])
def test_a_text_in_a_file_has_the_same_score_as_in_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch, boundary: str | None, unknown: Unknown
) -> None:
    vocabulary = Vocabulary.of(TEXT.replace("7", "") + "\x1e")
    vocabulary = vocabulary if boundary is None else vocabulary.with_boundary(boundary)
    config = ModelConfig(len(vocabulary), hidden=9, embedding=4, boundary=vocabulary.boundary_id)
    model = Model(config, vocabulary, random_weights(config))
    parts = [TEXT[k : k + 97] for k in range(0, len(TEXT), 97)]
    ids, foreign = model.encode(parts, unknown)
    assert isinstance(ids, StoredIds)
    assert kept(folder) == []  # the file is temporary
    dynamically = dynamic_evaluation.evaluate(config, model.weights, ids, DynamicConfig())
    scores = [model.evaluate(parts, unknown=unknown, exact=exact) for exact in (False, True)]
    chars = list(model.score_chars(parts, unknown=unknown, top=1))
    monkeypatch.setattr(corpus, "IN_MEMORY_CHARS", 10**6)
    held, also_foreign = model.encode(TEXT, unknown)
    assert isinstance(held, np.ndarray)
    assert np.array_equal(np.asarray(ids), held)
    assert foreign == also_foreign == TEXT.count("7")
    assert scores == [model.evaluate(TEXT, unknown=unknown, exact=exact) for exact in (False, True)]
    assert chars == list(model.score_chars(TEXT, unknown=unknown, top=1))
    again = dynamic_evaluation.evaluate(config, model.weights, held, DynamicConfig())
    assert dynamically[0] == again[0]


def test_a_long_text_to_score_is_in_memory_without_a_folder_and_refused_on_a_full_disk(folder: Path) -> None:
    vocabulary = Vocabulary.of(TEXT)
    with open("/dev/full", "wb", buffering=0) as full, pytest.MonkeyPatch.context() as patch:
        patch.setattr(id_file, "temporary_file", lambda: full)
        with pytest.raises(CorpusError, match=r"the ids of the text cannot be stored in .*: No space left on device"):
            corpus.encode_text(vocabulary, [TEXT])
    folder.write_text("in the way")
    ids, _ = corpus.encode_text(vocabulary, [TEXT, TEXT])
    assert isinstance(ids, np.ndarray)
    assert vocabulary.decode(ids) == TEXT * 2


def test_unknown_characters_are_counted_over_all_blocks_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownSymbols, match=r"2 different characters .*: 'c' × 3, 'd' × 1; choose"):
        corpus.encode_text(Vocabulary.of("ab"), ["abc", "abab", "dcc"])
    monkeypatch.setattr(vocabulary, "MAX_COUNTED", 100)
    with pytest.raises(UnknownSymbols, match=r"'c' × 51 in the first 102; choose"):
        corpus.encode_text(Vocabulary.of("ab"), itertools.repeat("ac"))


# --- a text that changes while it is read


def second_reading(monkeypatch: pytest.MonkeyPatch, change: Callable[[], object]) -> None:
    """Call `change` between the two readings of a long text."""
    iter_symbols, readings = reading.iter_symbols, itertools.count(1)

    def counted(*arguments: Any) -> Iterator[Block]:
        if next(readings) == 2:
            change()
        return iter_symbols(*arguments)

    monkeypatch.setattr(reading, "iter_symbols", counted)


def test_a_text_that_grows_is_read_up_to_its_first_length(
    folder: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second_reading(monkeypatch, lambda: text.write_bytes((TEXT + "new!").encode()))
    assert text_of(read([text])) == TEXT


@pytest.mark.parametrize("change", ["§" + TEXT[1:], TEXT.replace("7", "8"), TEXT[:600]])
def test_a_text_that_changes_between_the_readings_is_refused(
    folder: Path, text: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    second_reading(monkeypatch, lambda: text.write_bytes(change.encode()))
    with pytest.raises(CorpusError, match="changed while it was read"):
        read([text])
    assert kept(folder) == []


# --- limits of the disk and memory


def test_the_most_recently_used_files_are_kept_and_abandoned_ones_removed(folder: Path, memory: Path) -> None:
    files = []
    for n in range(id_file.MAX_FILES + 2):
        path = memory / f"text{n}"
        path.write_text(TEXT + str(n))
        before = set(kept(folder)) if folder.exists() else set()
        assert text_of(read([path])) == TEXT + str(n)
        (new,) = set(kept(folder)) - before
        files.append(new)
        os.utime(new, (n, n))
        if n == id_file.MAX_FILES - 1:
            assert in_file(read([memory / "text0"]))  # it is now the most recently used
    assert files[0].exists()
    assert [file.exists() for file in files[1:4]] == [False, False, True]
    assert len(kept(folder)) == id_file.MAX_FILES
    old, young = folder / ".x.ids.1.2.tmp", folder / ".y.ids.1.2.tmp"
    for path, age in ((old, 2 * id_file.ABANDONED_SECONDS), (young, 60)):
        path.write_bytes(b"x")
        now = path.stat().st_mtime
        os.utime(path, (now - age, now - age))
    (memory / "last").write_text(TEXT + "last")
    read([memory / "last"])
    assert not old.exists()
    assert young.exists()


@pytest.mark.parametrize("size", [60 << 20, pytest.param(1 << 30, marks=pytest.mark.slow)])
def test_a_long_text_is_read_in_little_memory(memory: Path, forks: Forks, size: int) -> None:
    path = memory / "x"
    with path.open("wb") as file:
        for _ in range(64):
            file.write(b"abcd" * (size // 256))
    error, grown, _ = forks.call("measure_read", str(path))
    assert error is None
    assert grown < corpus.IN_MEMORY_CHARS + (32 << 20)
