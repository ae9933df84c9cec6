"""Only the command line spells flags: everywhere else a message names a field (see `charlstm.errors.Field`)."""

from __future__ import annotations

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "charlstm"
FLAG = re.compile(r"--[a-z]")


def has_flag(source: str) -> bool:
    """Return whether a string literal of a module, docstrings included, contains a flag."""
    nodes = ast.walk(ast.parse(source))
    return any(isinstance(n, ast.Constant) and isinstance(n.value, str) and FLAG.search(n.value) for n in nodes)


def test_no_string_outside_the_command_line_spells_a_flag() -> None:
    modules = {path.relative_to(PACKAGE).as_posix(): path for path in PACKAGE.rglob("*.py")}
    found = {name for name, path in modules.items() if has_flag(path.read_text(encoding="utf-8"))}
    assert not [name for name in found if not name.startswith("cli/")]
    assert any(name.startswith("cli/") for name in found), "the search finds the flags of the command line"


def test_a_flag_is_found_in_strings_and_not_in_code() -> None:
    assert has_flag("raise UsageError(f'--top-p must be {x}')")
    assert has_flag('"""Set by --seed."""')
    assert not has_flag("a = b --c  # --seed\nd = 'seed -- value'")
