"""Dynamic evaluation: each transition once, before it is learnt from, and the trained weights stay as they are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from charlstm.config import Cell, DynamicConfig, ModelConfig
from charlstm.errors import CorpusError, DivergenceError, UsageError
from charlstm.inference import evaluation
from charlstm.inference.engine import Engine
from charlstm.training import dynamic_evaluation
from charlstm.training.network import Network
from tests.helpers.models import CELLS, random_weights

IDS = np.random.default_rng(4).integers(0, 7, 150).astype(np.uint8)


def small(cell: Cell = "lstm") -> tuple[ModelConfig, Any]:
    config = ModelConfig(7, hidden=6, layers=2, embedding=4, cell=cell)
    return config, random_weights(config, scale=3)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("segment", [1, 7, 149, 1000])
def test_a_model_that_learns_nothing_scores_as_without(cell: Cell, segment: int) -> None:
    config, weights = small(cell)
    score, became = dynamic_evaluation.evaluate(config, weights, IDS, DynamicConfig(rate=0, segment=segment))
    plain = evaluation.evaluate(Engine(config, weights, precision="fp32"), IDS, exact=True)
    assert score.bits_per_char == pytest.approx(plain.bits_per_char, abs=1e-6)
    assert (score.chars, score.transitions) == (plain.chars, plain.transitions)
    for name, array in weights.items():
        np.testing.assert_array_equal(became[name], array)


def test_the_updates_are_those_of_the_equations() -> None:
    """Segments of 50, of one weight at a time, in float64 beside the room's float32."""
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


def test_a_text_that_repeats_itself_is_learnt() -> None:
    config, weights = small()
    ids = np.tile(np.arange(7), 200)
    plain = evaluation.evaluate(Engine(config, weights, precision="fp32"), ids, exact=True)
    score, _ = dynamic_evaluation.evaluate(config, weights, ids, DynamicConfig(rate=0.01, decay=0))
    assert score.bits_per_char < plain.bits_per_char - 0.5


def test_what_comes_first_is_scored_before_anything_is_learnt() -> None:
    config, weights = small()
    plain = evaluation.evaluate(Engine(config, weights, precision="fp32"), IDS[:11], exact=True)
    score, became = dynamic_evaluation.evaluate(config, weights, IDS[:11], DynamicConfig(rate=1, segment=10))
    assert score.bits_per_char == pytest.approx(plain.bits_per_char, abs=1e-6)
    assert not np.array_equal(became["projection.bias"], weights["projection.bias"])


def test_a_full_decay_always_comes_back_to_the_trained_weights() -> None:
    config, weights = small()
    score, became = dynamic_evaluation.evaluate(config, weights, IDS, DynamicConfig(rate=0.1, decay=1, segment=10))
    plain = evaluation.evaluate(Engine(config, weights, precision="fp32"), IDS, exact=True)
    assert score.bits_per_char == pytest.approx(plain.bits_per_char, abs=1e-5)
    np.testing.assert_allclose(became["projection.weight"], weights["projection.weight"], atol=1e-6)


def test_the_weights_that_were_given_stay_as_they_are() -> None:
    config, weights = small()
    before = {name: array.copy() for name, array in weights.items()}
    dynamic_evaluation.evaluate(config, weights, IDS, DynamicConfig(rate=0.1))
    for name, array in weights.items():
        np.testing.assert_array_equal(array, before[name])


def test_weights_that_diverge_are_an_error_that_says_what_to_do() -> None:
    config, weights = small()
    weights["projection.bias"][:] = math.inf
    with pytest.raises(DivergenceError, match="--dynamic-rate"):
        dynamic_evaluation.evaluate(config, weights, IDS, DynamicConfig())


@pytest.mark.parametrize("ids", [IDS[:0], IDS[:1]])
def test_a_text_without_transition_is_refused(ids: Any) -> None:
    with pytest.raises(CorpusError, match="no transition"):
        dynamic_evaluation.evaluate(*small(), ids, DynamicConfig())


@pytest.mark.parametrize("bad", [{"rate": -1}, {"rate": math.nan}, {"decay": 1.5}, {"segment": 0}, {"segment": 2.0}])
def test_settings_out_of_their_range_are_refused_by_their_flag(bad: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"--dynamic-{next(iter(bad))}"):
        DynamicConfig(**bad)
