"""The block of weights of a page: its size, its precision, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from charlstm.config import Cell, ModelConfig
from charlstm.errors import CheckpointError, UsageError
from charlstm.text.vocabulary import Vocabulary
from charlstm.web import weights as web_weights
from charlstm.web.page import base_85
from charlstm.web.weights import block_bytes, page_model
from tests.helpers.models import CELLS, random_weights

LETTERS = Vocabulary.of("abcdefg")


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_size_is_known_before_the_weights_are_converted(cell: Cell, precision: Any) -> None:
    for layers, embedding in ((1, 3), (3, 50)):
        config = ModelConfig(7, 9, layers, embedding, cell)
        model = page_model(config, LETTERS, random_weights(config), precision)
        assert len(model.weights) == block_bytes(config, precision)
        assert model.precision == precision
        assert json.loads(json.dumps(model.header))["gates"] == list(model.header["gates"])


def test_fp32_is_used_up_to_four_megabytes(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(7, 9)
    weights = random_weights(config)
    size = block_bytes(config, "fp32")
    monkeypatch.setattr(web_weights, "FP32_BYTES", size)
    assert page_model(config, LETTERS, weights).precision == "fp32"
    monkeypatch.setattr(web_weights, "FP32_BYTES", size - 1)
    assert page_model(config, LETTERS, weights).precision == "int8"
    assert block_bytes(ModelConfig(65, 256), "fp32") < 4 << 20 < block_bytes(ModelConfig(65, 512), "fp32")


def test_a_model_that_is_too_large_for_a_page_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig(7, 9)
    monkeypatch.setattr(web_weights, "MOST_BYTES", 100)
    with pytest.raises(CheckpointError, match="a page holds at most 0 MB; use int8"):
        page_model(config, LETTERS, random_weights(config), "fp32")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    config = ModelConfig(7, 9)
    weights = random_weights(config)
    weights["projection.bias"][2] = value
    with pytest.raises(CheckpointError, match=r"not finite numbers: projection\.bias"):
        page_model(config, LETTERS, weights)


def test_an_unknown_precision_is_refused() -> None:
    config = ModelConfig(7, 9)
    with pytest.raises(UsageError, match="one of auto, fp32, int8"):
        page_model(config, LETTERS, random_weights(config), "fp16")  # type: ignore[arg-type]


def test_rows_of_zeros_and_of_tiny_numbers_are_rounded_to_zeros() -> None:
    config = ModelConfig(7, 4, embedding=50)
    weights = random_weights(config)
    weights["projection.weight"][0] = 0
    weights["projection.weight"][1] = 1e-43
    block = page_model(config, LETTERS, weights, "int8").weights
    rounded = np.frombuffer(block[-7 * 4 * 2 : -7 * 4], np.int8).reshape(7, 4)
    assert not rounded[:2].any()
    assert np.abs(rounded[2:]).max(axis=1).tolist() == [127] * 5


def test_base_85_has_five_digits_for_a_word() -> None:
    words = [0, 1, 84, 85, 20, 2**32 - 1]
    text = base_85(np.array(words, "<u4").tobytes())
    digits = [20 if char == "!" else ord(char) - 40 for char in text]
    assert [sum(d * 85**k for k, d in enumerate(reversed(digits[n : n + 5]))) for n in range(0, 30, 5)] == words
    assert "<" not in base_85(np.random.default_rng(1).bytes(40_000))  # no tag can begin
