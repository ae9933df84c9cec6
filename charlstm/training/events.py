"""Events of a training run. The training loop yields them; the command line renders them or writes them as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Started:
    """Before the first step: all that was decided."""

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
    valid_chars: int  # of those, from their start, that each validation scores
    vocab_size: int
    batch_size: int
    seq_len: int
    lr: float
    device: str
    threads: int
    kernels: str  # which fast path trains: 'native (avx512)', 'cudnn', 'torch' …
    budget: str  # as a person says it: '240 s', '5,000 steps', '3 epochs'
    seed: int
    resumed_step: int = 0  # 0 for a fresh run
    patience: int | None = None  # validations without a better one that end the run before its budget
    keep: int = 0  # validations whose weights are kept
    valid: tuple[str, ...] = ()  # names of the validation text, where it is one of its own
    base: str | None = None  # the checkpoint that the first weights came from; None for fresh ones
    boundary: str | None = None  # what stands between the documents of the text; None where it is one
    unit: Literal["char", "byte"] = "char"  # what all `chars` here and in the other events count


@dataclass(frozen=True)
class Progress:
    """After a training step; at most some ten a second."""

    step: int
    share: float  # of the budget, 0 to 1
    train_bits_per_char: float  # smoothed
    chars_per_second: float
    chars_seen: int
    seconds: float  # spent training, over all sittings
    seconds_left: float
    lr: float


@dataclass(frozen=True)
class Validated:
    """After the validation part was scored, state carried, each transition once."""

    step: int
    seconds: float
    valid_bits_per_char: float
    valid_nats_per_char: float
    train_bits_per_char: float
    best: bool  # strictly better than every one before
    sample: str  # a few lines drawn from the model as it is now; may be empty


@dataclass(frozen=True)
class Saved:
    """A checkpoint of this step is on the disk, durably."""

    step: int
    path: Path


@dataclass(frozen=True)
class Warned:
    """Something that the user should know and that the run survives."""

    step: int
    message: str


@dataclass(frozen=True)
class Stopped:
    """The last event of every run."""

    step: int
    seconds: float
    reason: Literal["finished", "interrupted", "patience", "already-finished"]
    best_valid_bits_per_char: float | None
    best: Path
    last: Path
    signal: int | None = None  # SIGINT or SIGTERM, where reason is 'interrupted'
    no_better: int = 0  # validations since the best one; as many as --patience allows, where reason is 'patience'
    step_seconds: float = 0.0  # of this sitting, spent in training steps: the rest went to validating, drawing, saving


Event = Started | Progress | Validated | Saved | Warned | Stopped


def to_json(event: Event) -> dict[str, Any]:
    """One JSON object: the event's name in lower case, then its fields; paths as text."""
    values = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(event).items()}
    return {"event": type(event).__name__.lower(), **values}
