"""From logits to a symbol, in numpy: the reference of the drawing inside `engine.c`.

The random numbers are a function of (seed, stream, position) and of nothing else: no generator is carried along, so a
text does not depend on how it is cut into blocks or on how many are drawn at once. They are SplitMix64 (Steele, Lea &
Flood 2014), whose n-th output is a mix of `start + n·γ`; each stream has a start of its own.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GAMMA = 0x9E3779B97F4A7C15


def uniform(seed: int, stream: NDArray[np.integer] | int, position: int) -> NDArray[np.float64]:
    """Numbers in [0, 1) with 53 random bits, one for each entry of `stream`, which gives the shape."""
    streams = np.atleast_1d(np.asarray(stream)).astype(np.uint64)
    start = _mix(_mix(np.array([seed], np.uint64)) + streams * np.uint64(GAMMA))
    steps = np.array([((position + 1) * GAMMA) % 2**64], np.uint64)
    return np.asarray((_mix(start + steps) >> np.uint64(11)) * 2.0**-53, np.float64)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def weights(logits: NDArray[np.floating], temperature: float) -> NDArray[np.float64]:
    """e^((logit − largest)/temperature), (…, V): the softmax before it is divided by its sum; the largest is 1.

    Temperature 0 is the limit: 1 at the first of the largest, else 0. A logit of −∞ is a symbol that is never drawn.

    Raises:
        FloatingPointError: the largest logit is NaN or infinite.
    """
    scores = np.asarray(logits, np.float64)
    largest = scores.max(axis=-1, keepdims=True)
    if not np.isfinite(largest).all():
        raise FloatingPointError("the model's logits are not finite")
    if temperature == 0:
        return np.asarray(np.arange(scores.shape[-1]) == scores.argmax(axis=-1)[..., None], np.float64)
    with np.errstate(over="ignore", under="ignore"):
        return np.asarray(np.exp((scores - largest) / temperature))


def draw(logits: NDArray[np.floating], temperature: float, numbers: NDArray[np.float64]) -> NDArray[np.int64]:
    """The symbol (B,) on which each number in [0, 1) falls, of the distribution of logits (B, V)."""
    heap = np.cumsum(weights(logits, temperature), axis=-1)
    return np.asarray((heap <= numbers[:, None] * heap[:, -1:]).sum(axis=-1), np.int64)
