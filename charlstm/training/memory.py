"""The memory of a training run: an estimate before anything is allocated, and the error if there is too little.

Letters: B batch, T time, V vocabulary, H hidden, L layers, G gates, S states, P parameters.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from charlstm.cells import GATES, STATES
from charlstm.config import ModelConfig, TrainingConfig
from charlstm.errors import CharlstmError, Field
from charlstm.inference.evaluation import CHUNK

FLOAT = 4  # bytes of a float32
OVERHEAD = 16_000_000  # bytes that torch itself needs, and that the allocator cannot fill
GOOD_STATE = 3  # copies of the parameters in the state that a divergence rolls back to: weights and two moments
VALIDATION_COPIES = 3  # copies of the parameters while a checkpoint is made, or while a validation packs them


@dataclass(frozen=True)
class StepMemory:
    """Bytes that a training step allocates, by what they grow with.

    Attributes:
        parameters: weights, gradients, two moments, the table of the first layer and a packed matrix; grows with H.
        window: activations and logits; grows with B·T.
        states: the states that are carried from window to window, and their gradients; grows with B.
    """

    parameters: int
    window: int
    states: int

    @property
    def total(self) -> int:
        """Bytes of the whole step, with what torch itself needs."""
        return self.parameters + self.window + self.states + OVERHEAD


def step_memory(model: ModelConfig, batch_size: int, seq_len: int, dropout: float = 0.0) -> StepMemory:
    """Estimate the memory of a training step on a CPU with the native kernels; other paths need more.

    docs/training.md explains each term, and bench/train_memory.py measures the estimate.

    Args:
        model: the shape of the model.
        batch_size: B.
        seq_len: T.
        dropout: the share of outputs that is dropped; 0 stores no masked outputs.
    """
    gates, hidden, layers = len(GATES[model.cell]) * model.hidden, model.hidden, model.layers
    states, symbols, is_gru = len(STATES[model.cell]) * hidden, batch_size * seq_len, model.cell == "gru"
    kept = layers * (gates + states + (hidden if is_gru else 0))
    kept += layers * states if model.boundary is not None else 0
    kept += layers * hidden if dropout else 0
    input_product = hidden + gates * (2 if is_gru else 1) if layers > 1 else hidden
    passing = max(hidden + 5 * model.vocab_size, input_product)
    table = 2 * min(model.vocab_size, symbols) * gates
    return StepMemory(
        parameters=FLOAT * (4 * model.parameters() + table + gates * hidden),
        window=FLOAT * symbols * (kept + passing),
        states=FLOAT * 3 * layers * batch_size * states,
    )


def check(model: ModelConfig, options: TrainingConfig, device: str, valid_chars: int) -> None:
    """Refuse a run that needs more memory than the machine has, before anything is allocated.

    On a GPU the window and the gradients are in the GPU's memory, whose driver reports a lack of it; there the
    parameters alone are checked.

    Args:
        model: the shape of the model.
        options: batch size, window length and dropout, already fitted to the text.
        device: the type of the device that trains, such as "cpu".
        valid_chars: the length of the validation text, in symbols.

    Raises:
        CharlstmError: the run needs more memory than there is. The message names the options that help most.
    """
    available = available_bytes()
    if available is None:
        return
    size = FLOAT * model.parameters()
    step = step_memory(model, options.batch_size, options.seq_len, options.dropout)
    if device != "cpu":
        step = StepMemory(4 * size, 0, 0)
    block = min(CHUNK, valid_chars) * (3 * model.vocab_size + (len(GATES[model.cell]) + 3) * model.hidden)
    validation = VALIDATION_COPIES * size + FLOAT * block + 3 * size  # beside weights and moments
    needed = GOOD_STATE * size + max(step.total, step.states + validation)
    if needed <= available:
        return
    is_window = step.window + step.states > needed / 2
    advice = (Field("batch_size"), " or ", Field("seq_len")) if is_window else (Field("hidden"),)
    raise CharlstmError(
        f"training {model.parameters():,} parameters on {options.batch_size:,} streams of {options.seq_len:,} "
        f"characters needs about {needed / 1e9:.1f} GB of memory, and {available / 1e9:.1f} GB are available: reduce ",
        *advice,
        value=needed,
        allowed=f"at most {available} bytes",
    )


@contextlib.contextmanager
def shortage_explained(model: ModelConfig) -> Iterator[None]:
    """Replace the error of a failed allocation by one line that names the options that help.

    Raises:
        CharlstmError: an allocation failed within the context.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        raise CharlstmError(
            f"there is not enough memory to train {model.parameters():,} parameters: reduce ",
            *(Field("hidden"), ", ", Field("batch_size"), " or ", Field("seq_len")),
        ) from error


def available_bytes(root: Path = Path("/")) -> int | None:
    """Return the memory that this process may use: that of the machine, or less where its control group has a limit.

    Args:
        root: the root of the file system, for tests.

    Returns:
        Bytes, or None where the system does not tell.
    """
    if not hasattr(os, "sysconf"):
        return None
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([physical, *_control_group_limits(root)])


def _control_group_limits(root: Path) -> list[int]:
    """Limits of the process's control group and of the groups that contain it, in bytes; versions 1 and 2 of Linux."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    limits = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            top, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        group = Path(path.lstrip("/"))
        for folder in (group, *group.parents):
            try:
                text = (top / folder / name).read_text().strip()
            except OSError:  # a container shows its own group as the top one
                continue
            if text.isdecimal():  # else "max"
                limits.append(int(text))
    return limits
