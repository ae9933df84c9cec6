"""Test the settings of a run, which are restored after it, and the devices and the speed of the machine."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from charlstm.errors import UsageError
from charlstm.training import hardware

IS_GLIBC = os.name == "posix" and platform.libc_ver()[0] == "glibc"
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class MallocInfo(ctypes.Structure):
    """`struct mallinfo` of glibc; `hblks` is the number of blocks that were mapped from the system one by one."""

    _fields_ = [
        (name, ctypes.c_int)
        for name in [
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        ]
    ]


def mapped_blocks() -> int:
    mallinfo = ctypes.CDLL(None).mallinfo
    mallinfo.restype = MallocInfo
    return int(mallinfo().hblks)


def a_large_block_is_mapped_from_the_system() -> bool:
    """Return whether malloc maps 64 MB separately and returns them to the system when freed, as by default."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_size_t],
        [ctypes.c_void_p],
    )
    before = mapped_blocks()
    block = libc.malloc(64 * 2**20)
    is_mapped = mapped_blocks() > before
    libc.free(block)
    return is_mapped


def kept_after_free() -> int:
    """Free 16 MB in small blocks, and return the bytes that malloc keeps at the top of its heap."""
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = (
        ctypes.c_void_p,
        [ctypes.c_size_t],
        [ctypes.c_void_p],
    )
    for block in [libc.malloc(64_000) for _ in range(256)][::-1]:
        libc.free(block)
    mallinfo = libc.mallinfo
    mallinfo.restype = MallocInfo
    return int(mallinfo().keepcost)


@pytest.fixture
def precision() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.skipif(not IS_GLIBC, reason="the C library is not glibc, whose allocator alone is changed")
def test_the_allocator_keeps_freed_memory_within_a_run_and_returns_it_after_the_run() -> None:
    assert a_large_block_is_mapped_from_the_system()
    with hardware.run_settings(CPU, None):
        assert not a_large_block_is_mapped_from_the_system()
        assert kept_after_free() > 8 * 2**20
    assert a_large_block_is_mapped_from_the_system()
    assert kept_after_free() < 2**20


def test_the_number_of_threads_is_restored() -> None:
    before = torch.get_num_threads()
    with hardware.run_settings(CPU, before + 2):
        assert torch.get_num_threads() == before + 2
    assert torch.get_num_threads() == before
    with hardware.run_settings(CPU, None):
        assert torch.get_num_threads() == before


@pytest.mark.usefixtures("precision")
def test_the_precision_of_products_is_lowered_on_cuda_only_and_restored() -> None:
    torch.set_float32_matmul_precision("highest")
    with hardware.run_settings(CPU, None):
        assert torch.get_float32_matmul_precision() == "highest"
    with hardware.run_settings(CUDA, None):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == "highest"
    torch.set_float32_matmul_precision("medium")
    with hardware.run_settings(CUDA, None):
        pass
    assert torch.get_float32_matmul_precision() == "medium"


@pytest.mark.usefixtures("precision")
def test_settings_are_restored_after_an_error() -> None:
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    with pytest.raises(ZeroDivisionError), hardware.run_settings(CUDA, threads + 1):
        raise ZeroDivisionError
    assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (threads, precision)
    if IS_GLIBC:
        assert a_large_block_is_mapped_from_the_system()


def test_the_error_for_an_unavailable_device_names_the_available_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert hardware.device("auto") == CPU
    with pytest.raises(UsageError) as caught:
        hardware.device("cuda")
    assert caught.value.fields == ("device",)
    assert caught.value.value == "cuda"
    assert str(caught.value.allowed).startswith("auto or cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert hardware.device("auto") == CUDA


def test_the_speed_is_in_operations_per_second() -> None:
    assert 1e8 < hardware.speed(CPU) < 1e14


def test_versions_are_those_of_the_imported_libraries() -> None:
    versions = hardware.versions()
    assert versions["torch"] == torch.__version__
    assert versions["numpy"] == np.__version__
