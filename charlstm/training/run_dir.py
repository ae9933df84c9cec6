"""The directory of a run: its name, its lock, and its files.

`best.safetensors` holds the weights with the best validation, `last.safetensors` the whole state at the last save,
from which the run can be resumed, `step-000123.safetensors` the weights of step 123 if they are kept, `config.toml` the
options in the form of a configuration file, and `metrics.jsonl` the events.
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
from charlstm.errors import CheckpointError, Field, RunBusy
from charlstm.runs import BEST, LAST
from charlstm.terminal import escape
from charlstm.training import events
from charlstm.training.events import Event

METRICS, SETTINGS, LAUNCH = "metrics.jsonl", "config.toml", ".launch"


def fresh(names: tuple[str, ...], root: Path = runs.ROOT) -> Path:
    """Return a directory under `root` that does not exist, named after the text: shakespeare, shakespeare-2, ….

    Args:
        names: the sources of the text; the first names the directory.
        root: the directory that contains the run directories.
    """
    stem = Path(names[0]).name.removesuffix(".gz").rsplit(".", 1)[0] if names and names[0] != "-" else "stdin"
    stem = re.sub(r"[^\w.-]+", "-", stem).strip(".-")[:100] or "run"
    candidates = (root / (stem if number == 1 else f"{stem}-{number}") for number in range(1, 1_000_000))
    return next(folder for folder in candidates if not folder.exists())


def of_launch(name: str, root: Path = runs.ROOT) -> Path | None:
    """Return the directory of the run that this launch of workers started, or None.

    Args:
        name: what `RunDir.write_launch` wrote.
        root: the directory that contains the run directories.
    """
    for file in sorted(root.glob(f"*/{LAUNCH}")):
        with contextlib.suppress(OSError, ValueError):
            if file.read_text(encoding="utf-8") == name:
                return file.parent
    return None


class RunDir:
    """The directory of one run.

    Args:
        path: the directory; it is created when it is locked or written to.

    Attributes:
        path: the directory.
        best: the file with the best weights.
        last: the file with the state of the last save.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.best, self.last = path, path / BEST, path / LAST
        self._lock: FolderLock | None = None

    @property
    def is_locked(self) -> bool:
        """Whether this object holds the lock of the directory."""
        return self._lock is not None

    def lock(self) -> None:
        """Create the directory and lock it until `unlock`, so that no other process trains there.

        Raises:
            RunBusy: another process trains there.
            CheckpointError: the directory cannot be created or written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = FolderLock(self.path)
        except BlockingIOError as error:
            raise RunBusy(f"{escape(str(self.path))}: {error}") from error
        except OSError as error:
            raise CheckpointError(f"cannot train into {escape(str(self.path))}: {error.strerror}") from error

    def unlock(self) -> None:
        """Release the lock; without effect if the directory is not locked."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def check_free(self) -> None:
        """Check that the directory holds no model.

        Raises:
            CheckpointError: it holds one, which training would replace.
        """
        if held := [file.name for file in self.model_files()]:
            raise CheckpointError(
                f"{escape(str(self.path))} already holds a model ({', '.join(held)}): resume its run with ",
                Field("resume"),
                ", or choose another directory with ",
                Field("run"),
            )

    def model_files(self) -> list[Path]:
        """Return the checkpoints in the directory: the best, the last and those of single steps."""
        return [file for file in (self.best, self.last, *self.kept_files()) if file.exists()]

    def kept_files(self) -> list[Path]:
        """Return the files that hold the weights of a step, in order."""
        return sorted(self.path.glob("step-*.safetensors"))

    def kept_file(self, step: int) -> Path:
        """Return the file for the weights of a step."""
        return self.path / f"step-{step:06d}.safetensors"

    def forget(self, step: int) -> None:
        """Remove the weights of a step. A file that cannot be removed stays, and so does a symbolic link."""
        file = self.kept_file(step)
        with contextlib.suppress(OSError):
            if not file.is_symlink():
                file.unlink()

    def save(self, file: Path, saved: Checkpoint) -> None:
        """Write a checkpoint atomically and durably. The directory is created again if it was removed.

        Args:
            file: a file of this directory.
            saved: what to write.

        Raises:
            CheckpointError: it could not be written; the file is unchanged.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"cannot write into {escape(str(self.path))}: {error.strerror}") from error
        checkpoint.save(file, saved)

    def write_launch(self, name: str) -> None:
        """Write the name of the launch that trains this run, so that its workers find the run after a restart.

        Raises:
            CheckpointError: it cannot be written.
        """
        try:
            atomicfile.replace(self.path / LAUNCH, [name.encode()])
        except OSError as error:
            raise CheckpointError(f"cannot write into {escape(str(self.path))}: {error.strerror}") from error

    def write_settings(self, options: TrainingOptions, **others: str | None) -> str | None:
        """Write the options, for the user and for a later run to read as its configuration file.

        Args:
            options: those of the run.
            **others: settings that are not training options, such as `valid="dev.txt"`; None is left out.

        Returns:
            A warning if the file could not be written: a full disk must not stop the run.
        """
        file = self.path / SETTINGS
        try:
            atomicfile.replace(file, [to_toml(options, **others).encode()])
        except OSError as error:
            return _not_written(file, error)
        return None


class Metrics:
    """The log of a run: one JSON object per line and event. If the disk is full, the log ends and the run continues.

    Args:
        run: the directory of the run.
    """

    def __init__(self, run: RunDir) -> None:
        self._path = run.path / METRICS
        self._file: FileIO | None = None
        self._has_warned = False

    def __enter__(self) -> Metrics:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def forget_after(self, step: int) -> str | None:
        """Remove the events of later steps, which an earlier process wrote after its last save: they will occur again.

        Args:
            step: the step from which the run continues.

        Returns:
            A warning if the log could not be changed.
        """
        try:
            if not self._path.is_file():  # a pipe must not be read
                return None
            with self._path.open("rb") as log:
                lines = log.readlines()
            kept = [line for line in lines if _step_of(line) <= step]
            if len(kept) < len(lines):
                atomicfile.replace(self._path, kept)
        except OSError as error:
            return _not_written(self._path, error)
        return None

    def write(self, event: Event) -> str | None:
        """Append one event.

        Returns:
            A warning the first time that this fails.
        """
        line = (json.dumps(events.to_json(event), ensure_ascii=False) + "\n").encode()
        try:
            if self._file is None:
                self._file = self._path.open("a+b", buffering=0)
                if self._file.tell() and self._file.seek(-1, os.SEEK_END) >= 0 and self._file.read(1) != b"\n":
                    line = b"\n" + line  # a full disk or a loss of power truncated the last line
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            if self._file is not None:
                self._file.close()
                self._file = None
            warning = None if self._has_warned else _not_written(self._path, error)
            self._has_warned = True
            return warning
        return None


def _step_of(line: bytes) -> int:
    """Return the step of an event in the log; 0 if the line has none, or is not an event."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return 0
    step = event.get("step") if isinstance(event, dict) else None
    return step if isinstance(step, int) else 0


def _not_written(file: Path, error: OSError) -> str:
    return f"{escape(str(file))}: {error.strerror}; training continues"
