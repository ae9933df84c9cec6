"""Find the checkpoint that a user means: a file, a run directory, or the newest run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

from charlstm.errors import CheckpointError
from charlstm.terminal import shortened

BEST, LAST = "best.safetensors", "last.safetensors"
ROOT = Path("checkpoints")


def newest_run(root: str | Path = ROOT, prefer: Literal["best", "last"] = "best") -> Path:
    """Return a checkpoint of the run directory in `root` that was saved last.

    Args:
        root: the directory that contains the run directories.
        prefer: which checkpoint to return if the run has both.

    Raises:
        CheckpointError: there is no run in `root`, or `root` cannot be read.
    """
    runs: list[tuple[int, Path]] = []
    try:
        directories = [Path(root, name) for name in os.listdir(root)] if os.path.isdir(root) else []
        for directory in directories:
            if found := _in_run(directory, prefer):
                runs.append((max(file.stat().st_mtime_ns for file in _checkpoints(directory)), found))
    except OSError as error:
        raise CheckpointError(f"cannot search {shortened(root)} for runs: {error.strerror or error}") from error
    if not runs:
        raise CheckpointError(f"no trained model in {shortened(root)}; train one first: charlstm train TEXT")
    return max(runs)[1]


def resolve(path: str | Path | None, prefer: Literal["best", "last"] = "best") -> Path:
    """Return the checkpoint that a path means.

    Args:
        path: a file; a run directory; a directory of run directories, for its newest run; or None for the newest run in
            `checkpoints/`.
        prefer: which checkpoint to return if a run has both.

    Raises:
        CheckpointError: there is no such file, or no run in the directory.
    """
    if path is None:
        return newest_run(prefer=prefer)
    if os.path.isdir(path):
        return _in_run(path, prefer) or newest_run(path, prefer)
    if not os.path.lexists(path):
        raise CheckpointError(f"{shortened(path)}: no such checkpoint; train one first: charlstm train TEXT")
    return Path(path)


def _checkpoints(directory: str | Path) -> list[Path]:
    return [file for file in (Path(directory, BEST), Path(directory, LAST)) if file.is_file()]


def _in_run(directory: str | Path, prefer: str) -> Path | None:
    files = _checkpoints(directory)
    if not files:
        return None
    return files[0] if prefer == "best" else files[-1]
