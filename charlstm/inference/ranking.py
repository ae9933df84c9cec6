"""Which model explains a text best: the bits of whole texts under several models.

All characters of a text are scored, each text from the state at the beginning of a text. A character outside the
vocabulary of a model is read as `Vocabulary.replacement` and costs UNKNOWN_BITS more: the bits that name one of all
code points. So the totals of models with different vocabularies, also of characters and of bytes, can be compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from charlstm.config import MAX_VOCABULARY
from charlstm.inference import evaluation
from charlstm.inference.context import advance
from charlstm.inference.engine import Engine
from charlstm.inference.surprisal import line_sums
from charlstm.text.vocabulary import Vocabulary

UNKNOWN_BITS = math.log2(MAX_VOCABULARY)  # 20.1


@dataclass(frozen=True)
class Ranking:
    """The bits of one text under each model.

    Attributes:
        chars: number of characters of the text.
        bits: name of the model → total bits of the text.
    """

    chars: int
    bits: Mapping[str, float]

    @property
    def best(self) -> str | None:
        """The name of the model with the fewest bits, the first of equal ones; None for an empty text."""
        return min(self.bits, key=lambda name: self.bits[name]) if self.chars else None

    @property
    def margin(self) -> float:
        """The bits that the second-best model needs more than the best one."""
        best, second = sorted(self.bits.values())[:2]
        return second - best


def rank(models: Mapping[str, tuple[Engine, Vocabulary]], texts: Sequence[str]) -> list[Ranking]:
    """Return the ranking of each text.

    Args:
        models: name → model and its vocabulary, at least two.
        texts: texts that are scored together.
    """
    bits = {name: text_bits(engine, vocabulary, texts).tolist() for name, (engine, vocabulary) in models.items()}
    return [Ranking(len(text), {name: bits[name][k] for name in models}) for k, text in enumerate(texts)]


def text_bits(engine: Engine, vocabulary: Vocabulary, texts: Sequence[str]) -> NDArray[np.float64]:
    """Return the bits of each text under one model, (len(texts),)."""
    first = np.array([advance(engine, vocabulary).last])
    known = [vocabulary.encode_known(text, "replace") for text in texts]
    joined = [np.concatenate((first, ids)) for ids, _ in known]
    totals = np.zeros(len(texts))
    if short := [k for k, ids in enumerate(joined) if len(ids) <= evaluation.CHUNK]:
        totals[short] = line_sums(engine, [joined[k] for k in short])
    for k in set(range(len(texts))).difference(short):
        score = evaluation.evaluate(engine, joined[k])
        totals[k] = score.nats_per_char * score.transitions
    unknown = np.array([sum(counts.values()) for _, counts in known])
    return totals / math.log(2) + unknown * UNKNOWN_BITS
