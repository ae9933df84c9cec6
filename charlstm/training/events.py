"""The events of a run. The training loop yields them; the command line renders them or writes them as JSON.

The unit of all `chars` is the symbol of the text: a character, or a byte of a text that was read as bytes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal


@dataclass(frozen=True)
class Started:
    """Before the first step: everything that was decided about the run."""

    name: ClassVar[str] = "started"

    run: Path
    cell: str
    layers: int
    hidden: int
    embedding: int
    dropout: float
    parameters: int
    chars: int  # in the whole text
    train_chars: int
    held_out_chars: int
    valid_chars: int  # of the held-out symbols, from their start, scored by each validation
    vocab_size: int
    batch_size: int
    seq_len: int
    lr: float
    device: str
    threads: int
    kernels: str  # implementation of the recurrence: "native (avx512)", "cudnn", "torch", …
    budget: str  # in words: "240 s", "5,000 steps", "3 epochs"
    seed: int
    resumed_step: int = 0  # 0 for a new run
    patience: int | None = None  # validations without a better one after which the run ends
    keep: int = 0  # number of validations whose weights are kept
    valid: tuple[str, ...] = ()  # sources of the separate validation text, if there is one
    base: str | None = None  # the checkpoint that is fine-tuned; None for random initial weights
    boundary: str | None = None  # the boundary between the documents of the text; None for a single document
    precision: Literal["fp32", "bf16"] = "fp32"  # of the operands of matrix products
    bf16_speedup: float | None = None  # of a step over one in fp32; None if it was not measured
    unit: Literal["char", "byte"] = "char"  # of all `chars` here and in the other events


@dataclass(frozen=True)
class Progress:
    """After a training step; at most about ten per second."""

    name: ClassVar[str] = "progress"

    step: int
    share: float  # of the budget, 0 to 1
    train_bits_per_char: float  # smoothed
    chars_per_second: float
    chars_seen: int
    seconds: float  # spent training, in all processes of the run
    seconds_left: float
    lr: float


@dataclass(frozen=True)
class CurvePoint:
    """At 200 even shares of the budget: a point of the curves of loss, speed and learning rate."""

    name: ClassVar[str] = "curve"

    step: int
    share: float  # of the budget, 0 to 1
    seconds: float  # spent training, in all processes of the run
    train_bits_per_char: float  # smoothed
    chars_per_second: float
    lr: float


@dataclass(frozen=True)
class Validated:
    """After the validation text was scored, each transition once, with carried state."""

    name: ClassVar[str] = "validated"

    step: int
    seconds: float
    valid_bits_per_char: float
    valid_nats_per_char: float
    train_bits_per_char: float
    best: bool  # strictly better than every validation before
    sample: str  # a few lines sampled with the current weights; may be empty


@dataclass(frozen=True)
class CheckpointSaved:
    """A checkpoint of this step is stored durably."""

    name: ClassVar[str] = "saved"

    step: int
    path: Path


@dataclass(frozen=True)
class Warned:
    """A problem that the user should know about and that does not stop the run."""

    name: ClassVar[str] = "warned"

    step: int
    message: str


StopReason = Literal["finished", "interrupted", "patience", "already-finished"]


@dataclass(frozen=True)
class Stopped:
    """The last event of every run."""

    name: ClassVar[str] = "stopped"

    step: int
    seconds: float
    reason: StopReason
    best_valid_bits_per_char: float | None
    best: Path
    last: Path
    signal: int | None = None  # the number of the signal if the reason is "interrupted"
    no_better: int = 0  # validations since the best one; equals `patience` if that is the reason
    step_seconds: float = 0.0  # spent in training steps by this process; the rest is validation, sampling and saving


Event = Started | Progress | CurvePoint | Validated | CheckpointSaved | Warned | Stopped


def to_json(event: Event) -> dict[str, Any]:
    """Return an event as a JSON object: its name as "event", then its fields, with paths as text."""
    values = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(event).items()}
    return {"event": event.name, **values}
