"""The table in docs/reliability.md is true: each row has tests, they exist and carry its mark, none is left out."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator

import pytest

from tests.helpers.commands import ROOT

ROWS = [f"R{n}" for n in range(1, 93)]
DOCUMENT = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")

Tests = dict[str, set[str]]  # row → "file: name"


def named(document: str) -> Tests:
    """The tests that the document's table names for each row: `file`: `name`, `name`; `file`: `name`."""
    rows: Tests = {}
    for row, _, cell in re.findall(r"^\| (R\d+) \| (.*) \| (.*) \|$", document, re.MULTILINE):
        assert row not in rows, f"{row} stands there twice"
        rows[row] = set()
        for part in cell.split("; "):
            file, _, names = part.partition(": ")
            rows[row] |= {f"{file.strip('`')}: {name.strip('`')}" for name in names.split(", ")}
    return rows


def marks(function: ast.FunctionDef) -> Iterator[str]:
    """The rows in a function's decorators `@pytest.mark.fault("R1", …)`."""
    for decorator in function.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.fault":
            for argument in decorator.args:
                assert isinstance(argument, ast.Constant), ast.unparse(decorator)
                yield argument.value


def marked(sources: dict[str, str]) -> Tests:
    """The tests that carry the mark of each row, from the files' text."""
    rows: Tests = {}
    for file, source in sources.items():
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for row in marks(node):
                    rows.setdefault(row, set()).add(f"{file}: {node.name.removeprefix('test_')}")
    return rows


@functools.cache
def marked_here() -> Tests:
    """Those of this folder."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return marked({file.stem.removeprefix("test_"): file.read_text(encoding="utf-8") for file in files})


def cell(tests: set[str]) -> str:
    """What the table's last column should say."""
    files: dict[str, list[str]] = {}
    for test in sorted(tests):
        file, _, name = test.partition(": ")
        files.setdefault(file, []).append(f"`{name}`")
    return "; ".join(f"`{file}`: {', '.join(names)}" for file, names in files.items())


def test_the_table_has_each_row_once_and_in_order() -> None:
    assert list(named(DOCUMENT)) == ROWS


@pytest.mark.parametrize("row", ROWS)
def test_the_table_names_the_tests_of_a_row_and_no_others(row: str) -> None:
    found = marked_here()[row]
    assert named(DOCUMENT)[row] == found, f"the table should say: {cell(found)}"


def test_no_mark_is_of_a_row_that_is_not_in_the_table() -> None:
    assert set(marked_here()) <= set(ROWS)


def test_a_missing_row_a_missing_mark_and_a_false_name_are_seen() -> None:
    source = (
        '@pytest.mark.fault("R1", "R2")\ndef test_a() -> None: ...\n\n@pytest.mark.slow\ndef test_b() -> None: ...\n'
    )
    table = "| R1 | holds | `x`: `a`, `b` |\n| R2 | holds | `x`: `a` |\n"
    assert marked({"x": source}) == {"R1": {"x: a"}, "R2": {"x: a"}}
    assert named(table) == {"R1": {"x: a", "x: b"}, "R2": {"x: a"}}
    assert cell({"x: b", "y: c", "x: a"}) == "`x`: `a`, `b`; `y`: `c`"
    with pytest.raises(AssertionError, match="R1 stands there twice"):
        named(table + table)
