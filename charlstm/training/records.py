"""What a checkpoint keeps of its training, checked before any of it is used: the file may come from a stranger.

`checkpoint.load` has seen to the container, the model and the weights; the optimizer, which knows their shapes, looks
at its moments itself.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

import numpy as np

from charlstm.checkpoint import Checkpoint
from charlstm.config import TrainingConfig, from_json
from charlstm.errors import ResumeError, UsageError
from charlstm.provenance import BaseRecord
from charlstm.runs import LAST
from charlstm.terminal import escape
from charlstm.training.counters import Tally

ENTRIES = {"options", "tally", "cursor", "seconds"}
TALLY = {field.name: str(field.type) for field in fields(Tally)}
MOST = 2**53  # of anything that is counted

# Of the state of torch's generator on the CPU: how many numbers are left, and which is the next.
_GENERATOR = struct.Struct("<8xi4xQ")
_GENERATOR_BYTES, _GENERATOR_NUMBERS = 5056, 624


def options_of(saved: Checkpoint) -> TrainingConfig:
    """The options of a saved training, once all of its record is found to be such as a training writes.

    Raises:
        ResumeError: the file holds no training, or one that no run can have come to.
    """
    record = saved.training
    if record is None:
        raise ResumeError(f"the checkpoint holds weights only; resume from its run's {LAST}")
    if record.keys() != ENTRIES:
        raise unsound(f"its record has not the entries {', '.join(sorted(ENTRIES))}")
    try:
        options = from_json(TrainingConfig, record["options"])
        tally = from_json(Tally, record["tally"])
    except UsageError as error:
        raise unsound(str(error)) from error
    for name, value in vars(tally).items():
        kind = TALLY[name]
        for number in value if isinstance(value, (list, tuple)) and kind.startswith("tuple") else (value,):
            if not (number is None and kind.endswith("None")):
                _check_number(name, number, whole="int" in kind)
    if tally.step != saved.step:
        raise unsound(f"step {tally.step} in its tally is {saved.step} in the checkpoint")
    _check_number("cursor", record["cursor"], whole=True)
    if record["seconds"] is not None:
        _check_number("seconds", record["seconds"], whole=False)
    carried, shape = saved.tensors.get("state/carried"), saved.model.state_shape(options.batch_size)
    if carried is None or carried.dtype != np.float32 or carried.shape != shape:
        raise unsound(f"state/carried is not float32 {shape}")
    for name, array in saved.tensors.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise unsound(f"{escape(name)} holds numbers that are not finite")
        if name.startswith("rng/"):
            _check_generator(name, array)
    return options


def text_of(saved: Checkpoint) -> tuple[str, int]:
    """sha256 and length in characters of the text that a training began with.

    Raises:
        ResumeError: the file does not say.
    """
    record = saved.corpus
    if record.sha256 is None or record.chars is None:
        raise unsound("it does not say which text it began with")
    return escape(record.sha256), record.chars


def validation_of(saved: Checkpoint) -> tuple[str, str] | None:
    """sha256 and names, safe to print, of a training's own validation text; None where it has none.

    Raises:
        ResumeError: it is not described as a training does.
    """
    record = saved.corpus.validation
    if record is None:
        return None
    if record.sha256 is None or not record.names:
        raise unsound("it does not say which text it is validated on")
    return escape(record.sha256), escape(", ".join(record.names))


def base_of(saved: Checkpoint) -> BaseRecord | None:
    """The checkpoint that a training began with and its sha256; None where it began with fresh weights.

    Raises:
        ResumeError: it is not described as a training does.
    """
    base = saved.base
    if base is not None and base.sha256 is None:
        raise unsound("it does not say which weights it began with")
    return None if base is None else replace(base, checkpoint=base.checkpoint and escape(base.checkpoint))


def surroundings_of(saved: Checkpoint) -> dict[str, str]:
    """What a training ran on, as far as the file tells: versions, threads, device; short and safe to print."""
    versions = saved.facts.get("versions")
    found = {**versions} if isinstance(versions, Mapping) else {}
    found |= {name: saved.facts[name] for name in ("threads", "device") if name in saved.facts}
    return {name: escape(str(value)[:60]) for name, value in found.items()}


def unsound(what: str) -> ResumeError:
    """To be raised where what is saved is not such as a training writes."""
    return ResumeError(f"the saved training state is not whole: {what}")


def _check_number(name: str, value: Any, *, whole: bool) -> None:
    if type(value) not in ((int,) if whole else (int, float)) or not 0 <= value <= (MOST if whole else 1e300):
        raise unsound(f"{name} is {escape(str(value)[:60])}")


def _check_generator(name: str, state: np.ndarray[Any, Any]) -> None:
    """Torch sees to the size, but would take numbers from behind the end of a state that contradicts itself."""
    if state.nbytes == _GENERATOR_BYTES:
        left, following = _GENERATOR.unpack_from(state.tobytes())
        if (left, following) != (1, 0) and not (following > 0 and left + following == _GENERATOR_NUMBERS + 1):
            raise unsound(f"{name} is no state of a generator")
