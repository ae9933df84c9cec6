"""Fine-tuning: training continues with another text, which may have new characters."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import charlstm
from charlstm import checkpoint
from charlstm.config import Cell, ModelConfig, TrainingOptions
from charlstm.errors import CheckpointError, ResumeError, UsageError
from charlstm.model import Model
from charlstm.runs import BEST, LAST
from charlstm.text import corpus
from charlstm.training.events import Started, Stopped, Validated
from charlstm.training.network import Network
from charlstm.training.trainer import Trainer
from tests.helpers.commands import Done, here
from tests.helpers.models import equations, interrupt

OLD = "the cat sat on the mat, and the dog sat on the cat.\n" * 25
NEW = "Élan! (the cat has it); 2 dogs sat, too – with elan.\n" * 20
SMALL: dict[str, Any] = {"batch_size": 3, "seq_len": 9, "sample_chars": 0, "seed": 5, "threads": 1}
SHAPE: dict[str, Any] = {"hidden": 12, "embedding": 5, "layers": 2, "cell": "gru"}


@pytest.fixture
def base(memory: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    """A model that was trained on OLD; the working directory holds both texts."""
    monkeypatch.chdir(memory)
    Path("old.txt").write_text(OLD)
    Path("new.txt").write_text(NEW)
    return charlstm.train(corpus.read(["old.txt"]), "base", **SMALL, **SHAPE, steps=60)


@pytest.fixture
def new(base: Model) -> corpus.Corpus:
    return corpus.read(["new.txt"])


def begin(base: Model, text: corpus.Corpus, run: str = "run", **options: Any) -> Trainer:
    return Trainer.start(text, run, TrainingOptions(**{**SMALL, "steps": 30, **options}), from_=base)


def test_the_vocabulary_is_that_of_both_texts_and_old_characters_keep_their_weights(
    base: Model, new: corpus.Corpus
) -> None:
    run = begin(base, new)
    symbols = run.run.corpus.vocabulary.symbols
    assert symbols == "".join(sorted({*OLD, *NEW}))
    assert run.run.corpus.vocabulary.decode(run.run.corpus.ids) == NEW
    ours = run.state.network.weights()
    for name, array in base.weights.items():
        if name in ("embedding.weight", "projection.weight", "projection.bias"):
            for k, symbol in enumerate(base.vocabulary.symbols):
                assert np.array_equal(ours[name][symbols.index(symbol)], array[k]), (name, symbol)
        else:
            assert np.array_equal(ours[name], array), name


def columns(base: Model, symbols: str) -> list[int]:
    return [symbols.index(symbol) for symbol in base.vocabulary.symbols]


def test_before_the_first_step_predictions_are_those_of_the_base_and_new_characters_are_unlikely(
    base: Model, new: corpus.Corpus
) -> None:
    run = begin(base, new)
    symbols, config = run.run.corpus.vocabulary.symbols, run.state.network.config
    text, zero = OLD[:80], np.zeros(config.state_shape(1))
    theirs, _ = equations(base.config, base.weights, base.vocabulary.encode(text)[:, None], zero)
    ours, _ = equations(config, run.state.network.weights(), run.run.corpus.vocabulary.encode(text)[:, None], zero)
    assert ours[..., columns(base, symbols)] == pytest.approx(theirs, abs=1e-12)
    shares = np.exp(ours) / np.exp(ours).sum(axis=-1, keepdims=True)
    fresh = [k for k, symbol in enumerate(symbols) if symbol not in base.vocabulary.symbols]
    assert len(fresh) > 5
    assert shares[..., fresh].max() < 1 / len(base.vocabulary)
    wrong = np.arange(len(base.vocabulary))  # negative control: ids as they were before the vocabulary grew
    assert ours[..., wrong] != pytest.approx(theirs, abs=1e-3)


def test_new_characters_have_different_embeddings_of_the_usual_size() -> None:
    small, large = ModelConfig(300, 8, embedding=6), ModelConfig(900, 8, embedding=6)
    network, theirs = Network(large), Network(small)
    theirs.initialise(torch.Generator().manual_seed(1), 1.0)
    weights = theirs.weights()
    weights["embedding.weight"] = weights["embedding.weight"] * [2, 4, 6, 8, 10, 12] + 7  # columns of 1 to 6
    network.adopt({k: v.astype(np.float32) for k, v in weights.items()}, np.arange(0, 900, 3), torch.Generator())
    drawn = np.delete(network.weights()["embedding.weight"], np.arange(0, 900, 3), axis=0)
    assert len(np.unique(drawn, axis=0)) == 600
    assert np.abs(drawn.mean(0) - 7).max() < 1
    assert np.abs(drawn.std(0) / [1, 2, 3, 4, 5, 6] - 1).max() < 0.15


def test_a_text_without_new_characters_keeps_the_vocabulary_and_every_weight(base: Model) -> None:
    Path("cats.txt").write_text("a cat and a cat. " * 20)
    run = begin(base, corpus.read(["cats.txt"]))
    assert run.run.corpus.vocabulary == base.vocabulary
    assert all(np.array_equal(array, base.weights[name]) for name, array in run.state.network.weights().items())


def test_another_shape_than_that_of_the_base_is_an_error_with_both_values(base: Model, new: corpus.Corpus) -> None:
    run = begin(base, new, cell="gru", hidden=12)
    assert [getattr(run.run.options, name) for name in SHAPE] == [*SHAPE.values()]
    with pytest.raises(UsageError, match=r"cell lstm \(saved: gru\), hidden 64 \(saved: 12\), layers 1"):
        begin(base, new, "other", cell="lstm", hidden=64, layers=1)
    with pytest.raises(UsageError, match="forget_bias"):
        begin(base, new, "other", forget_bias=2.0)
    with pytest.raises(UsageError, match="memory_length"):
        begin(base, new, "other", memory_length=20)
    assert not Path("other").exists()


def test_the_default_learning_rate_is_lower_than_for_random_weights(base: Model, new: corpus.Corpus) -> None:
    fresh = Trainer.start(new, "fresh", TrainingOptions(**SMALL, **SHAPE, steps=30))
    assert 0 < begin(base, new).run.options.lr < fresh.run.options.lr
    assert begin(base, new, "other", lr=0.3).run.options.lr == 0.3


@pytest.mark.parametrize("cell", ["lstm", "peephole", "rnn"])
def test_a_resumed_fine_tuning_ends_in_the_same_bytes(base: Model, new: corpus.Corpus, cell: Cell) -> None:
    model = charlstm.train(corpus.read(["old.txt"]), "other", **SMALL, **{**SHAPE, "cell": cell}, steps=5)
    list(begin(model, new, "straight", dropout=0.2).events())
    run = begin(model, new, dropout=0.2)
    interrupt(run, 13)
    list(run.events())
    assert checkpoint.load(Path("run", LAST)).step == 13
    resumed = Trainer.resume(new, "run")
    assert resumed.run.started().base == "other/best.safetensors"
    list(resumed.events())
    for name in (BEST, LAST):
        assert Path("run", name).read_bytes() == Path("straight", name).read_bytes()


def test_resuming_with_another_base_is_an_error(base: Model, new: corpus.Corpus) -> None:
    list(begin(base, new).events())
    other = charlstm.train(corpus.read(["old.txt"]), "other", **SMALL, **SHAPE, steps=3)
    list(Trainer.resume(new, "run", {"steps": 31}, from_=base).events())
    with pytest.raises(ResumeError, match=r"was started with base/best\.safetensors, not with other/best\.safetensors"):
        Trainer.resume(new, "run", {"steps": 32}, from_=other)
    with pytest.raises(ResumeError, match="was started with random weights"):
        Trainer.resume(corpus.read(["old.txt"]), "other", {"steps": 4}, from_=base)


def test_fine_tuning_learns_faster_than_random_weights_and_is_scored_on_the_new_text(
    base: Model, new: corpus.Corpus
) -> None:
    charlstm.train(corpus.read(["old.txt"]), "long", **SMALL, **SHAPE, steps=300)
    found = {}
    for run, more in (("tuned", {"from_": "long"}), ("fresh", SHAPE)):
        events: list[Any] = []
        model = charlstm.train(new, run, on_event=events.append, **SMALL, **more, steps=30)
        assert isinstance(events[-1], Stopped)
        found[run] = events[-1].best_valid_bits_per_char
        (validated,) = [event for event in events if isinstance(event, Validated) and event.best]
        cut = int(len(NEW) * 0.9)
        assert model.evaluate() == model.evaluate(NEW[cut:])
        assert model.evaluate().nats_per_char == pytest.approx(validated.valid_nats_per_char, rel=1e-5)
    assert found["tuned"] is not None
    assert found["fresh"] is not None
    assert found["tuned"] < found["fresh"]


def test_a_model_without_a_file_can_be_fine_tuned(base: Model, new: corpus.Corpus) -> None:
    bare = Model(base.config, base.vocabulary, base.weights)
    events = list(begin(bare, new).events())
    assert isinstance(events[0], Started)
    assert events[0].base == "a model without a file"
    list(begin(base, new, "other").events())
    first, second = (checkpoint.load(Path(run, LAST)).weights for run in ("run", "other"))
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_a_text_whose_ids_are_in_a_file_trains_like_one_in_memory(
    base: Model, new: corpus.Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(begin(base, new).events())
    monkeypatch.setattr(corpus, "IN_MEMORY_CHARS", 100)
    stored = corpus.read(["new.txt"])
    assert not isinstance(stored.ids, np.ndarray)
    valid = corpus.read(["old.txt"]).recoded(base.vocabulary.union(stored.vocabulary))
    assert np.array_equal(np.asarray(valid.ids[7:30]), valid.vocabulary.encode(OLD[7:30]))
    list(begin(base, stored, "other").events())
    assert Path("other", LAST).read_bytes() == Path("run", LAST).read_bytes()
    list(Trainer.resume(stored, "other", {"steps": 32}).events())
    assert charlstm.load("other").evaluate().chars == len(NEW) - int(len(NEW) * 0.9)


# the command line

TINY = ("--batch-size", "3", "--seq-len", "9", "--sample-chars", "0", "--threads", "1", "--steps", "6")


@pytest.fixture
def train(base: Model, capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    return lambda *words: here(capfd, "train", *words)


def test_the_option_the_variable_and_the_configuration_of_the_run_have_the_same_effect(
    train: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    done = train("new.txt", "--from", "base", "-o", "run", *TINY)
    assert (done.status, done.out) == (0, b"")
    assert ["from", "base/best.safetensors"] in [line.split() for line in done.err.splitlines()]
    assert train("new.txt", "--config", "run/config.toml", "-o", "again", "-q") == (0, b"", "")
    monkeypatch.setenv("CHARLSTM_TRAIN_FROM", "base/best.safetensors")
    assert train("new.txt", "-o", "third", "-q", *TINY) == (0, b"", "")
    monkeypatch.delenv("CHARLSTM_TRAIN_FROM")
    files = {Path(run, LAST).read_bytes() for run in ("run", "again", "third")}
    assert len(files) == 1
    assert train("new.txt", "-o", "run", "--resume", "--steps", "8", "-q") == (0, b"", "")
    assert 'from = "base/best.safetensors"\n' in Path("run/config.toml").read_text()


def test_the_base_of_a_model_is_shown(train: Callable[..., Done], capfd: pytest.CaptureFixture[str]) -> None:
    train("new.txt", "--from", "base", "-o", "run", "-q", *TINY)
    assert "fine-tuned from  base/best.safetensors\n" in here(capfd, "info", "run").text
    known = json.loads(here(capfd, "info", "run", "--json").out)["facts"]["base"]
    assert known == {"checkpoint": "base/best.safetensors", "sha256": charlstm.load("base").digest.hex()}


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("--from", "base", "--cell", "lstm"), 2, "--cell lstm (saved: gru)"),
        (("--from", "base", "--forget-bias", "0"), 2, "--forget-bias"),
        (("--from", "base", "--memory-length", "9"), 2, "--memory-length"),
        (("--from", "nothing"), 1, "nothing: no such checkpoint"),
        (("--from", "old.txt"), 1, "old.txt is not a safetensors file, or is truncated"),
        (("--from", "base", "-o", "base"), 1, "base already holds a model"),
    ],
)
def test_an_impossible_fine_tuning_is_an_error_in_one_line(
    train: Callable[..., Done], words: tuple[str, ...], status: int, said: str
) -> None:
    before = Path("base", LAST).read_bytes()
    done = train("new.txt", *TINY, *words)
    assert (done.status, done.out, done.err.count("\n")) == (status, b"", 1)
    assert said in done.err
    assert Path("base", LAST).read_bytes() == before
    assert not Path("checkpoints").exists()


def test_a_new_run_does_not_overwrite_the_base(base: Model, new: corpus.Corpus) -> None:
    with pytest.raises(CheckpointError, match="already holds a model"):
        begin(base, new, "base")
