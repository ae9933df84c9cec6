"""Threads that work together must come to what one alone comes to, to the bit."""

from __future__ import annotations

import numpy as np
import pytest

from charlstm.config import ModelConfig, Precision
from charlstm.inference import native
from charlstm.inference.engine import Engine
from charlstm.inference.filters import SamplingRule


@pytest.mark.skipif(native.library() is None, reason="no compiler at install")
def test_a_text_does_not_depend_on_the_threads_that_draw_it() -> None:
    """Many engines, for a race shows itself where threads are out of step, as when they have just begun."""
    config = ModelConfig(65, 256, 1, 16)
    rng = np.random.default_rng(5)
    weights = {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in config.shapes().items()}

    def drawn(threads: int, seed: int) -> bytes:
        engine = Engine(config, weights, precision="int8", threads=threads, backend="native")
        symbols, _ = engine.generate([1], engine.zero_state(), 200, SamplingRule(1.0), seed=seed)
        return symbols.tobytes()

    assert [drawn(2, seed) for seed in range(150)] == [drawn(1, seed) for seed in range(150)]


@pytest.mark.skipif(native.library() is None, reason="no compiler at install")
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("texts", [11, 12, 31])  # with two threads: all share each product, or each has its own texts
def test_texts_side_by_side_do_not_depend_on_the_threads(precision: Precision, texts: int) -> None:
    config = ModelConfig(65, 96, 2, 16, boundary=7)
    rng = np.random.default_rng(5)
    weights = {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in config.shapes().items()}
    ids = rng.integers(0, 65, (30, texts))
    assert (ids == 7).any()

    def outcomes(threads: int) -> list[bytes]:
        engine = Engine(config, weights, precision=precision, threads=threads, backend="native")
        assert engine._backend.threads(texts) == threads  # type: ignore[union-attr]
        nats, state = engine.score(ids, engine.zero_state(texts))
        symbols, last = engine.generate(ids[-1], state, 20, SamplingRule(1.0), seed=3)
        return [array.tobytes() for array in (nats, state, symbols, last)]

    alone = outcomes(1)
    assert all(outcomes(2) == alone for _ in range(10))
