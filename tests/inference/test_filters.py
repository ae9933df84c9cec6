"""Compare filters of logits with hand-worked examples and with their definitions, and C with numpy."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charlstm.config import Cell, ModelConfig
from charlstm.inference import filters
from charlstm.inference.automaton import Automaton
from charlstm.inference.engine import Engine
from charlstm.inference.filters import SamplingRule
from tests.helpers.engines import BACKENDS, ISAS, biased, engine_of
from tests.helpers.models import CELLS, chance, random_weights

ALLOWED = np.arange(70) % 3 != 1
TRANSITIONS = np.random.default_rng(0).choice(np.array([0, 1, 2, 255], np.uint8), (3, 70), p=[0.1, 0.1, 0.1, 0.7])
RULES = {
    "top-k": SamplingRule(1.0, top_k=5),
    "top-p": SamplingRule(1.0, top_p=0.7),
    "min-p": SamplingRule(1.0, min_p=0.1),
    "typical": SamplingRule(1.0, typical=0.6),
    "penalty": SamplingRule(0.7, penalty=1.3, window=20),
    "reward": SamplingRule(1.0, penalty=0.8, window=1),
    "allowed": SamplingRule(1.0, allowed=ALLOWED),
    "greedy": SamplingRule(0.0, top_k=3, penalty=1.5, window=9, allowed=ALLOWED),
    "all": SamplingRule(1.5, 20, 0.95, 0.02, 0.9, 1.2, 64, ALLOWED),
    "one": SamplingRule(1.0, top_p=0.0),
    "automaton": SamplingRule(1.5, automaton=Automaton.of_table(TRANSITIONS)),
    "automaton and all": SamplingRule(1.5, 20, 0.95, 0.02, 0.9, 1.2, 64, None, Automaton.of_table(TRANSITIONS)),
}


def walked(rule: SamplingRule, phases: Any, symbols: Any) -> Any:
    """Return the states of the rule's automaton after the symbols (T, B)."""
    for row in symbols:
        phases = phases if rule.automaton is None else rule.automaton.after(phases, row)
    return phases


# ---- hand-worked examples ----


@pytest.mark.fault("R74")
@pytest.mark.parametrize(
    ("weights", "k", "kept"),
    [
        ([8, 1, 4, 2], 2, [8, 0, 4, 0]),
        ([8, 1, 4, 2], 1, [8, 0, 0, 0]),
        ([8, 1, 4, 2], 9, [8, 1, 4, 2]),
        ([1, 4, 4, 4], 2, [0, 4, 4, 0]),  # of equal weights the first: exactly k are kept
        ([2, 2, 2, 2], 3, [2, 2, 2, 0]),
    ],
)
def test_top_k_keeps_exactly_the_k_largest_probabilities(weights: list[float], k: int, kept: list[float]) -> None:
    assert filters.top_k(np.array(weights, float), k).tolist() == kept


@pytest.mark.parametrize(
    ("p", "kept"),
    [
        (0.0, [8, 0, 0, 0]),  # at least one is kept
        (0.5, [8, 0, 0, 0]),  # 8/16 is enough
        (0.5001, [8, 0, 4, 0]),
        (0.75, [8, 0, 4, 0]),
        (0.8, [8, 0, 4, 3]),
        (0.9375, [8, 0, 4, 3]),
        (0.94, [8, 1, 4, 3]),
    ],
)
def test_top_p_keeps_the_smallest_set_with_that_probability(p: float, kept: list[float]) -> None:
    """The probabilities are 8, 1, 4 and 3 sixteenths."""
    assert filters.top_p(np.array([8.0, 1, 4, 3]), p).tolist() == kept


def test_top_p_keeps_the_first_of_equal_probabilities() -> None:
    assert filters.top_p(np.array([1.0, 1, 1, 1]), 0.5).tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize(
    ("share", "kept"),
    [(0.0, [8, 1, 4, 3]), (0.125, [8, 1, 4, 3]), (0.2, [8, 0, 4, 3]), (0.5, [8, 0, 4, 0]), (1.0, [8, 0, 0, 0])],
)
def test_min_p_keeps_probabilities_of_at_least_that_share_of_the_largest(share: float, kept: list[float]) -> None:
    """The thresholds are 0, 1, 1.6, 4 and 8."""
    assert filters.min_p(np.array([8.0, 1, 4, 3]), share).tolist() == kept


@pytest.mark.parametrize(
    ("mass", "kept"),
    [
        (0.0, [0, 2, 0, 0, 0]),
        (0.25, [0, 2, 0, 0, 0]),
        (0.26, [4, 2, 0, 0, 0]),
        (0.75, [4, 2, 0, 0, 0]),
        (0.76, [4, 2, 1, 0, 0]),
        (0.9, [4, 2, 1, 1, 0]),
    ],
)
def test_typical_keeps_symbols_whose_surprisal_is_close_to_the_entropy(mass: float, kept: list[float]) -> None:
    """4, 2, 1 and 1 eighths have 1, 2, 3 and 3 bits and an entropy of 1.75: distances 0.75, 0.25, 1.25 and 1.25.

    So the most likely symbol is the second to be kept. A symbol of probability 0 is never kept.
    """
    assert filters.typical(np.array([4.0, 2, 1, 1, 0]), mass).tolist() == kept


@pytest.mark.parametrize("scale", [1.0, 3.0, 0.1])
def test_typical_keeps_the_likelier_of_equal_distances_despite_rounding(scale: float) -> None:
    """1/2, 1/4 and 1/4 have 1, 2 and 2 bits and an entropy of 1.5: all distances are half a bit."""
    assert np.count_nonzero(filters.typical(np.array([1.0, 2, 1]) * scale, 0.5)) == 1
    assert filters.typical(np.array([1.0, 2, 1]) * scale, 0.5)[1]
    assert np.flatnonzero(filters.typical(np.array([1.0, 2, 1]) * scale, 0.6)).tolist() == [0, 1]


def test_the_penalty_divides_positive_logits_and_multiplies_negative_ones() -> None:
    logits = np.array([[2.0, -2.0, 0.0, 3.0], [2.0, -2.0, 0.0, 3.0]])
    recent = np.array([[3, 3], [1, -1], [0, 2], [1, 2]])  # a symbol that occurs twice is penalised once
    rule = SamplingRule(penalty=2.0, window=3)  # the symbol 3 is before the window
    assert filters.adjusted(logits, rule, recent).tolist() == [[1, -4, 0, 3], [2, -2, 0, 3]]
    assert filters.adjusted(logits, SamplingRule(penalty=2.0, window=4), recent)[1].tolist() == [2, -2, 0, 1.5]


def test_the_parts_of_a_rule_apply_in_the_stated_order() -> None:
    """The probabilities are 8, 4, 2, 1 and 1 sixteenths; each filter sees only what the earlier ones keep."""
    logits = np.log([8.0, 4, 2, 1, 1])

    def kept(**rule: Any) -> list[int]:
        return np.flatnonzero(filters.filtered(logits, SamplingRule(**rule))).tolist()

    assert kept(top_p=0.6) == [0, 1]
    assert kept(top_p=0.6, top_k=2) == [0]  # 8 of 12
    assert kept(top_p=0.6, allowed=np.array([False, True, True, True, True])) == [1, 2]  # 6 of 8
    assert kept(top_p=0.6, temperature=0.5) == [0]  # 64 of 86
    assert kept(top_p=0.9, min_p=0.25) == [0, 1, 2]
    assert kept(top_p=0.72, min_p=0.25) == [0, 1]  # if min-p came first: 14 are kept, and 0.72 × 14 < 12
    assert kept(top_p=0.85, min_p=0.25) == [0, 1, 2]  # 14 of 16; if min-p came first, 12 of 14 would be enough
    assert kept(typical=0.2) == [1]  # 2 bits; the entropy is 1.875
    assert kept(typical=0.2, min_p=0.5) == [0]  # 2/3 and 1/3: 0.58 and 1.58 bits, the entropy is 0.92
    rule = SamplingRule(penalty=4.0, window=1, top_k=1)
    assert np.flatnonzero(filters.filtered(logits, rule, np.array([0]))).tolist() == [1]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_or_infinite_logits_are_an_error_even_if_not_allowed(bad: float) -> None:
    with pytest.raises(FloatingPointError):
        filters.filtered(np.array([0.0, bad]), SamplingRule(allowed=np.array([True, False])))


# ---- definitions ----

whole_weights = st.lists(st.integers(0, 9), min_size=1, max_size=7).filter(any)


@given(whole_weights, st.integers(0, 16))
def test_top_p_is_the_smallest_of_all_sets_with_that_probability(weights: list[int], sixteenths: int) -> None:
    """Try all subsets; integers and a binary fraction avoid any rounding."""
    sets = [s for n in range(1, len(weights) + 1) for s in itertools.combinations(range(len(weights)), n)]
    enough = [s for s in sets if 16 * sum(weights[k] for k in s) >= sixteenths * sum(weights)]
    smallest = [s for s in enough if len(s) == len(enough[0])]
    best = max(smallest, key=lambda s: sum(weights[k] for k in s))  # the first of the most likely sets
    found = filters.top_p(np.array(weights, float), sixteenths / 16)
    assert np.flatnonzero(found).tolist() == [k for k in best if weights[k]]


@given(whole_weights, st.integers(1, 8))
def test_top_k_is_the_head_of_the_sorted_list(weights: list[int], k: int) -> None:
    head = sorted(range(len(weights)), key=lambda symbol: (-weights[symbol], symbol))[:k]
    found = filters.top_k(np.array(weights, float), k)
    assert np.flatnonzero(found).tolist() == sorted(symbol for symbol in head if weights[symbol])


@given(whole_weights, st.integers(0, 15))
def test_typical_is_the_head_of_the_list_by_distance_from_the_entropy(weights: list[int], sixteenths: int) -> None:
    total = sum(weights)
    bits = [-math.log2(w / total) if w else math.inf for w in weights]
    entropy = sum(w / total * b for w, b in zip(weights, bits, strict=True) if w)
    possible = [symbol for symbol, w in enumerate(weights) if w]
    order = sorted(possible, key=lambda symbol: (round(abs(bits[symbol] - entropy), 8), -weights[symbol], symbol))
    kept, mass = [order[0]], weights[order[0]]
    for symbol in order[1:]:
        if 16 * mass >= sixteenths * total:
            break
        kept.append(symbol)
        mass += weights[symbol]
    found = filters.typical(np.array(weights, float), sixteenths / 16)
    assert np.flatnonzero(found).tolist() == sorted(kept)


def test_each_text_of_a_batch_is_filtered_separately() -> None:
    logits = np.random.default_rng(1).normal(0, 2, (9, 30)).astype(np.float32)
    recent = np.random.default_rng(2).integers(-1, 30, (40, 9))
    for rule in RULES.values():
        rule = SamplingRule(rule.temperature, rule.top_k, rule.top_p, rule.min_p, rule.typical, 1.3, 20)
        together = filters.filtered(logits, rule, recent)
        for text in range(9):
            assert np.array_equal(together[text], filters.filtered(logits[text], rule, recent[:, text]))


# ---- C against numpy ----


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_native_sampling_equals_numpy_sampling_for_every_rule(rule: SamplingRule, isa: str) -> None:
    config = ModelConfig(70, hidden=30, embedding=8)
    weights = random_weights(config)
    weights["projection.weight"] *= 30
    engine = engine_of(config, weights, isa)
    streams, first = np.array([3, 10**12, 0]), np.array([1, 2, 3])
    recent = np.array([[-1, 5, 60], [4, 69, 4], first])
    phases = np.array([2, 0, 1])
    symbols, _ = engine.generate(
        first,
        engine.zero_state(3),
        250,
        rule,
        seed=2**63 - 1,
        position=5,
        streams=streams,
        recent=recent,
        phases=phases,
    )
    state, behind = engine.zero_state(3), np.concatenate([recent, symbols])
    for t in range(len(symbols)):
        logits, state = engine.step(behind[t + 2], state)
        numbers = filters.uniform(2**63 - 1, streams, 5 + t)
        assert np.array_equal(symbols[t], filters.sample(logits, rule, numbers, behind[: t + 3], phases))
        phases = walked(rule, phases, symbols[t : t + 1])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("cell", CELLS)
def test_a_whole_text_sampled_natively_equals_the_text_of_numpy(cell: Cell, isa: str) -> None:
    """Logits of C and numpy differ by rounding, which changes a symbol only between two nearly equal logits."""
    config = ModelConfig(40, hidden=21, layers=2, embedding=6, cell=cell)
    weights = random_weights(config)
    weights["projection.weight"] *= 10
    rule = SamplingRule(0.9, 30, 0.98, 0.001, 0.95, 1.1, 32, ALLOWED[:40])
    native_engine, numpy_engine = engine_of(config, weights, isa), engine_of(config, weights, "numpy")
    for seed in range(3):
        one, other = (
            e.generate([1, 2], e.zero_state(2), 150, rule, seed=seed)[0] for e in (native_engine, numpy_engine)
        )
        assert np.array_equal(one, other)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_text_sampled_in_blocks_or_in_a_batch_is_the_same_for_every_rule(rule: SamplingRule, isa: str) -> None:
    config = ModelConfig(70, hidden=200, layers=2, embedding=8)
    weights = random_weights(config)
    weights["projection.weight"] *= 10
    one = Engine(config, weights, precision="fp32", threads=1, isa=isa)
    three = Engine(config, weights, precision="fp32", threads=3, isa=isa)
    whole, _ = three.generate([1, 2, 3], three.zero_state(3), 120, rule, seed=4)
    state, symbols = one.zero_state(1), np.array([[2]], np.int32)
    for position in range(0, 120, 8):
        block, state = three.generate(
            symbols[-1],
            state,
            8,
            rule,
            seed=4,
            position=position,
            streams=[1],
            recent=symbols,
            phases=walked(rule, np.array([0]), symbols[1:]),
        )
        symbols = np.concatenate([symbols, block])
    assert np.array_equal(symbols[1:, 0], whole[:, 1])


# ---- sampled symbols ----


@pytest.mark.fault("R75")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "rule",
    [
        SamplingRule(1.5, top_k=9),
        SamplingRule(1.0, top_p=0.8),
        SamplingRule(2.0, min_p=0.3),
        SamplingRule(1.0, typical=0.7),
        SamplingRule(1.0, penalty=2.0, window=3),
        SamplingRule(1.0, allowed=np.arange(17) % 2 == 0),
        SamplingRule(1.0, automaton=Automaton.of_table(np.array([[0] * 17, [255, 0] * 8 + [255]], np.uint8))),
        SamplingRule(1.5, 12, 0.95, 0.05, 0.9, 1.5, 3, np.arange(17) != 4),
    ],
    ids=["top-k", "top-p", "min-p", "typical", "penalty", "allowed", "automaton", "all"],
)
def test_sampled_symbols_follow_the_filtered_distribution(rule: SamplingRule, backend: str) -> None:
    """Apply a χ² test; a symbol of probability 0 never occurs, and the unfiltered distribution does not fit."""
    logits = np.linspace(-2, 2, 17)[np.random.default_rng(3).permutation(17)]
    recent = np.array([4, 11, 8])
    engine = biased(logits, backend)
    count, phase = 51_200, int(rule.automaton is not None)
    symbols, _ = engine.generate(
        np.full(count, 8),
        engine.zero_state(count),
        1,
        rule,
        seed=11,
        recent=np.repeat(recent[:, None], count, 1),
        phases=np.full(count, phase),
    )
    observed = np.bincount(symbols.ravel(), minlength=17)
    assert chance(observed, filters.filtered(logits, rule, recent, phase)) > 1e-4
    assert chance(observed, filters.filtered(logits, SamplingRule(rule.temperature))) < 1e-9
