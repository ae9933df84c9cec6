"""Write the tests of each row into the list of faults in docs/reliability.md: `python docs/faults_table.py`.

A test names the rows that it covers by `@pytest.mark.fault("R12")`. The tests of a row are made from these marks; its
promise is written by hand. The script wraps both. tests/project/test_faults_table.py compares the page with the marks.
"""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

PAGE = Path(__file__).parent / "reliability.md"
TESTS = Path(__file__).parents[1] / "tests"
ROW = re.compile(r"^\* \*\*(R\d+)\*\* ((?:.+\n)+?)  Tests: ((?:.+\n)+?)(?=\* |\n|\Z)", re.MULTILINE)
WIDTH = 100  # characters of a line

Rows = dict[str, dict[str, set[str]]]  # row -> file below tests -> names of the tests


def marks(function: ast.FunctionDef) -> Iterator[str]:
    """Yield the rows in a function's decorators `@pytest.mark.fault("R1", "R2")`."""
    for decorator in function.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "pytest.mark.fault":
            for argument in decorator.args:
                row = ast.literal_eval(argument)
                assert isinstance(row, str), ast.unparse(decorator)
                yield row


def marked(sources: dict[str, str]) -> Rows:
    """Return the tests that carry the mark of each row.

    Args:
        sources: The content of each test file, by its path below `tests`.
    """
    rows: Rows = {}
    for file, source in sources.items():
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                for row in marks(node):
                    rows.setdefault(row, {}).setdefault(file, set()).add(node.name)
    return rows


def marked_here() -> Rows:
    """Return the tests of this project that carry the mark of each row."""
    files = sorted(TESTS.rglob("test_*.py"))
    return marked({file.relative_to(TESTS).as_posix(): file.read_text(encoding="utf-8") for file in files})


def listed(files: dict[str, set[str]]) -> str:
    """Return each test file of one row and how many of its tests carry the mark."""
    return ", ".join(f"`{file}` {len(names)}" for file, names in sorted(files.items())) or "none"


def item(row: str, promise: str, files: dict[str, set[str]]) -> str:
    """Return one row as an item of a list, in lines of at most `WIDTH` characters."""
    paragraphs = (f"* **{row}** {promise}", f"  Tests: {listed(files)}.")
    return "".join(
        textwrap.fill(" ".join(paragraph.split()), WIDTH, initial_indent=indent, subsequent_indent="  ") + "\n"
        for paragraph, indent in zip(paragraphs, ("", "  "), strict=True)
    )


def page(text: str, rows: Rows) -> str:
    """Return the page with the tests of every row made from the marks."""
    return ROW.sub(lambda match: item(match[1], match[2], rows.get(match[1], {})), text)


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), marked_here()), encoding="utf-8")
