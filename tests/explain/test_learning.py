"""The course of a run is read from its log, whatever else the log contains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import charlstm
from charlstm.explain import learning as module
from charlstm.explain.learning import Validation, learning
from tests.helpers.models import real_text


def write(folder: Path, *lines: object) -> Path:
    folder.mkdir(exist_ok=True)
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "metrics.jsonl").write_bytes("\n".join(texts).encode("utf-8", "surrogateescape"))
    return folder


def validated(step: int, bits: object = 2.5, **others: object) -> dict[str, object]:
    values = {"event": "validated", "step": step, "seconds": 1.5, "valid_bits_per_char": bits, "best": True}
    return {**values, "train_bits_per_char": 3.0, "sample": "abc", **others}


def test_validations_are_in_order_and_the_last_of_a_step_counts(tmp_path: Path) -> None:
    found = learning(write(tmp_path, validated(20), validated(10), validated(20, 2.25, best=False), {"event": "x"}))
    assert found is not None
    assert found.validations == (
        Validation(10, 1.5, 2.5, 3.0, True, "abc"),
        Validation(20, 1.5, 2.25, 3.0, False, "abc"),
    )
    assert not found.training
    assert not found.kept


def test_invalid_lines_are_ignored(tmp_path: Path) -> None:
    deep = "[" * 100_000
    bad = ["", "{", "3", "null", '"text"', deep, "\udcff", '{"event": "validated", "step": 1e999}']
    wrong = [validated(1, "2"), validated(1, True), validated(1, None), validated(-1), validated(2**60)]
    nan = '{"event": "validated", "step": 3, "valid_bits_per_char": NaN}'
    huge = validated(1, 10**400)
    odd = validated(7, sample=5, seconds="x", train_bits_per_char=[], best="yes")
    found = learning(write(tmp_path, *bad, *wrong, nan, huge, odd, json.dumps(validated(8))[:-20]))
    assert found is not None
    assert found.validations == (Validation(7, 0.0, 2.5, None, False, ""),)


@pytest.mark.parametrize("lines", [[], ["{"], [{"event": "curve", "step": 1, "train_bits_per_char": 2.0}]])
def test_a_log_without_a_validation_is_no_course(tmp_path: Path, lines: list[object]) -> None:
    assert learning(write(tmp_path, *lines)) is None
    assert learning(tmp_path / "missing") is None


def test_a_log_that_is_too_long_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, validated(1))
    assert learning(tmp_path) is not None
    monkeypatch.setattr(module, "MAX_BYTES", 10)
    assert learning(tmp_path) is None


def test_the_course_of_a_real_run(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    text = tmp_path / "text"
    text.write_text(real_text(3000))
    corpus = charlstm.read([text])
    model = charlstm.train(
        corpus, tmp_path / "run", steps=12, hidden=4, embedding=3, layers=1, validations=3, keep=2, sample_chars=20
    )
    assert model.path is not None
    found = learning(model.path.parent)
    assert found is not None
    assert [validation.step for validation in found.validations] == [4, 8, 12]
    assert all(len(validation.sample) <= 20 for validation in found.validations)
    assert [(step, path.name) for step, path in found.kept] == [
        (step, f"step-{step:06d}.safetensors") for step in (8, 12)
    ]
    assert found.training
    assert all(0 < bits < 9 for _, bits, _ in found.training)
    explained = model.explain(chars=250)
    assert explained.learning == found
    assert set(explained.missing) <= {"units"}
    assert explained.ngrams is not None
    assert explained.ngrams.train_chars == 2700
