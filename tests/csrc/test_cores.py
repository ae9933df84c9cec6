"""Both C cores compute the plain equations, on this processor and on an emulated aarch64."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

import pytest

from charlstm.inference import native
from tests.csrc.building import build, copy_sources, require, run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX threads")
SWAPPED_GATES = ("engine_isa.h", "SIGMOID(Z(1)) * cell_old + SIGMOID(Z(0)) * TANH(Z(2))",
                 "SIGMOID(Z(0)) * cell_old + SIGMOID(Z(1)) * TANH(Z(2))")  # fmt: skip
TRUNCATED_WEIGHTS = ("engine_weights.c", "(int8_t)lrintf(row[k] * inverse)", "(int8_t)(row[k] * inverse)")
WRONG_GRADIENT = ("recurrence_loops.h", "dn = dh * (1 - z_) * (1 - n_ * n_), dz", "dn = dh * (1 - z_), dz")
TRUNCATED_OPERANDS = ("recurrence.c", "(number.bits + 0x7fffu + (number.bits >> 16 & 1)) >> 16", "number.bits >> 16")
ROWS_OF_ANOTHER_THREAD = ("recurrence_loops.h", "return rounded + from * PACKED(K);", "return rounded;")


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_every_instruction_set_computes_the_equations(compiler: str, tmp_path: Path) -> None:
    done = run(build(compiler, tmp_path / "check", "-O2"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].endswith("values are right")
    for isa in native.isas():
        assert f"engine: {isa}\n" in done.stdout


def test_aarch64_computes_the_equations(tmp_path: Path) -> None:
    if platform.machine() == "aarch64":
        pytest.skip("aarch64 itself runs the test before this one")
    emulator = require("qemu-aarch64")
    done = run(emulator, build("aarch64-linux-gnu-gcc", tmp_path / "check", "-O2", "-static"), "few")
    assert done.returncode == 0, done.stdout + done.stderr
    assert {"engine: neon-dotprod", "engine: plain", "recurrence: plain"} <= set(done.stdout.splitlines())


@pytest.mark.parametrize(
    ("change", "argument", "what"),
    [
        (SWAPPED_GATES, "few", "cell 0, logits:"),
        (SWAPPED_GATES, "int8", "cell 0, logits in int8"),
        (TRUNCATED_WEIGHTS, "few", "in int8"),
        (WRONG_GRADIENT, "few", "cell 3, gradient"),
        (TRUNCATED_OPERANDS, "few", "product in bf16"),
        (ROWS_OF_ANOTHER_THREAD, "few", "scan's h"),
    ],
)
def test_a_wrong_equation_is_detected(change: tuple[str, str, str], argument: str, what: str, tmp_path: Path) -> None:
    """The negative control of the tests above."""
    sources = copy_sources(tmp_path / "csrc", change)
    done = run(build("gcc", tmp_path / "check", "-O1", sources=sources), argument)
    assert done.returncode == 1
    assert what in done.stdout
