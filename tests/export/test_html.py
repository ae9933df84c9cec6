"""An exported page runs the model: its playground in Chromium, and what hostile models and texts can do to it."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import charlstm
from charlstm import checkpoint
from charlstm.checkpoint import Checkpoint
from charlstm.config import ModelConfig
from charlstm.export.html import export_html
from charlstm.model import Model
from charlstm.provenance import CorpusRecord
from charlstm.text.vocabulary import ByteVocabulary, Vocabulary
from tests.helpers.browser import Visit, visit
from tests.helpers.commands import ROOT, here, model_file
from tests.helpers.models import random_weights

if TYPE_CHECKING:
    from playwright.sync_api import Browser

HOSTILE = "".join(map(chr, range(128))) + "\x80\u2028\u202e\u2066\ufeff\U0001f600"
SCRIPT = "</script><script>window.executed=1;alert(1)</script>"
IS_HARMLESS = "window.executed === undefined && !document.querySelector('img, iframe, form, b')"
IS_DONE = "document.getElementById('status').textContent.includes('seed')"


def model_of(vocabulary: Vocabulary, names: list[str] | None = None, scale: float = 4) -> Model:
    config = ModelConfig(len(vocabulary), 20, embedding=8, boundary=vocabulary.boundary_id)
    record = CorpusRecord(names=tuple(names or ()))
    return Model(config, vocabulary, random_weights(config, scale=scale), corpus=record, precision="fp32")


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Path]:
    """A model of letters, and its page."""
    model = model_of(Vocabulary.of("\n abcdefghijklmnopqrstuvwxyz"))
    file = tmp_path_factory.mktemp("play") / "play.html"
    export_html(model, file)
    return model, file


@pytest.fixture
def playground(browser: Browser, letters: tuple[Model, Path]) -> Iterator[Visit]:
    """The page of the model of letters. It reports no incident."""
    with visit(browser, letters[1], viewport={"width": 1440, "height": 900}) as page:
        yield page
        assert page.incidents == []


def fill(page: Visit, **values: object) -> None:
    for name, value in values.items():
        page.page.fill(f"#{name}", str(value))


def generated(page: Visit) -> str:
    return str(page.page.text_content("#generated"))


def bars(page: Visit) -> list[str]:
    return [
        str(label) for label in page.run("[...document.querySelectorAll('#bars button')].map((bar) => bar.ariaLabel)")
    ]


def shown(symbol: str) -> str:
    return {"\n": "↵", " ": "␣"}.get(symbol, symbol)


def percent(share: float) -> str:
    return f"{100 * share:.{0 if share >= 0.0995 else 1}f} %"


# ---- the command ----


def test_the_command_writes_a_page_and_reports_its_size(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = model_file(tmp_path / "model.safetensors")
    done = here(capfd, "export", "html", "-c", model, "-o", tmp_path / "play.html")
    assert (done.status, done.err) == (0, "")
    size = (tmp_path / "play.html").stat().st_size
    assert f"{size:,} bytes" in done.text
    assert "in fp32" in done.text
    done = here(capfd, "export", "html", "-c", model, "-o", tmp_path / "int8.html", "--precision", "int8", "--json")
    found = json.loads(done.out)
    assert found["precision"] == "int8"
    assert found["bytes"] == (tmp_path / "int8.html").stat().st_size < size


def test_the_precision_of_other_formats_cannot_be_chosen(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = model_file(tmp_path / "model.safetensors")
    done = here(capfd, "export", "c", "-c", model, "-o", tmp_path / "poet.c", "--precision", "int8")
    assert done.status == 2
    assert "--precision applies to html only" in done.err
    assert not (tmp_path / "poet.c").exists()


def test_weights_that_are_not_finite_are_refused_and_nothing_is_written(tmp_path: Path) -> None:
    model = model_of(Vocabulary.of("abc"))
    model.weights["projection.bias"][1] = np.nan
    with pytest.raises(charlstm.CheckpointError, match=r"not finite numbers: projection\.bias"):
        export_html(model, tmp_path / "play.html")
    assert not list(tmp_path.iterdir())


def test_the_page_of_a_usual_model_is_small() -> None:
    """1 × 256 with 65 symbols: under 3 MB, and under 1 MB in int8."""
    from charlstm.web.page import base_85
    from charlstm.web.weights import page_model

    vocabulary = Vocabulary.of("".join(map(chr, range(33, 98))))
    config = ModelConfig(65, 256)
    sizes = {}
    for precision in ("fp32", "int8"):
        model = page_model(config, vocabulary, random_weights(config), precision)
        sizes[precision] = len(base_85(model.weights))
    assert sizes["fp32"] < 1_900_000
    assert sizes["int8"] < 750_000


# ---- the playground ----


def test_the_text_is_that_of_the_command_that_the_page_shows(
    playground: Visit, letters: tuple[Model, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = letters[0]
    file = tmp_path / "model.safetensors"
    checkpoint.save(file, Checkpoint(model.config, model.vocabulary, model.weights, step=1))
    fill(playground, prime="so it goes", length=150, seed=7, topK=9, temperature=0.9)
    playground.page.click("#generate")
    playground.wait_for(IS_DONE)
    program, *command = shlex.split(str(playground.page.text_content("#command")))
    assert program == "charlstm"
    done = here(capfd, *command, "-c", file)
    assert done.text == generated(playground)
    assert len(done.text) == 150
    assert str(playground.page.text_content("#status")).startswith("150 symbols, ")


def test_the_bars_are_the_probabilities_of_the_command(playground: Visit, letters: tuple[Model, Path]) -> None:
    fill(playground, prime="hello", temperature=0.7, topK=3)
    expected = letters[0].next("hello", temperature=0.7, top_k=3)
    plain = dict(letters[0].next("hello"))
    found = bars(playground)
    for label, (symbol, share) in zip(found, expected, strict=False):
        assert label.startswith(f"{shown(symbol)}: {percent(share)}, of the model {percent(plain[symbol])}.")
    assert len(expected) == 3
    assert ": 0.0 %, " in found[3]
    assert str(playground.page.text_content("#rest")) == "3 of 28 symbols can follow."


def test_one_character_at_a_time_gives_the_same_text(playground: Visit, letters: tuple[Model, Path]) -> None:
    fill(playground, prime="abc", seed=5)
    for count in range(1, 9):
        playground.page.click("#one")
        assert len(generated(playground)) == count
    assert generated(playground) == letters[0].sample("abc", 8, seed=5)
    text = "abc" + generated(playground)
    symbol, _ = letters[0].next(text, 1, temperature=0.8)[0]
    assert bars(playground)[0].startswith(f"{shown(symbol)}: ")


def test_a_selected_character_continues_the_text(playground: Visit, letters: tuple[Model, Path]) -> None:
    fill(playground, prime="ab")
    second = letters[0].next("ab", 2, temperature=0.8)[1][0]
    playground.page.click("#bars li:nth-child(2) button")
    assert playground.page.input_value("#prime") == "ab" + second
    assert bars(playground)[0].startswith(f"{shown(letters[0].next('ab' + second, 1)[0][0])}: ")


def test_a_text_can_be_stopped_and_begun_with_the_keyboard(playground: Visit) -> None:
    fill(playground, prime="abc", length=1_000_000)
    playground.page.press("#prime", "Control+Enter")
    playground.wait_for("document.getElementById('generated').textContent.length > 100")
    assert playground.page.is_enabled("#stop")
    playground.page.keyboard.press("Escape")
    playground.wait_for(IS_DONE)
    count = len(generated(playground))
    assert str(playground.page.text_content("#status")).startswith(f"Stopped after {count:,} symbols")
    playground.page.wait_for_timeout(60)
    assert len(generated(playground)) == count
    assert playground.page.is_disabled("#stop")


def test_a_random_seed_is_shown_and_gives_the_same_text_again(playground: Visit, letters: tuple[Model, Path]) -> None:
    fill(playground, length=80, seed="")
    playground.page.click("#generate")
    playground.wait_for(IS_DONE)
    seed = int(str(playground.page.text_content("#status")).split()[-1].rstrip("."))
    assert generated(playground) == letters[0].sample("", 80, seed=seed)


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("prime", "Ä", "the model has no symbol for Ä."),
        ("temperature", "-1", "temperature must be a number of at least 0, not -1."),
        ("topP", "", "topP must be a number from 0 to 1, not NaN."),
        ("length", "1.5", "length must be a whole number from 0 to 1000000, not 1.5."),
        ("seed", "x", "seed must be a whole number of at most 18 digits."),
    ],
)
def test_an_invalid_setting_is_one_message_until_it_is_corrected(
    playground: Visit, name: str, value: str, problem: str
) -> None:
    valid = playground.page.input_value(f"#{name}")
    fill(playground, **{name: value})
    assert playground.page.text_content("#problem") == problem
    assert playground.page.is_visible("#problem")
    assert playground.page.is_disabled("#generate")
    fill(playground, **{name: valid})
    assert playground.page.is_hidden("#problem")
    assert playground.page.is_enabled("#generate")


def test_the_range_and_the_number_of_a_setting_agree(playground: Visit) -> None:
    playground.page.press("#temperature-range", "End")
    assert playground.page.input_value("#temperature") == "2"
    fill(playground, temperature=0.35)
    assert playground.page.input_value("#temperature-range") == "0.35"
    assert "-t 0.35" in str(playground.page.text_content("#command"))


def test_every_element_has_a_label(playground: Visit) -> None:
    unnamed = playground.run(
        """[...document.querySelectorAll('button, input, textarea, [tabindex]')].filter((found) => {
            const label = found.labels && found.labels.length ? found.labels[0].textContent : '';
            return !(label || found.ariaLabel || found.textContent).trim();
        }).map((found) => found.id || found.outerHTML)"""
    )
    assert unnamed == []
    assert playground.page.title() == "Playground"


@pytest.mark.parametrize("width", [360, 800, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_every_screen(browser: Browser, letters: tuple[Model, Path], width: int, scheme: Any) -> None:
    with visit(browser, letters[1], viewport={"width": width, "height": 800}, color_scheme=scheme) as page:
        assert page.run("document.documentElement.scrollWidth") <= width
        colours = page.run("((style) => [style.color, style.backgroundColor])(getComputedStyle(document.body))")
        luminance = [sum(map(float, colour[4:-1].split(","))) for colour in colours]
        assert (luminance[0] < luminance[1]) == (scheme == "light")
        assert abs(luminance[0] - luminance[1]) > 500
        assert page.incidents == []


# ---- other models ----


def test_a_model_of_documents_generates_one_document(browser: Browser, tmp_path: Path) -> None:
    model = model_of(Vocabulary.of("abcdef|\x1e").with_boundary("<|end|>"))
    export_html(model, tmp_path / "play.html")
    with visit(browser, tmp_path / "play.html") as page:
        fill(page, prime="ab<|end|>", temperature=2, seed=3)
        page.page.click("#generate")
        page.wait_for(IS_DONE)
        assert generated(page) == model.sample("ab<|end|>", temperature=2, seed=3)
        assert any(label.startswith("<|end|>: ") for label in bars(page))
        assert page.incidents == []


def test_a_model_of_bytes_generates_characters(browser: Browser, tmp_path: Path) -> None:
    model = model_of(ByteVocabulary())
    export_html(model, tmp_path / "play.html", "int8")
    with visit(browser, tmp_path / "play.html") as page:
        fill(page, prime="日", length=200, temperature=1, seed=3)
        page.page.click("#generate")
        page.wait_for(IS_DONE)
        int8 = Model(model.config, model.vocabulary, model.weights, precision="int8")
        assert page.run("document.getElementById('generated').textContent") == int8.sample(
            "日", 200, temperature=1, seed=3
        )
        assert page.incidents == []


@pytest.mark.parametrize("kind", ["symbols", "boundary", "names", "bytes", "many symbols"])
def test_hostile_models_and_texts_execute_nothing(browser: Browser, tmp_path: Path, kind: str) -> None:
    vocabulary: Vocabulary = Vocabulary.of(HOSTILE)
    names = None
    if kind == "boundary":
        vocabulary = Vocabulary.of(HOSTILE + "\x1e").with_boundary(SCRIPT)
    elif kind == "names":
        names = [SCRIPT, "<!--<script>", "<b onclick=alert(1)>.txt", "a\udcff\ud800\u2028\u202e\0.txt", "x'\"`</title>"]
    elif kind == "bytes":
        vocabulary = ByteVocabulary().with_boundary(SCRIPT)
    elif kind == "many symbols":
        vocabulary = Vocabulary.of("".join(map(chr, range(0x4E00, 0x4E00 + 10_000))) + HOSTILE)
    model = model_of(vocabulary, names)
    export_html(model, tmp_path / "play.html")
    with visit(browser, tmp_path / "play.html") as page:
        prime = "<!--<script>alert(1)</script>" + SCRIPT
        page.page.fill("#prime", prime if kind != "many symbols" else "</script><script>alert(1)</script>")
        fill(page, length=200, temperature=2, seed=1)
        assert page.page.is_hidden("#problem"), page.page.text_content("#problem")
        page.page.click("#generate")
        page.wait_for(IS_DONE)
        options: dict[str, Any] = {"length": 200, "temperature": 2, "seed": 1}
        expected = model.sample(page.page.input_value("#prime"), **options)
        assert page.run("(text) => document.getElementById('generated').textContent === text", expected)
        page.page.click("#bars li:nth-child(3) button")
        assert page.run(IS_HARMLESS)
        assert page.incidents == []
        if kind == "names":
            heading = "script>, <!--<script>, <b onclick=alert(1)>.txt, a0xFFU+D800U+2028U+202EU+0000.txt, title>"
            assert page.page.text_content("#name") == page.page.title() == heading


# ---- a page of the user's own ----


def test_a_page_of_ones_own_uses_the_model(browser: Browser, letters: tuple[Model, Path], tmp_path: Path) -> None:
    shutil.copy(ROOT / "examples" / "web" / "index.html", tmp_path)
    shutil.copy(letters[1], tmp_path / "play.html")
    with visit(browser, tmp_path / "index.html") as page:
        page.page.fill("#prime", "once ")
        page.page.click("#generate")
        page.wait_for("document.getElementById('likely').textContent !== ''")
        assert page.page.text_content("#text") == "once " + letters[0].sample("once ", 200, temperature=0.7, seed=1)
        page.page.fill("#prime", "Ä")
        page.page.click("#generate")
        page.wait_for("document.getElementById('text').textContent === 'the model has no symbol for Ä'")
        assert page.incidents == [f"request: {(tmp_path / 'play.html').as_uri()}"]
