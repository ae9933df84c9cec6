"""A model in integer arithmetic: what the exported C computes, in numpy.

The weights are rounded to 8 bits, each row with a factor of its own, and everything after that is integer arithmetic,
so that the exported C gives the same result on every processor. This module rounds the weights, and computes the same
integers as `engine.c.in`, many texts at once: it is the oracle of the C in the tests, and measures what the rounding
costs in bits per character.

Number formats (in Qn, the integer 2^n represents 1): sums before a gate Q11, logits Q10, gates Q15, cell state Q16,
embeddings and hidden activations from −127 to 127.

Letters: B batch, T time, V vocabulary, E embedding, H hidden, L layers, G gates of a cell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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

POWER = np.rint(32768 * 2.0 ** (-np.arange(128) / 128)).astype(np.int64)
"""(128,) 2^(−k/128) in Q15."""

ACTIVATION = 127
CELL_LIMIT = 1 << 27
MAX_UNIT = 128  # so that no sum of a gate exceeds 32 bits


@dataclass(frozen=True)
class Rows:
    """Rows of weights on a vector v of integers, rounded to 8 bits.

    Weights and inputs are multiplied as unsigned bytes, w + 128 and v + 128. The sum of these products is divided by
    256. Less `excess(v)`, plus `start`, it is within 16 bits; times `factor · unit / 256` it is the result.

    Attributes:
        weights: (rows, columns) int8.
        start: (rows,) int16; it contains the bias.
        factor: (rows,) int16.
        unit: a power of two.
    """

    weights: NDArray[np.int8]
    start: NDArray[np.int16]
    factor: NDArray[np.int16]
    unit: int

    def __call__(self, v: Integers) -> Integers:
        """Return the results (B, rows) of inputs (B, columns)."""
        unsigned = self.weights.astype(np.float64) + 128
        sums = ((v + 128).astype(np.float64) @ unsigned.T).astype(np.int64) >> 8  # exact below 2^53
        sums = ((sums + self.start - excess(v) + 32768) & 65535) - 32768
        found: Integers = self.unit * (sums * self.factor >> 8)
        return found


def excess(v: Integers) -> Integers:
    """Return (B, 1), the part of the sums of unsigned bytes that depends on the inputs v (B, columns) alone."""
    found: Integers = (v + 128).sum(axis=1, keepdims=True) >> 1
    return found


def round_rows(parts: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]], bits: int) -> list[Rows]:
    """Round rows of weights; all get the same unit.

    Args:
        parts: weights (rows, columns) for integer inputs, and the bias (rows,) of each.
        bits: of the results after the point: n for Qn.

    Raises:
        CheckpointError: the weights are too large.
    """
    scales = [_scale(weights, bias) for weights, bias in parts]
    unit = common_unit(np.concatenate(scales) * 2.0 ** (16 + bits))
    found = []
    for (weights, bias), exact_scale in zip(parts, scales, strict=True):
        scale = np.maximum(exact_scale, unit * 2.0 ** (-8 - bits))  # so that the factor has 8 significant bits
        rounded = np.rint(weights / scale[:, None]).astype(np.int8)
        # (w + 128)(v + 128) = w·v + 128(v + 128) + 128·w. A quarter is what the dropped bits add up to, on average.
        start = np.rint((bias / scale - 128 * rounded.sum(axis=1, dtype=np.int64)) / 256 + 0.25)
        start = (start + 32768) % 65536 - 32768
        factor = np.rint(scale * 2.0 ** (16 + bits) / unit)
        found.append(Rows(rounded, start.astype(np.int16), factor.astype(np.int16), unit))
    return found


def _scale(weights: NDArray[np.float64], bias: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the real number (rows,) that a weight of 1 represents."""
    size = np.abs(weights)
    largest = (size.sum(axis=1) * ACTIVATION + np.abs(bias)) / 256  # of a sum, which must fit into 16 bits
    return np.asarray(np.maximum(size.max(axis=1, initial=0) / 127, largest / 32500))


@dataclass(frozen=True)
class Table:
    """The first layer's products with every embedding, rounded to 8 bits.

    Attributes:
        rounded: (V, G·H) int8; times `factor · unit / 2^9` it is the product in Q11.
        factor: (G·H,) int16.
        unit: a power of two.
    """

    rounded: NDArray[np.int8]
    factor: NDArray[np.int16]
    unit: int

    @classmethod
    def of(cls, products: NDArray[np.float64]) -> Table:
        """Round products (V, G·H).

        Raises:
            CheckpointError: the products are too large.
        """
        scale = np.abs(products).max(axis=0) / 127
        scale[scale == 0] = 1.0
        factor = scale * 2.0**20
        unit = common_unit(factor)
        return cls(np.rint(products / scale).astype(np.int8), np.rint(factor / unit).astype(np.int16), unit)

    def __call__(self, ids: NDArray[np.integer]) -> Integers:
        """Return the products (B, G·H) in Q11 of symbols ids (B,)."""
        found: Integers = self.unit * (self.rounded[ids].astype(np.int64) * self.factor >> 9)
        return found


def common_unit(factor: NDArray[np.float64]) -> int:
    """Return the smallest power of two by which all factors can be divided so that they fit into 16 bits.

    Raises:
        CheckpointError: it is larger than `MAX_UNIT`.
    """
    largest = factor.max()
    if not largest <= 32767 * MAX_UNIT:
        raise CheckpointError("the weights are too large for integer arithmetic")
    return 1 << max(0, math.ceil(math.log2(largest / 32767)))


def sigmoid(z: Integers) -> Integers:
    """Return σ in Q15 of z in Q11, from the table, interpolated."""
    x = np.abs(np.clip(z, -32767, 32767))
    low, high = SIGMOID[x >> 7], SIGMOID[(x >> 7) + 1]
    y: Integers = low + (((high - low) * (x & 127) + 64) >> 7)
    return np.where(z < 0, 32768 - y, y)


def tangent(z: Integers) -> Integers:
    """Return tanh in Q15 of z in Q11."""
    return 2 * sigmoid(2 * z) - 32768


def clamped(z: Integers) -> Integers:
    """Return numbers limited to 16 bits and a symmetric range."""
    return np.clip(z, -32767, 32767)


def gated(c: Integers, f: Integers) -> Integers:
    """Return c·f in the format of c, for a gate f in Q15."""
    return (c * f) >> 15


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
        w = {name: array.astype(np.float64) for name, array in weights.items()}
        embedding, first = w["embedding.weight"], w["recurrence.weight_ih_l0"]
        rows = len(GATES[config.cell]) * config.hidden
        self.table: Table | None = None
        self.embedding: NDArray[np.int8] | None = None
        if config.vocab_size * rows <= (config.vocab_size + rows) * config.embedding:
            self.table = Table.of(embedding @ first.T)
            first = first[:, :0]
        else:
            step = np.abs(embedding).max(axis=0) / ACTIVATION  # the real number that 1 represents in each column
            step[step == 0] = 1.0
            self.embedding = np.rint(embedding / step).astype(np.int8)
            first = first * step
        parts: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
        for k in range(config.layers):
            inputs = first if k == 0 else w[f"recurrence.weight_ih_l{k}"] / ACTIVATION
            hidden = w[f"recurrence.weight_hh_l{k}"] / ACTIVATION
            input_bias, hidden_bias = w[f"recurrence.bias_ih_l{k}"], w[f"recurrence.bias_hh_l{k}"]
            joint, bias = np.concatenate([inputs, hidden], axis=1), input_bias + hidden_bias
            if config.cell == "gru":  # the two parts of n are not added: r gates the second
                n = 2 * config.hidden
                parts += [(joint[:n], bias[:n]), (inputs[n:], input_bias[n:]), (hidden[n:], hidden_bias[n:])]
            else:
                parts.append((joint, bias))
        self.rows = round_rows(parts, 11)  # one for each layer; of a GRU three: r and z, and the two parts of n
        (self.output,) = round_rows([(w["projection.weight"] / ACTIVATION, w["projection.bias"])], 10)
        self.peephole: Integers | None = None  # (L, 3, H) in Q12
        if config.cell == "peephole":
            found = np.stack([w[f"recurrence.peephole_l{k}"] for k in range(config.layers)])
            self.peephole = np.clip(np.rint(found * 4096), -32767, 32767).astype(np.int64)

    @property
    def inputs(self) -> int:
        """The number of inputs of the first layer: E, or 0 if there is a table."""
        return 0 if self.embedding is None else self.config.embedding

    def zero_state(self, batch: int = 1) -> Integers:
        """Return the state before any text: zeros, (L, 2, B, H)."""
        return np.zeros((self.config.layers, 2, batch, self.config.hidden), np.int64)

    def step(self, ids: NDArray[np.integer], state: Integers) -> Integers:
        """Return the state after each text has read one symbol of ids (B,)."""
        if self.config.boundary is not None:
            state = np.where((ids == self.config.boundary)[:, None], 0, state)
        state = state.copy()
        x = np.zeros((len(ids), 0), np.int64) if self.embedding is None else self.embedding[ids].astype(np.int64)
        for layer in range(self.config.layers):
            z = self._sums(layer, x, state[layer, 1])
            if layer == 0 and self.table is not None:
                z[: len(GATES[self.config.cell])] += self._by_gate(self.table(ids))
            c, h = self._cell(layer, clamped(z), state[layer, 0])
            state[layer, 0] = c
            state[layer, 1] = x = (h - (h >> 7) + 128) >> 8  # h · 127 / 2^15, rounded
        return state

    def _sums(self, layer: int, x: Integers, h: Integers) -> Integers:
        """Return the sums before the gates (G, B, H), of a GRU (4, B, H): r, z, and the two parts of n."""
        joint = np.concatenate([x, h], axis=1)
        if self.config.cell != "gru":
            return self._by_gate(self.rows[layer](joint))
        gates, input_part, hidden_part = self.rows[3 * layer : 3 * layer + 3]
        return self._by_gate(np.concatenate([gates(joint), input_part(x), hidden_part(h)], axis=1))

    def _by_gate(self, sums: Integers) -> Integers:
        return sums.reshape(len(sums), -1, self.config.hidden).swapaxes(0, 1)

    def _cell(self, layer: int, z: Integers, c: Integers) -> tuple[Integers, Integers]:
        """Return the new cell state and the hidden activation in Q15, from sums (G, B, H) and the old cell state."""
        cell = self.config.cell
        if cell == "rnn":
            return c, tangent(z[0])
        if cell == "gru":
            r, u = sigmoid(z[0]), sigmoid(z[1])
            n = tangent(z[2] + gated(z[3], r))
            h = ((32768 - u) * n + u * c) >> 15
            return h, h
        if cell == "coupled":
            f = sigmoid(z[0])
            c = gated(c, f) + 2 * (((32768 - f) * tangent(z[1])) >> 15) + 1
        else:
            i, f = z[0], z[1]
            if self.peephole is not None:
                i, f = _peephole(i, self.peephole[layer, 0], c), _peephole(f, self.peephole[layer, 1], c)
            c = gated(c, sigmoid(f)) + 2 * ((sigmoid(i) * tangent(z[2])) >> 15) + 1
        c = np.clip(c, -CELL_LIMIT, CELL_LIMIT)
        o = z[-1] if self.peephole is None else _peephole(z[-1], self.peephole[layer, 2], c)
        return c, (sigmoid(o) * tangent(clamped((c + 16) >> 5))) >> 15

    def logits(self, state: Integers) -> Integers:
        """Return the logits (B, V) in Q10 of the next symbol."""
        return clamped(self.output(state[-1, 1]))

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
            logits = self.logits(state) / 1024
            logits -= logits.max(axis=1, keepdims=True)
            total = np.log(np.exp(logits).sum(axis=1))
            nats[t] = total - logits[np.arange(len(logits)), ids[t + 1]]
        return nats, state


def _peephole(z: Integers, p: Integers, c: Integers) -> Integers:
    """Return z + p·c in Q11, for c in Q16 and p in Q12, with the rounding of the C."""
    return clamped(z + (((c >> 16) * p + ((((c & 0xFFFF) >> 1) * p) >> 15)) >> 1))


def weight_bits(vocab_size: int) -> int:
    """Return n, where the weight of the most likely symbol is 2^n: the sum of all weights must fit into 32 bits."""
    return min(23, 31 - math.ceil(math.log2(max(2, vocab_size))))


def symbol_weights(logits: Integers, temperature: int, top_k: int = 0) -> Integers:
    """Return the weight of each symbol (V,), from logits (V,); the probability is the share of the sum.

    Args:
        logits: of one text, in Q10; below −32767 for a symbol that cannot follow.
        temperature: in thousandths; 0 is greedy.
        top_k: keep only the most likely symbols; 0 keeps all. Of equal ones the first are kept.
    """
    below = logits.max() - logits
    if temperature == 0:
        return np.asarray(np.arange(len(logits)) == np.flatnonzero(below == 0)[0], np.int64)
    rate = 23_637_144 // temperature  # 1000 · log2(e) / temperature, from Q10 to Q8, in Q16
    x = below * (rate >> 16) + ((below * (rate & 0xFFFF)) >> 16)
    bits = weight_bits(len(logits))
    weights: Integers = (POWER[(x & 255) >> 1] << (bits - 15)) >> np.minimum(x >> 8, 31)
    weights = np.where((logits < -32767) | (x >> 8 > bits), 0, weights)
    if 0 < top_k < len(logits):
        weights[np.argsort(-weights, kind="stable")[top_k:]] = 0
    return weights
