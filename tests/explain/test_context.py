"""The curve of context is that of predictions from zero states, computed one by one."""

from __future__ import annotations

import numpy as np
import pytest

from charlstm.config import ModelConfig
from charlstm.explain import context
from charlstm.inference import surprisal
from charlstm.inference.engine import Engine
from tests.helpers.models import random_weights


@pytest.fixture(scope="module")
def engine() -> Engine:
    config = ModelConfig(7, hidden=5, embedding=3)
    return Engine(config, random_weights(config, seed=1, scale=4), precision="fp32")


def all_bits(engine: Engine, ids: np.ndarray) -> np.ndarray:
    return np.concatenate([[np.nan], surprisal.bits(engine, ids)])


def test_the_curve_is_the_mean_difference_of_predictions_from_the_zero_state(engine: Engine) -> None:
    ids = np.random.default_rng(1).integers(0, 7, 60)
    bits = all_bits(engine, ids)
    found = context.curve(engine, ids, bits, "a")
    assert found.name == "a"
    assert found.context.tolist() == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 59]
    assert found.full_bits_per_char == pytest.approx(bits[1:].mean())
    # Of 60 symbols, 59 have a symbol before them, so that there is one start for 59 steps: each n has one target.
    differences = [surprisal.bits(engine, ids[: n + 1])[-1] - bits[n] for n in range(1, 60)]
    np.testing.assert_allclose(found.bits_per_char, found.full_bits_per_char + np.zeros(12), atol=1e-6)
    np.testing.assert_allclose(differences, 0, atol=1e-6)


def test_each_context_length_begins_at_the_zero_state(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "MAX_CONTEXT", 8)
    monkeypatch.setattr(context, "FIRST_STEPS", 4)
    ids = np.random.default_rng(2).integers(0, 7, 200)
    bits = all_bits(engine, ids)
    for few in (context.MANY, 3):
        monkeypatch.setattr(context, "FEW", few)
        found = context.curve(engine, ids, bits)
        starts = np.arange(192)
        for place, (low, high) in enumerate([(1, 1), (2, 2), (3, 3), (4, 4), (5, 6), (7, 8)]):
            chosen = starts if high <= 4 else starts[np.unique(np.linspace(0, 191, min(few, 192)).astype(int))]
            expected = np.mean(
                [
                    surprisal.bits(engine, ids[s : s + n + 1])[-1] - bits[s + n]
                    for n in range(low, high + 1)
                    for s in chosen
                ]
            )
            assert found.bits_per_char[place] - found.full_bits_per_char == pytest.approx(expected, abs=1e-5)
    assert abs(found.bits_per_char[0] - found.full_bits_per_char) > 0.01, "the context matters"
    assert found.standard_error[0] > 0


def test_a_text_of_two_symbols_has_one_context(engine: Engine) -> None:
    ids = np.array([1, 2])
    found = context.curve(engine, ids, all_bits(engine, ids))
    assert found.context.tolist() == [1]
    assert found.bits_per_char[0] == pytest.approx(found.full_bits_per_char)
