"""The position of a text within a model: the state, and the symbols that the next one depends on.

Letters: T time, L layers, S states of the cell, H hidden.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charlstm.config import MAX_REPEAT_WINDOW
from charlstm.inference.engine import Engine
from charlstm.text.vocabulary import Vocabulary

Ids = np.ndarray[Any, Any]


def _no_symbols() -> NDArray[np.int32]:
    return np.empty(0, np.int32)


@dataclass(frozen=True)
class Context:
    """Everything that is needed to continue a text. Immutable; make one with `Model.advance` or `advance`.

    Attributes:
        state: (L, S, 1, H) the state of the model before `last`.
        last: the last symbol of the text, which has not been fed to the model yet.
        position: number of symbols sampled so far, which is the position in the stream of random numbers.
        seed: seed of those random numbers, or None if nothing has been sampled.
        before: (T,) the symbols before `last`, as many as a repeat penalty can take into account.
    """

    state: NDArray[np.float32]
    last: int
    position: int = 0
    seed: int | None = None
    before: NDArray[np.int32] = field(default_factory=_no_symbols)

    @property
    def recent(self) -> NDArray[np.int32]:
        """The last symbols of the text, (T + 1,)."""
        return np.append(self.before, np.int32(self.last))

    def moved(self, state: NDArray[np.float32], ids: Ids) -> Context:
        """Return the context after ids (T,), T > 0, given the state (L, S, 1, H) before the last of them."""
        before = np.concatenate((self.recent, ids[:-1]))[1 - MAX_REPEAT_WINDOW :].astype(np.int32)
        return replace(self, state=state, last=int(ids[-1]), before=before)


def advance(engine: Engine, vocabulary: Vocabulary, text: str = "", context: Context | None = None) -> Context:
    """Feed a text to the model and return the context after it.

    Args:
        engine: the model.
        vocabulary: its vocabulary.
        text: the text to feed.
        context: the context that the text continues; None starts a new text with the zero state. In a model of
            documents a new text follows a boundary. In other models an empty new text consists of a line break, because
            most texts start a line; if the vocabulary has no line break, of a space, or of its first symbol.

    Raises:
        UnknownSymbols: the text has characters that are not in the vocabulary.
    """
    ids = vocabulary.encode(text).astype(np.int32)
    if context is None:
        if (boundary := vocabulary.boundary_id) is not None:
            ids = np.append(np.int32(boundary), ids)
        elif len(ids) == 0:
            ids = vocabulary.encode(next((s for s in "\n " if s in vocabulary.symbols), vocabulary.symbols[0]))
        context = Context(engine.zero_state(), int(ids[0]))
        ids = ids[1:]
    return advance_ids(engine, context, ids)


def advance_ids(engine: Engine, context: Context, ids: Ids) -> Context:
    """Feed ids (T,) to the model and return the context after them."""
    if len(ids) == 0:
        return context
    fed = np.concatenate(([context.last], ids[:-1])).astype(np.int32)
    return context.moved(engine.advance(fed[:, None], context.state), ids)


def advance_sampled(engine: Engine, context: Context, ids: Ids) -> Context:
    """Return the context after ids (T,) that were sampled from `context`."""
    return replace(advance_ids(engine, context, ids), position=context.position + len(ids))
