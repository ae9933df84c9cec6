"""What to do when the loss is NaN or infinite, or rises sharply: roll back and halve the learning rate, or stop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from charlstm.checkpoint import Checkpoint
from charlstm.config import OnDivergence
from charlstm.errors import DivergenceError, Field
from charlstm.terminal import escape
from charlstm.training.counters import Counters
from charlstm.training.state import TrainingState

GOOD_STEPS = 100  # steps between two states to return to
MAX_ROLLBACKS = 3
SPIKE, RISE = 0.5, 0.2  # margins above the lowest loss, both as a share of it and in nats per symbol


@dataclass(frozen=True)
class Divergence:
    """A step that diverged.

    Attributes:
        step: the number of steps made when it was noticed.
        loss: nats per symbol; of a spike the smoothed loss.
        grad_norm: global norm of the gradient; None for a spike of the loss.
        lowest: the lowest smoothed loss before a spike; None if a value is NaN or infinite.
    """

    step: int
    loss: float
    grad_norm: float | None = None
    lowest: float | None = None

    def __str__(self) -> str:
        """Return the values in words."""
        if self.lowest is not None:
            return f"loss {self.loss:.3g} after {self.lowest:.3g}"
        return f"loss {self.loss:g}, gradient norm {self.grad_norm:g}"


class DivergenceGuard:
    """Check the loss and the gradient norm of each step, and return to the last good state if they diverge.

    Reading a loss waits for the device. So `add` stores tensors, and `check` reads them: on a GPU not after every step.

    Args:
        policy: "rollback" or "stop".
    """

    def __init__(self, policy: OnDivergence) -> None:
        """Start without a state to return to."""
        self._policy = policy
        self._unread: list[tuple[Tensor, Tensor]] = []
        self._good: Checkpoint | None = None

    def add(self, loss: Tensor, grad_norm: Tensor) -> None:
        """Add the loss and the gradient norm of a step, scalar tensors, to be read by the next `check`."""
        self._unread.append((loss, grad_norm))

    def check(self, counters: Counters) -> Divergence | None:
        """Read the steps since the last check into the counters; return the first divergence, if there is one."""
        for loss, grad_norm in self._unread:
            nats, norm = float(loss), float(grad_norm)
            if not (math.isfinite(nats) and math.isfinite(norm)):
                return Divergence(counters.step, nats, grad_norm=norm)
            counters.observe(nats)
        self._unread.clear()
        if self._policy == "rollback" and counters.rollbacks < MAX_ROLLBACKS and _is_above_lowest(counters, SPIKE):
            assert counters.recent_nats is not None
            return Divergence(counters.step, counters.recent_nats, lowest=counters.lowest_nats)
        return None

    def is_good(self, counters: Counters) -> bool:
        """Return whether a state may be returned to: its loss is not rising."""
        return not _is_above_lowest(counters, RISE)

    def keep(self, good: Checkpoint) -> None:
        """Keep a complete state to return to."""
        self._good = good

    def roll_back(self, found: Divergence, state: TrainingState, last: Path) -> str:
        """Restore the last good state with half the learning rate.

        Args:
            found: from `check`.
            state: restored in place.
            last: the file of the last save, for the error message.

        Returns:
            A warning for the user.

        Raises:
            DivergenceError: the policy is to stop, or there were too many rollbacks. A step whose loss or gradient is
                NaN or infinite has changed no weight.
        """
        before = state.counters
        if self._policy == "stop" or before.rollbacks >= MAX_ROLLBACKS:
            saved = f"the last good state is in {escape(str(last))}" if last.exists() else "no state has been saved yet"
            raise DivergenceError(
                *(f"step {found.step}: {found}; the weights were not changed, and {saved}. Try a lower ", Field("lr")),
                *(" or ", Field("clip")),
                step=found.step,
                loss=found.loss,
                grad_norm=found.grad_norm,
            )
        assert self._good is not None
        state.roll_back_to(self._good)
        state.counters = state.counters.after_rollback(before)
        self._unread.clear()
        return (
            f"step {found.step} diverged ({found}): returned to step {state.counters.step} with half the learning rate "
            f"(rollback {state.counters.rollbacks} of at most {MAX_ROLLBACKS})"
        )


def _is_above_lowest(counters: Counters, margin: float) -> bool:
    if counters.recent_nats is None or counters.lowest_nats is None:
        return False
    return counters.recent_nats > (1 + margin) * counters.lowest_nats + margin
