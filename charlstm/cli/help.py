"""Commands and their help page: options under headings, within 80 columns, without rich."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from charlstm.cli.console import is_plain
from charlstm.cli.options import flags_of
from charlstm.errors import CharlstmError, Field, UsageError

NAME_COLUMNS = 26  # the help of an option with a longer name begins on the next line


class CommandError(Exception):
    """A command that failed, with the message for the user and the exit status."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def long_name(option: Any) -> str:
    """Return the longest flag of an option without its dashes: seq-len."""
    return str(max(option.opts, key=len).lstrip("-"))


class Command(TyperCommand):
    """A command that lists its arguments and options under headings, and names them in the errors of the library."""

    def __init__(self, *args: Any, **named: Any) -> None:
        """Give every option an environment variable: CHARLSTM_TRAIN_SEQ_LEN sets --seq-len of train."""
        super().__init__(*args, **named)
        options: list[Any] = [parameter for parameter in self.params if parameter.param_type_name == "option"]
        for option in options:
            option.envvar = f"CHARLSTM_{self.name}_{long_name(option)}".upper().replace("-", "_")
            option.show_envvar = False  # docs/cli.md describes the variables

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line; an error names the environment variables that its values come from."""
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message = error.message.rstrip(".") + self._variables(ctx, [error.param])
            raise
        except CharlstmError as error:
            raise self._failure(ctx, error) from error

    def invoke(self, ctx: Any) -> Any:
        """Run the command, and turn an error of the library into a `CommandError`."""
        try:
            return super().invoke(ctx)
        except CharlstmError as error:
            raise self._failure(ctx, error) from error

    def _failure(self, ctx: Any, error: CharlstmError) -> CommandError:
        is_usage = isinstance(error, UsageError)
        variables = self._variables(ctx, map(self._parameter, error.fields)) if is_usage else ""
        return CommandError(error.spelled(self._spelled) + variables, 2 if is_usage else 1)

    def _parameter(self, field: Field) -> Any:
        """Return the option or argument that sets a field; None if the command has none."""
        name = getattr(self.callback, "option_names", {}).get(field, field)
        return next((parameter for parameter in self.params if parameter.name == name), None)

    def _spelled(self, field: Field) -> str:
        """Return the flag of the option that sets a field, or the placeholder of the argument."""
        parameter = self._parameter(field)
        if parameter is None:
            return flags_of(field)[0]
        if parameter.param_type_name == "argument":
            return str(parameter.make_metavar(typer.Context(self))).strip("[]{}.")
        return "--" + long_name(parameter)

    def _variables(self, ctx: Any, parameters: Iterable[Any]) -> str:
        """Return a note with the environment variables that set any of the parameters."""
        found = [
            parameter.envvar
            for parameter in parameters
            if parameter is not None and getattr(ctx.get_parameter_source(parameter.name), "name", "") == "ENVIRONMENT"
        ]
        return f" (from the environment: {', '.join(found)})" if found else ""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the parts of the usage line."""
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]  # Typer writes {CORPUS...}

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments and options in sections."""
        sections: dict[str, list[tuple[str, str]]] = {"Arguments": []}  # they come first
        for parameter in self.get_params(ctx):
            kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
            if record := parameter.get_help_record(ctx):
                sections.setdefault(getattr(parameter, "rich_help_panel", None) or kind, []).append(record)
        names = [name for records in sections.values() for name, _ in records]
        width = max(len(name) for name in names if len(name) <= NAME_COLUMNS)
        for heading, records in sections.items():
            if not records:
                continue
            with formatter.section(_bold(heading)):
                formatter.write_dl([(f"{name:<{width}}", text) for name, text in records], col_max=width)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples."""
        _examples(self.epilog, formatter)


class Group(TyperGroup):
    """The list of commands, each with the first sentence of its help text.

    Attributes:
        summaries: these sentences, by the name of the command.
    """

    summaries: Mapping[str, str]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the list of commands, and the options of charlstm itself."""
        with formatter.section(_bold("Commands")):
            formatter.write_dl([(name, self.summaries[name]) for name in self.list_commands(ctx)])
        with formatter.section(_bold("Options")):
            formatter.write_dl([record for p in self.get_params(ctx) if (record := p.get_help_record(ctx))])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples."""
        _examples(self.epilog, formatter)


def _examples(epilog: str | None, formatter: Any) -> None:
    """Write an epilog, which is a list of commands, one per line, without wrapping."""
    with formatter.section(_bold("Examples")):
        for line in (epilog or "").splitlines():
            formatter.write(f"  {line}\n")


def _bold(heading: str) -> str:
    """Return a heading in bold; Typer removes the style if stdout is not a terminal."""
    return heading if is_plain() else typer.style(heading, bold=True)
