"""Sample a symbol from logits, in numpy. This is the reference for the same algorithm in `engine.c`.

A `SamplingRule` defines the distribution. Its steps apply in this order: the automaton or the set of allowed symbols,
the repeat penalty, the temperature, top-k, top-p, min-p, locally typical sampling. Each filter works on the
renormalised probabilities that the previous step left, and always leaves at least one symbol.

The random numbers depend on (seed, stream, position) only. Because there is no generator state, a text does not depend
on how it is split into blocks or on how many texts are generated in parallel. The numbers come from SplitMix64 (Steele,
Lea & Flood 2014), whose n-th output is a mix of `start + n·γ`; each stream has its own start.

Letters: B batch of independent texts, T time, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from charlstm.inference.automaton import Automaton

GAMMA = 0x9E3779B97F4A7C15
# Typical sampling treats distances from the entropy that differ by less than 1/TIES nats as equal, so that rounding
# errors do not decide which symbol is kept.
TIES = 2.0**32

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class SamplingRule:
    """The distribution that a symbol is sampled from. The defaults give the softmax of the logits.

    Attributes:
        temperature: divides the logits; 0 takes the first of the most probable allowed symbols.
        top_k: keep the k most probable symbols; 0 keeps all.
        top_p: keep the smallest set of most probable symbols with this total probability, from 0 to 1.
        min_p: keep symbols with at least this fraction of the largest probability, from 0 to 1.
        typical: keep the smallest set with this total probability whose surprisal is nearest to the entropy, 0 to 1.
        penalty: repeat penalty: positive logits of recent symbols are divided by it, negative ones are multiplied.
        window: number of recent symbols that the penalty applies to.
        allowed: (V,) which symbols may be sampled, or None for all.
        automaton: which symbols may follow the previous ones, used instead of `allowed`.

    Raises:
        ValueError: a value is outside its range.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical: float = 1.0
    penalty: float = 1.0
    window: int = 0
    allowed: NDArray[np.bool_] | None = None
    automaton: Automaton | None = None

    def __post_init__(self) -> None:
        shares = (self.top_p, self.min_p, self.typical)
        ok = 0 <= self.temperature < math.inf and self.top_k >= 0 and all(0 <= share <= 1 for share in shares)
        ok = ok and 0 < self.penalty < math.inf and self.window >= 0
        ok = ok and (self.allowed is None or (self.automaton is None and bool(self.allowed.any())))
        if not ok:
            raise ValueError(f"invalid sampling rule: {self}")

    @property
    def lookback(self) -> int:
        """Number of previous symbols that affect the distribution."""
        return self.window if self.penalty != 1 else 0


def uniform(seed: int, stream: NDArray[np.integer] | int, position: int) -> Floats:
    """Return pseudorandom numbers in [0, 1) with 53 random bits, in the shape of `stream`."""
    streams = np.atleast_1d(np.asarray(stream)).astype(np.uint64)
    start = splitmix64(splitmix64(np.array([seed], np.uint64)) + streams * np.uint64(GAMMA))
    steps = np.array([((position + 1) * GAMMA) % 2**64], np.uint64)
    return np.asarray((splitmix64(start + steps) >> np.uint64(11)) * 2.0**-53, np.float64)


def splitmix64(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the outputs of the generator splitmix64 (Steele, Lea and Flood 2014) for its states, of any shape."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def adjusted(
    logits: NDArray[np.floating],
    rule: SamplingRule,
    recent: NDArray[np.integer] | None = None,
    phases: NDArray[np.integer] | int = 0,
    remaining: int | None = None,
) -> NDArray[np.floating]:
    """Apply the automaton or the set of allowed symbols, and the repeat penalty.

    Args:
        logits: (…, V).
        rule: the distribution.
        recent: (T, …) the previous symbols, the latest last; −1 means none. Used by the penalty only.
        phases: (…) the state of the automaton of the rule.
        remaining: the number of symbols that the text may still have; None means no limit.

    Returns:
        (…, V) the logits, −∞ where a symbol must not be sampled.
    """
    if rule.automaton is not None:
        logits = np.where(rule.automaton.allowed(phases, remaining), logits, -np.inf).astype(logits.dtype)
    if rule.allowed is not None:
        logits = np.where(rule.allowed, logits, -np.inf).astype(logits.dtype)
    if rule.lookback and recent is not None:
        seen = np.zeros((*logits.shape[:-1], logits.shape[-1] + 1), bool)  # the last column takes the −1
        for symbols in recent[-rule.lookback :]:
            np.put_along_axis(seen, np.asarray(symbols, np.int64)[..., None], True, axis=-1)
        penalty = logits.dtype.type(rule.penalty)
        with np.errstate(over="ignore"):
            penalised = np.where(logits > 0, logits / penalty, logits * penalty)
        logits = np.where(seen[..., :-1], penalised, logits)
    return logits


def weights(logits: NDArray[np.floating], temperature: float) -> Floats:
    """Return e^((logit − largest)/temperature), (…, V): an unnormalised softmax whose largest entry is 1.

    At temperature 0 this is its limit: 1 for the first of the largest logits, else 0. A logit of −∞ gives 0.

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
    """Keep exactly the k largest weights (Fan, Lewis & Dauphin 2018), or all. Of equal ones the first are kept."""
    return _keep(weights, np.argsort(-weights, axis=-1, kind="stable"), np.full((*weights.shape[:-1], 1), k))


def top_p(weights: Floats, p: float) -> Floats:
    """Keep the smallest set of largest weights with at least the share p of the sum (Holtzman et al. 2020)."""
    return _keep_mass(weights, np.argsort(-weights, axis=-1, kind="stable"), p)


def min_p(weights: Floats, share: float) -> Floats:
    """Keep the weights that are at least this share of the largest one (Nguyen et al. 2024)."""
    return np.where(weights >= share * weights.max(axis=-1, keepdims=True), weights, 0.0)


def typical(weights: Floats, mass: float) -> Floats:
    """Keep the smallest set with at least the share `mass` whose surprisal is nearest to the entropy.

    This is locally typical sampling (Meister et al. 2023). Of symbols at the same distance the more probable one is
    kept first, then the one with the smaller id.
    """
    shares = weights / weights.sum(axis=-1, keepdims=True)
    surprisal = -np.log(np.where(shares > 0, shares, 1.0))
    entropy = (shares * surprisal).sum(axis=-1, keepdims=True)
    deviation = np.where(shares > 0, np.rint(np.abs(surprisal - entropy) * TIES), np.inf)
    return _keep_mass(weights, np.lexsort((-weights, deviation), axis=-1), mass)


def _keep_mass(weights: Floats, order: NDArray[np.integer], mass: float) -> Floats:
    cumulative = np.cumsum(np.take_along_axis(weights, order, -1), axis=-1)
    return _keep(weights, order, (cumulative < mass * cumulative[..., -1:]).sum(axis=-1, keepdims=True) + 1)


def _keep(weights: Floats, order: NDArray[np.integer], count: NDArray[np.integer]) -> Floats:
    """Keep the weights of the first `count` (…, 1) symbols of an order (…, V), and set the others to 0."""
    return np.where(np.argsort(order, axis=-1) < count, weights, 0.0)


def filtered(
    logits: NDArray[np.floating],
    rule: SamplingRule,
    recent: NDArray[np.integer] | None = None,
    phases: NDArray[np.integer] | int = 0,
    remaining: int | None = None,
) -> Floats:
    """Return the unnormalised distribution of a rule: logits → `adjusted` → `weights` → the filters.

    Args:
        logits: (…, V).
        rule: the distribution.
        recent: as in `adjusted`.
        phases: as in `adjusted`.
        remaining: as in `adjusted`.

    Returns:
        (…, V) weights of at least 0; their sum is not 1.

    Raises:
        FloatingPointError: the largest logit is NaN or infinite, even if its symbol is not allowed.
    """
    if not np.isfinite(logits.max(axis=-1)).all():
        raise FloatingPointError("the model's logits are not finite")
    found = weights(adjusted(logits, rule, recent, phases, remaining), rule.temperature)
    if rule.top_k:
        found = top_k(found, rule.top_k)
    if rule.top_p < 1:
        found = top_p(found, rule.top_p)
    if rule.min_p > 0:
        found = min_p(found, rule.min_p)
    if rule.typical < 1:
        found = typical(found, rule.typical)
    return found


def distribution(
    logits: NDArray[np.floating],
    rule: SamplingRule,
    recent: NDArray[np.integer] | None = None,
    phases: NDArray[np.integer] | int = 0,
    remaining: int | None = None,
) -> Floats:
    """Return the probability of each symbol under a rule, (…, V). Arguments and errors as in `filtered`."""
    found = filtered(logits, rule, recent, phases, remaining)
    return np.asarray(found / found.sum(axis=-1, keepdims=True))


def sample(
    logits: NDArray[np.floating],
    rule: SamplingRule,
    numbers: Floats,
    recent: NDArray[np.integer] | None = None,
    phases: NDArray[np.integer] | int = 0,
    remaining: int | None = None,
) -> NDArray[np.int64]:
    """Sample one symbol for each text by inverting the cumulative distribution.

    Args:
        logits: (B, V).
        rule: the distribution.
        numbers: (B,) uniform random numbers in [0, 1).
        recent: as in `adjusted`.
        phases: as in `adjusted`.
        remaining: as in `adjusted`.

    Returns:
        (B,) symbols.

    Raises:
        FloatingPointError: the largest logit is NaN or infinite.
    """
    cumulative = np.cumsum(filtered(logits, rule, recent, phases, remaining), axis=-1)
    return np.asarray((cumulative <= numbers[:, None] * cumulative[:, -1:]).sum(axis=-1), np.int64)
