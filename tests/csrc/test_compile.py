"""The C sources compile without a warning, also with compilers that lack an instruction set.

An install continues without the library where they do not compile.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

from tests.csrc.building import FLAGS, PROGRAM, SOURCES, copy_sources, require

WARNINGS = ("-Wall", "-Wextra", "-Werror", "-pedantic")
COMPILERS = ["gcc", "clang"]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs gcc or clang")


def compile_object(
    compiler: str, source: Path, folder: Path, *flags: str, headers: Path = SOURCES
) -> subprocess.CompletedProcess[str]:
    """Compile one file as an install does: warnings about vectorised loops appear only with -O3."""
    command = [require(compiler), *FLAGS, "-O3", *WARNINGS, *flags, "-I", str(headers)]
    return subprocess.run([*command, "-c", str(source), "-o", str(folder / "object.o")], capture_output=True, text=True)


@pytest.mark.parametrize("compiler", [*COMPILERS, "aarch64-linux-gnu-gcc"])
@pytest.mark.parametrize("source", [*sorted(SOURCES.glob("*.c")), PROGRAM], ids=lambda path: path.name)
def test_a_source_compiles_without_a_warning(compiler: str, source: Path, tmp_path: Path) -> None:
    done = compile_object(compiler, source, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize(
    ("line", "warning"),
    [
        ("static int early(range sequences);", "error"),
        ("static int never_used(void) { return 0; }", "unused"),
        ("struct extension { int size; int values[0]; };", "zero"),
    ],
)
def test_a_warning_is_an_error(compiler: str, line: str, warning: str, tmp_path: Path) -> None:
    """The negative control: an error, a warning of -Wall and one of -pedantic."""
    sources = copy_sources(tmp_path / "csrc")
    (sources / "threads.c").write_text(line + "\n" + (sources / "threads.c").read_text())
    done = compile_object(compiler, sources / "threads.c", tmp_path, headers=sources)
    assert done.returncode != 0
    assert warning in done.stderr


def instruction_sets(compiler: str, folder: Path, *flags: str) -> list[str]:
    """Names of the engine's instruction sets in a library built by this compiler."""
    library = folder / f"{compiler}{len(flags)}.so"
    command = [require(compiler), *FLAGS, "-O1", "-shared", "-fPIC", *flags, *map(str, sorted(SOURCES.glob("*.c")))]
    subprocess.run([*command, "-o", str(library), "-lm", "-pthread"], check=True)
    core = ctypes.CDLL(str(library))
    core.engine_isa_name.restype = ctypes.c_char_p
    names: list[str] = []
    while name := core.engine_isa_name(len(names)):
        names.append(name.decode())
    return names


@pytest.mark.parametrize("compiler", COMPILERS)
def test_an_old_compiler_leaves_out_only_the_sets_that_it_lacks(compiler: str, tmp_path: Path) -> None:
    """AVX-VNNI needs GCC 11 or clang 12; -DCHARLSTM_OLD_COMPILER acts as if this compiler were older."""
    every, old = (instruction_sets(compiler, tmp_path, *flags) for flags in ((), ("-DCHARLSTM_OLD_COMPILER",)))
    assert old == [name for name in every if "vnni" not in name and "dotprod" not in name]
    assert old[-1] == every[-1] == "plain"
    if "avx2" in every:
        assert old == ["avx2", "plain"]
