"""Text out of an engine: how it is drawn, where it ends; streaming, many at once.

A text is drawn symbol by symbol, each from what a `Rule` makes of the logits. The same engine, seed, prompt and
settings give the same text, however it is cut into pieces and however many are drawn beside it.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from charlstm import terminal
from charlstm.config import MAX_REPEAT_WINDOW, SamplingConfig
from charlstm.errors import UnknownSymbols, UsageError
from charlstm.inference import filters
from charlstm.inference.engine import Engine
from charlstm.inference.filters import SamplingRule
from charlstm.text import utf8
from charlstm.text.vocabulary import Vocabulary, code_points, listed

BLOCK_SECONDS = 0.5e-3  # a piece takes so long to draw: no symbol waits a millisecond, and Python costs some 2 %
GROUP = 64  # texts drawn as one batch
GROUP_SYMBOLS = 64  # drawn between two chances for Ctrl-C
LONGEST_BEGINNING = 3  # symbols of a character that is not whole
FIRST_SYMBOLS = 16  # at first where a text may end at any symbol; doubled each time

Ended = Literal["length", "lines", "stop", "document"]
Ids = np.ndarray[Any, Any]


def _no_symbols() -> NDArray[np.int32]:
    return np.empty(0, np.int32)


@dataclass(frozen=True)
class Context:
    """Where a text stands: all that is needed to go on with it. Immutable; make a new one with `read`."""

    state: NDArray[np.float32]  # (L, S, 1, H)
    last: int  # the symbol that the model has not read yet
    drawn: int = 0  # symbols drawn so far: the place in the sequence of random numbers
    seed: int | None = None  # of those random numbers
    before: NDArray[np.int32] = field(default_factory=_no_symbols)
    """The symbols before the last, as many as a repeat penalty may look back at."""

    @property
    def recent(self) -> NDArray[np.int32]:
        """The last symbols of the text."""
        return np.append(self.before, np.int32(self.last))


@dataclass(frozen=True)
class Text:
    """A text that was drawn, and how it came to its end."""

    text: str
    ended: Ended
    prime: str  # what it goes on from; not part of it
    log_probability: (
        float | None
    )  # of all its characters, in nats, by the model itself: see `texts`; None: not asked for
    symbols: Ids = field(repr=False, compare=False)
    begin: Context = field(repr=False, compare=False)


def rule_of(vocabulary: Vocabulary, config: SamplingConfig) -> SamplingRule:
    """How symbols of a vocabulary are drawn by these settings.

    Raises:
        UnknownSymbols: `only` or `stop` has characters that are not in the vocabulary, or `lines` are to end the text
            and the vocabulary has no line break.
        UsageError: no character is left to draw, or none that `stop` or `lines` wait for.
    """
    allowed, follows = None, None if config.raw else vocabulary.follows
    if config.ban or config.only is not None:
        named = config.ban + (config.only or "")
        if vocabulary.kind == "bytes" and len(vocabulary.lookup(named)[0]) > len(named):
            raise UsageError(
                "--ban and --only name symbols, and to a model of bytes these are several: name ASCII only"
            )
        allowed = np.full(len(vocabulary), config.only is None)
        allowed[_known(*vocabulary.lookup(config.only or "", "skip"), "--only has characters")] = True
        allowed[vocabulary.lookup(config.ban, "skip")[0]] = False  # who bans what is not there has what he wants
        if follows is not None:
            follows = utf8.pruned(np.where(allowed, follows, np.uint8(utf8.NEVER)))
        if not (allowed if follows is None else follows[0] != utf8.NEVER).any():
            raise UsageError("--ban and --only leave no character that could be drawn")
    waits = [(text, f"--stop '{terminal.escape(text)[:40]}' can never come: it has characters") for text in config.stop]
    if config.lines is not None:
        waits.append(("\n", "--lines cannot end the text: the line break is a character"))
    if ends_with_document(vocabulary, config) and allowed is not None and not allowed[vocabulary.boundary_id]:
        raise UsageError("the text ends where its document does, which --ban or --only forbids: give --length")
    for text, what in waits:
        ids = _known(*vocabulary.encode_known(text, "skip"), what)
        if allowed is not None and not allowed[ids].all():
            raise UsageError(f"{what} that --ban or --only forbids")
        if follows is not None and not utf8.can_come(follows, ids):
            raise UsageError(f"{what} that are not UTF-8, or that --ban or --only forbids: see --raw")
    window = config.repeat_window if config.repeat_penalty != 1 else 0
    shares = (config.top_k, config.top_p, config.min_p, config.typical)
    return SamplingRule(
        config.temperature,
        *shares,
        config.repeat_penalty,
        window,
        allowed if follows is None else None,
        follows,
    )


def ends_with_document(vocabulary: Vocabulary, config: SamplingConfig) -> bool:
    """Whether a text is one document: nothing else is said that may end it."""
    is_open = config.length is None and config.lines is None and not config.stop
    return is_open and vocabulary.boundary_id is not None


def _known(ids: Ids, foreign: Mapping[str, int], what: str) -> Ids:
    if foreign:
        raise UnknownSymbols(f"{what} that the model does not know: {listed(foreign)}")
    return ids


def _phase(vocabulary: Vocabulary, rule: SamplingRule, recent: Ids) -> int:
    """The state of the rule's automaton after a text's last symbols, −1 where there is none.

    Raises:
        UsageError: nothing may come in it.
    """
    phase = 0 if rule.follows is None else vocabulary.phase(recent[recent >= 0])
    if rule.follows is not None and (rule.follows[phase] == utf8.NEVER).all():
        raise UsageError("--ban and --only leave nothing that could finish the character that the prime ends in")
    return phase


def read(engine: Engine, vocabulary: Vocabulary, text: str = "", context: Context | None = None) -> Context:
    """The context after `text`, that is read after `context`.

    Without a context the text begins here: from the zero state, in a model of documents behind a boundary. In others an
    empty text begins after a line break, as most texts do at their first character; where the vocabulary has none,
    after a space, or after its first symbol.

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
    return _read(engine, context, ids)


def _read(engine: Engine, context: Context, ids: Ids) -> Context:
    if len(ids) == 0:
        return context
    behind = np.concatenate(([context.last], ids[:-1])).astype(np.int32)
    return _moved(context, engine.advance(behind[:, None], context.state), ids)


def _moved(context: Context, state: NDArray[np.float32], ids: Ids) -> Context:
    """The context after ids that lead from it to a state."""
    before = np.concatenate((context.recent, ids[:-1]))[1 - MAX_REPEAT_WINDOW :].astype(np.int32)
    return replace(context, state=state, last=int(ids[-1]), before=before)


def _drawn(context: Context, state: NDArray[np.float32], ids: Ids) -> Context:
    return replace(_moved(context, state, ids), drawn=context.drawn + len(ids))


def _after(engine: Engine, context: Context, ids: Ids) -> Context:
    """The context after ids that were drawn from it."""
    return replace(_read(engine, context, ids), drawn=context.drawn + len(ids))


def after(engine: Engine, text: Text) -> Context:
    """The context after a text, to go on from there."""
    return _after(engine, text.begin, text.symbols)


def _begin(engine: Engine, vocabulary: Vocabulary, config: SamplingConfig, context: Context | None) -> Context:
    """The context after the prime, with a seed: the config's, else the context's, else a fresh one."""
    context = read(engine, vocabulary, config.prime, context)
    if config.seed is not None and config.seed != context.seed:
        return replace(context, seed=config.seed, drawn=0)
    return context if context.seed is not None else replace(context, seed=fresh_seed(), drawn=0)


class _Ending:
    """Where a text ends: at its length, with its last line, with a stop text, or before its document's end.

    Symbols go in as they are drawn and come out when it is certain that they belong to the text. Of several ends the
    first holds, and of stop texts that are complete at the same symbol the longest.
    """

    def __init__(self, vocabulary: Vocabulary, config: SamplingConfig, recent: Ids) -> None:
        self.by: Ended | None = None
        """What ended the text."""
        self.room = config.most
        """The most symbols that may still be drawn; None is without end."""
        self._stops = [_spelled(vocabulary.encode(text)) for text in config.stop]
        self._stopped: Ended = "stop"  # by one of these
        if ends_with_document(vocabulary, config):
            self.room, self._stopped = None, "document"
            self._stops = [_spelled(np.array([vocabulary.boundary_id]))]
        self._longest = max(map(len, self._stops), default=0)
        self._keeps = config.keep_stop
        self._lines = config.lines
        self._break = None if config.lines is None else vocabulary.encode("\n")[0]
        self._held = ""
        self._vocabulary = None if config.raw or vocabulary.follows is None else vocabulary
        self._prime = 0 if self._vocabulary is None else vocabulary.unfinished(recent)
        self._begun = recent[len(recent) - self._prime :]  # of a character that is not whole, first the prime's

    @property
    def may_end(self) -> bool:
        """Whether the text may end at any symbol."""
        return bool(self._stops) or self._lines is not None

    def take(self, symbols: Ids) -> Ids:
        """The symbols that are certain now: of those that were held back, and of these.

        Of a model of bytes they are whole characters, or what makes the prime's last one whole, unless it is raw; what
        of one is there at the text's end is not part of it.
        """
        certain = self._certain(symbols)
        if self._vocabulary is None:
            return certain
        certain = np.concatenate((self._begun, certain))
        whole = len(certain) - self._vocabulary.unfinished(certain)
        self._begun = certain[whole:]
        first, self._prime = self._prime, 0 if whole else self._prime
        return certain[first:whole]

    def _certain(self, symbols: Ids) -> Ids:
        if self.room is not None:
            self.room -= len(symbols)
            self.by = "length" if self.room == 0 else None
        if not self._stops and self._lines is None:
            return symbols
        text = self._held + _spelled(symbols)
        ends: list[tuple[int, int, Ended]] = []  # one behind it, less its length if it is a stop text
        for stop in self._stops:
            if (at := text.find(stop)) >= 0:
                ends.append((at + len(stop), -len(stop), self._stopped))
        if self._lines is not None:
            breaks = np.flatnonzero(symbols == self._break)
            if len(breaks) >= self._lines:
                ends.append((len(self._held) + int(breaks[self._lines - 1]) + 1, 0, "lines"))
            self._lines -= len(breaks)
        if ends:
            end, stop_text, self.by = min(ends)
            return _symbols(text[: end if self._keeps else end + stop_text])
        certain = len(text) if self.by else len(text) - self._beginning(text)
        self._held = text[certain:]
        return _symbols(text[:certain])

    def _beginning(self, text: str) -> int:
        """How many characters at the text's end a stop text may begin with."""
        most = min(len(text), self._longest - 1)
        return next((n for n in range(most, 0, -1) if any(stop.startswith(text[-n:]) for stop in self._stops)), 0)


def _spelled(ids: Ids) -> str:
    """Ids as code points: what can be searched. Not what they spell in the vocabulary."""
    return str(ids.astype("<u4").tobytes(), "utf-32-le", "surrogatepass")


def _text(vocabulary: Vocabulary, ids: Ids, raw: bool) -> str:
    """What ids spell. Bytes that make the prime's last character whole spell nothing, unless it is raw."""
    text = vocabulary.decode(ids)
    return text if raw else text.encode("utf-8", "ignore").decode("utf-8")


def _symbols(spelled: str) -> Ids:
    return code_points(spelled).astype(np.int32)


class Stream:
    """One text, piece by piece: an iterator of strings, each ready within a millisecond of its first symbol.

    Only what may be the beginning of a stop text waits until that is decided; and of a model of bytes, what is not a
    whole character yet. With `config.raw` any bytes are drawn; those that are not UTF-8 are surrogates, as `vocab` has
    it.

    Args:
        config: `count` and `best_of` must be 1. A seed of None takes the context's, or a fresh one.
        context: goes on there; None begins a text. `config.prime` is read after it.

    Raises:
        UnknownSymbols: the prime has characters that are not in the vocabulary. Others as in `rule_of`.
    """

    def __init__(
        self, engine: Engine, vocabulary: Vocabulary, config: SamplingConfig, context: Context | None = None
    ) -> None:
        if config.count != 1 or config.best_of != 1:
            raise UsageError(f"a stream is one text, not {config.count * config.best_of}: use texts()")
        self._rule = rule_of(vocabulary, config)
        self._at = _begin(engine, vocabulary, config, context)
        self._engine, self._vocabulary = engine, vocabulary
        self._ending = _Ending(vocabulary, config, self._at.recent)
        self._raw = config.raw
        self._block = 1
        self._open: list[tuple[Context, Ids]] = []  # blocks of which not all was given, and where each began
        self._given = 0  # symbols of the first of them

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        while self._ending.by is None:
            room = self._ending.room
            length = self._block if room is None else min(self._block, room)
            was, began = self._at, time.perf_counter()
            assert was.seed is not None
            drawn, state = self._engine.generate(
                [was.last],
                was.state,
                length,
                self._rule,
                seed=was.seed,
                position=was.drawn,
                streams=[0],
                recent=was.recent[:, None] if self._rule.lookback else None,
                phases=[_phase(self._vocabulary, self._rule, was.recent)],
            )
            seconds = time.perf_counter() - began
            self._block = max(1, min(2 * length, int(length * BLOCK_SECONDS / max(seconds, 1e-9))))
            symbols = drawn[:, 0]
            self._at = _drawn(was, state, symbols)
            given = self._ending.take(symbols)
            self._open.append((was, symbols))
            self._given += len(given)
            while self._open and self._given >= len(self._open[0][1]):
                self._given -= len(self._open.pop(0)[1])
            if text := _text(self._vocabulary, given, self._raw):
                return text
        raise StopIteration

    @property
    def context(self) -> Context:
        """Where the text stands after the last piece, to be kept or saved, and taken up again by another stream."""
        if not self._open:
            return self._at
        was, symbols = self._open[0]
        return _after(self._engine, was, symbols[: self._given])


def stream(engine: Engine, vocabulary: Vocabulary, config: SamplingConfig, context: Context | None = None) -> Stream:
    """One text, piece by piece: see `Stream`."""
    return Stream(engine, vocabulary, config, context)


def texts(
    engine: Engine,
    vocabulary: Vocabulary,
    config: SamplingConfig,
    context: Context | None = None,
    *,
    scored: bool = False,
) -> Iterator[Text]:
    """`config.count` texts, drawn in batches; all begin alike, each has its random numbers.

    The first is the text of a `Stream` with the same seed, if `config.best_of` is 1. Otherwise each is the best of so
    many: that whose characters have the highest mean log-probability by the model itself, at temperature 1, nothing
    filtered; an empty text is the worst. Memory is that of one batch.

    Args:
        scored: with the log-probability, which takes about as long as drawing.

    Raises:
        UsageError: texts without end. Others as in `Stream`.
    """
    return continuations(engine, vocabulary, config, [[config.prime]], context, scored=scored)


def continuations(
    engine: Engine,
    vocabulary: Vocabulary,
    config: SamplingConfig,
    groups: Iterable[Sequence[str]],
    context: Context | None = None,
    *,
    scored: bool = False,
) -> Iterator[Text]:
    """`config.count` texts for each prime. Arguments and errors as in `texts`.

    Args:
        groups: primes. Those of one group are drawn side by side, and all texts of a group are given before the next
            group is asked for. No text depends on the groups, only on the place of its prime among all.
    """
    if not config.ends:
        raise UsageError("texts side by side need an end: give --length, --lines or --stop")
    rule = rule_of(vocabulary, config)
    seed = config.seed if config.seed is not None else context.seed if context is not None else None
    config = replace(config, seed=fresh_seed() if seed is None else seed)
    per_batch = max(1, GROUP // config.best_of)
    streams = itertools.count()
    for primes in groups:
        begins = (
            (prime, begin)
            for prime in primes
            for begin in itertools.repeat(
                _begin(engine, vocabulary, replace(config, prime=prime), context), config.count
            )
        )
        while batch := list(itertools.islice(begins, per_batch)):
            yield from _best(engine, vocabulary, config, rule, batch, streams, scored)


def _best(
    engine: Engine,
    vocabulary: Vocabulary,
    config: SamplingConfig,
    rule: SamplingRule,
    begins: Sequence[tuple[str, Context]],
    streams: Iterator[int],
    scored: bool,
) -> Iterator[Text]:
    """For each (prime, context) the best of `config.best_of` texts, all of them drawn side by side."""
    n = config.best_of
    contexts = [begin for _, begin in begins for _ in range(n)]
    numbers = np.array(list(itertools.islice(streams, len(contexts))))
    drawn = _side_by_side(engine, vocabulary, config, rule, contexts, numbers, scored or n > 1)
    for k, (prime, begin) in enumerate(begins):
        ended, symbols, nats = max(drawn[k * n : (k + 1) * n], key=lambda text: _mean(text[2]))
        log_probability = float(-nats.sum()) if scored else None
        yield Text(_text(vocabulary, symbols, config.raw), ended, prime, log_probability, symbols, begin)


def _mean(nats: NDArray[np.float64]) -> float:
    """Mean log-probability of a text's symbols; of an empty one −∞."""
    return float(-nats.mean()) if len(nats) else -np.inf


def _side_by_side(
    engine: Engine,
    vocabulary: Vocabulary,
    config: SamplingConfig,
    rule: SamplingRule,
    begins: Sequence[Context],
    streams: Ids,
    scored: bool,
) -> list[tuple[Ended, Ids, NDArray[np.float64]]]:
    """What ended each text, its symbols and, if `scored`, their nats; of contexts with one seed and one place in it."""
    state = np.concatenate([begin.state for begin in begins], axis=2)
    recent = np.full((max(LONGEST_BEGINNING, rule.lookback), len(begins)), -1, np.int32)
    for column, begin in enumerate(begins):
        behind = begin.recent[-len(recent) :]
        recent[-len(behind) :, column] = behind
    seed, position = begins[0].seed, begins[0].drawn
    assert seed is not None
    endings = [_Ending(vocabulary, config, begin.recent) for begin in begins]
    given: list[list[Ids]] = [[] for _ in begins]
    nats: list[list[NDArray[np.float64]]] = [[np.empty(0)] for _ in begins]
    live = np.arange(len(begins))
    block = FIRST_SYMBOLS if endings[0].may_end else GROUP_SYMBOLS
    while len(live):
        room = endings[live[0]].room  # the same for all: as many were drawn of each
        length = block if room is None else min(block, room)
        block = min(2 * block, GROUP_SYMBOLS)
        phases = [_phase(vocabulary, rule, behind) for behind in recent.T]
        symbols, new = engine.generate(
            recent[-1],
            state,
            length,
            rule,
            seed=seed,
            position=position,
            streams=streams[live],
            recent=recent,
            phases=phases,
        )
        surprise = (
            engine.score(np.concatenate([recent[-1:], symbols]), state)[0] if scored else np.empty((0, len(live)))
        )
        for column, k in enumerate(live.tolist()):
            given[k].append(endings[k].take(symbols[:, column]).astype(vocabulary.dtype))
            nats[k].append(surprise[:, column])
        goes_on = np.array([endings[k].by is None for k in live])
        recent = np.concatenate([recent, symbols])[-len(recent) :, goes_on]
        state, live, position = new[:, :, goes_on], live[goes_on], position + length
    found = []
    for k, ending in enumerate(endings):
        assert ending.by is not None
        text = np.concatenate(given[k])
        found.append((ending.by, text, np.concatenate(nats[k])[: len(text)]))
    return found


def following(engine: Engine, vocabulary: Vocabulary, rule: SamplingRule, context: Context) -> NDArray[np.float64]:
    """The probability of each symbol to come next by the rule, (V,).

    Raises:
        FloatingPointError: the model's logits are not finite.
        UsageError: nothing may come.
    """
    phase = _phase(vocabulary, rule, context.recent)
    logits, _ = engine.step([context.last], context.state)
    return filters.distribution(logits[0], rule, context.recent, phase)


def fresh_seed() -> int:
    """A seed that nobody could foresee."""
    return secrets.randbits(63)
