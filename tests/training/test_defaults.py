"""The defaults that depend on the text, the budget and the machine."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charlstm.config import TrainingConfig, TrainingOptions, from_json, to_json
from charlstm.training import defaults


@given(chars=st.integers(2, 10**9), symbols=st.integers(1, 10**5), seconds=st.none() | st.floats(0.01, 1e6))
def test_the_recipe_sets_missing_options_and_keeps_given_ones(chars: int, symbols: int, seconds: float | None) -> None:
    options = TrainingOptions(seconds=seconds, cell="gru", lr=0.5, dropout=0.0)
    chosen = defaults.choose(options, chars, symbols)
    assert (chosen.cell, chosen.lr, chosen.dropout) == ("gru", 0.5, 0.0)
    assert chosen.seconds == (defaults.DEFAULT_SECONDS if seconds is None else seconds)
    assert from_json(TrainingConfig, to_json(chosen)) == chosen


def test_a_faster_machine_and_a_longer_time_get_a_larger_hidden_size() -> None:
    def hidden(seconds: float, speed: float) -> int:
        return defaults.choose(TrainingOptions(seconds=seconds), 10**6, 65, speed=speed).hidden

    widths = [hidden(seconds, 1e11) for seconds in (1, 10, 40, 100, 1000)]
    assert widths == sorted(widths)
    assert widths[0] == 128
    assert widths[-1] == 512
    assert [hidden(10 * seconds, 1e10) for seconds in (1, 10, 40, 100, 1000)] == widths
    assert defaults.choose(TrainingOptions(seconds=1000), 50_000, 65).hidden == 128, (
        "a large model would overfit a short text"
    )


@pytest.mark.parametrize("budget", [{"steps": 2000}, {"epochs": 3.0}])
def test_a_budget_in_steps_or_epochs_gets_the_same_choices_on_every_machine(budget: dict[str, Any]) -> None:
    options = TrainingOptions(**budget)
    slow, fast = (defaults.choose(options, 10**6, 65, speed=speed) for speed in (1e9, 1e13))
    assert slow == fast
    assert defaults.choose(TrainingOptions(seconds=60), 10**6, 65, speed=1e9).hidden == 128, (
        "negative control: with a time the speed matters"
    )


def test_a_gru_has_half_the_learning_rate_of_an_lstm() -> None:
    lstm, gru = (defaults.choose(TrainingOptions(steps=1000, cell=cell), 10**6, 65).lr for cell in ("lstm", "gru"))
    assert gru == lstm / 2


def test_dropout_and_a_higher_decay_are_used_if_a_text_is_read_often() -> None:
    def chosen(steps: int) -> TrainingConfig:
        return defaults.choose(TrainingOptions(steps=steps, hidden=256), 10**6, 65)

    assert chosen(1000).dropout == 0.0, "one epoch"
    assert chosen(1000).dropout < chosen(10_000).dropout < chosen(50_000).dropout
    assert chosen(1000).weight_decay < chosen(10_000).weight_decay
