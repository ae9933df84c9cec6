"""Score a text: the mean surprisal of its N − 1 transitions, each counted exactly once.

The first symbol has no predecessor and is not scored. There are two protocols, and a score names its own:

    exact     one stream: the state is carried from the first symbol to the last.
    streams   the text is split into parts that are scored as one batch, which is several times faster. Each part but
              the first starts with the zero state, which is warmed up on the symbols before the part; they are not
              scored again.

The split depends on the length of the text only, so that a score is the same on every machine.

Letters: N symbols of a text, B streams, T time, L layers, S states of the cell, H hidden.
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
WARM_UP = 256  # symbols before a scored part: on trained models the score then equals the exact one to 1e-7 bits
EXACT = "exact: one stream, state carried over the whole text"
DOCUMENTS = "documents: state reset at each"
CHUNK = 4096  # symbols of all streams per call of the model; Ctrl-C takes effect between calls


class ScoringModel(Protocol):
    """A model that can score: an `Engine`, or a network that is being trained."""

    config: ModelConfig

    def zero_state(self, batch: int = 1) -> NDArray[np.float32]:
        """Return the initial state (L, S, B, H) of `batch` texts, as `Engine.zero_state` does."""

    def advance(self, ids: NDArray[np.integer], state: NDArray[np.float32]) -> NDArray[np.float32]:
        """Feed ids (T, B) and return the new state (L, S, B, H), as `Engine.advance` does."""

    def score(
        self, ids: NDArray[np.integer], state: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Return the surprisals (T, B) in nats of all ids (T + 1, B) but the first, and the state, as in `Engine`."""


@dataclass(frozen=True)
class Score:
    """How well a model predicts a text: its mean surprisal in three units.

    Attributes:
        chars: number of symbols of the text.
        transitions: number of scored symbols, `chars` − 1.
        nats_per_char: mean surprisal in nats.
        bits_per_char: the same in bits, nats / ln 2.
        perplexity: e^nats.
        protocol: how the text was scored, in words.
        unknown: number of characters that were skipped or replaced.
    """

    chars: int
    transitions: int
    nats_per_char: float
    bits_per_char: float
    perplexity: float
    protocol: str
    unknown: int = 0


def evaluate(
    engine: ScoringModel,
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
        engine: the model.
        ids: (N,) the symbols, in memory or in a file.
        exact: score one stream. Otherwise at most `streams`; fewer for a short text, so that warm-up takes at most a
            quarter of the work.
        streams: the largest number of streams.
        warm_up: number of symbols that each stream but the first is warmed up on.
        unit: the name of a symbol in the protocol.
        report: called repeatedly with the number of scored transitions and their total.

    Raises:
        CorpusError: the text has fewer than two symbols, so that there is no transition to score.
    """
    transitions = transitions_of(ids)
    count = 1 if exact else max(1, min(streams, transitions // (4 * max(warm_up, 1))))
    if count == 1:
        starts = np.zeros(1, np.int64)
        nats = _score_streams(engine, ids, starts, engine.zero_state(), transitions, transitions, report)
        return score_of(len(ids), float(nats[0]), protocol_of(engine.config, EXACT))
    part = -(-transitions // count)  # part k scores the symbols k·part + 1 … (k + 1)·part
    count = -(-transitions // part)
    starts = np.arange(count) * part
    state = engine.zero_state(count)
    if warm_up:
        before = columns(ids, starts[1:] - warm_up, warm_up)
        state[:, :, 1:] = engine.advance(before, engine.zero_state(count - 1))
    nats = _score_streams(engine, ids, starts, state, part, transitions - int(starts[-1]), report)
    protocol = f"{count} streams, each warmed up on {warm_up} {unit}s"
    return score_of(len(ids), float(nats.sum()), protocol_of(engine.config, protocol))


def _score_streams(
    engine: ScoringModel,
    ids: Symbols,
    starts: NDArray[np.int64],
    state: NDArray[np.float32],
    length: int,
    last: int,
    report: Report | None,
) -> NDArray[np.float64]:
    """Return the sums of nats (B,) over `length` transitions of each stream; over `last` of the last stream."""
    total = np.zeros(len(starts))
    steps = max(1, CHUNK // len(starts))
    for t in range(0, length, steps):
        end = min(t + steps, length)
        nats, state = engine.score(columns(ids, starts + t, end - t + 1), state)
        total += nats.sum(axis=0)
        total[-1] -= nats[max(0, last - t) :, -1].sum()
        if report is not None:
            report(end * len(starts), length * len(starts))
    return total


def columns(ids: Symbols, firsts: NDArray[np.int64], length: int) -> NDArray[np.integer]:
    """Return columns (length, B) of symbols that start at `firsts` (B,), padded with 0 after the end of the text."""
    columns = np.zeros((length, len(firsts)), ids.dtype)
    for column, first in enumerate(firsts.tolist()):
        found = np.asarray(ids[first : first + length])
        columns[: len(found), column] = found
    return columns


def transitions_of(ids: Symbols) -> int:
    """Return the number of transitions of a text (N,), which is N − 1.

    Raises:
        CorpusError: the text has no transition.
    """
    if len(ids) < 2:
        raise CorpusError(f"a text of {len(ids)} symbols has no transition to score: give a text of 2 or more")
    return len(ids) - 1


def protocol_of(config: ModelConfig, protocol: str) -> str:
    """Return a protocol in words for a model. A model of documents resets the state at each boundary."""
    return protocol if config.boundary is None else f"{protocol}; {DOCUMENTS}"


def score_of(chars: int, nats: float, protocol: str) -> Score:
    """Return the score of a text of `chars` symbols from the sum of its surprisal in nats."""
    nats_per_char = nats / (chars - 1)
    return Score(
        chars=chars,
        transitions=chars - 1,
        nats_per_char=nats_per_char,
        bits_per_char=nats_per_char / math.log(2),
        perplexity=math.exp(min(nats_per_char, 700.0)),
        protocol=protocol,
    )
