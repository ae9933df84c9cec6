"""Measure the quality of a model after N seconds: the defaults of charlstm, and two known recipes.

    python bench/quality.py TEXT --time 10s 60s --seeds 1 2 3      charlstm, medians and spread; options after `--`
    python bench/quality.py TEXT --time 60s --beside char-rnn      and char-rnn's defaults, as long
    python bench/quality.py TEXT --plot quality.png                the curve over time of all three

Every figure is nats per character on the whole last tenth of the text; the state is carried, and each transition counts
once. charlstm runs as a command: its seconds are those from the start of the process to its end, and include importing
torch, reading the text, validation and saving. The seconds of the other recipes (`bench/rivals.py`) include their
training steps only, to their advantage. `outside` is the share of charlstm's run that is not training.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rivals
import torch

from charlstm import __version__
from charlstm.config import parse_duration
from charlstm.text import corpus

CURVE_SECONDS = (2, 5, 10, 20, 40, 80, 150)  # budgets of separate runs of charlstm, each with its own schedule


class Run(NamedTuple):
    """The result of one training by the command."""

    nats: float
    wall: float  # seconds from the start of the process to its end
    outside: float  # share of the run
    steps: int
    model: str


def ours(text: str, budget: Sequence[str], seed: int, options: Sequence[str]) -> Run:
    """Run `charlstm train` with a budget, given as options."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "charlstm", "train", text, *budget, "--seed", str(seed)]
        command += ["-o", str(Path(folder, "run")), "--json", *options]
        began = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        wall = time.perf_counter() - began
    events: dict[str, dict[str, Any]] = {}
    for line in done.stdout.splitlines():
        event = json.loads(line)
        if event["event"] == "warned":
            print(f"    {event['message']}", flush=True)
        if event["event"] != "validated" or event["best"]:
            events[event["event"]] = event
    started, stopped = events["started"], events["stopped"]
    model = f"{started['layers']} x {started['hidden']}, dropout {started['dropout']:g}"
    outside = 1 - stopped["step_seconds"] / stopped["seconds"]
    return Run(events["validated"]["valid_nats_per_char"], wall, outside, stopped["step"], model)


def show(text: str, budgets: Sequence[str], seeds: Sequence[int], beside: str | None, options: Sequence[str]) -> None:
    """Print one row for each budget."""
    theirs = dict(rival(beside, text, [parse_duration(budget) for budget in budgets])) if beside else {}
    for budget in budgets:
        runs = [ours(text, ("--time", budget), seed, options) for seed in seeds]
        nats = [run.nats for run in runs]
        middle = statistics.median(nats)
        row = f"{budget:>6}  {middle:.4f} nats  {middle / 0.693147:.4f} bits  spread {max(nats) - min(nats):.4f}"
        row += f"  wall {statistics.median(run.wall for run in runs):.1f} s"
        row += f"  outside {max(run.outside for run in runs):.1%}  {runs[0].steps:,} steps  {runs[0].model}"
        if theirs:
            other = theirs[parse_duration(budget)]
            row += f"  | {beside} {other:.4f} nats, {other - middle:+.4f}"
        print(row, flush=True)


def rival(name: str, text: str, seconds: list[float], seed: int = 1) -> Iterator[tuple[float, float]]:
    """Return seconds and nats per character of one run of a known recipe."""
    read = corpus.read([text])
    train, valid = (np.asarray(part) for part in read.split(0.1))
    if name == "char-rnn":
        for taken, _, nats in rivals.char_rnn(train, valid, len(read.vocabulary), sorted(seconds), seed):
            yield taken, nats
    else:
        for taken, _, nats in rivals.nanogpt(train, valid, len(read.vocabulary), 100, seed):
            yield taken, nats


def plot(text: str, file: str) -> None:
    """Plot all three over time. Each point of charlstm is a separate run with that budget."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    curves = {
        "charlstm train --time": [
            (run.wall, run.nats) for run in (ours(text, ("--time", f"{s}s"), 1, ()) for s in CURVE_SECONDS)
        ],
        "nanoGPT's CPU recipe": list(rival("nanogpt", text, [])),
        "char-rnn's defaults": list(rival("char-rnn", text, [float(s) for s in CURVE_SECONDS])),
    }
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for name, points in curves.items():
        print(name, " ".join(f"{seconds:.1f}:{nats:.4f}" for seconds, nats in points), flush=True)
        axes.plot(*zip(*points, strict=True), marker="." if len(points) > 10 else "o", label=name)
    axes.set(xlabel="seconds", ylabel="nats per character, validation", xscale="log", title=Path(text).name)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=120)


def main() -> None:
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text")
    parser.add_argument("--time", nargs="+", default=["60s"], metavar="TIME")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1])
    parser.add_argument("--beside", choices=["char-rnn", "nanogpt"])
    parser.add_argument("--plot", metavar="FILE", help="plot the curves over time")
    given = parser.parse_args(words[:end])
    threads = torch.get_num_threads()
    print(f"charlstm {__version__}, torch {torch.__version__}, {threads} threads; {Path(given.text).name}", flush=True)
    if given.plot:
        plot(given.text, given.plot)
    else:
        show(given.text, given.time, given.seeds, given.beside, words[end + 1 :])


if __name__ == "__main__":
    main()
