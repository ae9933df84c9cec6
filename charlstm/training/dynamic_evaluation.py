"""Dynamic evaluation: a model that goes on learning from the text it is scored on, as it reads.

Krause, Kahembwe, Murray & Renals, "Dynamic Evaluation of Neural Sequence Models", 2018 (arXiv:1709.07432). The text is
read in segments. Each is scored with the weights θ as they are, and only then do they move, so that every transition is
scored once, by a model that has not seen it:

    m ← mean of g² over the updates so far
    θ ← θ − rate · g / (√m + ε)
    θ ← θ + decay · (θ₀ − θ)

g is the gradient of the segment's mean surprise, through the segment and no further back; θ₀ are the trained weights.
The paper takes m from the training text, which is not at hand where a text is scored, and scales the decay by √m; here
m comes from the text itself, and the decay is the same for all weights.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from charlstm.config import DynamicConfig, ModelConfig
from charlstm.errors import DivergenceError
from charlstm.inference.evaluation import Score, protocol_of, score_of, transitions_of
from charlstm.progress import Report
from charlstm.text.corpus import Symbols
from charlstm.training.network import Network

EPSILON = 1e-8


def evaluate(
    model: ModelConfig,
    weights: Mapping[str, NDArray[np.float32]],
    ids: Symbols,
    config: DynamicConfig,
    unit: str = "character",
    report: Report | None = None,
) -> tuple[Score, dict[str, NDArray[np.float32]]]:
    """The score of a text (N,) as one stream, by a model that learns from it; and what its weights have become.

    `weights` stay as they are.

    Args:
        unit: what a symbol is called in the protocol.
        report: called after each segment with how many transitions are scored, and of how many.

    Raises:
        CorpusError: fewer than two symbols.
        DivergenceError: the rate was too high for the weights to stay finite.
    """
    transitions_of(ids)
    network = Network(model)
    network.load_weights(weights)
    state = network.zero_state(1)
    learner = _Learner(network, config)
    nats = 0.0
    for start in range(0, len(ids) - 1, config.segment):
        text = torch.from_numpy(np.asarray(ids[start : start + config.segment + 1]).astype(np.int64))[:, None]
        inputs, targets = text[:-1], text[1:]  # (T, 1)
        logits, state = network(inputs, state)
        surprise = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
        nats += (found := float(surprise.detach()))
        if not np.isfinite(found):
            raise DivergenceError(f"the model diverged at {unit} {start + 1}; give a smaller --dynamic-rate")
        learner.update(surprise / len(targets))
        state = state.detach()
        if report is not None:
            report(start + len(targets), len(ids) - 1)
    protocol = (
        f"dynamic: one stream, learning every {config.segment} {unit}s, rate {config.rate:g}, decay {config.decay:g}"
    )
    learnt = network.weights()
    if not all(np.isfinite(array).all() for array in learnt.values()):  # no checkpoint may hold them
        raise DivergenceError("the model diverged at its last update; give a smaller --dynamic-rate")
    return score_of(len(ids), nats, protocol_of(model, protocol)), learnt


class _Learner:
    """Moves a network's weights, and remembers where they began and how large their gradients have been."""

    def __init__(self, network: Network, config: DynamicConfig) -> None:
        self._config = config
        self._weights = list(network.parameters())
        self._trained = [weight.detach().clone() for weight in self._weights]
        self._squares = [torch.zeros_like(weight) for weight in self._weights]
        self._updates = 0

    def update(self, loss: torch.Tensor) -> None:
        gradients = torch.autograd.grad(loss, self._weights)
        self._updates += 1
        with torch.no_grad():
            for weight, trained, square, gradient in zip(
                self._weights, self._trained, self._squares, gradients, strict=True
            ):
                square += gradient.square()
                norm = (square / self._updates).sqrt_().add_(EPSILON)
                weight.addcdiv_(gradient, norm, value=-self._config.rate)
                weight.lerp_(trained, self._config.decay)
