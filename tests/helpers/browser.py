"""Open pages in Chromium, and record everything that a page must not do.

One browser serves all tests of a process: the fixture `browser` in tests/conftest.py. A missing browser fails the tests
that need it.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from charlstm.config import ModelConfig
from charlstm.text.vocabulary import Vocabulary
from charlstm.web.page import ENGINE, assemble, asset
from charlstm.web.weights import PageModel, page_model
from tests.helpers.models import Weights

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Request

EXECUTABLES = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def launched() -> Iterator[Browser]:
    """Start the system's Chromium without a window.

    Raises:
        AssertionError: there is no Chromium.
    """
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, EXECUTABLES)), None)
    assert found, f"the tests of pages need one of {', '.join(EXECUTABLES)}: apt-get install chromium"
    options = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=options)
        yield browser
        browser.close()


class Visit:
    """A page in the browser, and what it did.

    Attributes:
        page: Playwright's page.
        incidents: one line for each message of the console, error, dialog, window and request besides the page's own.
        blocked: the addresses of the requests that the page's policy blocked; they are also incidents.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.incidents: list[str] = []
        self.blocked: list[str] = []
        self._address = ""
        page.on("console", lambda message: self._add("console", message.text))
        page.on("pageerror", lambda error: self._add("error", str(error)))
        page.on("dialog", self._dismiss)
        page.on("popup", lambda window: self._add("window", window.url))
        page.on("request", lambda request: self._add_request(request.url))
        page.on("requestfailed", self._add_blocked)
        page.on("download", lambda download: self._add("download", download.url))
        page.on("crash", lambda _: self._add("crash", self._address))

    def open(self, file: Path) -> None:
        """Open a file in place of the current page. Incidents are kept."""
        self._address = file.as_uri()
        self.page.goto(self._address)

    def _add(self, kind: str, text: str) -> None:
        self.incidents.append(f"{kind}: {text[:300]}")

    def _add_request(self, url: str) -> None:
        if url != self._address:
            self._add("request", url)

    def _add_blocked(self, request: Request) -> None:
        if request.failure == "csp":
            self.blocked.append(request.url)

    def _dismiss(self, dialog: Any) -> None:
        self._add("dialog", dialog.message)
        dialog.dismiss()

    def run(self, script: str, argument: Any = None) -> Any:
        """Return the JSON value of an expression or a function in the page."""
        return self.page.evaluate(script, argument)

    def wait_for(self, script: str, seconds: float = 20) -> None:
        """Wait until an expression is true; the page's policy forbids Playwright's own wait_for_function."""
        end = time.monotonic() + seconds
        while not self.run(script):
            assert time.monotonic() < end, f"still false after {seconds} s: {script}; {self.incidents}"
            self.page.wait_for_timeout(20)


@contextmanager
def visit(browser: Browser, file: Path, **options: Any) -> Iterator[Visit]:
    """Open a file as a page in a new context without a network.

    Args:
        browser: from the fixture `browser`.
        file: an HTML file.
        **options: of the context, such as viewport or color_scheme.
    """
    context = browser.new_context(offline=True, **options)
    try:
        visited = Visit(context.new_page())
        visited.open(file)
        yield visited
    finally:
        context.close()


def engine_page(
    path: Path, config: ModelConfig, vocabulary: Vocabulary, weights: Weights, precision: Any = "fp32"
) -> PageModel:
    """Write a page that has a model and no content, and return the model as the page contains it."""
    model = page_model(config, vocabulary, weights, precision)
    script = "const model = charlstmEngine.load(); charlstmSampler.expose(model);"
    page = assemble(title="engine", body="", scripts=[*map(asset, ENGINE), script], data={}, model=model)
    path.write_text(page, encoding="utf-8")
    return model
