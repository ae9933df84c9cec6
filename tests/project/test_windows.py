"""The tests can be collected on Windows. Simulated: a process that lacks the modules and names that Windows lacks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.commands import ROOT, environment

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="simulates Windows on other systems")

# Third-party packages are imported before the change, because they choose their own code by the system.
COLLECT = """
import importlib, os, pathlib, pkgutil, signal, sys, types
import hypothesis.strategies, numpy, pytest, requests, torch, torch.optim, tqdm, typer
import multiprocessing.connection, ctypes.util, http.server, pathlib, tempfile, zoneinfo

MISSING = {"fcntl", "grp", "pty", "pwd", "resource", "termios", "tty"}

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

class Windows:
    # pytest has chosen its own code by now, and has imported no test

    def pytest_collection(self):
        for name in MISSING:
            sys.modules.pop(name, None)
        sys.meta_path.insert(0, Blocker())
        sys.modules["msvcrt"] = types.ModuleType("msvcrt")
        for name in ("SIGKILL", "SIGHUP", "SIGALRM", "SIGSTOP", "SIGCONT", "SIGPIPE", "SIGUSR1"):
            delattr(signal, name)
        for name in ("fork", "getuid", "setuid", "mkfifo", "wait4"):
            delattr(os, name)
        sys.platform = "win32"

options = ["--collect-only", "-q", "-p", "no:cacheprovider", "-m", "", "-W", "ignore"]
sys.exit(pytest.main([*options, *sys.argv[1:]], plugins=[Windows()]))
"""


def collect(*paths: Path) -> subprocess.CompletedProcess[str]:
    """Collect test files in a process that simulates Windows."""
    command = [sys.executable, "-c", COLLECT, *map(str, paths)]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)


def test_all_tests_can_be_collected_on_windows() -> None:
    done = collect(ROOT / "tests")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr
    assert "test_windows.py" in done.stdout


@pytest.mark.parametrize(
    "line", ["import fcntl", "import resource", "import signal; signal.SIGKILL", "import os; os.fork"]
)
def test_a_test_file_that_needs_a_posix_module_is_reported(tmp_path: Path, line: str) -> None:
    file = tmp_path / "test_posix.py"
    file.write_text(f"{line}\n\ndef test_nothing() -> None: ...\n")
    done = collect(file)
    assert done.returncode == 2, done.stdout
    assert line.split(".")[-1].split()[-1] in done.stdout
