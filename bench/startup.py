"""Measure how long commands take from start to end: this checkout, and another one in turn.

    python bench/startup.py                                   this checkout, with `import typer` as a reference
    python bench/startup.py --against ../old/.venv/bin/python the same commands in another checkout, too

PYTHON is an interpreter in whose environment the other charlstm is installed. The two sides take turns, so that a
change of the processor's clock affects both. Each figure is a median; the ratio is the median of the ratios of pairs.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from charlstm import __version__, checkpoint
from charlstm.checkpoint import Checkpoint
from charlstm.config import ModelConfig
from charlstm.text.vocabulary import Vocabulary


def processor() -> str:
    """Return the processor's name, as Linux gives it where it does."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def write_model(path: Path) -> None:
    """Write a checkpoint of 2 layers of 256 units with random weights."""
    vocabulary = Vocabulary.of("".join(map(chr, range(32, 97))))
    config = ModelConfig(len(vocabulary), hidden=256, layers=2, embedding=128)
    random = np.random.default_rng(0)
    weights = {name: random.normal(0, 0.06, shape).astype(np.float32) for name, shape in config.shapes().items()}
    checkpoint.save(path, Checkpoint(config, vocabulary, weights))


def seconds(command: list[str], folder: str) -> float:
    """Return the seconds that a process takes from start to end.

    The process starts in an empty directory, so that it imports the installed charlstm and not the current checkout.
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    began = time.perf_counter()
    subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def main() -> None:
    """Measure every command and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--against", metavar="PYTHON", help="interpreter of another checkout's environment")
    parser.add_argument("--rounds", type=int, default=15, help="pairs of each command (default 15)")
    arguments = parser.parse_args()
    pythons = [sys.executable]
    if arguments.against:
        pythons.append(str(Path(arguments.against).absolute()))
    print(f"charlstm {__version__}, Python {platform.python_version()}, {processor()}, {os.cpu_count()} processors")
    print(
        f"medians of {arguments.rounds}, in milliseconds; load {os.getloadavg()}\n" if hasattr(os, "getloadavg") else ""
    )
    print(f"{'':32}{'this':>8}" + (f"{'other':>9}{'ratio':>8}" if arguments.against else ""))
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model.safetensors"
        write_model(model)
        commands = {
            "python -c pass": ["-c", "pass"],
            "import typer": ["-c", "import typer"],
            "import charlstm": ["-c", "import charlstm"],
            "charlstm --help": ["-m", "charlstm", "--help"],
            "charlstm sample -n 1": ["-m", "charlstm", "sample", "-c", str(model), "-n", "1"],
        }
        for title, command in commands.items():
            for python in pythons:
                seconds([python, *command], folder)  # fills the caches of files
            rounds = [[seconds([python, *command], folder) for python in pythons] for _ in range(arguments.rounds)]
            medians = [1000 * statistics.median(side) for side in zip(*rounds, strict=True)]
            ratio = statistics.median(pair[0] / pair[-1] for pair in rounds)
            others = f"{medians[1]:9.1f}{ratio:8.3f}" if arguments.against else ""
            print(f"{title:32}{medians[0]:8.1f}{others}", flush=True)


if __name__ == "__main__":
    main()
