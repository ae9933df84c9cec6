"""The surprisal of each line and of each character of a text, in bits: −log2 of the probability that the model gave.

`evaluation` scores a text as a whole; this module shows which parts are hard to predict. Lines are scored in two ways:

    reset     each line is a text of its own, which starts after a line break, as sampling does. All its characters are
              scored, including its own line break. Many lines are scored in one batch, and a common prefix of several
              lines is computed once.
    carried   the lines are one text: the state is carried from line to line. The first character of the text is not
              scored, so that the sum over all lines equals that of `evaluation` with one stream.

In a model of documents a line starts as a document does, and the state is carried to the end of the document. The end
of a document ends a line, too.

Letters: N symbols of a text, B lines of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charlstm.config import Unknown
from charlstm.inference.context import Context, advance
from charlstm.inference.engine import Engine
from charlstm.inference.evaluation import CHUNK, STREAMS, WARM_UP, ScoringModel, columns, transitions_of
from charlstm.text import documents
from charlstm.text.corpus import Symbols
from charlstm.text.reading import iter_lines
from charlstm.text.vocabulary import Vocabulary

BATCH = 1024  # lines per batch
STEPS = 8  # symbols per line and call of the model, before lines that ended or diverged are searched
MIN_SYMBOLS = 256  # symbols of a batch per call: with fewer, the search costs more than it saves
CHAR_BLOCK = 1 << 18  # characters that are scored in parallel parts; the warm-up then takes 6 % of the work
BLOCK_VALUES = 1 << 22  # scores and most probable symbols of such a block
BLOCK = 1000  # characters that count as one observation when two models are compared

Ids = np.ndarray[Any, Any]


@dataclass(frozen=True)
class LineScore:
    """The surprisal of one line.

    Attributes:
        number: number of the line, from 1.
        text: the line with its line break, if it has one.
        chars: number of scored characters.
        bits: sum of their surprisal, in bits.
        unknown: number of characters that were skipped or replaced.
    """

    number: int
    text: str
    chars: int
    bits: float
    unknown: int = 0

    @property
    def bits_per_char(self) -> float:
        """Mean surprisal in bits; 0 for a line without scored characters."""
        return self.bits / self.chars if self.chars else 0.0


@dataclass(frozen=True)
class CharScore:
    """The surprisal of one character.

    Attributes:
        place: position in the text; the first character has 1.
        char: the character.
        bits: its surprisal in bits; NaN if the logits are NaN or infinite.
        likeliest: the most probable characters at this position, with their probabilities.
    """

    place: int
    char: str
    bits: float
    likeliest: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, eq=False)
class CharBlock:
    """The surprisal of T consecutive symbols of a text.

    Attributes:
        start: the index of the first of them.
        ids: (T,) the symbols.
        bits: (T,) their surprisal in bits; NaN where the logits are NaN or infinite.
        best: (T, K) the most probable symbols at each position, the most probable first.
        shares: (T, K) their probabilities.
    """

    start: int
    ids: Ids
    bits: NDArray[np.float64]
    best: NDArray[np.int64]
    shares: NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """The difference of two models on one text.

    Both models score the same characters, so that most of the variation of the text cancels out in the differences.
    Because neighbouring characters are not independent, the standard error is computed from the means of blocks of
    about BLOCK characters.

    Attributes:
        bits_per_char: mean difference in bits.
        standard_error: its standard error in bits, or None if the text is too short for two blocks.
        blocks: number of blocks.
    """

    bits_per_char: float
    standard_error: float | None
    blocks: int


def bits(engine: Engine, ids: Symbols) -> NDArray[np.float64]:
    """Return the surprisal (N − 1,) in bits of each symbol of a text (N,) but the first, scored as one stream.

    Raises:
        CorpusError: the text has fewer than two symbols.
    """
    transitions_of(ids)
    return _CarriedScorer(engine, None).score(np.asarray(ids)) / math.log(2)


def difference(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> Difference:
    """Return the difference of two models from their surprisal (N − 1,) in bits of the same symbols."""
    paired = ours - theirs
    blocks = max(1, len(paired) // BLOCK)
    means = [block.mean() for block in np.array_split(paired, blocks)]
    error = float(np.std(means, ddof=1)) / math.sqrt(blocks) if blocks > 1 else None
    return Difference(float(paired.mean()), error, blocks)


def lines(
    engine: Engine, vocabulary: Vocabulary, parts: Iterable[str], *, carry: bool = False, unknown: Unknown = "error"
) -> Iterator[LineScore]:
    """Score each line of a text, in order. A line ends with a line break or with the text.

    All lines that a part completes are scored before the next part is requested. Memory is that of one part and of the
    longest line.

    Args:
        engine: the model.
        vocabulary: its vocabulary.
        parts: the text in parts.
        carry: carry the state from line to line, as described above.
        unknown: what to do with characters that are not in the vocabulary.

    Raises:
        UnknownSymbols: the text has such a character, and `unknown` is 'error'.
    """
    start = advance(engine, vocabulary)
    carried = _CarriedScorer(engine, vocabulary.boundary_id)
    if vocabulary.boundary is not None and vocabulary.boundary_symbol is not None:
        parts = documents.replace_boundaries(parts, vocabulary.boundary, vocabulary.boundary_symbol)
    number = 0
    for whole in iter_lines(parts, vocabulary.boundary_symbol):
        known = [vocabulary.encode_known(line, unknown) for line in whole]
        ids = [symbols for symbols, _ in known]
        if carry:
            scores = [(carried.score(symbols).sum(), carried.scored) for symbols in ids]
        else:
            first = np.array([start.last])
            nats = line_sums(engine, [np.concatenate((first, symbols)) for symbols in ids])
            scores = [(n, len(symbols)) for n, symbols in zip(nats, ids, strict=True)]
        for line, (nats_of_line, chars), (_, foreign) in zip(whole, scores, known, strict=True):
            number += 1
            line = line if vocabulary.boundary is None else vocabulary.decode(vocabulary.lookup(line, "skip")[0])
            yield LineScore(number, line, chars, float(nats_of_line) / math.log(2), sum(foreign.values()))


def chars(engine: Engine, vocabulary: Vocabulary, ids: Symbols, top: int = 0) -> Iterator[CharScore]:
    """Score each character of a text but the first, in order.

    Args:
        engine: the model.
        vocabulary: its vocabulary.
        ids: (N,) the symbols of the text; in documents with a boundary before the first.
        top: number of most probable characters to return with each score.

    Raises:
        CorpusError: the text has fewer than two symbols.
    """
    name, first = vocabulary.name, first_place(vocabulary)
    for block in char_blocks(engine, ids, top):
        columns = zip(block.ids.tolist(), block.bits.tolist(), block.best.tolist(), block.shares.tolist(), strict=True)
        for place, (symbol, bits, best, shares) in enumerate(columns, block.start + first):
            likeliest = () if math.isnan(bits) else tuple(zip(map(name, best), shares, strict=True))
            yield CharScore(place, name(symbol), bits, likeliest)


def first_place(vocabulary: Vocabulary) -> int:
    """Return the position in a text of the first of its symbols: 0 for the boundary that documents begin with."""
    return 1 if vocabulary.boundary is None else 0


def char_blocks(engine: Engine, ids: Symbols, top: int = 0, *, exact: bool = False) -> Iterator[CharBlock]:
    """Score each symbol of a text (N,) but the first, in order, as arrays.

    Args:
        engine: the model.
        ids: (N,) the symbols of the text.
        top: the largest number K of most probable symbols to return with each score.
        exact: carry the state over the whole text. Otherwise each block is split into parts as in
            `evaluation.evaluate`, which is faster.

    Raises:
        CorpusError: the text has fewer than two symbols.
    """
    transitions, top = transitions_of(ids), min(top, engine.config.vocab_size)
    block = min(CHAR_BLOCK, BLOCK_VALUES // (top + 1))
    if exact or block < CHAR_BLOCK // 4:
        state = engine.zero_state()
        steps = min(CHUNK, block)
        for start in range(0, transitions, steps):
            found, state = _scored(engine, np.asarray(ids[start : start + steps + 1])[:, None], state, top)
            yield CharBlock(start + 1, np.asarray(ids[start + 1 : start + steps + 1]), *(x[:, 0] for x in found))
        return
    for start in range(0, transitions, block):
        yield _parallel_block(engine, ids, start, min(block, transitions - start), top)


def _parallel_block(engine: Engine, ids: Symbols, start: int, size: int, top: int) -> CharBlock:
    """Score `size` symbols after `ids[start]` in parallel parts, each warmed up on the symbols before it."""
    part = -(-size // max(1, min(STREAMS, size // (4 * WARM_UP))))
    firsts = start + np.arange(-(-size // part)) * part
    state = engine.zero_state(len(firsts))
    warm = firsts >= WARM_UP
    if warm.any():
        before = columns(ids, firsts[warm] - WARM_UP, WARM_UP)
        state[:, :, warm] = engine.advance(before, engine.zero_state(int(warm.sum())))
    pieces = []
    steps = max(1, CHUNK // len(firsts))
    for t in range(0, part, steps):
        fed = columns(ids, firsts + t, min(steps, part - t) + 1)
        found, state = _scored(engine, fed, state, top)
        pieces.append(found)
    bits, best, shares = (
        np.swapaxes(np.concatenate(arrays), 0, 1).reshape(len(firsts) * part, *arrays[0].shape[2:])[:size]
        for arrays in zip(*pieces, strict=True)
    )
    return CharBlock(start + 1, np.asarray(ids[start + 1 : start + size + 1]), bits, best, shares)


def chars_after(engine: Engine, context: Context, ids: Ids, top: int = 0) -> tuple[CharBlock, Context]:
    """Score symbols (T,) that follow a context; return also the context after them. `top` is as in `char_blocks`."""
    fed = np.append(np.int32(context.last), ids)[:, None]
    found, state = _scored(engine, fed, context.state, min(top, engine.config.vocab_size))
    return CharBlock(0, ids, *(x[:, 0] for x in found)), context.moved(state, ids) if len(ids) else context


def _scored(engine: Engine, ids: Ids, state: NDArray[np.float32], top: int) -> tuple[tuple[Any, Any, Any], Any]:
    """Return bits (T, B), most probable symbols and their probabilities (T, B, top), and the state."""
    if top:
        nats, best, shares, state = engine.score_top(ids, state, top)
    else:
        nats, state = engine.score(ids, state)
        best, shares = np.empty((*nats.shape, 0), np.int64), np.empty((*nats.shape, 0))
    return (nats / math.log(2), best, shares), state


class _CarriedScorer:
    """Scores a text in pieces, and carries the state from piece to piece.

    Args:
        engine: the model.
        last: the symbol before the text, or None; then the first symbol of the text is not scored.

    Attributes:
        scored: number of symbols of the latest piece that were scored.
    """

    def __init__(self, engine: ScoringModel, last: int | None) -> None:
        self._engine, self._last, self._state = engine, last, engine.zero_state()
        self.scored = 0

    def score(self, ids: Ids) -> NDArray[np.float64]:
        """Score the next piece (T,) and return the surprisal (scored,) in nats."""
        previous = [] if self._last is None else [self._last]
        joined = np.concatenate((np.array(previous, np.int64), ids))
        self.scored = max(0, len(joined) - 1)
        nats = [np.zeros(0)]
        for start in range(0, self.scored, CHUNK):
            chunk, self._state = self._engine.score(joined[start : start + CHUNK + 1, None], self._state)
            nats.append(chunk[:, 0])
        if len(joined):
            self._last = int(joined[-1])
        return np.concatenate(nats)


def line_sums(engine: ScoringModel, lines: Sequence[Ids]) -> NDArray[np.float64]:
    """Score lines together, each from the zero state. A common prefix of several lines is fed once.

    Args:
        engine: the model.
        lines: the symbols of each line, at least one, after the symbol that comes before the line.

    Returns:
        (len(lines),) for each line the sum of the surprisals, in nats, of its symbols but the first.
    """
    sums = np.zeros(len(lines))
    order = sorted(range(len(lines)), key=lambda k: lines[k].tobytes())  # lines with a common prefix are adjacent
    for batch in np.array_split(order, -(-len(order) // BATCH)):
        sums[batch] = _score_sorted(engine, [lines[k] for k in batch])
    return sums


def _score_sorted(engine: ScoringModel, lines: Sequence[Ids]) -> NDArray[np.float64]:
    """Score sorted lines as `line_sums` does, STEPS symbols at a time.

    Of lines that have been equal so far, only the first is fed to the model.
    """
    lengths = np.array([len(line) - 1 for line in lines])
    starts = np.cumsum([0, *lengths[:-1] + 1])
    joined = np.concatenate([*lines, np.zeros(max(STEPS, MIN_SYMBOLS), lines[0].dtype)])
    common = np.array([0, *map(_common_prefix, lines, lines[1:])])
    sums = np.zeros(len(lines))
    state = engine.zero_state(1)
    column = np.zeros(len(lines), np.int64)  # for each line its column in the batch
    t, longest = 0, int(lengths.max())
    while t < longest:
        live = np.flatnonzero(lengths > t)
        steps = min(max(STEPS, MIN_SYMBOLS // len(live)), longest - t)
        is_first = common[live] <= t + steps
        is_first[0] = True
        fed = live[is_first]
        ids = joined[starts[fed] + t + np.arange(steps + 1)[:, None]]  # symbols after the end of a line are not scored
        nats, state = engine.score(ids, state.take(column[fed], axis=2))
        inside = np.arange(t, t + steps)[:, None] < lengths[fed]
        column[live] = np.cumsum(is_first) - 1
        sums[live] += np.where(inside, nats, 0.0).sum(axis=0)[column[live]]
        t += steps
    return sums


def _common_prefix(ours: Ids, theirs: Ids) -> int:
    """Return the length of the common prefix of two lines; the largest integer if the lines are equal."""
    length = min(len(ours), len(theirs))
    differ = np.flatnonzero(ours[:length] != theirs[:length])
    if len(differ):
        return int(differ[0])
    return length if len(ours) != len(theirs) else np.iinfo(np.int64).max
