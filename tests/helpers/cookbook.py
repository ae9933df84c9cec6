"""Run the blocks of a page of the documentation in their order, in one shell, as a reader would paste them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.helpers.commands import ROOT, environment

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


def blocks(page: str) -> str:
    """Return the shell blocks of a page of the documentation as one script."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    return "set -eu\n" + "\n".join(re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
