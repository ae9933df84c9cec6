"""A phrase selects the units that are on throughout, and finds the other places where they are on."""

from __future__ import annotations

import numpy as np
import pytest

from charlstm.errors import UsageError
from charlstm.explain.phrases import matches
from charlstm.explain.trace import Trace


def trace_of(*units: str) -> Trace:
    """Return a trace of one layer without c, in which a unit is on where its string has #."""
    h = np.array([[0.5 if mark == "#" else 0.1 for mark in unit] for unit in units], np.float32).T[:, None]
    return Trace(np.zeros(len(h), int), h[:, :, None], h, None)


def test_units_that_are_on_throughout_and_the_other_places_where_they_are_on() -> None:
    found = matches(
        trace_of(
            "..###....####..##.",
            "..###.#..###...###",
            ".####....####.....",  # on before the phrase
            "..#.#.............",  # not throughout
        ),
        2,
        5,
    )
    assert found.units.tolist() == [[0, 0], [0, 1]]
    assert found.spans.tolist() == [[9, 12], [15, 17]]
    assert matches(trace_of("..###....####..##.", "..###.#..###...###"), 2, 5, count=1).spans.tolist() == [[9, 12]]


def test_the_threshold_and_the_start_of_the_text() -> None:
    trace = trace_of("##..##")
    assert matches(trace, 0, 2).units.tolist() == [[0, 0]]
    assert matches(trace, 0, 2, threshold=0.6).units.shape == (0, 2)
    assert matches(trace, 0, 2, threshold=0.6).spans.shape == (0, 2)
    assert matches(trace, 0, 2).spans.tolist() == [[4, 6]]


@pytest.mark.parametrize(("start", "end"), [(2, 2), (-1, 2), (3, 9), (4, 3)])
def test_a_phrase_outside_the_text_is_refused(start: int, end: int) -> None:
    with pytest.raises(UsageError, match="within 0 and 6"):
        matches(trace_of("##..##"), start, end)
