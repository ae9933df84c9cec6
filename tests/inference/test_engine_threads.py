"""Several threads of an engine must compute the same bits as one thread."""

from __future__ import annotations

import numpy as np
import pytest

from charlstm.config import ModelConfig, Precision
from charlstm.inference import native
from charlstm.inference.engine import Engine
from charlstm.inference.filters import SamplingRule


@pytest.mark.skipif(native.library() is None, reason="no compiler at install")
def test_a_sampled_text_does_not_depend_on_the_number_of_threads() -> None:
    """Make many engines: a race is most likely while threads are starting."""
    config = ModelConfig(65, 256, 1, 16)
    rng = np.random.default_rng(5)
    weights = {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in config.shapes().items()}

    def generated(threads: int, seed: int) -> bytes:
        engine = Engine(config, weights, precision="int8", threads=threads, backend="native")
        symbols, _ = engine.generate([1], engine.zero_state(), 200, SamplingRule(1.0), seed=seed)
        return symbols.tobytes()

    assert [generated(2, seed) for seed in range(150)] == [generated(1, seed) for seed in range(150)]


@pytest.mark.skipif(native.library() is None, reason="no compiler at install")
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("texts", [11, 12, 31])  # with two threads: both share each product, or each has its own texts
def test_texts_of_a_batch_do_not_depend_on_the_number_of_threads(precision: Precision, texts: int) -> None:
    config = ModelConfig(65, 96, 2, 16, boundary=7)
    rng = np.random.default_rng(5)
    weights = {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in config.shapes().items()}
    ids = rng.integers(0, 65, (30, texts))
    assert (ids == 7).any()

    def outcomes(threads: int) -> list[bytes]:
        engine = Engine(config, weights, precision=precision, threads=threads, backend="native")
        assert engine.threads(texts) == threads
        nats, state = engine.score(ids, engine.zero_state(texts))
        symbols, last = engine.generate(ids[-1], state, 20, SamplingRule(1.0), seed=3)
        return [array.tobytes() for array in (nats, state, symbols, last)]

    alone = outcomes(1)
    assert all(outcomes(2) == alone for _ in range(10))
