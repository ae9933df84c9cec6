"""How a model learned: the curve of its run, the samples at its validations, and the checkpoints that it kept."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"
MAX_BYTES = 2**24  # of the log; a larger file is not read
MAX_SAMPLE = 1000  # characters of a sample that are kept


@dataclass(frozen=True)
class Validation:
    """One validation of the run.

    Attributes:
        step: the training step.
        seconds: the time of the run.
        valid_bits_per_char: the loss on the validation text, in bits.
        train_bits_per_char: the smoothed loss in training, in bits; None if the log does not have it.
        is_best: whether it was better than all before.
        sample: the text that was sampled with the weights of this step; may be empty.
    """

    step: int
    seconds: float
    valid_bits_per_char: float
    train_bits_per_char: float | None
    is_best: bool
    sample: str


@dataclass(frozen=True)
class Learning:
    """The course of a training run.

    Attributes:
        validations: in the order of steps.
        training: (step, smoothed training loss in bits per character, learning rate) at points between validations;
            empty if the log has none.
        kept: (step, file) for each checkpoint of a step that the run kept.
    """

    validations: tuple[Validation, ...]
    training: tuple[tuple[int, float, float | None], ...]
    kept: tuple[tuple[int, Path], ...]


def learning(directory: Path) -> Learning | None:
    """Read the log of a run. Lines that are truncated or invalid are ignored.

    A run that was resumed may have repeated steps; the last event of each step counts.

    Args:
        directory: the directory of the run.

    Returns:
        The course of the run; None if the directory has no log with a validation.
    """
    try:
        if (directory / METRICS).stat().st_size > MAX_BYTES:
            return None
        lines = (directory / METRICS).read_bytes().splitlines()
        kept = sorted((int(match[1]), file) for file in directory.iterdir() if (match := _KEPT.fullmatch(file.name)))
    except OSError:
        return None
    validations: dict[int, Validation] = {}
    training: dict[int, tuple[int, float, float | None]] = {}
    for line in lines:
        event = _parsed(line)
        step, train = event.get("step"), _number(event.get("train_bits_per_char"))
        if type(step) is not int or not 0 <= step <= 2**53:
            continue
        if event.get("event") == "validated":
            valid, sample = _number(event.get("valid_bits_per_char")), event.get("sample")
            if valid is not None:
                seconds = _number(event.get("seconds")) or 0.0
                text = sample[:MAX_SAMPLE] if isinstance(sample, str) else ""
                validations[step] = Validation(step, seconds, valid, train, event.get("best") is True, text)
        elif event.get("event") in ("curve", "progress") and train is not None:
            training[step] = step, train, _number(event.get("lr"))
    if not validations:
        return None
    ordered = [validations[step] for step in sorted(validations)]
    return Learning(tuple(ordered), tuple(training[step] for step in sorted(training)), tuple(kept))


_KEPT = re.compile(r"step-(\d{6,15})\.safetensors")


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return event if isinstance(event, dict) else {}


def _number(value: object) -> float | None:
    """Return a finite number, or None."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    try:
        number = float(value) if is_number else math.nan  # type: ignore[arg-type]
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
