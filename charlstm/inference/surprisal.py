"""How surprising each line and each character of a text is, in bits: −log2 of the probability that the model gave it.

`evaluation` says how well a text is foreseen as a whole, this room says where it is not. Lines are scored in two ways:

    reset     each line is a text of its own that begins, as sampling does, after a line break: all of its characters
              are scored, its own line break too. Many lines are scored side by side, and what several begin with in
              common is read once.
    carried   the lines are one text: the state goes on from line to line. Its first character has nothing before it and
              is only read, so that the bits of all lines together are those of `evaluation`, with one stream.

Of a model of documents a line begins as a document does, and one that is carried on as far as its document goes. A
document's end ends a line, too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charlstm.config import Unknown
from charlstm.inference.context import advance
from charlstm.inference.engine import Engine
from charlstm.inference.evaluation import CHUNK, Reader, transitions_of
from charlstm.text import documents
from charlstm.text.corpus import Symbols, whole_lines
from charlstm.text.vocabulary import Vocabulary

SIDE_BY_SIDE = 1024  # lines scored together
STEPS = 8  # symbols of each, before those that have ended or parted are looked for
FEW = 256  # symbols of all together for which to look would cost more than it saves
BLOCK = 1000  # characters that count as one observation where two models are compared

Ids = np.ndarray[Any, Any]


@dataclass(frozen=True)
class LineScore:
    """One line and its surprise."""

    number: int  # from 1
    text: str  # as it was read, with its line break if it has one
    chars: int  # scored
    bits: float  # of all of them together
    unknown: int = 0  # characters skipped or replaced

    @property
    def bits_per_char(self) -> float:
        """0 for a line of which nothing is scored."""
        return self.bits / self.chars if self.chars else 0.0


@dataclass(frozen=True)
class CharScore:
    """One character and its surprise."""

    place: int  # in the text, the first is 1
    char: str
    bits: float  # NaN where the model's logits are not finite
    likeliest: tuple[tuple[str, float], ...] = ()  # what the model expected here, with its probability


@dataclass(frozen=True)
class Difference:
    """Bits per character of one model less those of another, on the same text.

    Both score the same characters, so that most of what makes a text hard cancels out in the difference at each. But
    neighbours are not independent: the standard error is that of the mean of `blocks` blocks of some BLOCK characters.
    """

    bits_per_char: float
    standard_error: float | None  # None: too short for two blocks
    blocks: int


def bits(engine: Engine, ids: Symbols) -> NDArray[np.float64]:
    """Bits (N − 1,) at each transition of a text (N,), as one stream.

    Raises:
        CorpusError: fewer than two symbols.
    """
    transitions_of(ids)
    return _Place(None, engine.zero_state()).read(engine, np.asarray(ids)) / math.log(2)


def difference(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> Difference:
    """How far apart two models are, from the bits (N − 1,) of both at the same transitions."""
    paired = ours - theirs
    blocks = max(1, len(paired) // BLOCK)
    means = [block.mean() for block in np.array_split(paired, blocks)]
    error = float(np.std(means, ddof=1)) / math.sqrt(blocks) if blocks > 1 else None
    return Difference(float(paired.mean()), error, blocks)


def lines(
    engine: Engine, vocabulary: Vocabulary, parts: Iterable[str], *, carry: bool = False, unknown: Unknown = "error"
) -> Iterator[LineScore]:
    """The score of each line of a text that comes in parts, in order; a line ends with a line break or with the text.

    The scores of all lines that a part completes are given before the next part is asked for. Memory is that of one
    part and of the longest line.

    Args:
        carry: the state goes on from line to line, see above.
        unknown: what to do with characters that are not in the vocabulary.

    Raises:
        UnknownSymbols: such a character, with unknown="error".
    """
    begin = advance(engine, vocabulary)
    place = _Place(vocabulary.boundary_id, engine.zero_state())
    if vocabulary.boundary is not None and vocabulary.boundary_symbol is not None:
        parts = documents.marked(parts, vocabulary.boundary, vocabulary.boundary_symbol)
    number = 0
    for whole in whole_lines(parts, vocabulary.boundary_symbol):
        known = [vocabulary.encode_known(line, unknown) for line in whole]
        ids = [symbols for symbols, _ in known]
        if carry:
            scores = [(place.read(engine, symbols).sum(), place.scored) for symbols in ids]
        else:
            first = np.array([begin.last])
            nats = _side_by_side(engine, [np.concatenate((first, symbols)) for symbols in ids])
            scores = [(n, len(symbols)) for n, symbols in zip(nats, ids, strict=True)]
        for line, (nats_of_line, chars), (_, foreign) in zip(whole, scores, known, strict=True):
            number += 1
            line = line if vocabulary.boundary is None else vocabulary.decode(vocabulary.lookup(line, "skip")[0])
            yield LineScore(number, line, chars, float(nats_of_line) / math.log(2), sum(foreign.values()))


def chars(engine: Engine, vocabulary: Vocabulary, ids: Symbols, top: int = 0) -> Iterator[CharScore]:
    """The score of each character of a text but the first, the state carried over the whole; in order, as they come.

    Args:
        ids: (N,), the text's symbols; of documents with a boundary in front, which has no place in the text.
        top: so many of the likeliest characters at each place go with it. The model is then asked character by
            character, which is slower.

    Raises:
        CorpusError: fewer than two symbols.
    """
    transitions_of(ids)
    first = 1 if vocabulary.boundary is None else 0  # the place of ids[0]
    if top:
        yield from _chars_with_likeliest(engine, vocabulary, ids, min(top, len(vocabulary)), first)
        return
    place = _Place(None, engine.zero_state())
    place.read(engine, np.asarray(ids[:1]))
    for start in range(1, len(ids), CHUNK):
        chunk = np.asarray(ids[start : start + CHUNK])
        bits = place.read(engine, chunk) / math.log(2)
        for offset, symbol in enumerate(chunk.tolist()):
            yield CharScore(start + offset + first, vocabulary.name(symbol), float(bits[offset]))


def _chars_with_likeliest(
    engine: Engine, vocabulary: Vocabulary, ids: Symbols, top: int, first: int
) -> Iterator[CharScore]:
    name, state = vocabulary.name, engine.zero_state()
    for place in range(1, len(ids)):
        before, symbol = np.asarray(ids[place - 1 : place + 1]).tolist()
        logits, state = engine.step([before], state)
        scores = logits[0].astype(np.float64)
        if not np.isfinite(scores.max()):  # as `Engine.score` has it
            yield CharScore(place + first, name(symbol), math.nan)
            continue
        logs = scores - scores.max()
        logs -= np.log(np.exp(logs).sum())
        best = np.argsort(-logs, kind="stable")[:top]
        likeliest = tuple((name(k), float(np.exp(logs[k]))) for k in best)
        yield CharScore(place + first, name(symbol), float(-logs[symbol] / math.log(2)), likeliest)


class _Place:
    """Where a text that is read piece by piece stands: the state, and the last symbol, which is not in it yet."""

    def __init__(self, last: int | None, state: NDArray[np.float32]) -> None:
        self._last, self._state = last, state
        self.scored = 0
        """Symbols of the last piece that were scored: all, but for the very first of the text."""

    def read(self, engine: Reader, ids: Ids) -> NDArray[np.float64]:
        """Nats of each scored symbol."""
        behind = [] if self._last is None else [self._last]
        joined = np.concatenate((np.array(behind, np.int64), ids))
        self.scored = max(0, len(joined) - 1)
        nats = [np.zeros(0)]
        for start in range(0, self.scored, CHUNK):
            chunk, self._state = engine.score(joined[start : start + CHUNK + 1, None], self._state)
            nats.append(chunk[:, 0])
        if len(joined):
            self._last = int(joined[-1])
        return np.concatenate(nats)


def _side_by_side(engine: Reader, texts: Sequence[Ids]) -> NDArray[np.float64]:
    """Sum of nats of each text but its first symbol, each from the zero state."""
    sums = np.zeros(len(texts))
    order = sorted(range(len(texts)), key=lambda k: texts[k].tobytes())  # those that begin alike are neighbours
    for batch in np.array_split(order, -(-len(order) // SIDE_BY_SIDE)):
        sums[batch] = _neighbours(engine, [texts[k] for k in batch])
    return sums


def _neighbours(engine: Reader, texts: Sequence[Ids]) -> NDArray[np.float64]:
    """The same of sorted texts, a few symbols at a time: of those that have been the same up to there, one is read for
    all of them.
    """
    lengths = np.array([len(text) - 1 for text in texts])
    begins = np.cumsum([0, *lengths[:-1] + 1])
    joined = np.concatenate([*texts, np.zeros(max(STEPS, FEW), texts[0].dtype)])
    alike = np.array([0, *map(_alike, texts, texts[1:])])
    sums = np.zeros(len(texts))
    state = engine.zero_state(1)
    reader = np.zeros(len(texts), np.int64)  # in the batch, for each text
    t, longest = 0, int(lengths.max())
    while t < longest:
        going_on = np.flatnonzero(lengths > t)
        steps = min(max(STEPS, FEW // len(going_on)), longest - t)
        is_first = alike[going_on] <= t + steps
        is_first[0] = True
        read = going_on[is_first]
        ids = joined[begins[read] + t + np.arange(steps + 1)[:, None]]  # behind a text's end comes something, unscored
        nats, state = engine.score(ids, state.take(reader[read], axis=2))
        inside = np.arange(t, t + steps)[:, None] < lengths[read]
        reader[going_on] = np.cumsum(is_first) - 1
        sums[going_on] += np.where(inside, nats, 0.0).sum(axis=0)[reader[going_on]]
        t += steps
    return sums


def _alike(ours: Ids, theirs: Ids) -> int:
    """How many symbols both begin with; of equal texts more than any can have."""
    length = min(len(ours), len(theirs))
    differ = np.flatnonzero(ours[:length] != theirs[:length])
    if len(differ):
        return int(differ[0])
    return length if len(ours) != len(theirs) else np.iinfo(np.int64).max
