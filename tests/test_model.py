"""Test `Model`: loading, sampling, evaluating, and saving the state of a text."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import charlstm
from charlstm import checkpoint
from charlstm.checkpoint import Checkpoint
from charlstm.config import ModelConfig
from charlstm.errors import CheckpointError, CorpusError, UsageError
from charlstm.inference import native
from charlstm.model import Model
from charlstm.provenance import CorpusRecord
from tests.helpers.models import random_weights, real_ids, real_text

native_only = pytest.mark.skipif(not native.isas(), reason="the native engine was not compiled")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return a checkpoint whose corpus is in the same directory."""
    text = tmp_path / "text.txt"
    text.write_bytes(real_text(10_000).encode())
    _, vocabulary = real_ids(10_000)
    config = ModelConfig(len(vocabulary), hidden=24, layers=2, embedding=8)
    sha256 = hashlib.sha256(text.read_bytes()).hexdigest()
    facts = {"corpus": {"names": [str(text)], "chars": 10_000, "sha256": sha256, "valid_share": 0.1}}
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, Checkpoint(config, vocabulary, random_weights(config), facts=facts))
    return path


def test_a_model_samples_streams_and_evaluates_alike(file: Path) -> None:
    model = charlstm.load(file)
    text = model.sample("The ", 200, temperature=0.9, seed=3)
    assert len(text) == 200
    assert "".join(model.stream("The ", 200, temperature=0.9, seed=3)) == text
    assert next(model.samples(2, "The ", 200, temperature=0.9, seed=3)) == text
    assert model.sample(length=0) == ""
    assert model.evaluate(text).transitions == 199


def test_evaluation_without_a_text_uses_the_validation_part(file: Path) -> None:
    model = charlstm.load(file)
    assert model.evaluate() == model.evaluate(real_text(10_000)[9000:])
    assert model.evaluate(exact=True).chars == 1000


def test_a_changed_or_unknown_corpus_is_refused_for_validation(file: Path) -> None:
    model = charlstm.load(file)
    damaged: list[dict[str, Any]] = [
        {},
        {"corpus": 1},
        {"corpus": {"names": ["-"]}},
        {"corpus": {"names": [7]}},
        {"corpus": {"names": []}},
    ]
    for facts in damaged:
        model.corpus = CorpusRecord.from_json(facts.get("corpus"))
        with pytest.raises(CorpusError, match="give the text to evaluate"):
            model.evaluate()
    model = charlstm.load(file)
    (file.parent / "text.txt").write_text(real_text(10_000)[::-1])
    with pytest.raises(CorpusError, match="not the text that the model was trained on"):
        model.evaluate()


@native_only
def test_auto_samples_in_int8_and_scores_in_fp32(file: Path) -> None:
    model = charlstm.load(file)
    assert model.scorer.precision == "fp32"
    exact = charlstm.load(file, precision="fp32")
    assert exact.engine is exact.scorer
    assert exact.evaluate() == model.evaluate()
    rounded = charlstm.load(file, precision="int8")
    assert rounded.evaluate().bits_per_char - exact.evaluate().bits_per_char == model.int8_cost()
    assert 0 < abs(model.int8_cost()) < 0.005


def test_without_the_native_library_the_cost_of_int8_is_unavailable(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(native, "library", lambda: None)
    model = charlstm.load(file)
    assert model.evaluate().chars == 1000
    with pytest.raises(UsageError):
        model.int8_cost()


# ---- states ----


def test_a_saved_state_continues_in_another_model_object(file: Path, tmp_path: Path) -> None:
    model = charlstm.load(file)
    whole = model.sample("The ", 200, seed=3)
    stream = model.stream("The ", 80, seed=3)
    first = "".join(stream)
    model.save_state(tmp_path / "state", stream.context)
    again = charlstm.load(file)
    context = again.load_state(tmp_path / "state")
    assert first + again.sample(length=120, context=context) == whole
    unseeded = model.advance("The ")
    model.save_state(tmp_path / "state", unseeded)
    found = model.load_state(tmp_path / "state")
    assert (found.last, found.position, found.seed) == (unseeded.last, 0, None)
    assert np.array_equal(found.state, unseeded.state)


def test_a_damaged_or_foreign_state_is_refused(file: Path, tmp_path: Path) -> None:
    model = charlstm.load(file)
    state = tmp_path / "state"
    model.save_state(state, model.advance("The "))
    whole = state.read_bytes()
    cases = [whole[:length] for length in range(len(whole))] + [whole + b"\0", b"x" * len(whole)]
    cases += [whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :] for at in range(len(whole))]
    for data in cases:
        state.write_bytes(data)
        with pytest.raises(CheckpointError):
            model.load_state(state)
    state.write_bytes(whole)
    other = Model(
        model.config, model.vocabulary, {**model.weights, "projection.bias": model.weights["projection.bias"] + 1}
    )
    with pytest.raises(CheckpointError, match="another model"):
        other.load_state(state)
    with pytest.raises(CheckpointError, match="No such file"):
        model.load_state(tmp_path / "none\x1b")


@pytest.mark.parametrize(
    ("last", "position", "value"), [(-1, 0, 0.0), (10_000, 0, 0.0), (0, -5, 0.0), (0, 0, math.nan)]
)
def test_a_state_with_impossible_values_is_refused(
    file: Path, tmp_path: Path, last: int, position: int, value: float
) -> None:
    model = charlstm.load(file)
    context = model.advance("The ")
    model.save_state(
        tmp_path / "state", replace(context, last=last, position=position, state=context.state + np.float32(value))
    )
    with pytest.raises(CheckpointError, match="no model can produce"):
        model.load_state(tmp_path / "state")


# ---- imports ----


def test_neither_sampling_nor_evaluating_loads_torch(file: Path) -> None:
    program = f"""
import sys, charlstm
model = charlstm.load({str(file)!r})
model.sample(length=5), model.evaluate("The")
heavy = {{"torch", "typer", "rich", "tqdm", "safetensors.torch"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)
