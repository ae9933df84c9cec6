"""What `charlstm train` does when `torchrun` starts it in several processes, which are called workers."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from charlstm.cli.console import require_torch
from charlstm.errors import CharlstmError, UsageError
from charlstm.runs import LAST

if TYPE_CHECKING:
    from charlstm.training.workers import Workers


@contextlib.contextmanager
def joined(device: str, timeout: float, sources: Iterable[str | None]) -> Iterator[Workers | None]:
    """Join the workers that `torchrun` started; None if this process was started alone.

    If workers fail, the first of them ends with the message, which names it, and the others end without one.

    Args:
        device: the device that trains, such as "auto".
        timeout: seconds that a worker waits for the others.
        sources: the texts that the workers will read.

    Raises:
        UsageError: a source is stdin, which only one process can read.
    """
    if not {"RANK", "WORLD_SIZE"} <= os.environ.keys():
        yield None
        return
    if "-" in sources:
        raise UsageError("several workers cannot read stdin: give a file that all of them can read")
    require_torch()
    from charlstm.training import hardware, workers

    with workers.join(hardware.device(device).type, timeout) as group:
        try:
            yield group
        except (CharlstmError, OSError) as error:
            if not group.fails_first(str(error)):
                raise typer.Exit(1) from error
            kind = UsageError if isinstance(error, UsageError) else CharlstmError
            parts = error.parts if isinstance(error, CharlstmError) else (str(error),)
            raise kind(f"worker {group.rank} of {group.size} on {platform.node()}: ", *parts) from error


def restarted_run(output: Path | None) -> tuple[Path, bool] | None:
    """Return the run that was trained before `torchrun` restarted its workers, if it did and there is one.

    Args:
        output: the run directory that the user gave; None searches the one that this launch made.

    Returns:
        The directory, and whether it has a state to resume from.
    """
    from charlstm.training import run_dir, workers

    name = workers.launch_name()
    if not workers.is_restarted() or name is None:
        return None
    run = output or run_dir.of_launch(name)
    return None if run is None else (run, (run / LAST).exists())
