"""`charlstm corpus`: named corpora on stdout."""

from __future__ import annotations

from typing import Annotated

import typer

from charlstm import bundled
from charlstm.cli.talk import facts, put

EXAMPLES = """\
charlstm corpus                                     what there is
charlstm corpus python:docs > data/python-docs.txt  keep it
charlstm corpus python:source | charlstm train -    use it at once"""


def corpus(
    name: Annotated[
        str | None,
        typer.Argument(metavar="NAME", help="Which one; none lists them.", autocompletion=lambda: list(bundled.NAMES)),
    ] = None,
) -> None:
    """Write a named corpus to stdout.

    They are made from the Python that runs charlstm, so that there is something to train on without a network.
    """
    if name is None:
        facts(list(bundled.NAMES.items()))
    else:
        put(bundled.text(name))
