"""The table of faults in docs/reliability.md has every row once, with the tests that carry the row's mark."""

from __future__ import annotations

import re
import runpy
from typing import Any

import pytest

from tests.helpers.commands import ROOT

SCRIPT: dict[str, Any] = runpy.run_path(str(ROOT / "docs" / "faults_table.py"))
ROWS = [f"R{n}" for n in range(1, 95)]
DOCUMENT = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")


def test_the_table_has_each_row_once_and_in_order() -> None:
    assert [match[1] for match in SCRIPT["ROW"].finditer(DOCUMENT)] == ROWS


def test_the_table_is_made_from_the_marks() -> None:
    expected = SCRIPT["page"](DOCUMENT, SCRIPT["marked_here"]())
    assert expected == DOCUMENT, "run `python docs/faults_table.py`"


@pytest.mark.parametrize("row", ROWS)
def test_every_row_has_a_test(row: str) -> None:
    assert SCRIPT["marked_here"]()[row]


def test_no_mark_names_a_row_outside_the_table() -> None:
    assert set(SCRIPT["marked_here"]()) <= set(ROWS)


def test_every_test_that_the_page_names_exists() -> None:
    prose = SCRIPT["ROW"].sub("", DOCUMENT)
    sources = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py"))
    names = set(re.findall(r"`(?:test_)?([a-z0-9]+(?:_[a-z0-9]+){4,})`", prose))
    assert names
    missing = {name for name in names if f"def test_{name}(" not in sources}
    assert not missing


def test_the_page_changes_with_a_missing_mark_a_new_mark_and_a_row_without_tests() -> None:
    source = (
        '@pytest.mark.fault("R1", "R2")\ndef test_a() -> None: ...\n\n@pytest.mark.slow\ndef test_b() -> None: ...\n'
    )
    table = "* **R1** It holds.\n  Tests: `x.py` 1.\n* **R2** It holds.\n  Tests: `x.py` 1.\n"
    rows = SCRIPT["marked"]({"x.py": source})
    assert rows == {"R1": {"x.py": {"test_a"}}, "R2": {"x.py": {"test_a"}}}
    assert SCRIPT["page"](table, rows) == table
    fewer = SCRIPT["marked"]({"x.py": source.replace(', "R2"', "")})
    assert SCRIPT["page"](table, fewer) == table[: table.index("* **R2**")] + "* **R2** It holds.\n  Tests: none.\n"
    more = SCRIPT["marked"]({"x.py": source.replace("slow", 'fault("R1")'), "y.py": source})
    assert SCRIPT["page"](table, more).splitlines()[1] == "  Tests: `x.py` 2, `y.py` 1."
    long = table.replace("It holds.", "word " * 30 + "end.", 1)
    assert max(map(len, SCRIPT["page"](long, rows).splitlines())) <= SCRIPT["WIDTH"]
    assert SCRIPT["page"](SCRIPT["page"](long, rows), rows) == SCRIPT["page"](long, rows)
