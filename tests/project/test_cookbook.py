"""The blocks of the cookbook run in their order, in one shell, as a reader would paste them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.commands import ROOT, environment

PAGE = (ROOT / "docs" / "cookbook.md").read_text(encoding="utf-8")
SCRIPT = "set -eu\n" + "\n".join(re.findall(r"^```sh\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE))

# Replaces charlstm on the reader's path. In the default suite `train TEXT -o RUN` writes an untrained model: starting
# torch five times would take longer than all the rest, and only the slow test examines the output of the models.
COMMAND = """#!{python}
import sys
from pathlib import Path
if {tiny} and sys.argv[1] == "train":
    sys.path.insert(0, {root!r})
    from tests.helpers.commands import model_file
    text, run = Path(sys.argv[2]), Path(sys.argv[sys.argv.index("-o") + 1])
    model_file(run / "best.safetensors", symbols="".join(set(text.read_text())))
else:
    from charlstm.__main__ import main
    main()
"""


def cook(folder: Path, script: str, *, tiny: bool) -> str:
    """Run a script in `folder` and return its output. No command may fail or print a warning."""
    desk, path = folder / "desk", folder / "path"
    desk.mkdir(exist_ok=True)
    path.mkdir(exist_ok=True)
    command = path / "charlstm"
    command.write_text(COMMAND.format(python=sys.executable, root=str(ROOT), tiny=tiny))
    python = path / "python3"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    for file in (command, python):
        file.chmod(0o755)
    done = subprocess.run(
        ["sh", "-c", script],
        cwd=desk,
        env=environment(PATH=f"{path}{os.pathsep}{os.environ['PATH']}", PAGER="head -n 5", LC_ALL="C"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    complaint = "^(charlstm: (?!at this speed)|Traceback|awk|mawk|gawk)"  # a busy machine may be slow
    assert not re.search(complaint, done.stderr, re.MULTILINE), done.stderr
    return done.stdout


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
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.split("## How do I generate music?")[1], re.DOTALL | re.MULTILINE)
    make, keep = (block.split("charlstm")[0] for block in blocks)
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
