"""Output of the commands: data on stdout, messages on stderr. Text from files is escaped before it is printed."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, cast

from charlstm.errors import CharlstmError
from charlstm.terminal import TextOut, escape, is_terminal

TRAINING_PACKAGES = ("torch", "filelock", "rich", "tqdm")


class Stderr:
    """A file object for rich and tqdm that writes to stderr and never fails, so that a closed terminal ends no run."""

    def __init__(self) -> None:
        self.encoding = getattr(sys.stderr, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write a text and flush it."""
        if sys.stderr is not None:
            try:
                sys.stderr.write(text)
                sys.stderr.flush()
            except OSError:  # the terminal was closed: discard all further output
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        return len(text)

    def flush(self) -> None:
        """Every write is flushed."""

    def isatty(self) -> bool:
        """Return whether stderr is a terminal."""
        return sys.stderr is not None and is_terminal(sys.stderr)

    def fileno(self) -> int:
        """Return the file descriptor of stderr."""
        return 2


def print_status(line: str) -> None:
    """Print one line to stderr."""
    Stderr().write(line + "\n")


def print_warning(message: str) -> None:
    """Print a warning or an error to stderr as one line, with control characters escaped."""
    print_status("charlstm: " + escape(" ".join(message.split())))


def warn_of_unusable_kernels() -> None:
    """Print a warning if the compiled library cannot be used, so that slower code is used instead."""
    from charlstm import native_library

    if native_library.is_unusable():
        print_warning(
            "the compiled kernels are broken or of another version and are not used, which is many times slower; "
            "to compile them again, install charlstm again: pip install ."
        )


@contextmanager
def writing_stdout() -> Iterator[None]:
    """Turn errors of writing to stdout, such as a full disk, into a `CharlstmError`.

    A `BrokenPipeError` passes, because the reader may stop reading at any time; `cli.main.run` handles it.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CharlstmError(f"cannot write to stdout: {error.strerror}") from error


def write_stdout(text: str, *, raw: bool = False) -> None:
    """Write text to stdout as UTF-8, whatever the locale.

    Args:
        text: the text.
        raw: do not escape control characters on a terminal.
    """
    with writing_stdout():
        out = TextOut(1, raw=raw)
        out.write(text)
        out.flush()


def print_table(rows: Sequence[tuple[str, str]], *, to_stderr: bool = False) -> None:
    """Print names and values: as a table on a terminal, as aligned lines elsewhere or if rich is not installed."""
    rows = [(escape(name), escape(value)) for name, value in rows]
    stream = cast(IO[str], Stderr() if to_stderr else sys.stdout)
    if not is_terminal(stream) or importlib.util.find_spec("rich") is None:
        width = max(len(name) for name, _ in rows)
        text = "".join(f"{name:<{width}}  {value}\n" for name, value in rows)
        Stderr().write(text) if to_stderr else write_stdout(text)
        return
    from rich.box import ROUNDED
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=ROUNDED, show_header=False)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    console = Console(file=stream, highlight=False)
    with console.capture() as captured:
        console.print(table)
    Stderr().write(captured.get()) if to_stderr else write_stdout(captured.get(), raw=True)


def require_torch() -> None:
    """Import torch and the other packages that training needs, or explain why they cannot be imported.

    Raises:
        CharlstmError: a package is not installed, or the current directory was deleted, in which case oneMKL, which is
            part of torch, would abort the process.
    """
    if "torch" not in sys.modules:
        try:
            os.getcwd()
        except FileNotFoundError as error:
            raise CharlstmError(
                "the current directory was deleted, and torch cannot be loaded in it: change to another directory"
            ) from error
    errors: dict[str, ImportError] = {}
    for name in TRAINING_PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            errors[name] = error
    if errors:
        reasons = "; ".join(str(error) for error in errors.values())
        raise CharlstmError(
            f"this command requires {', '.join(errors)}, which cannot be imported ({reasons}): "
            f"install with pip install {' '.join(errors)}"
        )


def is_plain() -> bool:
    """Return whether the user or the terminal disables colours and styles."""
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"


def duration(seconds: float) -> str:
    """Return a duration such as 1:05 or 2:00:00."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
