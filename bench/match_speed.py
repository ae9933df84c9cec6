"""Measure what `--match` and `--heat` cost a character, and what a character costs without them.

    python bench/match_speed.py             three shapes, one text and 64 texts at a time

The sides take turns in one process. The expression `(.|\\n)*` allows everything and never ends a text, so that both
sides generate the same number of characters; `dates` and
`words` are long expressions of thousands of states. Compilation is not included.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import numpy as np

from charlstm.config import ModelConfig, SamplingConfig
from charlstm.inference.engine import Engine
from charlstm.inference.sampling import Sampler
from charlstm.text.vocabulary import Vocabulary

SHAPES = [(1, 128, 65), (1, 512, 65), (1, 256, 6784)]
EXPRESSIONS = {
    "anything": r"(.|\n)*",
    "dates": r"(\d{4}-\d\d-\d\d\n){%d}",
    "words": r"([a-z]{2,7} ){%d}",
}
LENGTH = 4000


def samplers(layers: int, hidden: int, symbols: int, texts: int) -> dict[str, Sampler]:
    vocabulary = Vocabulary("\n -0123456789" + "".join(map(chr, range(64, 51 + symbols))))
    config, rng = ModelConfig(symbols, hidden, layers, 128), np.random.default_rng(0)
    bound = config.hidden**-0.5
    weights: dict[str, Any] = {
        name: rng.uniform(-bound, bound, shape).astype(np.float32) for name, shape in config.shapes().items()
    }
    engine = Engine(config, weights)
    length = LENGTH if texts == 1 else LENGTH // 8
    made = {"without": Sampler(engine, vocabulary, SamplingConfig(length=length, seed=1, count=texts))}
    for name, pattern in EXPRESSIONS.items():
        options = SamplingConfig(
            length=length, seed=1, count=texts, match=pattern % (length // 11) if "%" in pattern else pattern
        )
        made[name] = Sampler(engine, vocabulary, options)
    return made


def microseconds(sampler: Sampler) -> float:
    """Return the microseconds per generated character."""
    began = time.perf_counter()
    if sampler.config.count == 1:
        chars = sum(map(len, sampler.stream()))
    else:
        chars = sum(len(text.text) for text in sampler.texts())
    return (time.perf_counter() - began) / chars * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    for layers, hidden, symbols in SHAPES:
        for texts in (1, 64):
            sides = samplers(layers, hidden, symbols, texts)
            times: dict[str, list[float]] = {name: [] for name in sides}
            for _ in range(options.rounds):
                for name, sampler in sides.items():
                    times[name].append(microseconds(sampler))
            medians = {name: statistics.median(found[1:]) for name, found in times.items()}
            print(f"{layers} x {hidden}, {symbols} symbols, {texts} texts at a time")
            for name, median in medians.items():
                print(f"    {name:10} {median:8.2f} µs per character   {median / medians['without']:.2f}", flush=True)


if __name__ == "__main__":
    main()
