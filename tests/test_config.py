"""Configuration dataclasses: every field is checked when it is set, and errors name the field."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

import pytest

from charlstm.cells import GATES
from charlstm.config import (
    DynamicConfig,
    ModelConfig,
    SamplingConfig,
    SamplingKeywords,
    TrainingConfig,
    TrainingKeywords,
    TrainingOptions,
    from_json,
    later,
    parse_duration,
    setting_of,
    to_json,
)
from charlstm.errors import Field, UsageError
from charlstm.training import defaults


@pytest.mark.parametrize("value", [None, 0, -1, 1.5, "64", True, math.nan, 10**9])
@pytest.mark.parametrize("field", ["vocab_size", "hidden", "layers", "embedding"])
def test_the_sizes_of_a_model_are_integers_within_bounds(field: str, value: Any) -> None:
    sizes = {"vocab_size": 5, "hidden": 4, "layers": 1, "embedding": 3, field: value}
    with pytest.raises(UsageError, match=f"^{field} must be a whole number from 1 to [0-9]+, got "):
        ModelConfig(**sizes)


@pytest.mark.parametrize("cell", GATES)
def test_the_number_of_parameters_equals_that_of_the_layers_of_torch(cell: str) -> None:
    import torch

    config = ModelConfig(11, 6, 3, 5, cell)  # type: ignore[arg-type]
    gates = len(GATES[cell])
    layers = sum(gates * 6 * (inputs + 6 + 2) for inputs in (5, 6, 6)) + (3 * 3 * 6 if cell == "peephole" else 0)
    assert config.parameters() == 11 * 5 + layers + 11 * 6 + 11
    if cell in ("lstm", "gru", "rnn"):
        theirs = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}[cell](5, 6, 3)
        ours = {k.removeprefix("recurrence."): v for k, v in config.shapes().items() if k.startswith("recurrence.")}
        assert ours == {name: tuple(parameter.shape) for name, parameter in theirs.named_parameters()}


@pytest.mark.parametrize("given_", [{"steps": 1, "epochs": 1}, {"seconds": 3.0, "steps": 2}])
def test_a_run_has_one_budget(given_: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="are mutually exclusive"):
        TrainingOptions(**given_)


@pytest.mark.parametrize("temperature", [-1, math.nan, math.inf, None])
def test_an_invalid_temperature_is_rejected(temperature: Any) -> None:
    with pytest.raises(UsageError, match=r"^temperature must be a finite number of at least 0, got "):
        SamplingConfig(temperature=temperature)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("3m", 180), ("1h", 3600), ("1h30m", 5400), ("45", 45), ("1.5m", 90), (" 2m5s ", 125)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "m", "-3m", "3 minutes", "1m1h", "inf", "1e3", "99999999h"])
def test_an_invalid_duration_is_rejected_with_its_field_and_the_text_as_given(text: str) -> None:
    with pytest.raises(UsageError, match=f"^seconds must be a duration .*, got {re.escape(ascii(text))}$"):
        parse_duration(text)


@pytest.mark.parametrize("missing", [field.name for field in fields(TrainingConfig) if field.name in ("hidden", "lr")])
def test_a_saved_training_record_with_a_missing_entry_is_refused(missing: str) -> None:
    values = to_json(defaults.choose(TrainingOptions(), 10**6, 65))
    with pytest.raises(UsageError, match=f"has no value for {missing}$"):
        from_json(TrainingConfig, {**values, missing: None})
    with pytest.raises(UsageError, match="budget"):
        from_json(TrainingConfig, {**values, "seconds": None})


def test_a_saved_config_may_lack_later_entries_only() -> None:
    @dataclass(frozen=True)
    class Old:
        first: int
        second: int = 2
        third: int = later(3)

    assert from_json(Old, {"first": 1, "second": 5}) == Old(1, 5, 3)
    assert from_json(Old, {"first": 1, "second": 5, "third": 6}) == Old(1, 5, 6)
    with pytest.raises(UsageError, match="lacks second"):
        from_json(Old, {"first": 1, "third": 6})
    with pytest.raises(UsageError, match="no field 'fourth'"):
        from_json(Old, {"first": 1, "second": 5, "fourth": 4})


def test_the_error_for_an_invalid_value_carries_field_value_and_allowed_range() -> None:
    with pytest.raises(UsageError) as raised:
        TrainingOptions(hidden=0)
    error = raised.value
    assert error.fields == (Field("hidden"),)
    assert (error.value, error.allowed) == (0, "a whole number from 1 to 65536")
    assert str(error) == "hidden must be a whole number from 1 to 65536, got 0"
    assert error.spelled(lambda field: f"<{field}>") == "<hidden> must be a whole number from 1 to 65536, got 0"


def test_a_memory_length_excludes_a_forget_bias_and_a_cell_without_gates() -> None:
    assert TrainingOptions(memory_length=20, cell="gru").memory_length == 20
    with pytest.raises(UsageError, match="memory_length") as raised:
        TrainingOptions(memory_length=20, forget_bias=2.0)
    assert raised.value.fields == (Field("forget_bias"), Field("memory_length"))
    with pytest.raises(UsageError, match="memory_length requires a cell with gates, not cell rnn"):
        TrainingOptions(memory_length=20, cell="rnn")
    for length in (0, 1, 2**20 + 1, 2.5, math.nan, True):
        with pytest.raises(UsageError, match="memory_length must be a whole number from 2 to 1048576"):
            TrainingOptions(memory_length=length)  # type: ignore[arg-type]


def test_an_unused_memory_length_is_not_recorded_so_that_checkpoints_stay_the_same() -> None:
    assert "memory_length" not in to_json(TrainingOptions())
    assert to_json(TrainingOptions(memory_length=20))["memory_length"] == 20
    assert from_json(TrainingOptions, to_json(TrainingOptions())).memory_length is None


@pytest.mark.parametrize("kind", [TrainingOptions, SamplingConfig, DynamicConfig])
def test_every_option_has_a_help_text_and_every_number_has_a_range(kind: type[Any]) -> None:
    types = get_type_hints(kind)
    for field in fields(kind):
        declared = setting_of(field)
        assert declared.help.endswith("."), field.name
        is_number = types[field.name] in (int, float, int | None, float | None)
        assert is_number == (declared.low is not None) == (declared.high is not None), field.name


def test_the_keywords_of_the_python_interface_are_the_fields_of_the_dataclasses() -> None:
    assert get_type_hints(TrainingKeywords) == get_type_hints(TrainingOptions)
    parameters = {"temperature", "length", "prime", "seed", "count"}  # parameters of the methods of Model
    expected = {name: kind for name, kind in get_type_hints(SamplingConfig).items() if name not in parameters}
    assert get_type_hints(SamplingKeywords) == expected
    assert not SamplingKeywords.__required_keys__ | TrainingKeywords.__required_keys__
