"""The gradients are those of torch's autograd in float64, for every cell, and the gates' product is the direct path."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from charlstm import cells
from charlstm.config import Cell, ModelConfig
from charlstm.explain import gradients
from charlstm.explain import trace as traces
from charlstm.explain.trace import Trace
from tests.helpers.models import CELLS, random_weights

torch = pytest.importorskip("torch")
LAGS, BOUNDARY = 12, 2


class Case:
    """A random model in float64, a text, and the graph of torch for the same text.

    Args:
        cell: the cell.
        layers: number of layers.
        boundary: the id of the boundary of documents, or None.
        direct: detach the hidden state and the peepholes, so that the direct path from c to c alone remains.
    """

    def __init__(self, cell: Cell, layers: int, boundary: int | None = None, direct: bool = False) -> None:
        self.config = ModelConfig(7, hidden=5, layers=layers, embedding=3, cell=cell, boundary=boundary)
        found = random_weights(self.config, seed=layers, scale=2)
        self.weights = {name: array.astype(np.float64) for name, array in found.items()}
        self.ids = np.random.default_rng(5).integers(0, 7, 40)
        self.trace: Trace = traces.trace(self.config, self.weights, self.ids)
        tensors = {name: torch.from_numpy(array) for name, array in self.weights.items()}
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "peephole")
        state = [tuple(torch.zeros(1, 5, dtype=torch.float64) for _ in cells.STATES[cell]) for _ in range(layers)]
        self.states: list[list[tuple[Any, ...]]] = []
        self.inputs: list[Any] = []
        self.logits: list[Any] = []
        for symbol in self.ids.tolist():
            one_hot = torch.zeros(1, 7, dtype=torch.float64)
            one_hot[0, symbol] = 1
            x = one_hot.requires_grad_() @ tensors["embedding.weight"]
            if symbol == boundary:
                state = [tuple(torch.zeros_like(value) for value in layer) for layer in state]
            for layer in range(layers):
                w = cells.Weights(*(tensors.get(f"recurrence.{name}_l{layer}") for name in names))
                old = state[layer]
                state[layer] = self._direct_step(cell, x, old, w) if direct else cells.STEP[cell](x, old, w)
                x = state[layer][0]
            self.states.append(list(state))
            self.inputs.append(one_hot)
            self.logits.append(x @ tensors["projection.weight"].T + tensors["projection.bias"])

    @staticmethod
    def _direct_step(cell: Cell, x: Any, old: tuple[Any, ...], w: cells.Weights) -> tuple[Any, ...]:
        """Compute a step whose gates are constants: the only gradient to an earlier step is through c (GRU: h)."""
        fixed = tuple(value.detach() for value in old)
        gates = cells.STEP[cell](x, fixed, w)
        if cell == "gru":
            z = cells.sigmoid((x @ w.weight_ih.T + w.bias_ih + fixed[0] @ w.weight_hh.T + w.bias_hh)[:, 5:10]).detach()
            return (gates[0] + z * (old[0] - fixed[0]),)
        pre = x @ w.weight_ih.T + w.bias_ih + fixed[0] @ w.weight_hh.T + w.bias_hh
        block = cells.GATES[cell].index("f")
        own = 0 if w.peephole is None else w.peephole[1] * fixed[1]
        f = cells.sigmoid(pre[:, 5 * block : 5 * block + 5] + own).detach()
        c = gates[1] + f * (old[1] - fixed[1])
        own = 0 if w.peephole is None else w.peephole[2] * c
        o = cells.sigmoid(pre[:, -5:] + own)
        return o * cells.tanh(c), c

    def loss(self, t: int) -> Any:
        return torch.nn.functional.cross_entropy(self.logits[t], torch.tensor([int(self.ids[t + 1])]))

    def gradients(self, value: Any, t: int, index: int, layer: int) -> list[float]:
        """Return the norms of the gradient with respect to the states t, t − 1, …; 0 if there is no path."""
        wanted = [self.states[t - k][layer][index] for k in range(min(LAGS, t) + 1)]
        found = torch.autograd.grad(value, wanted, retain_graph=True, allow_unused=True)
        return [0.0 if gradient is None else float(gradient.norm()) for gradient in found]


@pytest.mark.parametrize("boundary", [None, BOUNDARY])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_norms_are_those_of_autograd(cell: Cell, layers: int, boundary: int | None) -> None:
    case = Case(cell, layers, boundary)
    for t in (3, 20, 38):
        found = gradients.norms(case.config, case.weights, case.trace, np.array([t]), LAGS)
        span = next((k for k in range(t + 1) if case.ids[t - k] == boundary), t)
        span = min(span, LAGS)
        assert found.positions.tolist() == [1] * (span + 1) + [0] * (LAGS - span)
        for index, values in enumerate([found.h, found.c]):
            if values is None:
                assert cell in ("gru", "rnn")
                continue
            assert np.isnan(values[span + 1 :]).all()
            for layer in range(layers):
                expected = case.gradients(case.loss(t), t, index, layer)[: span + 1]
                np.testing.assert_allclose(values[: span + 1, layer, 1], expected, rtol=1e-6)


def test_a_wrong_derivative_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a backward pass that forgets the derivative of the forget gate differs from autograd."""
    case = Case("lstm", 1)
    right = gradients.norms(case.config, case.weights, case.trace, np.array([20]), LAGS)

    def forgetful(d_h: Any, memory: Any, gates: Any, *rest: Any) -> Any:
        memory = gradients._Memory(memory.gradient, memory.c, np.zeros_like(memory.old))
        return gradients._lstm(d_h, memory, gates, *rest)

    monkeypatch.setitem(gradients._BACKWARD, "lstm", forgetful)
    wrong = gradients.norms(case.config, case.weights, case.trace, np.array([20]), LAGS)
    assert not np.allclose(wrong.h[1:], right.h[1:], rtol=1e-4)


@pytest.mark.parametrize("cell", ["lstm", "peephole", "coupled", "gru"])
def test_the_product_of_gates_is_the_gradient_along_the_direct_path(cell: Cell) -> None:
    case, whole = Case(cell, 2, direct=True), Case(cell, 2)
    index = 0 if cell == "gru" else 1
    for t in (20, 38):
        found = gradients.norms(whole.config, whole.weights, whole.trace, np.array([t]), LAGS)
        assert found.path is not None
        np.testing.assert_allclose(case.logits[t].detach(), whole.logits[t].detach(), atol=1e-12)
        expected = case.gradients(case.loss(t), t, index, 1)  # in the highest layer it is the whole gradient
        np.testing.assert_allclose(found.path[:, 1, 1], expected, rtol=1e-6)


def test_the_plain_network_has_no_direct_path_and_the_product_is_that_of_the_gates() -> None:
    case = Case("rnn", 1)
    found = gradients.norms(case.config, case.weights, case.trace, np.array([20]), LAGS)
    assert found.path is None
    assert found.product is None
    case = Case("lstm", 1)
    found = gradients.norms(case.config, case.weights, case.trace, np.array([20]), LAGS)
    assert found.product is not None
    f = case.trace.gates[:, 0, 1]
    expected = [np.prod(f[20 - k + 1 : 21], axis=0).mean() for k in range(LAGS + 1)]
    np.testing.assert_allclose(found.product[:, 0, 1], expected, rtol=1e-12)


@pytest.mark.parametrize("boundary", [None, BOUNDARY])
@pytest.mark.parametrize("cell", CELLS)
def test_connectivity_is_the_squared_gradient_of_the_logit(cell: Cell, boundary: int | None) -> None:
    case = Case(cell, 2, boundary)
    positions = np.array([1, 20, 38])
    found = gradients.connectivity(case.config, case.weights, case.trace, positions, LAGS)
    for row, t in enumerate(positions.tolist()):
        wanted = [case.inputs[t - k] for k in range(min(LAGS, t) + 1)]
        logit = case.logits[t][0, int(case.ids[t + 1])]
        slopes = torch.autograd.grad(logit, wanted, retain_graph=True, allow_unused=True)
        squares = np.array([0.0 if slope is None else float((slope**2).sum()) for slope in slopes])
        expected = np.zeros(LAGS + 1)
        expected[: len(squares)] = squares / squares.max()
        np.testing.assert_allclose(found.values[row], expected, atol=1e-6)


def test_quartiles_are_those_of_numpy_and_gradients_below_float32_are_measured() -> None:
    case = Case("lstm", 1)
    positions = np.arange(15, 39)
    together = gradients.norms(case.config, case.weights, case.trace, positions, LAGS)
    alone = [gradients.norms(case.config, case.weights, case.trace, np.array([t]), LAGS).h[:, 0, 1] for t in positions]
    np.testing.assert_allclose(together.h[:, 0], np.percentile(alone, [25, 50, 75], axis=0).T, rtol=1e-9)

    config = ModelConfig(7, hidden=5, embedding=3, cell="rnn")
    weights = random_weights(config)
    weights["recurrence.weight_hh_l0"] = 1e-3 * np.eye(5, dtype=np.float32)
    found = traces.trace(config, weights, case.ids)
    small = gradients.norms(config, weights, found, np.array([38]), 30).h[:, 0, 1]
    assert 0 < small[30] < 1e-85
