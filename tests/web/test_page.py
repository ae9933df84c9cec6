"""A page executes its own scripts only, and sends nothing, whatever its data contain."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from charlstm.web import page as pages
from charlstm.web.page import assemble, to_json
from tests.helpers.browser import visit

if TYPE_CHECKING:
    from playwright.sync_api import Browser

SHOW = """
const data = JSON.parse(document.getElementById("data").textContent);
document.getElementById("shown").textContent = data.text;
document.title = data.text;
"""
ATTACKS = [
    "</script><script>window.executed = 1; alert(1)</script>",
    "</SCRIPT ><img src=x onerror='window.executed = 1; alert(1)'>",
    "<!--<script>",
    "<!--</script><script>window.executed = 1</script>-->",
    "]]><svg onload=alert(1)>",
    '";window.executed=1;//',
    "'+alert(1)+'",
    '\\";alert(1);//',
    "\u2028window.executed = 1\u2029",
    "\u202e\u2066\u200f</title><base href=https://example.com/>",
    "<meta http-equiv=refresh content='0;url=https://example.com/'>",
    "<iframe src=https://example.com/></iframe><form action=https://example.com/><input autofocus onfocus=alert(1)>",
    "<link rel=stylesheet href=https://example.com/x.css><style>@import 'https://example.com/y.css'</style>",
    "javascript:alert(1)",
    "{{constructor.constructor('alert(1)')()}}",
    "\0\x01\x7f\x80\ufeff\ufffe\udfff\ud800",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
]


def page_of(path: Path, text: str) -> Path:
    """Write a page that shows a text in its body and in its title."""
    title = text.encode("utf-8", "replace").decode()  # a lone surrogate cannot be written
    data = {"data": {"text": text}}
    html = assemble(title=title, body='<p id="shown"></p>', scripts=[SHOW], styles=["p { margin: 0 }"], data=data)
    path.write_text(html, encoding="utf-8")
    return path


def hostile_texts(count: int) -> list[str]:
    """Return the attacks, and mixtures of their pieces."""
    rng = random.Random(1)
    pieces = [attack[begin : begin + 12] for attack in ATTACKS for begin in range(0, len(attack), 12)]
    return ATTACKS + ["".join(rng.choices(pieces, k=8)) for _ in range(count)]


def test_hostile_texts_are_shown_and_executed_nowhere(browser: Browser, tmp_path: Path) -> None:
    file = page_of(tmp_path / "page.html", "")
    with visit(browser, file) as page:
        for text in hostile_texts(40):
            page.open(page_of(file, text))
            assert page.incidents == [], ascii(text)
            assert page.run("window.executed === undefined && !document.querySelector('img, iframe, form')")
            assert page.run(
                "(json) => document.getElementById('shown').textContent === JSON.parse(json)", to_json(text)
            )


def test_an_unescaped_page_is_detected(browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: without the escaping, and then without the policy, the check above fails."""
    monkeypatch.setattr(pages, "to_json", lambda value: json.dumps(value, ensure_ascii=False))
    file = page_of(tmp_path / "page.html", ATTACKS[0])
    with visit(browser, file) as page:
        assert page.run("window.executed === undefined")  # the policy blocks the script
        assert any("Content Security Policy" in incident for incident in page.incidents)
    file.write_text(file.read_text().replace("Content-Security-Policy", "x"))
    with visit(browser, file) as page:
        assert page.run("window.executed === 1")
        assert "dialog: 1" in page.incidents


BLOCKED = {
    "a script": "document.head.append(Object.assign(document.createElement('script'), { text: 'executed = 1' }))",
    "an attribute": "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"executed = 1\">')",
    "a style": "document.body.insertAdjacentHTML('beforeend', '<style>p { color: red }</style>')",
    "an image": "new Image().src = 'https://example.com/x.png'",
    "a request": "fetch('https://example.com/').catch(() => 0)",
    "a beacon": "navigator.sendBeacon('https://example.com/', 'x') && 0",
    "a frame": "document.body.append(Object.assign(document.createElement('iframe'), { src: 'https://example.com/' }))",
    "eval": "setTimeout('executed = 1')",
    "a worker": "new Worker('data:text/javascript,0').onerror = () => 0",
    "a font": "new FontFace('x', 'url(https://example.com/x.woff)').load().catch(() => 0)",
}


@pytest.mark.parametrize("what", BLOCKED)
def test_the_policy_blocks(browser: Browser, tmp_path: Path, what: str) -> None:
    with visit(browser, page_of(tmp_path / "page.html", "text")) as page:
        assert page.incidents == []
        page.run(f"() => {{ try {{ {BLOCKED[what]} }} catch (error) {{ console.error(error.message) }} }}")
        page.page.wait_for_timeout(50)
        assert page.run("typeof executed") == "undefined"
        assert page.run("getComputedStyle(document.querySelector('p')).color") == "rgb(0, 0, 0)"
        assert any("Content Security Policy" in incident for incident in page.incidents)
        assert not any(incident.startswith("dialog") for incident in page.incidents)
        requests = {incident for incident in page.incidents if incident.startswith("request:")}
        assert requests == {f"request: {address}" for address in page.blocked}


@pytest.mark.parametrize("script", ["a = '</script>'", "a = '</SCRIPT '", "<!-- a"])
def test_a_script_that_would_end_its_element_is_refused(script: str) -> None:
    with pytest.raises(ValueError, match="must not contain its own end tag"):
        assemble(title="x", body="", scripts=[script], data={})


def test_data_that_are_not_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json({"loss": float("nan")})


@pytest.mark.parametrize("value", [ATTACKS, {"<": "&"}, [1.5, None, True, "日\ud800"]])
def test_escaped_json_is_the_same_value(value: Any) -> None:
    text = to_json(value)
    assert json.loads(text) == value
    assert text.isascii()
    assert not set(text) & set("<>&\u2028")
