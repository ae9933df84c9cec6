"""The exported ONNX graph computes the logits and states of the model, and a graph that does not is never written."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import charlstm
from charlstm.config import Cell, ModelConfig
from charlstm.errors import CharlstmError
from charlstm.export import onnx as onnx_export
from charlstm.export.onnx import export_onnx, onnx_model, session
from charlstm.model import Model
from charlstm.text.vocabulary import ByteVocabulary, Vocabulary
from tests.helpers.commands import ROOT
from tests.helpers.models import CELLS, equations, random_weights

LETTERS = Vocabulary.of("\nabcdefghijklmnop")
DOCUMENTS = LETTERS.with_boundary("\n")
SHAPES = ((1, 13, 3), (2, 8, 40), (3, 24, 5))


def model_of(vocabulary: Vocabulary, cell: Cell, layers: int = 1, hidden: int = 13, embedding: int = 3) -> Model:
    config = ModelConfig(len(vocabulary), hidden, layers, embedding, cell, vocabulary.boundary_id)
    return Model(config, vocabulary, random_weights(config, scale=2))


@pytest.mark.parametrize("vocabulary", [LETTERS, DOCUMENTS], ids=["text", "documents"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape)))
@pytest.mark.parametrize("cell", CELLS)
def test_logits_and_states_are_those_of_the_equations(
    cell: Cell, shape: tuple[int, int, int], vocabulary: Vocabulary
) -> None:
    model = model_of(vocabulary, cell, *shape)
    graph = session(onnx_model(model).SerializeToString())
    random = np.random.default_rng(1)
    for length, batch in ((1, 1), (40, 1), (1, 7), (40, 7)):
        ids = random.integers(0, len(vocabulary), (length, batch))
        ids[random.random(ids.shape) < 0.1] = LETTERS.symbols.index("\n")
        state = random.uniform(-1, 1, model.config.state_shape(batch)).astype(np.float32)
        logits, state_out = graph.run(None, {"symbols": ids, "state": state})
        expected, last = equations(model.config, model.weights, ids, state.astype(np.float64))
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(state_out, last, rtol=0, atol=1e-5)


@pytest.mark.parametrize("boundary", [None, "\n"])
def test_a_model_of_bytes_is_exported(boundary: str | None, tmp_path: Path) -> None:
    vocabulary = ByteVocabulary(boundary)
    model = model_of(vocabulary, "lstm", 2)
    written = export_onnx(model, tmp_path / "model.onnx")
    assert written.bytes == (tmp_path / "model.onnx").stat().st_size
    assert 0 < written.largest_difference < 1e-5
    names = json.loads(metadata(tmp_path / "model.onnx")["vocabulary"])
    assert [name.encode("utf-8", "surrogateescape") for name in names] == [bytes([k]) for k in range(256)]


def test_a_text_in_two_parts_gives_the_same_logits_as_the_whole_text() -> None:
    model = model_of(DOCUMENTS, "gru", 2)
    graph = session(onnx_model(model).SerializeToString())
    ids = np.random.default_rng(2).integers(0, len(DOCUMENTS), (20, 3))
    zero = np.zeros(model.config.state_shape(3), np.float32)
    whole, _ = graph.run(None, {"symbols": ids, "state": zero})
    first, state = graph.run(None, {"symbols": ids[:9], "state": zero})
    second, _ = graph.run(None, {"symbols": ids[9:], "state": state})
    np.testing.assert_array_equal(np.concatenate([first, second]), whole)


def metadata(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


def test_the_metadata_hold_the_vocabulary_and_the_version(tmp_path: Path) -> None:
    vocabulary = Vocabulary.of("\0\n\"'\\€😀").with_boundary("<|end|>")
    export_onnx(model_of(vocabulary, "rnn"), tmp_path / "model.onnx")
    found = metadata(tmp_path / "model.onnx")
    assert json.loads(found["vocabulary"]) == [vocabulary.name(symbol) for symbol in range(len(vocabulary))]
    assert found["charlstm_version"] == charlstm.__version__
    assert (found["symbols"], found["cell"], int(found["boundary"])) == ("chars", "rnn", vocabulary.boundary_id)
    export_onnx(model_of(LETTERS, "rnn"), tmp_path / "model.onnx")
    assert "boundary" not in metadata(tmp_path / "model.onnx")


@pytest.mark.parametrize("cell", ["lstm", "peephole", "coupled", "gru"])
def test_a_graph_with_two_gates_exchanged_is_not_written(
    cell: Cell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Negative control of the comparison within the command."""
    first, second, *rest = onnx_export.ROWS[cell]
    monkeypatch.setattr(onnx_export, "ROWS", {cell: (second, first, *rest)})
    with pytest.raises(CharlstmError, match=r"differs from the model by .*; nothing was written"):
        export_onnx(model_of(LETTERS, cell), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_ignores_boundaries_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: the comparison reads boundaries."""

    def without_reset(graph: onnx_export._Graph, config: ModelConfig) -> tuple[str, str]:
        return onnx_export._recurrence(graph, config, "symbols", "state")

    monkeypatch.setattr(onnx_export, "_scan", without_reset)
    (tmp_path / "model.onnx").write_text("an older file")
    with pytest.raises(CharlstmError, match="differs from the model"):
        export_onnx(model_of(DOCUMENTS, "lstm"), tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_text() == "an older file"


def test_weights_that_are_not_finite_give_no_file(tmp_path: Path) -> None:
    model = model_of(LETTERS, "lstm")
    model.weights["projection.bias"][3] = np.nan
    with pytest.raises(CharlstmError, match="differs from the model by nan"):
        export_onnx(model, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(CharlstmError, match=r"pip install 'charlstm\[onnx\]'"):
        export_onnx(model_of(LETTERS, "lstm"), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_the_program_in_the_documentation_runs(tmp_path: Path) -> None:
    vocabulary = Vocabulary.of(" abc")
    export_onnx(model_of(vocabulary, "gru"), tmp_path / "model.onnx")
    found = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "onnx.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(found) == 1
    done = subprocess.run([sys.executable, "-c", found[0]], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert len(done.stdout) == 300
    assert set(done.stdout) == set(vocabulary.symbols)
