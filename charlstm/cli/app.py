"""The application: the list of commands. Slow imports are inside the commands, so that --help is fast."""

from __future__ import annotations

from typing import Annotated

import typer

from charlstm import __version__
from charlstm.cli import corpus, export, info, sample, train, verify
from charlstm.cli import eval as eval_command
from charlstm.cli import next as next_command
from charlstm.cli.help import Command, Group

app = typer.Typer(
    name="charlstm",
    cls=Group,
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


app.command("train", cls=Command, epilog=train.EXAMPLES)(train.train)
app.command("sample", cls=Command, epilog=sample.EXAMPLES)(sample.sample)
app.command("next", cls=Command, epilog=next_command.EXAMPLES)(next_command.next_characters)
app.command("eval", cls=Command, epilog=eval_command.EXAMPLES)(eval_command.evaluate)
app.command("info", cls=Command, epilog=info.EXAMPLES)(info.info)
app.command("verify", cls=Command, epilog=verify.EXAMPLES)(verify.verify)
app.command("export", cls=Command, epilog=export.EXAMPLES)(export.export)
app.command("corpus", cls=Command, epilog=corpus.EXAMPLES)(corpus.corpus)
