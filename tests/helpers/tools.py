"""Compilers and emulators of other processors, and the programs in `examples/` that are built with them."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from tests.helpers.commands import ROOT

EXAMPLES = ROOT / "examples"


def needs(*tools: str) -> None:
    """Skip where a tool is missing; in CI that is a failure."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing and "CI" in os.environ:
        pytest.fail(f"CI needs {', '.join(missing)}")
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")


def output(*command: object) -> bytes:
    """What a command writes to stdout and stderr (where the emulator shows the output of the target)."""
    pipe, merged = subprocess.PIPE, subprocess.STDOUT
    done = subprocess.run([*map(str, command)], stdout=pipe, stderr=merged, timeout=240, check=False)
    assert done.returncode == 0, done.stdout.decode("utf-8", "replace")
    return done.stdout
