"""Curves of a training run for TensorBoard, written by torch.utils.tensorboard."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from charlstm.cli.console import print_warning
from charlstm.cli.training_display import Watcher
from charlstm.errors import CharlstmError
from charlstm.terminal import escape
from charlstm.training.events import Event, Progress, Started, Validated

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

PROGRESS_SECONDS = 1.0  # the minimum time between two points of a curve
FLUSH_SECONDS = 10


class TensorBoardWriter(Watcher):
    """Write scalars by step to a directory that TensorBoard reads: a context manager that is called with each event.

    If the directory cannot be written during the run, the training continues without the curves.

    Raises:
        CharlstmError: the package tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise CharlstmError("--tensorboard requires another package: pip install 'charlstm[tensorboard]'")
        self._folder = folder
        self._writer: SummaryWriter | None = None
        self._shown = -math.inf

    def __enter__(self) -> TensorBoardWriter:
        self._excepthook = threading.excepthook
        threading.excepthook = self._ignore_os_error
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            with self._without_failing():
                self._writer.close()
        threading.excepthook = self._excepthook

    def __call__(self, event: Event) -> None:
        """Add the numbers of an event to the curves."""
        if isinstance(event, Started):
            self._open(event.resumed_step)
        elif isinstance(event, Progress) and event.seconds - self._shown >= PROGRESS_SECONDS:
            self._shown = event.seconds
            self._add(event.step, "bits_per_char/train", event.train_bits_per_char)
            self._add(event.step, "learning_rate", event.lr)
            self._add(event.step, "chars_per_second", event.chars_per_second)
        elif isinstance(event, Validated):
            self._add(event.step, "bits_per_char/train", event.train_bits_per_char)
            self._add(event.step, "bits_per_char/validation", event.valid_bits_per_char)

    def _open(self, resumed_step: int) -> None:
        """Open the writer; here, before any training, a directory that cannot be written is an error."""
        from torch.utils.tensorboard import SummaryWriter

        # Hide the points after this step that an earlier session wrote.
        after = resumed_step + 1 if resumed_step else None
        self._writer = SummaryWriter(str(self._folder), purge_step=after, flush_secs=FLUSH_SECONDS)

    def _add(self, step: int, name: str, value: float) -> None:
        if self._writer is not None:
            with self._without_failing():
                self._writer.add_scalar(name, value, step)

    @contextlib.contextmanager
    def _without_failing(self) -> Iterator[None]:
        """Print a warning and stop writing if the writer raises an error of its thread."""
        try:
            yield
        except OSError as error:
            self._writer = None
            print_warning(
                f"{escape(str(self._folder))}: {error.strerror or error}; training continues without TensorBoard"
            )

    def _ignore_os_error(self, raised: threading.ExceptHookArgs) -> None:
        """Ignore the same error when it ends the writer's thread, which would print a traceback."""
        if not isinstance(raised.exc_value, OSError):
            self._excepthook(raised)
