"""`Model.explain` works for every model and text, and says which part is missing and why."""

from __future__ import annotations

import base64
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import charlstm
from charlstm.cells import GATES
from charlstm.config import Cell, ModelConfig
from charlstm.errors import CheckpointError, CorpusError, UnknownSymbols, UsageError
from charlstm.explain import explanation
from charlstm.model import Model
from charlstm.provenance import CorpusRecord, TextRecord
from charlstm.text.vocabulary import ByteVocabulary, Vocabulary
from tests.helpers.models import CELLS, random_weights, real_text

SYMBOLS = "".join(sorted({*real_text(100_000)}))


def model(cell: Cell = "lstm", layers: int = 1, vocabulary: Vocabulary | None = None, **others: Any) -> Model:
    vocabulary = Vocabulary.of(SYMBOLS) if vocabulary is None else vocabulary
    size = len(vocabulary)
    config = ModelConfig(size, hidden=6, layers=layers, embedding=5, cell=cell, boundary=vocabulary.boundary_id)
    return Model(config, vocabulary, random_weights(config, seed=layers), **others)


def is_json(value: Any) -> bool:
    json.dumps(value, allow_nan=False)
    return True


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_every_part_has_its_documented_shape(cell: Cell, layers: int) -> None:
    found = model(cell, layers).explain(real_text(700), chars=600)
    length, gates, kept = 600, len(GATES[cell]), [name for name in GATES[cell] if name in "ifozr"]
    assert found.trace.gates.shape == (length, layers, gates, 6)
    assert found.trace.h.shape == (length, layers, 6)
    assert (found.trace.c is None) == (cell in ("gru", "rnn"))
    assert found.predictions.bits.shape == (length,)
    assert found.predictions.top_ids.shape == found.predictions.top_shares.shape == (length, 5)
    assert found.bits_per_char == pytest.approx(model(cell, layers).evaluate(real_text(600)).bits_per_char, abs=1e-5)
    assert found.units is not None
    assert found.units.name.shape == found.units.chance.shape == (layers, 6)
    assert found.saturation.closed.shape == found.saturation.open.shape == (layers, len(kept), 6)
    assert found.gradients[0].h.shape == (301, layers, 3)
    assert (found.gradients[0].path is None) == (cell == "rnn")
    assert found.connectivity.values.shape == (320, 51)
    assert found.connectivity.values.max(axis=1).tolist() == [1] * 320
    assert found.ablation.units.shape == (layers, 6)
    assert found.ablation.gate_costs.shape == (layers, len(kept), 2)
    assert found.text == real_text(600)
    assert found.name == cell
    assert set(found.missing) == {"ngrams", "copies", "learning"}
    assert is_json(found.to_json())


def test_the_json_object_has_the_documented_keys_and_the_values_of_the_arrays() -> None:
    found = model().explain(real_text(600))
    values = found.to_json(traced_units=2)
    documented = explanation.Explanation.to_json.__doc__
    assert documented is not None
    for key in values:
        assert f"{key}:" in documented or f"{key}," in documented, key
    traced = values["traces"][0]
    gates = np.frombuffer(base64.b64decode(traced["gates"]), np.uint8).reshape(4, 600) / 127.5 - 1
    np.testing.assert_allclose(gates, found.trace.gates[:, 0, :, traced["unit"]].T, atol=1 / 254)
    assert found.trace.c is not None
    c = np.frombuffer(base64.b64decode(traced["c"]), np.uint8) / 127.5 - 1
    np.testing.assert_allclose(c, np.tanh(found.trace.c[:, 0, traced["unit"]]), atol=1 / 254)
    influence = np.frombuffer(base64.b64decode(values["connectivity"]["values"]), np.uint8)
    np.testing.assert_allclose(influence.reshape(320, 51) / 255, found.connectivity.values, atol=1 / 509)
    assert len(values["traces"]) == 2
    assert values["bits"][0] is None
    assert values["bits"][1] == pytest.approx(found.predictions.bits[1], abs=1e-3)
    assert values["gradients"][0]["h"][3][0][1] == pytest.approx(found.gradients[0].h[3, 0, 1], rel=1e-3)
    assert len(values["units"]["named"]) == len(found.units.best())  # type: ignore[union-attr]


@pytest.mark.parametrize("chars", [2, 3, 10, 199, 200, 299, 302])
@pytest.mark.parametrize("cell", ["lstm", "rnn"])
def test_a_short_text_has_the_parts_that_it_is_long_enough_for(cell: Cell, chars: int) -> None:
    found = model(cell, 2).explain(real_text(chars))
    assert len(found.trace.ids) == chars
    assert ("units" in found.missing) == (found.units is None)
    assert chars >= 200 or found.units is None
    assert found.gradients[0].lags.tolist() == list(range(min(300, chars - 2) + 1))
    assert not np.isnan(found.gradients[0].h).any()
    assert found.ablation.unit_chars == min(chars - 1, found.ablation.unit_chars)
    assert is_json(found.to_json())


@pytest.mark.parametrize(("text", "count"), [("", "0 characters"), ("a", "1 character;")])
def test_a_text_without_a_prediction_is_refused(text: str, count: str) -> None:
    with pytest.raises(CorpusError, match=f"the text has {count}.*needs 2 or more"):
        model().explain(text)


def test_gradients_of_a_large_model_are_computed_from_fewer_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    text = real_text(900)
    assert model().explain(text).gradients[0].positions[0] == explanation.GRADIENT_POSITIONS
    monkeypatch.setattr(explanation, "LARGE", 1)
    found = model().explain(text)
    assert found.gradients[0].positions[0] == explanation.MIN_GRADIENT_POSITIONS
    assert len(found.connectivity.positions) == explanation.MIN_CONNECTED


def test_documents_begin_with_the_zero_state_and_bytes_are_counted() -> None:
    text = "\n".join("abba cab" for _ in range(60))
    found = model("lstm", 2, Vocabulary.of("abc ").with_boundary("\n")).explain(text)
    assert found.trace.ids[0] == found.config.boundary
    assert found.text.startswith("abba cab\nabba")
    assert found.gradients[0].positions[:9].min() > 0
    assert (found.gradients[0].positions[9:] == 0).all(), "no gradient crosses a boundary"
    assert is_json(found.to_json())

    found = model("gru", 1, ByteVocabulary()).explain("né \udcff語" * 80)
    assert len(found.trace.ids) == 8 * 80
    assert found.units is not None
    assert "byte of a longer character" in found.units.features
    assert is_json(found.to_json())


def test_a_vocabulary_of_3000_symbols_is_explained() -> None:
    symbols = "".join(chr(0x4E00 + k) for k in range(2990)) + "\n。「」あいうえおか"
    vocabulary = Vocabulary("".join(sorted(symbols)))
    text = "".join(vocabulary.symbols[k] for k in np.random.default_rng(1).zipf(1.3, 4000) % 3000)
    found = model("lstm", 1, vocabulary).explain(text, chars=1500)
    assert found.predictions.top_ids.shape == (1500, 5)
    assert is_json(found.to_json())


def test_characters_outside_the_vocabulary_are_refused_skipped_or_replaced() -> None:
    small = model(vocabulary=Vocabulary.of("ab?"))
    with pytest.raises(UnknownSymbols, match="x"):
        small.explain("abxab")
    assert small.explain("abxab", unknown="skip").text == "abab"
    assert small.explain("abxab", unknown="replace").text == "ab?ab"


def test_weights_and_logits_that_are_not_finite_are_refused() -> None:
    broken = model()
    broken.weights["recurrence.bias_hh_l0"][3] = np.nan
    with pytest.raises(CheckpointError, match="bias_hh_l0 are NaN or infinite"):
        broken.explain(real_text(100))
    broken = model()
    broken.weights["projection.weight"][:] = 3e38
    assert is_json(broken.explain(real_text(100)).to_json()), "logits below the largest number are accepted"
    broken.weights["recurrence.bias_ih_l0"][:] = 100  # h = 1
    with pytest.raises(CheckpointError, match="logits are NaN or infinite"):
        broken.explain(real_text(100))


def test_models_beside_it_are_measured_on_the_same_text(tmp_path: Path) -> None:
    others = [model("gru", 2, path=tmp_path / "small" / "best.safetensors"), model("rnn", 1)]
    found = model().explain(real_text(500), beside=others)
    assert [norms.name for norms in found.gradients] == ["lstm", "small (gru)", "rnn"]
    alone = others[0].explain(real_text(500))
    np.testing.assert_array_equal(found.gradients[1].h, alone.gradients[0].h)
    np.testing.assert_array_equal(found.context[1].bits_per_char, alone.context[0].bits_per_char)
    with pytest.raises(UsageError, match="cannot be mixed"):
        model().explain(real_text(500), beside=[model(vocabulary=ByteVocabulary())])


def test_a_model_that_has_fewer_symbols_replaces_them_in_place() -> None:
    small = model(vocabulary=Vocabulary.of("ab?"))
    found = model().explain("ab" * 50 + "xyz", beside=[small])
    assert found.context[1].context[-1] == 102


@pytest.mark.parametrize("chars", [-1, -5])
def test_a_negative_number_of_characters_is_refused(chars: int) -> None:
    with pytest.raises(UsageError, match="chars must be 0 or more"):
        model().explain("abc", chars=chars)
    assert len(model().explain("abc" * 10, chars=0).trace.ids) == 30


@pytest.fixture
def trained(tmp_path: Path) -> CorpusRecord:
    """The record of a model that was trained on a text in a file."""
    file = tmp_path / "text"
    file.write_text(real_text(5000), encoding="utf-8")
    return CorpusRecord((str(file),), 5000, charlstm.read([file]).sha256, valid_chars=0)


def test_the_training_text_is_compared_and_the_held_out_part_is_the_default(trained: CorpusRecord) -> None:
    known = model(corpus=trained)
    found = known.explain()
    assert found.text == real_text(5000)[4500:]
    assert found.ngrams is not None
    assert found.ngrams.train_chars == 4500
    assert found.ngrams.bits_per_char[-1] == pytest.approx(found.bits_per_char)
    assert found.copies is not None
    assert [sample.temperature for sample in found.copies] == [0.5, 0.8, 1.0]
    for sample in found.copies:
        assert len(sample.text) == 1000
        assert sample.copied == sample.text[sample.copy.start : sample.copy.start + sample.copy.length]
        assert sample.copied == real_text(5000)[sample.copy.found_at : sample.copy.found_at + sample.copy.length]
        assert sample.copied in real_text(4500)
    assert set(found.missing) == {"learning"}
    values = found.to_json()
    assert is_json(values)
    assert len(values["copies"]) == 3
    assert values["ngrams"]["orders"] == list(range(1, 9))


def test_a_training_text_that_changed_or_is_missing_is_reported(trained: CorpusRecord) -> None:
    known, text = model(corpus=trained), real_text(300)
    Path(trained.names[0]).write_text(real_text(4000), encoding="utf-8")
    found = known.explain(text)
    assert found.ngrams is None
    assert found.copies is None
    assert "has changed since the training" in found.missing["ngrams"]
    Path(trained.names[0]).unlink()
    assert "text cannot be read" in known.explain(text).missing["copies"]
    assert "does not name a text" in model().explain(text).missing["copies"]


@pytest.mark.parametrize("documents", [False, True])
def test_the_training_part_is_that_of_the_run(tmp_path: Path, documents: bool) -> None:
    (tmp_path / "one").write_text("abc\nde" * 20)
    (tmp_path / "two").write_text("xyz" * 30)
    boundary = "\n" if documents else None
    text = charlstm.read([tmp_path], boundary=boundary)
    trained = model(vocabulary=text.vocabulary, corpus=CorpusRecord.from_json(TextRecord.of(text).to_json()))
    np.testing.assert_array_equal(explanation.training_part(trained), text.split(0.1)[0])


def test_a_record_of_an_untrusted_checkpoint_opens_no_pipe_and_reads_no_longer_text(trained: CorpusRecord) -> None:
    text = real_text(300)
    os.mkfifo(pipe := f"{trained.names[0]}-pipe")
    for record in (replace(trained, names=(pipe,)), replace(trained, chars=None), replace(trained, names=("-",))):
        assert "can be read again" in model(corpus=record).explain(text).missing["ngrams"]
    assert (
        "is longer than it was in training"
        in model(corpus=replace(trained, chars=4999)).explain(text).missing["ngrams"]
    )


def test_the_same_model_and_text_give_the_same_explanation(trained: CorpusRecord) -> None:
    first, second = (model(corpus=trained).explain().to_json() for _ in range(2))
    assert first == second
