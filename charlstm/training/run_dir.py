"""A run's folder: its name, its lock, and the files in it.

`best.safetensors` holds the weights with the best validation, `last.safetensors` those of the last save with everything
needed to go on, `step-000123.safetensors` the weights of step 123 where such are kept, `config.toml` the options as
`--config` reads them, `metrics.jsonl` the events.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from io import FileIO
from pathlib import Path

from charlstm import atomicfile, checkpoint, runs
from charlstm.atomicfile import FolderLock
from charlstm.checkpoint import Checkpoint
from charlstm.config import TrainingOptions, to_toml
from charlstm.errors import CheckpointError, RunBusy
from charlstm.runs import BEST, LAST
from charlstm.terminal import escape
from charlstm.training import events
from charlstm.training.events import Event

METRICS, SETTINGS = "metrics.jsonl", "config.toml"


def fresh(names: tuple[str, ...], root: Path = runs.ROOT) -> Path:
    """A folder under `root` that does not exist, named after the text: shakespeare, shakespeare-2, …"""
    stem = Path(names[0]).name.removesuffix(".gz").rsplit(".", 1)[0] if names and names[0] != "-" else "stdin"
    stem = re.sub(r"[^\w.-]+", "-", stem).strip(".-")[:100] or "run"
    taken = (root / (stem if number == 1 else f"{stem}-{number}") for number in range(1, 1_000_000))
    return next(folder for folder in taken if not folder.exists())


def lock(run: Path) -> FolderLock:
    """Make the folder, and be the only one who trains there until the lock is closed.

    Raises:
        RunBusy: another process trains there.
        CheckpointError: the folder cannot be made or written.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
        return FolderLock(run)
    except BlockingIOError as error:
        raise RunBusy(f"{escape(str(run))}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"cannot train into {escape(str(run))}: {error.strerror}") from error


def check_free(run: Path) -> None:
    """Raises CheckpointError where the folder holds a model."""
    if held := [file.name for file in (run / BEST, run / LAST, *kept_files(run)) if file.exists()]:
        raise CheckpointError(
            f"{escape(str(run))} holds a model already ({', '.join(held)}): "
            "go on with it by --resume, or choose another folder with -o"
        )


def kept(step: int) -> str:
    """The name of the file that keeps the weights of a step."""
    return f"step-{step:06d}.safetensors"


def kept_files(run: Path) -> list[Path]:
    """All files of such a name."""
    return sorted(run.glob("step-*.safetensors"))


def forget(run: Path, step: int) -> None:
    """Remove the weights that were kept of a step. A file that cannot be removed stays, and so does a link."""
    file = run / kept(step)
    with contextlib.suppress(OSError):
        if not file.is_symlink():
            file.unlink()


def save(run: Path, name: str, saved: Checkpoint) -> Path:
    """Write a checkpoint atomically and durably, in a folder that is made again if somebody has removed it.

    Raises:
        CheckpointError: it could not be written; what was there before is untouched.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"cannot write into {escape(str(run))}: {error.strerror}") from error
    checkpoint.save(run / name, saved)
    return run / name


def write_settings(run: Path, options: TrainingOptions, **others: str | None) -> str | None:
    """Keep the options for a reader and for --config; where that fails, a complaint: a full disk costs no run."""
    try:
        atomicfile.replace(run / SETTINGS, [to_toml(options, **others).encode()])
    except OSError as error:
        return f"{escape(str(run / SETTINGS))}: {error.strerror}; training goes on"
    return None


class Metrics:
    """The run's log of events, a JSON object a line. A disk that is full costs the log, not the run."""

    def __init__(self, run: Path) -> None:
        self._path = run / METRICS
        self._file: FileIO | None = None
        self._complained = False

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def note(self, event: Event) -> str | None:
        """Write one line; the first time that this fails, a complaint to show."""
        line = (json.dumps(events.to_json(event), ensure_ascii=False) + "\n").encode()
        try:
            if self._file is None:
                self._file = self._path.open("a+b", buffering=0)
                if self._file.tell() and self._file.seek(-1, os.SEEK_END) >= 0 and self._file.read(1) != b"\n":
                    line = b"\n" + line  # where a full disk or a loss of power has cut a line short
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            if self._file is not None:
                self._file.close()
                self._file = None
            complaint = None if self._complained else f"{escape(str(self._path))}: {error.strerror}; training goes on"
            self._complained = True
            return complaint
        return None
