"""The sampler of a page generates the text of `charlstm sample`: the same seed, precision and options."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from charlstm import checkpoint
from charlstm.checkpoint import Checkpoint
from charlstm.config import ModelConfig
from charlstm.inference import filters
from charlstm.inference.automaton import Automaton
from charlstm.inference.filters import SamplingRule
from charlstm.model import Model
from charlstm.text.vocabulary import ByteVocabulary, Vocabulary
from tests.helpers.browser import engine_page, visit
from tests.helpers.commands import here
from tests.helpers.models import Weights, random_weights

if TYPE_CHECKING:
    from playwright.sync_api import Browser

VOCABULARIES: dict[str, Vocabulary] = {
    "characters": Vocabulary.of("\n abcdefghij é日😀"),
    "documents": Vocabulary.of("abcdef|\x1e").with_boundary("<|end|>"),
    "bytes": ByteVocabulary(),
    "documents of bytes": ByteVocabulary().with_boundary("\n\n"),
}
PRIMES = {
    "characters": "日a",
    "documents": "ab<|end|>c",
    "bytes": "x日\udce3\udc81",  # the last character is incomplete
    "documents of bytes": "é\n\nab",
}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0},
    {"temperature": 1, "top_k": 5},
    {"top_p": 0.8},
    {"temperature": 1.3, "min_p": 0.1},
    {"temperature": 1.5, "typical": 0.7},
    {"repeat_penalty": 1.7, "repeat_window": 9},
    {"temperature": 2, "top_k": 9, "top_p": 0.9, "min_p": 0.02, "typical": 0.9, "repeat_penalty": 1.2},
]
SAMPLE = "(options) => options.map((chosen) => charlstm.sample(chosen))"


def options_of_page(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options with the names that the page uses."""
    return {"".join([name.split("_")[0], *map(str.title, name.split("_")[1:])]): v for name, v in options.items()}


def model_of(kind: str, precision: Any) -> tuple[ModelConfig, Vocabulary, Weights, Model]:
    vocabulary = VOCABULARIES[kind]
    config = ModelConfig(len(vocabulary), 24, 1, 12, "lstm", boundary=vocabulary.boundary_id)
    weights = random_weights(config, scale=6)
    return config, vocabulary, weights, Model(config, vocabulary, weights, precision=precision)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("kind", VOCABULARIES)
def test_every_option_gives_the_text_of_the_library(
    browser: Browser, tmp_path: Path, kind: str, precision: str
) -> None:
    config, vocabulary, weights, model = model_of(kind, precision)
    engine_page(tmp_path / "page.html", config, vocabulary, weights, precision)
    chosen = [
        {"seed": seed, "prime": prime, "length": 150, **options}
        for seed in (0, 2**40)
        for options in OPTIONS
        for prime in ("", PRIMES[kind])
    ]
    with visit(browser, tmp_path / "page.html") as page:
        texts = page.run(SAMPLE, list(map(options_of_page, chosen)))
        assert page.incidents == []
    assert len(set(texts)) > len(OPTIONS)
    for options, text in zip(chosen, texts, strict=True):
        assert text == model.sample(**options), options


def test_ten_seeds_give_the_text_of_the_command(
    browser: Browser, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config, vocabulary, weights, _ = model_of("characters", "fp32")
    file = tmp_path / "model.safetensors"
    checkpoint.save(file, Checkpoint(config, vocabulary, weights, step=1))
    engine_page(tmp_path / "page.html", config, vocabulary, weights, "fp32")
    seeds = [*range(9), 2**53 - 1]
    with visit(browser, tmp_path / "page.html") as page:
        texts = page.run(SAMPLE, [{"length": 300, "seed": seed, "prime": "abc"} for seed in seeds])
        largest = page.run("charlstm.sample({ length: 50, seed: 2n ** 63n - 1n })")
    command = ["sample", "-c", file, "-n", 300, "--precision", "fp32", "--prime", "abc", "--seed"]
    assert texts == [here(capfd, *command, seed).text for seed in seeds]
    assert len(set(texts)) == len(seeds)
    assert largest == here(capfd, "sample", "-c", file, "-n", 50, "--precision", "fp32", "--seed", 2**63 - 1).text


def test_a_changed_random_number_gives_another_text(browser: Browser, tmp_path: Path) -> None:
    """Negative control of the comparisons above: a random number of the neighbouring position."""
    config, vocabulary, weights, model = model_of("characters", "fp32")
    engine_page(tmp_path / "page.html", config, vocabulary, weights, "fp32")
    source = (tmp_path / "page.html").read_text()
    changed = source.replace("BigInt(position + 1)", "BigInt(position + 2)").replace("Content-Security-Policy", "x")
    (tmp_path / "page.html").write_text(changed)
    with visit(browser, tmp_path / "page.html") as page:
        assert page.run(SAMPLE, [{"length": 300, "seed": 1}])[0] != model.sample(length=300, seed=1)


@pytest.mark.parametrize("kind", ["documents", "documents of bytes"])
def test_without_a_length_the_text_is_one_document(browser: Browser, tmp_path: Path, kind: str) -> None:
    config, vocabulary, weights, model = model_of(kind, "fp32")
    engine_page(tmp_path / "page.html", config, vocabulary, weights, "fp32")
    chosen: list[dict[str, Any]] = [{"seed": seed, "temperature": 3} for seed in range(10)]
    chosen.append({"seed": 1, "temperature": 0})  # it has a limit
    with visit(browser, tmp_path / "page.html") as page:
        texts = page.run(SAMPLE, chosen)
    assert texts == [model.sample(**options) for options in chosen]
    assert all(vocabulary.boundary not in text for text in texts)


def test_distributions_equal_the_reference(browser: Browser, tmp_path: Path) -> None:
    config, vocabulary, weights, _ = model_of("bytes", "fp32")
    engine_page(tmp_path / "page.html", config, vocabulary, weights, "fp32")
    random = np.random.default_rng(4)
    logits = random.normal(0, 3, 256).astype(np.float32)
    recent = [*random.integers(0, 256, 20).tolist(), 0xE3]
    assert vocabulary.transitions is not None
    automaton = Automaton.of_table(vocabulary.transitions)
    script = """([logits, options, recent]) =>
        Array.from(charlstmSampler.distribution(Float32Array.from(logits), options, recent, model))"""
    with visit(browser, tmp_path / "page.html") as page:
        assert vocabulary.transitions is not None
        automaton = Automaton.of_table(vocabulary.transitions)
        for options in OPTIONS:
            given = {name: value for name, value in options.items() if not name.startswith("repeat")}
            penalty = {"penalty": options.get("repeat_penalty", 1), "window": options.get("repeat_window", 64)}
            rule = SamplingRule(**{"temperature": 0.8, **given, **penalty}, automaton=automaton)
            phase = vocabulary.state_after(np.array(recent))
            expected = filters.distribution(logits, rule, np.array(recent), phase)
            found = page.run(script, [logits.tolist(), options_of_page(options), recent])
            assert found == pytest.approx(expected, abs=1e-12)
            assert phase != 0


def test_invalid_options_and_infinite_logits_are_errors(browser: Browser, tmp_path: Path) -> None:
    config, vocabulary, weights, _ = model_of("characters", "fp32")
    weights["projection.bias"][:] = np.float32(3e38)
    weights["projection.weight"][:] = np.float32(3e38)
    engine_page(tmp_path / "page.html", config, vocabulary, weights, "fp32")
    with visit(browser, tmp_path / "page.html") as page:
        for options, message in (
            ({"topP": 1.5}, "topP must be a number from 0 to 1, not 1.5"),
            ({"temperature": -1}, "temperature must be a number of at least 0, not -1"),
            ({"length": 2.5}, "length must be a whole number from 0 to 1000000, not 2.5"),
            ({"topK": "3"}, "topK must be a whole number"),
            ({"prime": "x"}, "the model has no symbol for x"),
            ({"seed": "x"}, "BigInt"),
            ({}, "logits are not finite"),
        ):
            with pytest.raises(Exception, match=message):
                page.run(SAMPLE, [options])


def test_labels_show_every_character_and_none_that_acts(browser: Browser, tmp_path: Path) -> None:
    config, vocabulary, weights, _ = model_of("characters", "fp32")
    engine_page(tmp_path / "page.html", config, vocabulary, weights, "fp32")
    symbols = ["a", "\n", " ", "\t", "\0", "\u202e", "\u2028", "\u00a0", "\u0301", "日", "<|end|>", "\udcff"]
    script = "(symbols) => symbols.map((symbol) => charlstmText.printable(symbol))"
    expected = ["a", "↵", "␣", "⇥", "U+0000", "U+202E", "U+2028", "U+00A0", "U+0301", "日", "<|end|>", "0xFF"]
    with visit(browser, tmp_path / "page.html") as page:
        assert page.run(script, symbols) == expected
