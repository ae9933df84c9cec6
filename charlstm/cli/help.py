"""The help page: options under headings, within 80 columns, without rich; and options made from a config dataclass."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Annotated, Any, NamedTuple, TypeVar, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

from charlstm.cli.console import is_plain
from charlstm.config import flag
from charlstm.errors import UsageError

F = TypeVar("F", bound=Callable[..., None])

NAME_COLUMNS = 26  # a longer name of an option has its help on the next line


class Option(NamedTuple):
    """How the help speaks of one field of a config dataclass."""

    heading: str
    text: str
    metavar: str | None = None  # None: the choices of a Literal
    default: str = "auto"  # what is said of a default that is None
    name: str | None = None  # where the flag is not the field's name
    type: Any = None  # where the flag takes something else, which the command turns into the field's value


def options_of(kind: type[Any], described: Mapping[str, Option]) -> Callable[[F], F]:
    """Give a command an option for each field of a config dataclass, under the field's name, with its type and default.

    The command takes them as **options: those that the user gave, the others as None. So a default is written once, in
    the dataclass, and the command knows what was asked for from what was left open.
    """
    types = get_type_hints(kind)

    def decorate(command: F) -> F:
        signature = inspect.signature(command, eval_str=True)
        parameters = [p for p in signature.parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        for field in fields(kind):
            option = described[field.name]
            default = option.default if field.default is None else field.default
            info = typer.Option(
                option.name or flag(field.name),
                help=f"{option.text} [default: {default}]",
                metavar=option.metavar,
                rich_help_panel=option.heading,
                show_default=False,
            )
            parameters.append(
                inspect.Parameter(
                    field.name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=None,
                    annotation=Annotated[option.type or types[field.name] | None, info],
                )
            )
        command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
        return command

    return decorate


def long_name(option: Any) -> str:
    """The longest of an option's flags, without the dashes in front: seq-len."""
    return str(max(option.opts, key=len).lstrip("-"))


class Command(TyperCommand):
    """A command whose help lists its arguments, then its options under their headings, in the order of the source."""

    def __init__(self, *args: Any, **named: Any) -> None:
        """Let every option come from the environment, too: --seq-len of train from CHARLSTM_TRAIN_SEQ_LEN."""
        super().__init__(*args, **named)
        options: list[Any] = [parameter for parameter in self.params if parameter.param_type_name == "option"]
        for option in options:
            option.envvar = f"CHARLSTM_{self.name}_{long_name(option)}".upper().replace("-", "_")
            option.show_envvar = False  # the help is long enough

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            error.message = error.message.rstrip(".") + self._variables(ctx, error.format_message())
            raise

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UsageError as error:
            raise UsageError(str(error) + self._variables(ctx, str(error))) from error

    def _variables(self, ctx: Any, message: str) -> str:
        """For a message that speaks of flags: which of them the user set, perhaps unaware, in the environment."""
        flags = re.findall(r"--[a-z][a-z-]*[a-z]", message)
        parameters: list[Any] = self.params
        found = [
            option.envvar
            for option in parameters
            if getattr(ctx.get_parameter_source(option.name), "name", "") == "ENVIRONMENT"
            and not {*flags}.isdisjoint(option.opts)
        ]
        return f" (from the environment: {', '.join(found)})" if found else ""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [piece.strip("{}") for piece in super().collect_usage_pieces(ctx)]  # Typer writes {CORPUS...}

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
            if record := parameter.get_help_record(ctx):
                sections.setdefault(getattr(parameter, "rich_help_panel", None) or kind, []).append(record)
        names = [name for records in sections.values() for name, _ in records]
        width = max(len(name) for name in names if len(name) <= NAME_COLUMNS)
        for heading, records in sections.items():
            with formatter.section(_bold(heading)):
                formatter.write_dl([(f"{name:<{width}}", text) for name, text in records], col_max=width)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _examples(self.epilog, formatter)


class Group(TyperGroup):
    """The list of commands, each with the first sentence of its help."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        with formatter.section(_bold("Commands")):
            formatter.write_dl(
                [(name, self.commands[name].get_short_help_str(100)) for name in self.list_commands(ctx)]
            )
        with formatter.section(_bold("Options")):
            formatter.write_dl([record for p in self.get_params(ctx) if (record := p.get_help_record(ctx))])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _examples(self.epilog, formatter)


def _examples(epilog: str | None, formatter: Any) -> None:
    """An epilog is a list of commands, a line each, to be shown as they stand."""
    with formatter.section(_bold("Examples")):
        for line in (epilog or "").splitlines():
            formatter.write(f"  {line}\n")


def _bold(heading: str) -> str:
    """Typer takes the style away where stdout is no terminal."""
    return heading if is_plain() else typer.style(heading, bold=True)
