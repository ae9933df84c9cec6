"""Measure how long `Model.explain` takes, from the start of Python to the result, and each part of it.

python bench/explain_speed.py [RUN] [--chars N] [--repeat N]

The whole time is the median of new processes. The parts are measured with cProfile in one process, which makes them a
little slower.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import subprocess
import sys
import time

import charlstm

PARTS = {
    "trace.py:trace": "activations",
    "trace.py:predictions": "predictions",
    "features.py:features": "features of the text",
    "units.py:units": "names of units",
    "gradients.py:norms": "norms of gradients",
    "gradients.py:connectivity": "connectivity",
    "context.py:curve": "context curve",
    "ablation.py:ablation": "ablation",
    "ngram.py:comparison": "n-gram models",
    "copies.py:longest_copy": "copy meter",
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("run", nargs="?")
    parser.add_argument("--chars", type=int, default=5000)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    code = f"import charlstm; charlstm.load({options.run!r}).explain(chars={options.chars})"
    seconds = []
    for _ in range(options.repeat):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        seconds.append(time.perf_counter() - start)
    print(f"{statistics.median(seconds):5.2f} s  from start to end, median of {len(seconds)}: {sorted(seconds)}")
    model = charlstm.load(options.run)
    profile = cProfile.Profile()
    profile.runcall(model.explain, chars=options.chars)
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    for (file, _, function), (_, _, _, cumulative, _) in stats.items():
        if part := PARTS.get(f"{file.rpartition('/')[2]}:{function}"):
            print(f"{cumulative:5.2f} s  {part}")


if __name__ == "__main__":
    main()
