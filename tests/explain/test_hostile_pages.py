"""Hostile texts, names, logs and vocabularies in the page of `charlstm explain` execute and send nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from charlstm.config import ModelConfig
from charlstm.model import Model
from charlstm.text.vocabulary import ByteVocabulary, Vocabulary
from tests.helpers.browser import visit
from tests.helpers.explanations import CHARS, random_model, wait, write_page
from tests.helpers.models import CELLS, random_weights

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PIECES = [
    "</script><script>window.pwned = 1</script>",
    "<img src=x onerror='window.pwned=1'>",
    "<!--<script>",
    "]]></style><svg onload=alert(1)>",
    "\u2028\u2029'\"`${window.pwned=1}\\",
    "\u202ereversed\u202c \u2066isolated\u2069",
    "\0\x01\x1b[31m\x7f\x85",
    "&lt;b&gt;&#0;&quot;",
    "javascript:alert(1)//",
    "e\u0301\u0300\u20dd\ufeff\u00ad\u200b\u200d",
    "🏳️‍🌈👩‍👩‍👧",
    "{{7*7}} {% raw %}",
    "__proto__ constructor toString",
]


def hostile_model(number: int, folder: Path) -> tuple[Model, str]:
    """Return a model and a text, each with characters, names and logs that try to leave their place in the page."""
    random = np.random.default_rng(number)
    pieces = [PIECES[number % len(PIECES)], *random.choice(PIECES, 3)]
    text = "".join(pieces) * 3 + "".join(chr(c) for c in random.integers(1, 0xD7FF, 30)) + "the end. " * 20
    boundary = [None, "\n", "</script>", "\u2028", "<|end|>"][number % 5]
    run = folder / (pieces[0].replace("/", "∕").replace("\0", "") or "run")
    run.mkdir(parents=True, exist_ok=True)
    sample = '{"event":"validated","step":1,"seconds":1,"valid_bits_per_char":2,"sample":%s}\n'
    (run / "metrics.jsonl").write_text("not json\n" + sample % json.dumps(pieces[1]), encoding="utf-8")
    cell = CELLS[number % len(CELLS)]
    if number % 7 == 3:
        config = ModelConfig(256, 8, 1, 5, cell)
        return Model(config, ByteVocabulary(), random_weights(config), path=run / "best.safetensors"), text
    if number % 7 == 5:  # a large vocabulary
        text += "".join(map(chr, range(0x4E00, 0x4E00 + 200)))
        vocabulary = Vocabulary.of(text + "".join(map(chr, range(0x3400, 0x3400 + 9_700))))
    else:
        vocabulary = Vocabulary.of(text)
    if boundary is not None:
        vocabulary = vocabulary.with_boundary(boundary)
    config = ModelConfig(len(vocabulary), 8, 1 + number % 2, 5, cell, vocabulary.boundary_id)
    weights = random_weights(config, number, scale=float(random.choice([1, 4, 30])))
    return Model(config, vocabulary, weights, path=run / "best.safetensors", precision="fp32"), text


def open_hostile(browser: Browser, number: int, folder: Path) -> list[str]:
    """Return what the page of a hostile model did that it must not do."""
    model, text = hostile_model(number, folder)
    page = write_page(folder / f"{number}.html", model, text, precision="int8" if number % 2 else "fp32")
    with visit(browser, page) as found:
        wait(found)
        for selector in ("#clamp-run", "#sampling-all", "#predictions-forward", "#tour-start", "#tour-next"):
            found.page.click(selector)
        found.run("page.state.set({ phrase: [2, 9], position: 60 })")
        assert found.run("document.querySelectorAll('#text-view span').length") == min(
            CHARS, len(model.encode(text)[0])
        )
        if found.run("window.pwned"):
            found.incidents.append("a script of the text ran")
        if found.run(
            "document.querySelectorAll('img, iframe, object, embed, form, a[href]:not([href^=\"#\"])').length"
        ):
            found.incidents.append("the page has an element that a text made")
        return found.incidents


@pytest.mark.parametrize("number", range(15))
def test_a_hostile_model_and_text_do_nothing(browser: Browser, tmp_path: Path, number: int) -> None:
    assert open_hostile(browser, number, tmp_path) == []


@pytest.mark.slow
def test_200_hostile_models_and_texts_do_nothing(browser: Browser, tmp_path: Path) -> None:
    found = {number: open_hostile(browser, number, tmp_path) for number in range(200)}
    assert {number: incidents for number, incidents in found.items() if incidents} == {}


@pytest.mark.parametrize(
    ("change", "incident"),
    [
        ("<script>window.pwned = 1</script>", "console: Executing inline script violates"),
        ("<img src='https://example.org/x.png'>", "console: Loading the image"),
        ("<body onload='alert(1)'>", "console: Executing inline event handler violates"),
    ],
)
def test_the_check_sees_a_script_and_a_request(browser: Browser, tmp_path: Path, change: str, incident: str) -> None:
    page = write_page(tmp_path / "page.html", random_model("lstm", "abc "), "abc abc abc")
    page.write_text(page.read_text(encoding="utf-8").replace("</main>", f"{change}</main>"), encoding="utf-8")
    with visit(browser, page) as found:
        wait(found)
        assert any(line.startswith(incident) for line in found.incidents), found.incidents
        assert not found.run("window.pwned")


def test_without_its_policy_the_page_would_run_a_script(browser: Browser, tmp_path: Path) -> None:
    page = write_page(tmp_path / "page.html", random_model("lstm", "abc "), "abc abc abc")
    text = page.read_text(encoding="utf-8").replace("Content-Security-Policy", "X-Ignored")
    text = text.replace("</main>", "<script>window.pwned = 1</script><img src='https://example.org/x'></main>")
    page.write_text(text, encoding="utf-8")
    with visit(browser, page) as found:
        wait(found)
        assert found.run("window.pwned")
        assert any(line.startswith("request") for line in found.incidents)
