"""The native engine built with the sanitizers of addresses, undefined behaviour and threads, under its tests.

pytest -m slow tests/test_sanitizers.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COMPILER = shutil.which(os.environ.get("CC", "gcc"))
FLAGS = ["-g", "-O1", "-fno-omit-frame-pointer"]
MEMORY = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
THREADS = ["-fsanitize=thread"]
RUNTIMES = {"address": "libasan.so", "undefined": "libubsan.so", "thread": "libtsan.so"}
ROOMS = ("engine", "drawing", "sampling", "bytes", "evaluation", "library", "surprise", "engine_threads")
TESTS = [f"tests/test_{room}.py" for room in ROOMS]
TESTS.append("tests/test_foreign.py::test_any_weights_are_read_scored_and_drawn_from_or_refused")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(COMPILER is None or sys.platform != "linux", reason="needs gcc on Linux"),
]


def run_sanitized(
    folder: Path, tests: list[str], change: tuple[str, str] | None = None, sanitizers: list[str] = MEMORY
) -> subprocess.CompletedProcess[str]:
    """Run tests against a copy of the package in `folder` whose engine is sanitized, its source changed if asked."""
    shutil.copytree(ROOT / "charlstm", folder / "charlstm", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    kernels = folder / "charlstm" / "kernels"
    source = kernels / "engine.c"
    if change is not None:
        assert change[0] in source.read_text()
        source.write_text(source.read_text().replace(*change))
    library = kernels / f"_engine{sysconfig.get_config_var('EXT_SUFFIX')}"
    assert COMPILER is not None
    build = [COMPILER, *FLAGS, *sanitizers, "-shared", "-fPIC", str(source), "-o", str(library), "-lm", "-pthread"]
    subprocess.run(build, check=True)
    names = [RUNTIMES[name] for name in sanitizers[0].split("=")[1].split(",")]
    runtimes = [
        subprocess.run(
            [COMPILER, f"-print-file-name={name}"], check=True, capture_output=True, text=True
        ).stdout.strip()
        for name in names
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "LD_PRELOAD": " ".join(runtimes),
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "TSAN_OPTIONS": "halt_on_error=1 exitcode=66",
    }
    command = [sys.executable, "-m", "pytest", "-x", "-s", "-p", "no:cacheprovider", *tests]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1200)


def test_the_engine_passes_its_tests_under_both_sanitizers(tmp_path: Path) -> None:
    result = run_sanitized(tmp_path, TESTS)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert "skipped" not in result.stdout


def test_a_buffer_that_is_too_short_is_seen(tmp_path: Path) -> None:
    """The negative control: the last buffer of the handle, which engine.c makes, has no room for a text's symbols."""
    short = ("(uint64_t)(o->batch > threads ? o->batch : threads) * e->padded * 8)", "64)")
    result = run_sanitized(tmp_path, [f"{TESTS[0]}::test_drawn_symbols_follow_the_softmax"], short)
    assert result.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in result.stdout + result.stderr


def test_threads_that_draw_together_do_not_race(tmp_path: Path) -> None:
    result = run_sanitized(tmp_path, ["tests/test_engine_threads.py", TESTS[1]], sanitizers=THREADS)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]


def test_threads_that_share_a_row_of_weights_are_seen(tmp_path: Path) -> None:
    """The negative control: a fault that this engine once had, and that the text itself shows one time in sixty."""
    shared = ("drawn = draw(e, 0, index, ", "drawn = draw(e, 0, 0, ")
    result = run_sanitized(tmp_path, ["tests/test_engine_threads.py"], shared, THREADS)
    assert result.returncode == 66
    assert "ThreadSanitizer: data race" in result.stdout + result.stderr
