"""The activations of a model while it reads a text, and its predictions.

Letters: T time, B streams that are computed side by side, L layers, G gates of the cell in the order of `cells.GATES`,
H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charlstm.cells import GATES, STATES, Weights, sigmoid
from charlstm.config import ModelConfig
from charlstm.errors import Field, UsageError
from charlstm.inference.engine import Engine, layer_weights

Floats = NDArray[np.floating[Any]]
Ids = np.ndarray[Any, Any]
MAX_BYTES = 2**31  # of the arrays of one trace
STREAMS = 64
MIN_PART = 64  # symbols of a stream
BLOCK_LOGITS = 2**22  # logits in memory at a time


@dataclass(frozen=True)
class Trace:
    """The activations at each symbol of a text; index t is the step that reads symbol t.

    Attributes:
        ids: (T,) the symbols.
        gates: (T, L, G, H) gates and candidate after the nonlinearity, in the order of `cells.GATES`.
        h: (T, L, H) the hidden state after each symbol.
        c: (T, L, H) the cell state; None for the cells that have no memory cell.
    """

    ids: Ids
    gates: Floats
    h: Floats
    c: Floats | None

    def before(self, values: Floats, boundary: int | None) -> Floats:
        """Return the state (T, L, H) before each step: zeros at the start of the text and of a document.

        Args:
            values: `h` or `c`.
            boundary: the id of the boundary between documents, or None.
        """
        shifted = np.concatenate([np.zeros_like(values[:1]), values[:-1]])
        if boundary is not None:
            shifted[self.ids == boundary] = 0
        return shifted


@dataclass(frozen=True)
class Predictions:
    """What the model predicts at each symbol of a text.

    Attributes:
        bits: (T,) surprisal of each symbol in bits, −log2 p(symbol | all symbols before); NaN for the first.
        top_ids: (T, N) the most probable next symbols after each symbol, the most probable first.
        top_shares: (T, N) their probabilities.
    """

    bits: NDArray[np.float64]
    top_ids: Ids
    top_shares: NDArray[np.float32]


def trace(config: ModelConfig, weights: Mapping[str, Any], ids: Ids, engine: Engine | None = None) -> Trace:
    """Read a text from the zero state and record all activations.

    With an engine, the text is divided into streams. The engine computes the state before each of them, and the streams
    are then evaluated side by side, which is about five times faster than one step after another.

    Args:
        config: the shape of the model.
        weights: name → array, with the names and shapes of `config.shapes()`, of any float type.
        ids: (T,) the symbols, T > 0.
        engine: the model in fp32, or None.

    Raises:
        UsageError: the activations do not fit in MAX_BYTES.
    """
    gates = len(GATES[config.cell])
    length = len(ids)
    size = weights["projection.bias"].dtype.itemsize
    if length * config.layers * config.hidden * (gates + 2) * size > MAX_BYTES:
        most = MAX_BYTES // (config.layers * config.hidden * (gates + 2) * size)
        allowed = f"at most {most:,} for a model of this size"
        raise UsageError(Field("chars"), f" must be {allowed}, got {length:,}", value=length, allowed=allowed)
    count = 1 if engine is None else max(1, min(STREAMS, length // MIN_PART))
    part = -(-length // count)
    count = -(-length // part)
    states = np.zeros(config.state_shape(count), weights["projection.bias"].dtype)
    if engine is not None:
        state = engine.zero_state()
        for stream in range(1, count):
            state = engine.advance(ids[(stream - 1) * part : stream * part, None].astype(np.int32), state)
            states[:, :, stream] = state[:, :, 0]
    padded = np.zeros(count * part, np.int64)
    padded[:length] = ids
    rows = padded.reshape(count, part).T  # (part, B)
    fresh = None if config.boundary is None else rows == config.boundary
    x = weights["embedding.weight"][rows]  # (part, B, E)
    found = []
    for layer in range(config.layers):
        found.append(_layer(config.cell, x, states[layer], layer_weights(config, weights, layer), fresh))
        x = found[-1][0]
    arrays = [np.stack([_in_order(each[k], length) for each in found], 1) for k in range(len(found[0]))]
    has_cell = len(STATES[config.cell]) == 2
    return Trace(ids, arrays[-1], arrays[0], arrays[1] if has_cell else None)


def _in_order(values: Floats, length: int) -> Floats:
    """Return (part, B, …) as (T, …), one stream after the other."""
    joined: Floats = np.swapaxes(values, 0, 1).reshape(-1, *values.shape[2:])[:length]
    return joined


def _layer(cell: str, x: Floats, state: Floats, w: Weights, fresh: NDArray[np.bool_] | None) -> tuple[Floats, ...]:
    """Evaluate one layer over all steps with the equations of `cells`.

    Args:
        cell: the kind of the cell.
        x: (T, B, in) the inputs.
        state: (S, B, H) the state before the first step.
        w: the weights of the layer.
        fresh: (T, B) whether a step begins with the zero state; None if no step does.

    Returns:
        h (T, B, H), for the cells that have it c (T, B, H), and the gates (T, B, G, H).
    """
    steps, batch = x.shape[:2]
    hidden = w.weight_hh.shape[1]
    count = len(GATES[cell])
    gates = np.empty((steps, batch, count, hidden), x.dtype)
    history = np.empty((len(state), steps, batch, hidden), x.dtype)
    bias = w.bias_ih if cell == "gru" else w.bias_ih + w.bias_hh
    inputs = (x.reshape(steps * batch, -1) @ w.weight_ih.T + bias).reshape(gates.shape)
    recurrent = np.ascontiguousarray(w.weight_hh.T)
    peephole = np.zeros((3, hidden), x.dtype) if w.peephole is None else w.peephole
    for t in range(steps):
        if fresh is not None and fresh[t].any():
            state = np.where(fresh[t][:, None], np.zeros((), x.dtype), state)
        h, c = state[0], state[-1]
        a, now = (h @ recurrent).reshape(batch, count, hidden), gates[t]
        if cell == "gru":
            a += w.bias_hh.reshape(count, hidden)
            now[:, :2] = sigmoid(inputs[t, :, :2] + a[:, :2])
            now[:, 2] = np.tanh(inputs[t, :, 2] + now[:, 0] * a[:, 2])
            history[0, t] = (1 - now[:, 1]) * now[:, 2] + now[:, 1] * h
        elif cell == "rnn":
            history[0, t] = now[:, 0] = np.tanh(inputs[t, :, 0] + a[:, 0])
        else:
            a += inputs[t]
            if cell == "coupled":
                now[:, 0], now[:, 1] = sigmoid(a[:, 0]), np.tanh(a[:, 1])
                history[1, t] = now[:, 0] * c + (1 - now[:, 0]) * now[:, 1]
            else:
                now[:, :2], now[:, 2] = sigmoid(a[:, :2] + peephole[:2] * c[:, None]), np.tanh(a[:, 2])
                history[1, t] = now[:, 1] * c + now[:, 0] * now[:, 2]
            now[:, -1] = sigmoid(a[:, -1] + peephole[2] * history[1, t])
            history[0, t] = now[:, -1] * np.tanh(history[1, t])
        state = history[:, t]
    return (*history, gates)


def predictions(weights: Mapping[str, Any], found: Trace, top: int = 5) -> Predictions:
    """Return the surprisal of each symbol of a trace, and the most probable next symbols.

    Args:
        weights: the weights of the model.
        found: the trace of a text.
        top: number of next symbols.
    """
    length, size = len(found.ids), len(weights["projection.bias"])
    top = min(top, size)
    bits = np.full(length, np.nan)
    top_ids = np.empty((length, top), np.int32)
    top_shares = np.empty((length, top), np.float32)
    step = max(1, BLOCK_LOGITS // size)
    for first in range(0, length, step):
        scores = logits(weights, found, first, first + step)
        rows = np.arange(len(scores))[:, None]
        best = np.argpartition(-scores, top - 1, axis=1)[:, :top]
        best = np.take_along_axis(best, np.argsort(-scores[rows, best], axis=1, kind="stable"), 1)
        highest = scores.max(axis=1, keepdims=True)
        total = np.exp(scores - highest).sum(axis=1, dtype=np.float64)
        block = slice(first, first + len(scores))
        top_ids[block] = best
        top_shares[block] = np.exp(scores[rows, best] - highest) / total[:, None]
        targets = found.ids[first + 1 : first + 1 + len(scores)].astype(np.int64)
        count = len(targets)
        chosen = (scores[rows[:count, 0], targets] - highest[:count, 0]).astype(np.float64)
        bits[first + 1 : first + 1 + count] = (np.log(total[:count]) - chosen) / np.log(2)
    return Predictions(bits, top_ids, top_shares)


def logits(weights: Mapping[str, Any], found: Trace, first: int = 0, end: int | None = None) -> Floats:
    """Return the logits (end − first, V) of the symbol after each of the steps `first` … `end` − 1."""
    scores: Floats = found.h[first:end, -1] @ weights["projection.weight"].T + weights["projection.bias"]
    return scores
