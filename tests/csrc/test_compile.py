"""The C sources compile. An install goes on without them where they do not, and says nothing of it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import charlstm

COMPILER = shutil.which(os.environ.get("CC", "cc"))
FOLDER = Path(charlstm.__file__).parent / "csrc"


def compile_only(source: Path) -> subprocess.CompletedProcess[str]:
    assert COMPILER is not None
    command = [COMPILER, "-std=gnu11", "-fsyntax-only", "-I", str(FOLDER), str(source)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.skipif(COMPILER is None, reason="no compiler")
@pytest.mark.parametrize("name", ["engine.c", "recurrence.c"])
def test_a_source_compiles(name: str) -> None:
    done = compile_only(FOLDER / name)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(COMPILER is None, reason="no compiler")
def test_a_type_used_before_its_declaration_would_be_seen(tmp_path: Path) -> None:
    text = (FOLDER / "engine.c").read_text()
    (tmp_path / "engine.c").write_text("static int early(range texts);\n" + text)
    assert compile_only(tmp_path / "engine.c").returncode != 0
