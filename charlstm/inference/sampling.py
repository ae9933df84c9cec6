"""Generate text: one text as a stream of pieces, or many texts in batches.

A text is sampled symbol by symbol from the distribution of a `SamplingRule`. The same engine, seed, prime and options
give the same text, however it is split into blocks and however many texts are generated with it.

Letters: B batch of independent texts, T time, V vocabulary.
"""

from __future__ import annotations

import itertools
import math
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from charlstm import terminal
from charlstm.config import SamplingConfig
from charlstm.errors import Field, UnknownSymbols, UsageError
from charlstm.inference import expression, filters
from charlstm.inference.automaton import FAR, Automaton
from charlstm.inference.context import Context, Ids, advance, advance_sampled
from charlstm.inference.engine import Engine
from charlstm.inference.filters import SamplingRule
from charlstm.inference.stopping import Ended, StopCondition, ends_with_document
from charlstm.text import utf8
from charlstm.text.vocabulary import Vocabulary, format_counts

BLOCK_SECONDS = 0.5e-3  # per piece of a stream: no symbol waits a millisecond, and Python costs about 2 %
BATCH = 64  # texts that are sampled as one batch
BLOCK = 64  # symbols per text and call of the engine; Ctrl-C takes effect between calls
FIRST_BLOCK = 16  # of these, if a text may end at any symbol; doubled with each call
LONGEST_UNFINISHED = 3  # bytes of an incomplete character


@dataclass(frozen=True)
class GeneratedText:
    """A generated text.

    Attributes:
        text: the text, without its prime.
        ended: what ended it.
        prime: the text that it continues.
        log_probability: the sum over its characters, in nats, under the model at temperature 1 without filters; None if
            it was not computed.
        log_weight: with `SamplingConfig.match`, the log-probability in nats that the text would have without the
            expression, with all other options, minus the one that it has with it; None if it was not computed.
        symbols: (T,) the ids of the text.
        start: the context that it was sampled from.
    """

    text: str
    ended: Ended
    prime: str
    log_probability: float | None
    log_weight: float | None
    symbols: Ids = field(repr=False, compare=False)
    start: Context = field(repr=False, compare=False)


def sampling_rule(vocabulary: Vocabulary, config: SamplingConfig) -> SamplingRule:
    """Return the distribution that a config defines for the symbols of a vocabulary.

    Raises:
        UnknownSymbols: `only` or `stop` has characters that are not in the vocabulary, or `lines` is set and the
            vocabulary has no line break.
        UsageError: `ban` and `only` allow no character, or exclude one that ends the text; or `match` is invalid, or
            matches no text of at most `length` characters.
    """
    allowed, transitions = None, None if config.raw else vocabulary.transitions
    if config.ban or config.only is not None:
        named = config.ban + (config.only or "")
        if vocabulary.kind == "bytes" and len(vocabulary.lookup(named)[0]) > len(named):
            raise UsageError(
                Field("ban"),
                " and ",
                Field("only"),
                " name single bytes for a model of bytes: use ASCII characters only",
            )
        allowed = np.full(len(vocabulary), config.only is None)
        ids, unknown = vocabulary.lookup(config.only or "", "skip")
        _refuse_unknown(unknown, Field("only"))
        allowed[ids] = True
        allowed[vocabulary.lookup(config.ban, "skip")[0]] = False  # a character outside the vocabulary has no effect
        if transitions is not None:
            transitions = utf8.without_dead_ends(np.where(allowed, transitions, np.uint8(utf8.NEVER)))
        if not (allowed if transitions is None else transitions[0] != utf8.NEVER).any():
            raise UsageError(Field("ban"), " and ", Field("only"), " leave no character that could be sampled")
    _check_end(vocabulary, config, allowed, transitions)
    automaton = None if transitions is None else Automaton.of_table(transitions)
    if config.match is not None:
        automaton = expression.automaton(config.match, vocabulary, allowed, transitions)
        _check_shortest(automaton, 0, config)
    return SamplingRule(
        config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        min_p=config.min_p,
        typical=config.typical,
        penalty=config.repeat_penalty,
        window=config.repeat_window if config.repeat_penalty != 1 else 0,
        allowed=allowed if automaton is None else None,
        automaton=automaton,
    )


def _check_shortest(automaton: Automaton, phase: int, config: SamplingConfig) -> None:
    """Check that a text within the maximum length matches, if it begins in this state of the automaton."""
    assert automaton.distances is not None
    shortest, longest = int(automaton.distances[phase]), config.max_length
    if shortest == FAR:
        raise UsageError("no text that matches ", Field("match"), " can follow ", Field("prime"))
    if longest is not None and shortest > longest:
        raise UsageError(
            f"the shortest text that matches has {shortest:,} symbols, more than the maximum of {longest:,}: set ",
            Field("length"),
        )


def _check_end(
    vocabulary: Vocabulary,
    config: SamplingConfig,
    allowed: NDArray[np.bool_] | None,
    transitions: NDArray[np.uint8] | None,
) -> None:
    """Check that the symbols which end a text can be sampled."""
    excluded = (Field("ban"), " or ", Field("only"), " excludes")
    if ends_with_document(vocabulary, config) and allowed is not None and not allowed[vocabulary.boundary_id]:
        raise UsageError("the boundary that ends a document is a character that ", *excluded, ": set ", Field("length"))
    ends = [
        (text, (Field("stop"), f" '{terminal.escape(text)[:40]}' can never occur: it has characters"))
        for text in config.stop
    ]
    if config.lines is not None:
        ends.append(("\n", (Field("lines"), " cannot end the text: the line break is a character")))
    for text, problem in ends:
        ids, unknown = vocabulary.encode_known(text, "skip")
        _refuse_unknown(unknown, *problem)
        if allowed is not None and not allowed[ids].all():
            raise UsageError(*problem, " that ", *excluded)
        if transitions is not None and not utf8.is_possible(transitions, ids):
            raise UsageError(*problem, " that are not UTF-8, or that ", *excluded, "; see ", Field("raw"))


def _refuse_unknown(unknown: Mapping[str, int], *problem: str) -> None:
    if unknown:
        has = () if len(problem) > 1 else (" has characters",)
        raise UnknownSymbols(*problem, *has, f" that are not in the vocabulary of the model: {format_counts(unknown)}")


class Sampler:
    """Generates text with one model and one set of options.

    Args:
        engine: the model.
        vocabulary: its vocabulary.
        config: the options.

    Attributes:
        engine: as given.
        vocabulary: as given.
        config: as given.
        rule: the distribution that each symbol is sampled from.

    Raises:
        UnknownSymbols, UsageError: as in `sampling_rule`.

    Example:
        >>> sampler = Sampler(model.engine, model.vocabulary, SamplingConfig(length=100, seed=1))
        >>> text = "".join(sampler.stream())
        >>> next(sampler.texts()).text == text
        True
    """

    def __init__(self, engine: Engine, vocabulary: Vocabulary, config: SamplingConfig) -> None:
        self.rule = sampling_rule(vocabulary, config)
        self.engine, self.vocabulary, self.config = engine, vocabulary, config

    def stream(self, context: Context | None = None) -> Stream:
        """Return an iterator over the pieces of one text.

        Args:
            context: the context that the prime and the text continue; None starts a new text.

        Raises:
            UnknownSymbols: the prime has characters that are not in the vocabulary.
            UsageError: `count` or `best_of` is not 1.
        """
        config = self.config
        if config.count != 1 or config.best_of != 1:
            raise UsageError(
                f"a stream is one text, not {config.count * config.best_of}: leave out ",
                Field("count"),
                " and ",
                Field("best_of"),
            )
        start = self._start(config.prime, context, config.seed)
        return Stream(self, start, self._condition(start))

    def texts(
        self, primes: Iterable[Sequence[str]] | None = None, context: Context | None = None, *, scored: bool = False
    ) -> Iterator[GeneratedText]:
        """Generate `config.count` texts for each prime, in batches. Memory is that of one batch.

        If `best_of` is 1, the first text equals that of a stream with the same seed. Otherwise each text is the best of
        `best_of` candidates: the one with the highest mean log-probability of its characters, under the model at
        temperature 1 without filters. An empty text is the worst.

        Args:
            primes: groups of primes; None means one group of `config.prime`. All texts of a group are generated
                before the next group is requested. A text depends on the position of its prime, but not on the groups.
            context: the context that each prime continues; None starts new texts.
            scored: also compute the log-probabilities, which takes about as long as sampling.

        Raises:
            UnknownSymbols: a prime has characters that are not in the vocabulary.
            UsageError: nothing ends the texts.
        """
        config = self.config
        if not config.has_end:
            ends = (Field("length"), ", ", Field("lines"), " or ", Field("stop"))
            raise UsageError("texts that are generated in batches need an end: set ", *ends)
        seed = config.seed if config.seed is not None else context.seed if context is not None else None
        seed = random_seed() if seed is None else seed
        per_batch = max(1, BATCH // config.best_of)
        streams = itertools.count()
        for group in [[config.prime]] if primes is None else primes:
            starts = (
                (prime, start)
                for prime in group
                for start in itertools.repeat(self._start(prime, context, seed), config.count)
            )
            while batch := list(itertools.islice(starts, per_batch)):
                numbers = np.array(list(itertools.islice(streams, len(batch) * config.best_of)))
                yield from self._best(batch, numbers, scored)

    def next_probabilities(self, context: Context) -> NDArray[np.float64]:
        """Return the probability of each symbol to be sampled next, (V,).

        Raises:
            FloatingPointError: the logits are NaN or infinite.
            UsageError: `ban` and `only` allow no symbol next.
        """
        phase = self.phase(context.recent)
        logits, _ = self.engine.step([context.last], context.state)
        longest = None if self.config.match is None else self.config.max_length
        return filters.distribution(logits[0], self.rule, context.recent, phase, longest)

    def extend(self, context: Context, length: int, condition: StopCondition) -> tuple[Ids, Context]:
        """Sample `length` symbols after a context that has a seed.

        Args:
            context: the context.
            length: the number of symbols.
            condition: the condition that ends the text, after the symbols before.

        Returns:
            The symbols (length,), and the context after them.

        Raises:
            CheckpointError: the logits are NaN or infinite.
            UsageError: `ban` and `only` allow no symbol next.
        """
        assert context.seed is not None
        sampled, state = self.engine.generate(
            [context.last],
            context.state,
            length,
            self.rule,
            seed=context.seed,
            position=context.position,
            streams=[0],
            recent=context.recent[:, None] if self.rule.lookback else None,
            phases=[self._phase_within(context.recent, condition)],
            remaining=self._limit(condition),
        )
        symbols = sampled[:, 0]
        return symbols, replace(context.moved(state, symbols), position=context.position + length)

    def phase(self, recent: Ids) -> int:
        """Return the state of the automaton of the rule before a text, after the last symbols; −1 means none.

        Raises:
            UsageError: no symbol is allowed in that state, or no text that matches can follow.
        """
        automaton = self.rule.automaton
        if automaton is None or (self.config.match is not None and self.config.raw):
            return 0
        phase = self.vocabulary.state_after(recent[recent >= 0])
        if self.config.match is not None:
            phase = automaton.end + phase if phase else 0
            _check_shortest(automaton, phase, self.config)
        elif not automaton.allowed(phase).any():
            raise UsageError(
                Field("ban"),
                " and ",
                Field("only"),
                " leave no byte that could complete the last character of ",
                Field("prime"),
            )
        return phase

    def _condition(self, start: Context) -> StopCondition:
        """Return the condition that ends a text after a context."""
        if self.config.match is None:
            return StopCondition(self.vocabulary, self.config, start.recent)
        phase = self.phase(start.recent)
        return StopCondition(self.vocabulary, self.config, start.recent, self.rule.automaton, phase)

    def _phase_within(self, recent: Ids, condition: StopCondition) -> int:
        """Return the state of the automaton of the rule within a text, after the last symbols."""
        return self.phase(recent) if self.config.match is None else condition.phase

    def _limit(self, condition: StopCondition) -> int | None:
        """Return the number of symbols that a text may still have, if the automaton of the rule depends on it."""
        return None if self.config.match is None else condition.remaining

    def spelled(self, ids: Ids) -> str:
        """Return the text of ids (T,). Without `raw`, bytes that are not UTF-8 are omitted.

        Those can only be the bytes that complete the last character of the prime.
        """
        text = self.vocabulary.decode(ids)
        return text if self.config.raw else text.encode("utf-8", "ignore").decode("utf-8")

    def _start(self, prime: str, context: Context | None, seed: int | None) -> Context:
        """Return the context after a prime. Its seed is the given one, else that of the context, else a random one."""
        context = advance(self.engine, self.vocabulary, prime, context)
        if seed is not None and seed != context.seed:
            return replace(context, seed=seed, position=0)
        return context if context.seed is not None else replace(context, seed=random_seed(), position=0)

    def _best(self, starts: Sequence[tuple[str, Context]], streams: Ids, scored: bool) -> Iterator[GeneratedText]:
        """Generate `best_of` candidates for each (prime, context) in one batch, and return the best of each."""
        n = self.config.best_of
        contexts = [start for _, start in starts for _ in range(n)]
        candidates = self._batch(contexts, streams, scored or n > 1)
        for k, (prime, start) in enumerate(starts):
            ended, symbols, nats = max(candidates[k * n : (k + 1) * n], key=lambda text: _mean(text[2]))
            log_probability = float(-nats.sum()) if scored else None
            log_weight = None
            if scored and self.config.match is not None:
                log_weight = self._log_weight(start, symbols)
            yield GeneratedText(self.spelled(symbols), ended, prime, log_probability, log_weight, symbols, start)

    def _log_weight(self, start: Context, symbols: Ids) -> float:
        """Return the difference of the log-probabilities of a text without and with the expression, in nats."""
        free = Sampler(self.engine, self.vocabulary, replace(self.config, match=None))
        total, context, condition = 0.0, start, self._condition(start)
        for symbol in symbols.tolist():
            logits, state = self.engine.step([context.last], context.state)
            options = (context.recent, condition.phase, condition.remaining)
            ours = filters.distribution(logits[0], self.rule, *options)[symbol]
            theirs = filters.distribution(logits[0], free.rule, context.recent, free.phase(context.recent))[symbol]
            total += math.log(theirs / ours) if theirs > 0 else -math.inf
            context = context.moved(state, np.array([symbol]))
            condition.take(np.array([symbol]))
        return total

    def _batch(
        self, starts: Sequence[Context], streams: Ids, scored: bool
    ) -> list[tuple[Ended, Ids, NDArray[np.float64]]]:
        """Generate one text for each context; all contexts have the same seed and position.

        Returns:
            For each text what ended it, its symbols (T,), and their surprisal (T,) in nats, which is empty if not
            `scored`.
        """
        state = np.concatenate([start.state for start in starts], axis=2)
        recent = np.full((max(LONGEST_UNFINISHED, self.rule.lookback), len(starts)), -1, np.int32)
        for column, start in enumerate(starts):
            previous = start.recent[-len(recent) :]
            recent[-len(previous) :, column] = previous
        seed, position = starts[0].seed, starts[0].position
        assert seed is not None
        conditions = [self._condition(start) for start in starts]
        taken: list[list[Ids]] = [[] for _ in starts]
        nats: list[list[NDArray[np.float64]]] = [[np.empty(0)] for _ in starts]
        live = np.arange(len(starts))
        block = FIRST_BLOCK if conditions[0].may_end_early else BLOCK
        while len(live):
            remaining = conditions[live[0]].remaining  # the same for all live texts
            length = block if remaining is None else min(block, remaining)
            block = min(2 * block, BLOCK)
            symbols, new_state = self.engine.generate(
                recent[-1],
                state,
                length,
                self.rule,
                seed=seed,
                position=position,
                streams=streams[live],
                recent=recent,
                phases=[self._phase_within(column, conditions[k]) for column, k in zip(recent.T, live, strict=True)],
                remaining=self._limit(conditions[live[0]]),
            )
            surprisal = np.empty((0, len(live)))
            if scored:
                surprisal, _ = self.engine.score(np.concatenate([recent[-1:], symbols]), state)
            for column, k in enumerate(live.tolist()):
                taken[k].append(conditions[k].take(symbols[:, column]).astype(self.vocabulary.dtype))
                nats[k].append(surprisal[:, column])
            continues = np.array([conditions[k].ended is None for k in live])
            recent = np.concatenate([recent, symbols])[-len(recent) :, continues]
            state, live, position = new_state[:, :, continues], live[continues], position + length
        found = []
        for k, condition in enumerate(conditions):
            assert condition.ended is not None
            text = np.concatenate(taken[k])
            found.append((condition.ended, text, np.concatenate(nats[k])[: len(text)]))
        return found


def _mean(nats: NDArray[np.float64]) -> float:
    """Return the mean log-probability of symbols from their surprisal (T,) in nats; −∞ for an empty text."""
    return float(-nats.mean()) if len(nats) else -np.inf


class Stream:
    """One text in pieces: an iterator of strings, each available within a millisecond of its first symbol.

    Symbols that may be the start of a stop text are delayed until that is decided, and bytes until their character is
    complete. With `raw`, bytes that are not UTF-8 are surrogate characters, as in `ByteVocabulary`.

    Make one with `Sampler.stream`.

    Attributes:
        symbols: (T,) the symbols of the last piece, also those that are not part of its text.
    """

    def __init__(self, sampler: Sampler, start: Context, condition: StopCondition) -> None:
        self._sampler, self._condition = sampler, condition
        self._context = start  # after all sampled symbols
        self._block = 1
        self.symbols: Ids = np.empty(0, np.int32)
        self._pending: list[tuple[Context, Ids]] = []  # blocks with symbols that were not returned, and their start
        self._returned = 0  # symbols of the first of them that were returned

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        """Return the next piece, which is not empty.

        Raises:
            CheckpointError: the logits are NaN or infinite.
            UsageError: no symbol is allowed next.
        """
        while self._condition.ended is None:
            remaining = self._condition.remaining
            length = self._block if remaining is None else min(self._block, remaining)
            start, began = self._context, time.perf_counter()
            symbols, self._context = self._sampler.extend(start, length, self._condition)
            seconds = time.perf_counter() - began
            self._block = max(1, min(2 * length, int(length * BLOCK_SECONDS / max(seconds, 1e-9))))
            certain = self.symbols = self._condition.take(symbols)
            self._pending.append((start, symbols))
            self._returned += len(certain)
            while self._pending and self._returned >= len(self._pending[0][1]):
                self._returned -= len(self._pending.pop(0)[1])
            if text := self._sampler.spelled(certain):
                return text
        raise StopIteration

    @property
    def ended(self) -> Ended | None:
        """What ended the text, or None if it has not ended."""
        return self._condition.ended

    @property
    def context(self) -> Context:
        """The context after the last piece that was returned, from which another stream can continue."""
        if not self._pending:
            return self._context
        start, symbols = self._pending[0]
        return advance_sampled(self._sampler.engine, start, symbols[: self._returned])


def random_seed() -> int:
    """Return an unpredictable seed from 0 to 2⁶³ − 1."""
    return secrets.randbits(63)
