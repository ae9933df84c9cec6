"""Test models of bytes: they read any file and write well-formed UTF-8, or with --raw any bytes."""

from __future__ import annotations

import contextlib
import functools
import gzip
import hashlib
import io
import itertools
import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import charlstm
from charlstm import checkpoint
from charlstm.checkpoint import Checkpoint
from charlstm.cli.score_display import characters
from charlstm.config import DynamicConfig, ModelConfig, SamplingConfig, TrainingOptions
from charlstm.errors import CharlstmError, DivergenceError, ResumeError, UnknownSymbols, UsageError
from charlstm.inference.automaton import Automaton
from charlstm.inference.filters import SamplingRule
from charlstm.inference.sampling import Sampler
from charlstm.model import Model
from charlstm.text import corpus, id_file, reading, utf8
from charlstm.text.reading import TextFormat
from charlstm.text.vocabulary import ByteVocabulary, Vocabulary
from charlstm.training import dynamic_evaluation
from charlstm.training.trainer import Trainer
from tests.helpers.commands import Done, here, model_file, spawn
from tests.helpers.engines import BACKENDS, ISAS, biased, engine_of
from tests.helpers.models import chance, equations, losses, random_weights

CONFIG = ModelConfig(256, hidden=12, layers=1, embedding=5)
NOT_UTF8 = bytes(range(256)) + "Ж€😀".encode() + b"\xe2\x82\x00\xf0\x9f"
ONCE = {"steps": 3, "hidden": 8, "embedding": 4, "batch_size": 4, "seq_len": 8, "sample_chars": 20, "validations": 1}


def model(facts: dict[str, object] | None = None, scale: float = 3.0) -> Model:
    return Model(CONFIG, ByteVocabulary(), random_weights(CONFIG, scale=scale), facts)


def saved(path: Path) -> Path:
    checkpoint.save(path, Checkpoint(CONFIG, ByteVocabulary(), random_weights(CONFIG, scale=3.0)))
    return path


@given(st.binary(max_size=40))
def test_every_sequence_of_bytes_survives_a_round_trip(data: bytes) -> None:
    vocabulary = ByteVocabulary()
    ids = np.frombuffer(data, np.uint8)
    text = vocabulary.decode(ids)
    assert vocabulary.encode(text).tolist() == list(data)
    assert text == data.decode("utf-8", "surrogateescape")


EDGES = [0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xE2, 0xED, 0xF0, 0xF4, 0xFF]


@functools.cache
def place(data: bytes) -> str:
    """Return 'whole', 'begun' or 'never' for whole, incomplete or invalid characters, by the strict decoder.

    The incremental decoder is not suitable: it waits for the rest of a surrogate, because of `surrogatepass`.
    """
    for length in range(4):
        for more in itertools.product((0x80, 0x90, 0xA0), repeat=length):
            with contextlib.suppress(UnicodeDecodeError):
                (data + bytes(more)).decode()
                return "begun" if more else "whole"
    return "never"


@given(st.binary(max_size=6) | st.lists(st.sampled_from(EDGES), max_size=6).map(bytes))
def test_the_incomplete_suffix_is_the_beginning_of_a_character(data: bytes) -> None:
    begun = [n for n in (1, 2, 3) if n <= len(data) and place(data[-n:]) == "begun" and data[-n] >= 0xC0]
    assert ByteVocabulary().incomplete_suffix_length(np.frombuffer(data, np.uint8)) == (begun[0] if begun else 0)


def test_a_symbol_is_a_byte_and_its_own_id() -> None:
    vocabulary = ByteVocabulary()
    assert len(vocabulary) == len(set(vocabulary.symbols)) == 256
    assert [vocabulary.encode(symbol).tolist() for symbol in vocabulary.symbols] == [[k] for k in range(256)]
    assert vocabulary.encode("é").tolist() == [0xC3, 0xA9]
    assert vocabulary == Vocabulary.from_json(vocabulary.to_json()) != Vocabulary.of("ab")


def test_only_a_surrogate_outside_the_range_of_bytes_is_unknown() -> None:
    vocabulary = ByteVocabulary()
    with pytest.raises(UnknownSymbols, match=r"'\\ud800' × 2"):
        vocabulary.encode("a\ud800\ud800")
    ids, unknown = vocabulary.encode_known("a\ud800b", "skip")
    assert (ids.tolist(), unknown) == ([97, 98], {"\ud800": 1})
    assert vocabulary.encode_known("\ud800", "replace")[0].tolist() == list("\ufffd".encode())


@pytest.mark.parametrize("values", [{"kind": "bytes", "symbols": "ab"}, {"kind": "words"}, {"kind": ["bytes"]}])
def test_another_description_of_bytes_is_refused(values: object) -> None:
    with pytest.raises(ValueError, match="vocabulary"):
        Vocabulary.from_json(values)


def test_bytes_are_read_unchanged(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a").write_bytes(NOT_UTF8)
    (folder / "b.gz").write_bytes(gzip.compress(b"\xff\r\n"))
    found = charlstm.read([folder], symbols="bytes")
    assert np.asarray(found.ids).tobytes() == NOT_UTF8 + b"\xff\r\n"
    assert found.sha256 == hashlib.sha256(NOT_UTF8 + b"\xff\r\n").hexdigest()
    assert found.ids.dtype == np.uint8
    assert (
        reading.read_text([folder], TextFormat(symbols="bytes")).encode("utf-8", "surrogateescape")
        == NOT_UTF8 + b"\xff\r\n"
    )
    with pytest.raises(CharlstmError, match="UTF-8"):
        charlstm.read([folder])


def test_bytes_of_a_named_corpus_are_read_and_an_encoding_is_refused() -> None:
    read = charlstm.read(["python:docs"])
    as_bytes = charlstm.read(read.names, symbols="bytes")
    assert as_bytes.sha256 == read.sha256
    with pytest.raises(UsageError, match="leave out encoding"):
        charlstm.read(["x"], encoding="latin-1", symbols="bytes")


def test_ids_of_a_long_text_of_bytes_are_stored_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(id_file, "folder", lambda: tmp_path / "ids")
    monkeypatch.setattr(corpus, "IN_MEMORY_CHARS", 100)
    monkeypatch.setattr(reading, "MIN_FINGERPRINTED_BYTES", 1)
    monkeypatch.setattr(reading, "BLOCK_BYTES", 64)
    text = tmp_path / "text"
    text.write_text("жук " * 100)
    for _ in range(2):  # written, then found in the cache
        in_bytes, in_chars = charlstm.read([text], symbols="bytes"), charlstm.read([text])
        assert isinstance(in_bytes.ids, id_file.StoredIds)
        assert (len(in_bytes), len(in_chars)) == (700, 400)
        assert np.asarray(in_bytes.ids).tobytes() == text.read_bytes()
        assert in_chars.vocabulary.decode(in_chars.ids) == text.read_text()


def test_bytes_from_a_pipe_are_kept_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(id_file, "folder", lambda: tmp_path / "ids")
    monkeypatch.setattr(corpus, "IN_MEMORY_CHARS", 10)
    (tmp_path / "t.bin").write_bytes(NOT_UTF8)  # small: read once, like a pipe
    assert np.asarray(charlstm.read([tmp_path / "t.bin"], symbols="bytes").ids).tobytes() == NOT_UTF8


def test_the_score_equals_the_equations_on_the_bytes() -> None:
    text = "Жук и €\udcff."
    ids = np.array(list(text.encode("utf-8", "surrogateescape")))
    logits, _ = equations(CONFIG, model().weights, ids[:-1, None], np.zeros(CONFIG.state_shape(1)))
    score = model().evaluate(text)
    assert score.chars == len(ids) == 15
    assert score.nats_per_char == pytest.approx(losses(logits, ids[1:, None]).mean(), abs=1e-5)


def test_eval_reports_per_byte(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path, text = saved(tmp_path / "m"), tmp_path / "t.bin"
    text.write_bytes(NOT_UTF8 * 60)
    assert re.search(r"streams, each warmed up on \d+ bytes", here(capfd, "eval", text, "-c", path).text)
    text.write_bytes(NOT_UTF8)
    done = here(capfd, "eval", text, "-c", path)
    assert done.status == 0, done.err
    assert re.search(rf"^bits per byte .*\n.*\n.*\nbytes +{len(NOT_UTF8)}$", done.text, re.M)
    assert "character" not in done.text
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


def test_errors_about_bytes_count_in_bytes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for data, more, said in (
        (b"", (), "it needs one byte or more"),
        (b"x", (), "the training part has 1 of the 1 bytes of the text; it needs 2 or more"),
        (b"x" * 30, ("--max-chars", 20), "longer than 20 bytes"),
        (b"x" * 99, ("--max-chars", 20), "the file has 99 bytes, more than a limit of 20 allows"),
    ):
        (tmp_path / "t").write_bytes(data)
        refused = here(capfd, "train", tmp_path / "t", "--symbols", "bytes", "-o", tmp_path / "run", *more)
        assert said in refused.err
        assert (refused.status, refused.err.count("\n"), "character" in refused.err) == (1, 1, False)


def test_dynamic_evaluation_of_bytes_reports_positions_in_bytes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t").write_bytes(NOT_UTF8)
    path = saved(tmp_path / "m")
    assert "learning every 32 bytes" in here(capfd, "eval", tmp_path / "t", "-c", path, "--dynamic").text
    diverging = random_weights(CONFIG)
    diverging["projection.bias"][:] = math.inf
    with pytest.raises(DivergenceError, match="at byte 1:"):
        dynamic_evaluation.evaluate(CONFIG, diverging, np.arange(9), DynamicConfig(), "byte")


def test_rows_of_lines_and_bytes_are_well_formed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path, text = saved(tmp_path / "m"), tmp_path / "t"
    text.write_bytes(b"a\xff\xc3\xa9\n")
    lines = here(capfd, "eval", text, "-c", path, "--per-line").text
    assert lines.split("\t")[1:] == ["5", "1", "a\ufffdé\n"]
    chars = here(capfd, "eval", text, "-c", path, "--per-char", "--top", "1").text
    assert [row.split("\t")[2] for row in chars.splitlines()] == [r"\xff", r"\xc3", r"\xa9", r"\n"]
    heat = here(capfd, "eval", text, "-c", path, "--heat").text
    assert re.sub(r"\x1b\[[0-9;]*m", "", heat).replace("↵", "") == "a\\xffé\n"


def test_the_heat_map_sums_the_bits_of_the_bytes_of_a_character() -> None:
    symbols = ByteVocabulary().decode(np.array([0xC3])), [("\udca9", 1.5), ("b", 4.0)]
    assert list(characters(*symbols)) == [("é", 1.5), ("b", 4.0)]
    euro = [("\udce2", 1.0), ("\udc82", 2.0), ("\udcac", 4.0)]
    assert list(characters("a", euro)) == [("a", 0.0), ("€", 7.0)]


def raw_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


UNTRAINED = model(scale=9.0)  # random, with confident predictions
WAYS: list[dict[str, Any]] = [
    *({}, {"top_k": 3}, {"top_p": 0.5}, {"typical": 0.3}, {"min_p": 0.2}, {"repeat_penalty": 3.0}),
    *({"ban": "\udc80a"}, {"temperature": 0.0}, {"temperature": 3.0}),
]
PRIMES = st.binary(max_size=5) | st.sampled_from([b"\xc3", b"\xe2\x82", b"\xf0\x9f\x98", b"a\xed", b"\xf4"])


@given(PRIMES, st.integers(0, 2**32), st.sampled_from(WAYS))
def test_every_text_is_utf8_and_completes_the_last_character_of_its_prime(
    prime: bytes, seed: int, options: Any
) -> None:
    begun = ByteVocabulary().decode(np.frombuffer(prime, np.uint8))
    config = SamplingConfig(prime=begun, length=40, seed=seed, **options)
    (sampled,) = UNTRAINED.generate(config)
    assert sampled.text == sampled.text.encode().decode()  # both directions are strict
    unfinished = next((prime[-n:] for n in (1, 2, 3) if n <= len(prime) and place(prime[-n:]) == "begun"), b"")
    whole = (unfinished + sampled.symbols.astype(np.uint8).tobytes()).decode()  # strict
    assert whole == (whole[:1] if unfinished else "") + sampled.text
    assert 36 < len(sampled.symbols) <= 40
    stream = UNTRAINED.stream(begun, 40, temperature=config.temperature, seed=seed, **{
        name: value for name, value in options.items() if name != "temperature"})  # fmt: skip
    assert "".join(stream) == sampled.text
    if "\ufffd" in sampled.text:
        assert b"\xef\xbf\xbd" in sampled.symbols.astype(np.uint8).tobytes()


def test_raw_bytes_are_not_utf8() -> None:
    """Negative control of the test above."""
    with pytest.raises(UnicodeDecodeError):
        raw_bytes(UNTRAINED.sample(length=200, seed=1, raw=True)).decode()


def test_the_automaton_accepts_what_the_strict_decoder_of_python_accepts() -> None:
    """Try every first byte, followed by the limits of all ranges; for longer characters also further bytes."""
    for sequence in itertools.chain(
        itertools.product(range(256), EDGES),
        itertools.product((0xE0, 0xE1, 0xEC, 0xED, 0xEE, 0xEF), EDGES, EDGES),
        itertools.product((0xF0, 0xF1, 0xF3, 0xF4, 0xF5), EDGES[2:8], EDGES[1:9:3], EDGES[1:9:3]),
    ):
        state = 0
        for byte in sequence:
            state = int(utf8.TRANSITIONS[state, byte]) if state != utf8.NEVER else state
        assert place(bytes(sequence)) == {0: "whole", utf8.NEVER: "never"}.get(state, "begun"), sequence


@given(st.binary(max_size=4) | st.lists(st.sampled_from(EDGES), max_size=4).map(bytes), st.sampled_from(EDGES))
def test_allowed_bytes_continue_the_last_character_of_the_text(data: bytes, byte: int) -> None:
    vocabulary, ids = ByteVocabulary(), np.frombuffer(data, np.uint8)
    may = utf8.TRANSITIONS[vocabulary.state_after(ids), byte] != utf8.NEVER
    begun = data[len(data) - vocabulary.incomplete_suffix_length(ids) :]
    assert may == (place(begun + bytes([byte])) != "never")


@pytest.mark.parametrize(("data", "may"), [(b"", 0), (b"a", 0), (b"\xe2", 2), (b"\xed", 4), (b"\xf4\x8f", 2)])
def test_next_returns_the_softmax_over_allowed_bytes(data: bytes, may: int) -> None:
    prime = ByteVocabulary().decode(np.frombuffer(data, np.uint8))
    own = dict(model().next(prime, raw=True))
    assert len(own) == 256
    symbols = [ByteVocabulary().symbols[k] for k in np.flatnonzero(utf8.TRANSITIONS[may] != utf8.NEVER)]
    total = sum(own[symbol] for symbol in symbols)
    assert dict(model().next(prime)) == pytest.approx({symbol: own[symbol] / total for symbol in symbols})


BEGUN = [b"", b"\xc3", b"\xe0", b"\xe2", b"\xed", b"\xf1", b"\xf0", b"\xf4"]  # one for each state; adjacent ones differ


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_sampled_bytes_follow_the_softmax_over_allowed_bytes(temperature: float, backend: str) -> None:
    """Apply a χ² test in each state; distributions of another temperature, state or without a state do not fit."""
    logits = np.linspace(-2, 2, 256)[np.random.default_rng(3).permutation(256)]
    count = 8_000 * len(BEGUN)
    phases = np.tile(
        [ByteVocabulary().state_after(np.frombuffer(begun, np.uint8)) for begun in BEGUN], count // len(BEGUN)
    )
    engine = biased(logits, backend)
    rule = SamplingRule(temperature, automaton=Automaton.of_table(ByteVocabulary.transitions))
    sampled, _ = engine.generate(np.zeros(count, int), engine.zero_state(count), 1, rule, seed=5, phases=phases)
    may = np.array([[place(begun + bytes([byte])) != "never" for byte in range(256)] for begun in BEGUN])
    softmax, without_temperature = np.exp(logits / temperature), np.exp(logits)
    for k, allowed in enumerate(may):
        observed = np.bincount(sampled[0, k :: len(BEGUN)], minlength=256)
        assert chance(observed, allowed * softmax) > 1e-4
        for wrong in (allowed * without_temperature, softmax, may[k - 1] * softmax):
            assert chance(observed, wrong) < 1e-9


@pytest.mark.parametrize("isa", ISAS)
def test_texts_of_bytes_sampled_natively_equal_those_of_numpy(isa: str) -> None:
    ours, reference = (engine_of(CONFIG, dict(UNTRAINED.weights), backend) for backend in (isa, "numpy"))
    vocabulary = ByteVocabulary()
    more: list[dict[str, Any]] = [{"best_of": 3}, {"lines": 2}, {"stop": ("a", "\udcbf"), "keep_stop": True}]
    for seed, options in enumerate(WAYS + more):
        config = SamplingConfig(**{"prime": "\udce2", "count": 3, "length": 200, "seed": seed, **options})
        one, other = (list(Sampler(engine, vocabulary, config).texts()) for engine in (ours, reference))
        assert one == other
        first = replace(config, count=1)
        if config.best_of == 1:
            assert "".join(Sampler(ours, vocabulary, first).stream()) == other[0].text
        assert [*Sampler(ours, vocabulary, replace(first, raw=True)).texts()] != other[
            :1
        ]  # negative control: no automaton


def test_options_that_exclude_all_allowed_bytes_are_refused() -> None:
    rest = ByteVocabulary().decode(np.arange(0x80, 0xC0))  # continuation bytes of all characters outside ASCII
    ascii_alone = model().sample("a", 200, ban=rest, temperature=2.0)
    assert ascii_alone.isascii()
    assert len(ascii_alone) == 200  # no incomplete character was begun
    for refused in ({"only": "\udcc3"}, {"only": "\udcc3\udce2"}, {"stop": ("\udcff",)}, {"stop": ("\udcc3a",)},
                    {"stop": ("é",), "ban": rest}):  # fmt: skip
        with pytest.raises(UsageError, match=r"ban and only leave no character|can never occur"):
            model().sample("a", 9, **refused)
    with pytest.raises(UsageError, match="complete the last character of prime"):
        model().sample("\udcc3", 9, ban=rest)
    with pytest.raises(UsageError, match="complete the last character of prime"):
        model().next("\udcc3", only="a")
    assert set(model().sample("a", 40, only="\udcc3\udca9")) == {"é"}
    assert model().sample("\udce2", 1) == ""  # the character does not fit into one byte
    assert (
        model().sample("a", 60, stop=("\udc80",), temperature=2.0, seed=3).encode()
    )  # the stop text is part of a character


def test_a_text_continues_in_the_middle_of_a_character() -> None:
    """Generate euro signs only, one byte in each step."""
    weights = {name: np.zeros_like(array) for name, array in model().weights.items()}
    for byte, following in ((0xE2, 0x82), (0x82, 0xAC), (0xAC, 0xE2)):  # the next byte depends on the last byte only
        weights["embedding.weight"][byte, byte % 5] = 9
        weights["recurrence.weight_ih_l0"][2 * 12 + byte % 5, byte % 5] = 9  # g
        weights["projection.weight"][following, byte % 5] = 99
    assert {0xE2 % 5, 0x82 % 5, 0xAC % 5} == {1, 0, 2}
    weights["recurrence.bias_ih_l0"][12:24] = -99  # the forget gate is closed
    weights["recurrence.bias_ih_l0"][:12] = weights["recurrence.bias_ih_l0"][36:] = 99
    euro = Model(CONFIG, ByteVocabulary(), weights)
    assert euro.sample("€", 8, temperature=0) == "€€"
    stream = euro.stream("€", 8, temperature=0)
    assert list(stream) == ["€", "€"]  # never part of a character
    assert (
        euro.sample(length=4, temperature=0, context=stream.context) == "€"
    )  # the bytes that were left out are generated again
    (text,) = euro.generate(replace(charlstm.SamplingConfig(), prime="€", length=8, temperature=0))
    assert (text.text, len(text.symbols)) == ("€€", 6)
    assert euro.sample(length=3, temperature=0, context=euro.context_after(text)) == "€"
    assert euro.sample("€", 20, temperature=0, stop=("€€€",), keep_stop=True) == "€€€"


def test_sample_writes_whole_characters_or_with_raw_every_byte(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path / "m")
    shown = here(capfd, "sample", "-c", path, "-n", 300, "--seed", 1, "-t", 1).out
    assert 297 <= len(shown.decode().encode()) <= 300  # strict
    for more in (("--count", 5), ("--best-of", 3), ("--lines", 2)):
        here(capfd, "sample", "-c", path, "-n", 50, *more).out.decode()
    bare = spawn(["sample", "-c", path, "-n", 300, "--seed", 1, "-t", 1, "--raw"]).out
    assert len(bare) == 300
    with pytest.raises(UnicodeDecodeError):
        bare.decode()
    values = json.loads(here(capfd, "sample", "-c", path, "-n", 30, "--seed", 1, "-t", 1, "--json").out)
    assert values["unit"] == "byte"
    assert 26 < values["chars"] <= 30
    assert values["bits_per_char"] == pytest.approx(-values["log_probability"] / math.log(2) / values["chars"])


@pytest.mark.parametrize("boundary", ["\n", "é"])
def test_a_document_of_bytes_is_utf8_and_ends_at_its_boundary(boundary: str) -> None:
    vocabulary = ByteVocabulary(boundary)
    end = vocabulary.boundary_id
    of_documents = Model(replace(CONFIG, boundary=end), vocabulary, UNTRAINED.weights)
    for prime in ("", "a" + boundary, "\udce2", "\udce2" + boundary):
        begun = prime.encode("utf-8", "surrogateescape") if prime == "\udce2" else b""
        for sampled in of_documents.generate(SamplingConfig(1.5, prime=prime, seed=1, count=5)):
            assert sampled.ended == "document"
            assert (begun + sampled.symbols.astype(np.uint8).tobytes()).decode().endswith(sampled.text)  # strict
            assert end not in sampled.symbols
            assert bool(begun) == (len(sampled.text.encode()) < len(sampled.symbols))
    assert of_documents.sample(length=2000, temperature=1.5, seed=1).count(boundary) > 1


def test_banning_a_part_of_a_character_is_refused() -> None:
    with pytest.raises(UsageError, match="ASCII"):
        model().sample("a", 3, ban="é")
    assert set(model().sample("a", 50, only="xy")) == {"x", "y"}


def test_training_on_bytes_resumes_and_evaluates(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text, run = tmp_path / "t.bin", tmp_path / "run"
    text.write_bytes(NOT_UTF8 * 3)
    read = charlstm.read([text], symbols="bytes")
    list(Trainer.start(read, run, TrainingOptions(**ONCE)).events())  # type: ignore[arg-type]
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


def test_resuming_and_fine_tuning_read_texts_as_bytes_like_the_model(
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
    assert "bytes and characters cannot be mixed" in refused.err
    stdin(NOT_UTF8)  # the newest run is of bytes, and no run is of this text
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


def test_a_run_of_bytes_is_not_resumed_with_characters(tmp_path: Path) -> None:
    text, run = tmp_path / "t.txt", tmp_path / "run"
    text.write_text("some words " * 30)
    list(Trainer.start(charlstm.read([text], symbols="bytes"), run, TrainingOptions(**ONCE)).events())  # type: ignore[arg-type]
    with pytest.raises(ResumeError, match="symbols bytes"):
        Trainer.resume(charlstm.read([text]), run, {"steps": 9})


def test_vocabularies_of_bytes_and_characters_are_not_mixed() -> None:
    in_bytes, in_chars = ByteVocabulary(), Vocabulary.of("ab")
    assert in_bytes.union(ByteVocabulary()) == in_bytes
    for one, other in ((in_bytes, in_chars), (in_chars, in_bytes)):
        with pytest.raises(UsageError, match="use the symbols that"):
            one.union(other)
