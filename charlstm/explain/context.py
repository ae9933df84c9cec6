"""How many symbols of context a model uses: its surprisal when it has read N symbols before a prediction.

Streams start at many positions of the text with the zero state, and each predicts every symbol that it reads. After N
steps the prediction is made with N symbols of context. The result is reported as the mean surprisal of the whole text
plus the mean difference, at the same symbols, to the predictions with all of the text before them. The differences vary
much less than the surprisals.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from charlstm.explain.trace import Ids
from charlstm.inference.engine import Engine

MANY, FEW = 256, 64  # streams of the first and of the later steps
FIRST_STEPS = 16
MAX_CONTEXT = 256


@dataclass(frozen=True)
class ContextCurve:
    """Surprisal as a function of the context.

    Attributes:
        name: the name of the model.
        context: (N,) numbers of symbols that the model has read: 1, 2, 3, 4, 6, 8, 12, 16, … The value covers all
            numbers since the previous entry.
        bits_per_char: (N,) mean surprisal in bits with so long a context.
        standard_error: (N,) of the difference to the whole context, in bits.
        full_bits_per_char: mean surprisal of the text in bits with all context.
    """

    name: str
    context: NDArray[np.int64]
    bits_per_char: NDArray[np.float64]
    standard_error: NDArray[np.float64]
    full_bits_per_char: float


def curve(engine: Engine, ids: Ids, bits: NDArray[np.float64], name: str = "") -> ContextCurve:
    """Measure the curve of one model.

    Args:
        engine: the model.
        ids: (T,) the symbols of the text, T > 1.
        bits: (T,) the surprisal of each symbol after all symbols before it; the first is not used.
        name: the name of the model in the result.
    """
    steps = min(MAX_CONTEXT, len(ids) - 1)
    last_start = len(ids) - 1 - steps
    starts = _spread(MANY, last_start + 1)
    state = engine.zero_state(len(starts))
    differences: list[NDArray[np.float64]] = []
    for first, end in ((0, min(steps, FIRST_STEPS)), (FIRST_STEPS, steps)):
        if first >= end:
            continue
        if first:
            chosen = _spread(FEW, len(starts))
            starts, state = starts[chosen], np.ascontiguousarray(state[:, :, chosen])
        rows = starts + np.arange(first, end + 1)[:, None]
        nats, state = engine.score(ids[rows].astype(np.int32), state)
        differences += list(nats / np.log(2) - bits[rows[1:]])
    full = float(np.mean(bits[1:]))
    edges = [n for n in _edges() if n < steps] + [steps]
    parts = [np.concatenate(differences[a:b]) for a, b in zip([0, *edges], edges, strict=False)]
    means = np.array([part.mean() for part in parts])
    errors = np.array([part.std() / np.sqrt(len(part)) for part in parts])
    return ContextCurve(name, np.array(edges), full + means, errors, full)


def _edges() -> list[int]:
    """Return 1, 2, 3, 4, 6, 8, 12, 16, 24, … up to MAX_CONTEXT."""
    powers = [2**k for k in range(MAX_CONTEXT.bit_length())]
    return sorted({*powers, *(3 * power // 2 for power in powers[1:])})


def _spread(count: int, size: int) -> NDArray[np.int64]:
    """Return at most `count` different integers from 0 to size − 1, evenly spread."""
    return np.unique(np.linspace(0, size - 1, min(count, size)).astype(np.int64))
