"""Compare scores of lines and characters, and the comparison of two models, with the equations in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from charlstm.config import Cell, ModelConfig
from charlstm.errors import CorpusError, UnknownSymbols
from charlstm.inference import surprisal
from charlstm.model import Model
from charlstm.text.vocabulary import Vocabulary
from tests.helpers.models import CELLS, equations, losses, random_weights

SYMBOLS = "\n abcdefgh"
TEXT = "abc def\n\nh\n" + "had a bad cafe\n" * 3 + "a" * 90 + "\nbe dead"


def sharp_model(cell: Cell = "lstm", seed: int = 0, symbols: str = SYMBOLS) -> Model:
    config = ModelConfig(len(symbols), hidden=9, layers=2, embedding=5, cell=cell)
    weights = random_weights(config, seed)
    weights["projection.weight"] *= 20
    return Model(config, Vocabulary(symbols), weights, precision="fp32")


def naive(model: Model, text: str) -> np.ndarray[Any, Any]:
    """Return the bits of each character except the first."""
    ids = model.vocabulary.encode(text)
    logits, _ = equations(model.config, model.weights, ids[:-1, None], np.zeros(model.config.state_shape(1)))
    return losses(logits, ids[1:, None])[:, 0] / math.log(2)


@pytest.mark.parametrize("cell", CELLS)
def test_the_score_of_each_line_equals_the_equations_after_a_line_break(cell: Cell) -> None:
    model = sharp_model(cell)
    scores = list(model.score_lines(TEXT))
    assert "".join(score.text for score in scores) == TEXT
    assert [score.number for score in scores] == list(range(1, len(scores) + 1))
    for score in scores:
        expected = naive(model, "\n" + score.text)
        assert score.chars == len(score.text)
        assert score.bits == pytest.approx(expected.sum(), abs=1e-3)
        assert score.bits_per_char == pytest.approx(expected.mean(), abs=1e-5)


def test_carried_lines_add_up_to_the_score_of_the_whole_text() -> None:
    model = sharp_model()
    carried = list(model.score_lines(TEXT, carry=True))
    whole = model.evaluate(TEXT, exact=True)
    assert sum(score.chars for score in carried) == whole.transitions
    assert sum(score.bits for score in carried) == pytest.approx(whole.bits_per_char * whole.transitions, abs=1e-6)
    reset = list(model.score_lines(TEXT))
    assert abs(sum(score.bits for score in reset[1:]) - sum(score.bits for score in carried[1:])) > 1e-3


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_no_score_depends_on_the_parts_of_the_text_or_on_the_other_lines_of_a_batch(data: st.DataObject) -> None:
    text = data.draw(st.text(SYMBOLS, min_size=1, max_size=200))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=8)))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    model = sharp_model()
    for carry in (False, True):
        whole, pieces = (list(model.score_lines(given, carry=carry)) for given in (text, parts))
        assert [(line.text, line.number, line.chars) for line in pieces] == [
            (line.text, line.number, line.chars) for line in whole
        ]
        assert [line.bits for line in pieces] == pytest.approx([line.bits for line in whole], abs=1e-5)
    for score in model.score_lines(text):
        (alone,) = model.score_lines(score.text)
        assert alone.bits == pytest.approx(score.bits, abs=1e-5)


def test_many_lines_of_different_lengths_score_the_same_as_each_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    text = "".join("".join(rng.choice(list(SYMBOLS[1:]), size)) + "\n" for size in rng.integers(0, 60, 150))
    model = sharp_model()
    expected = [naive(model, "\n" + line).sum() for line in text.splitlines(keepends=True)]
    for side, steps, few in ((1024, 8, 256), (1, 7, 1), (7, 1, 20), (50, 100, 1)):
        monkeypatch.setattr(surprisal, "BATCH", side)
        monkeypatch.setattr(surprisal, "MIN_SYMBOLS", few)
        monkeypatch.setattr(surprisal, "STEPS", steps)
        assert [score.bits for score in model.score_lines(text)] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_a_common_prefix_of_lines_is_read_once_and_changes_no_score(
    monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    monkeypatch.setattr(surprisal, "STEPS", steps)
    monkeypatch.setattr(surprisal, "MIN_SYMBOLS", 1)
    model = sharp_model()
    whole = ["abab\n", "abab\n", "ababab\n", "\n", "ab\n", "abab cab\n", "b\n", "abab cab", "abab\n"]
    engine, read = model.scorer, []

    class Counting:
        config = engine.config
        zero_state, advance = staticmethod(engine.zero_state), staticmethod(engine.advance)

        def score(self, ids: Any, state: Any) -> Any:
            read.append(ids.shape[1] * (len(ids) - 1))
            return engine.score(ids, state)

    sums = surprisal.line_sums(
        Counting(),
        [np.array(model.vocabulary.encode("\n" + line)) for line in whole],
    )
    assert list(sums / math.log(2)) == pytest.approx([naive(model, "\n" + line).sum() for line in whole], abs=1e-5)
    if steps == 1:  # once for each prefix
        assert sum(read) == len({line[:end] for line in whole for end in range(1, len(line) + 1)})


def test_the_lines_of_a_part_are_scored_before_the_next_part_is_read() -> None:
    asked = []

    def parts() -> Any:
        for part in ("ab\nc", "d\nef\n", "g"):
            asked.append(part)
            yield part

    seen = [(score.text, len(asked)) for score in sharp_model().score_lines(parts())]
    assert seen == [("ab\n", 1), ("cd\n", 2), ("ef\n", 2), ("g", 3)]


def test_a_line_without_scored_characters_has_0_bits() -> None:
    first, second = sharp_model().score_lines("\nab", carry=True)
    assert (first.chars, first.bits, first.bits_per_char) == (0, 0, 0)
    assert second.chars == 2
    assert list(sharp_model().score_lines("")) == []


def test_the_score_of_each_character_equals_the_equations(monkeypatch: pytest.MonkeyPatch) -> None:
    model = sharp_model()
    expected = naive(model, TEXT)
    for chunk in (4096, 5):
        monkeypatch.setattr(surprisal, "CHUNK", chunk)
        scores = list(model.score_chars(TEXT))
        assert [score.bits for score in scores] == pytest.approx(expected.tolist(), abs=1e-4)
        assert "".join(score.char for score in scores) == TEXT[1:]
        assert [score.place for score in scores] == list(range(2, len(TEXT) + 1))
    whole = model.evaluate(TEXT, exact=True)
    assert math.fsum(score.bits for score in scores) / whole.transitions == pytest.approx(whole.bits_per_char)


def test_the_most_likely_symbols_follow_the_distribution_at_that_position() -> None:
    model = sharp_model()
    ids = model.vocabulary.encode(TEXT)
    logits, _ = equations(model.config, model.weights, ids[:-1, None], np.zeros(model.config.state_shape(1)))
    expected = np.exp(logits[:, 0] - logits[:, 0].max(axis=1, keepdims=True))
    expected /= expected.sum(axis=1, keepdims=True)
    plain = list(model.score_chars(TEXT))
    for row, score, without in zip(expected, model.score_chars(TEXT, top=3), plain, strict=True):
        best = np.argsort(-row)[:3]
        assert [char for char, _ in score.likeliest] == [SYMBOLS[k] for k in best]
        assert [probability for _, probability in score.likeliest] == pytest.approx(row[best].tolist(), abs=1e-5)
        assert (score.place, score.char) == (without.place, without.char)
        assert score.bits == pytest.approx(without.bits, abs=1e-4)
    everything = next(iter(model.score_chars(TEXT, top=99))).likeliest
    assert math.fsum(probability for _, probability in everything) == pytest.approx(1)
    assert len(everything) == len(SYMBOLS)


@pytest.mark.fault("R71")
def test_unknown_characters_are_refused_skipped_or_replaced_and_counted() -> None:
    model = sharp_model()
    with pytest.raises(UnknownSymbols, match=r"'x' × 1.*choose unknown"):
        list(model.score_lines("abxc\nx"))
    skipped = list(model.score_lines("abxc\nx", unknown="skip"))
    assert [(line.text, line.chars, line.unknown) for line in skipped] == [("abxc\n", 4, 1), ("x", 0, 1)]
    assert skipped[0].bits == pytest.approx(next(model.score_lines("abc\n")).bits)
    replaced = next(model.score_lines("abxc\nx", unknown="replace"))
    assert (replaced.chars, replaced.unknown) == (5, 1)
    assert replaced.bits == pytest.approx(next(model.score_lines("ab c\n")).bits)
    assert model.evaluate("abxc", unknown="skip").bits_per_char == model.evaluate("abc").bits_per_char
    assert model.evaluate("abxc", unknown="skip").unknown == 1
    assert model.evaluate("abc", unknown="skip").unknown == 0


def test_a_comparison_holds_both_scores_and_their_paired_difference() -> None:
    ours, theirs = sharp_model(seed=1), sharp_model(seed=2)
    rng = np.random.default_rng(5)
    text = "".join(rng.choice(list(SYMBOLS), 3456))
    found = ours.compare(theirs, text)
    a, b = naive(ours, text), naive(theirs, text)
    assert found.ours.bits_per_char == pytest.approx(a.mean(), abs=1e-5)
    assert found.theirs.bits_per_char == pytest.approx(b.mean(), abs=1e-5)
    assert found.difference.bits_per_char == pytest.approx((a - b).mean(), abs=1e-5)
    means = [(a - b)[first:last].mean() for first, last in ((0, 1152), (1152, 2304), (2304, 3455))]
    variance = sum((mean - sum(means) / 3) ** 2 for mean in means) / 2
    assert found.difference.blocks == 3
    assert found.difference.standard_error == pytest.approx(math.sqrt(variance / 3), abs=1e-5)
    same = ours.compare(ours, text).difference
    assert (same.bits_per_char, same.standard_error) == (0, 0)
    assert ours.compare(theirs, text[:1500]).difference.standard_error is None


def test_the_standard_error_allows_for_dependent_neighbours() -> None:
    rng = np.random.default_rng(8)

    def text() -> np.ndarray[Any, Any]:  # runs of 20 equal values: the effective size is 1/20
        return np.repeat(rng.normal(size=1000), 20)

    found = [surprisal.difference(text(), np.zeros(20_000)) for _ in range(200)]
    spread = np.std([one.bits_per_char for one in found])
    errors = np.mean([one.standard_error or math.nan for one in found])
    assert errors == pytest.approx(spread, rel=0.2)
    assert errors > 3 * rng.normal(size=20_000).std() / math.sqrt(20_000)  # the error if values were independent


def test_models_of_different_vocabularies_are_compared_on_their_common_symbols() -> None:
    ours, theirs = sharp_model(), sharp_model(symbols="\n abcdefgx")
    with pytest.raises(UnknownSymbols, match="'x'"):
        ours.compare(theirs, "abxch")
    skipped = ours.compare(theirs, "abxchha", unknown="skip")
    assert skipped.ours.chars == skipped.theirs.chars == 4
    assert skipped.ours.unknown == skipped.theirs.unknown == 3
    assert skipped.ours.bits_per_char == pytest.approx(naive(ours, "abca").mean(), abs=1e-5)
    replaced = ours.compare(theirs, "abxchha", unknown="replace")
    assert (replaced.ours.chars, replaced.ours.unknown, replaced.theirs.unknown) == (7, 1, 2)
    assert replaced.theirs.bits_per_char == pytest.approx(naive(theirs, "abxc  a").mean(), abs=1e-5)


@pytest.mark.parametrize("text", ["", "a"])
def test_a_text_without_transition_is_refused(text: str) -> None:
    model = sharp_model()
    with pytest.raises(CorpusError, match="no transition"):
        list(model.score_chars(text))
    with pytest.raises(CorpusError, match="no transition"):
        model.compare(model, text)


def test_parallel_parts_give_the_scores_of_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks, parts and their warm-up change only the last digits; without the warm-up the scores differ."""
    model = sharp_model()
    ids = model.vocabulary.encode("".join(np.random.default_rng(2).choice(list(SYMBOLS), 3000)))
    exact = [*surprisal.char_blocks(model.scorer, ids, 2, exact=True)]
    monkeypatch.setattr(surprisal, "WARM_UP", 40)
    monkeypatch.setattr(surprisal, "CHAR_BLOCK", 1000)
    blocks = [*surprisal.char_blocks(model.scorer, ids, 2)]
    assert [len(block.bits) for block in blocks] == [1000, 1000, 999]
    assert [block.start for block in blocks] == [1, 1001, 2001]
    joined = {name: np.concatenate([getattr(b, name) for b in blocks]) for name in ("ids", "bits", "best", "shares")}
    whole = {name: np.concatenate([getattr(b, name) for b in exact]) for name in joined}
    assert np.array_equal(joined["ids"], whole["ids"])
    assert np.allclose(joined["bits"], whole["bits"], atol=1e-4)
    assert np.allclose(joined["shares"], whole["shares"], atol=1e-4)
    assert (joined["best"] == whole["best"]).mean() > 0.99
    monkeypatch.setattr(surprisal, "WARM_UP", 1)
    cold = np.concatenate([block.bits for block in surprisal.char_blocks(model.scorer, ids)])
    assert np.abs(cold - whole["bits"]).max() > 1e-3  # negative control
