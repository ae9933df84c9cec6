"""The copy meter finds the longest common substring that a naive search finds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charlstm.explain import copies, lookup
from charlstm.explain.copies import Copy, longest_copy
from tests.helpers.models import real_ids

SMALL = st.lists(st.integers(0, 3), max_size=40)


def naive(generated: bytes, training: bytes) -> int:
    """Return the length of the longest substring of a text that occurs in another, by trying all."""
    lengths = range(len(generated), 0, -1)
    return next((n for n in lengths for i in range(len(generated) - n + 1) if generated[i : i + n] in training), 0)


def agrees(generated: list[int], training: list[int]) -> bool:
    found = longest_copy(np.array(generated, np.uint8), np.array(training, np.uint8))
    part = bytes(generated[found.start : found.start + found.length])
    there = bytes(training[found.found_at : found.found_at + found.length])
    return found.length == naive(bytes(generated), bytes(training)) == len(part) and part == there


@settings(max_examples=300, deadline=None)
@given(SMALL, SMALL)
def test_the_longest_copy_is_that_of_a_naive_search(generated: list[int], training: list[int]) -> None:
    assert agrees(generated, training)


@settings(max_examples=100, deadline=None)
@given(SMALL, SMALL, SMALL, SMALL, SMALL)
def test_a_planted_copy_is_found(a: list[int], b: list[int], c: list[int], d: list[int], copied: list[int]) -> None:
    found = longest_copy(np.array([*a, *copied, *b], np.uint8), np.array([*c, *copied, *d], np.uint8))
    assert found.length >= len(copied)
    assert agrees([*a, *copied, *b], [*c, *copied, *d])


def test_a_binary_search_in_place_of_a_table_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, _ = real_ids(20_000)
    text = np.concatenate([ids[5000:5100], ids[100:340], ids[9000:9050]])
    found = longest_copy(text, ids)
    assert found.length >= 240
    monkeypatch.setattr(lookup, "MAX_TABLE", 0)
    assert longest_copy(text, ids) == found


def test_the_check_fails_if_the_extension_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: without the descending powers of two only lengths that are powers of two are found."""
    joined = copies._joined
    monkeypatch.setattr(copies, "_joined", lambda left, right, offset: joined(left, left, offset))
    assert not agrees([1, 2, 3, 0, 1, 2], [9, 1, 2, 3, 9])


def test_texts_without_a_common_symbol_have_no_copy() -> None:
    empty = np.zeros(0, np.uint8)
    assert longest_copy(np.array([1, 2]), np.array([3, 4])) == Copy(0, 0, 0)
    assert longest_copy(empty, np.array([3])) == longest_copy(np.array([3]), empty) == Copy(0, 0, 0)
