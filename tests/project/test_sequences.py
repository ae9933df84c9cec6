"""The blocks of docs/sequences.md run as a reader would paste them, and give the figures that the page states."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from tests.helpers.commands import ROOT
from tests.helpers.cookbook import blocks, cook


def run(folder: Path, script: str, *, tiny: bool) -> str:
    (folder / "desk").mkdir()
    for example in (ROOT / "examples").glob("*.py"):
        shutil.copy(example, folder / "desk")
    return cook(folder, script, tiny=tiny)


def figures(out: str) -> dict[str, list[float]]:
    """Return the numbers of each row of the output, by the name of the row; a repeated name has its last row."""
    rows = re.findall(r"^([a-z][a-z0-9 +]*?)  ?[ \t]*(\d.*)$", out, re.MULTILINE)
    return {name: [float(number) for number in re.findall(r"\d+\.?\d*", row)] for name, row in rows}


def test_every_block_runs(tmp_path: Path) -> None:
    out = run(tmp_path, blocks("sequences.md"), tiny=True)
    desk = tmp_path / "desk"
    assert out.count("exact") == 2
    assert out.count("recognised") == 6
    assert out.count("precision") == 2
    assert len((desk / "translated.txt").read_text().splitlines()) == 1000
    for year in range(1, 6):
        table = np.loadtxt(desk / f"year-{year}.csv", delimiter=",")
        assert table.shape == (52, 5)
        assert (np.diff(table, axis=1) >= 0).all()
    ElementTree.parse(desk / "words.svg")
    naive = figures(out)["seasonal naive"]
    assert naive[-1] == pytest.approx(1.31)  # the data are the expected ones


def test_the_page_shows_the_picture_of_its_blocks_in_valid_svg() -> None:
    picture = ElementTree.parse(ROOT / "docs" / "handwriting.svg").getroot()
    paths = [child.attrib["d"] for child in picture]
    assert len(paths) == 1
    assert paths[0].count("L") > 500


@pytest.mark.slow
def test_the_models_reach_the_figures_of_the_page(tmp_path: Path) -> None:
    out = run(tmp_path, blocks("sequences.md"), tiny=False)
    translation, forecast, letters, lines = re.findall(r"^model .*$", out, re.MULTILINE)

    def number(pattern: str, text: str) -> float:
        match = re.search(pattern, text)
        assert match, text
        return float(match[1])

    assert number(r"([\d.]+)% exact", translation) >= 95
    assert number(r"mean ([\d.]+)", forecast) < 0.7
    assert number(r"([\d.]+)% recognised", letters) >= 80
    assert number(r"([\d.]+)% copied", letters) <= 50
    assert number(r"precision +(\d+)%", lines) >= 90
    assert number(r"recall +(\d+)%", lines) >= 90
