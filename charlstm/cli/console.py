"""What the command line says: talk on stderr, data on stdout. What stands in a file is escaped before it gets here."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, cast

from charlstm.errors import CharlstmError
from charlstm.terminal import TextOut, escape, is_terminal


class Stderr:
    """sys.stderr, as rich and tqdm want a file, that never fails: a run must not die of a terminal that was closed."""

    def __init__(self) -> None:
        self.encoding = getattr(sys.stderr, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        if sys.stderr is not None:
            try:
                sys.stderr.write(text)
                sys.stderr.flush()
            except OSError:  # nobody listens any more: from here on nothing is said, and nothing is left to flush
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        return len(text)

    def flush(self) -> None:
        """Every write is flushed."""

    def isatty(self) -> bool:
        return sys.stderr is not None and is_terminal(sys.stderr)

    def fileno(self) -> int:
        return 2


def say(line: str) -> None:
    """One line on stderr."""
    Stderr().write(line + "\n")


def complain(message: str) -> None:
    """The one line of an error, with nothing in it that drives a terminal."""
    say("charlstm: " + escape(" ".join(message.split())))


def tell_of_stale_kernels() -> None:
    """Write one line to stderr if the library was compiled and cannot be used, so that slower code computes."""
    from charlstm import native_library

    if native_library.is_unusable():
        complain(
            "the compiled kernels are broken or of another version and are not used, which is many times slower; "
            "to compile them again, install charlstm again: pip install ."
        )


@contextmanager
def to_stdout() -> Iterator[None]:
    """Around writes to stdout: a full disk or a closed stdout is an error; a reader who left is an end (see `run`)."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CharlstmError(f"cannot write to stdout: {error.strerror}") from error


def put(text: str, *, raw: bool = False) -> None:
    """Data on stdout, as UTF-8 whatever the locale says. Raw: with controls of our own for a terminal."""
    with to_stdout():
        out = TextOut(1, raw=raw)
        out.write(text)
        out.flush()


def facts(rows: Sequence[tuple[str, str]], *, to_stderr: bool = False) -> None:
    """Names and values: a table on a terminal, aligned lines elsewhere."""
    rows = [(escape(name), escape(value)) for name, value in rows]
    stream = cast(IO[str], Stderr() if to_stderr else sys.stdout)
    if not is_terminal(stream):
        width = max(len(name) for name, _ in rows)
        text = "".join(f"{name:<{width}}  {value}\n" for name, value in rows)
        Stderr().write(text) if to_stderr else put(text)
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
    with console.capture() as drawn:
        console.print(table)
    Stderr().write(drawn.get()) if to_stderr else put(drawn.get(), raw=True)


def before_torch() -> None:
    """To be called before torch is loaded: in a current folder that is no more, its oneMKL would end the process.

    Raises:
        CharlstmError: there is no current folder, and torch was not loaded before.
    """
    if "torch" in sys.modules:
        return
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise CharlstmError(
            "the current folder was deleted, and torch is not to be loaded in it: cd .. first"
        ) from error


def is_plain() -> bool:
    """Whether the user, or the terminal, wants no colour and no style."""
    return bool(os.environ.get("NO_COLOR")) or os.environ.get("TERM") == "dumb"


def duration(seconds: float) -> str:
    """1:05 or 2:00:00."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
