"""Run untrusted models from valid checkpoints: every function returns numbers or raises a clear error.

The weights are finite, which the loader checks, and otherwise arbitrary.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import charlstm
from charlstm import checkpoint
from charlstm.checkpoint import Checkpoint
from charlstm.config import DynamicConfig, ModelConfig
from charlstm.errors import CharlstmError, CheckpointError
from charlstm.inference import native
from charlstm.inference.engine import Engine
from charlstm.inference.filters import SamplingRule
from charlstm.model import Model
from charlstm.text.vocabulary import Vocabulary
from tests.helpers.models import CELLS

LARGEST = np.finfo(np.float32).max
SYMBOLS = "\n abcdefghijklmnopqrstuvwxyzäöü☃😀"
ENGINES: list[dict[str, Any]] = [{"backend": "numpy", "precision": "fp32"}] + [
    {"backend": "native", "isa": isa, "precision": precision} for isa in native.isas() for precision in ("fp32", "int8")
]


def any_weights(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return weights of a random kind: usual, of all magnitudes, huge, tiny, zero or constant."""
    kind = rng.integers(8)
    if kind < 3:
        return rng.uniform(-1, 1, shape).astype(np.float32) * np.float32(10.0 ** rng.integers(-2, 3))
    if kind == 3:
        bits = rng.integers(0, 2**32, shape, np.uint32).view(np.float32)
        return np.nan_to_num(bits, posinf=float(LARGEST), neginf=-float(LARGEST))
    if kind == 4:
        return np.where(rng.random(shape) < 0.5, LARGEST, -LARGEST).astype(np.float32)
    if kind == 5:
        return rng.uniform(-1e-40, 1e-40, shape).astype(np.float32)
    return np.full(shape, [0, 1e19][kind - 6], np.float32)


def any_model(seed: int) -> Checkpoint:
    rng = np.random.default_rng(seed)
    size, hidden, layers, embedding = (int(rng.integers(1, most)) for most in (len(SYMBOLS), 40, 4, 20))
    config = ModelConfig(size, hidden, layers, embedding, CELLS[seed % len(CELLS)])
    weights = {name: any_weights(rng, shape) for name, shape in config.shapes().items()}
    return Checkpoint(config, Vocabulary.of(SYMBOLS[:size]), weights)


def is_score(nats: np.ndarray[Any, Any]) -> bool:
    """Return whether each score is at least 0 up to rounding, or NaN because the logits are not finite."""
    return bool((np.isnan(nats) | (nats > -1e-5)).all())


@pytest.mark.fault("R58")
@pytest.mark.parametrize("count", [40, pytest.param(10_000, marks=pytest.mark.slow)])
def test_any_weights_are_read_scored_and_sampled_from_or_refused(count: int) -> None:
    refused, sampled, messages = 0, 0, set()
    for seed in range(count):
        model, rng = any_model(seed), random.Random(seed)
        ids = np.random.default_rng(seed).integers(0, model.model.vocab_size, (12, 3))
        for options in ENGINES:
            engine = Engine(model.model, model.weights, **options)
            state = engine.advance(ids, engine.zero_state(3))
            assert state.shape == model.model.state_shape(3)
            nats, _ = engine.score(ids, engine.zero_state(3))
            assert nats.shape == (11, 3)
            assert is_score(nats), (seed, options)
            temperature = rng.choice((0.0, 5e-324, 0.5, 1.0, 1e308))
            try:
                symbols, _ = engine.generate(ids[0], state, 9, SamplingRule(temperature), seed=seed)
            except CheckpointError as error:
                messages.add(str(error))
                refused += 1
            else:
                assert 0 <= symbols.min() <= symbols.max() < model.model.vocab_size, (seed, options)
                sampled += 1
    assert all("not finite" in message for message in messages)
    assert refused > count / 10
    assert sampled > count


def uses(model: Model, seed: int) -> Iterator[Callable[[], object]]:
    """Yield a call of every function of the library that uses a model."""
    text = SYMBOLS * 3 + "\n\n" + SYMBOLS
    yield lambda: model.sample("a", 20, seed=seed, temperature=seed % 3)
    yield lambda: list(model.samples(3, "", 9, seed=seed))
    yield lambda: model.evaluate(text, unknown="skip")
    yield lambda: model.evaluate(text, unknown="replace", exact=True)
    yield lambda: list(model.score_lines(text, unknown="replace", carry=bool(seed % 2)))
    yield lambda: list(model.score_chars(text, unknown="replace"))
    yield lambda: list(model.score_chars(text, unknown="replace", top=2))
    yield lambda: model.compare(model, text, unknown="replace")
    yield lambda: learn(model, text[:20])


def learn(model: Model, text: str) -> None:
    from charlstm.training import dynamic_evaluation

    ids, _ = model.encode(text, "replace")
    _, weights = dynamic_evaluation.evaluate(model.config, model.weights, ids, DynamicConfig(rate=1e3))
    assert all(np.isfinite(array).all() for array in weights.values())


@pytest.mark.fault("R58")
@pytest.mark.parametrize("count", [40, pytest.param(3000, marks=pytest.mark.slow)])
def test_any_model_is_used_or_refused_with_one_line(count: int, memory: Path) -> None:
    messages, used = set(), 0
    for seed in range(count):
        checkpoint.save(memory / "m", any_model(seed))
        model = charlstm.load(memory / "m", precision="int8" if native.isas() and seed % 2 else "fp32")
        for use in uses(model, seed):
            try:
                use()
                used += 1
            except CharlstmError as error:
                messages.add(str(error))
    assert used > count
    assert len(messages) > 2
    assert all(message.isprintable() for message in messages)
