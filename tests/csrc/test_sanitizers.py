"""Both C cores under the sanitizers of addresses, undefined behaviour and threads.

pytest -m slow tests/csrc/test_sanitizers.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.csrc.building import build, copy_sources, run

MEMORY = "-fsanitize=address,undefined"
THREADS = "-fsanitize=thread"
FLAGS = ("-g", "-O1", "-w", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all")

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
            ("engine_weights.c", "(uint64_t)(o->batch > threads ? o->batch : threads) * e->padded * 8)", "64)"),
            "AddressSanitizer: heap-buffer-overflow",
            id="engine, address",
        ),
        pytest.param(
            MEMORY,
            ("recurrence.c", "return (H + width - 1) / width * width * gate_count(cell) * H;", "return H;"),
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
