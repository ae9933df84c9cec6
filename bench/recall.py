"""Measure the memory of the five cells: how often a model recalls the symbol that `charlstm corpus recall:N` asks for.

    python bench/recall.py                                the table of docs/recall.md
    python bench/recall.py --lags 20 --cells rnn --steps 10000 -- --lr 0.003     options of `charlstm train` after `--`
    python bench/recall.py --results results.jsonl        append each result to a file, and do not repeat those in it

For each cell, lag and seed it runs `charlstm train recall:N` with the options of `command`, all of them public, and
then counts, in the held-out tenth of the lines, how often the most probable symbol after the question mark is the right
one. Chance is 1 in 8. The table has the mean over the seeds, and the lowest and the highest where they differ.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import charlstm

CELLS = ("lstm", "peephole", "coupled", "gru", "rnn")
LAGS = (20, 50, 200, 500, 1000)


def command(cell: str, lag: int, seed: int, steps: int, run: str, others: Sequence[str]) -> list[str]:
    """Return the command that trains a model. A window holds one whole line of each of the ten streams."""
    words = [sys.executable, "-m", "charlstm", "train", f"recall:{lag}", "--lines-as-documents", "-o", run, "--quiet"]
    words += ["--cell", cell, "--hidden", "32", "--dropout", "0", "--batch-size", "10", "--seq-len", str(lag + 3)]
    words += ["--lr", "0.02" if cell != "rnn" else "0.005", "--reset", "0", "--steps", str(steps), "--seed", str(seed)]
    words += ["--threads", "1", "--validations", "4", "--sample-chars", "0"]
    if cell != "rnn":
        words += ["--memory-length", str(2 * lag)]
    return [*words, *others]


def accuracy(run: str) -> float:
    """Return the share of the held-out lines whose answer is the most probable symbol after the question mark."""
    model = charlstm.load(run, threads=1)
    lines = model.validation_text().strip("\n").split("\n")
    ids = np.array([model.vocabulary.encode("\n" + line) for line in lines]).T  # (T, B); the last row is the answer
    state = model.scorer.advance(ids[:-2], model.scorer.zero_state(len(lines)))
    logits, _ = model.scorer.step(ids[-2], state)
    return float((logits.argmax(axis=1) == ids[-1]).mean())


def measure(cell: str, lag: int, seed: int, steps: int, others: Sequence[str]) -> dict[str, Any]:
    """Train a model in a temporary directory and return its accuracy with the settings that led to it."""
    with tempfile.TemporaryDirectory() as folder:
        run = str(Path(folder, "run"))
        subprocess.run(command(cell, lag, seed, steps, run, others), check=True, capture_output=True)
        settings = {"cell": cell, "lag": lag, "seed": seed, "steps": steps, "others": [*others]}
        return {**settings, "accuracy": accuracy(run)}


def known(file: Path | None) -> list[dict[str, Any]]:
    """Return the results in a file; without a file, an empty list."""
    if file is None or not file.exists():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def table(results: Sequence[dict[str, Any]], cells: Sequence[str], lags: Sequence[int]) -> str:
    """Return the accuracies as Markdown: one row for each cell, one column for each lag."""
    rows = ["| cell | " + " | ".join(f"{lag:,}" for lag in lags) + " |", "|---" * (len(lags) + 1) + "|"]
    for cell in cells:
        row = []
        for lag in lags:
            found = [result["accuracy"] for result in results if (result["cell"], result["lag"]) == (cell, lag)]
            row.append(_spread(found) if found else "")
        rows.append(f"| {cell} | " + " | ".join(row) + " |")
    return "\n".join(rows)


def _spread(accuracies: Sequence[float]) -> str:
    mean, low, high = statistics.mean(accuracies), min(accuracies), max(accuracies)
    return f"{mean:.1%}".replace("%", " %") + (f" ({low * 100:.0f} to {high * 100:.0f})" if high - low >= 0.005 else "")


def main() -> None:
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=CELLS)
    parser.add_argument("--lags", nargs="+", type=int, default=LAGS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--results", type=Path, metavar="FILE", help="a file of JSON lines")
    given = parser.parse_args(words[:end])
    others = words[end + 1 :]
    results = known(given.results)
    for seed in given.seeds:
        for lag in given.lags:
            for cell in given.cells:
                wanted = {"cell": cell, "lag": lag, "seed": seed, "steps": given.steps, "others": others}
                if any(wanted.items() <= result.items() for result in results):
                    continue
                results.append(measure(**wanted))
                print(json.dumps(results[-1]), file=sys.stderr, flush=True)
                if given.results is not None:
                    with given.results.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(results[-1]) + "\n")
    used = [result for result in results if (result["steps"], result["others"]) == (given.steps, others)]
    print(table(used, given.cells, given.lags))


if __name__ == "__main__":
    main()
