"""Measure how fast a page generates text in Chromium, beside the C engine, and how large the page is.

    python bench/page_speed.py [--seconds 3]

Each line is one model with random weights and 65 symbols: the size of its page, and the median time of a character in
five blocks, in microseconds. The two sides take turns.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from charlstm.config import Cell, ModelConfig
from charlstm.inference.engine import Engine
from charlstm.inference.filters import SamplingRule
from charlstm.text.vocabulary import Vocabulary
from tests.helpers.browser import engine_page, launched, visit
from tests.helpers.models import random_weights

BLOCKS = 5
MODELS: tuple[tuple[Cell, int, int], ...] = (
    ("lstm", 1, 128),
    ("lstm", 1, 256),
    ("gru", 1, 256),
    ("lstm", 2, 256),
    ("lstm", 1, 512),
)
GENERATE = """(chars) => {
    const began = performance.now();
    charlstmSampler.sampleText(model, { length: chars, temperature: 0.8, seed: 1 });
    return (performance.now() - began) / chars;
}"""


def alternated(*sides: Callable[[int], float], seconds: float) -> list[float]:
    """Return the median time of a character of each side in microseconds; a side takes a number of characters."""
    chars = [max(20, int(seconds / BLOCKS / 1e-6 / max(side(200), 1e-3))) for side in sides]
    times = [[side(count) for side, count in zip(sides, chars, strict=True)] for _ in range(BLOCKS)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def main() -> None:
    """Print one line per model and precision."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--seconds", type=float, default=1.0, help="for each side of each line")
    seconds = arguments.parse_args().seconds
    vocabulary = Vocabulary.of("\n" + "".join(map(chr, range(33, 97))))
    print("| model | precision | page, kB | page, µs a character | C engine, µs | ratio |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, launched() as browser:
        for cell, layers, hidden in MODELS:
            config = ModelConfig(len(vocabulary), hidden, layers, cell=cell)
            weights = random_weights(config)
            for precision in ("fp32", "int8"):
                file = Path(folder) / "page.html"
                engine_page(file, config, vocabulary, weights, precision)
                engine = Engine(config, weights, precision=precision, threads=1)

                def native(chars: int, engine: Engine = engine) -> float:
                    began = time.perf_counter()
                    engine.generate([0], engine.zero_state(), chars, SamplingRule(0.8), seed=1)
                    return (time.perf_counter() - began) / chars * 1e6

                with visit(browser, file) as page:
                    found = alternated(lambda chars: 1e3 * page.run(GENERATE, chars), native, seconds=seconds)
                size = file.stat().st_size / 1000
                row = f"| {cell} {layers} × {hidden} | {precision} | {size:,.0f} | {found[0]:.0f} | {found[1]:.1f} |"
                print(row, f"{found[0] / found[1]:.0f} |", flush=True)


if __name__ == "__main__":
    main()
