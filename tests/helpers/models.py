"""Make small models with random weights, and compute the results that are expected of them.

`equations` computes a model in float64, one step at a time. `chance` is a chi-squared test of sampled symbols.
`interrupt` sends a signal to a training at a given step.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from charlstm import cells
from charlstm.config import Cell, ModelConfig
from charlstm.model import Model
from charlstm.text import datasets
from charlstm.text.vocabulary import Vocabulary

if TYPE_CHECKING:  # it needs torch
    from charlstm.training.state import Step
    from charlstm.training.trainer import Trainer

CELLS: tuple[Cell, ...] = ("lstm", "peephole", "coupled", "gru", "rnn")
Weights = dict[str, NDArray[np.float32]]


def random_weights(config: ModelConfig, seed: int = 0, scale: float = 1.0) -> Weights:
    """Return weights of the usual initial size, uniform within ±scale/√H, so that no cell is chaotic."""
    rng = np.random.default_rng(seed)
    bound = scale * config.hidden**-0.5
    return {name: rng.uniform(-bound, bound, shape).astype(np.float32) for name, shape in config.shapes().items()}


@functools.cache
def real_text(chars: int) -> str:
    """Return the first `chars` characters of English prose from the documentation in Python."""
    text = datasets.generate("python:docs")[:chars]
    assert len(text) == chars
    return text


@functools.cache
def real_ids(chars: int) -> tuple[NDArray[np.integer], Vocabulary]:
    """Return the ids of `real_text(chars)` and its vocabulary."""
    vocabulary = Vocabulary.of(real_text(chars))
    return vocabulary.encode(real_text(chars)), vocabulary


def equations(
    config: ModelConfig,
    weights: Mapping[str, NDArray[np.float32]],
    ids: NDArray[np.integer],
    state: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the logits (T, B, V) after each of the ids (T, B) and the last state, by `cells` in float64."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "peephole")
    logits = np.empty((*ids.shape, config.vocab_size))
    for t, symbols in enumerate(ids):
        state = np.where((symbols == config.boundary)[:, None], 0, state)
        x, new = w["embedding.weight"][symbols], np.empty_like(state)
        for layer in range(config.layers):
            layer_weights = cells.Weights(*(w.get(f"recurrence.{name}_l{layer}") for name in names))
            new[layer] = cells.STEP[config.cell](x, tuple(state[layer]), layer_weights)
            x = new[layer, 0]
        state = new
        logits[t] = x @ w["projection.weight"].T + w["projection.bias"]
    return logits, state


def losses(logits: NDArray[np.float64], targets: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return −ln softmax(logits)[target] for logits (T, B, V) and targets (T, B)."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(shifted, targets[..., None].astype(np.int64), axis=-1)[..., 0]
    return np.asarray(np.log(np.exp(shifted).sum(axis=-1)) - chosen)


def chance(observed: NDArray[np.integer], weights: NDArray[np.float64]) -> float:
    """Return the p-value of a χ² test of counts (V,) against a distribution; 0 if an impossible symbol occurs.

    Args:
        observed: (V,) how often each symbol occurs.
        weights: (V,) the probabilities, times any factor.
    """
    torch = pytest.importorskip("torch")
    expected = weights / weights.sum() * observed.sum()
    possible = expected > 0
    if observed[~possible].any():
        return 0.0
    chi_square = ((observed - expected)[possible] ** 2 / expected[possible]).sum()
    freedom = torch.tensor((possible.sum() - 1) / 2)
    return float(torch.special.gammaincc(freedom, torch.tensor(chi_square / 2)))


def interrupt(run: Trainer, at: int) -> None:
    """Send SIGINT during step `at` of a run that has not begun: this step is its last."""
    step = run.state.step

    def stopping(share: float) -> Step:
        if run.state.counters.step + 1 == at:
            signal.raise_signal(signal.SIGINT)
        return step(share)

    run.state.step = stopping  # type: ignore[method-assign]


def fixed(symbols: str, shares: list[float]) -> Model:
    """Return a model whose distribution is always this one."""
    config = ModelConfig(len(symbols), hidden=1, embedding=1)
    weights = {name: np.zeros(shape, np.float32) for name, shape in config.shapes().items()}
    weights["projection.bias"] = np.log(np.array(shares, np.float32))
    return Model(config, Vocabulary(symbols), weights, precision="fp32")


def random_model(symbols: str, seed: int, cell: Any = "lstm", layers: int = 1, boundary: str | None = None) -> Model:
    """Return a model with random weights, which differ with the seed."""
    vocabulary = Vocabulary(symbols, boundary)
    shape = {"hidden": 5 + seed, "embedding": 3, "layers": layers}
    config = ModelConfig(len(symbols), cell=cell, boundary=vocabulary.boundary_id, **shape)
    weights = {name: 4 * array for name, array in random_weights(config, seed).items()}
    return Model(config, vocabulary, weights, precision="fp32")
