"""Dynamic evaluation scores each transition once, before it learns from it, and keeps the trained weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from charlstm import checkpoint
from charlstm.config import Cell, DynamicConfig, ModelConfig
from charlstm.errors import CorpusError, DivergenceError, UsageError
from charlstm.inference import evaluation
from charlstm.inference.engine import Engine
from charlstm.model import Model
from charlstm.provenance import CorpusRecord
from charlstm.text.vocabulary import Vocabulary
from charlstm.training import dynamic_evaluation
from charlstm.training.network import Network
from tests.helpers.models import CELLS, random_weights

IDS = np.random.default_rng(4).integers(0, 7, 150).astype(np.uint8)


def small(cell: Cell = "lstm") -> tuple[ModelConfig, Any]:
    config = ModelConfig(7, hidden=6, layers=2, embedding=4, cell=cell)
    return config, random_weights(config, scale=3)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("segment", [1, 7, 149, 1000])
def test_a_rate_of_zero_gives_the_score_of_plain_evaluation(cell: Cell, segment: int) -> None:
    config, weights = small(cell)
    score, became = dynamic_evaluation.evaluate(config, weights, IDS, DynamicConfig(rate=0, segment=segment))
    plain = evaluation.evaluate(Engine(config, weights, precision="fp32"), IDS, exact=True)
    assert score.bits_per_char == pytest.approx(plain.bits_per_char, abs=1e-6)
    assert (score.chars, score.transitions) == (plain.chars, plain.transitions)
    for name, array in weights.items():
        np.testing.assert_array_equal(became[name], array)


def test_the_updates_are_those_of_the_equations() -> None:
    """Compare with the equations, applied to one weight at a time in float64, for segments of 50."""
    config, weights = small("gru")
    network = Network(config).double()
    network.load_weights(weights)
    parameters = dict(network.named_parameters())
    trained = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    squares = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    state = network.zero_state(1).double()
    text = torch.from_numpy(IDS.astype(np.int64))
    total = 0.0
    for k, start in enumerate((0, 50, 100), 1):
        end = min(start + 50, len(IDS) - 1)
        logits, state = network(text[start:end, None], state.detach())
        nats = functional.cross_entropy(logits[:, 0], text[start + 1 : end + 1])
        total += float(nats.detach()) * (end - start)
        network.zero_grad()
        nats.backward()
        with torch.no_grad():
            for name, parameter in parameters.items():
                assert parameter.grad is not None
                squares[name] += parameter.grad**2
                parameter.sub_(0.01 * parameter.grad / ((squares[name] / k).sqrt() + 1e-8))
                parameter.add_(0.2 * (trained[name] - parameter))
    score, became = dynamic_evaluation.evaluate(config, weights, IDS, DynamicConfig(rate=0.01, decay=0.2, segment=50))
    assert score.nats_per_char == pytest.approx(total / (len(IDS) - 1), abs=1e-5)
    for name, parameter in parameters.items():
        np.testing.assert_allclose(became[name], parameter.detach().numpy(), atol=2e-4)


def test_a_repeated_text_is_learned() -> None:
    config, weights = small()
    ids = np.tile(np.arange(7), 200)
    plain = evaluation.evaluate(Engine(config, weights, precision="fp32"), ids, exact=True)
    score, _ = dynamic_evaluation.evaluate(config, weights, ids, DynamicConfig(rate=0.01, decay=0))
    assert score.bits_per_char < plain.bits_per_char - 0.5


def test_a_segment_is_scored_before_the_model_learns_from_it() -> None:
    config, weights = small()
    plain = evaluation.evaluate(Engine(config, weights, precision="fp32"), IDS[:11], exact=True)
    score, became = dynamic_evaluation.evaluate(config, weights, IDS[:11], DynamicConfig(rate=1, segment=10))
    assert score.bits_per_char == pytest.approx(plain.bits_per_char, abs=1e-6)
    assert not np.array_equal(became["projection.bias"], weights["projection.bias"])


def test_a_decay_of_one_always_returns_to_the_trained_weights() -> None:
    config, weights = small()
    score, became = dynamic_evaluation.evaluate(config, weights, IDS, DynamicConfig(rate=0.1, decay=1, segment=10))
    plain = evaluation.evaluate(Engine(config, weights, precision="fp32"), IDS, exact=True)
    assert score.bits_per_char == pytest.approx(plain.bits_per_char, abs=1e-5)
    np.testing.assert_allclose(became["projection.weight"], weights["projection.weight"], atol=1e-6)


def test_the_given_weights_are_not_changed() -> None:
    config, weights = small()
    before = {name: array.copy() for name, array in weights.items()}
    dynamic_evaluation.evaluate(config, weights, IDS, DynamicConfig(rate=0.1))
    for name, array in weights.items():
        np.testing.assert_array_equal(array, before[name])


def test_a_diverged_model_is_an_error_that_names_the_rate() -> None:
    config, weights = small()
    weights["projection.bias"][:] = math.inf
    with pytest.raises(DivergenceError, match="reduce dynamic_rate") as caught:
        dynamic_evaluation.evaluate(config, weights, IDS, DynamicConfig())
    assert caught.value.fields == ("dynamic_rate",)


def test_the_adapted_model_is_saved_with_the_vocabulary_and_the_corpus_of_the_model(tmp_path: Path) -> None:
    config, weights = small()
    corpus = {"names": ["text"], "chars": 9, "sha256": "0" * 64, "encoding": "utf-8"}
    record = CorpusRecord.from_json(corpus)
    model = Model(config, Vocabulary.of("abcdefg"), weights, {"corpus": corpus, "chars_seen": 5}, record)
    _, adapted = dynamic_evaluation.evaluate(config, weights, IDS, DynamicConfig(rate=0.1))
    dynamic_evaluation.save_adapted(tmp_path / "adapted.safetensors", model, adapted)
    saved = checkpoint.load(tmp_path / "adapted.safetensors")
    assert saved.vocabulary == model.vocabulary
    for name, array in adapted.items():
        np.testing.assert_array_equal(saved.weights[name], array)
    assert saved.corpus == model.corpus
    assert saved.corpus.sha256 == "0" * 64
    assert "chars_seen" not in saved.facts  # it describes the training of the other weights


@pytest.mark.parametrize("ids", [IDS[:0], IDS[:1]])
def test_a_text_without_a_transition_is_refused(ids: Any) -> None:
    with pytest.raises(CorpusError, match="no transition"):
        dynamic_evaluation.evaluate(*small(), ids, DynamicConfig())


@pytest.mark.parametrize("bad", [{"rate": -1}, {"rate": math.nan}, {"decay": 1.5}, {"segment": 0}, {"segment": 2.0}])
def test_a_value_outside_its_range_is_rejected_with_the_name_of_its_field(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"^{next(iter(bad))} must be "):
        DynamicConfig(**bad)
