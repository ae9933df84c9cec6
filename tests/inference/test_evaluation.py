"""Compare the scores of texts with the equations: every transition counts once."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from charlstm.config import Cell, ModelConfig
from charlstm.errors import CorpusError
from charlstm.inference import evaluation
from charlstm.inference.engine import Engine
from charlstm.training.network import Network, Scorer
from tests.helpers.models import CELLS, equations, losses, random_weights, real_ids

Ids = np.ndarray[Any, Any]


def naive(config: ModelConfig, weights: Any, ids: Ids) -> float:
    """Return the bits per character of the equations in float64."""
    logits, _ = equations(config, weights, ids[:-1, None], np.zeros(config.state_shape(1)))
    return float(losses(logits, ids[1:, None]).mean() / math.log(2))


def sharp(config: ModelConfig) -> Any:
    weights = random_weights(config)
    weights["projection.weight"] *= 20
    return weights


@pytest.mark.parametrize("cell", CELLS)
def test_a_network_in_training_scores_like_the_engine(cell: Cell) -> None:
    ids, vocabulary = real_ids(10_000)
    config = ModelConfig(len(vocabulary), hidden=24, embedding=8, cell=cell, boundary=int(vocabulary.lookup(" ")[0][0]))
    network = Network(config)
    network.load_weights(sharp(config))
    ours, engines = (
        evaluation.evaluate(reader, ids[:4000]).nats_per_char
        for reader in (Scorer(network), Engine(config, network.weights(), precision="fp32"))
    )
    assert ours == pytest.approx(engines, abs=1e-6)


@pytest.mark.parametrize("backend", ["auto", "numpy"])
@pytest.mark.parametrize("cell", CELLS)
def test_the_score_of_a_text_equals_the_equations(cell: Cell, backend: Any) -> None:
    ids, vocabulary = real_ids(10_000)
    ids = ids[:4000]
    config = ModelConfig(len(vocabulary), hidden=24, embedding=8, cell=cell)
    weights = sharp(config)
    expected = naive(config, weights, ids)
    engine = Engine(config, weights, precision="fp32", backend=backend)
    exact = evaluation.evaluate(engine, ids, exact=True)
    assert abs(exact.bits_per_char - expected) < 1e-6
    assert exact.protocol.startswith("exact")
    streams = evaluation.evaluate(engine, ids, warm_up=100)
    assert abs(streams.bits_per_char - expected) < 1e-5
    assert streams.protocol == "9 streams, each warmed up on 100 characters"
    cold = evaluation.evaluate(engine, ids, warm_up=0, streams=10)
    assert abs(cold.bits_per_char - expected) > 1e-5  # negative control: without warm-up the score differs


def memoryless(config: ModelConfig) -> Any:
    """Return weights with which each loss depends on the last symbol only, so that one symbol is enough warm-up."""
    weights = sharp(config)
    weights["recurrence.weight_hh_l0"][:] = 0
    weights["recurrence.bias_ih_l0"][config.hidden : 2 * config.hidden] = -200  # the forget gate
    return weights


@pytest.mark.fault("R79")
@pytest.mark.fault("R80")
def test_each_transition_counts_once_for_any_length_streams_and_chunks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text, vocabulary = real_ids(10_000)
    config = ModelConfig(len(vocabulary), hidden=6, embedding=4)
    weights = memoryless(config)
    engine = Engine(config, weights, precision="fp32")
    logits, _ = equations(config, weights, text[:200, None], np.zeros(config.state_shape(1)))
    nats = losses(logits, text[1:201, None])[:, 0]
    rng = np.random.default_rng(1)
    for length in [*range(2, 40), 64, 65, 66, 199, 200]:
        for streams in (1, 2, 3, 5, 9):
            monkeypatch.setattr(evaluation, "CHUNK", streams * int(rng.integers(1, 18)))
            score = evaluation.evaluate(engine, text[:length], streams=streams, warm_up=1)
            assert (score.chars, score.transitions) == (length, length - 1)
            assert abs(score.nats_per_char - nats[: length - 1].mean()) < 1e-6, (length, streams)


@pytest.mark.fault("R81")
def test_the_three_units_express_the_same_loss() -> None:
    config = ModelConfig(65, hidden=3, embedding=2)
    weights = {name: np.zeros(shape, np.float32) for name, shape in config.shapes().items()}
    score = evaluation.evaluate(Engine(config, weights), np.arange(65))
    assert score.nats_per_char == pytest.approx(math.log(65), abs=1e-12)
    assert score.bits_per_char == pytest.approx(math.log2(65), abs=1e-12)
    assert score.perplexity == pytest.approx(65, abs=1e-9)


@pytest.mark.parametrize("chars", [0, 1])
def test_a_text_without_transition_is_refused(chars: int) -> None:
    config = ModelConfig(3, hidden=3, embedding=2)
    with pytest.raises(CorpusError, match=f"a text of {chars} symbols"):
        evaluation.evaluate(Engine(config, random_weights(config)), np.zeros(chars, np.uint8))


def test_the_score_does_not_depend_on_the_number_of_threads() -> None:
    text, vocabulary = real_ids(10_000)
    config = ModelConfig(len(vocabulary), hidden=8, embedding=4)
    weights = sharp(config)
    scores = {
        evaluation.evaluate(Engine(config, weights, precision="fp32", threads=threads), text) for threads in (1, 2, 5)
    }
    assert len(scores) == 1


@pytest.mark.parametrize("exact", [False, True])
def test_the_progress_of_scoring_is_reported_up_to_the_end(exact: bool) -> None:
    ids, vocabulary = real_ids(20_000)
    config = ModelConfig(len(vocabulary), hidden=8, embedding=4)
    reports: list[tuple[int, int | None]] = []
    engine = Engine(config, random_weights(config), precision="fp32")
    evaluation.evaluate(engine, ids, exact=exact, report=lambda *now: reports.append(now))
    assert len(reports) > 3
    assert [done for done, _ in reports] == sorted({done for done, _ in reports})
    assert {total for _, total in reports} == {reports[-1][0]}
