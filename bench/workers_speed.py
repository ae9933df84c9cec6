"""Compare one process with two threads and two workers with one thread each, in turn; and compute larger groups.

    python bench/workers_speed.py                       three shapes on this machine
    python bench/workers_speed.py --scaling STEP_MS     computed times for 8 to 1,024 workers

A figure is the median of the speeds that a run logged at even shares of its budget, without validation.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from charlstm.config import ModelConfig
from charlstm.text import datasets

SHAPES = ((256, 32, 32), (512, 32, 48), (512, 64, 128))  # hidden units, streams, length of a window
NETWORKS = {  # bytes per second, and seconds of a message
    "1 Gbit/s Ethernet": (0.125e9, 100e-6),
    "25 Gbit/s Ethernet": (3.1e9, 30e-6),
    "NDR InfiniBand": (50e9, 5e-6),
}


def speed(command: list[str], text: Path, run: Path, steps: int, shape: tuple[int, int, int]) -> float:
    """Train for a number of steps, and return the median speed in characters per second."""
    hidden, streams, length = shape
    options = ["--hidden", hidden, "--layers", 1, "--batch-size", streams, "--seq-len", length, "--steps", steps]
    options += ["--valid-share", 0, "--sample-chars", 0, "--dropout", 0, "-q", "-o", run]
    environment = {**os.environ, "OMP_NUM_THREADS": "2" if "--threads" in command else "1"}
    full = [*command[: command.index("train") + 1], text, *command[command.index("train") + 1 :], *options]
    subprocess.run([str(word) for word in full], check=True, env=environment, capture_output=True)
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    points = [json.loads(line) for line in lines]
    return float(statistics.median(point["chars_per_second"] for point in points if point["event"] == "curve"))


def measure(rounds: int, steps: int) -> None:
    """Print the speeds of both ways for each shape."""
    one = [sys.executable, "-m", "charlstm", "train", "--threads", "2"]
    two = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", "charlstm", "train"]
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} processors, medians of {rounds} pairs\n")
    print(f"{'L, H, B, T':18}{'one process':>14}{'two workers':>14}{'ratio':>8}{'KB summed a step':>20}")
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "text.txt"
        text.write_text(datasets.generate("python:docs")[:1_000_000], encoding="utf-8")
        vocabulary = len(set(text.read_text(encoding="utf-8")))
        for shape in SHAPES:
            pairs = []
            for number in range(rounds):
                runs = [Path(folder) / f"{shape}-{number}-{side}" for side in "ab"]
                pairs.append([speed(way, text, run, steps, shape) for way, run in zip((one, two), runs, strict=True)])
            first, second = (statistics.median(side) for side in zip(*pairs, strict=True))
            ratio = statistics.median(b / a for a, b in pairs)
            size = 4 * (ModelConfig(vocabulary, shape[0], 1, shape[0]).parameters() + 2)
            name = f"1, {', '.join(map(str, shape))}"
            print(f"{name:18}{first:14,.0f}{second:14,.0f}{ratio:8.3f}{size / 1000:20,.0f}", flush=True)


def scaling(step: float, parameters: int) -> None:
    """Print computed times of a step for groups of workers.

    Args:
        step: seconds of a step of one worker on its own streams, without communication.
        parameters: of the model; a float32 of each is summed.
    """
    print(f"step {1000 * step:g} ms, {parameters:,} parameters.")
    print("A ring sums 2·(N − 1)/N of the bytes, in 2·(N − 1) messages one after another.")
    print(f"{'workers':>8}" + "".join(f"{name:>22}" for name in NETWORKS))
    for workers in (8, 64, 256, 1024):
        cells = []
        for bandwidth, latency in NETWORKS.values():
            summing = 2 * (workers - 1) / workers * 4 * parameters / bandwidth + 2 * (workers - 1) * latency
            cells.append(f"{1000 * summing:9.1f} ms, {step / (step + summing):4.0%}")
        print(f"{workers:8}" + "".join(f"{cell:>22}" for cell in cells))


def main() -> None:
    """Measure, or compute the scaling."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3, help="pairs of each shape (default 3)")
    parser.add_argument("--steps", type=int, default=200, help="steps of a run (default 200)")
    parser.add_argument("--scaling", type=float, metavar="MS", help="compute larger groups from this time of a step")
    arguments = parser.parse_args()
    if arguments.scaling:
        scaling(arguments.scaling / 1000, ModelConfig(65, 512, 1, 512).parameters())
    else:
        measure(arguments.rounds, arguments.steps)


if __name__ == "__main__":
    main()
