"""A unit that follows a feature gets its name; units without a relation to the text get none."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from charlstm.explain import units
from charlstm.explain.features import Features, features
from charlstm.explain.trace import Trace
from tests.helpers.models import real_ids

LENGTH = 3000


@pytest.fixture(scope="module")
def english() -> Features:
    ids, vocabulary = real_ids(LENGTH)
    return features(vocabulary, ids)


def trace_of(h: NDArray[np.floating], c: NDArray[np.floating] | None = None) -> Trace:
    """Return a trace of one layer with these states (T, H)."""
    shape = (LENGTH, 1, -1)
    h, c = h.astype(np.float32).reshape(shape), None if c is None else c.astype(np.float32).reshape(shape)
    return Trace(np.zeros(LENGTH, int), h[:, :, None], h, c)


def slow_noise(seed: int, count: int) -> NDArray[np.floating]:
    """Return (T, count) noise in which neighbours are alike, as the states of a network are."""
    noise = np.random.default_rng(seed).normal(size=(LENGTH, count))
    for t in range(1, LENGTH):
        noise[t] = 0.9 * noise[t - 1] + 0.4 * noise[t]
    return np.tanh(noise)


def test_units_that_follow_a_feature_are_named_and_noise_is_not(english: Features) -> None:
    column = english.values[english.names.index("column")]
    word = english.values[english.names.index("in a word")]
    noise = slow_noise(1, 20)
    h = np.concatenate([noise, np.stack([-column / 80 + 0.1 * noise[:, 0], 0 * column + 0.5], 1)], 1)
    c = np.concatenate([slow_noise(2, 20), np.stack([slow_noise(3, 1)[:, 0], np.arctanh(0.9 * word)], 1)], 1)
    found = units.units(trace_of(h, c), english)
    assert found is not None
    assert found.best() == [(0, 21), (0, 20)]
    assert [english.names[found.name[0, unit]] for unit in (20, 21)] == ["column", "in a word"]
    assert found.quantity[0, 20:].tolist() == ["h", "c"]
    assert found.correlation[0, 20] < -0.9
    assert found.correlation[0, 21] == pytest.approx(1, abs=1e-5)
    assert (found.name[0, :20] == -1).all()
    assert 0.02 < found.score[0, :20].max() <= found.chance_of_any < 0.6
    assert (found.chance <= found.chance_of_any).all()
    assert found.strong_share == pytest.approx(2 / 22)


def test_without_the_control_noise_would_be_named(english: Features) -> None:
    """Negative control: the search alone finds a feature for every unit, with scores that are not 0."""
    found = units.units(trace_of(slow_noise(1, 20)), english, shifts=1)
    assert found is not None
    assert found.shifts == 1
    assert np.median(found.score) > 0.01
    assert (units.units(trace_of(slow_noise(1, 20)), english).name == -1).all()  # type: ignore[union-attr]


def test_the_score_is_that_of_the_second_half(english: Features) -> None:
    """A unit that follows a feature in the first half only is not named."""
    column = english.values[english.names.index("column")] / 80
    noise = slow_noise(4, 1)[:, 0]
    half = LENGTH // 2
    first = np.concatenate([column[:half], noise[half:]])
    found = units.units(trace_of(np.stack([first, column], 1)), english)
    assert found is not None
    assert found.name[0].tolist() == [-1, english.names.index("column")]
    chosen = units._Search(np.stack([first, column], 1).astype(np.float32), english.values, half, 1).at(0)[0]
    assert chosen.tolist() == [english.names.index("column")] * 2


def test_the_search_is_that_of_numpy_at_every_shift(english: Features) -> None:
    h = slow_noise(5, 6).astype(np.float32)
    half = LENGTH // 2
    search = units._Search(h, english.values, half, 2)  # two quantities of three units
    for offset in (0, 700):
        rotated = np.roll(english.values, -offset, axis=1)
        scores = np.abs(np.corrcoef(rotated[:, :half], h[:half].T)[: len(rotated), len(rotated) :])
        feature, quantity, correlation = search.at(offset)
        for unit in range(3):
            of_unit = scores[:, [unit, unit + 3]]
            best = np.unravel_index(of_unit.argmax(), of_unit.shape)
            assert (feature[unit], quantity[unit]) == best
            second = np.corrcoef(rotated[best[0], half:], h[half:, unit + 3 * best[1]])[0, 1]
            assert correlation[unit] == pytest.approx(second, abs=1e-4)


def test_a_constant_unit_has_the_score_zero(english: Features) -> None:
    found = units.units(trace_of(np.full((LENGTH, 2), 0.3)), english)
    assert found is not None
    assert (found.correlation == 0).all()
    assert (found.name == -1).all()
    assert found.best() == []


def test_a_short_text_and_a_text_without_features_have_no_names(english: Features) -> None:
    short = trace_of(slow_noise(1, 2))
    short = Trace(short.ids[:199], short.gates[:199], short.h[:199], None)
    assert units.units(short, Features(english.names, english.values[:, :199])) is None
    assert units.units(trace_of(slow_noise(1, 2)), Features((), np.zeros((0, LENGTH), np.float32))) is None
