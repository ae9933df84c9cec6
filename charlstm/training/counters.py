"""The numbers that a run counts and measures: counters that are saved, and clocks that are not."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace

from charlstm.config import later


@dataclass
class Counters:
    """The progress of a run. Every field is saved in a checkpoint (as "tally"), and none depends on the clock.

    Losses are in nats per symbol.
    """

    step: int = 0
    chars_seen: int = 0
    train_nats: float = 0.0  # training loss, smoothed over about a hundred windows
    weight: float = 0.0  # total weight of the windows in train_nats, which makes the mean unbiased from the start
    recent_nats: float | None = None  # training loss, smoothed over about ten windows
    lowest_nats: float | None = None  # lowest recent_nats so far
    best_nats: float | None = None  # lowest validation loss
    best_step: int | None = None
    last_nats: float | None = None  # latest validation loss; None if it is NaN or infinite
    validated_step: int | None = None  # step of the latest validation
    rollbacks: int = 0
    no_better: int = later(0)  # validations since the best one
    kept: tuple[int, ...] = later(())  # steps whose weights are kept, ascending

    def observe(self, nats: float) -> None:
        """Update the smoothed losses with the loss of one window."""
        self.weight = 0.99 * self.weight + 0.01
        self.train_nats += (nats - self.train_nats) * 0.01 / self.weight
        self.recent_nats = nats if self.recent_nats is None else 0.9 * self.recent_nats + 0.1 * nats
        if self.step > 20:
            self.lowest_nats = min(self.recent_nats, self.lowest_nats or math.inf)

    def record_validation(self, nats: float) -> bool:
        """Record the loss of a validation at the current step.

        Returns:
            Whether it is finite and lower than every one before.
        """
        is_best = math.isfinite(nats) and (self.best_nats is None or nats < self.best_nats)
        self.no_better += 1
        if is_best:
            self.best_nats, self.best_step, self.no_better = nats, self.step, 0
        self.last_nats, self.validated_step = nats if math.isfinite(nats) else None, self.step
        return is_best

    def after_rollback(self, before: Counters) -> Counters:
        """Return the counters of a restored state, with what describes the files taken from before the rollback."""
        return replace(
            self,
            best_nats=before.best_nats,
            best_step=before.best_step,
            no_better=before.no_better,
            kept=before.kept,
            rollbacks=before.rollbacks + 1,
        )


class Clock:
    """Measure the seconds that a run has taken, over all processes that trained it, without the time of suspension.

    Args:
        before: seconds that the run took in earlier processes. The clock shows them until it is started.
    """

    def __init__(self, before: float = 0.0) -> None:
        self._before = before
        self._origin: float | None = None

    def start(self) -> None:
        """Let the clock run from now on."""
        self._origin = time.monotonic() - self._before

    def seconds(self) -> float:
        """Return the seconds of the run so far."""
        return self._before if self._origin is None else time.monotonic() - self._origin


@dataclass
class StepTime:
    """The time that this process has spent in training steps, without validation, sampling and saving."""

    steps: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        """Add the time of one step."""
        self.steps += 1
        self.seconds += seconds


class SpeedMeter:
    """Measure symbols per second over the last few seconds.

    Args:
        seconds: the clock at the start.
        chars_seen: symbols trained on before the start.
    """

    def __init__(self, seconds: float, chars_seen: int) -> None:
        self._marks = [(seconds, chars_seen)]

    def chars_per_second(self, seconds: float, chars_seen: int) -> float:
        """Return the speed at this time of the clock; at least 1, so that it can be a divisor."""
        self._marks = [*(mark for mark in self._marks if seconds - mark[0] < 5.0), (seconds, chars_seen)]
        since, chars = self._marks[0]
        return max(1.0, (chars_seen - chars) / max(seconds - since, 1e-9))
