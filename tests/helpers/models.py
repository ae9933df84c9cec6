"""Small models with random weights, and oracles for what runs them.

`equations` computes a model in float64, one step at a time. `chance` is a chi-squared test of sampled symbols.
`interrupt` sends a signal to a training at a given step.
"""

from __future__ import annotations

import functools
import signal
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

from charlstm import cells
from charlstm.config import Cell, ModelConfig
from charlstm.text import datasets
from charlstm.text.vocabulary import Vocabulary

if TYPE_CHECKING:  # it needs torch
    from charlstm.training.trainer import Trainer

CELLS: tuple[Cell, ...] = ("lstm", "peephole", "coupled", "gru", "rnn")
Weights = dict[str, NDArray[np.float32]]


def random_weights(config: ModelConfig, seed: int = 0, scale: float = 1.0) -> Weights:
    """Weights of the size that training starts with, so that no cell is chaotic: uniform within scale/√H."""
    draws = np.random.default_rng(seed)
    bound = scale * config.hidden**-0.5
    return {name: draws.uniform(-bound, bound, shape).astype(np.float32) for name, shape in config.shapes().items()}


@functools.cache
def real_text(chars: int) -> str:
    """Return the first `chars` characters of English prose from the documentation in Python."""
    text = datasets.generate("python:docs")[:chars]
    assert len(text) == chars
    return text


@functools.cache
def real_ids(chars: int) -> tuple[NDArray[np.integer], Vocabulary]:
    vocabulary = Vocabulary.of(real_text(chars))
    return vocabulary.encode(real_text(chars)), vocabulary


def equations(
    config: ModelConfig,
    weights: Mapping[str, NDArray[np.float32]],
    ids: NDArray[np.integer],
    state: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Logits (T, B, V) after each of ids (T, B), and the state after the last, by `cells` in float64."""
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


def surprises(logits: NDArray[np.float64], targets: NDArray[np.integer]) -> NDArray[np.float64]:
    """−log softmax(logits)[target], (T, B)."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    chosen = np.take_along_axis(shifted, targets[..., None].astype(np.int64), axis=-1)[..., 0]
    return np.asarray(np.log(np.exp(shifted).sum(axis=-1)) - chosen)


def chance(observed: NDArray[np.integer], weights: NDArray[np.float64]) -> float:
    """That counts (V,) so far from those of a distribution turn up by themselves, by χ²; 0 if one cannot be.

    Args:
        weights: (V,), the distribution, not yet divided by its sum.
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
    """Let a SIGINT come while the step `at` of a run, that is still to begin, is under way: it is its last."""
    step = run._step

    def stopping(share: float) -> float:
        if run._tally.step + 1 == at:
            signal.raise_signal(signal.SIGINT)
        return step(share)

    run._step = stopping  # type: ignore[method-assign]
