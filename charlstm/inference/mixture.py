"""Mix the distributions of several models over the union of their vocabularies.

With the weights w, which sum to 1, and the distributions p of the models, the mixture is

    mean       p(x) = Σ wᵢ pᵢ(x)         a model gives 0 to a symbol that it lacks
    product    p(x) ∝ Π pᵢ(x)^wᵢ         only the symbols that all models have

A model that lacks a symbol of the text reads its replacement instead (`Vocabulary.replacement`).

Letters: B batch, T time, V symbols of the union, L layers, S states of the cell, H hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from charlstm.config import ModelConfig
from charlstm.errors import Field, UsageError
from charlstm.inference.engine import Engine, Ids, State, StepByStep
from charlstm.text.vocabulary import Vocabulary

MixBy = Literal["mean", "product"]


@dataclass(frozen=True, eq=False)
class Part:
    """One model of a mixture.

    Attributes:
        engine: the model.
        vocabulary: its vocabulary.
        weight: its weight, above 0.
    """

    engine: Engine
    vocabulary: Vocabulary
    weight: float


def union(vocabularies: Sequence[Vocabulary]) -> Vocabulary:
    """Return the vocabulary of a mixture.

    Raises:
        UsageError: one has bytes and another characters, or their boundaries differ.
    """
    first, *others = vocabularies
    for other in others:
        first.check_compatible(other)
        other.check_compatible(first)  # the check ignores texts without a boundary on one side
    return first.union(*others)


class MixedEngine(Engine):
    """An engine whose distribution is a mixture. Its state (1, 1, B, ΣLSH) has the states of all models.

    Args:
        parts: the models.
        vocabulary: the union of their vocabularies.
        by: whether the mixture is the weighted mean of the distributions or their weighted product.

    Raises:
        UsageError: the product allows no symbol, because the models have none in common.
    """

    def __init__(self, parts: Sequence[Part], vocabulary: Vocabulary, by: MixBy) -> None:
        backend = _Mixed(parts, vocabulary, by)
        self.config = ModelConfig(
            len(vocabulary), hidden=backend.size, embedding=1, cell="rnn", boundary=vocabulary.boundary_id
        )
        self.precision = "fp32"
        self._backend = backend
        self._parts = parts

    @property
    def description(self) -> str:
        """The engines of the models in words."""
        return " + ".join(part.engine.description for part in self._parts)

    def threads(self, batch: int) -> int:
        """Return the largest number of threads that a call with `batch` texts uses."""
        return max(part.engine.threads(batch) for part in self._parts)


class _Mixed(StepByStep):
    """The backend of a mixture."""

    def __init__(self, parts: Sequence[Part], vocabulary: Vocabulary, by: MixBy) -> None:
        total = sum(part.weight for part in parts)
        self._parts, self._by = parts, by
        self._shares = [part.weight / total for part in parts]
        self._own, self._places = [], []
        symbols = vocabulary.symbols
        for part in parts:
            own = part.vocabulary
            instead = own.encode(own.replacement)[0]
            known = {symbol: k for k, symbol in enumerate(own.symbols)}
            self._own.append(np.array([known.get(symbol, instead) for symbol in symbols], np.int32))  # (V,)
            self._places.append(np.array([symbols.index(symbol) for symbol in own.symbols]))
        common = np.bincount(np.concatenate(self._places), minlength=len(symbols)) == len(parts)
        if by == "product" and not common.any():
            raise UsageError("the models of ", Field("mix"), " have no symbol in common: their product is empty")
        self._shapes = [part.engine.config.state_shape(1) for part in parts]
        self._sizes = [shape[0] * shape[1] * shape[3] for shape in self._shapes]
        self.size = sum(self._sizes)

    def advance(self, ids: Ids, state: State, project: bool) -> tuple[NDArray[np.float32], State]:
        batch, begin = ids.shape[1], 0
        mixed = np.zeros((batch, len(self._own[0]))) if project else np.zeros((batch, 0))
        states = []
        for part, share, own, places, shape, size in zip(
            self._parts, self._shares, self._own, self._places, self._shapes, self._sizes, strict=True
        ):
            packed = state[0, 0, :, begin : begin + size].reshape(batch, shape[0], shape[1], shape[3])
            theirs = np.ascontiguousarray(packed.transpose(1, 2, 0, 3))
            fed = own[ids]
            if project:
                theirs = part.engine.advance(fed[:-1], theirs) if len(fed) > 1 else theirs
                logits, theirs = part.engine.step(fed[-1], theirs)
                logs = _log_softmax(logits)
                if self._by == "mean":
                    mixed[:, places] += share * np.exp(logs)
                else:
                    spread = np.full(mixed.shape, -np.inf)
                    spread[:, places] = logs
                    mixed += share * spread
            else:
                theirs = part.engine.advance(fed, theirs)
            states.append(theirs.transpose(2, 0, 1, 3).reshape(batch, size))
            begin += size
        if self._by == "mean":
            with np.errstate(divide="ignore"):
                mixed = np.log(mixed)
        return mixed.astype(np.float32), np.concatenate(states, 1)[None, None]


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the log-probabilities (B, V) of logits (B, V); NaN if the logits are NaN or infinite."""
    with np.errstate(invalid="ignore", over="ignore"):
        shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
