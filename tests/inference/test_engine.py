"""Compare the engine with the equations: every cell, every instruction set of this machine, and numpy."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from charlstm.config import Cell, ModelConfig
from charlstm.errors import CheckpointError, UsageError
from charlstm.inference import filters, native
from charlstm.inference.automaton import Automaton
from charlstm.inference.engine import Engine
from charlstm.inference.filters import SamplingRule
from tests.helpers.commands import ROOT
from tests.helpers.engines import BACKENDS, ISAS, biased
from tests.helpers.models import CELLS, Weights, chance, equations, losses, random_weights, real_ids


def make(config: ModelConfig, weights: Weights, backend: str, **options: Any) -> Engine:
    if backend == "numpy":
        return Engine(config, weights, precision="fp32", backend="numpy")
    return Engine(config, weights, **{"precision": "fp32", **options}, backend="native", isa=backend)


def logits_of(engine: Engine, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the logits (T, B, V) after each of the ids (T, B), beginning with the zero state."""
    state, logits = engine.zero_state(ids.shape[1]), []
    for symbols in ids:
        out, state = engine.step(symbols, state)
        logits.append(out)
    return np.stack(logits)


# ---- the equations ----


@pytest.mark.parametrize("cell", CELLS)
def test_logits_equal_the_equations_on_ten_thousand_characters_of_text(cell: Cell) -> None:
    text, vocabulary = real_ids(10_000)
    ids = text.reshape(25, 400).T
    config = ModelConfig(len(vocabulary), hidden=43, layers=2, embedding=19, cell=cell)
    weights = random_weights(config)
    expected, _ = equations(config, weights, ids, np.zeros(config.state_shape(25)))
    for backend in BACKENDS:
        assert np.abs(logits_of(make(config, weights, backend), ids) - expected).max() < 1e-5, backend


@pytest.mark.slow
@pytest.mark.parametrize("cell", CELLS)
def test_logits_equal_the_equations_for_one_stream_of_a_large_model(cell: Cell) -> None:
    text, vocabulary = real_ids(10_000)
    config = ModelConfig(len(vocabulary), hidden=512, layers=2, embedding=128, cell=cell)
    weights = random_weights(config)
    expected, _ = equations(config, weights, text[:, None], np.zeros(config.state_shape(1)))
    assert np.abs(logits_of(Engine(config, weights, precision="fp32"), text[:, None]) - expected).max() < 1e-5


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(
    ("vocabulary", "hidden", "layers", "embedding"), [(1, 1, 1, 1), (2, 3, 3, 5), (16, 16, 1, 16), (70, 33, 1, 2)]
)
def test_shapes_that_do_not_fill_a_block_are_computed_correctly(
    cell: Cell, vocabulary: int, hidden: int, layers: int, embedding: int
) -> None:
    config = ModelConfig(vocabulary, hidden, layers, embedding, cell)
    weights = random_weights(config, scale=2.0)
    ids = np.random.default_rng(1).integers(0, vocabulary, (5, 11))
    expected, state = equations(config, weights, ids, np.zeros(config.state_shape(11)))
    for backend in BACKENDS:
        engine = make(config, weights, backend)
        assert np.abs(logits_of(engine, ids) - expected).max() < 1e-5, backend
        assert np.abs(engine.advance(ids, engine.zero_state(11)) - state).max() < 1e-5, backend


@pytest.mark.parametrize("cell", CELLS)
def test_a_vocabulary_too_large_for_the_input_table_is_computed_correctly(cell: Cell) -> None:
    config = ModelConfig(20_000, hidden=30, layers=2, embedding=9, cell=cell)
    weights = random_weights(config)
    ids = np.random.default_rng(1).integers(0, 20_000, (4, 7))
    expected, _ = equations(config, weights, ids, np.zeros(config.state_shape(7)))
    for backend in BACKENDS:
        assert np.abs(logits_of(make(config, weights, backend), ids) - expected).max() < 1e-5, backend


@pytest.mark.fault("R83")
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_swapped_pair_of_gates_is_detected(backend: str) -> None:
    config = ModelConfig(20, hidden=24, layers=1, embedding=8)
    weights = random_weights(config)
    swapped = dict(weights)
    for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"):
        i, f, g, o = np.split(weights[f"recurrence.{name}"], 4)
        swapped[f"recurrence.{name}"] = np.concatenate([f, i, g, o])
    ids = np.random.default_rng(1).integers(0, 20, (6, 3))
    expected, _ = equations(config, weights, ids, np.zeros(config.state_shape(3)))
    assert np.abs(logits_of(make(config, swapped, backend), ids) - expected).max() > 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", ["rnn", "gru"])
def test_the_error_of_tanh_and_sigmoid_is_below_2e_7(cell: Cell, backend: str) -> None:
    x = np.linspace(-30, 30, 5000, dtype=np.float32)
    config = ModelConfig(len(x), hidden=1, embedding=1, cell=cell)
    weights = {name: np.zeros(shape, np.float32) for name, shape in config.shapes().items()}
    weights["embedding.weight"] = x[:, None]
    weights["recurrence.weight_ih_l0"][0] = 1.0  # rnn: h = tanh(x). gru: r = σ(x), n = tanh(r·u), z = σ(0) = ½
    weights["recurrence.bias_hh_l0"][-1] = 0.0 if cell == "rnn" else 1.0
    engine = make(config, weights, backend)
    h = engine.advance(np.arange(len(x))[None], engine.zero_state(len(x)))[0, 0, :, 0]
    exact = x.astype(np.float64)
    expected = np.tanh(exact) if cell == "rnn" else 0.5 * np.tanh(0.5 + 0.5 * np.tanh(exact / 2))
    assert np.abs(h - expected).max() < 2e-7


# ---- documents ----


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("vocabulary", [9, 20_000])  # the first layer uses a table of products, or multiplies
def test_a_boundary_resets_the_state_of_its_own_stream_only(cell: Cell, vocabulary: int) -> None:
    config = ModelConfig(vocabulary, hidden=30, layers=2, embedding=9, cell=cell, boundary=4)
    weights = random_weights(config)
    rng = np.random.default_rng(1)
    ids = rng.integers(0, 9, (40, 29))
    begin = rng.uniform(-0.9, 0.9, config.state_shape(29)).astype(np.float32)
    logits, state = equations(config, weights, ids, begin.astype(np.float64))
    for backend in BACKENDS:
        engine = make(config, weights, backend)
        nats, _ = engine.score(ids, begin)
        assert np.abs(nats - losses(logits[:-1], ids[1:])).max() < 2e-5, backend
        assert np.abs(engine.advance(ids, begin) - state).max() < 1e-5, backend
        carried = make(replace(config, boundary=None), weights, backend).score(ids, begin)[0]
        assert np.abs(carried - nats).max() > 1e-3, backend  # negative control


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("cell", CELLS)
def test_the_text_before_a_boundary_changes_no_bit_after_it(cell: Cell, isa: str, precision: str) -> None:
    config = ModelConfig(30, hidden=400, layers=2, embedding=8, cell=cell, boundary=0)
    weights = random_weights(config)
    weights["projection.bias"][0] = 1.0  # the boundary is sampled several times
    engine = make(config, weights, isa, precision=precision, threads=2)
    rng = np.random.default_rng(1)
    states = rng.uniform(-0.9, 0.9, config.state_shape(3)).astype(np.float32)
    for _ in range(3):  # the thread tuner tries one thread, then two, then takes the faster
        begun, zero = (engine.step([0, 5, 0], state)[1] for state in (states, engine.zero_state(3)))
        assert np.array_equal(begun[:, :, [0, 2]], zero[:, :, [0, 2]])
        assert not np.array_equal(begun[:, :, 1], zero[:, :, 1])
        assert np.array_equal(begun[:, :, 1], engine.step([5], states[:, :, 1:2])[1][:, :, 0])
    for streams in ([0], [0, 1, 2]):  # reading the generated symbols must give the state of generating them
        count = len(streams)
        begin = np.ascontiguousarray(states[:, :, :count])
        generated, state = engine.generate([1, 2, 3][:count], begin, 200, SamplingRule(1.0), seed=3, streams=streams)
        assert (generated == 0).any(axis=0).all()
        read = np.concatenate([[[1, 2, 3][:count]], generated[:-1]])
        assert np.array_equal(engine.advance(read, begin), state)


# ---- int8 ----


def rounded(config: ModelConfig, weights: Weights) -> Weights:
    """Return the weights as an int8 engine uses them: each row rounded to 1/127 of its largest absolute value."""

    def to_steps(matrix: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        scale = np.abs(matrix).max(axis=1, keepdims=True) / 127
        return np.asarray(np.rint(matrix / scale) * scale, np.float32)

    products = {"projection.weight"} | {name for name in weights if "weight_hh" in name}
    products |= {f"recurrence.weight_ih_l{layer}" for layer in range(1, config.layers)}
    return {name: to_steps(array) if name in products else array for name, array in weights.items()}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("cell", CELLS)
def test_int8_equals_the_equations_with_rounded_weights_and_rounded_h(cell: Cell, isa: str) -> None:
    config = ModelConfig(21, hidden=35, layers=1, embedding=9, cell=cell)
    weights = random_weights(config)
    engine = make(config, weights, isa, precision="int8")
    rng = np.random.default_rng(1)
    state = rng.uniform(-0.9, 0.9, config.state_shape(9)).astype(np.float32)
    ids = rng.integers(0, 21, 9)
    after = state.astype(np.float64)
    after[0, 0] = np.rint(after[0, 0] * 127) / 127
    if cell != "gru":  # a GRU also uses the previous h without rounding
        _, expected = equations(config, rounded(config, weights), ids[None], after)
        assert np.abs(engine.step(ids, state)[1] - expected).max() < 1e-6
    logits, new = engine.step(ids, state)
    h = np.rint(new[0, 0].astype(np.float64) * 127) / 127
    w = rounded(config, weights)
    assert np.abs(logits - (h @ w["projection.weight"].T.astype(np.float64) + w["projection.bias"])).max() < 2e-5


@pytest.mark.parametrize("cell", CELLS)
def test_int8_is_close_to_the_equations_on_every_instruction_set(cell: Cell) -> None:
    text, vocabulary = real_ids(10_000)
    ids = text[:2000].reshape(10, 200).T
    config = ModelConfig(len(vocabulary), hidden=43, layers=2, embedding=19, cell=cell)
    weights = random_weights(config)
    expected, _ = equations(config, weights, ids, np.zeros(config.state_shape(10)))
    for isa in native.isas():
        found = logits_of(make(config, weights, isa, precision="int8"), ids)
        assert 1e-6 < np.abs(found - expected).max() < 0.05, isa


# ---- choices that must not change a result ----


@pytest.mark.fault("R82")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", CELLS)
def test_reading_a_text_in_parts_gives_the_same_state(cell: Cell, backend: str) -> None:
    config = ModelConfig(20, hidden=24, layers=2, embedding=8, cell=cell)
    engine = make(config, random_weights(config), backend)
    ids = np.random.default_rng(1).integers(0, 20, (50, 3))
    parts = engine.advance(ids[17:], engine.advance(ids[:17], engine.zero_state(3)))
    assert np.array_equal(parts, engine.advance(ids, engine.zero_state(3)))


@pytest.mark.parametrize("isa", ISAS)
def test_int8_rounds_h_between_calls_as_within_a_call(isa: str) -> None:
    """If h were rounded to a float before it is rounded to 8 bits, one value in many thousands would differ."""
    config = ModelConfig(20, hidden=64, layers=1, embedding=8)
    engine = make(config, random_weights(config, scale=6), isa, precision="int8")
    ids = np.random.default_rng(1).integers(0, 20, (6000, 4))
    state, nats = engine.zero_state(4), []
    for t in range(len(ids) - 1):
        found, state = engine.score(ids[t : t + 2], state)
        nats.append(found)
    assert np.array_equal(np.concatenate(nats), engine.score(ids, engine.zero_state(4))[0])


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("isa", ISAS)
def test_a_sequence_gives_the_same_bits_alone_and_in_a_batch(isa: str, precision: str) -> None:
    config = ModelConfig(50, hidden=40, layers=2, embedding=8)
    engine = make(config, random_weights(config), isa, precision=precision)
    ids = np.random.default_rng(1).integers(0, 50, (30, 150))
    together = logits_of(engine, ids)
    for text in (0, 5, 63, 64, 149):
        assert np.array_equal(together[:, text], logits_of(engine, ids[:, text : text + 1])[:, 0])


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.skipif(not native.isas(), reason="the native engine was not compiled")
def test_the_number_of_threads_changes_no_bit(precision: Any) -> None:
    config = ModelConfig(90, hidden=400, layers=2, embedding=16)
    weights = random_weights(config)
    results = []
    for threads in (1, 2, 3, 5):
        engine = Engine(config, weights, precision=precision, threads=threads)
        assert f"{threads} thread" in engine.description
        state = engine.zero_state(3)
        blocks: list[Any] = []
        for position in range(0, 60, 6):  # the first calls of the thread tuner try one thread, two and all
            symbols, state = engine.generate(
                [1, 2, 3] if not blocks else blocks[-1][-1], state, 6, SamplingRule(1.0), seed=7, position=position
            )
            blocks.append(symbols)
        results.append((np.concatenate(blocks), state))
    for symbols, state in results[1:]:
        assert np.array_equal(symbols, results[0][0])
        assert np.array_equal(state, results[0][1])


def test_a_call_does_not_change_the_state_it_was_given() -> None:
    config = ModelConfig(20, hidden=24, embedding=8)
    for backend in BACKENDS:
        engine = make(config, random_weights(config), backend)
        state = engine.zero_state(2)
        engine.advance(np.ones((5, 2), int), state)
        engine.score(np.ones((5, 2), int), state)
        engine.generate([1, 2], state, 5, SamplingRule(1.0), seed=1)
        assert not state.any()


# ---- scoring ----


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", CELLS)
def test_scores_equal_the_loss_of_the_equations(cell: Cell, backend: str) -> None:
    text, vocabulary = real_ids(10_000)
    ids = text[:3000].reshape(30, 100).T
    config = ModelConfig(len(vocabulary), hidden=20, layers=1, embedding=6, cell=cell)
    weights = random_weights(config)
    weights["projection.weight"] *= 20  # so that the symbols' probabilities differ
    logits, state = equations(config, weights, ids[:-1], np.zeros(config.state_shape(30)))
    engine = make(config, weights, backend)
    nats, found = engine.score(ids, engine.zero_state(30))
    assert np.abs(nats - losses(logits, ids[1:])).max() < 2e-5
    assert np.abs(found - state).max() < 1e-5


@pytest.mark.fault("R81")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("vocabulary", [1, 2, 65, 3000])
def test_a_model_with_zero_weights_scores_exactly_log_v(vocabulary: int, backend: str) -> None:
    config = ModelConfig(vocabulary, hidden=3, embedding=2)
    weights = {name: np.zeros(shape, np.float32) for name, shape in config.shapes().items()}
    engine = make(config, weights, backend)
    nats, _ = engine.score(np.zeros((4, 2), int), engine.zero_state(2))
    assert np.abs(nats - np.log(vocabulary)).max() < 1e-14


# ---- sampling ----


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0, 3.0])
def test_native_sampling_equals_numpy_sampling_for_the_same_logits(isa: str, temperature: float) -> None:
    config = ModelConfig(70, hidden=30, embedding=8)
    weights = random_weights(config)
    weights["projection.weight"] *= 30
    engine = make(config, weights, isa)
    streams = np.array([3, 10**12, 0])
    symbols, _ = engine.generate(
        [1, 2, 3], engine.zero_state(3), 700, SamplingRule(temperature), seed=2**63 - 1, position=5, streams=streams
    )
    state = engine.zero_state(3)
    for t, read in enumerate([np.array([1, 2, 3]), *symbols[:-1]]):
        logits, state = engine.step(read, state)
        assert np.array_equal(
            symbols[t], filters.sample(logits, SamplingRule(temperature), filters.uniform(2**63 - 1, streams, 5 + t))
        )


@pytest.mark.fault("R75")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_sampled_symbols_follow_the_softmax(temperature: float, backend: str) -> None:
    logits = np.linspace(-2, 2, 17, dtype=np.float32)
    config = ModelConfig(17, hidden=1, embedding=1)
    weights = {name: np.zeros(shape, np.float32) for name, shape in config.shapes().items()}
    weights["projection.bias"] = logits
    engine = make(config, weights, backend)
    count, length = (64, 1600) if backend != "numpy" else (3200, 32)
    symbols, _ = engine.generate(
        np.zeros(count, int), engine.zero_state(count), length, SamplingRule(temperature), seed=11
    )
    softmax = np.exp(logits.astype(float) / temperature)
    observed = np.bincount(symbols.ravel(), minlength=17)
    assert chance(observed, softmax) > 1e-4
    assert chance(observed[::-1], softmax) < 1e-9  # negative control: the reversed distribution does not fit


@pytest.mark.fault("R73")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("temperature", [0.0, 5e-324, 1e-9, 1.0, 1e9, 1e308])
@pytest.mark.parametrize("size", [1.0, 1e4, 1e38])
def test_extreme_logits_and_temperatures_sample_a_possible_symbol(
    size: float, temperature: float, backend: str
) -> None:
    config = ModelConfig(5, hidden=1, embedding=1)
    weights = {name: np.zeros(shape, np.float32) for name, shape in config.shapes().items()}
    weights["projection.bias"] = np.array([-1, 1, 1, 0.5, -np.inf], np.float32) * np.float32(size)
    engine = make(config, weights, backend)
    symbols, _ = engine.generate([0] * 50, engine.zero_state(50), 20, SamplingRule(temperature), seed=1)
    counts = np.bincount(symbols.ravel(), minlength=5)
    assert counts[4] == 0  # a logit of −∞
    if temperature == 0:
        assert counts[1] == 1000
    elif temperature / size < 1e-3:
        assert counts[0] == counts[3] == 0
    elif temperature / size > 1e3:
        assert np.abs(counts[:4] - 250).max() < 60
    assert not np.isnan(engine.score(np.zeros((3, 1), int), engine.zero_state(1))[0]).any()


@pytest.mark.fault("R58")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("cell", CELLS)
def test_weights_that_overflow_are_an_error_and_are_not_sampled_from(cell: Cell, backend: str) -> None:
    config = ModelConfig(7, hidden=18, layers=2, embedding=4, cell=cell)
    for size in (1e30, 3e38):
        weights = random_weights(config)
        for name in weights:
            weights[name] = np.where(weights[name] > 0, np.float32(size), np.float32(-size))
        for precision in ("fp32", "int8") if backend != "numpy" else ("fp32",):
            engine = make(config, weights, backend, precision=precision)
            nats, _ = engine.score(np.zeros((9, 2), int), engine.zero_state(2))
            if np.isfinite(nats).all():
                continue
            with pytest.raises(CheckpointError, match="not finite"):
                engine.generate([0, 1], engine.zero_state(2), 50, SamplingRule(1.0), seed=1)


# ---- invalid arguments ----


@pytest.mark.fault("R32")
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_error_for_a_malformed_state_names_both_shapes(backend: str) -> None:
    config = ModelConfig(7, hidden=8, layers=2, embedding=4)
    engine = make(config, random_weights(config), backend)
    good = engine.zero_state(3)
    for bad in (good[0], good[:, :, :2], good[..., :7], good.astype(np.float64), tuple(good), None, good[:, :1]):
        for call in (
            lambda state: engine.step([1, 2, 3], state),
            lambda state: engine.advance([[1, 2, 3]], state),
            lambda state: engine.score([[1, 2, 3]], state),
            lambda state: engine.generate([1, 2, 3], state, 1, SamplingRule(1.0), seed=1),
        ):
            with pytest.raises(ValueError, match=r"the state must be float32 \(2, 2, 3, 8\), found"):
                call(bad)


def loop(symbols: int) -> Automaton:
    """Return the automaton of one state that allows every symbol."""
    return Automaton.of_table(np.zeros((1, symbols), np.uint8))


@pytest.mark.parametrize("backend", BACKENDS)
def test_malformed_ids_and_options_are_refused(backend: str) -> None:
    config = ModelConfig(7, hidden=8, embedding=4)
    engine = make(config, random_weights(config), backend)
    for ids in ([7], [-1], [2**40], [1.0], [], [[1]], 1, ["a"]):
        with pytest.raises(ValueError, match="ids must"):
            engine.step(ids, engine.zero_state(1))
    none_allowed, too_few = np.zeros(7, bool), np.ones(6, bool)
    for rule in ({"temperature": -1}, {"temperature": np.nan}, {"top_p": 1.1}, {"min_p": -0.1}, {"typical": np.nan},
                 {"top_k": -1}, {"penalty": 0}, {"window": -1}, {"allowed": none_allowed},
                 {"automaton": loop(7), "allowed": ~none_allowed}):  # fmt: skip
        with pytest.raises(ValueError, match="invalid sampling rule: SamplingRule"):
            SamplingRule(**rule)
    for wrong in ({"length": 0}, {"streams": [1, 2]}, {"rule": SamplingRule(allowed=too_few)}, {"recent": [7]},
                  {"recent": [[7]]}, {"recent": [[1, 2]]},
                  {"rule": SamplingRule(automaton=loop(6))},
                  {"rule": SamplingRule(automaton=loop(7)), "phases": [1]},
                  {"rule": SamplingRule(automaton=Automaton.of_table(np.array([[0] * 7, [255] * 7], np.uint8))),
                   "phases": [1]},
                  {"rule": SamplingRule(automaton=loop(7)), "length": 2, "remaining": 1}):  # fmt: skip
        options: Any = {"length": 1, "rule": SamplingRule(1.0), "seed": 1, **wrong}
        with pytest.raises(ValueError, match="cannot sample"):
            engine.generate([1], engine.zero_state(1), **options)


def test_weights_that_do_not_match_the_config_are_named() -> None:
    config = ModelConfig(7, hidden=8, embedding=4)
    weights = random_weights(config)
    lacking = {name: array for name, array in weights.items() if name != "projection.bias"}
    with pytest.raises(ValueError, match=r"projection\.bias"):
        Engine(config, lacking)
    with pytest.raises(ValueError, match=r"embedding\.weight must be float32 \(7, 4\), found float32 \(4, 7\)"):
        Engine(config, {**weights, "embedding.weight": weights["embedding.weight"].T})


def test_without_the_native_library_numpy_is_used_and_int8_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "library", lambda: None)
    config = ModelConfig(7, hidden=8, embedding=4)
    weights = random_weights(config)
    assert Engine(config, weights).description == "numpy (fp32)"
    for options in ({"precision": "int8"}, {"backend": "native"}):
        with pytest.raises(UsageError, match="install a C compiler"):
            Engine(config, weights, **options)  # type: ignore[arg-type]


@pytest.mark.skipif(not native.isas(), reason="the native engine was not compiled")
def test_the_library_refuses_sizes_out_of_range_before_it_reads_a_weight() -> None:
    engine = native.library()
    assert engine is not None
    good = {"cell": 0, "vocabulary": 5, "embedding": 3, "hidden": 4, "layers": 1, "int8": 0, "batch": 1, "threads": 1}
    bad = [{name: value} for name in good for value in (-1, -(2**31))]
    bad += [{name: 2**31 - 1} for name in good if name != "threads"]
    bad += [{"boundary": -2}, {"boundary": 5}, {"boundary": 2**31 - 1}]
    bad += [{"vocabulary": 0}, {"hidden": 0}, {"layers": 65}, {"cell": 5}, {"isa": 99}, {"batch": 0}, {"threads": 0}]
    for wrong in bad:
        options = native.Options(**{**good, "isa": -1, "boundary": -1, **wrong})
        error = ctypes.c_int()
        assert engine.engine_create(ctypes.byref(options), None, ctypes.byref(error)) is None, wrong
        assert error.value == 2


# ---- threads ----


@pytest.mark.skipif(not native.isas(), reason="the native engine was not compiled")
def test_idle_threads_sleep() -> None:
    config = ModelConfig(90, hidden=512, layers=1, embedding=16)
    engine = Engine(config, random_weights(config), threads=3)
    for position in range(6):
        engine.generate([1], engine.zero_state(), 4, SamplingRule(1.0), seed=7, position=position)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - before < 0.1


@pytest.mark.skipif(not native.isas() or sys.platform == "win32", reason="the native engine was not compiled")
def test_an_engine_survives_a_fork() -> None:
    program = """
import os, sys, warnings
warnings.simplefilter("ignore")
from tests.helpers.engines import BACKENDS, ISAS
from tests.helpers.models import random_weights
from charlstm.config import ModelConfig
from charlstm.inference.engine import Engine
from charlstm.inference.filters import SamplingRule
config = ModelConfig(90, hidden=512, layers=1, embedding=16)
engine = Engine(config, random_weights(config), threads=2)
rule = SamplingRule(1.0)
sample = lambda: [engine.generate([1], engine.zero_state(), 20, rule, seed=7)[0].tolist() for _ in range(4)]
first = sample()
child = os.fork()
same = sample() == first
del engine
if child == 0:
    os._exit(0 if same else 1)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or not same)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=30, cwd=ROOT).returncode == 0


def test_two_python_threads_may_share_an_engine() -> None:
    from concurrent.futures import ThreadPoolExecutor

    config = ModelConfig(30, hidden=64, embedding=16)
    engine = Engine(config, random_weights(config))

    def sample(seed: int) -> Any:
        return engine.generate([1], engine.zero_state(), 200, SamplingRule(1.0), seed=seed)[0].tolist()

    alone = [sample(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(sample, range(8))) == alone


def test_the_reference_equations_equal_the_layers_of_torch() -> None:
    """Compare the reference of this file with the layers of torch."""
    torch = pytest.importorskip("torch")
    config = ModelConfig(11, hidden=6, layers=2, embedding=5)
    layers: list[tuple[Cell, Any]] = [("lstm", torch.nn.LSTM), ("gru", torch.nn.GRU)]
    for cell, layer in layers:
        config = replace(config, cell=cell)
        weights = random_weights(config)
        module = layer(5, 6, 2).double()
        module.load_state_dict(
            {
                name.removeprefix("recurrence."): torch.tensor(array).double()
                for name, array in weights.items()
                if "_l" in name
            }
        )
        ids = np.random.default_rng(1).integers(0, 11, (7, 3))
        output, _ = module(torch.tensor(weights["embedding.weight"][ids]).double())
        expected = output.detach().numpy() @ weights["projection.weight"].T + weights["projection.bias"]
        found, _ = equations(config, weights, ids, np.zeros(config.state_shape(3)))
        assert np.abs(found - expected).max() < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("top", [1, 5, 17])
def test_the_most_probable_symbols_are_those_of_the_equations(top: int, backend: str) -> None:
    config = ModelConfig(17, hidden=9, embedding=4, layers=2)
    weights = {name: 3 * array for name, array in random_weights(config).items()}
    ids = np.random.default_rng(1).integers(0, 17, (12, 3))
    engine = make(config, weights, backend)
    nats, best, shares, state = engine.score_top(ids, engine.zero_state(3), top)
    logits, _ = equations(config, weights, ids[:-1], np.zeros(config.state_shape(3)))
    expected = np.exp(logits - logits.max(axis=2, keepdims=True))
    expected /= expected.sum(axis=2, keepdims=True)
    order = np.argsort(-expected, axis=2, kind="stable")[..., :top]
    assert (best == order).all()
    assert np.allclose(shares, np.take_along_axis(expected, order, 2), atol=1e-5)
    plain, after = engine.score(ids, engine.zero_state(3))
    assert np.array_equal(nats, plain)
    assert np.array_equal(state, after)
    for wrong in (0, 18):
        with pytest.raises(ValueError, match="top must be from 1 to 17"):
            engine.score_top(ids, engine.zero_state(3), wrong)


@pytest.mark.parametrize("backend", BACKENDS)
def test_of_equal_probabilities_the_first_symbol_is_returned_and_nan_gives_none(backend: str) -> None:
    engine = biased([1.0, 2.0, 2.0, 0.0, 2.0], backend)
    _, best, shares, _ = engine.score_top([[0], [1]], engine.zero_state(), 4)
    assert best[0, 0].tolist() == [1, 2, 4, 0]
    assert shares[0, 0].tolist() == pytest.approx(np.exp([2, 2, 2, 1]) / np.exp([1, 2, 2, 0, 2]).sum())
    infinite = biased([1.0, np.inf, 0.0], backend)
    nats, best, shares, _ = infinite.score_top([[0], [1]], infinite.zero_state(), 2)
    assert np.isnan(nats).all()
    assert np.isnan(shares).all()
    assert (best == -1).all()
