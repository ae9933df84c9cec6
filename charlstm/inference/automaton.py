"""A finite automaton over the symbols of a vocabulary: which symbols may follow the ones that were sampled.

An automaton distinguishes classes of symbols: all symbols of a class lead to the same state. Its states are numbers.
The accepting states are those in which a text may end. Valid UTF-8 is such an automaton over bytes, and `expression`
makes one from a regular expression.

Letters: V vocabulary, S states, C classes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charlstm.text import utf8

NEVER = -1  # in the table of an automaton: the symbol must not be sampled in this state
MAX_LISTED = 1 << 20  # entries of a table that are copied to lists, which take 8 bytes or more each
FAR = 2**31 - 1  # the distance of a state from which no accepting state can be reached

Phases = NDArray[np.integer] | int


@dataclass(frozen=True, eq=False)
class Automaton:
    """An automaton, and how many symbols each state is away from an accepting state.

    Attributes:
        follows: (S, C) int32, the state after a symbol of each class in each state, or NEVER.
        classes: (V,) int32, the class of each symbol.
        distances: (S,) int32, the fewest symbols from each state to an accepting one, whose distance is 0. None if the
            length of a text is not limited.
        end: with `distances`, the state of a text that has ended, in which every symbol is allowed and has no effect.
            In an accepting state all symbols are allowed that the text could have without the automaton; one with which
            no accepting state can be reached any more leads to `end`.

    Raises:
        ValueError: the shapes, types or states do not fit together, or a state that can be reached allows no symbol.
    """

    follows: NDArray[np.int32]
    classes: NDArray[np.int32]
    distances: NDArray[np.int32] | None = None
    end: int = NEVER

    def __post_init__(self) -> None:
        follows, classes = self.follows, self.classes
        ok = follows.ndim == 2 and classes.ndim == 1 and follows.dtype == classes.dtype == np.int32
        ok = ok and bool(follows.size and classes.size and 0 <= classes.min() <= classes.max() < follows.shape[1])
        if not ok or follows.min() < NEVER or follows.max() >= len(follows) or not self._continues():
            raise ValueError(f"invalid automaton: states and classes {follows.shape}, symbols {classes.shape}")
        if self.distances is not None:
            fits = self.distances.shape == (len(follows),) and self.distances.dtype == np.int32
            if not fits or not 0 <= self.end < len(follows) or self.distances[self.end] != 0:
                raise ValueError(f"invalid automaton: distances {self.distances.shape}, end {self.end}")

    def _continues(self) -> bool:
        """Return whether every state that a symbol leads to allows a symbol."""
        used = np.zeros(self.follows.shape[1], bool)
        used[self.classes] = True
        reachable = self.follows[:, used]
        after = np.unique(reachable[reachable != NEVER])
        return bool(after.size and (reachable[after] != NEVER).any(axis=1).all())

    @classmethod
    def of_table(cls, transitions: NDArray[np.uint8]) -> Automaton:
        """Return the automaton of a table (S, V) as in `Vocabulary.transitions`, where `utf8.NEVER` means NEVER."""
        follows = np.where(transitions == utf8.NEVER, NEVER, transitions.astype(np.int32)).astype(np.int32)
        return cls(follows, np.arange(transitions.shape[1], dtype=np.int32))

    def after(self, phases: Phases, symbols: Any, remaining: int | None = None) -> NDArray[np.int32]:
        """Return the states after symbols, or NEVER where a symbol must not be sampled.

        Args:
            phases: (…) the states before.
            symbols: (…) the symbols.
            remaining: the number of symbols that a text may still have, with this one; None means no limit.
        """
        after: NDArray[np.int32] = self.follows[phases, self.classes[symbols]]
        if remaining is None or self.distances is None:
            return after
        too_far = (after != NEVER) & (self.distances[after] >= remaining)
        instead = np.where(self.distances[phases] == 0, np.int32(self.end), np.int32(NEVER))
        return np.asarray(np.where(too_far, instead, after))

    def end_of_match(self, phase: int, symbols: NDArray[np.integer], remaining: int | None) -> tuple[int, int, bool]:
        """Follow sampled symbols to the end of a match, with `distances`.

        A match ends before the symbol that leads to `end`, and after one that no symbol can continue.

        Args:
            phase: the state before the symbols.
            symbols: (T,) symbols that may be sampled one after the other.
            remaining: the number of symbols that the text may still have; None means no limit.

        Returns:
            The number of symbols that belong to the text, the state after them, and whether the match has ended.
        """
        rows, distances, ends, farthest = self._lists
        is_near = remaining is not None and remaining - len(symbols) <= farthest
        for count, symbol_class in enumerate(self.classes[symbols].tolist()):
            after = rows[phase][symbol_class]
            if ends[after]:
                return (count, phase, True) if after == self.end else (count + 1, after, True)
            if is_near and remaining is not None and distances[after] >= remaining - count:
                return count, phase, True
            phase = after
        return len(symbols), phase, False

    @functools.cached_property
    def _lists(self) -> tuple[Sequence[Sequence[int]], list[int], list[bool], int]:
        """What `end_of_match` reads for each symbol, as lists unless they are too large: Python reads them faster.

        These are the table, the distances, whether a match ends in each state, and the largest finite distance.
        """
        assert self.distances is not None
        ends = ((self.follows == NEVER) | (self.follows == self.end)).all(axis=1) & (self.distances == 0)
        farthest = int(self.distances[self.distances < FAR].max())
        is_small = self.follows.size < MAX_LISTED
        rows: Sequence[Sequence[int]] = self.follows.tolist() if is_small else [memoryview(row) for row in self.follows]
        return rows, self.distances.tolist(), ends.tolist(), farthest

    def continues(self, phases: NDArray[np.integer], remaining: int | None) -> bool:
        """Return whether every one of these states allows a symbol. `remaining` is as in `after`."""
        possible = self._live[phases].all()
        if remaining is not None and self.distances is not None:
            possible &= (self.distances[phases] <= remaining).all()
        return bool(possible)

    @functools.cached_property
    def _live(self) -> NDArray[np.bool_]:
        """(S,) whether each state allows a symbol."""
        used = np.flatnonzero(np.bincount(self.classes, minlength=self.follows.shape[1]))
        return np.asarray((self.follows[:, used] != NEVER).any(axis=1))

    def allowed(self, phases: Phases, remaining: int | None = None) -> NDArray[np.bool_]:
        """Return which symbols may be sampled in states (…), as (…, V). `remaining` is as in `after`."""
        states = np.asarray(phases)[..., None]
        return np.asarray(self.after(states, np.arange(len(self.classes)), remaining) != NEVER)
