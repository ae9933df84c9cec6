"""The blocks of the cookbook run in their order, in one shell, as a reader would paste them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.helpers.commands import ROOT
from tests.helpers.cookbook import blocks, cook

PAGE = (ROOT / "docs" / "cookbook.md").read_text(encoding="utf-8")
SCRIPT = blocks("cookbook.md")


def test_every_block_of_the_cookbook_runs(tmp_path: Path) -> None:
    out = cook(tmp_path, SCRIPT, tiny=True)
    assert len(re.findall(r"^(?:docs|comments): ", out, re.MULTILINE)) == 8
    assert len(re.findall(r" \d+ bits$", out, re.MULTILINE)) == 4
    assert len(re.findall(r"^[\d.]+\t\d+\t\d+\t10\.0\.0\.\d+ ", out, re.MULTILINE)) == 4
    assert len((tmp_path / "desk" / "page-2.txt").read_text()) == 300


def test_a_block_that_fails_is_detected(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="charlstm: nowhere"):
        cook(tmp_path, "set -eu\ncharlstm eval nowhere -c nowhere | cat\n", tiny=True)


def test_the_script_keeps_tunes_with_full_bars_only(tmp_path: Path) -> None:
    music = PAGE.split("## How do I generate music?")[1].split("\n## ")[0]
    found = re.findall(r"^```sh\n(.*?)^```", music, re.DOTALL | re.MULTILINE)
    make, keep = (block.split("charlstm")[0] for block in found)
    cook(tmp_path, f"set -eu\n{make}{keep}awk -f full-bars.awk tunes.abc > good.abc\n", tiny=True)
    tunes = (tmp_path / "desk" / "tunes.abc").read_text()
    assert (tmp_path / "desk" / "good.abc").read_text() == tunes
    (tmp_path / "desk" / "tunes.abc").write_text(tunes.replace("|: ", "|: A2", 1))
    cook(tmp_path, "awk -f full-bars.awk tunes.abc > good.abc", tiny=True)
    assert (tmp_path / "desk" / "good.abc").read_text() == tunes.split("\n\n", 1)[1]


@pytest.mark.slow
def test_the_recipes_give_the_results_that_the_cookbook_shows(tmp_path: Path) -> None:
    out = cook(tmp_path, SCRIPT, tiny=False)
    desk = tmp_path / "desk"
    bits = [int(found) for found in re.findall(r" (\d+) bits$", out, re.MULTILINE)]
    assert bits[0] < bits[1] < bits[3]
    assert bits[2] < bits[3] > 40
    odd = re.findall(r"^[\d.]+\t\d+\t\d+\t10\.0\.0\.\d+ .*$", out, re.MULTILINE)
    assert "etc/passwd" in odd[0] + odd[1]
    assert "q=api" in odd[0] + odd[1]
    new = (desk / "new-words.txt").read_text().split()
    assert len(new) > 50
    assert not set(new) & set((desk / "words.txt").read_text().split())
    assert len((desk / "haiku.txt").read_text().splitlines()) >= 12
    assert (desk / "new-tunes.abc").read_text().count("X:") >= 1
