"""The page of `charlstm explain` in Chromium: elements, interactions, numbers, and nothing but its own scripts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import charlstm
from charlstm.config import Cell, ModelConfig
from charlstm.model import Model
from charlstm.text.vocabulary import ByteVocabulary
from tests.helpers.browser import Visit, visit
from tests.helpers.commands import here
from tests.helpers.explanations import CHARS, random_model, wait, write_page
from tests.helpers.models import CELLS, random_weights, real_text

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text and two runs, `lstm` and `rnn`, of which the first kept its checkpoints."""
    pytest.importorskip("torch")
    from charlstm.training.trainer import train

    folder = tmp_path_factory.mktemp("runs")
    (folder / "text").write_text(real_text(30_000), encoding="utf-8")
    text = charlstm.read([folder / "text"])
    common: dict[str, Any] = {
        "embedding": 8,
        "steps": 300,
        "batch_size": 8,
        "seq_len": 16,
        "threads": 1,
        "valid_chars": 700,
    }
    train(text, run=folder / "lstm", hidden=24, validations=4, keep=4, **common)
    train(text, run=folder / "rnn", cell="rnn", hidden=16, **common)
    return folder


@pytest.fixture(scope="module")
def model(runs: Path) -> Model:
    """The trained LSTM."""
    return charlstm.load(runs / "lstm", precision="fp32")


@pytest.fixture(scope="module")
def opened(runs: Path, model: Model, browser: Browser) -> Iterator[Visit]:
    """The page of the LSTM beside the RNN, after it has computed the text."""
    beside = [charlstm.load(runs / "rnn", precision="fp32")]
    with visit(browser, write_page(runs / "page.html", model, beside=beside), reduced_motion="reduce") as found:
        wait(found)
        yield found


# ---- elements ----

ELEMENTS = {
    "1 text": "#text-view span",
    "2 predictions": "#predictions-body .column > span:nth-child(6)",
    "3 units": "#units-body table.bars .mark",
    "4 traces": "#gates-body svg.traces path.line",
    "4 equation": "#gates-body .equation .term",
    "5 saturation": "#saturation-body .scatter-chart circle",
    "6 gradients": "#gradients-body .line-chart path.line",
    "7 influence": "#influence-body .line-chart path.line",
    "8 phrase": "#phrase-result .places li",
    "9 hands on": "#clamp-held span",
    "9 ablation": "#intervene-body table.bars tbody tr",
    "10 sampling": "#sampling-bars tbody tr",
    "11 n-grams": "#ngrams-body table.bars tbody tr",
    "12 learning": "#history-body .line-chart path.line",
    "12 checkpoints": "#checkpoint-slider",
    "13 copy meter": "#copying-body table.bars tbody tr",
    "14 tour": "#tour:not([hidden]) h2",
}


def missing_elements(found: Visit) -> set[str]:
    script = "found => Object.keys(found).filter((name) => !document.querySelector(found[name]))"
    return set(found.run(script, ELEMENTS))


def test_every_element_is_present(opened: Visit) -> None:
    opened.run("document.getElementById('influence').scrollIntoView()")
    opened.wait_for("document.querySelector('#influence-body .line-chart')")
    opened.page.click("#clamp-run")
    opened.run("page.state.set({ phrase: [30, 32] })")
    opened.page.fill("#phrase-threshold", "0.05")
    opened.page.click("#tour-start")
    assert missing_elements(opened) == set()
    opened.page.click("#tour-close")
    opened.run("document.querySelector('#ngrams-body table.bars').remove()")
    assert missing_elements(opened) == {"11 n-grams", "14 tour"}


def test_the_text_of_the_page_is_the_text(opened: Visit, model: Model) -> None:
    shown = opened.run("[...document.querySelectorAll('#text-view span')].map((span) => span.textContent)")
    text = model.explain(chars=CHARS).text
    assert [part.replace("↵", "") for part in shown] == list(text)


# ---- interactions ----

COLOURS = "[...document.querySelectorAll('#text-view span')].slice(0, 200).map((span) => span.style.background).join()"


def text_of(selector: str) -> str:
    return f"document.querySelector({selector!r})?.textContent"


def click(selector: str) -> Callable[[Visit], None]:
    return lambda found: found.page.click(selector)


def press(selector: str, key: str) -> Callable[[Visit], None]:
    def act(found: Visit) -> None:
        found.page.focus(selector)
        found.page.keyboard.press(key)

    return act


def fill(selector: str, value: str) -> Callable[[Visit], None]:
    return lambda found: found.page.fill(selector, value)


def hover(found: Visit) -> None:
    found.page.locator("#text-view span").nth(57).hover()


def drag(found: Visit) -> None:
    first, last = (found.page.locator("#text-view span").nth(k).bounding_box() for k in (61, 64))
    assert first
    assert last
    found.page.mouse.move(first["x"] + 2, first["y"] + 5)
    found.page.mouse.down()
    found.page.mouse.move(last["x"] + 2, last["y"] + 5)
    found.page.mouse.up()


def colour_by_surprisal(found: Visit) -> None:
    found.page.select_option("#colour-controls select", "surprisal")


INTERACTIONS: dict[str, tuple[Callable[[Visit], None], str]] = {
    "the down arrow selects the next unit": (press("#text-view", "ArrowDown"), "page.state.get('unit')"),
    "the next unit colours the text": (click("#unit-controls button:last-of-type"), COLOURS),
    "another quantity colours the text": (click("#colour-controls .chips button:nth-child(2)"), COLOURS),
    "surprisal colours the text": (colour_by_surprisal, COLOURS),
    "the right arrow moves the character": (press("#text-view", "ArrowRight"), text_of("#character")),
    "the pointer shows a character": (hover, text_of("#character")),
    "a click on a prediction selects the character": (
        click("#predictions-body .column:nth-child(9)"),
        text_of("#gates-body h3"),
    ),
    "later predictions": (click("#predictions-forward"), text_of("#predictions-body .grid-of-guesses")),
    "a named unit is selected": (click("#units-body tbody tr:nth-child(2) button"), text_of("#gates-title")),
    "a point of the saturation is selected": (click("#saturation-body .chart-holder"), text_of("#gates-title")),
    "the gradients can be read by keys": (
        press("#gradients-body .chart-holder", "ArrowRight"),
        text_of("#gradients-body .readout"),
    ),
    "the influence colours the text": (click("#influence-show"), COLOURS),
    "a drag selects a phrase": (drag, text_of("#phrase-result")),
    "a longer phrase": (click("#phrase-longer"), text_of("#phrase-result")),
    "the threshold changes the units of a phrase": (fill("#phrase-threshold", "0.95"), text_of("#phrase-result")),
    "a held forget gate changes the text": (click("#clamp-forget"), text_of("#clamp-held")),
    "a held unit changes the text": (click("#clamp-on"), text_of("#clamp-held")),
    "a step adds a character": (click("#sampling-step"), "document.querySelector('#sampling-output').dataset.text"),
    "the temperature changes the bars": (fill("#sampling-temperature", "0.3"), text_of("#sampling-bars")),
    "top-k changes the bars": (fill("#sampling-topK", "2"), text_of("#sampling-bars")),
    "top-p changes the bars": (fill("#sampling-topP", "0.3"), text_of("#sampling-bars")),
    "min-p changes the bars": (fill("#sampling-minP", "0.5"), text_of("#sampling-bars")),
    "all is written": (click("#sampling-all"), text_of("#sampling-output")),
    "an earlier validation": (fill("#history-slider", "0"), text_of("#history-sample")),
    "an earlier checkpoint colours the text": (fill("#checkpoint-slider", "0"), COLOURS),
    "another generated text": (click("#copying-body tbody tr:nth-child(2) button"), text_of("#copy-text")),
    "the tour moves on": (click("#tour-next"), text_of("#tour-title")),
    "dark and light": (click("#theme"), "getComputedStyle(document.body).backgroundColor"),
}


def test_every_interaction_changes_what_it_should(opened: Visit) -> None:
    page = opened.page
    opened.run("page.state.set({ position: 50, pointer: null, phrase: null, colouring: 'unit' })")
    page.click("#tour-start")
    page.keyboard.press("Escape")
    without = []
    for name, (act, probe) in INTERACTIONS.items():
        if name == "the tour moves on":
            page.click("#tour-start")
        if name == "a held forget gate changes the text":
            opened.run("document.getElementById('clamp-held').replaceChildren()")
        if name == "a step adds a character":
            page.click("#sampling-restart")
        if name.startswith(("top-p", "min-p")):  # without the filter before it
            page.fill("#sampling-topK", "0")
            page.fill("#sampling-topP", "1")
            page.fill("#sampling-temperature", "1.5")
        before = opened.run(probe)
        act(opened)
        page.wait_for_timeout(30)
        if opened.run(probe) == before:
            without.append(name)
    assert without == []
    page.click("#tour-close")
    assert len(INTERACTIONS) >= 12
    assert opened.incidents == []


def test_a_click_that_means_nothing_changes_nothing(opened: Visit) -> None:
    probes = [probe for _, probe in INTERACTIONS.values() if "#tour" not in probe]
    opened.run("page.state.set({ pointer: null })")
    before = [opened.run(probe) for probe in probes]
    opened.page.click("#units-title")
    opened.page.mouse.move(2, 2)
    assert [opened.run(probe) for probe in probes] == before


def test_play_writes_until_it_is_paused(opened: Visit) -> None:
    opened.page.click("#sampling-restart")
    opened.page.select_option("#sampling-speed", "fast")
    length = "document.querySelector('#sampling-output').dataset.text.length"
    opened.page.click("#sampling-play")
    opened.wait_for(f"{length} > 20")
    opened.page.click("#sampling-play")
    stopped = opened.run(length)
    opened.page.wait_for_timeout(100)
    assert 20 < stopped == opened.run(length)


def test_the_whole_page_can_be_reached_with_the_keyboard(opened: Visit) -> None:
    nameless = opened.run(
        """() => [...document.querySelectorAll('button, a, input, select, textarea, [tabindex="0"]')]
        .filter((node) => !(node.textContent.trim() || node.getAttribute('aria-label') || node.closest('label')))
        .map((node) => node.outerHTML)"""
    )
    assert nameless == []
    assert opened.run("[...document.querySelectorAll('svg.chart')].every((chart) => chart.getAttribute('aria-label'))")
    focusable = "document.querySelectorAll('.chart-holder:not([tabindex])').length"
    assert opened.run(focusable) == 0
    opened.run("document.querySelector('.chart-holder').removeAttribute('tabindex')")
    assert opened.run(focusable) == 1  # the check can fail


@pytest.mark.parametrize(("width", "theme"), [*itertools.product((360, 800, 1440), ("light", "dark"))])
def test_the_page_fits_every_width(runs: Path, model: Model, browser: Browser, width: int, theme: str) -> None:
    del model
    size = {"width": width, "height": 900}
    with visit(browser, runs / "page.html", viewport=size, color_scheme=theme) as found:
        wait(found)
        too_wide = """() => [...document.querySelectorAll('main *')]
            .filter((node) => !node.closest('svg, .scroll, .equation'))
            .filter((node) => node.getBoundingClientRect().right > innerWidth + 1)
            .map((node) => node.outerHTML.slice(0, 99))"""
        assert found.run(too_wide) == []
        assert found.run("document.documentElement.scrollWidth") <= width
        assert found.run("document.documentElement.dataset.theme") == theme
        assert found.incidents == []
        found.run("document.querySelector('main').append(page.el('div', { style: { width: '3000px' }, text: 'x' }))")
        assert found.run(too_wide) != []


# ---- numbers ----


def logits_of(found: Visit, texts: list[str]) -> np.ndarray[Any, Any]:
    return np.array(found.run("(texts) => texts.map((text) => window.charlstm.logits(text))", texts))


def expected_logits(model: Model, text: str, count: int) -> np.ndarray[Any, Any]:
    """Return the logits (count, V) of the engine after each of the first symbols of a text."""
    ids = model.vocabulary.encode(text)[:count]
    state, rows = model.scorer.zero_state(), []
    for symbol in ids.tolist():
        logits, state = model.scorer.step(np.array([symbol], np.int32), state)
        rows.append(logits[0].copy())
    return np.array(rows)


def test_the_logits_are_those_of_the_engine_at_200_positions(opened: Visit, model: Model) -> None:
    text = real_text(200)
    ours = logits_of(opened, [text[:end] for end in range(1, 201)])
    theirs = expected_logits(model, text, 200)
    assert np.abs(ours - theirs).max() < 1e-4
    other = expected_logits(model, "x" + text[1:], 200)  # one other character at the beginning
    assert np.abs(ours - other).max() > 1e-4


def test_the_sampled_text_is_that_of_the_command(opened: Visit, runs: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def sampled(seed: int) -> str:
        options = ["--seed", seed, "-n", 120, "--temp", 0.9, "--prime", "The ", "--precision", "fp32"]
        return here(capfd, "sample", "-c", runs / "lstm", *options).text

    script = "(seed) => window.charlstm.sample({ prime: 'The ', length: 120, temperature: 0.9, seed })"
    ours = [opened.run(script, seed) for seed in range(10)]
    theirs = [sampled(seed) for seed in range(10)]
    assert ours == theirs
    assert ours != theirs[1:] + theirs[:1]


def test_the_sampling_element_writes_the_text_of_the_command(
    opened: Visit, runs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    page = opened.page
    for name, value in {"temperature": "0.7", "topK": "0", "topP": "0.9", "minP": "0.02"}.items():
        page.fill(f"#sampling-{name}", value)
    page.fill("#sampling-prime", "It was")
    page.fill("#sampling-seed", "5")
    page.fill("#sampling-length", "150")
    page.click("#sampling-all")
    options = ["--temp", 0.7, "--top-p", 0.9, "--min-p", 0.02, "--seed", 5, "-n", 150, "--precision", "fp32"]
    written = here(capfd, "sample", "-c", runs / "lstm", "--prime", "It was", *options).text
    assert opened.run("document.querySelector('#sampling-output').dataset.text") == written
    command = opened.run(text_of("#sampling-command"))
    assert "--temp 0.7 --top-p 0.9 --min-p 0.02 --seed 5 -n 150" in command


def test_the_equation_holds_for_the_numbers_that_are_shown(opened: Visit) -> None:
    opened.run("page.state.set({ position: 123, pointer: null, unit: 5, layer: 0 })")
    opened.page.wait_for_timeout(100)
    shown = opened.run("[...document.querySelectorAll('.equation .term span')].map((span) => span.textContent)")
    c, f, old, i, g, h, o, again = (float(number.replace("−", "-")) for number in shown)
    assert c == pytest.approx(f * old + i * g, abs=3e-3)
    assert h == pytest.approx(o * np.tanh(c), abs=3e-3)
    assert c == again
    assert c != pytest.approx(f * old, abs=1e-3) or i * g == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_influence_and_the_activations_are_those_of_the_explanation(
    browser: Browser, tmp_path: Path, cell: Cell, precision: str
) -> None:
    model = random_model(cell, real_text(400), layers=2)
    found = model.explain(real_text(400))
    with visit(browser, write_page(tmp_path / "page.html", model, real_text(400), precision=precision)) as page:
        wait(page)
        tolerance = 1e-4 if precision == "fp32" else 0.3
        for t in (1, 2, 30, 200):
            ours = np.array(page.run("(t) => page.influence(page.current.trace, t, page.current.firstBias)", t))
            theirs = found.connectivity.values[t - 1]
            count = min(len(ours), len(theirs))
            assert np.abs(ours[:count] - theirs[:count]).max() < tolerance
            assert count < 20 or np.abs(ours[: count - 1] - theirs[1:count]).max() > tolerance
        if precision == "fp32":
            values = page.run("[...Array(8).keys()].map((unit) => page.current.trace.value(1, unit, 'h', 99))")
            assert values == pytest.approx(found.trace.h[99, 1].tolist(), abs=1 / 120)
        assert page.incidents == []


# ---- models of every kind ----


@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_has_a_page(browser: Browser, tmp_path: Path, cell: Cell) -> None:
    model = random_model(cell, real_text(500), layers=2)
    with visit(browser, write_page(tmp_path / "page.html", model, real_text(500))) as found:
        wait(found)
        found.page.click("#card-gate")
        found.page.click("#sampling-step")
        for _ in range(6):
            found.page.click("#tour-start" if found.run("document.getElementById('tour').hidden") else "#tour-next")
        gates = found.run("[...document.querySelectorAll('#gates-body .track-name')].map((node) => node.textContent)")
        assert len(gates) == {"lstm": 6, "peephole": 6, "coupled": 5, "gru": 4, "rnn": 1}[cell]
        assert found.incidents == []


def test_documents_and_bytes_have_a_page(browser: Browser, tmp_path: Path) -> None:
    names = "Ada\nBoole\nCantor\nDedekind\n" * 12
    documents = random_model("lstm", names.replace("\n", ""), boundary="\n")
    config = ModelConfig(256, 8, 1, 5, "gru")
    bytes_model = Model(config, ByteVocabulary(), random_weights(config), precision="fp32")
    for name, model, text in (("d", documents, names), ("b", bytes_model, "naïve 日本 \udcff\n" * 20)):
        with visit(browser, write_page(tmp_path / f"{name}.html", model, text)) as found:
            wait(found)
            found.page.click("#sampling-all")
            found.page.click("#clamp-run")
            assert found.run("document.querySelectorAll('#text-view span').length") == len(model.encode(text)[0])
            assert found.incidents == []


def test_what_is_missing_is_said(browser: Browser, tmp_path: Path) -> None:
    model = random_model("rnn", "abc ")
    with visit(browser, write_page(tmp_path / "page.html", model, "abc abc")) as found:
        wait(found)
        for part in ("units", "saturation", "ngrams", "history", "copying"):
            assert len(found.run(text_of(f"#{part}-body .missing"))) > 20, part
        assert found.incidents == []
