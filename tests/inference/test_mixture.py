"""Mixtures of models, from hand-worked distributions and from the models themselves."""

from __future__ import annotations

from typing import Any

import pytest

import charlstm
from charlstm.config import ModelConfig, SamplingConfig
from charlstm.errors import UsageError
from charlstm.model import Model
from charlstm.text.vocabulary import ByteVocabulary
from tests.helpers.models import fixed, random_model, random_weights

A, B = fixed("abc", [0.5, 0.25, 0.25]), fixed("bcd", [0.5, 0.25, 0.25])


def test_the_mean_and_the_product_are_the_hand_worked_ones_over_the_union() -> None:
    mean = charlstm.mix([A, B], [3, 1])
    assert mean.vocabulary.symbols == "abcd"
    assert dict(mean.next()) == pytest.approx({"a": 0.375, "b": 0.3125, "c": 0.25, "d": 0.0625})
    product = dict(charlstm.mix([A, B], by="product").next())
    b, c = (0.25 * 0.5) ** 0.5, (0.25 * 0.25) ** 0.5
    assert product == pytest.approx({"b": b / (b + c), "c": c / (b + c)})
    heavy = dict(charlstm.mix([A, B], [0.75, 0.25], by="product").next())
    b, c = 0.25**0.75 * 0.5**0.25, 0.25
    assert heavy == pytest.approx({"b": b / (b + c), "c": c / (b + c)})


def test_the_temperature_applies_to_the_mixture() -> None:
    found = dict(charlstm.mix([A, B]).next(temperature=0.5))
    squares = {"a": 0.25**2, "b": 0.375**2, "c": 0.25**2, "d": 0.125**2}
    assert found == pytest.approx({char: share / sum(squares.values()) for char, share in squares.items()})


@pytest.mark.parametrize("by", ["mean", "product"])
def test_weights_1_and_0_give_the_first_model_and_the_order_has_no_effect(by: Any) -> None:
    models = [random_model("\nabc", 1), random_model("\nbcd", 2, "gru", 2), random_model("\nab", 3, "rnn")]
    text = models[0].sample("ab", 200, seed=5)
    assert charlstm.mix(models, [1, 0, 0], by=by).sample("ab", 200, seed=5) == text
    mixed = charlstm.mix(models, [0.5, 0.3, 0.2], by=by).sample("ab", 200, seed=5)
    assert charlstm.mix(models[::-1], [0.2, 0.3, 0.5], by=by).sample("ab", 200, seed=5) == mixed
    assert charlstm.mix(models, [0.3, 0.5, 0.2], by=by).sample("ab", 200, seed=5) != mixed  # negative control


@pytest.mark.parametrize("by", ["mean", "product"])
def test_after_a_text_the_mixture_is_that_of_the_distributions_of_its_models(by: Any) -> None:
    one, other = random_model("\nabc", 1, layers=2), random_model("\nabz", 2, "gru")
    text = "ab\nbacabc"
    ours, theirs = dict(one.next(text)), dict(other.next(text.replace("c", "\n")))  # its replacement
    chars = "\nabcz"
    if by == "mean":
        expected = {char: 0.25 * ours.get(char, 0) + 0.75 * theirs.get(char, 0) for char in chars}
    else:
        joint = {char: ours.get(char, 0) ** 0.25 * theirs.get(char, 0) ** 0.75 for char in chars}
        expected = {char: share / sum(joint.values()) for char, share in joint.items() if share}
    assert other.vocabulary.replacement == "\n"
    assert dict(charlstm.mix([one, other], [1, 3], by=by).next(text)) == pytest.approx(expected, rel=1e-5)


def test_a_mixture_samples_in_batches_continues_a_state_and_is_scored(tmp_path: Any) -> None:
    mixed = charlstm.mix([random_model("\nabc", 1, "peephole"), random_model("\nbcd", 2, "gru", 2)])
    whole = mixed.sample("ab", 40, seed=3)
    assert next(mixed.samples(5, "ab", 40, seed=3)) == whole
    context = mixed.advance("ab")
    mixed.save_state(tmp_path / "state", context)
    assert mixed.sample("", 40, seed=3, context=mixed.load_state(tmp_path / "state")) == whole
    (found,) = mixed.generate(SamplingConfig(1.0, 40, "ab", 3))
    nats = mixed.evaluate("ab" + found.text, exact=True).nats_per_char * (len(found.text) + 1)
    nats -= mixed.evaluate("ab", exact=True).nats_per_char
    assert found.log_probability == pytest.approx(-nats, abs=1e-3)
    matched = mixed.sample("", 8, seed=1, match="[ad]+(bb|cd)")
    assert matched[-2:] in ("bb", "cd")


def test_models_that_do_not_fit_together_are_refused() -> None:
    config = ModelConfig(256, hidden=2, embedding=2)
    of_bytes = Model(config, ByteVocabulary(), random_weights(config), precision="fp32")
    with pytest.raises(UsageError, match="bytes and characters cannot be mixed"):
        charlstm.mix([A, of_bytes])
    with pytest.raises(UsageError, match="cannot be mixed"):
        charlstm.mix([random_model("\nab", 1, boundary="\n"), random_model("\nab", 1)])
    with pytest.raises(UsageError, match="no symbol in common"):
        charlstm.mix([A, fixed("xy", [0.5, 0.5])], by="product")
    for weights in ([1.0], [-1.0, 2.0], [0.0, 0.0], [float("nan"), 1.0]):
        with pytest.raises(UsageError, match="needs a weight"):
            charlstm.mix([A, B], weights)


def test_documents_are_mixed_and_their_state_is_reset() -> None:
    parts = [random_model("\nab", 1, boundary="\n"), random_model("\nabc", 2, "gru", boundary="\n")]
    mixed = charlstm.mix(parts)
    assert dict(mixed.next("ab\n")) == pytest.approx(dict(mixed.next("")))
    assert dict(mixed.next("ab")) != pytest.approx(dict(mixed.next("")))
    assert "\n" not in mixed.sample(seed=1)
