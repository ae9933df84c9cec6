"""The longest part of a generated text that occurs in the training text, found exactly.

Let G be the generated and N the training text. Substrings of G of length 2^j are numbered by the pair of numbers of
their halves (Karp, Miller & Rosenberg 1972), and each position of the training text gets the number of the substring of
G that begins there, if any. Doubling continues until no position is left. Then the length is extended by descending
powers of two. Each step is a lookup of at most N pairs among at most G.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from charlstm.explain.lookup import index_in
from charlstm.explain.trace import Ids


@dataclass(frozen=True)
class Copy:
    """The longest substring of a generated text that occurs in the training text.

    Attributes:
        length: its number of symbols; 0 if the texts have no symbol in common.
        start: where it begins in the generated text.
        found_at: where it begins in the training text, for the first time.
    """

    length: int
    start: int
    found_at: int


def longest_copy(generated: Ids, training: Ids) -> Copy:
    """Return the longest substring of a generated text that occurs in a training text.

    Of several that are equally long, the one that occurs first in the training text is returned.

    Args:
        generated: (G,) symbols.
        training: (N,) symbols.
    """
    if not len(generated) or not len(training):
        return Copy(0, 0, 0)
    symbols = np.unique(generated)
    levels = [(np.searchsorted(symbols, generated), index_in(symbols, training))]
    if not (levels[0][1] >= 0).any():
        return Copy(0, 0, 0)
    width = 1
    while 2 * width <= min(len(generated), len(training)):
        doubled = _joined(levels[-1], levels[-1], width)
        if not (doubled[1] >= 0).any():
            break
        levels.append(doubled)
        width *= 2
    length, current = width, levels[-1]
    for level in reversed(range(len(levels) - 1)):
        if length + 2**level > min(len(generated), len(training)):
            continue
        longer = _joined(current, levels[level], length)
        if (longer[1] >= 0).any():
            length, current = length + 2**level, longer
    found_at = int((current[1] >= 0).argmax())
    start = int((current[0] == current[1][found_at]).argmax())
    return Copy(length, start, found_at)


_Numbers = tuple[NDArray[np.int64], NDArray[np.integer]]
"""For substrings of one length: at each position of the generated and of the training text its number, or −1."""


def _joined(left: _Numbers, right: _Numbers, offset: int) -> _Numbers:
    """Return the numbers of the substrings that begin with one of `left` and, `offset` symbols later, with `right`."""
    factor = int(right[0].max()) + 1
    ours, theirs = (len(numbers) - offset for numbers in right)
    pairs = left[0][:ours] * factor + right[0][offset:]
    known = np.unique(pairs)
    numbers = np.full(theirs, -1, np.int32)
    alive = np.flatnonzero((left[1][:theirs] >= 0) & (right[1][offset:] >= 0))
    numbers[alive] = index_in(known, left[1][alive].astype(np.int64) * factor + right[1][alive + offset])
    return np.searchsorted(known, pairs), numbers
