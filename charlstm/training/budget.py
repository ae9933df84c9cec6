"""The length of a run."""

from __future__ import annotations

from dataclasses import dataclass

from charlstm.config import TrainingConfig


@dataclass(frozen=True)
class Budget:
    """How long a run trains: exactly one of `epochs`, `steps` and `seconds` is not None.

    A budget in epochs or steps does not depend on the clock, so that the run is reproducible.

    Attributes:
        epochs: passes over the training part.
        steps: updates of the weights.
        seconds: time, over all processes that train the run.
        windows_per_epoch: steps of one epoch.
    """

    epochs: float | None
    steps: int | None
    seconds: float | None
    windows_per_epoch: int

    @classmethod
    def of(cls, options: TrainingConfig, windows_per_epoch: int) -> Budget:
        """Return the budget that the options of a run set."""
        return cls(options.epochs, options.steps, options.seconds, windows_per_epoch)

    @property
    def total_steps(self) -> int | None:
        """The number of steps of the whole run; None if the clock decides."""
        if self.epochs is not None:
            return max(1, round(self.epochs * self.windows_per_epoch))
        return self.steps

    @property
    def time_limit(self) -> float:
        """The seconds of the whole run.

        Raises:
            ValueError: the budget is in epochs or steps.
        """
        if self.seconds is None:
            raise ValueError("a budget in epochs or steps has no time limit")
        return self.seconds

    def share(self, step: int, seconds: float, reserved: float = 0.0) -> float:
        """Return the share of the budget that is spent, from 0 to 1.

        Args:
            step: steps made so far.
            seconds: time spent so far.
            reserved: seconds that the last validation will take, which a budget in time reserves; at most half of it.
        """
        if (total := self.total_steps) is not None:
            return min(1.0, step / total)
        return min(1.0, (seconds + min(reserved, self.time_limit / 2)) / self.time_limit)

    def parts(self, count: int, step: int, seconds: float, reserved: float = 0.0) -> int:
        """Return how many of `count` equal parts of the budget are spent.

        Args:
            count: number of parts.
            step: as in `share`.
            seconds: as in `share`.
            reserved: as in `share`.
        """
        if (total := self.total_steps) is not None:
            return min(count, step * count // total)  # exact: each part ends at one step
        return int(self.share(step, seconds, reserved) * count)

    def seconds_left(self, step: int, seconds: float, steps_per_second: float) -> float:
        """Return the estimated seconds until the budget is spent."""
        if (total := self.total_steps) is not None:
            return (total - step) / steps_per_second
        return max(0.0, self.time_limit - seconds)

    def __str__(self) -> str:
        """Return the budget in words: "3 epochs", "5,000 steps" or "240 s"."""
        if self.epochs is not None:
            return f"{self.epochs:g} epoch{'' if self.epochs == 1 else 's'}"
        if self.steps is not None:
            return f"{self.steps:,} step{'' if self.steps == 1 else 's'}"
        return f"{self.seconds:g} s"
