"""From the arguments to the exit status. What can go wrong becomes one line on stderr; a traceback is always our bug.

0 done; 1 a clear error; 2 wrong usage; 130, 143 interrupted by Ctrl-C, SIGTERM; 141 the reader of stdout has left.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import typer
import typer.main

from charlstm.cli.app import app
from charlstm.cli.console import complain
from charlstm.config import flag
from charlstm.errors import CharlstmError, Field, UsageError

CLOSED_PIPE = 141  # what a shell reports of a program that SIGPIPE ended, as coreutils do


def run(arguments: Sequence[str]) -> int:
    """Run one command line to its end and return the exit status."""
    _occupy_standard_descriptors()
    try:
        status = typer.main.get_command(app).main(list(arguments), prog_name="charlstm", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # Typer meets it first, and ends with 1
            return _closed_pipe()
        raise
    except BrokenPipeError:
        return _closed_pipe()
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        complain(
            f"{error.format_message().rstrip('.')} (see: {context.command_path if context else 'charlstm'} --help)"
        )
        return error.exit_code
    except CharlstmError as error:
        complain(error.spelled(_flag))
        return 2 if isinstance(error, UsageError) else 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        complain(f"{where}{error.strerror or error}")
        return 1
    except MemoryError:
        complain("not enough memory: try a smaller --hidden, --batch-size or text")
        return 1


def _flag(field: Field) -> str:
    """Return the flag of an option that a message of the library names."""
    return flag({"temperature": "temp", "seconds": "time", "from_": "from"}.get(field, field))


def _closed_pipe() -> int:
    """What is still buffered has no reader: let it go nowhere, so that nothing complains about it at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    return CLOSED_PIPE


def _occupy_standard_descriptors() -> None:
    """Keep a file from being opened as descriptor 0, 1 or 2 where the caller closed them, and then taken for stdout.

    The null device stands in, opened the wrong way round: who reads or writes still gets EBADF.
    """
    for descriptor, wrong_way in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, wrong_way)  # takes the lowest free descriptor, which is this one
