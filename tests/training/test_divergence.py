"""The guard against losses and gradients that are NaN or infinite, and against losses that rise sharply."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from charlstm.config import ModelConfig, TrainingOptions
from charlstm.errors import DivergenceError
from charlstm.text.vocabulary import Vocabulary
from charlstm.training import defaults
from charlstm.training.counters import Counters
from charlstm.training.divergence import MAX_ROLLBACKS, Divergence, DivergenceGuard
from charlstm.training.state import TrainingState

VOCABULARY = Vocabulary("abc")
DIVERGED = Divergence(step=5, loss=math.inf, grad_norm=1.0)


@pytest.fixture
def state() -> TrainingState:
    """A small network that has made two steps."""
    options = TrainingOptions(hidden=4, embedding=2, batch_size=2, seq_len=5, steps=10, lr=0.1)
    ids = np.arange(60) % 3
    state = TrainingState(ModelConfig(3, 4, 1, 2, "lstm"), defaults.choose(options, 60, 3), ids, torch.device("cpu"))
    state.network.initialise(state.generator, 1.0)
    state.step(0.0)
    state.step(0.1)
    return state


def add(guard: DivergenceGuard, *losses: float, grad_norm: float = 1.0) -> None:
    for loss in losses:
        guard.add(torch.tensor(loss), torch.tensor(grad_norm))


def test_losses_are_read_by_the_check_and_each_only_once() -> None:
    guard, counters = DivergenceGuard("stop"), Counters(step=3)
    add(guard, 2.0, 3.0)
    assert counters.recent_nats is None
    assert guard.check(counters) is None
    assert counters.recent_nats == pytest.approx(0.9 * 2 + 0.1 * 3)
    assert guard.check(counters) is None
    assert counters.recent_nats == pytest.approx(0.9 * 2 + 0.1 * 3)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_or_a_gradient_norm_that_is_not_finite_is_a_divergence(value: float) -> None:
    guard = DivergenceGuard("stop")
    add(guard, 2.0, value)
    found = guard.check(Counters(step=7))
    assert found is not None
    assert (found.step, str(found)) == (7, f"loss {value}, gradient norm 1")
    guard = DivergenceGuard("stop")
    add(guard, 2.0, grad_norm=value)
    found = guard.check(Counters(step=7))
    assert str(found) == f"loss 2, gradient norm {value}"


@pytest.mark.parametrize(
    ("recent", "is_spike", "is_good"), [(1.39, False, True), (1.41, False, False), (2.1, True, False)]
)
def test_a_sharp_rise_above_the_lowest_loss_is_a_divergence(recent: float, is_spike: bool, is_good: bool) -> None:
    """The lowest loss is 1: 0.2 + 0.2 above it a state is not kept, and 0.5 + 0.5 above it the run rolls back."""
    counters = Counters(step=50, recent_nats=recent, lowest_nats=1.0)
    found = DivergenceGuard("rollback").check(counters)
    assert found == (Divergence(50, recent, lowest=1.0) if is_spike else None)
    assert DivergenceGuard("rollback").is_good(counters) == is_good


def test_a_finite_spike_never_stops_a_run() -> None:
    counters = Counters(step=50, recent_nats=9.0, lowest_nats=1.0)
    assert DivergenceGuard("stop").check(counters) is None
    counters.rollbacks = MAX_ROLLBACKS
    assert DivergenceGuard("rollback").check(counters) is None


def test_a_rollback_restores_the_kept_state_and_the_record_of_the_files(state: TrainingState, tmp_path: Path) -> None:
    guard = DivergenceGuard("rollback")
    guard.keep(state.to_resumable(VOCABULARY, {}, None))
    kept = state.network.weights()
    state.step(0.2)
    assert not all(np.array_equal(kept[name], array) for name, array in state.network.weights().items())
    state.counters.best_nats, state.counters.best_step = 1.5, 3
    add(guard, math.nan)
    warning = guard.roll_back(DIVERGED, state, tmp_path / "last")
    assert all(np.array_equal(kept[name], array) for name, array in state.network.weights().items())
    assert (state.counters.step, state.streams.cursor, state.counters.rollbacks) == (2, 2, 1)
    assert (state.counters.best_nats, state.counters.best_step) == (1.5, 3)
    assert "step 5 diverged (loss inf, gradient norm 1): returned to step 2 with half the learning rate" in warning
    assert guard.check(state.counters) is None, "losses from before the rollback are dropped"


def test_a_rollback_halves_the_learning_rate(state: TrainingState, tmp_path: Path) -> None:
    guard = DivergenceGuard("rollback")
    guard.keep(state.to_resumable(VOCABULARY, {}, None))
    before = state.step(0.2).lr
    guard.roll_back(DIVERGED, state, tmp_path / "last")
    assert state.step(0.2).lr == before / 2


@pytest.mark.parametrize(("policy", "rollbacks"), [("stop", 0), ("rollback", MAX_ROLLBACKS)])
def test_the_policy_and_the_number_of_rollbacks_end_a_run(
    state: TrainingState, tmp_path: Path, policy: str, rollbacks: int
) -> None:
    guard = DivergenceGuard(policy)  # type: ignore[arg-type]
    guard.keep(state.to_resumable(VOCABULARY, {}, None))
    state.counters.rollbacks = rollbacks
    with pytest.raises(DivergenceError, match="no state has been saved yet"):
        guard.roll_back(DIVERGED, state, tmp_path / "last")
    (tmp_path / "last").touch()
    with pytest.raises(DivergenceError, match=r"the last good state is in .*last\. Try a lower lr or clip"):
        guard.roll_back(DIVERGED, state, tmp_path / "last")
