"""Parallel streams over the training part: where a batch is made.

Letters: N symbols of the training part, B batch (number of streams), T time (symbols of a window), S transitions of
one stream.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from charlstm.errors import CorpusError
from charlstm.text.corpus import Symbols


def fit_batch(n_chars: int, batch_size: int, seq_len: int) -> tuple[int, int]:
    """Reduce the batch size and the window length until a short text fills one whole window of every stream.

    Args:
        n_chars: symbols in the training part.
        batch_size: the wanted number of streams.
        seq_len: the wanted number of symbols in a window.

    Returns:
        The largest possible (B, T), neither larger than wanted.

    Raises:
        CorpusError: the training part has fewer than two symbols.
    """
    transitions = n_chars - 1
    if transitions < 1:
        raise CorpusError(f"the training part has {n_chars} characters; it needs 2 or more")
    seq_len = min(seq_len, transitions)
    return min(batch_size, transitions // seq_len), seq_len


@dataclass(frozen=True)
class Part:
    """Adjacent streams of a batch, which one of several workers trains on.

    Attributes:
        first: the number of the first stream.
        count: number of streams.
        total: number of streams of the whole batch.
    """

    first: int
    count: int
    total: int


class Streams:
    """Cut the training part into B parallel streams and return them in windows of T symbols.

    Of the N - 1 transitions each stream has S = (N - 1) // B adjacent ones of its own. In one epoch each transition is
    in exactly one window, except for the N - 1 - B·S < B that are left over; which ones these are changes from epoch
    to epoch. The last window of an epoch is shorter than T if T does not divide S. The windows depend on the text, B
    and T alone, not on the seed.

    Args:
        ids: (N,) symbols of the training part, in memory or in a file.
        batch_size: number of streams, B.
        seq_len: symbols of a window, T.
        part: the streams to return; None returns all.

    Attributes:
        cursor: number of windows returned so far; `seek(cursor)` continues after them.
        windows_per_epoch: ⌈S / T⌉.

    Raises:
        CorpusError: there are fewer transitions than streams.
    """

    def __init__(self, ids: Symbols, batch_size: int, seq_len: int, part: Part | None = None) -> None:
        self._ids = ids
        self._streams = batch_size
        self._part = part or Part(0, batch_size, batch_size)
        self._length = (len(ids) - 1) // batch_size
        self._window = seq_len
        if self._length < 1:
            raise CorpusError(f"{batch_size} streams need {batch_size + 1} characters or more, not {len(ids)}")
        self.windows_per_epoch = -(-self._length // seq_len)
        self.cursor = 0

    @property
    def chars_per_epoch(self) -> int:
        """Transitions in the windows of one epoch, B·S."""
        return self._streams * self._length

    def seek(self, cursor: int) -> None:
        """Continue with the window after `cursor` windows.

        Raises:
            ValueError: the cursor is negative.
        """
        if cursor < 0:
            raise ValueError(f"a cursor counts windows from 0, not {cursor}")
        self.cursor = cursor

    def next(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
        """Return the next window.

        Returns:
            inputs (T, B'); targets (T, B'), each the symbol after its input; and fresh (B',), true where a stream must
            start from the zero state. B' is the number of streams in the part.
        """
        epoch, window = divmod(self.cursor, self.windows_per_epoch)
        self.cursor += 1
        offset = epoch % (len(self._ids) - self.chars_per_epoch)
        begin, end = window * self._window, min((window + 1) * self._window, self._length)
        firsts = offset + begin + self._length * (self._part.first + np.arange(self._part.count))
        rows = [np.asarray(self._ids[first : first + end - begin + 1]) for first in firsts.tolist()]
        symbols = np.stack(rows, axis=1, dtype=np.int64)  # (T + 1, B')
        return symbols[:-1], symbols[1:], np.full(self._part.count, window == 0)
