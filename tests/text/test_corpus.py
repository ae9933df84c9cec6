"""Texts are read exactly or refused with one line: the rows from R60 on in docs/reliability.md."""

from __future__ import annotations

import bz2
import contextlib
import dataclasses
import gzip
import hashlib
import io
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import charlstm
from charlstm.errors import CharlstmError, CorpusError, UnknownSymbols, UsageError
from charlstm.text import datasets, reading
from charlstm.text.corpus import Corpus, read
from charlstm.text.reading import TextFormat, read_text
from charlstm.text.vocabulary import Vocabulary
from tests.helpers.faults import HANG_SECONDS, Forks

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
EVIL = "\ufeffA\r\nb\rc\x00\u2028\u2029é e\u0301 👩‍👩‍👧 \U0010ffff\x1b[0m\n"


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    warm = Forks()
    yield warm
    warm.close()


@pytest.fixture(scope="module")
def data_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data") / "file"


def text_of(found: Corpus) -> str:
    return found.vocabulary.decode(found.ids)


def put(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


# --- the text is read exactly


@pytest.mark.fault("R65")
def test_every_character_of_a_file_is_read(memory: Path) -> None:
    path = put(memory / "x", EVIL.encode())
    found = read([path])
    assert text_of(found) == read_text([str(path)]) == EVIL
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.names == (str(path),)
    assert len(found) == len(EVIL)


@pytest.mark.fault("R64")
@pytest.mark.fault("R65")
@given(TEXTS, st.integers(1, 7))
def test_any_text_in_blocks_of_any_size_is_read(text: str, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "BLOCK_BYTES", block)
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
        found = read(["-"])
    assert text_of(found) == text
    assert found.sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert found.vocabulary.symbols == "".join(sorted(set(text)))


@pytest.mark.fault("R64")
@pytest.mark.parametrize("block", range(1, 8))
def test_a_character_across_a_block_boundary_is_intact(
    memory: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(reading, "BLOCK_BYTES", block)
    text = "😀é☃a" * 20
    assert text_of(read([put(memory / "x", text.encode())])) == text
    if block > 1:  # gzip is recognised by the first two bytes
        assert text_of(read([put(memory / "x.gz", gzip.compress(text.encode()))])) == text
    assert text_of(read([put(memory / "x16", text.encode("utf-16"))], encoding="utf-16")) == text


def test_sources_are_joined_in_order_with_nothing_between_them(memory: Path) -> None:
    one, two = put(memory / "1", b"one"), put(memory / "2", b"two")
    found = read([two, str(one), two])
    assert text_of(found) == "twoonetwo"
    assert found.sha256 == hashlib.sha256(b"twoonetwo").hexdigest()
    assert found.names == (str(two), str(one), str(two))
    assert text_of(read([put(memory / "empty", b""), one])) == "one"


def test_a_directory_is_read_as_its_sorted_files_without_hidden_ones(memory: Path) -> None:
    for name in ("b/2", "b/10", "a", "c/d/e", ".git/x", "b/.hidden", "z.gz"):
        (memory / name).parent.mkdir(parents=True, exist_ok=True)
        data = f"<{name}>".encode()
        put(memory / name, gzip.compress(data) if name.endswith("gz") else data)
    (memory / "link").symlink_to(memory / "a")
    assert read_text([memory]) == "<a><b/10><b/2><c/d/e><a><z.gz>"


def test_gzip_is_recognised_by_its_content_and_its_members_are_joined(memory: Path) -> None:
    text = EVIL * 100_000
    data = text.encode()
    path = put(memory / "no-extension", gzip.compress(data[:1000]) + gzip.compress(data[1000:]) + gzip.compress(b""))
    found = read([path])
    assert text_of(found) == text
    assert found.sha256 == hashlib.sha256(data).hexdigest()
    assert text_of(read([put(memory / "plain.gz", b"no gzip")])) == "no gzip"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "latin-1", "cp1252", "shift_jis", "gb18030", "utf-8-sig"])
def test_other_encodings_are_read_and_hashed_as_utf_8(memory: Path, encoding: str) -> None:
    text = "Grüße, élève\r\n" if encoding in ("latin-1", "cp1252") else "日本語\r\n"
    found = read([put(memory / "x", text.encode(encoding))], encoding=encoding)
    assert text_of(found) == text
    assert found.sha256 == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.fault("R51")
def test_stdin_is_read_as_bytes_in_every_locale(memory: Path) -> None:
    code = "from charlstm.text.corpus import read; c = read(['-']); print(c.sha256, len(c), c.names)"
    environment = {**os.environ, "LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    data = (EVIL * 30_000).encode()
    process = subprocess.run(
        [sys.executable, "-c", code],
        input=data,
        capture_output=True,
        env=environment,
        cwd=Path(charlstm.__file__).parents[1],
        check=True,
    )
    assert process.stdout.decode() == f"{hashlib.sha256(data).hexdigest()} {30_000 * len(EVIL)} ('-',)\n"
    assert process.stderr == b""


def test_a_non_blocking_stdin_is_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)

    def write() -> None:
        for _ in range(20):
            time.sleep(0.002)
            os.write(write_end, b"0123456789")
        os.close(write_end)

    writer = threading.Thread(target=write)
    with os.fdopen(read_end) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        writer.start()
        assert read_text(["-"]) == "0123456789" * 20
        writer.join()


def test_a_named_pipe_is_read(memory: Path) -> None:
    pipe = memory / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(EVIL.encode(),))
    writer.start()
    assert read_text([pipe]) == EVIL
    writer.join()


# --- named corpora


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_named_corpus_is_read_by_its_name_with_any_encoding_of_files(memory: Path, encoding: str) -> None:
    text = datasets.generate("python:docs")
    found = read(["python:docs"], encoding=encoding)
    assert text_of(found) == text
    assert found.names == ("python:docs",)
    path = put(memory / "more", "more".encode(encoding))
    assert read_text(["python:docs", path], TextFormat(encoding)) == text + "more"


def test_a_file_has_priority_over_the_corpus_of_the_same_name(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(memory)
    for name in ("python:docs", "text8"):
        put(memory / name, b"mine")
        assert read_text([name]) == "mine"


def test_a_corpus_from_the_network_is_read_only_after_its_download(
    memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "cache_folder", lambda: memory / "cache")
    monkeypatch.chdir(memory)
    assert message("names") == "names: not downloaded yet; download it first: charlstm corpus names > names.txt"
    assert not (memory / "cache").exists()
    data = b"anna\nbert\n"
    source = dataclasses.replace(datasets.DOWNLOADS["names"], bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    monkeypatch.setattr(datasets, "DOWNLOADS", {"names": source})
    (memory / "cache").mkdir()
    path = put(memory / "cache" / datasets.file_of("names", None).name, data)
    assert read_text(["names"]) == data.decode()
    for changed in (b"anna\nbart\n", b"anna\n"):
        put(path, changed)
        assert message("names") == (
            f"names: {path} was changed after the download; download it again: charlstm corpus names > names.txt"
        )
    put(path, data)
    assert read_text(["names"]) == data.decode()


def test_the_limit_applies_to_a_named_corpus() -> None:
    assert "longer than 1000 characters" in message("python:docs", max_chars=1000)


# --- invalid sources


def message(*sources: Any, **options: Any) -> str:
    """Return the message of the error for these sources, which is one line."""
    with pytest.raises(CorpusError) as caught:
        read(sources, **options)
    with pytest.raises(CorpusError):
        read_text(sources, TextFormat(**options))
    text = str(caught.value)
    assert text.isprintable()
    return text


@pytest.mark.fault("R60")
def test_a_missing_or_empty_source_is_named(memory: Path) -> None:
    empty, folder = put(memory / "empty", b""), memory / "folder"
    folder.mkdir()
    assert message(memory / "missing") == f"{memory / 'missing'}: no such file"
    assert message(empty / "x") == f"{empty / 'x'}: Not a directory"
    assert "is empty" in message(empty)
    assert "is empty" in message(put(memory / "x.gz", gzip.compress(b"")))
    assert "contains no file" in message(folder)
    assert "is empty" in message("/dev/null")
    assert "is empty" in message()
    assert "null" in message("a\0b")


@pytest.mark.fault("R60")
def test_a_source_without_read_permission_is_named(memory: Path, forks: Forks) -> None:
    path = put(memory / "secret", b"x")
    path.chmod(0)
    assert forks.call("read_as_nobody", str(path)) == f"{path}: Permission denied"
    (memory / "closed").mkdir(mode=0)
    assert "Permission denied" in forks.call("read_as_nobody", str(memory))


@pytest.mark.fault("R60")
@pytest.mark.parametrize("stdin", [None, "closed"])
def test_a_missing_stdin_is_named(monkeypatch: pytest.MonkeyPatch, stdin: Any) -> None:
    stream = io.TextIOWrapper(io.BytesIO(b"x"))
    stream.close()
    monkeypatch.setattr(sys, "stdin", stream if stdin else None)
    assert "stdin" in message("-")


@pytest.mark.fault("R63")
@pytest.mark.parametrize("block", [7, 64])
def test_an_invalid_byte_is_reported_with_its_offset_and_line(
    memory: Path, monkeypatch: pytest.MonkeyPatch, block: int
) -> None:
    monkeypatch.setattr(reading, "BLOCK_BYTES", block)
    good = ("é\n☃😀ab\n" * 20).encode()
    starts = [n for n, byte in enumerate(good) if byte & 0xC0 != 0x80]  # where a character begins
    for place in [*starts, len(good)]:
        data = good[:place] + b"\xff" + good[place:]
        found = message(put(memory / "x", data))
        line = data[:place].count(b"\n") + 1
        assert found == (
            f"{memory / 'x'}: byte 0xff at offset {place} (line {line}) is not UTF-8;"
            " specify the encoding of the text, such as encoding latin-1, or correct the text"
        )


@pytest.mark.fault("R63")
@given(st.binary(min_size=1), st.integers(1, 9))
def test_any_bytes_are_decoded_as_by_python_or_refused_at_the_same_offset(
    data_file: Path, data: bytes, block: int
) -> None:
    """Compare with bytes.decode, which decodes all bytes at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "BLOCK_BYTES", block)
        data_file.write_bytes(data)
        try:
            expected: str | int = data.decode()
        except UnicodeDecodeError as error:
            expected = error.start
        if data.startswith(b"\x1f\x8b"):
            return
        if isinstance(expected, str):
            assert read_text([data_file]) == expected
        else:
            assert f"byte 0x{data[expected]:02x} at offset {expected} " in message(data_file)


@pytest.mark.fault("R63")
def test_an_incomplete_character_at_the_end_is_refused(memory: Path) -> None:
    assert "byte 0xf0 at offset 3 (line 2)" in message(put(memory / "x", b"ab\n\xf0\x9f\x98"))


@pytest.mark.fault("R63")
def test_surrogates_and_overlong_forms_are_refused(memory: Path) -> None:
    for data in (b"\xed\xa0\x80", b"\xc0\x80", b"\xf4\x90\x80\x80", b"\xe0\x80\xaf"):
        assert "offset 0 (line 1)" in message(put(memory / "x", data))


@pytest.mark.fault("R66")
@pytest.mark.parametrize(
    ("encoding", "hint"), [("utf-16", "utf-16"), ("utf-32", "utf-32"), ("latin-1", "latin-1"), ("cp1252", "latin-1")]
)
def test_a_text_in_another_encoding_is_refused_with_a_usable_hint(memory: Path, encoding: str, hint: str) -> None:
    path = put(memory / "x", "Grüße aus Köln\n".encode(encoding))
    assert f"encoding {hint}" in message(path)
    assert read_text([path], TextFormat(hint)) == "Grüße aus Köln\n"


@pytest.mark.parametrize("encoding", ["klingon", "hex", "rot13", "", "utf-8\0", "undefined", "\x1b[31m"])
def test_an_invalid_encoding_is_wrong_usage(memory: Path, encoding: str) -> None:
    with pytest.raises(UsageError, match=r"^encoding ") as caught:
        read([put(memory / "x", b"text")], encoding=encoding)
    assert str(caught.value).isprintable()


def test_an_encoding_that_decodes_to_surrogates_is_refused(memory: Path) -> None:
    assert "the text is not" in message(put(memory / "x", b"\\ud800"), encoding="raw_unicode_escape")


@pytest.mark.fault("R66")
def test_corrupt_gzip_data_is_refused(memory: Path) -> None:
    rng = random.Random(1)
    data = gzip.compress(rng.randbytes(3000).hex().encode())
    for length in range(2, len(data), 7):
        assert "gzip" in message(put(memory / "x", data[:length]))
    assert "gzip" in message(put(memory / "x", data[:-8] + b"\0" * 8))  # wrong checksum
    assert "gzip" in message(put(memory / "x", data + b"garbage"))
    assert "0x" in message(put(memory / "x", bz2.compress(b"text")))


@pytest.mark.fault("R87")
def test_control_characters_in_names_are_escaped(memory: Path) -> None:
    name = "\x1b]0;evil\x07\n"
    path = put(memory / name, b"text")
    assert read([path]).names == (str(memory / r"\x1b]0;evil\x07\x0a"),)
    message(memory / (name + "missing"))
    path.write_bytes(b"\xff")
    message(path)


# --- endless sources


@pytest.mark.fault("R69")
@pytest.mark.parametrize("device", ["/dev/zero", "/dev/urandom", "/dev/random"])
def test_a_device_is_refused(device: str) -> None:
    assert message(device) == f"{device}: is a device; give a text file"


@pytest.mark.fault("R69")
def test_an_endless_pipe_is_read_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless(io.RawIOBase):
        def readinto(self, buffer: Any) -> int:
            buffer[:] = b"y" * len(buffer)
            return len(buffer)

        def readable(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Endless())))
    assert "longer than 5000000 characters; raise max_chars" in message("-", max_chars=5_000_000)


@pytest.mark.fault("R69")
def test_a_huge_sparse_file_is_refused_before_it_is_read(memory: Path, forks: Forks) -> None:
    path = put(memory / "x", b"text")
    os.truncate(path, 1 << 40)
    error, grown, seconds = forks.call("measure_read", str(path))
    assert "raise max_chars" in error
    assert grown < 8 << 20
    assert seconds < HANG_SECONDS


@pytest.mark.fault("R69")
def test_a_gzip_bomb_is_refused_in_little_memory(memory: Path, forks: Forks) -> None:
    bomb = put(memory / "x", gzip.compress(bytes(100 << 20), 1))
    error, grown, _ = forks.call("measure_read", str(bomb), 1_000_000)
    assert "longer than 1000000" in error
    assert grown < 12 << 20


@pytest.mark.fault("R69")
@pytest.mark.parametrize(("given_chars", "limit", "fits"), [(10, 10, True), (11, 10, False), (1, 1, True)])
def test_the_limit_applies_to_the_characters_of_all_sources(
    memory: Path, given_chars: int, limit: int, fits: bool
) -> None:
    half = put(memory / "x", "é".encode() * (given_chars // 2))
    rest = put(memory / "y", "é".encode() * (given_chars - given_chars // 2))
    if fits:
        assert len(read([half, rest], max_chars=limit)) == given_chars
    else:
        assert f"longer than {limit} characters" in message(half, rest, max_chars=limit)


@pytest.mark.fault("R67")
def test_a_text_of_all_of_unicode_is_read(memory: Path) -> None:
    text = "".join(chr(c) for c in range(sys.maxunicode + 1) if not 0xD800 <= c < 0xE000)
    found = read([put(memory / "x", text.encode())])
    assert len(found.vocabulary) == 1_112_064
    assert text_of(found) == text


@pytest.mark.fault("R68")
@pytest.mark.parametrize("unit", ["abcd", "日本語", "a😀"])
@pytest.mark.parametrize("size", [20 << 20, pytest.param(1 << 30, marks=pytest.mark.slow)])
def test_one_long_line_needs_at_most_six_bytes_per_character(memory: Path, forks: Forks, unit: str, size: int) -> None:
    path = memory / "x"
    with path.open("wb") as file:
        piece = unit.encode() * (size // 64 // len(unit.encode()))
        for _ in range(64):
            file.write(piece)
    chars = path.stat().st_size // len(unit.encode()) * len(unit)
    error, grown, seconds = forks.call("measure_read", str(path))
    assert error is None
    assert grown < 6 * chars + (16 << 20)
    assert seconds < HANG_SECONDS + size / (1 << 20)


@pytest.mark.fault("R70")
def test_a_file_truncated_while_it_is_read_ends_early_and_a_later_truncation_has_no_effect(
    memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(memory / "x", b"0123456789" * 1000)
    monkeypatch.setattr(reading, "BLOCK_BYTES", 4000)
    found = read([path], report=lambda done, total: os.truncate(path, 0))  # it is called after each block
    assert 4000 <= len(found) <= 8192 + 4000
    again = read([put(path, b"0123456789" * 1000)])
    os.truncate(path, 0)
    assert text_of(again) == "0123456789" * 1000


# --- split


@pytest.mark.fault("R72")
@pytest.mark.parametrize("n", range(2, 60))
def test_the_last_share_is_held_out_and_no_character_is_lost(n: int) -> None:
    ids = np.arange(n, dtype=np.uint8)
    found = Corpus(ids, Vocabulary("a"), "", ())
    for share in (0.001, 0.1, 0.5, 0.9):
        if int(n * (1 - share)) < 2 and n - int(n * (1 - share)) >= 2:
            with pytest.raises(CorpusError, match="2 or more"):
                found.split(share)
            continue
        train, valid = found.split(share)
        assert np.array_equal(np.concatenate([train, valid]), ids)
        assert len(train) >= 2
        assert len(valid) == 0 or len(valid) >= 2
        assert len(valid) == n - int(n * (1 - share)) or len(train) == n
        assert np.shares_memory(np.asarray(train), ids)


@pytest.mark.fault("R61")
def test_a_text_of_one_character_is_too_short_for_training() -> None:
    with pytest.raises(CorpusError, match="1 char"):
        Corpus(np.zeros(1, dtype=np.uint8), Vocabulary("a"), "", ()).split(0.1)


def test_the_validation_tenth_is_that_of_nanogpt() -> None:
    """The training part has int(0.9 · n) characters, as in nanoGPT, so that results can be compared."""
    train, valid = Corpus(np.zeros(1_115_394, dtype=np.uint8), Vocabulary("a"), "", ()).split(0.1)
    assert (len(train), len(valid)) == (1_003_854, 111_540)


@pytest.mark.fault("R72")
def test_the_vocabulary_is_that_of_the_whole_text(memory: Path) -> None:
    found = read([put(memory / "x", b"a" * 90 + b"only here")])
    _, valid = found.split(0.1)
    assert found.vocabulary.decode(valid) == "aonly here"


# --- random bytes


class OneLine(Exception):
    """An error whose message is one line that is safe to print."""


@contextlib.contextmanager
def one_line() -> Iterator[None]:
    try:
        yield
    except CharlstmError as error:
        if str(error).isprintable():
            raise OneLine from error
        raise


def mutate(data: bytes, rng: random.Random) -> bytes:
    mutant = bytearray(data)
    for _ in range(rng.choice((0, 1, 1, 2, 9))):
        place = rng.randrange(len(mutant) + 1)
        mutant[place : place + rng.choice((0, 1, 5))] = rng.randbytes(rng.choice((0, 1, 1, 4)))
    return bytes(mutant)


@pytest.mark.fault("R63")
@pytest.mark.fault("R66")
@pytest.mark.parametrize("count", [1000, pytest.param(200_000, marks=pytest.mark.slow)])
def test_any_bytes_are_a_text_or_an_error_of_one_line(
    memory: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    monkeypatch.setattr(reading, "BLOCK_BYTES", 16)
    rng, path, texts = random.Random(6), memory / "x", 0
    originals = [EVIL.encode(), gzip.compress(EVIL.encode() * 9), EVIL.encode("utf-16"), bytes(range(256))]
    for _ in range(count):
        path.write_bytes(mutate(rng.choice(originals), rng))
        encoding = rng.choice(("utf-8", "utf-8", "utf-16", "latin-1", "cp932", "utf-7", "punycode"))
        with contextlib.suppress(OneLine), one_line():
            found = read([path], encoding=encoding, max_chars=2000)
            texts += 1
            assert len(found) > 0
            assert len(found.ids) == len(text_of(found))
    assert count / 20 < texts < count


@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1), more=st.text("abé日", min_size=1))
def test_a_text_recoded_in_another_vocabulary_is_the_same_text(text: str, more: str) -> None:
    own, larger = Vocabulary.of(text), Vocabulary.of(text + more)
    told = Corpus(own.encode(text), own, "", ("text",)).recoded(larger)
    assert larger.decode(told.ids) == text
    assert (told.vocabulary, told.ids.dtype, told.names) == (larger, larger.dtype, ("text",))
    if len(larger) > len(own):
        with pytest.raises(UnknownSymbols):
            Corpus(larger.encode(text + more), larger, "", ()).recoded(own)
