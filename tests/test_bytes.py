"""Models of bytes: any file in, well-formed UTF-8 out, or with --raw the bytes as they are."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import Done, here, model_file
from hypothesis import given
from hypothesis import strategies as st
from models import equations, random_weights, surprises

import charlstm
from charlstm import checkpoint, corpus, stored
from charlstm.checkpoint import Checkpoint
from charlstm.cli.surprises import characters
from charlstm.config import ModelConfig, TrainingOptions
from charlstm.errors import CharlstmError, ResumeError, UnknownSymbols, UsageError
from charlstm.library import Model
from charlstm.surprise import CharScore
from charlstm.training import Training
from charlstm.vocab import ByteVocabulary, Vocabulary

CONFIG = ModelConfig(256, hidden=12, layers=1, embedding=5)
NOT_UTF8 = bytes(range(256)) + "Ж€😀".encode() + b"\xe2\x82\x00\xf0\x9f"
ONCE = {"steps": 3, "hidden": 8, "embedding": 4, "batch_size": 4, "seq_len": 8, "sample_chars": 20, "validations": 1}


def model(facts: dict[str, object] | None = None, scale: float = 3.0) -> Model:
    return Model(CONFIG, ByteVocabulary(), random_weights(CONFIG, scale=scale), facts)


def saved(path: Path) -> Path:
    checkpoint.save(path, Checkpoint(CONFIG, ByteVocabulary(), random_weights(CONFIG, scale=3.0)))
    return path


@given(st.binary(max_size=40))
def test_every_sequence_of_bytes_is_a_text_and_back(data: bytes) -> None:
    vocabulary = ByteVocabulary()
    ids = np.frombuffer(data, np.uint8)
    text = vocabulary.decode(ids)
    assert vocabulary.encode(text).tolist() == list(data)
    assert text == data.decode("utf-8", "surrogateescape")


@given(st.binary(max_size=12))
def test_unfinished_is_what_a_decoder_would_wait_on(data: bytes) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(data)
    assert ByteVocabulary().unfinished(np.frombuffer(data, np.uint8)) == len(decoder.getstate()[0])


def test_a_symbol_is_a_byte_and_its_own_id() -> None:
    vocabulary = ByteVocabulary()
    assert len(vocabulary) == len(set(vocabulary.symbols)) == 256
    assert [vocabulary.encode(symbol).tolist() for symbol in vocabulary.symbols] == [[k] for k in range(256)]
    assert vocabulary.encode("é").tolist() == [0xC3, 0xA9]
    assert vocabulary == Vocabulary.from_json(vocabulary.to_json()) != Vocabulary.of("ab")


def test_only_a_surrogate_that_is_no_byte_is_unknown() -> None:
    vocabulary = ByteVocabulary()
    with pytest.raises(UnknownSymbols, match=r"'\\ud800' × 2"):
        vocabulary.encode("a\ud800\ud800")
    assert vocabulary.encode_known("a\ud800b", "skip") == (pytest.approx([97, 98]), {"\ud800": 1})
    assert vocabulary.encode_known("\ud800", "replace")[0].tolist() == list("\ufffd".encode())


@pytest.mark.parametrize("values", [{"kind": "bytes", "symbols": "ab"}, {"kind": "words"}, {"kind": ["bytes"]}])
def test_another_description_of_bytes_is_refused(values: object) -> None:
    with pytest.raises(ValueError, match="vocabulary"):
        Vocabulary.from_json(values)


def test_bytes_are_read_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a").write_bytes(NOT_UTF8)
    (folder / "b.gz").write_bytes(gzip.compress(b"\xff\r\n"))
    found = charlstm.read([folder], symbols="bytes")
    assert np.asarray(found.ids).tobytes() == NOT_UTF8 + b"\xff\r\n"
    assert found.sha256 == hashlib.sha256(NOT_UTF8 + b"\xff\r\n").hexdigest()
    assert found.ids.dtype == np.uint8
    assert corpus.read_text([folder], symbols="bytes").encode("utf-8", "surrogateescape") == NOT_UTF8 + b"\xff\r\n"
    with pytest.raises(CharlstmError, match="UTF-8"):
        charlstm.read([folder])


def test_bytes_of_a_named_corpus_and_an_encoding() -> None:
    read = charlstm.read(["python:docs"])
    as_bytes = charlstm.read(read.names, symbols="bytes")
    assert as_bytes.sha256 == read.sha256
    with pytest.raises(UsageError, match="leave out --encoding"):
        charlstm.read(["x"], encoding="latin-1", symbols="bytes")


def test_ids_of_long_bytes_lie_in_a_file_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "folder", lambda: tmp_path / "ids")
    monkeypatch.setattr(corpus, "IN_MEMORY_CHARS", 100)
    monkeypatch.setattr(corpus, "LOOKED_UP_BYTES", 1)
    monkeypatch.setattr(corpus, "BLOCK_BYTES", 64)
    text = tmp_path / "text"
    text.write_text("жук " * 100)
    for _ in range(2):  # written, and found again
        in_bytes, in_chars = charlstm.read([text], symbols="bytes"), charlstm.read([text])
        assert isinstance(in_bytes.ids, stored.StoredIds)
        assert (len(in_bytes), len(in_chars)) == (700, 400)
        assert np.asarray(in_bytes.ids).tobytes() == text.read_bytes()
        assert in_chars.vocabulary.decode(in_chars.ids) == text.read_text()


def test_a_pipe_of_bytes_is_kept_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "folder", lambda: tmp_path / "ids")
    monkeypatch.setattr(corpus, "IN_MEMORY_CHARS", 10)
    (tmp_path / "t.bin").write_bytes(NOT_UTF8)  # small: read as if it could not be read twice
    assert np.asarray(charlstm.read([tmp_path / "t.bin"], symbols="bytes").ids).tobytes() == NOT_UTF8


def test_the_score_is_that_of_the_equations_on_the_bytes() -> None:
    text = "Жук и €\udcff."
    ids = np.array(list(text.encode("utf-8", "surrogateescape")))
    logits, _ = equations(CONFIG, model().weights, ids[:-1, None], np.zeros(CONFIG.state_shape(1)))
    score = model().evaluate(text)
    assert score.chars == len(ids) == 15
    assert score.nats_per_char == pytest.approx(surprises(logits, ids[1:, None]).mean(), abs=1e-5)


def test_eval_reports_per_byte(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path, text = saved(tmp_path / "m"), tmp_path / "t.bin"
    text.write_bytes(NOT_UTF8)
    done = here(capfd, "eval", text, "-c", path)
    assert done.status == 0, done.err
    assert re.search(rf"^bits per byte .*\n.*\n.*\nbytes +{len(NOT_UTF8)}$", done.text, re.M)
    assert "per character" not in done.text
    values = json.loads(here(capfd, "eval", text, "-c", path, "--json").out)
    assert (values["unit"], values["chars"]) == ("byte", len(NOT_UTF8))
    bits = [float(row.split("\t")[0]) for row in here(capfd, "eval", text, "-c", path, "--per-char").text.splitlines()]
    assert np.mean(bits) == pytest.approx(values["bits_per_char"], abs=1e-4)
    in_chars = model_file(tmp_path / "chars")
    (tmp_path / "t").write_text("abc")
    assert json.loads(here(capfd, "eval", tmp_path / "t", "-c", in_chars, "--json").out)["unit"] == "char"
    refused = here(capfd, "eval", text, "-c", path, "--against", in_chars)
    assert refused.status
    assert "bytes" in refused.err
    assert refused.err.count("\n") == 1
    refused = here(capfd, "eval", text, "-c", path, "--encoding", "latin-1")
    assert refused.status
    assert "leave out --encoding" in refused.err


def test_rows_of_lines_and_bytes_are_well_formed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path, text = saved(tmp_path / "m"), tmp_path / "t"
    text.write_bytes(b"a\xff\xc3\xa9\n")
    lines = here(capfd, "eval", text, "-c", path, "--per-line").text
    assert lines.split("\t")[1:] == ["5", "1", "a\ufffdé\n"]
    chars = here(capfd, "eval", text, "-c", path, "--per-char", "--top", "1").text
    assert [row.split("\t")[2] for row in chars.splitlines()] == [r"\xff", r"\xc3", r"\xa9", r"\n"]
    heat = here(capfd, "eval", text, "-c", path, "--heat").text
    assert re.sub(r"\x1b\[[0-9;]*m", "", heat).replace("↵", "") == "a\\xffé\n"


def test_heat_gives_a_character_the_bits_of_its_bytes() -> None:
    symbols = ByteVocabulary().decode(np.array([0xC3])), [CharScore(2, "\udca9", 1.5), CharScore(3, "b", 4.0)]
    assert list(characters(*symbols)) == [("é", 1.5), ("b", 4.0)]
    euro = [
        CharScore(k, char, bits) for k, (char, bits) in enumerate([("\udce2", 1.0), ("\udc82", 2.0), ("\udcac", 4.0)])
    ]
    assert list(characters("a", euro)) == [("a", 0.0), ("€", 7.0)]


@pytest.mark.parametrize("seed", range(8))
def test_what_is_drawn_is_well_formed_and_the_same_however_it_is_cut(seed: int) -> None:
    drawn = model()
    raw = drawn.sample(length=200, temperature=1.0, seed=seed, raw=True).encode("utf-8", "surrogateescape")
    assert len(raw) == 200
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    expected = re.sub("[\ud800-\udfff]", "\ufffd", decoder.decode(raw))  # and what it still holds is left out
    assert drawn.sample(length=200, temperature=1.0, seed=seed) == expected
    assert next(iter(drawn.samples(2, length=200, temperature=1.0, seed=seed))) == expected
    assert "\ufffd" in expected  # a model that knows nothing: the test would notice if nothing were replaced


def test_a_text_goes_on_in_the_middle_of_a_character() -> None:
    """The euro sign, and nothing else, in pieces of one byte."""
    weights = {name: np.zeros_like(array) for name, array in model().weights.items()}
    for byte, following in ((0xE2, 0x82), (0x82, 0xAC), (0xAC, 0xE2)):  # what comes next depends on the last byte alone
        weights["embedding.weight"][byte, byte % 5] = 9
        weights["recurrence.weight_ih_l0"][2 * 12 + byte % 5, byte % 5] = 9  # g
        weights["projection.weight"][following, byte % 5] = 99
    assert {0xE2 % 5, 0x82 % 5, 0xAC % 5} == {1, 0, 2}
    weights["recurrence.bias_ih_l0"][12:24] = -99  # forgets all
    weights["recurrence.bias_ih_l0"][:12] = weights["recurrence.bias_ih_l0"][36:] = 99
    euro = Model(CONFIG, ByteVocabulary(), weights)
    assert euro.sample("€", 8, temperature=0) == "€€"
    stream = euro.stream("€", 8, temperature=0)
    assert list(stream) == ["€", "€"]  # never a part of one
    assert euro.sample(length=4, temperature=0, context=stream.context) == "€"  # what was left out comes again
    (text,) = euro.draw(replace(charlstm.SamplingConfig(), prime="€", length=8, temperature=0))
    assert (text.text, len(text.symbols)) == ("€€", 6)
    assert euro.sample(length=3, temperature=0, context=euro.after(text)) == "€"
    assert euro.sample("€", 20, temperature=0, stop=("€€€",), keep_stop=True) == "€€€"


def test_sample_writes_whole_characters_and_with_raw_every_byte(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path / "m")
    shown = here(capfd, "sample", "-c", path, "-n", 300, "--seed", 1, "-t", 1).out
    assert "\ufffd" in shown.decode()  # strict
    values = json.loads(here(capfd, "sample", "-c", path, "-n", 30, "--seed", 1, "-t", 1, "--json").out)
    assert values["unit"] == "byte"
    assert 26 < values["chars"] <= 30
    assert values["bits_per_char"] == pytest.approx(-values["log_probability"] / math.log(2) / values["chars"])


def test_to_ban_a_part_of_a_character_is_refused() -> None:
    with pytest.raises(UsageError, match="ASCII"):
        model().sample("a", 3, ban="é")
    assert set(model().sample("a", 50, only="xy")) == {"x", "y"}


def test_training_on_bytes_resumes_and_evaluates(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text, run = tmp_path / "t.bin", tmp_path / "run"
    text.write_bytes(NOT_UTF8 * 3)
    read = charlstm.read([text], symbols="bytes")
    list(Training.start(read, run, TrainingOptions(**ONCE)).events())  # type: ignore[arg-type]
    assert checkpoint.load(run / "last.safetensors").vocabulary == ByteVocabulary()
    assert 'symbols = "bytes"' in (run / "config.toml").read_text()
    resumed = here(capfd, "train", text, "-o", run, "--resume", "--steps", 5)
    assert resumed.status == 0
    assert "bits per byte" in resumed.err
    assert "bytes, 256 distinct" in resumed.err
    score = charlstm.load(run).evaluate()
    assert score.chars == len(read.split(0.1)[1])
    info = here(capfd, "info", run).text
    assert "all 256 bytes" in info
    assert "bits per byte" in info
    assert json.loads(here(capfd, "info", run, "--json").out)["vocabulary"] is None


def test_what_goes_on_with_a_model_reads_texts_as_the_model_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.bin").write_bytes(NOT_UTF8 * 3)
    Path("t.txt").write_text("some words " * 30)
    words = ["--hidden", 8, "--embedding", 4, "--batch-size", 4, "--seq-len", 8, "--threads", 1, "-q"]

    def train(text: str, *arguments: object) -> Done:
        return here(capfd, "train", text, *words, "--steps", 3, *arguments)

    def stdin(data: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))

    assert train("t.bin", "--symbols", "bytes").status == train("t.txt", "-o", "checkpoints/chars").status == 0
    for text, run in (("t.bin", "t"), ("t.txt", "chars")):
        assert train(text, "--resume", "--steps", 5).status == 0
        assert checkpoint.load(f"checkpoints/{run}/last.safetensors").step == 5
    assert train("t.txt", "--from", "checkpoints/t", "--valid", "t.bin", "-o", "tuned").status == 0
    assert checkpoint.load("tuned/last.safetensors").vocabulary == ByteVocabulary()
    assert train("t.txt", "--resume", "-o", "tuned", "--valid", "t.bin", "--steps", 4).status == 0
    stdin(NOT_UTF8 * 3)
    assert train("-", "--resume", "-o", "checkpoints/t", "--steps", 6).status == 0
    refused = train("t.txt", "--from", "checkpoints/t", "--symbols", "chars", "-o", "no")
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert "bytes and characters do not go together" in refused.err
    stdin(NOT_UTF8)  # the newest run is of bytes, and this text is of none
    refused = train("-", "--resume")
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert "-o" in refused.err
    stdin(b"some words " * 30)
    assert train("-", "--resume", "--symbols", "chars", "--steps", 6).status == 0
    assert checkpoint.load("checkpoints/chars/last.safetensors").step == 6
    Path("u.txt").write_bytes(b"\xff")
    assert "no run of this text" in train("u.txt", "--resume").err
    assert "0xff" in train("u.txt", "--resume", "--symbols", "chars").err
    assert "missing: no such file" in train("missing", "--resume").err


def test_a_run_of_bytes_is_not_gone_on_with_in_characters(tmp_path: Path) -> None:
    text, run = tmp_path / "t.txt", tmp_path / "run"
    text.write_text("some words " * 30)
    list(Training.start(charlstm.read([text], symbols="bytes"), run, TrainingOptions(**ONCE)).events())  # type: ignore[arg-type]
    with pytest.raises(ResumeError, match="--symbols bytes"):
        Training.resume(charlstm.read([text]), run, {"steps": 9})


def test_bytes_and_characters_are_not_mixed() -> None:
    in_bytes, in_chars = ByteVocabulary(), Vocabulary.of("ab")
    assert in_bytes.union(ByteVocabulary()) == in_bytes
    for one, other in ((in_bytes, in_chars), (in_chars, in_bytes)):
        with pytest.raises(UsageError, match="--symbols"):
            one.union(other)
