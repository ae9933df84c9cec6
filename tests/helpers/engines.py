"""Engines of every backend for parametrized tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from charlstm.config import ModelConfig
from charlstm.inference import native
from charlstm.inference.engine import Engine
from tests.helpers.models import Weights

BACKENDS = ["numpy", *native.isas()]
ISAS = [pytest.param(isa, id=isa) for isa in native.isas()] or [
    pytest.param("", marks=pytest.mark.skip(reason="the native engine was not compiled"))
]


def engine_of(config: ModelConfig, weights: Weights, backend: str) -> Engine:
    if backend == "numpy":
        return Engine(config, weights, backend="numpy")
    return Engine(config, weights, precision="fp32", backend="native", isa=backend)


def biased(logits: Any, backend: str) -> Engine:
    """An engine whose logits are always these."""
    config = ModelConfig(len(logits), hidden=1, embedding=1)
    weights = {name: np.zeros(shape, np.float32) for name, shape in config.shapes().items()}
    weights["projection.bias"] = np.asarray(logits, np.float32)
    return engine_of(config, weights, backend)
