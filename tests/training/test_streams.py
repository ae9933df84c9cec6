"""Parallel streams over the training part: each transition once in an epoch, and the same windows after a resume."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from charlstm.errors import CorpusError
from charlstm.training.streams import Streams, fit_batch


def transitions(streams: Streams, windows: int) -> list[tuple[int, int]]:
    pairs: list[tuple[int, int]] = []
    for _ in range(windows):
        inputs, targets, _ = streams.next()
        pairs += zip(inputs.ravel().tolist(), targets.ravel().tolist(), strict=True)
    return pairs


@pytest.mark.parametrize(("n", "B", "T"), [*itertools.product([2, 3, 17, 50, 101], [1, 2, 3, 7], [1, 2, 5, 16])])
def test_an_epoch_contains_each_transition_once_except_for_fewer_than_one_per_stream(n: int, B: int, T: int) -> None:
    if n <= B:
        with pytest.raises(CorpusError, match=f"{B + 1} characters"):
            Streams(np.arange(n), B, T)
        return
    streams = Streams(np.arange(n, dtype=np.uint8), B, T)
    left_out = (n - 1) % B
    assert streams.chars_per_epoch == n - 1 - left_out
    seen: Counter[tuple[int, int]] = Counter()
    epochs = left_out + 1
    for _ in range(epochs):
        pairs = transitions(streams, streams.windows_per_epoch)
        assert len(pairs) == len(set(pairs)) == n - 1 - left_out
        assert all(after == before + 1 for before, after in pairs)
        seen.update(pairs)
    assert set(seen) == {(k, k + 1) for k in range(n - 1)}  # over the epochs all of them


@pytest.mark.parametrize(("n", "B", "T"), [(50, 3, 4), (101, 7, 16), (17, 1, 5), (30, 4, 100)])
def test_each_stream_is_contiguous_and_starts_from_the_zero_state_only_at_the_start_of_an_epoch(
    n: int, B: int, T: int
) -> None:
    ids = np.arange(n, dtype=np.uint16)
    streams = Streams(ids, B, T)
    S = (n - 1) // B
    for epoch in range(3):
        windows = [streams.next() for _ in range(streams.windows_per_epoch)]
        assert [fresh.tolist() for _, _, fresh in windows] == [[k == 0] * B for k in range(len(windows))]
        assert [len(inputs) for inputs, _, _ in windows[:-1]] == [T] * (len(windows) - 1)
        inputs = np.concatenate([inputs for inputs, _, _ in windows])  # (S, B)
        targets = np.concatenate([targets for _, targets, _ in windows])
        offset = epoch % (n - B * S)
        for b in range(B):
            assert inputs[:, b].tolist() == ids[offset + b * S : offset + b * S + S].tolist()
            assert targets[:, b].tolist() == ids[offset + b * S + 1 : offset + b * S + S + 1].tolist()


def test_windows_are_int64_in_c_order_and_share_no_memory_with_the_text() -> None:
    ids = np.arange(100, dtype=np.uint8)
    inputs, targets, fresh = Streams(ids, 3, 4).next()
    for window in (inputs, targets):
        assert window.dtype == np.int64
        assert window.shape == (4, 3)
        assert window.flags.c_contiguous
        assert window.flags.writeable
        assert not np.shares_memory(window, ids)
    assert fresh.dtype == bool
    assert fresh.shape == (3,)


def test_seeking_a_cursor_returns_the_same_windows() -> None:
    ids = np.random.default_rng(0).integers(0, 9, 200, dtype=np.uint8)
    straight = Streams(ids, 3, 7)
    windows = []
    for k in range(40):
        assert straight.cursor == k
        windows.append(straight.next())
    for k in (0, 1, 9, 10, 11, 39):
        again = Streams(ids, 3, 7)
        again.seek(k)
        for found, expected in zip(again.next(), windows[k], strict=True):
            assert np.array_equal(found, expected)
    with pytest.raises(ValueError, match="-1"):
        straight.seek(-1)


@pytest.mark.fault("R61")
@pytest.mark.parametrize("n", range(1, 51))
def test_batch_and_window_are_reduced_until_a_short_text_fills_them(n: int) -> None:
    for batch, window in itertools.product([1, 2, 8, 64], [1, 3, 32, 100]):
        if n < 2:
            with pytest.raises(CorpusError, match="1 characters"):
                fit_batch(n, batch, window)
            continue
        B, T = fit_batch(n, batch, window)
        assert B in range(1, batch + 1)
        assert T in range(1, window + 1)
        inputs, _, _ = Streams(np.arange(n), B, T).next()
        assert inputs.shape == (T, B)  # a whole window
        assert batch == B or n - 1 < (B + 1) * T  # one stream more would not fill its window
        assert T in (window, n - 1)
    assert fit_batch(10**6, 64, 128) == (64, 128)
