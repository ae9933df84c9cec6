"""Measure the speed of `charlstm eval` and of its output per character, in text and in JSON.

    python bench/per_char_speed.py                   a 1 x 384 model, 400,000 characters
    python bench/per_char_speed.py --chars 1000000   a longer text

Every side is a whole process that writes to a file; they take turns, and the median of their times counts. The speed is
that of the part that grows with the text: the time of a text of 2,000 characters is subtracted.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from charlstm import checkpoint
from charlstm.checkpoint import Checkpoint
from charlstm.config import ModelConfig
from charlstm.text.vocabulary import Vocabulary

SIDES = {
    "eval": [],
    "eval --per-char": ["--per-char"],
    "eval --per-char --json": ["--per-char", "--json"],
    "eval --per-char --top 5": ["--per-char", "--top", "5"],
    "eval --per-char --top 5 --json": ["--per-char", "--top", "5", "--json"],
}


def seconds(folder: Path, text: str, options: list[str]) -> float:
    paths = ["-c", str(folder / "model"), str(folder / text)]
    command = [sys.executable, "-m", "charlstm", "eval", *paths, *options]
    began = time.perf_counter()
    with open(folder / "output", "wb") as output:
        subprocess.run(command, stdout=output, stderr=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--hidden", type=int, default=384)
    parser.add_argument("--chars", type=int, default=400_000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    symbols = "\n" + "".join(map(chr, range(32, 96)))
    config, rng = ModelConfig(len(symbols), hidden=options.hidden, embedding=128), np.random.default_rng(0)
    bound = config.hidden**-0.5
    weights: dict[str, Any] = {
        name: rng.uniform(-bound, bound, shape).astype(np.float32) for name, shape in config.shapes().items()
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint.save(folder / "model", Checkpoint(config, Vocabulary(symbols), weights))
        for file, length in (("short", 2_000), ("long", options.chars)):
            (folder / file).write_text("".join(rng.choice(list(symbols), length)))
        times: dict[str, list[float]] = {side: [] for side in SIDES}
        for _ in range(options.rounds):
            for side, more in SIDES.items():
                times[side].append(seconds(folder, "long", more) - seconds(folder, "short", more))
    speeds = {side: (options.chars - 2_000) / statistics.median(found) for side, found in times.items()}
    for side, speed in speeds.items():
        print(f"{side:32} {speed:10,.0f} characters per second   {speed / speeds['eval']:.2f} of eval")


if __name__ == "__main__":
    main()
