"""Test texts of several documents: reading them, no influence across a boundary, and every command."""

from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

import charlstm
from charlstm import checkpoint, config
from charlstm.checkpoint import Checkpoint
from charlstm.config import DynamicConfig, ModelConfig, SamplingConfig, TrainingOptions
from charlstm.errors import CheckpointError, CorpusError, ResumeError, UsageError
from charlstm.inference import evaluation
from charlstm.inference.context import Context
from charlstm.model import Model
from charlstm.text import corpus, id_file, reading
from charlstm.text.documents import RECORD_SEPARATOR, replace_boundaries, symbol_of
from charlstm.text.vocabulary import ByteVocabulary, Vocabulary
from charlstm.training import dynamic_evaluation
from charlstm.training.events import Warned
from charlstm.training.network import Network
from charlstm.training.trainer import Trainer
from tests.helpers.commands import here, spawn
from tests.helpers.models import equations, interrupt, losses, random_weights

Capture = pytest.CaptureFixture[str]
NAMES = ["anna", "bob", "carla", "dan", "", "eve", "fred", "gina", "hal", "ida"]
END = "<|end|>"
ONCE: dict[str, Any] = {
    "steps": 6, "hidden": 8, "embedding": 4, "batch_size": 3, "seq_len": 7, "validations": 2, "sample_chars": 0,
    "threads": 1,
}  # fmt: skip
WORDS = ["--hidden", 8, "--embedding", 4, "--batch-size", 3, "--seq-len", 7, "--threads", 1, "-q"]


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def model_of(symbols: str, boundary: str, **sizes: Any) -> Model:
    vocabulary = Vocabulary.of(symbols).with_boundary(boundary)
    config = ModelConfig(len(vocabulary), **{"hidden": 9, "embedding": 5, "layers": 2, **sizes})
    config = replace(config, boundary=vocabulary.boundary_id)
    weights = random_weights(config, scale=2.0)
    weights["projection.weight"] *= 4
    return Model(config, vocabulary, weights)


def naive_bits(model: Model, documents: list[str]) -> list[float]:
    """Return the bits of each document with its end, each from the zero state, by equations without a boundary."""
    config, b = replace(model.config, boundary=None), model.config.boundary
    found = []
    for document in documents:
        ids = np.array([b, *model.vocabulary.lookup(document)[0], b])[:, None]
        logits, _ = equations(config, model.weights, ids[:-1], np.zeros(config.state_shape(1)))
        found.append(float(losses(logits, ids[1:]).sum()) / math.log(2))
    return found


# ---- reading ----


@given(st.text("ab-", max_size=30), st.text("ab-", min_size=1, max_size=4), st.lists(st.integers(0, 30)))
def test_boundaries_are_found_in_a_text_in_any_parts(text: str, boundary: str, cuts: list[int]) -> None:
    symbol = boundary if len(boundary) == 1 else "#"
    whole = text.replace(boundary, symbol)
    expected = whole + ("" if not whole or whole.endswith(symbol) else symbol)
    places = [0, *sorted(cuts), len(text)]
    parts = [text[a:b] for a, b in itertools.pairwise(places)]
    assert "".join(replace_boundaries(parts, boundary, symbol)) == expected
    octets = replace_boundaries([part.encode() for part in parts], boundary.encode(), symbol.encode())
    assert b"".join(octets).decode() == expected


@pytest.mark.parametrize("kind", ["chars", "bytes"])
@pytest.mark.parametrize("block", [1, 3, 7, 1 << 18])
@pytest.mark.parametrize("in_memory", [5, 2**25])
def test_every_document_is_between_two_boundaries(
    kind: Any, block: int, in_memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "BLOCK_BYTES", block)
    monkeypatch.setattr(corpus, "IN_MEMORY_CHARS", in_memory)
    monkeypatch.setattr(reading, "MIN_FINGERPRINTED_BYTES", 0)
    Path("a").write_text(f"one{END}two{END}{END}three")
    Path("b").write_text(f"four{END}")
    Path("empty").write_text("")
    for _ in range(2):  # the second time from the cache
        text = charlstm.read(["a", "empty", "b"], symbols=kind, boundary=END)
        expected = "\x1eone\x1etwo\x1e\x1ethree\x1efour\x1e"
        assert "".join(text.vocabulary.symbols[k] for k in np.asarray(text.ids)) == expected
        assert text.vocabulary.decode(text.ids) == expected.replace("\x1e", END)
        assert text.vocabulary.boundary == END
        assert not isinstance(text.ids, id_file.StoredIds) or in_memory == 5
    plain = charlstm.read(["a", "empty", "b"], symbols=kind)  # the same files as one text have another digest
    assert plain.vocabulary.boundary is None
    assert plain.vocabulary.decode(plain.ids) == Path("a").read_text() + Path("b").read_text()
    assert plain.sha256 != text.sha256


def test_lines_and_files_as_documents() -> None:
    Path("a").write_text("anna\nbob")
    Path("b").write_text("\neve\n")
    lines = charlstm.read(["a", "b"], boundary="\n")
    assert lines.vocabulary.decode(lines.ids) == "\nanna\nbob\n\neve\n"
    assert lines.vocabulary.boundary_symbol == "\n"
    files = charlstm.read(["a", "b"], documents=True)
    assert files.vocabulary.decode(files.ids) == "\x1eanna\nbob\x1e\neve\n\x1e"
    Path("c").write_text("x\x1ey")
    for way in ({"documents": True}, {"boundary": "--"}):
        with pytest.raises(CorpusError, match=r"^c: a document contains U\+001E.*boundary$"):
            charlstm.read(["c"], **way)
    found = charlstm.read(["c"], boundary="\x1e")  # an explicit boundary may be U+001E
    assert found.vocabulary.decode(found.ids) == "\x1ex\x1ey\x1e"
    Path("d").write_text("")
    with pytest.raises(CorpusError, match="empty"):
        charlstm.read(["d"], documents=True)


def test_an_invalid_boundary_is_refused() -> None:
    assert symbol_of("é", "chars") == "é"
    assert symbol_of("é", "bytes") == RECORD_SEPARATOR
    for boundary in ("", "a\x1e", "\ud800"):
        with pytest.raises(UsageError, match=r"^boundary "):
            symbol_of(boundary, "chars")


@given(st.lists(st.text("ab", max_size=8), min_size=1, max_size=12), st.floats(0, 0.9))
def test_the_validation_part_consists_of_whole_documents_closest_to_the_share(
    documents: list[str], share: float
) -> None:
    vocabulary = Vocabulary.of("ab\n").with_boundary("\n")
    text = "\n" + "".join(document + "\n" for document in documents)
    whole = corpus.Corpus(vocabulary.encode(text), vocabulary, "", ("t",))
    train, valid = (vocabulary.decode(part) for part in whole.split(share))
    ends = [k for k in range(1, len(text) - 1) if text[k] == "\n"]
    if not ends or not share:
        assert (train, valid) == (text, "")
        return
    end = len(train) - 1
    assert train + valid[1:] == text
    assert train[-1] == valid[0] == "\n"
    wished = int(len(text) * (1 - share)) - 1
    assert abs(end - wished) == min(abs(k - wished) for k in ends)


# ---- scoring ----


@pytest.mark.parametrize("boundary", ["\n", RECORD_SEPARATOR, END])
def test_the_score_of_a_text_is_the_sum_of_the_scores_of_its_documents(boundary: str) -> None:
    model = model_of("".join(NAMES) + "\n", boundary)
    text = boundary.join(NAMES)
    naive = naive_bits(model, NAMES)
    score = model.evaluate(text)
    chars = sum(map(len, NAMES)) + len(NAMES)
    assert score.transitions == chars
    assert score.bits_per_char * chars == pytest.approx(sum(naive), abs=1e-4)
    assert score.protocol.endswith("documents: state reset at each")
    assert model.evaluate(text + boundary).nats_per_char == score.nats_per_char
    places = list(model.score_chars(text))
    assert [place.place for place in places] == list(range(1, chars + 1))
    assert "".join(place.char for place in places) == text + boundary
    assert sum(place.bits for place in places) == pytest.approx(sum(naive), abs=1e-4)
    assert [p.bits for p in model.score_chars(text, top=2)] == pytest.approx([p.bits for p in places], abs=1e-4)
    for carry in (False, True):
        lines = list(model.score_lines([text[:7], text[7:20], text[20:]], carry=carry))
        assert [line.bits for line in lines] == pytest.approx(naive, abs=1e-4)
        assert [line.text for line in lines] == [name + boundary for name in NAMES]
    learned, _ = dynamic_evaluation.evaluate(
        model.config, model.weights, model.encode(text)[0], DynamicConfig(rate=0, decay=0)
    )
    assert learned.nats_per_char == pytest.approx(score.nats_per_char, abs=1e-5)
    carried = Model(replace(model.config, boundary=None), model.vocabulary, model.weights)  # negative control
    assert abs(carried.evaluate(text).bits_per_char - score.bits_per_char) > 1e-3


def test_many_streams_give_the_score_of_one_stream() -> None:
    model = model_of("ab\n", "\n")
    ids = np.random.default_rng(1).integers(0, 3, 20_000)
    several, one = (evaluation.evaluate(model.scorer, ids, exact=exact) for exact in (False, True))
    assert "streams" in several.protocol
    assert several.nats_per_char == pytest.approx(one.nats_per_char, abs=1e-6)


def test_the_loss_of_a_window_is_the_mean_over_its_documents() -> None:
    model = model_of("".join(NAMES), "\n")
    network = Network(model.config)
    network.load_weights(model.weights)
    ids = torch.from_numpy(np.asarray(model.encode("\n".join(NAMES))[0]).astype(np.int64))[:, None]
    logits, _ = network(ids[:-1], network.zero_state(1) + 1)  # the boundary resets this state
    loss = functional.cross_entropy(logits.flatten(0, 1), ids[1:].flatten())
    assert float(loss.detach()) * (len(ids) - 1) / math.log(2) == pytest.approx(sum(naive_bits(model, NAMES)), abs=1e-3)


# ---- checkpoints ----


def test_a_checkpoint_keeps_the_boundary_and_refuses_an_invalid_one() -> None:
    model = model_of("abc", END)
    file = Path("m.safetensors")
    checkpoint.save(file, Checkpoint(model.config, model.vocabulary, model.weights))
    found = charlstm.load(file)
    assert (found.vocabulary, found.config) == (model.vocabulary, model.config)
    assert found.vocabulary.boundary == END
    data = file.read_bytes()
    for wrong in (b'\\"boundary\\":9', b'\\"boundary\\":1', b'\\"boundary\\":-'):
        file.write_bytes(data.replace(b'\\"boundary\\":0', wrong))
        with pytest.raises(CheckpointError):
            charlstm.load(file)
    with pytest.raises(ValueError, match="boundary"):
        checkpoint.save(file, Checkpoint(replace(model.config, boundary=None), model.vocabulary, model.weights))
    for values in ({"boundary": 3}, {"boundary": ""}, {"boundary": "zz"}, {"boundary": None}):
        with pytest.raises(ValueError, match="boundary"):
            Vocabulary.from_json({"kind": "code points", "symbols": "abc", **values})
    kept = ByteVocabulary("\n")
    assert Vocabulary.from_json(kept.to_json()) == kept != ByteVocabulary()


def test_the_record_of_a_model_without_documents_is_unchanged() -> None:
    assert "boundary" not in config.to_json(ModelConfig(3, 4))
    assert Vocabulary("ab").to_json() == {"kind": "code points", "symbols": "ab"}


# ---- training ----


def test_a_stopped_and_resumed_run_ends_in_the_same_bytes() -> None:
    Path("names").write_text("\n".join(NAMES * 6))
    text = charlstm.read(["names"], boundary="\n")
    list(Trainer.start(text, "whole", TrainingOptions(**ONCE)).events())
    stopped = Trainer.start(text, "parts", TrainingOptions(**ONCE))
    interrupt(stopped, 3)
    (*_, last) = stopped.events()
    assert (last.reason, last.step) == ("interrupted", 3)  # type: ignore[union-attr]
    list(Trainer.resume(text, "parts").events())
    for name in ("last", "best"):
        assert Path(f"whole/{name}.safetensors").read_bytes() == Path(f"parts/{name}.safetensors").read_bytes()
    assert charlstm.load("whole").evaluate().bits_per_char > 0
    with pytest.raises(ResumeError, match=r"documents separated by '\\n', not a single text"):
        Trainer.resume(charlstm.read(["names"]), "parts", allow_new_corpus=True)


@pytest.mark.parametrize(
    ("chars", "scored"), [(0, "\nhal\nida\n"), (8, "\nhal\n"), (5, "\nhal\n"), (4, "\nhal"), (2, "\nh")]
)
def test_valid_chars_selects_the_first_whole_documents(chars: int, scored: str) -> None:
    """If not even one document fits into `chars` characters, its first characters are used."""
    Path("names").write_text("\n".join(NAMES))
    text = charlstm.read(["names"], boundary="\n")
    options = TrainingOptions(**{**ONCE, "valid_share": 0.2, "valid_chars": chars})
    training = Trainer.start(text, "run", options)
    validated = text.vocabulary.decode(training.run.valid_ids)
    list(training.events())
    model = charlstm.load("run")
    assert validated == model.vocabulary.decode(model.validation_part()) == scored
    if scored.endswith("\n"):  # every line is in the validation part
        lines = list(model.score_lines(model.validation_text()))
        assert sum(line.chars for line in lines) == model.evaluate().transitions


def test_training_on_one_document_warns_that_there_is_no_validation_part() -> None:
    Path("t").write_text("some words and more " * 20)
    training = Trainer.start(charlstm.read(["t"], documents=True), "run", TrainingOptions(**ONCE))
    warned = [event.message for event in training.events() if isinstance(event, Warned)]
    assert any("one document" in message and "separate validation text" in message for message in warned)


def test_fine_tuning_keeps_the_boundary_or_adds_one() -> None:
    Path("names").write_text("\n".join(NAMES * 6))
    Path("book").write_text("abc def\nghi\n" * 40)
    options = TrainingOptions(**ONCE)
    list(Trainer.start(charlstm.read(["names"], boundary=END), "docs", options).events())
    list(Trainer.start(charlstm.read(["book"]), "plain", options).events())
    with pytest.raises(UsageError, match="read both with the same boundary"):
        Trainer.start(charlstm.read(["book"]), "no", options, from_=charlstm.load("docs"))
    text = charlstm.read(["names"], boundary="ab")  # its characters are also adjacent in the vocabulary
    list(Trainer.start(text, "brought", options, from_=charlstm.load("plain")).events())
    assert charlstm.load("brought").vocabulary.boundary == "ab"


# ---- sampling ----


def test_a_text_is_one_document_unless_its_length_is_given() -> None:
    model = model_of("abc", END)
    model.weights["projection.bias"][model.config.boundary] = 1.5
    texts = list(model.samples(20, seed=3, temperature=1.0))
    assert len(set(texts)) > 3
    assert not any(END in text for text in texts)
    one = model.sample(seed=3, temperature=1.0)
    assert one == texts[0]
    longer = model.sample(length=200, seed=3, temperature=1.0)
    assert longer.startswith(one + END)
    assert longer.count(END) > 3
    (sampled, *_) = model.generate(SamplingConfig(temperature=1.0, seed=3))
    assert sampled.ended == "document"
    stopped = model.sample(length=500, stop=(END,), seed=3, temperature=1.0)
    assert stopped == one
    with pytest.raises(UsageError, match="excludes: set length"):
        model.sample(ban=RECORD_SEPARATOR)
    assert END not in model.sample(ban=RECORD_SEPARATOR, length=100, temperature=1.0)


def test_a_text_begins_after_a_boundary_also_with_a_prime() -> None:
    model = model_of("abc", END)
    config, b = replace(model.config, boundary=None), model.config.boundary
    ids = np.array([b, *model.vocabulary.encode("ab")])[:, None]
    logits, _ = equations(config, model.weights, ids, np.zeros(config.state_shape(1)))
    shares = dict(model.next("ab"))
    for k in range(len(model.vocabulary)):
        nats = losses(logits[-1:], np.array([[k]]))[0, 0]
        assert shares[model.vocabulary.name(k)] == pytest.approx(math.exp(-nats), abs=1e-5)


def test_a_saved_state_continues_a_text_of_several_documents() -> None:
    model = model_of("abc", "\n")
    model.weights["projection.bias"][0] = 1.0
    stream = model.stream(length=40, seed=5, temperature=1.0)
    first = "".join(stream)
    model.save_state("s", stream.context)
    rest = model.sample(length=60, context=model.load_state("s"), temperature=1.0)
    assert "\n" in first
    assert first + rest == model.sample(length=100, seed=5, temperature=1.0)
    assert isinstance(stream.context, Context)


# ---- the command line ----


def test_names_are_learned_from_a_pipe_and_sampled_as_lines() -> None:
    names = [first + second for first in ("an", "be", "car", "do", "el") for second in ("na", "la", "ra", "ton", "mo")]
    Path("names").write_text("\n".join(names * 8))
    options = ["--steps", 250, "--hidden", 32, "--lr", 0.02, "--dropout", 0, "--threads", 1]
    options += ["--batch-size", 16, "--seq-len", 16]
    trained = spawn(["train", "-", "--lines-as-documents", "-o", "run", *options], stdin=Path("names").read_bytes())
    assert trained.status == 0, trained.err
    assert r"documents  separated by '\n'" in trained.err
    sampled = spawn(["sample", "-c", "run", "--count", 20, "--temp", 0.5, "--seed", 1])
    lines = sampled.text.splitlines()
    assert len(lines) == 20
    assert len({*lines} & {*names}) > 5
    assert all(re.fullmatch("[a-z]{2,12}", line) for line in lines)
    begun = spawn(["sample", "-c", "run", "--prime", "car", "--count", 5, "--temp", 0.5, "--seed", 1])
    assert sum(line in ("na", "la", "ra", "ton", "mo") for line in begun.text.splitlines()) >= 4
    rows = spawn(["eval", "-c", "run", "--per-line", "-"], stdin=b"anna\nrmtb\n").text
    likely, odd = (float(row.split("\t")[0]) for row in rows.splitlines())
    assert likely < odd


def test_all_forms_of_eval_give_the_same_score(capfd: Capture) -> None:
    model = model_of("".join(NAMES), "\n")
    checkpoint.save("m", Checkpoint(model.config, model.vocabulary, model.weights))
    Path("t").write_text("\n".join(NAMES))
    whole = json.loads(here(capfd, "eval", "t", "-c", "m", "--json").out)
    bits = whole["bits_per_char"] * whole["transitions"]
    assert bits == pytest.approx(sum(naive_bits(model, NAMES)), abs=1e-4)
    assert "documents: state reset at each" in whole["protocol"]
    for way in (["--per-line"], ["--per-line", "--carry"], ["--per-char"]):
        rows = [json.loads(row) for row in here(capfd, "eval", "t", "-c", "m", "--json", *way).out.splitlines()]
        assert sum(row["bits"] for row in rows) == pytest.approx(bits, abs=1e-4)
    compared = json.loads(here(capfd, "eval", "t", "-c", "m", "--against", "m", "--json").out)
    assert compared["difference"]["bits_per_char"] == 0
    assert compared["ours"]["bits_per_char"] == pytest.approx(whole["bits_per_char"], abs=1e-6)
    heat = here(capfd, "eval", "t", "-c", "m", "--heat")
    assert re.sub("\x1b\\[[0-9;]*m|↵", "", heat.text) == "\n".join(NAMES) + "\n"
    assert r"separated by '\n'" in here(capfd, "info", "m").text
    assert json.loads(here(capfd, "info", "m", "--json").out)["boundary"] == "\n"


def test_resuming_and_fine_tuning_keep_the_boundary_of_the_model(capfd: Capture) -> None:
    Path("names").write_text("\n".join(NAMES * 6))
    Path("more").write_text("anna\nida\n" * 20)

    def train(*arguments: object) -> tuple[int, str]:
        done = here(capfd, "train", *arguments, *WORDS)
        return done.status, done.err

    assert train("names", "--lines-as-documents", "--steps", 3)[0] == 0
    assert 'boundary = "\\n"' in Path("checkpoints/names/config.toml").read_text()
    assert train("names", "--resume", "--steps", 4)[0] == 0
    assert train("names", "--resume", "-o", "checkpoints/names", "--steps", 5)[0] == 0
    assert checkpoint.load("checkpoints/names/last.safetensors").step == 5
    assert train("more", "--from", "checkpoints/names", "--steps", 2, "-o", "tuned", "--valid", "names")[0] == 0
    assert charlstm.load("tuned").vocabulary.boundary == "\n"
    status, complaint = train("names", "--resume", "-o", "checkpoints/names", "--documents", "--allow-new-corpus")
    assert status == 1
    assert r"documents separated by '\n'" in complaint
    assert train("names", "--config", "checkpoints/names/config.toml", "--steps", 2, "-o", "again")[0] == 0
    assert charlstm.load("again").vocabulary.boundary == "\n"
    status, complaint = train("names", "--lines-as-documents", "--boundary", ".")
    assert (status, complaint.count("\n")) == (2, 1)
    Path("d").write_text("a" * 30 + r"\x" + "b" * 30 + r"\x" + "c" * 30)
    assert train("d", "--boundary", r"\\x", "--steps", 2, "-o", "d1")[0] == 0
    assert charlstm.load("d1").vocabulary.boundary == r"\x"
    assert train("d", "--config", "d1/config.toml", "--steps", 2, "-o", "d2")[0] == 0
    assert charlstm.load("d2").vocabulary.boundary == r"\x"
    assert train("d", "names", "--documents", "--steps", 2, "-o", "d3")[0] == 0
    assert charlstm.load("d3").vocabulary.boundary == RECORD_SEPARATOR
