"""Text out of an engine: temperature, streaming, many at once.

A text is drawn symbol by symbol from softmax(logits / temperature). The same engine, seed and prompt give the same
text, however it is cut into pieces and however many are drawn beside it.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from charlstm.config import SamplingConfig
from charlstm.engine import Engine
from charlstm.errors import UsageError
from charlstm.kernels import drawing
from charlstm.vocab import Vocabulary

BLOCK_SECONDS = 0.5e-3  # a piece takes so long to draw: no symbol waits a millisecond, and Python costs some 2 %
GROUP = 64  # texts drawn as one batch
GROUP_SYMBOLS = 64  # drawn between two chances for Ctrl-C


@dataclass(frozen=True)
class Context:
    """Where a text stands: all that is needed to go on with it. Immutable; make a new one with `read`."""

    state: NDArray[np.float32]  # (L, S, 1, H)
    last: int  # the symbol that the model has not read yet
    drawn: int = 0  # symbols drawn so far: the place in the sequence of random numbers
    seed: int | None = None  # of those random numbers


def distribution(logits: NDArray[np.floating], temperature: float) -> NDArray[np.float64]:
    """softmax(logits / temperature), (…, V); temperature 0 gives all to the likeliest symbol.

    Raises:
        FloatingPointError: the largest logit is NaN or infinite.
    """
    weights = drawing.weights(logits, temperature)
    return np.asarray(weights / weights.sum(axis=-1, keepdims=True))


def read(engine: Engine, vocabulary: Vocabulary, text: str = "", context: Context | None = None) -> Context:
    """The context after `text`, that is read after `context`.

    Without a context the text begins here: from the zero state. An empty text then begins after a line break, as most
    texts do at their first character; where the vocabulary has none, after a space, or after its first symbol.

    Raises:
        UnknownSymbols: the text has characters that are not in the vocabulary.
    """
    ids = vocabulary.encode(text).astype(np.int32)
    if context is None:
        if len(ids) == 0:
            ids = vocabulary.encode(next((s for s in "\n " if s in vocabulary.symbols), vocabulary.symbols[0]))
        context = Context(engine.zero_state(), int(ids[0]))
        ids = ids[1:]
    if len(ids) == 0:
        return context
    behind = np.concatenate(([context.last], ids[:-1])).astype(np.int32)
    return replace(context, state=engine.read(behind[:, None], context.state), last=int(ids[-1]))


class Stream:
    """One text, piece by piece: an iterator of strings, each ready within a millisecond of its first symbol.

    `config.length` 0 goes on for ever. After each piece, `context` is where the text stands, to be kept or saved, and
    taken up again by another stream.

    Args:
        config: `count` must be 1. A seed of None takes the context's, or a fresh one.
        context: goes on there; None begins a text. `config.prime` is read after it.

    Raises:
        UnknownSymbols: the prime has characters that are not in the vocabulary.
    """

    def __init__(
        self, engine: Engine, vocabulary: Vocabulary, config: SamplingConfig, context: Context | None = None
    ) -> None:
        if config.count != 1:
            raise UsageError(f"a stream is one text, not {config.count}: use texts()")
        context = read(engine, vocabulary, config.prime, context)
        if config.seed is not None and config.seed != context.seed:
            context = replace(context, seed=config.seed, drawn=0)
        self.context = context if context.seed is not None else replace(context, seed=fresh_seed(), drawn=0)
        self._engine, self._vocabulary, self._config = engine, vocabulary, config
        self._left = config.length if config.length else None
        self._block = 1

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._left == 0:
            raise StopIteration
        length = self._block if self._left is None else min(self._block, self._left)
        was, began = self.context, time.perf_counter()
        assert was.seed is not None
        symbols, state = self._engine.generate(
            [was.last],
            was.state,
            length,
            temperature=self._config.temperature,
            seed=was.seed,
            position=was.drawn,
            streams=[0],
        )
        seconds = time.perf_counter() - began
        self._block = max(1, min(2 * length, int(length * BLOCK_SECONDS / max(seconds, 1e-9))))
        self.context = replace(was, state=state, last=int(symbols[-1, 0]), drawn=was.drawn + length)
        if self._left is not None:
            self._left -= length
        return self._vocabulary.decode(symbols[:, 0])


def stream(engine: Engine, vocabulary: Vocabulary, config: SamplingConfig, context: Context | None = None) -> Stream:
    """One text, piece by piece: see `Stream`."""
    return Stream(engine, vocabulary, config, context)


def texts(
    engine: Engine, vocabulary: Vocabulary, config: SamplingConfig, context: Context | None = None
) -> Iterator[str]:
    """`config.count` texts of `config.length` symbols, drawn in batches; all begin alike, each has its random numbers.

    The first is the text of a `Stream` with the same seed. Memory is that of one batch.

    Raises:
        UsageError: texts without end.
        UnknownSymbols: the prime has characters that are not in the vocabulary.
    """
    if config.length == 0:
        raise UsageError(f"{config.count} texts need an end: give --length")
    begin = read(engine, vocabulary, config.prime, context)
    seed = config.seed if config.seed is not None else fresh_seed()
    for first in range(0, config.count, GROUP):
        streams = np.arange(first, min(first + GROUP, config.count))
        state = np.repeat(begin.state, len(streams), axis=2)
        last = np.full(len(streams), begin.last, np.int32)
        blocks = []
        for position in range(0, config.length, GROUP_SYMBOLS):
            block, state = engine.generate(
                last,
                state,
                min(GROUP_SYMBOLS, config.length - position),
                temperature=config.temperature,
                seed=seed,
                position=position,
                streams=streams,
            )
            last = block[-1]
            blocks.append(block.astype(vocabulary.dtype))
        symbols = np.concatenate(blocks)  # (length, B)
        for text in symbols.T:
            yield vocabulary.decode(text)


def fresh_seed() -> int:
    """A seed that nobody could foresee."""
    return secrets.randbits(63)
