"""Run one command line and return its exit status. Every error becomes one line on stderr; a traceback is a bug.

Exit statuses: 0 success; 1 error; 2 wrong usage; 130 and 143 interrupted by Ctrl-C and SIGTERM; 141 the reader of
stdout was closed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import typer
import typer.main

from charlstm.cli.app import app
from charlstm.cli.console import print_warning
from charlstm.cli.help import CommandError

CLOSED_PIPE = 141  # the status that a shell reports for a program ended by SIGPIPE


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return the exit status."""
    _occupy_standard_descriptors()
    try:
        status = typer.main.get_command(app).main(list(arguments), prog_name="charlstm", standalone_mode=False)
        return status if isinstance(status, int) else 0
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # Typer catches it first and exits with 1
            return _closed_pipe()
        raise
    except BrokenPipeError:
        return _closed_pipe()
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        print_warning(
            f"{error.format_message().rstrip('.')} (see: {context.command_path if context else 'charlstm'} --help)"
        )
        return error.exit_code
    except CommandError as error:
        print_warning(str(error))
        return error.status
    except OSError as error:
        where = f"{error.filename}: " if error.filename is not None else ""
        print_warning(f"{where}{error.strerror or error}")
        return 1
    except MemoryError:
        print_warning("not enough memory: use a smaller --hidden, --batch-size or text")
        return 1


def _closed_pipe() -> int:
    """Send what is still buffered to the null device, so that Python reports no error at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    return CLOSED_PIPE


def _occupy_standard_descriptors() -> None:
    """Open the null device as descriptor 0, 1 or 2 if the caller closed it, so that no other file gets that number.

    Each is opened in the wrong mode: reading stdin or writing to stdout still fails with EBADF.
    """
    for descriptor, wrong_way in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_RDONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, wrong_way)  # takes the lowest free descriptor, which is this one
