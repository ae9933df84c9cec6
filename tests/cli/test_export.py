"""`charlstm export` writes a program, and shows what it needs and what the rounding costs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import charlstm
from tests.helpers.commands import here, model_file

Capture = pytest.CaptureFixture[str]


def test_the_exported_file_is_a_program(tmp_path: Path, capfd: Capture) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    model = model_file(tmp_path / "model.safetensors")
    done = here(capfd, "export", "c", "-c", model, "-o", tmp_path / "poet.c")
    assert (done.status, done.err) == (0, "")
    lines = dict(line.split("  ", 1) for line in done.text.splitlines())
    assert lines["file"].strip() == str(tmp_path / "poet.c")
    program = tmp_path / "poet"
    subprocess.run([compiler, "-DCHARLSTM_MAIN", str(tmp_path / "poet.c"), "-o", str(program)], check=True)
    text = subprocess.run([str(program), "300", "1.0", "5", "abc"], capture_output=True, text=True, check=True).stdout
    assert len(text) == 300
    assert set(text) <= set(charlstm.load(model).vocabulary.symbols)


def test_a_model_whose_text_is_missing_is_exported_without_the_cost(tmp_path: Path, capfd: Capture) -> None:
    model = model_file(tmp_path / "model.safetensors")
    done = here(capfd, "export", "c", "-c", model, "-o", tmp_path / "poet.c", "--json")
    found = json.loads(done.out)
    assert found["rounding"] is None
    assert found["checkpoint"] == str(model)
    hidden, embedding, projection = 48 * 12, 48 * 5, 10 * 12
    assert found["multiply_adds"] == hidden + embedding + projection


def test_the_cost_is_measured_on_the_held_out_part(
    tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("the cat sat on the mat. " * 100)
    options = ["--hidden", 16, "--steps", 30, "--threads", 1, "-o", "run", "-q"]
    assert here(capfd, "train", "text", *options).status == 0
    found = json.loads(here(capfd, "export", "c", "-c", "run", "-o", "poet.c", "--json").out)["rounding"]
    score = charlstm.load("run", precision="fp32").evaluate()
    assert found["chars"] == score.transitions
    assert found["exact_bits_per_char"] == pytest.approx(score.bits_per_char, abs=1e-6)
    assert found["rounded_bits_per_char"] == pytest.approx(score.bits_per_char, abs=0.02)


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path, capfd: Capture) -> None:
    model = model_file(tmp_path / "model.safetensors")
    done = here(capfd, "export", "c", "-c", model, "-o", tmp_path / "missing" / "poet.c")
    assert done.status == 1
    assert done.err.count("\n") == 1
    assert "missing" in done.err
    assert here(capfd, "export", "fortran", "-o", "x").status == 2


def test_the_exported_graph_is_compared_with_the_model(tmp_path: Path, capfd: Capture) -> None:
    model = model_file(tmp_path / "model.safetensors")
    done = here(capfd, "export", "onnx", "-c", model, "-o", tmp_path / "model.onnx")
    assert (done.status, done.err) == (0, "")
    lines = dict(line.split("  ", 1) for line in done.text.splitlines())
    assert lines["inputs"].strip() == "symbols int64 (T, B), state float32 (1, 2, B, 12)"
    assert lines["largest difference"].endswith("from the model, in onnxruntime")
    found = json.loads(here(capfd, "export", "onnx", "-c", model, "-o", tmp_path / "again.onnx", "--json").out)
    assert found["bytes"] == (tmp_path / "model.onnx").stat().st_size == (tmp_path / "again.onnx").stat().st_size
    assert 0 < found["largest_difference"] <= 1e-5
    assert found["checkpoint"] == str(model)


def test_a_missing_package_is_one_line(tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    model = model_file(tmp_path / "model.safetensors")
    done = here(capfd, "export", "onnx", "-c", model, "-o", tmp_path / "model.onnx")
    assert (done.status, done.err.count("\n")) == (1, 1)
    assert "pip install 'charlstm[onnx]'" in done.err
    assert not (tmp_path / "model.onnx").exists()
