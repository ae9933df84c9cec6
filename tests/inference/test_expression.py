"""Texts that match a regular expression: Python's `re` is the reference, and small models are enumerated."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from charlstm.config import ModelConfig, SamplingConfig
from charlstm.errors import UsageError
from charlstm.inference import expression
from charlstm.inference.automaton import Automaton
from charlstm.inference.engine import Engine
from charlstm.inference.sampling import Sampler, Stream
from charlstm.text.vocabulary import ByteVocabulary, Vocabulary
from tests.helpers.engines import BACKENDS, engine_of
from tests.helpers.models import chance, random_weights

CHARS = Vocabulary("".join(sorted("abcABCxyzkK019-_ .\n\té\u212a٣É")))
BYTES = ByteVocabulary()
EXPRESSIONS = [
    r"\d+", r"\w+", r"\s", r"(?i)é", r"(?i:k)", r"[^\W\d]+", r"\D", r".", r"(?s:.)", r"a$", r"^a$", r"\x41",
    r"(?P<x>a)b", r"(?:a|b){2,3}?", r"[\w-]+", r"[]a]", r"a{,3}", r"\Aa\Z", r"(?x) a b # c", r"(?a:\w)",
    r"(a|b)*a(a|b){3}", r"(ab?c*){2,4}", r"(a*)*b", r"(a|)+b?", r"(|a){3}", r"(^a|^b)(c|x$)", r"a{0}b",
    r"(a{2,3}){0,2}c+", r"((a?){3}b?)*x", r"[^a]+", r"(?i:[^a])x?",
]  # fmt: skip


def accepts(automaton: Automaton, ids: Any) -> bool:
    """Return whether an automaton accepts a text, by its tables alone."""
    assert automaton.distances is not None
    state = 0
    for symbol in ids:
        state = int(automaton.follows[state, automaton.classes[symbol]])
        if state in (-1, automaton.end):
            return False
    return bool(automaton.distances[state] == 0)


@pytest.mark.parametrize("pattern", EXPRESSIONS)
def test_the_automaton_accepts_exactly_the_full_matches_of_re(pattern: str) -> None:
    rng = np.random.default_rng(1)
    texts = ["".join(chars) for length in range(5) for chars in itertools.product("abcx", repeat=length)]
    texts += ["".join(rng.choice(list(CHARS.symbols), rng.integers(1, 4))) for _ in range(300)]
    expected = [re.fullmatch(pattern, text) is not None for text in texts]
    assert any(expected), "the expression has no match among the texts"
    assert not all(expected)
    for vocabulary in (CHARS, BYTES):
        automaton = expression.automaton(pattern, vocabulary)
        assert [accepts(automaton, vocabulary.encode(text)) for text in texts] == expected


@pytest.mark.parametrize("pattern", [r"\w", r"\D", r".", r"(?i:k|ß|é)", r"\s", r"[^\w\u0400-\U0001f600]"])
def test_a_character_class_over_bytes_contains_the_characters_of_re(pattern: str) -> None:
    automaton = expression.automaton(pattern, BYTES)
    codes = [code for code in [*range(0x3000), *range(0x3000, 0x110000, 61)] if not 0xD800 <= code < 0xE000]
    found = [accepts(automaton, chr(code).encode()) for code in codes]
    assert found == [re.fullmatch(pattern, chr(code)) is not None for code in codes]
    for invalid in (b"\xc0\x80", b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xff", b"\xe2\x82"):
        assert not accepts(automaton, invalid)


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        (r"(a)\1", "a back-reference, which is not supported"),
        (r"(?=a)a", "a look-ahead or look-behind, which"),
        (r"(?<!a)b", "a look-ahead or look-behind, which"),
        (r"a\b", "a word boundary, which"),
        (r"a^b", "an anchor that is not at its beginning or end, which"),
        (r"(a)?(?(1)b|c)", "a condition on a group, which"),
        (r"(a", "is not a valid regular expression: missing"),
        (r"[b-a]", "is not a valid regular expression: bad character range"),
        ("(" * 5000 + "a" + ")" * 5000, "too many nested groups"),
        (r"(a{1,500}){1,500}", "is too long"),
        (r"(a|b)*a(a|b){18}", "is too complex"),
        (r"(a{1,90}){1,90}", "is too complex"),
        (r"q", "matches no text of characters that may be generated"),
    ],
)
def test_an_unsupported_or_hostile_expression_is_refused_with_one_clear_line(pattern: str, problem: str) -> None:
    with pytest.raises(UsageError, match=re.escape(problem)) as caught:
        expression.automaton(pattern, CHARS)
    assert len(str(caught.value)) < 300


# ---- sampling ----

LETTERS = Vocabulary("\nabc")
CONFIG = ModelConfig(4, hidden=6, embedding=3)
WEIGHTS = {name: 6 * array for name, array in random_weights(CONFIG, 2).items()}
FILTERS: list[dict[str, Any]] = [
    {},
    {"top_k": 2},
    {"top_p": 0.5},
    {"min_p": 0.4},
    {"typical": 0.5},
    {"repeat_penalty": 1.5},
    {"temperature": 0.0},
    {"ban": "b"},
    {"best_of": 3},
]


def sampler(backend: str = "numpy", vocabulary: Vocabulary = LETTERS, **options: Any) -> Sampler:
    return Sampler(engine_of(CONFIG, WEIGHTS, backend), vocabulary, SamplingConfig(**{"temperature": 1.0, **options}))


def enumerated(pattern: str, length: int, step: Callable[[Sampler, Any, list[int], bool], Any]) -> dict[str, float]:
    """Return the probability of each text, from a walk over all texts that knows nothing of automata.

    Args:
        pattern: the expression.
        length: the largest number of characters.
        step: from a sampler, the context, the ids with which a match can be continued and whether the text matches to
            the weight of each id, and the weight of the end.
    """
    plain = sampler()
    alphabet = LETTERS.symbols
    texts = ["".join(chars) for n in range(length + 1) for chars in itertools.product(alphabet, repeat=n)]
    matching = {text for text in texts if re.fullmatch(pattern, text)}
    begun = {text[:n] for text in matching for n in range(len(text) + 1)}
    found: dict[str, float] = {}

    def walk(text: str, context: Any, probability: float) -> None:
        viable = [k for k, char in enumerate(alphabet) if text + char in begun]
        ends = text in matching
        if not viable:
            found[text] = found.get(text, 0) + probability
            return
        weights, end = step(plain, context, viable, ends)
        if end:
            found[text] = found.get(text, 0) + probability * end
        for k in viable:
            if weights[k]:
                _, state = plain.engine.step([context.last], context.state)
                walk(text + alphabet[k], context.moved(state, np.array([k])), probability * float(weights[k]))

    walk("", plain._start("", None, 0), 1.0)
    return found


def masked(plain: Sampler, context: Any, viable: list[int], ends: bool) -> tuple[Any, float]:
    """Renormalise over the symbols that continue a match, unless the text may end here."""
    shares = plain.next_probabilities(context)
    inside = shares[viable].sum()
    return (shares, float(1 - inside)) if ends else (shares / inside, 0.0)


def free(plain: Sampler, context: Any, viable: list[int], ends: bool) -> tuple[Any, float]:
    """Sample freely: the first symbol outside ends a text that matches, and rejects one that does not."""
    shares = plain.next_probabilities(context)
    return shares, float(1 - shares[viable].sum()) if ends else 0.0


def p_value(counts: Counter[str], expected: dict[str, float]) -> float:
    assert counts.keys() <= expected.keys()
    texts = sorted(expected)
    return chance(np.array([counts[text] for text in texts]), np.array([expected[text] for text in texts]))


CASES = [(r"a\n|[bc]{2}", 4), (r"(a|bc)+\n", 5), (r"ab|ba|c[abc]{2}", 3)]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("pattern", "length"), CASES)
def test_texts_follow_the_enumerated_distribution(pattern: str, length: int, backend: str) -> None:
    """Apply a χ² test. The distribution of rejection sampling is another one, which the same test rejects."""
    options: dict[str, Any] = {"match": pattern, "length": length, "seed": 3, "count": 8000}
    counts = Counter(text.text for text in sampler(backend, **options).texts())
    assert p_value(counts, enumerated(pattern, length, masked)) > 1e-4
    assert p_value(counts, enumerated(pattern, length, free)) < 1e-9  # negative control


def test_the_distribution_is_that_of_rejection_sampling_if_only_the_first_character_is_restricted() -> None:
    counts = Counter(text.text for text in sampler(match=r"[ab]{1,3}c?", length=4, seed=3, count=8000).texts())
    assert p_value(counts, enumerated(r"[ab]{1,3}c?", 4, free)) > 1e-4


@pytest.mark.parametrize(("pattern", "length"), CASES)
def test_texts_that_are_kept_with_their_weight_follow_rejection_sampling(pattern: str, length: int) -> None:
    """Keep each text with probability e^log_weight. Without that, the same test fails: see the test above."""
    rng = np.random.default_rng(7)
    texts = [*sampler(match=pattern, length=length, seed=9, count=3000).texts(scored=True)]
    kept: Counter[str] = Counter()
    for text in texts:
        assert text.log_weight is not None
        assert text.log_weight <= 1e-9
        kept[text.text] += rng.random() < math.exp(text.log_weight)
    expected = enumerated(pattern, length, free)
    assert p_value(+kept, expected) > 1e-4
    share = sum(expected.values())  # the share of free texts that match is the mean weight
    assert kept.total() / 3000 == pytest.approx(share, abs=5 * math.sqrt(share / 3000))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("pattern", "length"), CASES)
def test_a_greedy_text_is_the_one_of_an_exhaustive_search(pattern: str, length: int, backend: str) -> None:
    def likeliest(plain: Sampler, context: Any, viable: list[int], ends: bool) -> tuple[Any, float]:
        shares = plain.next_probabilities(context)
        best = max(range(4) if ends else viable, key=lambda k: shares[k])
        return np.arange(4) == best, float(best not in viable)

    (expected,) = enumerated(pattern, length, likeliest)
    assert next(sampler(backend, temperature=0.0, match=pattern, length=length).texts()).text == expected


@pytest.mark.parametrize("options", FILTERS, ids=lambda options: next(iter(options), "none"))
def test_all_texts_match_with_every_filter_and_natively_equal_those_of_numpy(options: dict[str, Any]) -> None:
    for pattern, length in [*CASES, (r"(a|b|c|\n){2,}", 8), (r"[^a]*a[^a]*", 7)]:
        settings = {"match": pattern, "length": length, "seed": 1, "count": 20, "prime": "cab", **options}
        texts = [text.text for text in sampler(**settings).texts()]
        assert all(re.fullmatch(pattern, text) and len(text) <= length for text in texts)
        for backend in BACKENDS:
            assert [text.text for text in sampler(backend, **settings).texts()] == texts
        if options.get("best_of", 1) == 1:
            assert "".join(sampler(**{**settings, "count": 1}).stream()) == texts[0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_texts_of_a_model_of_bytes_match(backend: str) -> None:
    config = ModelConfig(256, hidden=6, embedding=3)
    engine = engine_of(config, random_weights(config, 2), backend)
    for pattern in (r"\w{3}", r"[а-яё]+( [а-яё]+)?", r"(?i)k[^\x00-\x7f]{2}.", r"\d\d:\d\d"):
        for options in ({}, {"top_k": 5}, {"prime": "é\udce2"}, {"only": "0123456789:"}, {"best_of": 2}):
            settings = SamplingConfig(**{"match": pattern, "length": 24, "seed": 4, "count": 12, **options})  # type: ignore[arg-type]
            if "only" in options and pattern != r"\d\d:\d\d":
                continue
            texts = [text.text for text in Sampler(engine, BYTES, settings).texts()]
            assert all(re.fullmatch(pattern, text) for text in texts)
    other = SamplingConfig(length=24, seed=4, count=12)
    assert not all(re.fullmatch(r"\w{3}", text.text) for text in Sampler(engine, BYTES, other).texts())


def test_a_text_of_a_model_of_documents_never_crosses_the_boundary() -> None:
    vocabulary = Vocabulary("\nabc", boundary="\n")
    config = replace(CONFIG, boundary=0)
    own = Sampler(
        Engine(config, WEIGHTS, backend="numpy"), vocabulary, SamplingConfig(match=r"(.|\n)*", count=50, seed=1)
    )
    texts = [*own.texts()]
    assert {text.ended for text in texts} == {"match"}  # before the boundary
    assert len({text.text for text in texts}) > 20
    assert all("\n" not in text.text for text in texts)


def test_what_ended_a_text_is_told() -> None:
    ends = {pattern: next(sampler(match=pattern, length=6, seed=2).texts()) for pattern in ("abc", "a{6,}", "a*")}
    assert [(text.text, text.ended) for text in ends.values()][:2] == [("abc", "match"), ("aaaaaa", "length")]
    assert ends["a*"].ended == "match"


def test_a_length_that_no_match_fits_is_refused_before_sampling() -> None:
    with pytest.raises(UsageError, match="the shortest text that matches has 5 symbols, more than the maximum of 4"):
        sampler(match="a{5}", length=4)
    with pytest.raises(UsageError, match="matches no text of characters that may be generated"):
        sampler(match="a{5}", ban="a")
    assert isinstance(sampler(match="a{5}", length=5).stream(), Stream)


TWENTY = [
    r"\d{4}-\d\d-\d\d", r"[A-Z][a-z]+( [A-Z][a-z]+){1,2}", r"(?i)the .{5,40}\.", r"\w+@\w+\.(com|org)", r"[01]{8}",
    r"(ab|ba)+", r"[^\s]{10}", r"\"[^\"\n]*\"", r"#[0-9a-f]{6}", r"(\d{1,3}\.){3}\d{1,3}", r"a.*z", r"\w( \w)*",
    r"(?s).{0,50}", r"[aeiou]{2,}", r"(0|[1-9]\d*)(\.\d+)?", r"\(\w*\)", r"([a-z]+, ){3}[a-z]+", r"-?\d+e[+-]\d\d",
    r"x{0,3}(y|z)?", r"[A-Za-z]+:( ?[a-z]+)+!",
]  # fmt: skip


@pytest.mark.parametrize("count", [10, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["chars", "bytes"])
def test_all_texts_of_twenty_expressions_match(kind: str, count: int) -> None:
    """10,000 texts of 20 expressions in the slow case; without the expression, hardly any text matches."""
    vocabulary = BYTES if kind == "bytes" else Vocabulary("".join(map(chr, [9, 10, *range(32, 127)])))
    config = ModelConfig(len(vocabulary), hidden=8, embedding=4)
    engine = Engine(config, {name: 3 * array for name, array in random_weights(config, 1).items()})
    matching = total = by_chance = 0
    for seed, pattern in enumerate(TWENTY):
        options = SamplingConfig(match=pattern, length=60, seed=seed, count=count, top_p=0.95)
        for text in Sampler(engine, vocabulary, options).texts():
            matching += re.fullmatch(pattern, text.text) is not None
            total += 1
        plain = replace(options, match=None, count=2)
        by_chance += sum(bool(re.fullmatch(pattern, text.text)) for text in Sampler(engine, vocabulary, plain).texts())
    assert matching == total == 20 * count
    assert by_chance < 10
