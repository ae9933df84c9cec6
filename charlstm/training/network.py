"""The network: embedding → L recurrent layers → projection over the vocabulary; and how it starts.

Letters: B batch, T time, V vocabulary, E embedding, H hidden, L layers, S states (h, or h and c). Time comes first.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from charlstm.cells import GATES
from charlstm.config import ModelConfig
from charlstm.training.recurrence import Recurrence, product


class Network(nn.Module):
    """A character-level language model, ready to train.

    Its parameters have the names and shapes of `ModelConfig.shapes`, so `state_dict` is what a checkpoint holds.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.embedding)
        self.recurrence = Recurrence(config)
        self.projection = nn.Linear(config.hidden, config.vocab_size)

    def forward(
        self, ids: Tensor, state: Tensor, dropout: float = 0.0, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits (T, B, V) after each symbol, and the state after the last.

        Args:
            ids: (T, B), int64.
            state: (L, S, B, H); zeros for a fresh start.
            dropout: share of each layer's output that is dropped, scaled so that the mean stays; 0 when not training.
            generator: where dropout takes its random numbers.
        """
        outputs, state = self.recurrence(self.embedding.weight, ids, state, dropout, generator)
        projection = self.projection
        logits = product(self.recurrence.path, outputs.flatten(0, 1), projection.weight, projection.bias)
        return logits.view(*ids.shape, -1), state

    def zero_state(self, batch: int) -> Tensor:
        """(L, S, B, H) of zeros, where the model's weights are."""
        return torch.zeros(self.config.state_shape(batch), device=self.embedding.weight.device)

    @torch.no_grad()
    def initialise(
        self, generator: torch.Generator, forget_bias: float, counts: NDArray[np.integer] | None = None
    ) -> None:
        """Draw fresh weights.

        Recurrent blocks are orthogonal (Saxe et al. 2014), input blocks and the projection have the variance that
        keeps their outputs' (Glorot & Bengio 2010), the forget gate starts open (Jozefowicz et al. 2015), and so does
        the update gate of the GRU, which keeps the old state where it is near one. The embedding is small enough that
        the gates begin in their linear range.

        Args:
            counts: (V,) of each symbol in the text. The projection's bias is the logarithm of their shares, each symbol
                counted once more than it occurs: the network need not spend its first steps on how frequent a symbol
                is. None: a bias of 0.
        """
        gates = GATES[self.config.cell]
        keep = {"lstm": "f", "peephole": "f", "coupled": "f", "gru": "z"}.get(self.config.cell)
        nn.init.normal_(self.embedding.weight, std=0.5, generator=generator)
        for name, parameter in self.recurrence.named_parameters():
            if name.startswith("weight_hh"):
                for block in parameter.chunk(len(gates)):
                    nn.init.orthogonal_(block, generator=generator)
            elif name.startswith("weight_ih"):
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5, generator=generator)
            else:
                nn.init.zeros_(parameter)
                if name.startswith("bias_ih") and keep is not None:
                    parameter.chunk(len(gates))[gates.index(keep)].fill_(forget_bias)
        nn.init.normal_(self.projection.weight, std=self.config.hidden**-0.5, generator=generator)
        nn.init.zeros_(self.projection.bias)
        if counts is not None:
            shares = (counts + 1) / (counts + 1).sum()
            self.projection.bias.copy_(torch.from_numpy(np.log(shares)))

    @torch.no_grad()
    def adopt(self, weights: Mapping[str, np.ndarray], ids: NDArray[np.integer], generator: torch.Generator) -> None:
        """Begin with the weights of a model of the same shape, which knows some of the symbols or all.

        A new symbol's row of the projection is the mean of the known ones, bias and all: by Jensen's inequality it is
        given at most the probability of an average symbol, and what was learned of the others stays (Hewitt 2021,
        Initializing New Word Embeddings for Pretrained Language Models). Its embedding is drawn around their mean with
        their deviation in each column: like what the layers are used to, and for each new symbol another.

        Args:
            ids: (V of that model,) the id that each of its symbols has here.
        """
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in weights.items()}
        known = torch.from_numpy(ids.astype(np.int64))
        for name in ("embedding.weight", "projection.weight", "projection.bias"):
            rows = tensors[name]
            grown = rows.mean(0).repeat(self.config.vocab_size, *[1] * (rows.ndim - 1))
            if name == "embedding.weight":
                grown += torch.randn(grown.shape, generator=generator) * rows.std(0, correction=0)
            grown[known] = rows
            tensors[name] = grown
        self.load_state_dict(tensors)

    def weights(self) -> dict[str, np.ndarray]:
        """A float32 copy of every weight, as a checkpoint and the engine want them."""
        return {name: tensor.detach().cpu().numpy().copy() for name, tensor in self.state_dict().items()}

    def load_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Take these weights; names and shapes must be those of `ModelConfig.shapes`."""
        self.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in weights.items()})


class Scorer:
    """A network as `evaluation` wants its engine: numpy in, numpy out, computed where the network trains."""

    def __init__(self, network: Network) -> None:
        self.config = network.config
        self._network = network
        self._device = network.embedding.weight.device

    def zero_state(self, batch: int = 1) -> NDArray[np.float32]:
        """(L, S, B, H) of zeros."""
        return np.zeros(self.config.state_shape(batch), np.float32)

    def advance(self, ids: NDArray[np.integer], state: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the state after feeding ids (T, B)."""
        return self._run(ids, state)[1]

    def score(
        self, ids: NDArray[np.integer], state: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Nats (T, B) of ids[1:] (T + 1, B) after those before, and the state after ids[T - 1]."""
        logits, last = self._run(ids[:-1], state)
        wanted = torch.from_numpy(ids[1:].astype(np.int64)).to(self._device)
        nats = functional.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
        return nats.view(wanted.shape).cpu().numpy().astype(np.float64), last

    @torch.no_grad()
    def _run(self, ids: NDArray[np.integer], state: NDArray[np.float32]) -> tuple[Tensor, NDArray[np.float32]]:
        inputs = torch.from_numpy(ids.astype(np.int64)).to(self._device)
        logits, last = self._network(inputs, torch.from_numpy(state).to(self._device))
        return logits, last.cpu().numpy()
