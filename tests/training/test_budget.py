"""The length of a run: its share that is spent, and the time that the last validation needs."""

from __future__ import annotations

import pytest

from charlstm.training.budget import Budget


def budget_of(epochs: float | None = None, steps: int | None = None, seconds: float | None = None) -> Budget:
    return Budget(epochs, steps, seconds, windows_per_epoch=7)


def test_a_budget_in_time_reserves_the_expected_time_of_the_last_validation() -> None:
    ten_seconds = budget_of(seconds=10.0)
    assert ten_seconds.share(3, 1.0) == pytest.approx(1 / 10)
    assert ten_seconds.share(3, 1.0, reserved=0.4) == pytest.approx((1 + 0.4) / 10)


def test_the_reserve_is_at_most_half_of_the_budget() -> None:
    assert budget_of(seconds=10.0).share(3, 1.0, reserved=400.0) == pytest.approx((1 + 5) / 10)


@pytest.mark.parametrize(("budget", "total"), [(budget_of(steps=40), 40), (budget_of(epochs=2.5), 18)])
def test_the_share_of_a_budget_in_steps_or_epochs_does_not_depend_on_the_clock(budget: Budget, total: int) -> None:
    assert budget.total_steps == total
    assert budget.share(10, 0.0) == budget.share(10, 1e9, reserved=1e9) == 10 / total
    assert budget.share(total + 1, 0.0) == 1


def test_a_small_part_of_an_epoch_is_at_least_one_step() -> None:
    assert budget_of(epochs=0.01).total_steps == 1


def test_the_share_of_a_budget_in_time_is_at_most_the_whole() -> None:
    assert budget_of(seconds=10.0).share(0, 11.0) == 1
    assert budget_of(seconds=10.0).total_steps is None


def test_the_seconds_left_come_from_the_clock_or_from_the_speed() -> None:
    assert budget_of(steps=40).seconds_left(10, 999.0, steps_per_second=2.0) == 15
    assert budget_of(seconds=10.0).seconds_left(10, 4.0, steps_per_second=2.0) == 6
    assert budget_of(seconds=10.0).seconds_left(10, 11.0, steps_per_second=2.0) == 0


def test_a_step_ends_each_part_of_a_budget() -> None:
    """Each part ends at one step, also where a share in floating point is below the whole number: 29 of 200."""
    for total in (29, 200, 777):
        parts = [budget_of(steps=total).parts(200, step, 0.0) for step in range(total + 1)]
        assert (parts[0], parts[-1]) == (0, 200)
        assert len({*parts}) == min(total, 200) + 1
    assert budget_of(steps=40).parts(200, 41, 0.0) == 200


def test_the_parts_of_a_budget_in_time_follow_the_clock() -> None:
    assert [budget_of(seconds=10.0).parts(4, 3, seconds) for seconds in (0.0, 2.4, 2.6, 9.9, 11.0)] == [0, 0, 1, 3, 4]
    assert budget_of(seconds=10.0).parts(4, 3, 2.4, reserved=0.2) == 1


@pytest.mark.parametrize("budget", [budget_of(steps=40), budget_of(epochs=1)])
def test_a_budget_in_steps_or_epochs_has_no_time_limit(budget: Budget) -> None:
    with pytest.raises(ValueError, match="no time limit"):
        _ = budget.time_limit


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        (budget_of(epochs=1), "1 epoch"),
        (budget_of(epochs=2.5), "2.5 epochs"),
        (budget_of(steps=1), "1 step"),
        (budget_of(steps=5000), "5,000 steps"),
        (budget_of(seconds=240.0), "240 s"),
    ],
)
def test_a_budget_is_described_in_words(budget: Budget, words: str) -> None:
    assert str(budget) == words
