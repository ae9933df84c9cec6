"""`charlstm corpus`: write a named corpus to stdout."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from charlstm.cli.console import print_status, print_table, write_stdout, writing_stdout
from charlstm.cli.progress_bar import Counter, can_be_shown
from charlstm.progress import Report
from charlstm.terminal import TextOut
from charlstm.text import datasets

EXAMPLES = """\
charlstm corpus                                      list the corpora
charlstm corpus python:docs > data/python-docs.txt   save to a file
charlstm corpus python:source | charlstm train -     train on it
charlstm corpus recall:200 | head -n 3               a test of memory
charlstm corpus tinyshakespeare > data/tinyshakespeare.txt"""


def corpus(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME",
            help="Name of the corpus. [default: list all]",
            show_default=False,
            autocompletion=lambda: list(datasets.names()),
        ),
    ] = None,
) -> None:
    """Write a named corpus to stdout.

    Corpora whose names begin with python: or recall: are made on this machine and need no network. The others are
    downloaded once, verified by their SHA-256 and cached.
    """
    if name is None:
        print_table([*datasets.GENERATED.items(), *((name, _description(name)) for name in datasets.DOWNLOADS)])
    elif datasets.is_generated(name):
        write_stdout(datasets.generate(name))
    elif name in datasets.DOWNLOADS:
        _write_file(_download(name))
    else:
        raise datasets.unknown_corpus(name)


def _description(name: str) -> str:
    source = datasets.DOWNLOADS[name]
    status = "cached" if datasets.is_cached(name) else f"downloads {_megabytes(source.bytes)}"
    return f"{source.about}; {_megabytes(source.text_bytes)}, {source.licence}; {status}"


def _megabytes(n: int) -> str:
    return f"{n / 1e6:.1f} MB" if n < 10_000_000 else f"{n / 1e6:.0f} MB"


def _download(name: str) -> Path:
    """Return the file of a corpus; show a progress bar on a terminal, or print one line, while it is downloaded."""
    with _reporting(name) as report:
        return datasets.download(name, report)


@contextmanager
def _reporting(name: str) -> Iterator[Report | None]:
    if not can_be_shown():
        if not datasets.is_cached(name):
            print_status(f"downloading {name}, {_megabytes(datasets.DOWNLOADS[name].bytes)}")
        yield None
        return
    with Counter(name, "B") as bar:
        yield bar


def _write_file(file: Path) -> None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    out = TextOut(1)
    for block in datasets.text_blocks(file):
        with writing_stdout():
            out.write(decoder.decode(block))
    with writing_stdout():
        out.close()
