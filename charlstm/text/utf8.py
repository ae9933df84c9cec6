"""Well-formed UTF-8 as an automaton over bytes: table 3-7 of the Unicode Standard (core specification, chapter 3.9).

It accepts no overlong encoding, no surrogate and nothing above U+10FFFF.
"""

from __future__ import annotations

from typing import Any

import numpy as np

NEVER = 255  # in the table of an automaton: the symbol is not allowed in this state

Table = np.ndarray[Any, Any]

# In state 0, between two characters: the range of first bytes, and the state after them.
_FIRST = (
    (0x00, 0x7F, 0), (0xC2, 0xDF, 1), (0xE0, 0xE0, 3), (0xE1, 0xEC, 2), (0xED, 0xED, 4), (0xEE, 0xEF, 2),
    (0xF0, 0xF0, 5), (0xF1, 0xF3, 6), (0xF4, 0xF4, 7),
)  # fmt: skip
# In the states 1, 2, …: the range of allowed bytes, and the state after them.
_LATER = (
    (0x80, 0xBF, 0), (0x80, 0xBF, 1), (0xA0, 0xBF, 1), (0x80, 0x9F, 1), (0x90, 0xBF, 2), (0x80, 0xBF, 2),
    (0x80, 0x8F, 2),
)  # fmt: skip


def _transitions() -> Table:
    table = np.full((1 + len(_LATER), 256), NEVER, np.uint8)
    for state, low, high, after in [(0, *row) for row in _FIRST] + [(n, *row) for n, row in enumerate(_LATER, 1)]:
        table[state, low : high + 1] = after
    table.flags.writeable = False
    return table


TRANSITIONS = _transitions()
"""(8, 256) uint8: the state after each byte in each state, or NEVER. In state 0 all characters are complete."""


def incomplete_suffix(ids: Table) -> tuple[int, int]:
    """Find the beginning of an incomplete character at the end of bytes.

    Args:
        ids: (N,) bytes.

    Returns:
        The number of bytes of the incomplete character, from 0 to 3, and the state after them.
    """
    for length in range(1, min(3, len(ids)) + 1):
        state = 0
        for byte in ids[-length:].tolist():
            state = int(TRANSITIONS[state, byte])
            if state in (0, NEVER):
                break
        else:
            return length, state
    return 0, 0


def without_dead_ends(transitions: Table) -> Table:
    """Return the automaton without the transitions to states that allow no symbol, such as after a ban of symbols.

    Args:
        transitions: (S, V) uint8, the state after each symbol in each state, or NEVER.
    """
    while (dead := np.isin(transitions, np.flatnonzero((transitions == NEVER).all(axis=1)))).any():
        transitions = np.where(dead, np.uint8(NEVER), transitions)
    return transitions


def is_possible(transitions: Table, symbols: Table) -> bool:
    """Return whether an automaton accepts a sequence of symbols in at least one state.

    Args:
        transitions: (S, V) uint8, the state after each symbol in each state, or NEVER.
        symbols: (N,) ids.
    """
    states = np.arange(len(transitions))
    for symbol in symbols:
        states = np.setdiff1d(transitions[states, symbol], NEVER)
    return len(states) > 0
