"""The folder of a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from charlstm.training import run_dir


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("shake speare.txt", "shake-speare"),
        ("../a/..", "run"),
        ("-", "stdin"),
        ("war.txt.gz", "war"),
        ("дом.txt", "дом"),
    ],
)
def test_a_fresh_run_is_named_after_its_text(name: str, folder: str, tmp_path: Path) -> None:
    assert run_dir.fresh((name,), tmp_path) == tmp_path / folder
    (tmp_path / folder).mkdir()
    assert run_dir.fresh((name,), tmp_path) == tmp_path / f"{folder}-2"
