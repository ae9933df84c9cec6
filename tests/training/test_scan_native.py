"""The threads of the training kernels: torch's OpenMP pool, or a pool of the library's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from charlstm.training import scan_native

pytestmark = [
    pytest.mark.skipif(scan_native.NATIVE is None, reason="the native library was not compiled"),
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
]

POOL = "from charlstm.training import scan_native; print(scan_native._openmp_pool() is not None)"
SECOND_LIBGOMP = "import ctypes; ctypes.CDLL({path!r}, {mode}).GOMP_parallel; "


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("is_first", [True, False], ids=["loaded before torch", "loaded after torch"])
def test_a_second_libgomp_does_not_hide_the_pool_of_torch(is_first: bool, tmp_path: Path) -> None:
    """Scikit-learn, for example, contains its own libgomp."""
    if run(POOL) != "True":
        pytest.skip("this torch computes with another OpenMP runtime than libgomp")
    paths = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "gomp" in line}
    copy = tmp_path / "libgomp-second.so.1"
    shutil.copy(sorted(paths)[0], copy)
    second = SECOND_LIBGOMP.format(path=str(copy), mode="ctypes.RTLD_LOCAL")
    code = second + POOL if is_first else f"import torch; {second}{POOL}"
    assert run(code) == "True"


def test_300_threads_without_a_pool_of_torch_compute_a_product() -> None:
    """An array of 256 threads was once filled without a limit, while --threads allows 4,096."""
    code = (
        "import torch; from charlstm.training import scan_native as s; s._openmp_pool = lambda: None; "
        "s._threads = lambda _: 300; a = torch.rand(600, 64); b = torch.rand(64, 8); "
        "print(bool(torch.allclose(s.NATIVE.product(a, b), a @ b, atol=1e-5)))"
    )
    assert run(code) == "True"


def test_the_own_pool_is_kept_between_calls_and_recreated_after_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_native, "_openmp_pool", lambda: None)
    monkeypatch.setattr(scan_native, "_threads", lambda _: 3)
    assert scan_native.NATIVE is not None
    a, b = torch.rand(64, 64), torch.rand(64, 64)
    wanted = scan_native.NATIVE.product(a, b)
    before = set(os.listdir("/proc/self/task"))
    assert torch.equal(scan_native.NATIVE.product(a, b), wanted)
    assert set(os.listdir("/proc/self/task")) == before
    code = (
        "import os, torch; from charlstm.training import scan_native as s; s._openmp_pool = lambda: None; "
        "s._threads = lambda _: 3; a = torch.rand(64, 64); first = s.NATIVE.product(a, a); child = os.fork()\n"
        "if child == 0: os._exit(0 if torch.equal(s.NATIVE.product(a, a), first) else 1)\n"
        "print(os.waitpid(child, 0)[1])"
    )
    assert run(code) == "0"
