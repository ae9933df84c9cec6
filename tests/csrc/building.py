"""Build tests/csrc/check_cores.c with the sources of charlstm/csrc."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import charlstm

SOURCES = Path(charlstm.__file__).parent / "csrc"
PROGRAM = Path(__file__).parent / "check_cores.c"
FLAGS = ("-std=gnu11", "-fvisibility=hidden", "-fno-math-errno", "-fno-trapping-math")
"""Those of pyproject.toml, without the optimisation level."""


def require(tool: str) -> str:
    """Return the path of a tool; without it skip the test, or fail it in CI, which must install it."""
    path = shutil.which(tool)
    if path is None and os.environ.get("CI", "").lower() in ("true", "1"):
        pytest.fail(f"CI must install {tool}")
    if path is None:
        pytest.skip(f"needs {tool}")
    return path


def copy_sources(folder: Path, change: tuple[str, str, str] | None = None) -> Path:
    """Copy the C sources to a folder, with a text of one file replaced: (file, old, new)."""
    shutil.copytree(SOURCES, folder, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    if change is not None:
        name, old, new = change
        text = (folder / name).read_text()
        assert text.count(old) == 1, f"{name} has {text.count(old)} times {old!r}"
        (folder / name).write_text(text.replace(old, new))
    return folder


def build(compiler: str, output: Path, *flags: str, sources: Path = SOURCES, program: bool = True) -> Path:
    """Compile the sources, with the check program if `program`, and return the path of the output."""
    files = [*([PROGRAM] if program else []), *sorted(sources.glob("*.c"))]
    command = [require(compiler), *FLAGS, *flags, "-I", str(sources), *map(str, files)]
    done = subprocess.run([*command, "-o", str(output), "-lm", "-pthread"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return output


def run(*command: str | Path, folder: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, with variables added to the environment."""
    return subprocess.run(
        [*map(str, command)],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=1200,
    )
