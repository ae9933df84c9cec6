"""Test sampling of text: random numbers, the distribution, streams, and many texts at once."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from charlstm.config import ModelConfig, SamplingConfig
from charlstm.errors import UnknownSymbols, UsageError
from charlstm.inference import filters, sampling
from charlstm.inference.context import advance, advance_sampled
from charlstm.inference.engine import Engine
from charlstm.inference.filters import SamplingRule
from charlstm.inference.sampling import Sampler, sampling_rule
from charlstm.inference.stopping import StopCondition
from charlstm.text.vocabulary import Vocabulary
from tests.helpers.models import equations, losses, random_weights, real_ids

VOCABULARY = real_ids(10_000)[1]


CONFIG = ModelConfig(len(VOCABULARY), hidden=24, layers=2, embedding=8)
WEIGHTS = random_weights(CONFIG)
WEIGHTS["projection.weight"] *= 10


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(CONFIG, WEIGHTS)


def sampled(engine: Engine, **options: Any) -> str:
    config = SamplingConfig(**{"length": 300, "seed": 5, **options})
    return "".join(Sampler(engine, VOCABULARY, config).stream())


def sampled_texts(engine: Engine, config: SamplingConfig, **more: Any) -> list[str]:
    return [found.text for found in Sampler(engine, VOCABULARY, config).texts(**more)]


# ---- random numbers and distributions ----


def test_random_numbers_equal_the_published_splitmix64() -> None:
    """Expect the first outputs of the reference implementation for the seed 1234567."""
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    states = np.array([(1234567 + n * filters.GAMMA) % 2**64 for n in (1, 2, 3, 4)], np.uint64)
    assert filters.splitmix64(states).tolist() == published


def test_random_numbers_differ_by_seed_stream_and_position_and_are_uniform() -> None:
    numbers = np.array(
        [filters.uniform(seed, np.arange(40), place) for seed in (0, 1, 2**63 - 1) for place in (*range(40), 2**53)]
    )
    assert len(np.unique(numbers)) == numbers.size
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert abs(numbers.mean() - 0.5) < 4 * (12 * numbers.size) ** -0.5
    assert np.abs(np.corrcoef(numbers)[~np.eye(len(numbers), dtype=bool)]).max() < 0.8


@pytest.mark.parametrize("temperature", [0.1, 1.0, 7.0])
def test_the_distribution_equals_the_softmax_of_torch(temperature: float) -> None:
    torch = pytest.importorskip("torch")
    logits = np.random.default_rng(1).normal(0, 3, (5, 40))
    expected = torch.softmax(torch.tensor(logits) / temperature, 1).numpy()
    assert np.abs(filters.distribution(logits, SamplingRule(temperature)) - expected).max() < 1e-15


def test_temperature_zero_takes_the_first_of_the_most_likely_symbols() -> None:
    assert filters.distribution(np.array([1.0, 3.0, 3.0, -np.inf]), SamplingRule(0.0)).tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_or_infinite_logits_have_no_distribution(bad: float) -> None:
    with pytest.raises(FloatingPointError):
        filters.distribution(np.array([0.0, bad]), SamplingRule())


# ---- one text ----


@pytest.mark.fault("R76")
@pytest.mark.parametrize("length", [1, 2, 3, 1000])
def test_a_text_has_exactly_the_requested_length(engine: Engine, length: int) -> None:
    assert len(sampled(engine, length=length)) == length


@pytest.mark.fault("R77")
def test_the_same_seed_gives_the_same_text_and_another_seed_another_text(engine: Engine) -> None:
    assert sampled(engine) == sampled(engine)
    assert sampled(engine) != sampled(engine, seed=6)
    assert sampled(engine, seed=None) != sampled(engine, seed=None)


@pytest.mark.parametrize("seconds", [0.0, 1e-4, 1.0])
def test_a_text_does_not_depend_on_the_size_of_its_blocks(
    engine: Engine, seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sampled(engine)
    monkeypatch.setattr(sampling, "BLOCK_SECONDS", seconds)
    assert sampled(engine) == whole


@pytest.mark.parametrize(("seconds_of_a_call", "shortest", "longest"), [(1e-3, 1, 1), (1e-9, 64, 10**6)])
def test_the_length_of_a_block_follows_the_duration_of_the_previous_one(
    engine: Engine, seconds_of_a_call: float, shortest: int, longest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = itertools.count(0.0, seconds_of_a_call)
    monkeypatch.setattr(sampling, "time", SimpleNamespace(perf_counter=clock.__next__))
    stream = Sampler(engine, VOCABULARY, SamplingConfig(length=0, seed=1)).stream()
    pieces = [next(stream) for _ in range(12)]
    assert shortest <= len(pieces[-1]) <= longest


def test_greedy_text_is_the_argmax_at_every_position(engine: Engine) -> None:
    begin = advance(engine, VOCABULARY, "The ")
    symbol, state, expected = begin.last, begin.state, []
    for _ in range(100):
        logits, state = engine.step([symbol], state)
        symbol = int(logits[0].argmax())
        expected.append(symbol)
    assert sampled(engine, length=100, prime="The ", temperature=0.0) == VOCABULARY.decode(np.array(expected))


def test_a_prime_is_read_symbol_by_symbol(engine: Engine) -> None:
    state = engine.zero_state()
    *before, last = VOCABULARY.encode("Once upon").tolist()
    for symbol in before:
        _, state = engine.step([symbol], state)
    context = advance(engine, VOCABULARY, "Once upon")
    assert context.last == last
    assert np.array_equal(context.state, state)
    parts = advance(engine, VOCABULARY, " upon", advance(engine, VOCABULARY, "Once"))
    assert np.array_equal(parts.state, state)


def test_a_text_continues_from_its_saved_context(engine: Engine) -> None:
    whole = sampled(engine, length=300, prime="A")
    stream = Sampler(engine, VOCABULARY, SamplingConfig(length=120, seed=5, prime="A")).stream()
    first = "".join(stream)
    rest = "".join(Sampler(engine, VOCABULARY, SamplingConfig(length=180)).stream(stream.context))
    assert first + rest == whole
    elsewhere = Sampler(engine, VOCABULARY, SamplingConfig(length=180, seed=6)).stream(stream.context)
    assert "".join(elsewhere) != rest
    forgotten = replace(stream.context, state=engine.zero_state())  # negative control: the state is lost
    assert "".join(Sampler(engine, VOCABULARY, SamplingConfig(length=180)).stream(forgotten)) != rest


@pytest.mark.parametrize(("symbols", "begins"), [("\n a", "\n"), (" ab", " "), ("xyz", "x")])
def test_a_text_without_prime_begins_after_a_line_break_if_the_vocabulary_has_one(symbols: str, begins: str) -> None:
    config = ModelConfig(3, hidden=4, embedding=2)
    vocabulary = Vocabulary(symbols)
    context = advance(Engine(config, random_weights(config)), vocabulary)
    assert vocabulary.decode(np.array([context.last])) == begins
    assert not context.state.any()


@pytest.mark.fault("R71")
def test_a_prime_with_unknown_symbols_is_refused(engine: Engine) -> None:
    with pytest.raises(UnknownSymbols):
        sampled(engine, prime="\u4e2d")


# ---- many texts ----


def test_each_of_many_texts_equals_the_stream_of_its_number(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SamplingConfig(length=150, seed=5, count=70, prime="So")
    texts = sampled_texts(engine, config)
    assert len(texts) == len(set(texts)) == 70
    assert texts[0] == sampled(engine, length=150, prime="So")
    monkeypatch.setattr(sampling, "BATCH", 7)
    monkeypatch.setattr(sampling, "BLOCK", 11)
    assert sampled_texts(engine, config) == texts
    assert sampled_texts(engine, replace(config, count=3)) == texts[:3]


def test_many_texts_need_a_stop_condition(engine: Engine) -> None:
    with pytest.raises(UsageError, match="set length, lines or stop"):
        next(Sampler(engine, VOCABULARY, SamplingConfig(length=0, count=2)).texts())
    with pytest.raises(UsageError, match="one text"):
        Sampler(engine, VOCABULARY, SamplingConfig(count=2)).stream()


# ---- options of the distribution ----


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}, {"top_k": 5, "temperature": 0.0}])
def test_the_narrowest_filters_are_greedy(engine: Engine, options: dict[str, Any]) -> None:
    assert sampled(engine, **{"temperature": 1.0, **options}) == sampled(engine, temperature=0.0)


def test_typical_0_takes_the_symbol_whose_surprisal_is_closest_to_the_entropy(engine: Engine) -> None:
    begin = advance(engine, VOCABULARY)
    symbol, state, expected = begin.last, begin.state, []
    for _ in range(60):
        logits, state = engine.step([symbol], state)
        logs = logits[0].astype(float) - np.log(np.exp(logits[0].astype(float)).sum())
        symbol = int(np.abs(-logs + (np.exp(logs) * logs).sum()).argmin())
        expected.append(symbol)
    found = sampled(engine, length=60, temperature=1.0, typical=0.0)
    assert found == VOCABULARY.decode(np.array(expected))
    assert found != sampled(engine, length=60, temperature=0.0)


def test_greedy_text_with_a_penalty_is_the_argmax_of_penalised_logits(engine: Engine) -> None:
    begin = advance(engine, VOCABULARY, "The ")
    state, text = begin.state, VOCABULARY.encode("The ").tolist()
    for _ in range(100):
        logits, state = engine.step([text[-1]], state)
        for symbol in set(text[-7:]):
            logits[0, symbol] *= 1 / np.float32(1.5) if logits[0, symbol] > 0 else np.float32(1.5)
        text.append(int(logits[0].argmax()))
    options: dict[str, Any] = {"length": 100, "prime": "The ", "temperature": 0.0}
    assert sampled(engine, **options, repeat_penalty=1.5, repeat_window=7) == VOCABULARY.decode(np.array(text[4:]))
    assert sampled(engine, **options, repeat_penalty=1.5, repeat_window=8) != VOCABULARY.decode(np.array(text[4:]))


def test_a_penalty_makes_repeated_characters_rarer(engine: Engine) -> None:
    def repeats(text: str) -> int:
        return sum(char in text[max(0, place - 5) : place] for place, char in enumerate(text))

    options: dict[str, Any] = {"length": 1000, "temperature": 0.7, "repeat_window": 5}
    plain, penalised = (repeats(sampled(engine, **options, repeat_penalty=penalty)) for penalty in (1.0, 4.0))
    assert penalised < 0.7 * plain


def test_banned_characters_never_occur_and_only_allowed_ones_do(engine: Engine) -> None:
    plain = sampled(engine, temperature=2.0)
    assert set("aeiou") & set(plain)
    assert not set("aeiou") & set(sampled(engine, temperature=2.0, ban="aeiou\u4e2d"))
    assert set(sampled(engine, temperature=2.0, only="ab \n")) == set("ab \n")
    assert set(sampled(engine, temperature=2.0, only="abc", ban="c")) == set("ab")
    assert set(sampled(engine, temperature=0.0, only="ab", length=20)) <= set("ab")


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"only": ""}, UsageError, "leave no character"),
        ({"only": "ab", "ban": "ba"}, UsageError, "leave no character"),
        ({"ban": VOCABULARY.symbols}, UsageError, "leave no character"),
        ({"only": "a\u4e2d\x1b"}, UnknownSymbols, r"only has .* the model: '\\x1b' × 1, '中' × 1"),
        ({"stop": ("x", "\u4e2d")}, UnknownSymbols, "stop '中' can never occur"),
        ({"stop": ("xa",), "ban": "a"}, UsageError, "stop 'xa' can never occur"),
        ({"stop": ("x", "")}, UsageError, "stop must be a string of at least one character, got ''$"),
        ({"stop": "x"}, UsageError, "stop must be a tuple of strings, got the string 'x'$"),
        ({"lines": 1, "ban": "\n"}, UsageError, "lines cannot end the text"),
    ],
)  # fmt: skip
def test_settings_that_no_text_can_satisfy_are_refused(
    engine: Engine, options: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        sampled(engine, **options)
    with pytest.raises(error, match=said):
        sampled_texts(engine, SamplingConfig(length=5, **options))


def test_lines_without_a_line_break_in_the_vocabulary_are_refused() -> None:
    with pytest.raises(UnknownSymbols, match="lines cannot end the text"):
        sampling_rule(Vocabulary("abc"), SamplingConfig(lines=1))


# ---- stop conditions ----


def naive_end(text: str, stops: list[str], keep: bool, lines: int | None, most: int | None) -> tuple[str, str | None]:
    """Return the text up to its end and the condition that ended it, by examining every prefix."""
    for end in range(1, len(text) + 1):
        if found := [stop for stop in stops if text[:end].endswith(stop)]:
            return text[: end if keep else end - max(map(len, found))], "stop"
        if lines is not None and text[:end].count("\n") == lines:
            return text[:end], "lines"
        if end == most:
            return text[:end], "length"
    return text, None


@given(
    st.text("ab\n", min_size=1, max_size=30),
    st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=3),
    st.booleans(),
    st.none() | st.integers(1, 3),
    st.none() | st.integers(1, 20),
    st.lists(st.integers(1, 7), min_size=30, max_size=30),
)
def test_a_text_ends_at_its_first_stop_condition_for_any_block_sizes(
    text: str, stops: list[str], keep: bool, lines: int | None, most: int | None, cuts: list[int]
) -> None:
    vocabulary = Vocabulary("\nab")
    config = SamplingConfig(length=most or 0, stop=tuple(stops), keep_stop=keep and bool(stops), lines=lines)
    expected, by = naive_end(text, stops, keep, lines, most)
    ending, given, seen = StopCondition(vocabulary, config, np.array([0])), "", 0
    for cut in cuts:
        piece = text[seen : seen + min(cut, ending.remaining or cut)]
        if ending.ended is not None or not piece:
            break
        seen += len(piece)
        given += vocabulary.decode(ending.take(vocabulary.encode(piece)))
        if ending.ended is None:  # only a possible beginning of a stop text is held back
            ends = [text[seen - n : seen] for n in range(seen + 1)]
            held = max(len(end) for end in ends if end == "" or any(s.startswith(end) and s != end for s in stops))
            assert given == text[: seen - held]
    assert ending.ended == by
    assert given == (expected if by else given)


STOPS: list[dict[str, Any]] = [
    {"stop": ("e",)},
    {"stop": ("e ", "th")},
    {"stop": ("\n\n", "\n ", "s,")},
    {"lines": 3},
    {"lines": 2, "stop": ("q",), "keep_stop": True},
    {"stop": ("an",), "keep_stop": True},
]


@pytest.mark.parametrize("options", STOPS, ids=str)
@pytest.mark.parametrize("seconds", [0.0, 1e-3])
def test_a_stream_and_texts_end_at_the_stop_condition_of_the_endless_text(
    engine: Engine, options: dict[str, Any], seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "BLOCK_SECONDS", seconds)
    begun: dict[str, Any] = {"prime": "The ", "temperature": 1.5, "top_p": 0.97, "only": "aehnqst, \n"}
    stops = list(options.get("stop", ()))
    for seed in range(5):
        endless = next(iter(sampled_texts(engine, SamplingConfig(length=600, seed=seed, **begun))))
        expected, by = naive_end(endless, stops, options.get("keep_stop", False), options.get("lines"), None)
        assert by is not None
        config = SamplingConfig(seed=seed, **begun, **options)
        stream = Sampler(engine, VOCABULARY, config).stream()
        assert "".join(stream) == expected
        (text,) = Sampler(engine, VOCABULARY, config).texts()
        assert (text.text, text.ended) == (expected, by)
        capped = replace(config, length=3)
        assert "".join(Sampler(engine, VOCABULARY, capped).stream()) == expected[:3] == sampled_texts(engine, capped)[0]
        for context in (
            stream.context,
            advance_sampled(engine, text.start, text.symbols),
        ):
            rest = SamplingConfig(length=50, **{**begun, "prime": ""})
            assert (
                expected + "".join(Sampler(engine, VOCABULARY, rest).stream(context)) == endless[: len(expected) + 50]
            )


def test_the_context_of_every_block_is_the_one_after_its_last_character(engine: Engine) -> None:
    """This also holds while a possible beginning of a stop text is held back."""
    endless = sampled(engine, length=2000, temperature=1.5)
    stop = max((endless[k : k + 3] for k in range(300, 400)), key=lambda s: -endless.find(s))  # found late
    stream = Sampler(engine, VOCABULARY, SamplingConfig(1.5, seed=5, stop=(stop, stop[:2] + "\n" + stop))).stream()
    text = ""
    for piece in stream:
        text += piece
        context = stream.context
        assert context.position == len(text)
        assert context.last == VOCABULARY.encode(text[-1])[0]
    assert text == endless[: endless.index(stop)]


def test_a_text_continues_from_its_saved_context_with_the_penalty_on_earlier_text(engine: Engine) -> None:
    options: dict[str, Any] = {"repeat_penalty": 2.0, "repeat_window": 40}
    whole = sampled(engine, length=300, prime="A", **options)
    stream = Sampler(engine, VOCABULARY, SamplingConfig(length=120, seed=5, prime="A", **options)).stream()
    first = "".join(stream)
    config = SamplingConfig(length=180, **options)
    assert first + "".join(Sampler(engine, VOCABULARY, config).stream(stream.context)) == whole
    forgotten = replace(stream.context, before=stream.context.before[:0])  # negative control: no earlier text
    assert first + "".join(Sampler(engine, VOCABULARY, config).stream(forgotten)) != whole


# ---- many texts, and the best of them ----

EVERYTHING: dict[str, Any] = {
    "temperature": 1.2, "top_k": 40, "top_p": 0.98, "min_p": 0.001, "typical": 0.97, "repeat_penalty": 1.2,
    "ban": "xyz", "prime": "So", "seed": 5, "lines": 2, "length": 400,
}  # fmt: skip


def test_each_text_with_every_filter_is_the_same_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SamplingConfig(count=20, **EVERYTHING)
    texts = sampled_texts(engine, config)
    assert len({len(text) for text in texts}) > 5
    assert texts[0] == "".join(Sampler(engine, VOCABULARY, replace(config, count=1)).stream())
    monkeypatch.setattr(sampling, "BATCH", 3)
    monkeypatch.setattr(sampling, "BLOCK", 7)
    assert sampled_texts(engine, config) == texts
    assert sampled_texts(engine, config, scored=True) == texts


def test_the_log_probability_equals_the_equations_without_filters(engine: Engine) -> None:
    exact = Engine(CONFIG, WEIGHTS, precision="fp32")
    for text in Sampler(exact, VOCABULARY, SamplingConfig(count=3, **EVERYTHING)).texts(scored=True):
        ids = VOCABULARY.encode("So" + text.text)
        logits, _ = equations(CONFIG, WEIGHTS, ids[:-1, None], np.zeros(CONFIG.state_shape(1)))
        expected = -losses(logits, ids[1:, None])[1:].sum()  # the prime is not scored
        assert text.log_probability == pytest.approx(expected, abs=1e-3)


def test_best_of_selects_the_text_with_the_highest_mean_log_probability(engine: Engine) -> None:
    config = SamplingConfig(count=12, **EVERYTHING)
    candidates = list(Sampler(engine, VOCABULARY, config).texts(scored=True))
    assert all(text.log_probability is not None for text in candidates)
    best = [
        max(candidates[first : first + 4], key=lambda text: (text.log_probability or 0) / len(text.text))
        for first in (0, 4, 8)
    ]
    found = list(Sampler(engine, VOCABULARY, replace(config, count=3, best_of=4)).texts(scored=True))
    assert found == best
    assert [text.text for text in best] != [text.text for text in candidates[::4]]
    assert sampled_texts(engine, replace(config, count=3, best_of=4)) == [text.text for text in best]


def test_best_of_never_selects_an_empty_text(engine: Engine) -> None:
    seeds = range(40)
    empty = [s for s in seeds if sampled(engine, seed=s, stop=("e", "t", "a", " "), temperature=2.0) == ""]
    assert empty
    config = SamplingConfig(2.0, seed=empty[0], stop=("e", "t", "a", " "), best_of=16)
    (text,) = Sampler(engine, VOCABULARY, config).texts()
    assert text.text


def test_continuations_are_yielded_before_the_next_group_is_read_and_do_not_depend_on_groups(engine: Engine) -> None:
    primes = ["The ", "A", "", "So it", "The "]
    config = SamplingConfig(seed=3, lines=1, count=2)
    whole = [t.text for t in Sampler(engine, VOCABULARY, config).texts([primes])]
    given: list[str] = []

    def one_by_one() -> Any:
        for number, prime in enumerate(primes):
            assert len(given) == 2 * number
            yield [prime]

    for text in Sampler(engine, VOCABULARY, config).texts(one_by_one()):
        assert text.prime == primes[len(given) // 2]
        given.append(text.text)
    assert given == whole
    assert len(set(whole)) > 5
    alone = sampled(engine, length=2000, prime="The ", seed=3)
    assert whole[0] == alone[: alone.index("\n") + 1]


def test_the_probabilities_of_the_next_character_are_the_filtered_distribution(engine: Engine) -> None:
    context = advance(engine, VOCABULARY, "The ")
    logits, _ = engine.step([context.last], context.state)
    own = Sampler(engine, VOCABULARY, SamplingConfig(1.0)).next_probabilities(context)
    assert own == pytest.approx(np.exp(logits[0].astype(float)) / np.exp(logits[0].astype(float)).sum())
    filtered = Sampler(engine, VOCABULARY, SamplingConfig(1.0, top_k=3)).next_probabilities(context)
    assert np.count_nonzero(filtered) == 3
    assert filtered.sum() == pytest.approx(1)
