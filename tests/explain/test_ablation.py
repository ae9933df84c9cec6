"""The cost of an ablation is that of a model whose unit or gate is switched off by its weights."""

from __future__ import annotations

import numpy as np
import pytest

from charlstm import cells
from charlstm.config import Cell, ModelConfig
from charlstm.explain import ablation, saturation
from charlstm.explain import trace as traces
from tests.helpers.models import CELLS, Weights, random_weights

IDS = np.random.default_rng(3).integers(0, 7, 90)


def bits_of(config: ModelConfig, weights: Weights) -> np.ndarray:
    return traces.predictions(weights, traces.trace(config, weights, IDS)).bits


def model(cell: Cell, boundary: int | None = None) -> tuple[ModelConfig, Weights]:
    config = ModelConfig(7, hidden=5, layers=2, embedding=3, cell=cell, boundary=boundary)
    return config, random_weights(config, seed=4, scale=4)


@pytest.mark.parametrize("boundary", [None, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_a_unit_without_outgoing_weights_costs_the_same(
    cell: Cell, boundary: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A unit whose h no weight reads is the same as one whose h is 0, except that a GRU adds z·h to itself."""
    monkeypatch.setattr(ablation, "PARTS", 1)
    config, weights = model(cell, boundary)
    bits = bits_of(config, weights)
    found = ablation.ablation(config, weights, traces.trace(config, weights, IDS), bits)
    assert found.unit_chars == 89
    assert found.units.shape == (2, 5)
    for layer, unit in ((0, 1), (1, 3)):
        changed = {name: array.copy() for name, array in weights.items()}
        changed[f"recurrence.weight_hh_l{layer}"][:, unit] = 0
        above = "recurrence.weight_ih_l1" if layer == 0 else "projection.weight"
        changed[above][:, unit] = 0
        cost = bits_of(config, changed)[1:].mean() - bits[1:].mean()
        assert found.units[layer, unit] == pytest.approx(cost, abs=1e-5)
        assert abs(cost) > 1e-3
    assert found.ranking()[0].tolist() == [int(k) for k in np.unravel_index(found.units.argmax(), (2, 5))]


@pytest.mark.parametrize("cell", ["lstm", "peephole", "coupled", "gru"])
def test_a_gate_with_a_large_bias_costs_the_same(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ablation, "PARTS", 1)
    config, weights = model(cell)
    bits = bits_of(config, weights)
    found = ablation.ablation(config, weights, traces.trace(config, weights, IDS), bits)
    assert found.gate_chars == 89
    for k, name in enumerate(found.gates):
        block = cells.GATES[cell].index(name)
        for value in (0, 1):
            changed = {n: array.copy() for n, array in weights.items()}
            changed["recurrence.bias_ih_l1"][5 * block : 5 * block + 5] = 2000 * value - 1000
            cost = bits_of(config, changed)[1:].mean() - bits[1:].mean()
            assert found.gate_costs[1, k, value] == pytest.approx(cost, abs=1e-5), (name, value)


def test_several_parts_start_with_the_state_of_the_whole_text() -> None:
    config, weights = model("lstm")
    bits = bits_of(config, weights)
    found = traces.trace(config, weights, IDS)
    parts, length = ablation._parts(89, 64)
    assert (len(parts), length) == (4, 16)
    costs = ablation._costs(config, weights, found, bits, [ablation._Change(9, None, 0, 0.0)], parts, length)
    np.testing.assert_allclose(costs, 0, atol=1e-6)


def test_a_large_model_is_tried_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    config, weights = model("lstm")
    parameters = sum(array.size for name, array in weights.items() if name != "embedding.weight")
    monkeypatch.setattr(ablation, "BUDGET", 2 * parameters * ablation.MIN_STEPS * 3)
    found = ablation.ablation(config, weights, traces.trace(config, weights, IDS), bits_of(config, weights))
    assert found.unit_chars == ablation.MIN_STEPS
    assert np.count_nonzero(~np.isnan(found.units)) == len(found.ranking()) == 3


@pytest.mark.parametrize("cell", CELLS)
def test_saturation_counts_steps_and_the_memory_is_that_of_the_mean_gate(cell: Cell) -> None:
    config, weights = model(cell)
    trace = traces.trace(config, weights, IDS)
    found = saturation.saturation(cell, trace)
    assert found.gates == tuple(name for name in cells.GATES[cell] if name in "ifozr")
    for k, name in enumerate(found.gates):
        values = trace.gates[:, :, cells.GATES[cell].index(name)]
        np.testing.assert_allclose(found.closed[:, k], (values < 0.1).sum(axis=0) / 90, rtol=1e-6)
        np.testing.assert_allclose(found.open[:, k], (values > 0.9).sum(axis=0) / 90, rtol=1e-6)
    if cell == "rnn":
        assert found.memory is None
        return
    assert found.memory is not None
    kept = "z" if cell == "gru" else "f"
    mean = trace.gates[:, :, cells.GATES[cell].index(kept)].mean(axis=0, dtype=float)
    np.testing.assert_allclose(np.exp(-1 / found.memory), mean, rtol=1e-9)


def test_a_gate_that_is_always_open_has_an_infinite_memory() -> None:
    config, weights = model("lstm")
    weights["recurrence.bias_ih_l0"][5:10] = 1000
    found = saturation.saturation("lstm", traces.trace(config, weights, IDS))
    assert found.memory is not None
    assert np.isinf(found.memory[0]).all()
    assert (found.open[0, 1] == 1).all()
