"""The engine of a page computes the logits of the C engine: every cell, both precisions, any number of layers."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from charlstm.config import Cell, ModelConfig
from charlstm.inference import native
from charlstm.inference.engine import Engine
from charlstm.text.vocabulary import ByteVocabulary, Vocabulary
from charlstm.web.page import ENGINE, assemble, asset
from charlstm.web.weights import PageModel, page_model
from tests.helpers.browser import Visit, engine_page, visit
from tests.helpers.models import CELLS, Weights, random_weights

if TYPE_CHECKING:
    from playwright.sync_api import Browser

POSITIONS = 200
TOLERANCE = 1e-4
# Without fused multiply-adds the C engine rounds differently, and a hidden value may become its neighbour of 8 bits.
HAS_FMA = bool({"avx512-vnni", "avx-vnni", "avx2", "neon-dotprod"} & set(native.isas()))
SCALE = 4.0 if HAS_FMA else 1.0  # of the weights: large ones make the logits sensitive to every rounding
SHAPES = ((1, 40, 9, 16), (2, 21, 6, 11), (3, 8, 30, 5))  # layers, H, E, V: with a table, and without it

STEPS = """([header, weights, ids]) => {
    const block = Uint8Array.from(atob(weights), (letter) => letter.charCodeAt(0));
    const model = new charlstmEngine.Model(header, block.buffer);
    const state = model.zeroState();
    return ids.map((id) => Array.from(model.step(id, state)));
}"""


def open_engine(browser: Browser, folder: Path, changed: tuple[str, str] | None = None) -> Any:
    """Open a page that has the scripts of the engine and no model; `changed` replaces a part of them."""
    source = "\n".join(map(asset, ENGINE))
    if changed is not None:
        assert source.count(changed[0]) > 0
        source = source.replace(*changed)
    file = folder / f"engine{hash(changed) % 1000}.html"
    file.write_text(assemble(title="engine", body="", scripts=[source], data={}), encoding="utf-8")
    return visit(browser, file)


@pytest.fixture(scope="module")
def scripts(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visit]:
    """A page with the scripts of the engine."""
    with open_engine(browser, tmp_path_factory.mktemp("engine")) as found:
        yield found
        assert found.incidents == []


def page_logits(page: Visit, model: PageModel, ids: NDArray[np.integer]) -> NDArray[np.float64]:
    """Return the logits (T, V) that the engine of a page computes after each of the ids (T,)."""
    weights = base64.b64encode(model.weights).decode()
    return np.array(page.run(STEPS, [model.header, weights, ids.tolist()]))


def engine_logits(config: ModelConfig, weights: Weights, ids: NDArray[np.integer], precision: Any) -> NDArray[Any]:
    """Return the logits (T, V) that the C engine computes."""
    engine = Engine(config, weights, precision=precision, backend="native", threads=1)
    state, found = engine.zero_state(), []
    for symbol in ids:
        logits, state = engine.step([symbol], state)
        found.append(logits[0])
    return np.stack(found)


def compared(page: Visit, config: ModelConfig, precision: Any, seed: int = 1) -> float:
    """Return the largest difference of the logits at 200 positions."""
    vocabulary = Vocabulary.of("".join(map(chr, range(97, 97 + config.vocab_size))))
    weights = random_weights(config, seed, SCALE)
    ids = np.random.default_rng(seed).integers(0, config.vocab_size, POSITIONS)
    found = page_logits(page, page_model(config, vocabulary, weights, precision), ids)
    return float(np.abs(found - engine_logits(config, weights, ids, precision)).max())


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("cell", CELLS)
def test_logits_equal_those_of_the_c_engine(scripts: Visit, cell: Cell, precision: str) -> None:
    for layers, hidden, embedding, symbols in SHAPES:
        difference = compared(scripts, ModelConfig(symbols, hidden, layers, embedding, cell), precision)
        assert difference <= (TOLERANCE if HAS_FMA or precision == "fp32" else 0.05)
        if HAS_FMA:
            assert difference == 0  # every operation is rounded as in the C engine


def test_a_changed_weight_is_detected(scripts: Visit) -> None:
    """Negative control of the comparison above."""
    config = ModelConfig(16, 40, 1, 9)
    vocabulary = Vocabulary.of("abcdefghijklmnop")
    weights = random_weights(config, 1, SCALE)
    ids = np.random.default_rng(1).integers(0, 16, POSITIONS)
    expected = engine_logits(config, weights, ids, "fp32")
    weights["recurrence.weight_hh_l0"][3, 5] *= 1.01
    found = page_logits(scripts, page_model(config, vocabulary, weights, "fp32"), ids)
    assert np.abs(found - expected).max() > TOLERANCE


@pytest.mark.parametrize(
    ("precision", "part", "replaced", "least"),
    [
        ("int8", "f32(Math.max(-1, Math.min(1, h)) * 127 + MAGIC) - MAGIC", "Math.floor(h * 127)", TOLERANCE),
        ("int8", "s3 += w[i + 3] * v", "s3 += w[i + 3] * (v | 1)", TOLERANCE),
        ("fp32", "s2 = f32(w[i + 2] * v + s2)", "s2 = f32(f32(w[i + 2] * v) + s2)", 0),
        ("fp32", "f32(FIRST_TERM * rest + T1)", "T1", 0),
    ],
)
def test_a_changed_rounding_is_detected(
    browser: Browser, tmp_path: Path, precision: str, part: str, replaced: str, least: float
) -> None:
    """Negative control: of a product, of a hidden value in 8 bits, and of the exponential."""
    with open_engine(browser, tmp_path, (part, replaced)) as page:
        assert compared(page, ModelConfig(16, 40, 1, 9), precision) > least


def test_a_boundary_resets_the_state(scripts: Visit) -> None:
    vocabulary = Vocabulary.of("ab|cde").with_boundary("|")
    config = ModelConfig(6, 12, 2, 4, "gru", boundary=vocabulary.boundary_id)
    weights = random_weights(config)
    model = page_model(config, vocabulary, weights, "fp32")
    ids = np.array([0, 1, 2, config.boundary, 3, config.boundary, 3])
    found = page_logits(scripts, model, ids)
    assert np.abs(found - engine_logits(config, weights, ids, "fp32")).max() <= TOLERANCE
    assert np.array_equal(found[4], found[6])
    without = page_logits(
        scripts, PageModel({**model.header, "boundary": None, "boundaryText": None}, model.weights), ids
    )
    assert not np.array_equal(without[4], without[6])


def test_a_page_contains_its_model(browser: Browser, tmp_path: Path) -> None:
    """`logits` of a page with base 85 weights, for a text with characters outside of the first plane."""
    vocabulary = Vocabulary.of("ab日😀\u2028<")
    config = ModelConfig(len(vocabulary), 13, 2, 5, "peephole")
    weights = random_weights(config)
    file = tmp_path / "page.html"
    engine_page(file, config, vocabulary, weights, "fp32")
    text = "日<😀a\u2028b" * 30
    with visit(browser, file) as page:
        found = np.array(page.run("(text) => charlstm.logits(text)", text))
        assert page.incidents == []
        expected = engine_logits(config, weights, vocabulary.encode(text), "fp32")[-1]
        assert np.abs(found - expected).max() <= TOLERANCE
        with pytest.raises(Exception, match="the model has no symbol for x"):
            page.run("charlstm.logits('x')")


RECORDED = """([header, weights, ids, clamp]) => {
    const block = Uint8Array.from(atob(weights), (letter) => letter.charCodeAt(0));
    const model = new charlstmEngine.Model(header, block.buffer);
    const state = model.zeroState();
    const plain = (array) => array && Array.from(array);
    return ids.map((id) => {
        const record = [];
        const logits = plain(model.step(id, state, { record, clamp }));
        return { logits, layers: record.map(({ gates, h, c }) => ({ gates: plain(gates), h: plain(h), c: plain(c) })) };
    });
}"""


def recorded(page: Visit, config: ModelConfig, weights: Weights, clamp: list[dict[str, Any]] | None) -> Any:
    vocabulary = Vocabulary.of("".join(map(chr, range(97, 97 + config.vocab_size))))
    model = page_model(config, vocabulary, weights, "fp32")
    ids = np.random.default_rng(3).integers(0, config.vocab_size, 20).tolist()
    return page.run(RECORDED, [model.header, base64.b64encode(model.weights).decode(), ids, clamp])


@pytest.mark.parametrize("cell", CELLS)
def test_the_recorded_gates_give_the_recorded_state(scripts: Visit, cell: Cell) -> None:
    config = ModelConfig(7, 10, 2, 4, cell)
    weights = random_weights(config)
    steps = recorded(scripts, config, weights, None)
    for layer in range(2):
        old_h, old_c = np.zeros(10), np.zeros(10)
        for step in steps:
            found = step["layers"][layer]
            gates = np.array(found["gates"]).reshape(-1, 10)
            h, c = np.array(found["h"]), np.array(found["c"] if found["c"] is not None else [])
            if cell == "coupled":
                f, g, o = gates
                expected_c = f * old_c + (1 - f) * g
            elif cell in ("lstm", "peephole"):
                i, f, g, o = gates
                expected_c = f * old_c + i * g
            if cell == "gru":
                r, z, n = gates
                assert h == pytest.approx((1 - z) * n + z * old_h, abs=1e-6)
                assert np.all((r > 0) & (r < 1))
            elif cell == "rnn":
                assert h == pytest.approx(gates[0])
            else:
                assert c == pytest.approx(expected_c, abs=1e-6)
                assert h == pytest.approx(o * np.tanh(c), abs=1e-6)
                assert not np.array_equal(c, old_c)
                old_c = c
            old_h = h
    projected = np.array([step["layers"][1]["h"] for step in steps]) @ weights["projection.weight"].T
    assert projected + weights["projection.bias"] == pytest.approx(
        np.array([step["logits"] for step in steps]), abs=1e-5
    )


def test_a_clamped_unit_keeps_its_value_and_changes_the_logits(scripts: Visit) -> None:
    config = ModelConfig(7, 10, 2, 4)
    weights = random_weights(config)
    free = recorded(scripts, config, weights, None)
    clamp: list[dict[str, Any]] = [
        {"layer": 0, "unit": 3, "quantity": "c", "value": 2.5},
        {"layer": 1, "unit": None, "quantity": "o", "value": 0.25},
        {"layer": 1, "unit": 4, "quantity": "h", "value": -1},
    ]
    for before, after in zip(free, recorded(scripts, config, weights, clamp), strict=True):
        assert after["layers"][0]["c"][3] == 2.5
        assert after["layers"][0]["h"][3] != before["layers"][0]["h"][3]
        assert after["layers"][1]["gates"][30:] == [0.25] * 10
        assert after["layers"][1]["h"][4] == -1
        assert after["logits"] != before["logits"]
    held: list[dict[str, Any]] = [
        {"layer": k, "unit": None, "quantity": q, "value": v} for k in (0, 1) for q, v in (("f", 1), ("i", 0))
    ]
    assert all(step["layers"][1]["c"] == [0] * 10 for step in recorded(scripts, config, weights, held))
    with pytest.raises(Exception, match="the cell has no x"):
        recorded(scripts, config, weights, [{"layer": 0, "unit": None, "quantity": "x", "value": 0}])


def test_bytes_are_decoded_as_python_does(scripts: Visit) -> None:
    """Valid and invalid UTF-8, cut anywhere; and back."""
    vocabulary = ByteVocabulary()
    text = "a\u00e9日😀\ufeff\0\x7f".encode()
    random = np.random.default_rng(5)
    texts = [bytes(random.integers(0, 256, 12).tolist()) for _ in range(200)]
    texts += [text[begin:end] for begin in range(len(text)) for end in range(begin, len(text) + 1)]
    header = {"characters": None, "boundary": None, "boundaryText": None, "start": 10}
    script = """([header, texts]) => texts.map((ids) => {
        const vocabulary = new charlstmText.Vocabulary(header);
        const text = vocabulary.decode(ids);
        const { length, state } = charlstmText.incompleteSuffix(ids);
        return { codes: Array.from({ length: text.length }, (_, k) => text.charCodeAt(k)), ids: vocabulary.encode(text),
            length, state };
    })"""
    for data, found in zip(texts, scripts.run(script, [header, [list(data) for data in texts]]), strict=True):
        ids = np.frombuffer(data, np.uint8)
        expected = vocabulary.decode(ids).encode("utf-16-le", "surrogatepass")
        assert found["codes"] == np.frombuffer(expected, "<u2").tolist()
        assert found["ids"] == list(data)
        assert (found["length"], found["state"]) == (
            vocabulary.incomplete_suffix_length(ids),
            vocabulary.state_after(ids),
        )
