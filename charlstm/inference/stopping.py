"""Decide where a generated text ends."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from charlstm.config import GREEDY_LENGTH, SamplingConfig
from charlstm.inference.automaton import Automaton
from charlstm.text.vocabulary import Vocabulary, code_points

Ended = Literal["length", "lines", "stop", "document", "match", "limit"]
Ids = np.ndarray[Any, Any]


def ends_with_document(vocabulary: Vocabulary, config: SamplingConfig) -> bool:
    """Return whether a generated text is one document, because no option ends it earlier."""
    is_open = config.length is None and config.lines is None and not config.stop and config.match is None
    return is_open and vocabulary.boundary_id is not None


class StopCondition:
    """Ends one text: at its length, after its last line, at a stop text, or before the boundary of its document.

    With an automaton, a text ends before the first symbol with which no match can be continued, and where no symbol can
    continue a match. Because greedy sampling may repeat itself for ever, it has a limit where the length has
    none by default.

    `take` receives the symbols in the order in which they are sampled. It returns a symbol when it is certain that the
    symbol belongs to the text. The first end counts; of stop texts that are complete at the same symbol, the longest.

    Args:
        vocabulary: the symbols of the text.
        config: `length`, `lines`, `stop`, `keep_stop` and `raw` are used.
        recent: (T,) the symbols before the text.
        automaton: the automaton of `config.match`.
        phase: its state before the text.

    Attributes:
        ended: what ended the text, or None if it has not ended.
        phase: the state of the automaton after all symbols that were taken.
        remaining: the largest number of symbols that may still be sampled, or None for no limit.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        config: SamplingConfig,
        recent: Ids,
        automaton: Automaton | None = None,
        phase: int = 0,
    ) -> None:
        self.ended: Ended | None = None
        self.remaining = config.max_length
        self._stops = [_as_string(vocabulary.encode(text)) for text in config.stop]
        self._stop_reason: Ended = "stop"
        if ends_with_document(vocabulary, config):
            self.remaining, self._stop_reason = None, "document"
            self._stops = [_as_string(np.array([vocabulary.boundary_id]))]
        self._length_reason: Ended = "length"
        if self.remaining is None and config.length is None and config.is_greedy:
            self.remaining, self._length_reason = GREEDY_LENGTH, "limit"
        self._automaton, self.phase = automaton, phase
        self._longest = max(map(len, self._stops), default=0)
        self._keep_stop = config.keep_stop
        self._lines = config.lines
        self._line_break = None if config.lines is None else vocabulary.encode("\n")[0]
        self._held = ""  # symbols that may be the start of a stop text
        self._vocabulary = None if config.raw or vocabulary.transitions is None else vocabulary
        # The bytes of an incomplete character. The first of them may belong to the prime and not to the text.
        self._prime_bytes = 0 if self._vocabulary is None else vocabulary.incomplete_suffix_length(recent)
        self._incomplete = recent[len(recent) - self._prime_bytes :]

    @property
    def may_end_early(self) -> bool:
        """Whether the text may end at any symbol."""
        return bool(self._stops) or self._lines is not None or self._automaton is not None

    def take(self, symbols: Ids) -> Ids:
        """Take sampled symbols (T,), and return the symbols that certainly belong to the text.

        For a model of bytes these are complete characters, and the bytes that complete the last character of the prime,
        unless `raw` is set. An incomplete character at the end of the text is dropped.
        """
        certain = self._certain(symbols)
        if self._vocabulary is None:
            return certain
        certain = np.concatenate((self._incomplete, certain))
        complete = len(certain) - self._vocabulary.incomplete_suffix_length(certain)
        self._incomplete = certain[complete:]
        first, self._prime_bytes = self._prime_bytes, 0 if complete else self._prime_bytes
        return certain[first:complete]

    def _certain(self, symbols: Ids) -> Ids:
        if self._automaton is not None:
            return self._matching(self._automaton, symbols)
        if self.remaining is not None:
            self.remaining -= len(symbols)
            self.ended = self._length_reason if self.remaining == 0 else None
        if not self._stops and self._lines is None:
            return symbols
        text = self._held + _as_string(symbols)
        ends: list[tuple[int, int, Ended]] = []  # position after the end, minus the length of a stop text, reason
        for stop in self._stops:
            if (at := text.find(stop)) >= 0:
                ends.append((at + len(stop), -len(stop), self._stop_reason))
        if self._lines is not None:
            breaks = np.flatnonzero(symbols == self._line_break)
            if len(breaks) >= self._lines:
                ends.append((len(self._held) + int(breaks[self._lines - 1]) + 1, 0, "lines"))
            self._lines -= len(breaks)
        if ends:
            end, stop_text, self.ended = min(ends)
            return _as_ids(text[: end if self._keep_stop else end + stop_text])
        certain = len(text) if self.ended else len(text) - self._partial_stop(text)
        self._held = text[certain:]
        return _as_ids(text[:certain])

    def _matching(self, automaton: Automaton, symbols: Ids) -> Ids:
        """Return the symbols before the end of the match."""
        count, self.phase, has_ended = automaton.end_of_match(self.phase, symbols, self.remaining)
        if self.remaining is not None:
            self.remaining -= count
        if has_ended or self.remaining == 0:
            self.ended = "match" if has_ended else "length"
        return symbols[:count]

    def _partial_stop(self, text: str) -> int:
        """Return the length of the longest suffix of a text that a stop text starts with."""
        most = min(len(text), self._longest - 1)
        return next((n for n in range(most, 0, -1) if any(stop.startswith(text[-n:]) for stop in self._stops)), 0)


def _as_string(ids: Ids) -> str:
    """Return ids as code points, which can be searched; this is not the text that they spell."""
    return str(ids.astype("<u4").tobytes(), "utf-32-le", "surrogatepass")


def _as_ids(string: str) -> Ids:
    return code_points(string).astype(np.int32)
