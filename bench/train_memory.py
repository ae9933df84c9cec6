"""Compare the peak memory of a training step, median of three new processes, with the formula of docs/training.md.

    python bench/train_memory.py

The measurement is the growth of the peak resident size of a process (getrusage) over four steps, after a step of a tiny
model has loaded the parts of torch that a step needs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import sys
from multiprocessing.connection import Connection

import torch
from torch.nn import functional

from charlstm.config import Cell, ModelConfig, TrainingOptions
from charlstm.training.defaults import choose
from charlstm.training.hardware import run_settings
from charlstm.training.memory import step_memory
from charlstm.training.network import Network
from charlstm.training.optimizer import Optimizer

Shape = tuple[Cell, int, int, int, int, int, float]
SHAPES: list[Shape] = [
    ("lstm", 1, 256, 64, 64, 65, 0.0),
    ("lstm", 1, 512, 64, 128, 65, 0.0),
    ("lstm", 2, 512, 64, 128, 65, 0.0),
    ("lstm", 2, 512, 64, 128, 65, 0.3),
    ("lstm", 1, 1024, 64, 128, 65, 0.0),
    ("lstm", 1, 512, 32, 64, 5000, 0.0),
    ("gru", 2, 512, 64, 128, 65, 0.0),
    ("coupled", 1, 512, 64, 128, 65, 0.0),
    ("rnn", 1, 512, 64, 128, 65, 0.0),
]


def formula(shape: Shape) -> int:
    """Return the estimate of `charlstm.training.memory`, in bytes."""
    cell, layers, hidden, batch, steps, vocabulary, dropout = shape
    return step_memory(ModelConfig(vocabulary, hidden, layers, hidden, cell), batch, steps, dropout).total


def peak(line: Connection, shape: Shape) -> None:
    """Send the bytes by which the peak of the process grew."""
    with run_settings(torch.device("cpu"), None):
        train(("lstm", 1, 8, 2, 3, 5, 0.1))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        train(shape)
    unit = 1 if sys.platform == "darwin" else 1024
    line.send(unit * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))


def train(shape: Shape) -> None:
    """Train a network of this shape for four steps."""
    cell, layers, hidden, batch, steps, vocabulary, dropout = shape
    network = Network(ModelConfig(vocabulary, hidden, layers, hidden, cell))
    network.initialise(generator := torch.Generator().manual_seed(1), 1.0)
    optimizer = Optimizer(network, choose(TrainingOptions(steps=1, hidden=1), 10**6, vocabulary))
    text = torch.randint(vocabulary, (steps + 1, batch))
    state = network.zero_state(batch)
    for _ in range(4):
        logits, last = network(text[:-1], state, dropout, generator)
        functional.cross_entropy(logits.flatten(0, 1), text[1:].flatten()).backward()
        optimizer.step(0.5, optimizer.clip())
        state = last.detach()


def in_own_process(shape: Shape) -> int:
    """Return the number that `peak` sends from a new process."""
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    worker = spawn.Process(target=peak, args=(there, shape))
    worker.start()
    measured: int = here.recv()
    worker.join()
    return measured


def main() -> None:
    """Measure every shape and print a table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print("cell      L     H    B    T     V  dropout   measured    formula   measured/formula")
    for shape in SHAPES:
        measured, expected = statistics.median(in_own_process(shape) for _ in range(3)), formula(shape)
        cell, *sizes, dropout = shape
        columns = "{:3} {:5} {:4} {:4} {:5}".format(*sizes)
        row = f"{cell:8}{columns} {dropout:8} {measured / 1e6:7.1f} MB {expected / 1e6:7.1f} MB"
        print(f"{row} {measured / expected:10.2f}", flush=True)


if __name__ == "__main__":
    main()
