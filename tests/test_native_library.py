"""A compiled library that cannot be used is reported, and slower code computes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import charlstm
from tests.helpers.commands import environment

PACKAGE = Path(charlstm.__file__).parent


@pytest.fixture(scope="module")
def broken_installation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of charlstm whose compiled library is no library, with a text to train on."""
    folder = tmp_path_factory.mktemp("installation")
    shutil.copytree(PACKAGE, folder / "charlstm", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    (folder / "charlstm" / f"_core{sysconfig.get_config_var('EXT_SUFFIX')}").write_bytes(b"\x7fELF, and no more")
    (folder / "text").write_text("abcdefgh\n" * 500)
    return folder


def test_every_command_works_with_a_broken_library(broken_installation: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "charlstm", *arguments],
            cwd=broken_installation,
            env=environment(PYTHONPATH=str(broken_installation)),
            capture_output=True,
            text=True,
            timeout=120,
        )

    trained = run("train", "text", "-o", "model", "--hidden", "8", "--steps", "5", "--batch-size", "4")
    assert trained.returncode == 0, trained.stderr
    assert "the compiled kernels are broken or of another version" in trained.stderr
    shown = run("info", "model")
    assert shown.returncode == 0, shown.stderr
    assert "could not be loaded" in " ".join(shown.stdout.split())
    sampled = run("sample", "-c", "model", "-n", "20")
    assert (sampled.returncode, len(sampled.stdout)) == (0, 20), sampled.stderr
    assert "the compiled kernels are broken or of another version" in sampled.stderr
