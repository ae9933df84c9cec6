"""Choose the precision of the matrix products of a training step: fp32 or bf16.

In bf16 the operands of every product are rounded to 8 significant bits; weights, sums, gates, states, gradients of the
weights and the moments of AdamW are float32. Whether that is faster depends on the processor and on the shape of the
model, so it is measured: processors with instructions for bf16 multiply it between half and four times as fast as fp32.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch.nn import functional

from charlstm.config import ModelConfig, TrainingConfig, TrainingPrecision
from charlstm.errors import Field, UsageError
from charlstm.training import hardware, scan_native
from charlstm.training.network import Network
from charlstm.training.optimizer import Optimizer

LEAST_SPEEDUP = 1.15  # of a step in bf16 over one in fp32, from which bf16 is chosen
MEASURED_SECONDS = 0.5  # time after which no other round begins; each round is a step in each precision


def check(precision: TrainingPrecision, device: torch.device) -> None:
    """Check that a precision can be used on a device.

    Raises:
        UsageError: bf16 on another device than the CPU, or without the compiled library.
    """
    if precision == "bf16" and (device.type != "cpu" or scan_native.NATIVE_BF16 is None):
        where = f"device {device.type}" if device.type != "cpu" else "an installation without the compiled library"
        raise UsageError(
            Field("precision"), f" bf16 is not available on {where}: use fp32", value=precision, allowed="fp32"
        )


def is_fast(device: torch.device) -> bool:
    """Whether the processor has instructions for bf16 that the compiled library uses, so that bf16 can be faster."""
    return device.type == "cpu" and scan_native.NATIVE_BF16 is not None and scan_native.NATIVE_BF16.has_bf16


def speeds(device: torch.device, *, may_be_bf16: bool) -> tuple[float, float | None]:
    """Measure the speed of a matrix product.

    Args:
        device: the device that trains.
        may_be_bf16: whether the products of the run may be in bf16.

    Returns:
        Operations per second in fp32, and those of the faster precision, or None if bf16 is not considered.
    """
    speed = hardware.speed(device)
    return speed, max(speed, hardware.speed(device, "bf16")) if may_be_bf16 and is_fast(device) else None


def warnings(precision: TrainingPrecision) -> list[str]:
    """Return a warning if bf16 is emulated, otherwise nothing."""
    if precision == "bf16" and not is_fast(torch.device("cpu")):
        return ["this processor has no instructions for bf16 that charlstm uses: bf16 is slower here than fp32"]
    return []


def speedup(model: ModelConfig, options: TrainingConfig) -> float:
    """Measure how many times as fast a training step is in bf16 as in fp32, on the CPU.

    The steps are made by a network and an optimizer of their own. They change nothing else, and no random generator.

    Args:
        model: the shape of the model.
        options: those of the run; the batch size, the window length and the optimizer's options are used.

    Returns:
        The fastest step in fp32 divided by the fastest in bf16. Other programs that use the machine at the moment make
        some steps slower, but never faster.
    """
    with torch.random.fork_rng(devices=[]):  # torch initialises the weights, by its global generator
        network = Network(model)
    optimizer = Optimizer(network, options)
    ids = torch.arange(options.seq_len * options.batch_size).view(options.seq_len, -1) % model.vocab_size
    state = network.zero_state(options.batch_size)

    def step() -> None:
        logits, _ = network(ids, state)
        functional.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
        optimizer.step(0.0, optimizer.clip())

    fastest: dict[str, float] = {}
    began = 0.0
    for number in range(1000):
        for path in ("native", "native-bf16"):
            network.recurrence.requested_path = path
            taken = _seconds(step)
            if number:  # the first round allocates memory
                fastest[path] = min(taken, fastest.get(path, taken))
        began = began or time.perf_counter()
        if number and time.perf_counter() - began > MEASURED_SECONDS:
            break
    return fastest["native"] / fastest["native-bf16"]


def _seconds(run: Callable[[], None]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
