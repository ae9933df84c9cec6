"""The machine that trains: its devices, its memory, its speed, and the versions of what computes."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from collections.abc import Iterator

import numpy as np
import torch

import charlstm
from charlstm.config import ModelConfig
from charlstm.errors import CharlstmError, UsageError
from charlstm.training.scan_native import NATIVE

SPEED_SECONDS = 0.15  # that measuring the speed takes


def device(name: str) -> torch.device:
    """Raises UsageError where there is no such device."""
    found = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device("cuda" if found["cuda"] else "cpu")
    if not found[name]:
        raise UsageError(
            f"--device {name}: torch {torch.__version__} finds no such device here; auto takes what there is"
        )
    return torch.device(name)


def speed(where: torch.device) -> float:
    """Floating-point operations a second, in matrix products of the size that training does: the fastest of a moment's.

    The fastest, for what else runs on the machine in that moment may be gone in the next.
    """
    multiply = NATIVE.product if where.type == "cpu" and NATIVE is not None else torch.mm
    a, b = torch.ones(256, 512, device=where), torch.ones(512, 1024, device=where)
    seconds: list[float] = []
    began = time.perf_counter()
    while len(seconds) < 5 or time.perf_counter() - began < SPEED_SECONDS:
        start = time.perf_counter()
        float(multiply(a, b)[0, 0])  # to read a number is to wait for it
        seconds.append(time.perf_counter() - start)
    return 2 * a.shape[0] * b.numel() / min(seconds)


def check_memory(model: ModelConfig) -> None:
    """Refuse at once what no machine like this can hold: weights, gradients, two moments, and the last good state."""
    needed = 7 * 4 * model.parameters()
    if hasattr(os, "sysconf") and needed > (memory := os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")):
        raise CharlstmError(
            f"{model.parameters():,} parameters need {needed / 1e9:.1f} GB to train, and this machine has "
            f"{memory / 1e9:.1f}: try a smaller --hidden"
        )


@contextlib.contextmanager
def enough_memory(model: ModelConfig) -> Iterator[None]:
    """Say in one line what torch says of memory in many."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise CharlstmError(
            f"not enough memory to train {model.parameters():,} parameters: "
            "try a smaller --hidden, --batch-size or --seq-len"
        ) from error


def versions() -> dict[str, str]:
    """Of all that a result may depend on."""
    return {
        "charlstm": charlstm.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
