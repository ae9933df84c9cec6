"""The machine that trains: its devices, its speed, the settings of a run, and the versions of the libraries.

Nothing here changes the process except `run_settings`, and that undoes its changes.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import time
from collections.abc import Iterator

import numpy as np
import torch

import charlstm
from charlstm.config import TrainingPrecision
from charlstm.errors import Field, UsageError
from charlstm.training import scan_native

SPEED_SECONDS = 0.15  # time that `speed` takes at least

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # parameters of mallopt(3)
_DEFAULT_TRIM_THRESHOLD, _DEFAULT_MMAP_MAX = 128 * 1024, 65_536  # the defaults of glibc, from mallopt(3)


def device(name: str) -> torch.device:
    """Return the torch device of a `device` option; "auto" is a CUDA device if there is one, else the CPU.

    Raises:
        UsageError: torch finds no such device on this machine.
    """
    found = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return torch.device("cuda" if found["cuda"] else "cpu")
    if not found[name]:
        available = " or ".join(("auto", *(known for known, is_found in found.items() if is_found)))
        raise UsageError(
            Field("device"),
            f" {name}: torch {torch.__version__} finds no such device on this machine; use {available}",
            value=name,
            allowed=available,
        )
    return torch.device(name)


@contextlib.contextmanager
def run_settings(device: torch.device, threads: int | None) -> Iterator[None]:
    """Apply the settings that training needs in the whole process, and restore the previous ones at the end.

    * C allocator (glibc only): keep freed memory instead of returning it to the system. A step allocates T·B·G·H floats
      anew, and the page faults would cost a tenth of its time or more. glibc cannot report its settings; at the end
      it gets the defaults of mallopt(3), and returns what it kept.
    * Threads of torch.
    * On a CUDA device, products of float32 matrices in TF32, which cuDNN uses by default.

    Initialise the weights inside as well: the last bits of an orthogonal matrix depend on the number of threads.

    Args:
        device: the device that trains.
        threads: the number of threads; None keeps the number that torch uses.
    """
    before_threads, before_precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    _set_allocator(trim_threshold=2**31 - 1, mmap_max=0)
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        yield
    finally:
        if threads is not None:
            torch.set_num_threads(before_threads)
        if device.type == "cuda":
            torch.set_float32_matmul_precision(before_precision)
        _set_allocator(_DEFAULT_TRIM_THRESHOLD, _DEFAULT_MMAP_MAX)


def _set_allocator(trim_threshold: int, mmap_max: int) -> None:
    """Set two parameters of glibc's malloc and return unused memory; without effect in another C library."""
    libc = ctypes.CDLL(None) if os.name == "posix" else None
    if libc is not None and hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim"):
        libc.mallopt(_M_MMAP_MAX, mmap_max)
        libc.mallopt(_M_TRIM_THRESHOLD, trim_threshold)
        libc.malloc_trim(0)


def speed(device: torch.device, precision: TrainingPrecision = "fp32") -> float:
    """Measure the speed of a matrix product of the size that training computes.

    Args:
        device: the device that trains.
        precision: of the product; bf16 needs the compiled library and a CPU.

    Returns:
        Floating-point operations per second, of the fastest product in a short time: other programs that use the
        machine at the moment may have ended when the training runs.
    """
    native = scan_native.NATIVE_BF16 if precision == "bf16" else scan_native.NATIVE
    multiply = native.product if device.type == "cpu" and native is not None else torch.mm
    a, b = torch.ones(256, 512, device=device), torch.ones(512, 1024, device=device)
    seconds: list[float] = []
    began = time.perf_counter()
    while len(seconds) < 5 or time.perf_counter() - began < SPEED_SECONDS:
        start = time.perf_counter()
        float(multiply(a, b)[0, 0])  # reading a number waits for the device
        seconds.append(time.perf_counter() - start)
    return 2 * a.shape[0] * b.numel() / min(seconds)


def versions() -> dict[str, str]:
    """Return the versions of the libraries that a result may depend on, by name."""
    return {
        "charlstm": charlstm.__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
