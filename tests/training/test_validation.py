"""When a run validates: the schedule in time, steps and epochs."""

from __future__ import annotations

import pytest

from charlstm.training.budget import Budget
from charlstm.training.counters import StepTime
from charlstm.training.validation import ValidationSchedule

TEN_SECONDS = Budget(epochs=None, steps=None, seconds=10.0, windows_per_epoch=7)


def schedule_of(
    budget: Budget = TEN_SECONDS,
    *,
    validations: int = 1000,
    valid_chars: int = 200,
    step_chars: int = 20,
    step_time: StepTime | None = None,
) -> ValidationSchedule:
    """Return a schedule whose clock starts at 0."""
    schedule = ValidationSchedule(budget, validations, valid_chars, step_chars, step_time or StepTime())
    schedule.start(0.0)
    return schedule


def due_steps(schedule: ValidationSchedule, total: int) -> list[int]:
    return [step for step in range(1, total + 1) if schedule.due(step, 0.0)]


def test_before_the_first_step_the_time_of_a_validation_is_unknown_and_one_is_due() -> None:
    schedule = schedule_of()
    assert schedule.expected_seconds() == 0
    assert schedule.due(1, 1.0)


def test_the_time_of_the_first_validation_is_estimated_from_the_steps() -> None:
    """Three steps took 0.6 s, so that one of 20 symbols takes 0.2 s; scoring costs a fifth of training."""
    schedule = schedule_of(step_time=StepTime(steps=3, seconds=0.6))
    assert schedule.expected_seconds() == pytest.approx(0.2 * 200 / 20 * 0.2)
    assert not schedule.due(3, 1.0)
    assert TEN_SECONDS.share(3, 1.0, schedule.expected_seconds()) == pytest.approx((1 + 0.4) / 10)


def test_the_measured_time_of_a_validation_replaces_the_estimate() -> None:
    schedule = schedule_of(step_time=StepTime(steps=3, seconds=600.0))
    assert not schedule.due(3, 1.0)
    schedule.record(began=0.0, ended=0.01)
    assert schedule.expected_seconds() == pytest.approx(0.01)
    assert schedule.due(3, 1.0)


def test_validations_take_a_twentieth_of_the_time_the_last_one_included() -> None:
    """The last one takes 0.2 s of 10, which leaves 3 % for the others: one in 0.2 / 0.03 = 6.67 s."""
    schedule = schedule_of()
    schedule.record(began=-0.2, ended=0.0)
    assert [schedule.due(3, seconds) for seconds in (6.6, 6.7)] == [False, True]


def test_no_validation_is_due_if_the_last_one_alone_takes_more_than_a_twentieth_of_the_time() -> None:
    schedule = schedule_of()
    schedule.record(began=-0.6, ended=0.0)
    assert not any(schedule.due(3, seconds) for seconds in (1.0, 10.0, 1e6))


def test_the_wanted_number_of_validations_limits_them_in_time() -> None:
    schedule = schedule_of(validations=4)
    assert [schedule.due(3, seconds) for seconds in (2.4, 2.6)] == [False, True]
    schedule.record(began=2.6, ended=2.6 + 1e-6)
    assert [schedule.due(3, seconds) for seconds in (5.0, 5.2)] == [False, True]


@pytest.mark.parametrize(
    "budget", [Budget(None, 40, None, windows_per_epoch=7), Budget(5.0, None, None, windows_per_epoch=8)]
)
def test_validations_in_steps_are_at_even_shares_except_the_last(budget: Budget) -> None:
    """The validation at the end is not one of the schedule: the run always makes it."""
    schedule = schedule_of(budget, validations=4, valid_chars=2)
    assert due_steps(schedule, 40) == [10, 20, 30]
    slow = schedule_of(budget, validations=4, valid_chars=2, step_time=StepTime(steps=1, seconds=1e6))
    assert due_steps(slow, 40) == [10, 20, 30]


def test_a_long_validation_text_is_scored_less_often() -> None:
    """A quarter of the 800 symbols of 40 steps may be scored: two validations of 100, of which the end makes one."""
    budget = Budget(None, 40, None, windows_per_epoch=7)
    assert due_steps(schedule_of(budget, validations=4, valid_chars=100), 40) == [20]
    assert due_steps(schedule_of(budget, validations=4, valid_chars=10_000), 40) == []


@pytest.mark.parametrize("valid_chars", [0, 1])
def test_without_a_transition_to_score_no_validation_is_due(valid_chars: int) -> None:
    schedule = schedule_of(valid_chars=valid_chars)
    assert not schedule.is_possible
    assert not schedule.due(1, 10.0)
