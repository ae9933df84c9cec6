"""Both C cores under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer.

The check program runs alone. The Python tests run against a copy of the package whose library is instrumented; the
runtimes of the sanitizers are preloaded.

pytest -m slow tests/csrc/test_sanitizers.py
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.csrc.building import SOURCES, build, copy_sources, require, run

MEMORY = "-fsanitize=address,undefined"
THREADS = "-fsanitize=thread"
FLAGS = ("-g", "-O1", "-w", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all")

PACKAGE = SOURCES.parent
RUNTIMES = {MEMORY: ("libasan.so", "libubsan.so"), THREADS: ("libtsan.so",)}
INFERENCE = (
    *(f"tests/inference/test_{name}.py" for name in ("engine", "filters", "sampling", "evaluation", "surprisal")),
    *("tests/inference/test_engine_threads.py", "tests/features/test_bytes.py", "tests/test_model.py"),
    "tests/features/test_hostile_files.py::test_any_weights_are_read_scored_and_sampled_from_or_refused",
)
TRAINING = ("tests/training/test_recurrence.py", "tests/training/test_scan_native.py")
SHORT_BUFFER = ("engine_weights.c", "(uint64_t)(o->batch > threads ? o->batch : threads) * e->padded * 8)", "64)")
SHARED_ROW = (
    "engine.c",
    "symbol = sample(e, 0, index, index, t, phase);",
    "symbol = sample(e, 0, 0, index, t, phase);",
)

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="needs the sanitizers of Linux")]


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("sanitizer", [MEMORY, THREADS])
def test_both_cores_pass_under_the_sanitizers(compiler: str, sanitizer: str, tmp_path: Path) -> None:
    done = run(build(compiler, tmp_path / "check", *FLAGS, sanitizer))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert done.stdout.splitlines()[-1].endswith("values are right")


@pytest.mark.parametrize(
    ("sanitizer", "change", "report"),
    [
        pytest.param(
            MEMORY,
            SHORT_BUFFER,
            "AddressSanitizer: heap-buffer-overflow",
            id="engine, address",
        ),
        pytest.param(
            MEMORY,
            ("recurrence.c", "return (H + width - 1) / width * width * G * H +", "return H +"),
            "AddressSanitizer: heap-buffer-overflow",
            id="recurrence, address",
        ),
        pytest.param(
            MEMORY,
            ("engine.c", "return q ? q + at : NULL;", "return q + at;"),
            "to null pointer",
            id="engine, undefined",
        ),
        pytest.param(
            MEMORY,
            ("recurrence_loops.h", "array ? (const REAL *)array + element : NULL", "(const REAL *)array + element"),
            "to null pointer",
            id="recurrence, undefined",
        ),
        pytest.param(
            THREADS,
            (
                "engine.c",
                "run_layer(e, l, turn, ids, units, sequences);\n            pool_barrier(e->pool, others);",
                "run_layer(e, l, turn, ids, units, sequences);",
            ),
            "ThreadSanitizer: data race",
            id="engine, thread",
        ),
        pytest.param(
            THREADS,
            ("recurrence.c", "*from = min64(count, grains * thread / threads * grain);", "*from = 0;"),
            "ThreadSanitizer: data race",
            id="recurrence, thread",
        ),
    ],
)
def test_a_sanitizer_reports_a_fault(sanitizer: str, change: tuple[str, str, str], report: str, tmp_path: Path) -> None:
    """The negative controls."""
    sources = copy_sources(tmp_path / "csrc", change)
    program = build("clang", tmp_path / "check", *FLAGS, sanitizer, sources=sources)
    done = run(program, TSAN_OPTIONS="halt_on_error=1 exitcode=66")
    assert done.returncode != 0
    assert report in done.stdout + done.stderr


def run_python_tests(
    folder: Path, sanitizer: str, *tests: str, change: tuple[str, str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run tests in `folder`, against a copy of the package with an instrumented library."""
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "csrc")
    shutil.copytree(PACKAGE, folder / "charlstm", ignore=ignored)
    shutil.copytree(PACKAGE.parent / "tests", folder / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PACKAGE.parent / "pyproject.toml", folder)
    sources = copy_sources(folder / "charlstm" / "csrc", change)
    library = folder / "charlstm" / f"_core{sysconfig.get_config_var('EXT_SUFFIX')}"
    build("gcc", library, *FLAGS, sanitizer, "-shared", "-fPIC", sources=sources, program=False)
    runtimes = [run(require("gcc"), f"-print-file-name={name}").stdout.strip() for name in RUNTIMES[sanitizer]]
    return run(
        *(sys.executable, "-m", "pytest", "-x", "-s", "-p", "no:cacheprovider", *tests),
        folder=folder,
        PYTHONPATH=str(folder),
        LD_PRELOAD=" ".join(runtimes),
        ASAN_OPTIONS="detect_leaks=0",  # the interpreter itself does not free all of its memory
        UBSAN_OPTIONS="print_stacktrace=1",
        TSAN_OPTIONS="halt_on_error=1 exitcode=66",
    )


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("sanitizer", "tests"),
    [
        pytest.param(MEMORY, INFERENCE, id="inference, address and undefined"),
        pytest.param(MEMORY, TRAINING, id="training, address and undefined"),
        pytest.param(THREADS, INFERENCE[1:2] + INFERENCE[5:6], id="inference, thread"),
    ],
)
def test_the_python_tests_pass_under_the_sanitizers(sanitizer: str, tests: tuple[str, ...], tmp_path: Path) -> None:
    done = run_python_tests(tmp_path, sanitizer, *tests)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.mark.parametrize(
    ("sanitizer", "change", "test", "report"),
    [
        (MEMORY, SHORT_BUFFER, INFERENCE[5], "AddressSanitizer: heap-buffer-overflow"),
        (THREADS, SHARED_ROW, INFERENCE[5], "ThreadSanitizer: data race"),
    ],
)
def test_the_python_tests_use_the_instrumented_library(
    sanitizer: str, change: tuple[str, str, str], test: str, report: str, tmp_path: Path
) -> None:
    """The negative control. The second fault is one that the engine once had."""
    done = run_python_tests(tmp_path, sanitizer, test, change=change)
    assert done.returncode != 0
    assert report in done.stdout + done.stderr
