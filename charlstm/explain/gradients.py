"""Why gradients survive: derivatives of a loss or a logit with respect to earlier states and inputs.

The backward pass is the derivative of the equations in `cells`, and it starts at many positions of the text at once.
Each row is divided by its norm after each step, and the logarithm of the product of these norms is kept, so that a
gradient that has become as small as 1e-300 is measured and not rounded to zero.

Letters: T time, M positions that a backward pass starts from, K steps back, V vocabulary, E embedding, L layers,
G gates, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charlstm.cells import GATES, Weights
from charlstm.config import ModelConfig
from charlstm.explain.trace import Floats, Ids, Trace, logits
from charlstm.inference.engine import layer_weights

QUARTILES = (25, 50, 75)
_OPEN = {"lstm": "f", "peephole": "f", "coupled": "f", "gru": "z"}
"""The gate that multiplies the old value on the direct path from one state to the next; a plain RNN has none."""


@dataclass(frozen=True)
class GradientNorms:
    """Norms of gradients of the loss at a step t with respect to the states k steps before it.

    The loss of step t is the surprisal in nats of the symbol after it. A quartile is taken over many t; a pair (t, k)
    counts if the steps t − k … t are in the same document. Where no pair counts, the values are NaN.

    Attributes:
        name: the name of the model.
        lags: (K + 1,) the number of steps k, from 0.
        positions: (K + 1,) the number of positions t that count for each k.
        h: (K + 1, L, 3) quartiles of the norm of ∂loss_t/∂h_{t−k}.
        c: (K + 1, L, 3) the same for c; None if the cell has no memory cell.
        path: (K + 1, L, 3) the same along the direct path alone: ∂loss_t/∂c_t ⊙ f_t ⊙ … ⊙ f_{t−k+1}, in a GRU
            ∂loss_t/∂h_t ⊙ z_t ⊙ … ⊙ z_{t−k+1}. None if the cell has no such path.
        product: (K + 1, L, 3) quartiles over t of the mean over the units of f_t · … · f_{t−k+1} (z for a GRU).
    """

    name: str
    lags: NDArray[np.int64]
    positions: NDArray[np.int64]
    h: NDArray[np.float64]
    c: NDArray[np.float64] | None
    path: NDArray[np.float64] | None
    product: NDArray[np.float64] | None


@dataclass(frozen=True)
class Connectivity:
    """How much each earlier symbol influences the logit of a symbol.

    The measure is that of "Visualizing memorization in RNNs" (Distill, 2019): the squared gradient of the logit with
    respect to the one-hot input, summed over the vocabulary.

    Attributes:
        positions: (M,) the steps t; the logit is that of the symbol t + 1.
        values: (M, K + 1) the influence of the symbols t, t − 1, …, t − K on it, divided by the largest of them; 0
            before the start of the text or of the document.
    """

    positions: NDArray[np.int64]
    values: NDArray[np.float32]


@dataclass(frozen=True)
class _Step:
    """The gradients at one step of a backward pass, of rows that are scaled.

    Attributes:
        lag: k, the number of steps back.
        d_h: (L, M, H) with respect to h.
        d_c: (L, M, H) with respect to c; None if the cell has no memory cell.
        d_x: (M, E) with respect to the embedding of the input; None if it is not needed.
        log_scale: (M,) the logarithm of the factor by which each row must be multiplied.
        alive: (M,) whether the step is in the same document as the start of the row.
    """

    lag: int
    d_h: Floats
    d_c: Floats | None
    d_x: Floats | None
    log_scale: NDArray[np.float64]
    alive: NDArray[np.bool_]


def norms(
    config: ModelConfig, weights: Mapping[str, Any], found: Trace, positions: Ids, lags: int, name: str = ""
) -> GradientNorms:
    """Measure how the gradient of the loss changes with the number of steps that it flows back.

    Args:
        config: the shape of the model.
        weights: the weights of the model.
        found: the trace of a text of T symbols.
        positions: (M,) steps of the text below T − 1.
        lags: K, the largest number of steps back.
        name: the name of the model in the result.
    """
    shape = (lags + 1, config.layers, len(positions))
    h, c, path, product = (np.full(shape, np.nan) for _ in range(4))
    counts = np.zeros(lags + 1, np.int64)
    gate = GATES[config.cell].index(_OPEN[config.cell]) if config.cell in _OPEN else None
    start = _loss_gradient(weights, found, positions)
    direct: Floats = np.zeros(0)
    ones: Floats = direct
    for step in _backward(config, weights, found, positions, start, lags, is_input_needed=False):
        k, alive, scale = step.lag, step.alive, np.exp(step.log_scale)
        counts[k] = alive.sum()
        h[k, :, alive] = (_norm(step.d_h) * scale).T[alive]
        if step.d_c is not None:
            c[k, :, alive] = (_norm(step.d_c) * scale).T[alive]
        if gate is None:
            continue
        if k == 0:
            direct = (step.d_h if step.d_c is None else step.d_c) * scale[:, None]
            ones = np.ones_like(direct, np.float64)
        else:  # the factor on the path from t − k to t − k + 1 is the gate of step t − k + 1
            factor = np.swapaxes(found.gates[np.maximum(positions - k + 1, 0), :, gate], 0, 1)
            direct, ones = direct * factor, ones * factor
        path[k, :, alive] = _norm(direct).T[alive]
        product[k, :, alive] = ones.mean(axis=2).T[alive]
    return GradientNorms(
        name,
        np.arange(lags + 1),
        counts,
        _quartiles(h),
        None if found.c is None else _quartiles(c),
        None if gate is None else _quartiles(path),
        None if gate is None else _quartiles(product),
    )


def connectivity(
    config: ModelConfig, weights: Mapping[str, Any], found: Trace, positions: Ids, lags: int
) -> Connectivity:
    """Measure the influence of earlier symbols on the logit of the symbol after each of the positions.

    Args:
        config: the shape of the model.
        weights: the weights of the model.
        found: the trace of a text of T symbols.
        positions: (M,) steps of the text below T − 1.
        lags: K, the largest number of steps back.
    """
    logs = np.full((len(positions), lags + 1), -np.inf)
    embedding = weights["embedding.weight"]
    gram = embedding.T @ embedding  # (E, E): the sum over V of (d_x · embedding[v])² is d_x · gram · d_x
    start = weights["projection.weight"][found.ids[positions + 1].astype(np.int64)]
    for step in _backward(config, weights, found, positions, start, lags, is_input_needed=True):
        assert step.d_x is not None
        squares = np.einsum("me,me->m", step.d_x @ gram, step.d_x, dtype=np.float64)
        with np.errstate(divide="ignore"):
            logs[:, step.lag] = np.where(step.alive, np.log(np.maximum(squares, 0)) + 2 * step.log_scale, -np.inf)
    highest = logs.max(axis=1, keepdims=True)
    values = np.nan_to_num(np.exp(logs - np.where(np.isfinite(highest), highest, 0)), posinf=0)
    return Connectivity(np.asarray(positions, np.int64), values.astype(np.float32))


def _loss_gradient(weights: Mapping[str, Any], found: Trace, positions: Ids) -> Floats:
    """Return the gradient (M, H) of the loss of each position with respect to the output of the highest layer."""
    start = np.empty((len(positions), found.h.shape[2]), found.h.dtype)
    for row, t in enumerate(positions.tolist()):
        scores = logits(weights, found, t, t + 1)[0]
        shares = np.exp(scores - scores.max())
        shares /= shares.sum()
        shares[int(found.ids[t + 1])] -= 1
        start[row] = shares @ weights["projection.weight"]
    return start


def _backward(
    config: ModelConfig,
    weights: Mapping[str, Any],
    found: Trace,
    positions: Ids,
    start: Floats,
    lags: int,
    is_input_needed: bool,
) -> Iterator[_Step]:
    """Yield the gradients at the steps t, t − 1, …, t − K of each position t.

    Args:
        config: the shape of the model.
        weights: the weights of the model.
        found: the trace of the text.
        positions: (M,) the steps t.
        start: (M, H) the gradient with respect to the output of the highest layer at t.
        lags: K.
        is_input_needed: compute the gradient with respect to the input, which takes a third of the time.
    """
    layers = [layer_weights(config, weights, layer) for layer in range(config.layers)]
    old_h = found.before(found.h, config.boundary)
    old_c = None if found.c is None else found.before(found.c, config.boundary)
    count, dtype = len(positions), found.h.dtype
    d_h = np.zeros((config.layers, count, config.hidden), dtype)
    d_c = None if found.c is None else np.zeros_like(d_h)
    alive, size = np.ones(count, bool), _norm(start)
    size = np.where(size > 0, size, 1)
    start, log_scale = (start / size[:, None]).astype(dtype), np.log(size)
    for lag in range(lags + 1):
        alive = alive & (positions >= lag)
        if not alive.any():
            return
        now = np.maximum(positions - lag, 0)
        d_x: Floats | None = start if lag == 0 else None
        states_h, states_c = np.empty_like(d_h), None if d_c is None else np.empty_like(d_h)
        for layer in reversed(range(config.layers)):
            states_h[layer] = total = d_h[layer] if d_x is None else d_h[layer] + d_x
            memory = None
            if found.c is not None and old_c is not None and d_c is not None and states_c is not None:
                memory = _Memory(d_c[layer], found.c[now, layer], old_c[now, layer])
            cell = _BACKWARD[config.cell]
            d_inputs, d_hidden, d_direct, d_memory, at_c = cell(
                total, memory, found.gates[now, layer], found.h[now, layer], old_h[now, layer], layers[layer]
            )
            d_x = d_inputs @ layers[layer].weight_ih if layer or is_input_needed else None
            d_h[layer] = d_hidden @ layers[layer].weight_hh
            if d_direct is not None:
                d_h[layer] += d_direct
            if d_c is not None and states_c is not None:
                d_c[layer], states_c[layer] = d_memory, at_c
        yield _Step(lag, states_h, states_c, d_x, log_scale, alive)
        if config.boundary is not None:
            alive = alive & (found.ids[now] != config.boundary)
        size = np.sqrt((d_h * d_h).sum(axis=(0, 2)) + (0 if d_c is None else (d_c * d_c).sum(axis=(0, 2))))
        size = np.where(size > 0, size, 1)
        log_scale = log_scale + np.log(size)
        d_h /= size[:, None]
        if d_c is not None:
            d_c /= size[:, None]


@dataclass(frozen=True)
class _Memory:
    """The memory cell at one step of a layer: (M, H) each.

    Attributes:
        gradient: with respect to c, from the steps after this one.
        c: its value after the step.
        old: its value before the step.
    """

    gradient: Floats
    c: Floats
    old: Floats


_Result = tuple[Floats, Floats, Floats | None, Floats | None, Floats | None]
"""The gradients of the input's and of the hidden state's part of the gates (M, G·H each); of h before the step without
the path through the gates; of c before the step; and of c after it."""


def _lstm(d_h: Floats, memory: Any, gates: Floats, h: Floats, old_h: Floats, w: Weights) -> _Result:
    """Differentiate one step of the LSTM, with or without peepholes."""
    i, f, g, o = np.moveaxis(gates, 1, 0)
    squashed = np.tanh(memory.c)
    d_o = d_h * squashed * o * (1 - o)
    d_c = memory.gradient + d_h * o * (1 - squashed**2)
    if w.peephole is not None:
        d_c = d_c + d_o * w.peephole[2]
    d_i, d_f, d_g = d_c * g * i * (1 - i), d_c * memory.old * f * (1 - f), d_c * i * (1 - g**2)
    d_old = d_c * f
    if w.peephole is not None:
        d_old = d_old + d_i * w.peephole[0] + d_f * w.peephole[1]
    d_gates = np.concatenate([d_i, d_f, d_g, d_o], 1)
    return d_gates, d_gates, None, d_old, d_c


def _coupled(d_h: Floats, memory: Any, gates: Floats, h: Floats, old_h: Floats, w: Weights) -> _Result:
    """Differentiate one step of the LSTM with coupled gates."""
    f, g, o = np.moveaxis(gates, 1, 0)
    squashed = np.tanh(memory.c)
    d_o = d_h * squashed * o * (1 - o)
    d_c = memory.gradient + d_h * o * (1 - squashed**2)
    d_gates = np.concatenate([d_c * (memory.old - g) * f * (1 - f), d_c * (1 - f) * (1 - g**2), d_o], 1)
    return d_gates, d_gates, None, d_c * f, d_c


def _gru(d_h: Floats, memory: Any, gates: Floats, h: Floats, old_h: Floats, w: Weights) -> _Result:
    """Differentiate one step of the gated recurrent unit."""
    r, z, n = np.moveaxis(gates, 1, 0)
    size = h.shape[1]
    d_n = d_h * (1 - z) * (1 - n**2)
    candidate = old_h @ w.weight_hh[2 * size :].T + w.bias_hh[2 * size :]
    d_rz = [d_n * candidate * r * (1 - r), d_h * (old_h - n) * z * (1 - z)]
    return np.concatenate([*d_rz, d_n], 1), np.concatenate([*d_rz, d_n * r], 1), d_h * z, None, None


def _rnn(d_h: Floats, memory: Any, gates: Floats, h: Floats, old_h: Floats, w: Weights) -> _Result:
    """Differentiate one step of the simple recurrent network."""
    d_gates = d_h * (1 - h**2)
    return d_gates, d_gates, None, None, None


_BACKWARD = {"lstm": _lstm, "peephole": _lstm, "coupled": _coupled, "gru": _gru, "rnn": _rnn}


def _norm(values: Floats) -> NDArray[np.float64]:
    """Return the Euclidean norm over the last axis, in float64."""
    squares: NDArray[np.float64] = np.einsum("...h,...h->...", values, values, dtype=np.float64)
    return np.sqrt(squares)


def _quartiles(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the quartiles (K + 1, L, 3) over the last axis; NaN are left out, and where all are NaN the result is."""
    known = ~np.isnan(values)
    ordered = np.sort(values, axis=2)  # NaN are last
    count = known.sum(axis=2)
    result = np.full((*values.shape[:2], 3), np.nan)
    for k, share in enumerate(QUARTILES):
        rank = np.maximum(count - 1, 0) * share / 100
        low = np.take_along_axis(ordered, np.floor(rank).astype(int)[..., None], 2)[..., 0]
        high = np.take_along_axis(ordered, np.ceil(rank).astype(int)[..., None], 2)[..., 0]
        result[..., k] = low + (high - low) * (rank % 1)
    return result
