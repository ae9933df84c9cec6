"""Dynamic evaluation: score a text with a model that learns from it while it is scored.

Krause, Kahembwe, Murray & Renals, "Dynamic Evaluation of Neural Sequence Models", 2018 (arXiv:1709.07432). The text is
divided into segments. Each segment is scored with the current weights θ, and only then are the weights updated, so that
every transition is scored exactly once, by a model that has not been trained on it:

    m ← mean of g² over all updates so far
    θ ← θ − rate · g / (√m + ε)
    θ ← θ + decay · (θ₀ − θ)

g is the gradient of the mean loss of the segment, truncated at the start of the segment; θ₀ are the trained weights.
The paper computes m on the training text, which is not available when a text is scored, and scales the decay by √m;
here m is computed on the text itself, and the decay is the same for all weights.

Letters: N symbols of the text, T symbols of a segment.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from charlstm import checkpoint
from charlstm.config import DynamicConfig, ModelConfig
from charlstm.errors import DivergenceError, Field
from charlstm.inference.evaluation import Score, protocol_of, score_of, transitions_of
from charlstm.model import Model
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
    """Score a text as one stream with a model that learns from it.

    Args:
        model: the shape of the model.
        weights: the trained weights by name; they are not changed.
        ids: (N,) symbols of the text.
        config: rate, decay and segment length.
        unit: the name of a symbol in the protocol and in errors.
        report: called after each segment with the number of scored transitions, and of all transitions.

    Returns:
        The score, and the adapted weights by name.

    Raises:
        CorpusError: the text has fewer than two symbols.
        DivergenceError: the rate was too high, and the loss or the weights became NaN or infinite.
    """
    transitions = transitions_of(ids)
    network = Network(model)
    network.load_weights(weights)
    state = network.zero_state(1)
    learner = _Learner(network, config)
    total_nats = 0.0
    for start in range(0, transitions, config.segment):
        segment = torch.from_numpy(np.asarray(ids[start : start + config.segment + 1]).astype(np.int64))[:, None]
        inputs, targets = segment[:-1], segment[1:]  # (T, 1)
        logits, state = network(inputs, state)
        loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
        total_nats += (nats := float(loss.detach()))
        if not np.isfinite(nats):
            raise _divergence(f"at {unit} {start + 1}", config)
        learner.update(loss / len(targets))
        state = state.detach()
        if report is not None:
            report(start + len(targets), transitions)
    protocol = (
        f"dynamic: one stream, learning every {config.segment} {unit}s, rate {config.rate:g}, decay {config.decay:g}"
    )
    adapted = network.weights()
    if not all(np.isfinite(array).all() for array in adapted.values()):  # they must not be saved in a checkpoint
        raise _divergence("at its last update", config)
    return score_of(len(ids), total_nats, protocol_of(model, protocol)), adapted


def save_adapted(path: Path, model: Model, weights: Mapping[str, NDArray[np.float32]]) -> None:
    """Save the adapted weights of a model as a checkpoint, with the vocabulary and the corpus record of the model.

    Args:
        path: the checkpoint file to write.
        model: the model that was evaluated.
        weights: the adapted weights, as `evaluate` returns them.

    Raises:
        CheckpointError: the file cannot be written.
    """
    facts = {"corpus": model.corpus.to_json()} if model.corpus.names else {}
    checkpoint.save(path, checkpoint.Checkpoint(model.config, model.vocabulary, dict(weights), facts=facts))


def _divergence(where: str, config: DynamicConfig) -> DivergenceError:
    return DivergenceError(
        f"the model diverged {where}: reduce ", Field("dynamic_rate"), f", which is {config.rate:g}", value=config.rate
    )


class _Learner:
    """Update the weights of a network by the equations of this module.

    Args:
        network: its weights are updated in place; their values now are θ₀.
        config: rate and decay.
    """

    def __init__(self, network: Network, config: DynamicConfig) -> None:
        self._config = config
        self._weights = list(network.parameters())
        self._trained = [weight.detach().clone() for weight in self._weights]
        self._sums_of_squares = [torch.zeros_like(weight) for weight in self._weights]
        self._updates = 0

    def update(self, loss: torch.Tensor) -> None:
        """Make one update from the mean loss of a segment, a scalar."""
        gradients = torch.autograd.grad(loss, self._weights)
        self._updates += 1
        with torch.no_grad():
            for weight, trained, squares, gradient in zip(
                self._weights, self._trained, self._sums_of_squares, gradients, strict=True
            ):
                squares += gradient.square()
                norm = (squares / self._updates).sqrt_().add_(EPSILON)
                weight.addcdiv_(gradient, norm, value=-self._config.rate)
                weight.lerp_(trained, self._config.decay)
