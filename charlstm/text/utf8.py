"""Well-formed UTF-8 as an automaton over bytes: table 3-7 of the Unicode Standard (core specification, chapter 3.9).

No character in more bytes than it takes, no surrogate, nothing above U+10FFFF.
"""

from __future__ import annotations

from typing import Any

import numpy as np

NEVER = 255  # in an automaton's table: the symbol cannot come there

Table = np.ndarray[Any, Any]

# From the state 0, where a character is whole: the first bytes, from to, and the state after them.
_FIRST = (
    (0x00, 0x7F, 0), (0xC2, 0xDF, 1), (0xE0, 0xE0, 3), (0xE1, 0xEC, 2), (0xED, 0xED, 4), (0xEE, 0xEF, 2),
    (0xF0, 0xF0, 5), (0xF1, 0xF3, 6), (0xF4, 0xF4, 7),
)  # fmt: skip
# In the states 1, 2, …: the bytes that may come, from to, and the state after them.
_LATER = (
    (0x80, 0xBF, 0), (0x80, 0xBF, 1), (0xA0, 0xBF, 1), (0x80, 0x9F, 1), (0x90, 0xBF, 2), (0x80, 0xBF, 2),
    (0x80, 0x8F, 2),
)  # fmt: skip


def _table() -> Table:
    table = np.full((1 + len(_LATER), 256), NEVER, np.uint8)
    for state, low, high, after in [(0, *row) for row in _FIRST] + [(n, *row) for n, row in enumerate(_LATER, 1)]:
        table[state, low : high + 1] = after
    table.flags.writeable = False
    return table


TABLE = _table()
"""(8, 256) uint8: the state after a byte in a state, or NEVER. In the state 0 a character is whole."""


def beginning(ids: Table) -> tuple[int, int]:
    """How many of the last bytes (N,) are the beginning of a character, from 0 to 3, and the state after them."""
    for length in range(1, min(3, len(ids)) + 1):
        state = 0
        for byte in ids[-length:].tolist():
            state = int(TABLE[state, byte])
            if state in (0, NEVER):
                break
        else:
            return length, state
    return 0, 0


def pruned(table: Table) -> Table:
    """A table without what leads to states in which nothing can come, such as where a ban leaves no way to go on."""
    while (dead := np.isin(table, np.flatnonzero((table == NEVER).all(axis=1)))).any():
        table = np.where(dead, np.uint8(NEVER), table)
    return table


def can_come(table: Table, symbols: Table) -> bool:
    """Whether the symbols can come one after the other, whatever was before them."""
    states = np.arange(len(table))
    for symbol in symbols:
        states = np.setdiff1d(table[states, symbol], NEVER)
    return len(states) > 0
