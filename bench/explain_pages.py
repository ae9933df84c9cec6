"""Make the pages of runs, open them in Chromium, and print their size, the time to make them and to show them.

    python bench/explain_pages.py runs/docs runs/names runs/gru            a table
    python bench/explain_pages.py runs/docs --beside runs/rnn -o pages     keep the pages and pictures of them

Each run is shown with its own held-out text, in fp32 and in int8. "first paint" is the browser's first contentful paint
after the file was opened, "ready" the time until the model in the page has read the whole text.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from playwright.sync_api import Browser

from tests.helpers.browser import launched, visit

REPEATS = 3
VIEWS = ((1440, "light"), (1440, "dark"), (800, "light"), (800, "dark"), (360, "light"), (360, "dark"))
PAINT = "(performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null)"
TRACED = "document.documentElement.dataset.traced === 'true'"


def make(run: Path, page: Path, precision: str, beside: list[str]) -> float:
    """Run the command and return its seconds from start to end."""
    options = [word for other in beside for word in ("--beside", other)]
    command = [sys.executable, "-m", "charlstm", "explain", "-c", str(run), "-o", str(page), "--precision", precision]
    began = time.perf_counter()
    subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def show(browser: Browser, page: Path) -> tuple[float, float]:
    """Return the seconds until the first paint, and until the page has read its text."""
    with visit(browser, page, viewport={"width": 1440, "height": 900}) as found:
        found.wait_for(f"{TRACED} && {PAINT} !== null", 120)
        ready = found.run("performance.now()") / 1000
        if found.incidents:
            raise SystemExit(f"{page}: {found.incidents}")
        return found.run(PAINT) / 1000, ready


def photograph(browser: Browser, page: Path, folder: Path) -> None:
    """Write a picture of the whole page in every width and theme."""
    for width, theme in VIEWS:
        with visit(browser, page, viewport={"width": width, "height": 900}, color_scheme=theme) as found:
            found.wait_for(TRACED, 120)
            found.page.screenshot(path=folder / f"{page.stem}-{width}-{theme}.png", full_page=True)


def main() -> None:
    """Print a row for each run and precision."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("runs", nargs="+", type=Path, help="run directories; their texts must be readable")
    parser.add_argument("--beside", action="append", default=[], help="a run that is compared in every page")
    parser.add_argument("-o", "--output", type=Path, help="folder for the pages and the pictures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary, launched() as browser:
        folder = options.output or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        print("| run | precision | bytes | seconds to make | first paint, s | ready, s |\n|---|---|---|---|---|---|")
        for run in options.runs:
            for precision in ("fp32", "int8"):
                page = folder / f"{run.name}-{precision}.html"
                made = statistics.median(make(run, page, precision, options.beside) for _ in range(REPEATS))
                shown = [show(browser, page) for _ in range(REPEATS)]
                paint, ready = (statistics.median(times) for times in zip(*shown, strict=True))
                size = page.stat().st_size
                print(f"| {run.name} | {precision} | {size:,} | {made:.2f} | {paint:.2f} | {ready:.1f} |", flush=True)
                if options.output is not None and precision == "fp32":
                    photograph(browser, page, folder)


if __name__ == "__main__":
    main()
