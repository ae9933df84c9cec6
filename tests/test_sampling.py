"""Text out of an engine: the random numbers, the distribution, streams, many at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from models import random_weights, real_ids

from charlstm import sampling
from charlstm.config import ModelConfig, SamplingConfig
from charlstm.engine import Engine
from charlstm.errors import UnknownSymbols, UsageError
from charlstm.kernels import drawing
from charlstm.vocab import Vocabulary

VOCABULARY = real_ids(10_000)[1]


@pytest.fixture(scope="module")
def engine() -> Engine:
    config = ModelConfig(len(VOCABULARY), hidden=24, layers=2, embedding=8)
    weights = random_weights(config)
    weights["projection.weight"] *= 10
    return Engine(config, weights)


def draw(engine: Engine, **options: Any) -> str:
    return "".join(sampling.stream(engine, VOCABULARY, SamplingConfig(**{"length": 300, "seed": 5, **options})))


# ---- numbers and distributions ----


def test_random_numbers_are_those_of_the_published_splitmix64() -> None:
    """The first outputs of the reference implementation for the seed 1234567."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    states = np.array([(1234567 + n * drawing.GAMMA) % 2**64 for n in (1, 2, 3, 4)], np.uint64)
    assert drawing._mix(states).tolist() == published


def test_random_numbers_of_seeds_streams_and_places_are_their_own_and_even() -> None:
    numbers = np.array(
        [drawing.uniform(seed, np.arange(40), place) for seed in (0, 1, 2**63 - 1) for place in (*range(40), 2**53)]
    )
    assert len(np.unique(numbers)) == numbers.size
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 4 * (12 * numbers.size) ** -0.5
    assert np.abs(np.corrcoef(numbers)[~np.eye(len(numbers), dtype=bool)]).max() < 0.8


@pytest.mark.parametrize("temperature", [0.1, 1.0, 7.0])
def test_the_distribution_is_torchs_softmax(temperature: float) -> None:
    torch = pytest.importorskip("torch")
    logits = np.random.default_rng(1).normal(0, 3, (5, 40))
    expected = torch.softmax(torch.tensor(logits) / temperature, 1).numpy()
    assert np.abs(sampling.distribution(logits, temperature) - expected).max() < 1e-15


def test_temperature_zero_takes_the_first_of_the_likeliest() -> None:
    assert sampling.distribution(np.array([1.0, 3.0, 3.0, -np.inf]), 0).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers_have_no_distribution(bad: float) -> None:
    with pytest.raises(FloatingPointError):
        sampling.distribution(np.array([0.0, bad]), 1.0)


# ---- one text ----


@pytest.mark.fault("R76")
@pytest.mark.parametrize("length", [1, 2, 3, 1000])
def test_a_text_has_exactly_the_length_asked_for(engine: Engine, length: int) -> None:
    assert len(draw(engine, length=length)) == length


@pytest.mark.fault("R77")
def test_the_same_seed_gives_the_same_text_and_another_another(engine: Engine) -> None:
    assert draw(engine) == draw(engine)
    assert draw(engine) != draw(engine, seed=6)
    assert draw(engine, seed=None) != draw(engine, seed=None)


@pytest.mark.parametrize("seconds", [0.0, 1e-4, 1.0])
def test_a_text_does_not_depend_on_how_it_is_cut(
    engine: Engine, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = draw(engine)
    monkeypatch.setattr(sampling, "BLOCK_SECONDS", seconds)
    assert draw(engine) == whole


def test_pieces_come_before_a_millisecond_has_passed(engine: Engine) -> None:
    """Unless the machine is busy: so the median is asked."""
    import time

    stream = sampling.stream(engine, VOCABULARY, SamplingConfig(length=0, seed=1))
    times = [time.perf_counter()]
    for _ in zip(range(200), stream, strict=False):
        times.append(time.perf_counter())
    assert np.median(np.diff(times)) < 1e-3


def test_greedy_text_is_argmax_all_the_way(engine: Engine) -> None:
    begin = sampling.read(engine, VOCABULARY, "The ")
    symbol, state, expected = begin.last, begin.state, []
    for _ in range(100):
        logits, state = engine.step([symbol], state)
        symbol = int(logits[0].argmax())
        expected.append(symbol)
    assert draw(engine, length=100, prime="The ", temperature=0.0) == VOCABULARY.decode(np.array(expected))


def test_a_prime_is_read_symbol_by_symbol(engine: Engine) -> None:
    state = engine.zero_state()
    *before, last = VOCABULARY.encode("Once upon").tolist()
    for symbol in before:
        _, state = engine.step([symbol], state)
    context = sampling.read(engine, VOCABULARY, "Once upon")
    assert context.last == last
    assert np.array_equal(context.state, state)
    parts = sampling.read(engine, VOCABULARY, " upon", sampling.read(engine, VOCABULARY, "Once"))
    assert np.array_equal(parts.state, state)


def test_a_text_goes_on_where_its_context_stands(engine: Engine) -> None:
    whole = draw(engine, length=300, prime="A")
    stream = sampling.stream(engine, VOCABULARY, SamplingConfig(length=120, seed=5, prime="A"))
    first = "".join(stream)
    rest = "".join(sampling.stream(engine, VOCABULARY, SamplingConfig(length=180), stream.context))
    assert first + rest == whole
    elsewhere = sampling.stream(engine, VOCABULARY, SamplingConfig(length=180, seed=6), stream.context)
    assert "".join(elsewhere) != rest
    forgotten = replace(stream.context, state=engine.zero_state())  # the negative control
    assert "".join(sampling.stream(engine, VOCABULARY, SamplingConfig(length=180), forgotten)) != rest


@pytest.mark.parametrize(("symbols", "begins"), [("\n a", "\n"), (" ab", " "), ("xyz", "x")])
def test_a_text_without_prime_begins_after_a_line_break_if_there_is_one(symbols: str, begins: str) -> None:
    config = ModelConfig(3, hidden=4, embedding=2)
    vocabulary = Vocabulary(symbols)
    context = sampling.read(Engine(config, random_weights(config)), vocabulary)
    assert vocabulary.decode(np.array([context.last])) == begins
    assert not context.state.any()


@pytest.mark.fault("R71")
def test_a_prime_with_unknown_symbols_is_refused(engine: Engine) -> None:
    with pytest.raises(UnknownSymbols):
        draw(engine, prime="\u4e2d")


# ---- many ----


def test_many_texts_are_each_what_a_stream_of_its_number_gives(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SamplingConfig(length=150, seed=5, count=70, prime="So")
    texts = list(sampling.texts(engine, VOCABULARY, config))
    assert len(texts) == len(set(texts)) == 70
    assert texts[0] == draw(engine, length=150, prime="So")
    monkeypatch.setattr(sampling, "GROUP", 7)
    monkeypatch.setattr(sampling, "GROUP_SYMBOLS", 11)
    assert list(sampling.texts(engine, VOCABULARY, config)) == texts
    assert list(sampling.texts(engine, VOCABULARY, replace(config, count=3))) == texts[:3]


def test_many_texts_need_an_end(engine: Engine) -> None:
    with pytest.raises(UsageError, match="--length"):
        next(sampling.texts(engine, VOCABULARY, SamplingConfig(length=0, count=2)))
    with pytest.raises(UsageError, match="one text"):
        sampling.stream(engine, VOCABULARY, SamplingConfig(count=2))
