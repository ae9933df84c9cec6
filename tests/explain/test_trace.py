"""The recorded activations are those of the equations in `cells`, and the predictions are those of the engine."""

from __future__ import annotations

import numpy as np
import pytest

from charlstm import cells
from charlstm.config import Cell, ModelConfig
from charlstm.errors import UsageError
from charlstm.explain import trace as traces
from charlstm.inference import surprisal
from charlstm.inference.engine import Engine
from tests.helpers.models import CELLS, equations, losses, random_weights


def model(cell: Cell, layers: int, boundary: int | None = None) -> tuple[ModelConfig, dict[str, np.ndarray]]:
    config = ModelConfig(7, hidden=5, layers=layers, embedding=3, cell=cell, boundary=boundary)
    return config, random_weights(config, seed=layers, scale=3)


@pytest.mark.parametrize("boundary", [None, 2])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_states_and_logits_are_those_of_the_equations(cell: Cell, layers: int, boundary: int | None) -> None:
    config, weights = model(cell, layers, boundary)
    exact = {name: array.astype(np.float64) for name, array in weights.items()}
    ids = np.random.default_rng(1).integers(0, 7, 60)
    found = traces.trace(config, exact, ids)
    expected, state = equations(config, weights, ids[:, None], np.zeros(config.state_shape(1)))
    np.testing.assert_allclose(traces.logits(exact, found), expected[:, 0], atol=1e-12)
    np.testing.assert_allclose(found.h[-1], state[:, 0, 0], atol=1e-12)
    if found.c is None:
        assert cell in ("gru", "rnn")
    else:
        np.testing.assert_allclose(found.c[-1], state[:, 1, 0], atol=1e-12)


@pytest.mark.parametrize("cell", CELLS)
def test_gates_and_the_state_before_a_step_give_the_state_after_it(cell: Cell) -> None:
    config, weights = model(cell, 2, boundary=0)
    found = traces.trace(config, weights, np.random.default_rng(2).integers(0, 7, 40))
    h = found.before(found.h, 0)
    gates = {name: found.gates[:, :, k] for k, name in enumerate(cells.GATES[cell])}
    if cell == "rnn":
        np.testing.assert_array_equal(gates["h"], found.h)
        return
    if cell == "gru":
        np.testing.assert_allclose((1 - gates["z"]) * gates["n"] + gates["z"] * h, found.h, atol=1e-6)
        assert all(0 < gates[name].min() <= gates[name].max() < 1 for name in "rz")
        return
    assert found.c is not None
    i = 1 - gates["f"] if cell == "coupled" else gates["i"]
    np.testing.assert_allclose(gates["f"] * found.before(found.c, 0) + i * gates["g"], found.c, atol=1e-6)
    np.testing.assert_allclose(gates["o"] * np.tanh(found.c), found.h, atol=1e-6)


@pytest.mark.parametrize("cell", CELLS)
def test_gates_are_in_the_order_of_cells(cell: Cell) -> None:
    """Large biases open or close one gate after the other; its trace, and no other, is then 0 or 1."""
    config, weights = model(cell, 1)
    size = config.hidden
    for k, name in enumerate(cells.GATES[cell]):
        changed = {n: array.copy() for n, array in weights.items()}
        changed["recurrence.bias_ih_l0"][k * size : (k + 1) * size] = 50
        gates = traces.trace(config, changed, np.arange(7)).gates[:, 0]
        for other in range(len(cells.GATES[cell])):
            assert bool((gates[:, other] > 0.999).all()) == (other == k), name


@pytest.mark.parametrize("boundary", [None, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_streams_from_the_states_of_the_engine_give_the_same_trace(cell: Cell, boundary: int | None) -> None:
    config, weights = model(cell, 2, boundary)
    ids = np.random.default_rng(3).integers(0, 7, 1001)
    one = traces.trace(config, weights, ids)
    many = traces.trace(config, weights, ids, Engine(config, weights, precision="fp32"))
    for ours, theirs in ((one.h, many.h), (one.gates, many.gates)):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)
    wrong = Engine(config, random_weights(config, seed=9, scale=3), precision="fp32")
    assert np.abs(traces.trace(config, weights, ids, wrong).h - one.h).max() > 0.01, "the states are not used"


def test_surprisal_and_top_symbols_are_those_of_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    config, weights = model("lstm", 1)
    ids = np.random.default_rng(4).integers(0, 7, 50)
    found = traces.trace(config, weights, ids)
    monkeypatch.setattr(traces, "BLOCK_LOGITS", 7 * 11)  # several blocks
    predicted = traces.predictions(weights, found, 5)
    expected = surprisal.bits(Engine(config, weights, precision="fp32"), ids)
    np.testing.assert_allclose(predicted.bits[1:], expected, atol=1e-5)
    assert np.isnan(predicted.bits[0])
    logits = traces.logits(weights, found)
    shares = np.exp(-losses(np.repeat(logits[:, None], 7, 1), np.tile(np.arange(7), (50, 1))))
    np.testing.assert_array_equal(predicted.top_ids, np.argsort(-shares, axis=1)[:, :5])
    np.testing.assert_allclose(predicted.top_shares, -np.sort(-shares, axis=1)[:, :5], atol=1e-6)


def test_a_trace_that_does_not_fit_in_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config, weights = model("lstm", 1)
    monkeypatch.setattr(traces, "MAX_BYTES", 1000)
    with pytest.raises(UsageError, match=r"chars must be at most 8 for a model of this size, got 9"):
        traces.trace(config, weights, np.zeros(9, int))
    assert len(traces.trace(config, weights, np.zeros(8, int)).h) == 8
