"""Name the units of a model: for each, the feature of the text that it follows best, with a control for chance.

The score is the absolute value of Pearson's correlation. It is that of the best linear prediction of the feature from
the unit, it is the same for a unit with the opposite sign, and it does not depend on the scale of either.

The feature of a unit is chosen on the first half of the text, and its score is computed on the second half. The same
search is repeated with features that were shifted circularly by many offsets. They have the frequencies and the
regularity of the true features, but no relation to the unit. The best score that any unit reaches with any of these
shifts is chance, and only a unit with a higher score is named. With 50 shifts, the probability that all names together
contain one that is due to chance is about 2 %.

Letters: T time, F features, U = L·H units, S shifts, L layers, H hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from charlstm.explain.features import Features
from charlstm.explain.trace import Floats, Trace

SHIFTS = 50
STRONG = 0.7
MIN_CHARS = 200


@dataclass(frozen=True)
class Units:
    """The name of each unit, and the evidence for it.

    Attributes:
        features: the names of all features that were tried.
        name: (L, H) index in `features` of the feature that the unit follows; −1 if its score is not above
            `chance_of_any`.
        quantity: (L, H) which activation follows it: 'h' or 'c' (then tanh(c)).
        correlation: (L, H) Pearson's correlation with the chosen feature on the second half of the text, with its sign;
            0 for a unit or a feature that is constant there.
        chance: (L, H) the best score that the unit reached on the second half when the features were shifted.
        chance_of_any: the best score that any unit reached with shifted features.
        shifts: number of shifts.
    """

    features: tuple[str, ...]
    name: NDArray[np.int64]
    quantity: NDArray[np.str_]
    correlation: NDArray[np.float64]
    chance: NDArray[np.float64]
    chance_of_any: float
    shifts: int

    @property
    def score(self) -> NDArray[np.float64]:
        """The score (L, H) of each unit, from 0 to 1."""
        return np.abs(self.correlation)

    @property
    def strong_share(self) -> float:
        """The share of the units that are named with a score above STRONG."""
        return float(((self.name >= 0) & (self.score > STRONG)).mean())

    def best(self, count: int | None = None) -> list[tuple[int, int]]:
        """Return the named units as (layer, unit), the highest score first.

        Args:
            count: the largest number of units; None returns all.
        """
        order = np.argsort(-np.where(self.name >= 0, self.score, -1), axis=None, kind="stable")
        order = order[: np.count_nonzero(self.name >= 0)][:count]
        return [(int(k) // self.name.shape[1], int(k) % self.name.shape[1]) for k in order]


def units(found: Trace, features: Features, shifts: int = SHIFTS) -> Units | None:
    """Name the units of a model.

    Args:
        found: the trace of a text.
        features: the features of the same text.
        shifts: the number of shifts S of the control.

    Returns:
        The names; None if the text has fewer than MIN_CHARS symbols or no feature.
    """
    length, layers, hidden = found.h.shape
    if length < MIN_CHARS or not features.names:
        return None
    half = length // 2
    activations = {"h": found.h} if found.c is None else {"h": found.h, "c": np.tanh(found.c)}
    table = np.concatenate([values.reshape(length, -1) for values in activations.values()], 1)  # (T, Q·U)
    search = _Search(table, features.values, half, len(activations))
    feature, quantity, correlation = search.at(0)
    offsets = np.unique(np.linspace(length // 10, length - length // 10, shifts).astype(int))
    chance = np.abs([search.at(offset)[2] for offset in offsets.tolist()])  # (S, U)
    shape = (layers, hidden)
    return Units(
        features.names,
        np.where(np.abs(correlation) > chance.max(), feature, -1).reshape(shape),
        np.array(list(activations))[quantity].reshape(shape),
        correlation.reshape(shape),
        chance.max(axis=0).reshape(shape),
        float(chance.max()),
        len(offsets),
    )


class _Search:
    """The search for the feature of each unit, for features that are shifted by any offset.

    Args:
        table: (T, Q·U) the activations, one quantity of all units after the other.
        features: (F, T) the features.
        half: T₁, the number of symbols on which a feature is chosen.
        quantities: Q, the number of activations of each unit.
    """

    def __init__(self, table: Floats, features: Floats, half: int, quantities: int) -> None:
        self._length, self._half, self._quantities = features.shape[1], half, quantities
        self._first = _standard(table[:half])
        self._second = np.ascontiguousarray(_standard(table[half:]).T)  # (Q·U, T₂)
        centred = features - features.mean(axis=1, keepdims=True)
        self._features = np.concatenate([centred, centred], 1)  # (F, 2 T): a shift is a slice of it
        exact = self._features.astype(np.float64)
        zero = np.zeros((len(features), 1))
        self._sums = np.concatenate([zero, exact.cumsum(axis=1)], 1)
        self._squares = np.concatenate([zero, (exact**2).cumsum(axis=1)], 1)

    def at(self, offset: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Choose a feature and an activation for each unit on the first half, and correlate them on the second.

        Args:
            offset: number of symbols that the features are shifted by, from 0 to T.

        Returns:
            The feature, the activation and the correlation on the second half, each (U,).
        """
        end = offset + self._half
        scores = np.abs(self._features[:, offset:end] @ self._first)  # the activations have mean 0 and norm 1
        scores *= self._inverse_norm(offset, end)[:, None]
        scores = scores.reshape(len(scores) * self._quantities, -1)  # (F·Q, U)
        count = scores.shape[1]
        feature, quantity = np.divmod(scores.argmax(axis=0), self._quantities)
        last = offset + self._length
        chosen = self._features[feature, end:last]  # (U, T₂)
        products = np.einsum("ut,ut->u", chosen, self._second[quantity * count + np.arange(count)], dtype=np.float64)
        return feature, quantity, np.clip(products * self._inverse_norm(end, last)[feature], -1, 1)

    def _inverse_norm(self, begin: int, end: int) -> NDArray[np.float64]:
        """Return 1 / norm (F,) of the features from `begin` to `end` after their mean is subtracted; 0 if constant."""
        mean = (self._sums[:, end] - self._sums[:, begin]) / (end - begin)
        power = (self._squares[:, end] - self._squares[:, begin]) / (end - begin)
        variance = power - mean**2
        is_constant = variance <= 1e-9 * np.maximum(power, 1e-30)
        inverse: NDArray[np.float64] = np.where(
            is_constant, 0, 1 / np.sqrt(np.where(is_constant, 1, variance) * (end - begin))
        )
        return inverse


def _standard(values: Floats) -> Floats:
    """Subtract the mean of each column and divide by the norm; a column that is constant becomes 0."""
    centred = (values - values.mean(axis=0, dtype=np.float64)).astype(values.dtype)
    norm = np.sqrt((centred * centred).sum(axis=0))
    scale = np.abs(values).max(axis=0) * np.sqrt(len(values))
    is_constant = norm <= 1e-5 * np.maximum(scale, 1e-30)
    standard: Floats = np.where(is_constant, 0, centred / np.where(is_constant, 1, norm))
    return standard
