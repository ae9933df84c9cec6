"""The units that are on throughout a phrase, and the other parts of the text where the same units are on.

It is the selection of LSTMVis (Strobelt, Gehrmann, Pfister & Rush 2018, arXiv 1606.07461).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from charlstm.errors import Field, UsageError
from charlstm.explain.trace import Trace

THRESHOLD = 0.3
MATCHES = 20


@dataclass(frozen=True)
class PhraseMatches:
    """What a phrase and other parts of the text have in common.

    Attributes:
        units: (N, 2) layer and unit of those whose activation is at or above the threshold at every symbol of the
            phrase, and below it at the symbol before the phrase.
        spans: (M, 2) the first symbol and the end of other parts of the text in which all of these units are on; the
            longest first.
    """

    units: NDArray[np.int64]
    spans: NDArray[np.int64]


def matches(found: Trace, start: int, end: int, threshold: float = THRESHOLD, count: int = MATCHES) -> PhraseMatches:
    """Find the units that are on throughout a phrase, and other parts of the text where all of them are on.

    The activation is tanh(c), or h in the cells without c.

    Args:
        found: the trace of a text of T symbols.
        start: the first symbol of the phrase.
        end: the symbol after its last one.
        threshold: a unit is on if its activation is at or above it.
        count: the largest number of parts.

    Raises:
        UsageError: the phrase is empty or outside the text.
    """
    length = len(found.ids)
    if not 0 <= start < end <= length:
        allowed = f"a range within 0 and {length}"
        raise UsageError(Field("start"), f" and end must be {allowed}, got {start} to {end}", allowed=allowed)
    activation = found.h if found.c is None else np.tanh(found.c)
    is_on = activation >= threshold  # (T, L, H)
    chosen = is_on[start:end].all(axis=0)
    if start:
        chosen &= ~is_on[start - 1]
    units = np.argwhere(chosen)
    if not len(units):
        return PhraseMatches(units, np.zeros((0, 2), np.int64))
    together = np.concatenate([[False], is_on[:, chosen].all(axis=1), [False]])
    edges = np.flatnonzero(together[1:] != together[:-1]).reshape(-1, 2)
    others = edges[(edges[:, 1] <= start) | (edges[:, 0] >= end)]
    order = np.argsort(others[:, 0] - others[:, 1], kind="stable")
    return PhraseMatches(units, others[order[:count]])
