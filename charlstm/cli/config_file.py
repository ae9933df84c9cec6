"""Options from a TOML file, for `--config`: they hold where neither the command line nor the environment speaks."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import typer

from charlstm.cli.help import long_name
from charlstm.errors import UsageError
from charlstm.terminal import escape

SOURCES = ("COMMANDLINE", "ENVIRONMENT", "DEFAULT_MAP")  # the closer to the user, the earlier


def use(context: typer.Context, file: Path | None) -> Path | None:
    """The callback of `--config`: what stands in the file becomes the default of the options that it names.

    A key is an option without the dashes in front: `seq-len = 64`, `cell = "gru"`, `quiet = true`.

    Raises:
        UsageError: a file that is no TOML, a key that is no option, a value that the option refuses.
    """
    if file is None or context.resilient_parsing:  # the shell asks for completions
        return file
    options: list[Any] = [option for option in context.command.params if option.param_type_name == "option"]
    known = {long_name(option): option for option in options if option.name != "config"}
    found: dict[str, str] = {}
    for key, value in _read(file).items():
        option = known.get(key.replace("_", "-"))
        if option is None:
            near = get_close_matches(key.replace("_", "-"), known, n=3)
            hint = f"; near it: {', '.join(near)}" if near else ""
            raise UsageError(f"{escape(str(file))}: {escape(key)} is no option of {context.command_path}{hint}")
        found[option.name] = _checked(context, option, value, f"{escape(str(file))}: {escape(key)}")
    context.default_map = found
    return file


def closest(context: typer.Context, names: Sequence[str]) -> list[str]:
    """Of options that exclude each other, those from the source nearest to the user: the command line goes first."""
    ranks = {name: SOURCES.index(getattr(context.get_parameter_source(name), "name", "")) for name in names}
    return [name for name in names if ranks[name] == min(ranks.values())]


def _read(file: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no UTF-8 is a ValueError, too
        raise UsageError(f"{escape(str(file))} is no TOML: {escape(str(error))[:200]}") from error


def _checked(context: typer.Context, option: Any, value: object, where: str) -> str:
    """The value as the command line would have it, so that both are read by the same rules."""
    if not isinstance(value, (str, int, float)):  # a bool is an int
        raise UsageError(f"{where} must be a text in quotes, a number, true or false")
    try:
        option.type_cast_value(context, str(value))
    except typer.BadParameter as error:
        raise UsageError(f"{where}: {error.message.rstrip('.')}") from error
    return str(value)
