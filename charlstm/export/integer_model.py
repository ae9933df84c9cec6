"""A model in integer arithmetic: what the exported C computes, in numpy.

The weights are rounded to 8 bits, each row with a factor of its own, and everything after that is integer arithmetic,
so that the exported C gives the same result on every processor. This module rounds the weights, and computes the same
integers as `engine.c.in`, many texts at once: it is the oracle of the C in the tests, and measures what the rounding
costs in bits per character.

Number formats (in Qn, the integer 2^n represents 1): sums before a gate and logits Q11, gates Q15, cell state Q16,
hidden activations 127.

Letters: B batch, T time, V vocabulary, E embedding, H hidden, L layers, G gates of a cell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charlstm.cells import GATES
from charlstm.config import ModelConfig
from charlstm.errors import CheckpointError

Integers = NDArray[np.int64]

SIGMOID = np.minimum(32767, np.rint(32768 / (1 + np.exp(-np.arange(257) / 16)))).astype(np.int64)
"""(257,) σ(k/16) in Q15, at most 32767 so that it fits into 16 bits."""

POWER = np.rint(32768 * 2.0 ** (-np.arange(65) / 64)).astype(np.int64)
"""(65,) 2^(−k/64) in Q15."""

ACTIVATION = 127
CELL_LIMIT = 1 << 28


@dataclass(frozen=True)
class Matrix:
    """Rows of weights, rounded to 8 bits.

    Attributes:
        rounded: (rows, columns) int8.
        factor: (rows,) int16; the sum of a row's products times `factor · unit / 2^16` is the result in Q11.
        unit: a power of two, common to all rows.
    """

    rounded: NDArray[np.int8]
    factor: NDArray[np.int16]
    unit: int

    @classmethod
    def of(cls, weights: NDArray[np.float32], step: float) -> Matrix:
        """Round a matrix (rows, columns) whose inputs count in steps of `step`."""
        largest = np.abs(weights.astype(np.float64)).max(axis=1)
        scale = np.where(largest > 0, largest, 1.0) / 127
        rounded = np.rint(weights / scale[:, None]).astype(np.int8)
        factor = scale * step * 2.0**27
        unit = 1 << max(0, math.ceil(math.log2(factor.max() / 32767)))
        if unit > 1 << 12:
            raise CheckpointError("the weights are too large for integer arithmetic")
        return cls(rounded, np.rint(factor / unit).astype(np.int16), unit)

    def __call__(self, x: Integers) -> Integers:
        """Return the products (B, rows) in Q11 of inputs (B, columns)."""
        sums = (x.astype(np.float64) @ self.rounded.T.astype(np.float64)).astype(np.int64)  # exact below 2^53
        spare = spare_bits(x.shape[1])
        found: Integers = self.unit * (((sums >> spare) * self.factor) >> (16 - spare))
        return found


def spare_bits(n: int) -> int:
    """Return how many of the lowest bits of a sum of `n` products are dropped so that it fits into 16 bits."""
    return 8 if n <= 512 else 10 if n <= 2048 else 12


def sigmoid(z: Integers) -> Integers:
    """Return σ in Q15 of z in Q11, from the table, interpolated."""
    x = np.minimum(np.abs(z), 32767)
    low, high = SIGMOID[x >> 7], SIGMOID[(x >> 7) + 1]
    y: Integers = low + (((high - low) * (x & 127) + 64) >> 7)
    return np.where(z < 0, 32768 - y, y)


def tangent(z: Integers) -> Integers:
    """Return tanh in Q15 of z in Q11."""
    return 2 * sigmoid(2 * np.clip(z, -32767, 32767)) - 32768


def gated(c: Integers, f: Integers) -> Integers:
    """Return c·f in the format of c, for a gate f in Q15."""
    return (c * f) >> 15


def q11(values: NDArray[np.floating]) -> Integers:
    """Round real numbers to Q11."""
    return np.rint(values.astype(np.float64) * 2048).astype(np.int64)


class IntegerModel:
    """A model whose weights are rounded to 8 bits, computed in integers.

    It has the methods that `inference.evaluation.evaluate` needs. A state is (L, 2, B, H): the cell state in Q16 (of a
    GRU the hidden state in Q15), and the hidden activations.

    Args:
        config: the shape of the model.
        weights: name → float32 array, as in a checkpoint.

    Raises:
        CheckpointError: weights that are too large to be rounded.
    """

    def __init__(self, config: ModelConfig, weights: Mapping[str, NDArray[np.float32]]) -> None:
        self.config = config
        gates = len(GATES[config.cell])
        embedding, first = weights["embedding.weight"], weights["recurrence.weight_ih_l0"]
        rows = gates * config.hidden
        self.embedding_step = float(np.abs(embedding).max()) / 127 or 1.0
        self.has_table = config.vocab_size * rows <= config.vocab_size * config.embedding + rows * config.embedding
        if self.has_table:
            # Products of every symbol's embedding; the transposed table has a row for each gate and unit.
            table = Matrix.of((embedding.astype(np.float64) @ first.T.astype(np.float64)).T.astype(np.float32), 1 / 128)
            self.table: Matrix | None = table
            self.embedding: NDArray[np.int8] | None = None
            self.first: Matrix | None = None
        else:
            self.table = None
            self.embedding = np.rint(embedding / self.embedding_step).astype(np.int8)
            self.first = Matrix.of(first, self.embedding_step)
        layers = range(config.layers)
        self.inputs = [Matrix.of(weights[f"recurrence.weight_ih_l{k}"], 1 / ACTIVATION) for k in layers[1:]]
        self.hidden = [Matrix.of(weights[f"recurrence.weight_hh_l{k}"], 1 / ACTIVATION) for k in layers]
        self.bias = np.stack([self._bias(weights, k) for k in layers])  # (L, G·H)
        self.hidden_bias: Integers | None = None  # (L, H), the GRU only
        if config.cell == "gru":
            self.hidden_bias = np.stack([q11(weights[f"recurrence.bias_hh_l{k}"][2 * config.hidden :]) for k in layers])
        self.peephole: Integers | None = None  # (L, 3, H) in Q12
        if config.cell == "peephole":
            found = np.stack([weights[f"recurrence.peephole_l{k}"] for k in layers]).astype(np.float64)
            self.peephole = np.clip(np.rint(found * 4096), -32767, 32767).astype(np.int64)
        self.output = Matrix.of(weights["projection.weight"], 1 / ACTIVATION)
        self.output_bias = q11(weights["projection.bias"])

    def _bias(self, weights: Mapping[str, NDArray[np.float32]], layer: int) -> Integers:
        input_bias = weights[f"recurrence.bias_ih_l{layer}"].astype(np.float64)
        hidden_bias = weights[f"recurrence.bias_hh_l{layer}"].astype(np.float64)
        if self.config.cell == "gru":  # the candidate's hidden bias is gated by r
            hidden_bias[2 * self.config.hidden :] = 0
        return q11(input_bias + hidden_bias)

    def zero_state(self, batch: int = 1) -> Integers:
        """Return the state before any text: zeros, (L, 2, B, H)."""
        return np.zeros((self.config.layers, 2, batch, self.config.hidden), np.int64)

    def step(self, ids: NDArray[np.integer], state: Integers) -> Integers:
        """Return the state after each text has read one symbol of ids (B,)."""
        if self.config.boundary is not None:
            state = np.where((ids == self.config.boundary)[:, None], 0, state)
        state = state.copy()
        hidden = self.config.hidden
        x: Integers | None = None
        for layer in range(self.config.layers):
            if x is not None:
                z = self.inputs[layer - 1](x)
            elif self.table is not None:
                z = self.table.unit * ((self.table.rounded.T[ids].astype(np.int64) * self.table.factor) >> 9)
            else:
                assert self.embedding is not None
                assert self.first is not None
                z = self.first(self.embedding[ids].astype(np.int64))
            z = z + self.bias[layer]
            own = self.hidden[layer](state[layer, 1])
            gates = (len(ids), -1, hidden)
            z, own = z.reshape(gates).swapaxes(0, 1), own.reshape(gates).swapaxes(0, 1)  # (G, B, H)
            c, h = self._cell(layer, z, own, state[layer, 0])
            state[layer, 0] = c
            state[layer, 1] = x = (h * ACTIVATION + 16384) >> 15
        return state

    def _cell(self, layer: int, z: Integers, own: Integers, c: Integers) -> tuple[Integers, Integers]:
        """Return the new cell state and the hidden activation in Q15, from sums (G, B, H) and the old cell state."""
        cell = self.config.cell
        if cell == "rnn":
            return c, tangent(z[0] + own[0])
        if cell == "gru":
            assert self.hidden_bias is not None
            r, u = sigmoid(z[0] + own[0]), sigmoid(z[1] + own[1])
            n = tangent(z[2] + gated(own[2] + self.hidden_bias[layer], r))
            h = ((32768 - u) * n + u * c) >> 15
            return h, h
        z = z + own
        if cell == "coupled":
            f = sigmoid(z[0])
            c = gated(c, f) + (((32768 - f) * tangent(z[1])) >> 14)
        else:
            i, f = z[0], z[1]
            if self.peephole is not None:
                i, f = i + _peephole(c, self.peephole[layer, 0]), f + _peephole(c, self.peephole[layer, 1])
            c = gated(c, sigmoid(f)) + ((sigmoid(i) * tangent(z[2])) >> 14)
        c = np.clip(c, -CELL_LIMIT, CELL_LIMIT)
        o = z[-1] if self.peephole is None else z[-1] + _peephole(c, self.peephole[layer, 2])
        return c, (sigmoid(o) * tangent(np.clip((c + 16) >> 5, -32767, 32767))) >> 15

    def logits(self, state: Integers) -> Integers:
        """Return the logits (B, V) in Q11 of the next symbol."""
        return self.output(state[-1, 1]) + self.output_bias

    def advance(self, ids: NDArray[np.integer], state: Any) -> Any:
        """Return the state after reading ids (T, B)."""
        for symbols in ids:
            state = self.step(symbols, state)
        return state

    def score(self, ids: NDArray[np.integer], state: Any) -> tuple[NDArray[np.float64], Any]:
        """Return the surprisal in nats (T, B) of ids[1:], for ids (T + 1, B), and the state after ids[T − 1]."""
        nats = np.empty((len(ids) - 1, ids.shape[1]))
        for t, symbols in enumerate(ids[:-1]):
            state = self.step(symbols, state)
            logits = self.logits(state) / 2048
            logits -= logits.max(axis=1, keepdims=True)
            total = np.log(np.exp(logits).sum(axis=1))
            nats[t] = total - logits[np.arange(len(logits)), ids[t + 1]]
        return nats, state


def _peephole(c: Integers, p: Integers) -> Integers:
    """Return p·c in Q11, for c in Q16 and p in Q12, with the rounding of the C."""
    return ((c >> 16) * p + ((((c & 0xFFFF) >> 1) * p) >> 15)) >> 1


def weight_bits(vocab_size: int) -> int:
    """Return n, where the weight of the most likely symbol is 2^n: the sum of all weights must fit into 32 bits."""
    return min(24, 31 - math.ceil(math.log2(max(2, vocab_size))))


def symbol_weights(logits: Integers, temperature: int, top_k: int = 0) -> Integers:
    """Return the weight of each symbol (V,), from logits (V,) in Q11; the probability is the share of the sum.

    Args:
        logits: of one text.
        temperature: in thousandths; 0 is greedy.
        top_k: keep only the most likely symbols; 0 keeps all. Of equal ones the first are kept.
    """
    below = logits.max() - logits
    if temperature == 0:
        return np.asarray(np.arange(len(logits)) == np.flatnonzero(below == 0)[0], np.int64)
    rate = 94_548_574 // temperature  # 1000 · log2(e) / temperature, in Q16
    x = np.minimum(below, 65535)
    x = x * (rate >> 16) + ((x * (rate & 0xFFFF)) >> 16)
    high, low = POWER[(x & 2047) >> 5], POWER[((x & 2047) >> 5) + 1]
    weights: Integers = (high - (((high - low) * (x & 31) + 16) >> 5)) << (weight_bits(len(logits)) - 15)
    weights = np.where((below > 65535) | (x >> 11 > weight_bits(len(logits))), 0, weights >> np.minimum(x >> 11, 31))
    if 0 < top_k < len(logits):
        weights[np.argsort(-weights, kind="stable")[top_k:]] = 0
    return weights
