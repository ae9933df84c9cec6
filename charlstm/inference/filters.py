"""From logits to a symbol, in numpy: the reference of the drawing inside `engine.c`.

A `Rule` says how. Its parts apply in this order, and each sees what the one before it has left, renormalised: what may
follow, what is allowed, the penalty on what was said lately, the temperature, top-k, top-p, min-p, locally typical
sampling. A filter never leaves nothing.

The random numbers are a function of (seed, stream, position) and of nothing else: no generator is carried along, so a
text does not depend on how it is cut into blocks or on how many are drawn at once. They are SplitMix64 (Steele, Lea &
Flood 2014), whose n-th output is a mix of `start + n·γ`; each stream has a start of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from charlstm.text.utf8 import NEVER

GAMMA = 0x9E3779B97F4A7C15
TIES = 2.0**32  # deviations from the entropy within the inverse of this, in nats, are equal: rounding decides nothing

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Rule:
    """How a symbol is drawn. Every default leaves the softmax of the logits as it is.

    Raises:
        ValueError: a value out of its range.
    """

    temperature: float = 1.0  # 0 takes the first of the likeliest of what is allowed
    top_k: int = 0  # 0: all
    top_p: float = 1.0
    min_p: float = 0.0
    typical: float = 1.0
    penalty: float = 1.0  # logits of the last `window` symbols: divided by it where positive, multiplied where negative
    window: int = 0
    allowed: NDArray[np.bool_] | None = None  # (V,): the others are never drawn
    follows: NDArray[np.uint8] | None = None  # (S, V), in place of `allowed`: an automaton's state after each symbol,
    # or NEVER where it is not drawn. Each state that can be come to lets a symbol come.

    def __post_init__(self) -> None:
        shares = (self.top_p, self.min_p, self.typical)
        ok = 0 <= self.temperature < math.inf and self.top_k >= 0 and all(0 <= share <= 1 for share in shares)
        ok = ok and 0 < self.penalty < math.inf and self.window >= 0
        ok = ok and (self.allowed is None or (self.follows is None and bool(self.allowed.any())))
        if not ok or (self.follows is not None and not _goes_on(self.follows)):
            raise ValueError(f"cannot draw with {self}")

    @property
    def memory(self) -> int:
        """How many of the symbols before it a draw looks back at."""
        return self.window if self.penalty != 1 else 0


def _goes_on(follows: NDArray[np.uint8]) -> bool:
    """Whether an automaton's table (S, V) has a state after every symbol that may come, and one that can go on."""
    if follows.ndim != 2 or follows.dtype != np.uint8 or len(follows) > NEVER:
        return False
    after = np.unique(follows[follows != NEVER])
    return bool(after.size and after[-1] < len(follows) and (follows[after] != NEVER).any(axis=1).all())


def uniform(seed: int, stream: NDArray[np.integer] | int, position: int) -> Floats:
    """Numbers in [0, 1) with 53 random bits, one for each entry of `stream`, which gives the shape."""
    streams = np.atleast_1d(np.asarray(stream)).astype(np.uint64)
    start = _mix(_mix(np.array([seed], np.uint64)) + streams * np.uint64(GAMMA))
    steps = np.array([((position + 1) * GAMMA) % 2**64], np.uint64)
    return np.asarray((_mix(start + steps) >> np.uint64(11)) * 2.0**-53, np.float64)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def adjusted(
    logits: NDArray[np.floating],
    rule: Rule,
    recent: NDArray[np.integer] | None = None,
    phases: NDArray[np.integer] | int = 0,
) -> NDArray[np.floating]:
    """The logits (…, V) with −∞ for what may not be drawn, and the penalty on what is among the recent symbols.

    Args:
        recent: (T, …), the symbols before this draw, the last one last; −1 is none. Looked at for a penalty only.
        phases: (…), the state that the automaton of `rule.follows` is in.
    """
    if rule.follows is not None:
        logits = np.where(rule.follows[phases] != NEVER, logits, -np.inf).astype(logits.dtype)
    if rule.allowed is not None:
        logits = np.where(rule.allowed, logits, -np.inf).astype(logits.dtype)
    if rule.memory and recent is not None:
        seen = np.zeros((*logits.shape[:-1], logits.shape[-1] + 1), bool)  # the last stands for none
        for symbols in recent[-rule.memory :]:
            np.put_along_axis(seen, np.asarray(symbols, np.int64)[..., None], True, axis=-1)
        penalty = logits.dtype.type(rule.penalty)
        with np.errstate(over="ignore"):
            penalised = np.where(logits > 0, logits / penalty, logits * penalty)
        logits = np.where(seen[..., :-1], penalised, logits)
    return logits


def weights(logits: NDArray[np.floating], temperature: float) -> Floats:
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


def top_k(weights: Floats, k: int) -> Floats:
    """Exactly the k largest (Fan, Lewis & Dauphin 2018), or all there are; of equal ones the first."""
    return _keep(weights, np.argsort(-weights, axis=-1, kind="stable"), np.full((*weights.shape[:-1], 1), k))


def top_p(weights: Floats, p: float) -> Floats:
    """The smallest set of the largest whose share of the whole is p or more (Holtzman et al. 2020)."""
    return _keep_mass(weights, np.argsort(-weights, axis=-1, kind="stable"), p)


def min_p(weights: Floats, share: float) -> Floats:
    """Those that are at least that share of the largest (Nguyen et al. 2024)."""
    return np.where(weights >= share * weights.max(axis=-1, keepdims=True), weights, 0.0)


def typical(weights: Floats, mass: float) -> Floats:
    """The smallest set, of those whose surprise is nearest to the entropy, whose share is `mass` or more.

    Locally typical sampling (Meister et al. 2023). Of equally near ones the likelier goes first, then the first.
    """
    shares = weights / weights.sum(axis=-1, keepdims=True)
    surprise = -np.log(np.where(shares > 0, shares, 1.0))
    entropy = (shares * surprise).sum(axis=-1, keepdims=True)
    deviation = np.where(shares > 0, np.rint(np.abs(surprise - entropy) * TIES), np.inf)
    return _keep_mass(weights, np.lexsort((-weights, deviation), axis=-1), mass)


def _keep_mass(weights: Floats, order: NDArray[np.integer], mass: float) -> Floats:
    heap = np.cumsum(np.take_along_axis(weights, order, -1), axis=-1)
    return _keep(weights, order, (heap < mass * heap[..., -1:]).sum(axis=-1, keepdims=True) + 1)


def _keep(weights: Floats, order: NDArray[np.integer], count: NDArray[np.integer]) -> Floats:
    """The weights of the first `count` (…, 1) symbols of an order (…, V); the others become 0."""
    return np.where(np.argsort(order, axis=-1) < count, weights, 0.0)


def filtered(
    logits: NDArray[np.floating],
    rule: Rule,
    recent: NDArray[np.integer] | None = None,
    phases: NDArray[np.integer] | int = 0,
) -> Floats:
    """What a draw by the rule gives each symbol, (…, V), not yet divided by its sum: logits → `adjusted` → `weights` →
    the filters.

    Raises:
        FloatingPointError: the largest logit is NaN or infinite.
    """
    if not np.isfinite(logits.max(axis=-1)).all():  # also where it is not allowed: such a model is not to be trusted
        raise FloatingPointError("the model's logits are not finite")
    found = weights(adjusted(logits, rule, recent, phases), rule.temperature)
    if rule.top_k:
        found = top_k(found, rule.top_k)
    if rule.top_p < 1:
        found = top_p(found, rule.top_p)
    if rule.min_p > 0:
        found = min_p(found, rule.min_p)
    if rule.typical < 1:
        found = typical(found, rule.typical)
    return found


def draw(
    logits: NDArray[np.floating],
    rule: Rule,
    numbers: Floats,
    recent: NDArray[np.integer] | None = None,
    phases: NDArray[np.integer] | int = 0,
) -> NDArray[np.int64]:
    """The symbol (B,) on which each number in [0, 1) falls, of what the rule makes of logits (B, V)."""
    heap = np.cumsum(filtered(logits, rule, recent, phases), axis=-1)
    return np.asarray((heap <= numbers[:, None] * heap[:, -1:]).sum(axis=-1), np.int64)
