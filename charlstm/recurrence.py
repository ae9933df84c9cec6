"""Layers over time, for training. One choice of path, in one place: `Recurrence.path`.

| path | what runs | where |
|---|---|---|
| reference | `cells`, step by step, under autograd | every cell, every device; the oracle of the others |
| vendor | torch's own layer: cuDNN on a GPU, oneDNN on a CPU | lstm, gru, rnn |

Letters: B batch, T time, V vocabulary, E embedding, H hidden, L layers, G gates, S states.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from charlstm import cells
from charlstm.config import ModelConfig

Path = Literal["reference", "vendor"]


class Recurrence(nn.Module):
    """L layers of one cell; parameters named and laid out as in `torch.nn.LSTM`, so that they interchange."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        for name, shape in config.shapes().items():
            if name.startswith("recurrence."):
                self.register_parameter(name.removeprefix("recurrence."), nn.Parameter(torch.zeros(shape)))
        self.path: Path = "vendor" if config.cell in ("lstm", "gru", "rnn") else "reference"

    def weights(self, layer: int) -> cells.Weights:
        """One layer's parameters."""
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "peephole")
        return cells.Weights(*(getattr(self, f"{name}_l{layer}", None) for name in names))

    def forward(
        self, embedding: Tensor, ids: Tensor, state: Tensor, dropout: float, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        """Outputs (T, B, H) of the last layer and the state (L, S, B, H) after the last step.

        Args:
            embedding: (V, E), a row a symbol.
            ids: (T, B), int64.
            state: (L, S, B, H).
            dropout, generator: see `model.Network.forward`.
        """
        x = embedding[ids]
        finals = []
        for layer in range(self.config.layers):
            run = _vendor if self.path == "vendor" else _reference
            x, final = run(self.config.cell, x, state[layer], self.weights(layer))
            finals.append(final)
            x = _drop(x, dropout, generator)
        return x, torch.stack(finals)


def _reference(cell: str, x: Tensor, state: Tensor, weights: cells.Weights) -> tuple[Tensor, Tensor]:
    """One layer by its equations. x (T, B, in), state (S, B, H) → (T, B, H), (S, B, H)."""
    step = cells.STEP[cell]
    current = tuple(state)
    outputs = []
    for x_t in x:
        current = step(x_t, current, weights)
        outputs.append(current[0])
    return torch.stack(outputs), torch.stack(current)


def _vendor(cell: str, x: Tensor, state: Tensor, weights: cells.Weights) -> tuple[Tensor, Tensor]:
    """One layer by torch's own implementation; signature of `_reference`."""
    flat = list(weights[:4])
    if cell == "lstm":
        outputs, h, c = torch.lstm(x, (state[:1], state[1:]), flat, True, 1, 0.0, True, False, False)
        return outputs, torch.cat((h, c))
    run = torch.gru if cell == "gru" else torch.rnn_tanh
    outputs, h = run(x, state, flat, True, 1, 0.0, True, False, False)
    return outputs, h


def _drop(x: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    if share == 0:
        return x
    keep = torch.empty_like(x).bernoulli_(1 - share, generator=generator)
    return x * keep.div_(1 - share)
