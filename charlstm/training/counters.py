"""What a training counts: saved with it, so that a resumed run knows what the straight one would."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

from charlstm.config import later


@dataclass
class Tally:
    """The run so far. Every field is saved, and none depends on the clock."""

    step: int = 0
    chars_seen: int = 0
    train_nats: float = 0.0  # per character, smoothed over about a hundred windows
    weight: float = 0.0  # of the windows in train_nats: it starts unbiased
    recent_nats: float | None = None  # smoothed over about ten
    lowest_nats: float | None = None  # that recent_nats has been
    best_nats: float | None = None  # in validation
    best_step: int | None = None
    last_nats: float | None = None  # at the latest validation
    validated_step: int | None = None
    rollbacks: int = 0
    no_better: int = later(0)  # validations since the best one
    kept: tuple[int, ...] = later(())  # steps whose weights are kept, ascending

    def observe(self, nats: float) -> None:
        """Take in the loss of one window."""
        self.weight = 0.99 * self.weight + 0.01
        self.train_nats += (nats - self.train_nats) * 0.01 / self.weight
        self.recent_nats = nats if self.recent_nats is None else 0.9 * self.recent_nats + 0.1 * nats
        if self.step > 20:
            self.lowest_nats = min(self.recent_nats, self.lowest_nats or math.inf)

    def spiked(self) -> bool:
        """Whether the loss has lost what it had learned: now half as high again as its lowest, and 0.5 nats more."""
        return self._above_lowest(0.5)

    def raised(self) -> bool:
        """Whether it may be on the way there: no state to go back to."""
        return self._above_lowest(0.2)

    def _above_lowest(self, margin: float) -> bool:
        if self.recent_nats is None or self.lowest_nats is None:
            return False
        return self.recent_nats > (1 + margin) * self.lowest_nats + margin


class Clock:
    """Seconds that the run has taken, over all its sittings. The time that a machine sleeps does not count."""

    def __init__(self, before: float) -> None:
        self._origin = time.monotonic() - before

    def seconds(self) -> float:
        return time.monotonic() - self._origin


class Speed:
    """Characters a second over the last few seconds, from a first reading on."""

    def __init__(self, seconds: float, chars_seen: int) -> None:
        self._marks = [(seconds, chars_seen)]

    def reading(self, seconds: float, chars_seen: int) -> float:
        """At this time of the clock, with so many characters seen; at least 1, for it is divided by."""
        self._marks = [*(mark for mark in self._marks if seconds - mark[0] < 5.0), (seconds, chars_seen)]
        since, chars = self._marks[0]
        return max(1.0, (chars_seen - chars) / max(seconds - since, 1e-9))
