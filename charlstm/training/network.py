"""The network (embedding → L recurrent layers → projection on the vocabulary) and the initialisation of its weights.

Letters: B batch, T time, V vocabulary, E embedding, H hidden, L layers, S states (h, or h and c). Time comes first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from charlstm.cells import GATES
from charlstm.config import ModelConfig
from charlstm.training.recurrence import Recurrence, product
from charlstm.training.streams import Part


class Network(nn.Module):
    """A character-level language model that can be trained.

    Its parameters have the names and shapes of `ModelConfig.shapes`, as in a checkpoint.

    Args:
        config: the shape of the model.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.embedding)
        self.recurrence = Recurrence(config)
        self.projection = nn.Linear(config.hidden, config.vocab_size)

    def forward(
        self,
        ids: Tensor,
        state: Tensor,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
        part: Part | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compute the logits after each symbol.

        Args:
            ids: (T, B), int64.
            state: (L, S, B, H), the state before the first symbol.
            dropout: the share of the outputs of each layer that is dropped; the rest is scaled up, so that the mean
                does not change. 0 for evaluation.
            generator: the random generator of dropout.
            part: the streams that `ids` has of a larger batch, so that the same outputs are dropped as in the whole
                batch; None means that it has all.

        Returns:
            The logits (T, B, V), and the state (L, S, B, H) after the last symbol.
        """
        outputs, state = self.recurrence(self.embedding.weight, ids, state, dropout, generator, part)
        projection = self.projection
        logits = product(self.recurrence.path, outputs.flatten(0, 1), projection.weight, projection.bias)
        return logits.view(*ids.shape, -1), state

    def zero_state(self, batch: int) -> Tensor:
        """Return a state of zeros, (L, S, B, H), on the device of the weights."""
        return torch.zeros(self.config.state_shape(batch), device=self.embedding.weight.device)

    @torch.no_grad()
    def initialise(
        self,
        generator: torch.Generator,
        forget_bias: float,
        counts: NDArray[np.integer] | None = None,
        memory_length: int | None = None,
    ) -> None:
        """Initialise the weights at random.

        Recurrent blocks are orthogonal (Saxe et al. 2014); input blocks and the projection preserve the variance of
        their input (Glorot & Bengio 2010). The bias of the forget gate is positive (Jozefowicz et al. 2015), and so is
        that of the update gate of the GRU, so that the state is kept at first. The embedding is small enough that the
        gates begin in their linear range.

        Args:
            generator: the random generator.
            forget_bias: the bias of the forget gate, or of the update gate of the GRU.
            counts: (V,) occurrences of each symbol in the text. The bias of the projection becomes the logarithm of the
                relative frequencies, with one added to each count, so that the network need not learn them in its
                first steps. None: a bias of 0.
            memory_length: N, how many steps the state is kept at first, instead of a forget bias: the forget gates
                begin near 1 − 1/N and the input gates, where a cell has them, near 1/N, so that noise does not fill the
                state in N steps (Tallec & Ollivier 2018, who sample N of each unit uniformly). docs/recall.md compares
                the two.
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
                    biases = dict(zip(gates, parameter.chunk(len(gates)), strict=True))
                    biases[keep].fill_(forget_bias if memory_length is None else math.log(memory_length - 1))
                    if memory_length is not None and "i" in biases:
                        biases["i"].copy_(-biases[keep])
        nn.init.normal_(self.projection.weight, std=self.config.hidden**-0.5, generator=generator)
        nn.init.zeros_(self.projection.bias)
        if counts is not None:
            shares = (counts + 1) / (counts + 1).sum()
            self.projection.bias.copy_(torch.from_numpy(np.log(shares)))

    @torch.no_grad()
    def adopt(self, weights: Mapping[str, np.ndarray], ids: NDArray[np.integer], generator: torch.Generator) -> None:
        """Copy the weights of a model of the same shape, whose vocabulary is a subset of this one.

        The projection row and the bias of a new symbol are the means of the known ones: by Jensen's inequality its
        probability is then at most that of an average symbol, and the ratios between the known symbols do not change
        (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models"). Its embedding is sampled from
        a normal distribution with the mean and the standard deviation of each column of the known ones.

        Args:
            weights: the weights of that model by name.
            ids: the id in this vocabulary of each symbol of that model.
            generator: the random generator of the new embeddings.
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
        """Return float32 copies of all weights by name, for a checkpoint or an engine."""
        return {name: tensor.detach().cpu().numpy().copy() for name, tensor in self.state_dict().items()}

    def load_weights(self, weights: Mapping[str, np.ndarray]) -> None:
        """Copy the given weights, whose names and shapes are those of `ModelConfig.shapes`, into the network."""
        self.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in weights.items()})


class Scorer:
    """Score texts with a network that is being trained, on the device where it trains.

    It has the methods of `evaluation.ScoringModel`: arguments and results are numpy arrays.

    Args:
        network: the network; its weights are read at each call.
    """

    def __init__(self, network: Network) -> None:
        self.config = network.config
        self._network = network
        self._device = network.embedding.weight.device

    def zero_state(self, batch: int = 1) -> NDArray[np.float32]:
        """Return a state of zeros, (L, S, B, H)."""
        return np.zeros(self.config.state_shape(batch), np.float32)

    def advance(self, ids: NDArray[np.integer], state: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the state after feeding ids (T, B)."""
        return self._run(ids, state)[1]

    def score(
        self, ids: NDArray[np.integer], state: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Return the surprisal of each symbol but the first.

        Args:
            ids: (T + 1, B).
            state: (L, S, B, H), the state before the first symbol.

        Returns:
            Nats (T, B) of ids[1:], and the state (L, S, B, H) after ids[T - 1].
        """
        logits, last = self._run(ids[:-1], state)
        targets = torch.from_numpy(ids[1:].astype(np.int64)).to(self._device)
        nats = functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return nats.view(targets.shape).cpu().numpy().astype(np.float64), last

    @torch.no_grad()
    def _run(self, ids: NDArray[np.integer], state: NDArray[np.float32]) -> tuple[Tensor, NDArray[np.float32]]:
        inputs = torch.from_numpy(ids.astype(np.int64)).to(self._device)
        logits, last = self._network(inputs, torch.from_numpy(state).to(self._device))
        return logits, last.cpu().numpy()
