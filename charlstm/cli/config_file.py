"""Options from a TOML file, for `--config`. The command line and the environment have priority over the file."""

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

SOURCES = ("COMMANDLINE", "ENVIRONMENT", "DEFAULT_MAP")  # in order of priority


def use(context: typer.Context, file: Path | None) -> Path | None:
    """Use the values in the file as the defaults of the options that it names; the callback of `--config`.

    A key is an option without its leading dashes: `seq-len = 64`, `cell = "gru"`, `quiet = true`.

    Raises:
        UsageError: the file is not TOML, a key is not an option, or a value is invalid for its option.
    """
    if file is None or context.resilient_parsing:  # shell completion
        return file
    options: list[Any] = [option for option in context.command.params if option.param_type_name == "option"]
    known = {long_name(option): option for option in options if option.name != "config"}
    found: dict[str, str] = {}
    for key, value in _read(file).items():
        option = known.get(key.replace("_", "-"))
        if option is None:
            near = get_close_matches(key.replace("_", "-"), known, n=3)
            hint = f"; similar options: {', '.join(near)}" if near else ""
            raise UsageError(f"{escape(str(file))}: {escape(key)} is not an option of {context.command_path}{hint}")
        found[option.name] = _checked(context, option, value, f"{escape(str(file))}: {escape(key)}")
    context.default_map = found
    return file


def closest(context: typer.Context, names: Sequence[str]) -> list[str]:
    """Return those of the given options that come from the source with the highest priority."""
    ranks = {name: SOURCES.index(getattr(context.get_parameter_source(name), "name", "")) for name in names}
    return [name for name in names if ranks[name] == min(ranks.values())]


def _read(file: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # a UnicodeDecodeError is a ValueError
        raise UsageError(f"{escape(str(file))} is not valid TOML: {escape(str(error))[:200]}") from error


def _checked(context: typer.Context, option: Any, value: object, where: str) -> str:
    """Return the value as a string of the command line, so that both are parsed by the same rules."""
    if not isinstance(value, (str, int, float)):  # a bool is an int
        raise UsageError(f"{where} must be a string in quotes, a number, true or false")
    try:
        option.type_cast_value(context, str(value))
    except typer.BadParameter as error:
        raise UsageError(f"{where}: {error.message.rstrip('.')}") from error
    return str(value)
