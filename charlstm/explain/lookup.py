"""Find many integers in a sorted array of known ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

MAX_TABLE = 2**22  # entries of a table; above it the search is binary


def index_in(known: NDArray[np.integer], values: NDArray[np.integer]) -> NDArray[np.integer]:
    """Return the index of each value in `known`, or −1.

    Args:
        known: (K,) sorted and distinct integers of at least 0.
        values: (N,) integers of at least 0.
    """
    if not len(known):
        return np.full(len(values), -1)
    last = int(known[-1])
    if last < MAX_TABLE:
        table = np.full(last + 2, -1, np.int32)
        table[known] = np.arange(len(known), dtype=np.int32)
        found: NDArray[np.integer] = table[np.minimum(values, last + 1)]
        return found
    index = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return np.where(known[index] == values, index, -1)
