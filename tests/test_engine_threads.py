"""Threads that draw one text together must draw the same symbols as one alone."""

from __future__ import annotations

import numpy as np
import pytest

from charlstm.config import ModelConfig
from charlstm.engine import Engine
from charlstm.kernels import native
from charlstm.kernels.drawing import Rule


@pytest.mark.skipif(native.library() is None, reason="no compiler at install")
def test_a_text_does_not_depend_on_the_threads_that_draw_it() -> None:
    """Many engines, for a race shows itself where threads are out of step, as when they have just begun."""
    config = ModelConfig(65, 256, 1, 16)
    rng = np.random.default_rng(5)
    weights = {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in config.shapes().items()}

    def drawn(threads: int, seed: int) -> bytes:
        engine = Engine(config, weights, precision="int8", threads=threads, backend="native")
        symbols, _ = engine.generate([1], engine.zero_state(), 200, Rule(1.0), seed=seed)
        return symbols.tobytes()

    assert [drawn(2, seed) for seed in range(150)] == [drawn(1, seed) for seed in range(150)]
