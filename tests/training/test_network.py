"""The initialisation of a network follows its sources, and its scorer agrees with the engine."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from charlstm.cells import GATES
from charlstm.config import Cell, ModelConfig
from charlstm.inference.engine import Engine
from charlstm.training.network import Network, Scorer
from tests.helpers.models import CELLS


def initialised(cell: Cell, counts: np.ndarray | None = None) -> Network:
    network = Network(ModelConfig(7, hidden=6, layers=2, embedding=4, cell=cell))
    network.initialise(torch.Generator().manual_seed(5), 1.5, counts)
    return network


@pytest.mark.parametrize("cell", CELLS)
def test_each_recurrent_block_is_orthogonal_and_each_input_block_is_not(cell: Cell) -> None:
    weights = initialised(cell).weights()
    for block in np.split(weights["recurrence.weight_hh_l1"], len(GATES[cell])):
        np.testing.assert_allclose(block @ block.T, np.eye(6), atol=1e-5)
    for block in np.split(weights["recurrence.weight_ih_l1"], len(GATES[cell])):
        assert np.abs(block @ block.T - np.eye(6)).max() > 0.1


@pytest.mark.parametrize("cell", CELLS)
def test_the_forget_bias_is_that_of_the_gate_that_keeps_the_state(cell: Cell) -> None:
    bias = np.split(initialised(cell).weights()["recurrence.bias_ih_l0"], len(GATES[cell]))
    keeping = {"lstm": "f", "peephole": "f", "coupled": "f", "gru": "z", "rnn": None}[cell]
    for gate, block in zip(GATES[cell], bias, strict=True):
        np.testing.assert_array_equal(block, np.full(6, 1.5 if gate == keeping else 0.0))


@pytest.mark.parametrize("cell", ["lstm", "peephole", "coupled", "gru"])
def test_a_memory_length_of_n_steps_keeps_all_but_one_part_in_n_and_lets_in_one_part_in_n(cell: Cell) -> None:
    network = Network(ModelConfig(7, hidden=6, layers=2, embedding=4, cell=cell))
    network.initialise(torch.Generator().manual_seed(5), 1.0, memory_length=300)
    weights = network.weights()
    for layer in (0, 1):
        bias = np.split(weights[f"recurrence.bias_ih_l{layer}"], len(GATES[cell]))
        gates = {gate: 1 / (1 + np.exp(-block)) for gate, block in zip(GATES[cell], bias, strict=True)}
        assert not weights[f"recurrence.bias_hh_l{layer}"].any()
        keeping = gates.pop({"gru": "z"}.get(cell, "f"))
        np.testing.assert_allclose(-1 / np.log(keeping), 299.5, rtol=1e-3)  # steps until 1/e of the state is left
        if "i" in gates:
            np.testing.assert_allclose(gates.pop("i"), 1 / 300, rtol=1e-3)
        for gate in gates.values():
            np.testing.assert_array_equal(gate, 0.5)


@pytest.mark.parametrize("cell", CELLS)
def test_a_memory_length_changes_only_biases_of_the_gates(cell: Cell) -> None:
    """So the random numbers of all other weights, and of the run after them, stay the same."""
    with_length = Network(ModelConfig(7, hidden=6, layers=2, embedding=4, cell=cell))
    generator = torch.Generator().manual_seed(5)
    with_length.initialise(generator, 1.5, memory_length=50)
    expected, other = initialised(cell).weights(), torch.Generator().manual_seed(5)
    Network(with_length.config).initialise(other, 1.5)
    assert torch.equal(generator.get_state(), other.get_state())
    differing = {name for name, array in with_length.weights().items() if not np.array_equal(array, expected[name])}
    assert differing == (set() if cell == "rnn" else {"recurrence.bias_ih_l0", "recurrence.bias_ih_l1"})


def test_the_bias_of_the_projection_predicts_the_frequencies_of_the_symbols() -> None:
    counts = np.array([9, 4, 0, 1, 0, 0, 0])
    bias = initialised("lstm", counts).weights()["projection.bias"]
    np.testing.assert_allclose(np.exp(bias), np.array([10, 5, 1, 2, 1, 1, 1]) / 21, rtol=1e-6)
    assert not initialised("lstm").weights()["projection.bias"].any()


@pytest.mark.parametrize("cell", CELLS)
def test_the_scorer_of_a_network_agrees_with_the_engine(cell: Cell) -> None:
    network = initialised(cell)
    engine, scorer = Engine(network.config, network.weights(), precision="fp32"), Scorer(network)
    ids = np.random.default_rng(2).integers(0, 7, (9, 3))
    expected, last = engine.score(ids, engine.zero_state(3))
    nats, state = scorer.score(ids, scorer.zero_state(3))
    np.testing.assert_allclose(nats, expected, atol=1e-5)
    np.testing.assert_allclose(state, last, atol=1e-5)
    np.testing.assert_allclose(scorer.advance(ids[:-1], scorer.zero_state(3)), last, atol=1e-5)
    # Negative control: another order of the symbols has other scores.
    assert np.abs(scorer.score(ids[::-1], scorer.zero_state(3))[0] - expected).max() > 1e-2
