"""A model as a page contains it: a header in JSON, and the weights as one block of bytes.

The block holds, in this order and little-endian, each part on a multiple of four bytes:

    table (V, G·H)                      the sums of the first layer for every symbol; or, if that is larger,
    embedding (V, E), input, bias       the weights to compute them
    for every layer                     input (G·H, H) and bias (G·H) except in the first, hidden (G·H, H),
                                        candidate bias (H, the GRU only), peephole (3, H, that cell only)
    projection (V, H), bias (V)

Table, embedding, the first input and all biases are float32. The other matrices are float32 as well, or in a page with
the precision int8 a factor of each row in float32, followed by the weights as int8. The rows of the candidate in the
GRU's hidden matrix, the last H, are a matrix of their own. The rounding is that of csrc/engine_weights.c.

Letters: V vocabulary, E embedding, H hidden, G gates of a cell.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from charlstm.cells import GATES, STATES
from charlstm.config import ModelConfig, Precision
from charlstm.errors import CheckpointError, Field, UsageError
from charlstm.text.vocabulary import Vocabulary

Floats = NDArray[np.float32]

FP32_BYTES = 4 << 20
"""Largest block that the precision 'auto' writes in float32."""

MOST_BYTES = 256 << 20
"""Largest block of a page: browsers limit the length of a string to about 500 million characters."""


@dataclass(frozen=True)
class PageModel:
    """A model in the form that `engine.js` reads.

    Attributes:
        header: the shape of the model and its vocabulary, for JSON.
        weights: the block of bytes.
    """

    header: dict[str, Any]
    weights: bytes

    @property
    def precision(self) -> Literal["fp32", "int8"]:
        """The precision of the weights."""
        return "int8" if self.header["precision"] == "int8" else "fp32"


def page_model(
    config: ModelConfig, vocabulary: Vocabulary, weights: Mapping[str, Floats], precision: Precision = "auto"
) -> PageModel:
    """Return a model in the form that `engine.js` reads.

    Args:
        config: the shape of the model.
        vocabulary: its symbols.
        weights: name → float32 array, as in a checkpoint.
        precision: 'auto' selects fp32 if the weights then take at most 4 MB, else int8.

    Raises:
        UsageError: the precision is invalid.
        CheckpointError: weights that are NaN or infinite, or too many for a page.
    """
    if precision not in get_args(Precision):
        allowed = "one of auto, fp32, int8"
        raise UsageError(Field("precision"), f" must be {allowed}, got {precision!a}", value=precision, allowed=allowed)
    for name, array in weights.items():
        if not np.isfinite(array).all():
            raise CheckpointError(f"the weights are not finite numbers: {name}")
    if precision == "auto":
        precision = "fp32" if block_bytes(config, "fp32") <= FP32_BYTES else "int8"
    if (size := block_bytes(config, precision)) > MOST_BYTES:
        advice = "" if precision == "int8" else "; use int8"
        raise CheckpointError(
            f"the weights take {size >> 20} MB, but a page holds at most {MOST_BYTES >> 20} MB{advice}"
        )
    block = b"".join(_parts(config, weights, precision == "int8"))
    assert len(block) == size
    header = {
        "cell": config.cell,
        "vocabulary": config.vocab_size,
        "embedding": config.embedding,
        "hidden": config.hidden,
        "layers": config.layers,
        "gates": GATES[config.cell],
        "states": STATES[config.cell],
        "precision": precision,
        "table": _has_table(config),
        "characters": None if vocabulary.kind == "bytes" else vocabulary.symbols,
        "boundary": vocabulary.boundary_id,
        "boundaryText": vocabulary.boundary,
        "start": _start(vocabulary),
    }
    return PageModel(header, block)


def block_bytes(config: ModelConfig, precision: Literal["fp32", "int8"]) -> int:
    """Return the number of bytes that the weights of a model take in a page."""
    V, E, H, layers = config.vocab_size, config.embedding, config.hidden, config.layers
    rows = len(GATES[config.cell]) * H
    first = V * rows if _has_table(config) else V * E + rows * E + rows
    others = (layers - 1) * rows + V + layers * H * {"gru": 1, "peephole": 3}.get(config.cell, 0)
    matrices = [(rows, H)] * (2 * layers - 1)
    if config.cell == "gru":
        matrices = [(rows, H)] * (layers - 1) + [(rows - H, H), (H, H)] * layers
    matrices.append((V, H))
    if precision == "fp32":
        return 4 * (first + others + sum(n * k for n, k in matrices))
    return 4 * (first + others) + sum(4 * n + -(-n * k // 4) * 4 for n, k in matrices)


def _has_table(config: ModelConfig) -> bool:
    """Return whether the first layer's sums of all symbols are smaller than the weights that compute them."""
    rows = len(GATES[config.cell]) * config.hidden
    return config.vocab_size * rows <= config.vocab_size * config.embedding + rows * config.embedding + rows


def _parts(config: ModelConfig, weights: Mapping[str, Floats], int8: bool) -> Iterator[bytes]:
    """Yield the parts of the block in their order."""
    H, gru = config.hidden, config.cell == "gru"
    for layer in range(config.layers):
        named = {name: weights[f"recurrence.{name}_l{layer}"] for name in ("weight_ih", "weight_hh")}
        input_bias, hidden_bias = weights[f"recurrence.bias_ih_l{layer}"], weights[f"recurrence.bias_hh_l{layer}"]
        bias = input_bias + hidden_bias
        if gru:  # the candidate's hidden bias is multiplied by the reset gate
            bias[2 * H :] = input_bias[2 * H :]
        if layer > 0:
            yield from _matrix(named["weight_ih"], int8)
            yield _floats(bias)
        elif _has_table(config):
            yield _floats(_products(weights["embedding.weight"], named["weight_ih"], bias))
        else:
            yield _floats(weights["embedding.weight"])
            yield _floats(named["weight_ih"])
            yield _floats(bias)
        if gru:
            yield from _matrix(named["weight_hh"][: 2 * H], int8)
            yield from _matrix(named["weight_hh"][2 * H :], int8)
            yield _floats(hidden_bias[2 * H :])
        else:
            yield from _matrix(named["weight_hh"], int8)
        if config.cell == "peephole":
            yield _floats(weights[f"recurrence.peephole_l{layer}"])
    yield from _matrix(weights["projection.weight"], int8)
    yield _floats(weights["projection.bias"])


def _floats(array: Floats) -> bytes:
    return array.astype("<f4").tobytes()


def _matrix(weights: Floats, int8: bool) -> Iterator[bytes]:
    """Yield a matrix (rows, columns): its numbers, or a factor of each row and whole numbers from −127 to 127."""
    if not int8:
        yield _floats(weights)
        return
    largest = np.abs(weights).max(axis=1)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):  # a row of zeros, or of denormal numbers
        inverse = np.where(largest > 0, np.float32(127) / largest, np.float32(0))
        rounded = np.rint(weights * inverse[:, None])
    yield _floats(largest / np.float32(127 * 127))
    block = np.where(np.isfinite(rounded), rounded, 0).astype(np.int8).tobytes()
    yield block + bytes(-len(block) % 4)


def _products(embedding: Floats, weight: Floats, bias: Floats) -> Floats:
    """Return bias + embedding · weightᵀ, (V, G·H), with the roundings of a fused multiply-add for each term in turn."""
    sums = np.broadcast_to(bias, (len(embedding), len(bias)))
    for k in range(embedding.shape[1]):
        exact = np.multiply.outer(embedding[:, k].astype(np.float64), weight[:, k].astype(np.float64))
        sums = (exact + sums).astype(np.float32)
    return sums


def _start(vocabulary: Vocabulary) -> int:
    """Return the symbol that a text without a prime begins after, as `inference.context.advance` chooses it."""
    if vocabulary.boundary_id is not None:
        return vocabulary.boundary_id
    return vocabulary.symbols.index(next((s for s in "\n " if s in vocabulary.symbols), vocabulary.symbols[0]))
