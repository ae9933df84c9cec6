"""The application: the list of commands. The module of a command is imported when the command is run.

So `charlstm sample` does not pay for the options of `train`. Slow imports are inside the commands, for --help.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer
import typer.main

from charlstm import __version__
from charlstm.cli.help import Command, Group

FUNCTIONS = {  # command: function of the module in this package that has the command's name
    "train": "train",
    "sample": "sample",
    "next": "next_characters",
    "eval": "evaluate",
    "info": "info",
    "verify": "verify",
    "explain": "explain",
    "export": "export",
    "corpus": "corpus",
}

SUMMARIES = {  # what `charlstm --help` says of each command: the first sentence of its help, without importing it
    "train": "Train a model on a text.",
    "sample": "Generate text in the style of the text that a model was trained on.",
    "next": "Print the most probable next characters after a text, with their probabilities.",
    "eval": "Measure how well a model predicts a text.",
    "info": "Describe a checkpoint: architecture, vocabulary, text, training and versions.",
    "verify": "Check that a checkpoint, or every checkpoint of a run, is valid; exit with status 1 if not.",
    "explain": "Write one HTML file that shows what a model has learned and how.",
    "export": "Write a model in a form that runs without charlstm.",
    "corpus": "Write a named corpus to stdout.",
}


@functools.cache
def command_of(name: str) -> Any:
    """Import the module of a command and return the command.

    Args:
        name: a key of `FUNCTIONS`.
    """
    module = importlib.import_module(f"charlstm.cli.{name}")
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    alone.command(name, cls=Command, epilog=module.EXAMPLES)(getattr(module, FUNCTIONS[name]))
    return typer.main.get_command(alone)


class CommandTable(Mapping[str, Any]):
    """The commands by their names. A value is made when it is read."""

    def __getitem__(self, name: str) -> Any:
        if name not in FUNCTIONS:
            raise KeyError(name)
        return command_of(name)

    def __iter__(self) -> Iterator[str]:
        return iter(FUNCTIONS)

    def __len__(self) -> int:
        return len(FUNCTIONS)


class Application(Group):
    """The group of all commands."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.commands = CommandTable()  # type: ignore[assignment]  # it is only read
        self.summaries = SUMMARIES

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of the commands, without importing them."""
        return [*self.commands]


app = typer.Typer(
    name="charlstm",
    cls=Application,
    rich_markup_mode=None,  # rich's takes 0.15 s at every --help
    pretty_exceptions_enable=False,
    epilog="""\
charlstm train book.txt              train a model on a text
charlstm sample --temp 0.8           generate text
charlstm eval other.txt              score another text
charlstm corpus python:docs > docs.txt""",
)


@app.callback(invoke_without_command=True)
def charlstm(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)] = False,
) -> None:
    """Train a character-level LSTM on any text, generate text with it, and score text with it."""
    if version:
        typer.echo(f"charlstm {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
