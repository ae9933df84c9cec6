"""How well a model foresees a text: the mean surprise of its N − 1 transitions, each counted exactly once.

The first symbol has nothing before it and is only read. Two protocols, and the result names its own:

    exact     one stream: the state is carried from the first symbol to the last.
    streams   the text is cut into parts that run side by side as one batch, which is several times faster. Each part
              but the first begins cold and reads the symbols before its cut, unscored, until its state has warmed up.

How a text is cut depends on its length alone, so that a figure is the same on every machine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from charlstm.config import ModelConfig
from charlstm.errors import CorpusError
from charlstm.progress import Report
from charlstm.text.corpus import Symbols

STREAMS = 64
WARM_UP = 256  # symbols read before a part is scored: on trained models the figure is then that of --exact to 1e-7 bits
EXACT = "exact: one stream, state carried over the whole text"
DOCUMENTS = "documents: state reset at each"
CHUNK = 4096  # symbols, of all streams together, between two chances for Ctrl-C


class Reader(Protocol):
    """What scores: `engine.Engine`, or a network that is being trained. Shapes as in `engine.Engine`."""

    config: ModelConfig

    def zero_state(self, batch: int = 1) -> NDArray[np.float32]: ...

    def advance(self, ids: NDArray[np.integer], state: NDArray[np.float32]) -> NDArray[np.float32]: ...

    def score(
        self, ids: NDArray[np.integer], state: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], NDArray[np.float32]]: ...


@dataclass(frozen=True)
class Score:
    """What `evaluate` found. One surprise in three units: bits = nats / ln 2, perplexity = e^nats."""

    chars: int
    transitions: int  # scored: chars − 1
    nats_per_char: float
    bits_per_char: float
    perplexity: float
    protocol: str
    unknown: int = 0  # characters of the text that were skipped or replaced


def evaluate(
    engine: Reader,
    ids: Symbols,
    *,
    exact: bool = False,
    streams: int = STREAMS,
    warm_up: int = WARM_UP,
    unit: str = "character",
    report: Report | None = None,
) -> Score:
    """Score a text.

    Args:
        ids: (N,), the text's symbols, in memory or in a file.
        exact: one stream; else at most `streams`, each warmed up on `warm_up` symbols, and fewer for a text so short
            that warming up would cost more than a quarter of it.
        unit: what a symbol is called in the protocol.
        report: called now and then with how many transitions are scored, and of how many.

    Raises:
        CorpusError: fewer than two symbols: there is no transition to score.
    """
    transitions = transitions_of(ids)
    count = 1 if exact else max(1, min(streams, transitions // (4 * max(warm_up, 1))))
    if count == 1:
        nats = _run(engine, ids, np.zeros(1, np.int64), engine.zero_state(), transitions, transitions, report)
        return score_of(len(ids), float(nats[0]), protocol_of(engine.config, EXACT))
    part = -(-transitions // count)  # part k scores the transitions into symbols k·part + 1 … (k + 1)·part
    count = -(-transitions // part)
    cuts = np.arange(count) * part
    state = engine.zero_state(count)
    if warm_up:
        before = _columns(ids, cuts[1:] - warm_up, warm_up)
        state[:, :, 1:] = engine.advance(before, engine.zero_state(count - 1))
    nats = _run(engine, ids, cuts, state, part, transitions - int(cuts[-1]), report)
    protocol = f"{count} streams, each warmed up on {warm_up} {unit}s"
    return score_of(len(ids), float(nats.sum()), protocol_of(engine.config, protocol))


def _run(
    engine: Reader,
    ids: Symbols,
    cuts: NDArray[np.int64],
    state: NDArray[np.float32],
    length: int,
    last: int,
    report: Report | None,
) -> NDArray[np.float64]:
    """Sum of nats (B,) over `length` transitions of each stream from its cut on; of the last only the first `last`."""
    total = np.zeros(len(cuts))
    steps = max(1, CHUNK // len(cuts))
    for t in range(0, length, steps):
        end = min(t + steps, length)
        nats, state = engine.score(_columns(ids, cuts + t, end - t + 1), state)
        total += nats.sum(axis=0)
        total[-1] -= nats[max(0, last - t) :, -1].sum()
        if report is not None:
            report(end * len(cuts), length * len(cuts))
    return total


def _columns(ids: Symbols, firsts: NDArray[np.int64], length: int) -> NDArray[np.integer]:
    """(length, B): so many symbols from each of `firsts` on; behind the text's end the symbol 0."""
    columns = np.zeros((length, len(firsts)), ids.dtype)
    for column, first in enumerate(firsts.tolist()):
        found = np.asarray(ids[first : first + length])
        columns[: len(found), column] = found
    return columns


def transitions_of(ids: Symbols) -> int:
    """How many there are in a text.

    Raises:
        CorpusError: none.
    """
    if len(ids) < 2:
        raise CorpusError(f"a text of {len(ids)} symbols has no transition to score; at least 2 are needed")
    return len(ids) - 1


def protocol_of(config: ModelConfig, protocol: str) -> str:
    """A protocol as the model makes it: of documents the state is carried no further than each goes."""
    return protocol if config.boundary is None else f"{protocol}; {DOCUMENTS}"


def score_of(chars: int, nats: float, protocol: str) -> Score:
    """The score of a text whose chars − 1 transitions have so many nats together."""
    nats_per_char = nats / (chars - 1)
    return Score(
        chars=chars,
        transitions=chars - 1,
        nats_per_char=nats_per_char,
        bits_per_char=nats_per_char / math.log(2),
        perplexity=math.exp(min(nats_per_char, 700.0)),
        protocol=protocol,
    )
