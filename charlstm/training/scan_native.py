"""The training kernels of recurrence.c, called with torch tensors on the CPU. `NATIVE` is None where none were built.

Tensors must be on the CPU, of one type (float32 or float64), and contiguous unless their strides are passed along: what
`recurrence` guarantees is not checked again here.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from charlstm import native_library
from charlstm.training import scan_torch

ABI = 2  # of the structs of recurrence.c: a library of another number is not used
_CELLS = ("lstm", "peephole", "coupled", "gru", "rnn")
_pointer, _long = ctypes.c_void_p, ctypes.c_int64


class _Product(ctypes.Structure):
    _fields_ = [
        *((name, _pointer) for name in ("a", "b", "c", "scratch")),
        *(
            (name, _long)
            for name in ("M", "N", "K", "a_row", "a_col", "b_row", "b_col", "c_row", "accumulate", "threads")
        ),
    ]


class _Scan(ctypes.Structure):
    """One layer over T steps: `struct scan` of recurrence.c, where each field is explained."""

    _fields_ = [
        *((name, _long) for name in ("cell", "threads", "T", "B", "H")),
        *(
            (name, _pointer)
            for name in (
                *("source", "index", "fresh", "weight", "bias", "peephole"),
                *("h", "c", "h_begin", "c_begin", "gates", "candidate"),
            )
        ),
        *((name, _pointer) for name in ("packed", "d_output", "d_h", "d_c", "d_bias", "d_peephole", "d_source")),
    ]


class _Drop(ctypes.Structure):
    _fields_ = [
        *(("x", _pointer), ("y", _pointer), ("n", _long), ("threads", _long)),
        *(("share", ctypes.c_double), ("key", ctypes.c_uint32), ("second_key", ctypes.c_uint32)),
    ]


class Native:
    """The library, at one of its instruction sets (counted from the plainest; -1 is the best that runs here)."""

    def __init__(self, library: ctypes.CDLL, variant: int = -1) -> None:
        library.charlstm_variant_name.restype = ctypes.c_char_p
        library.charlstm_product_scratch.restype = _long
        library.charlstm_scan_scratch.restype = _long
        library.charlstm_scan_scratch.argtypes = [ctypes.c_int, ctypes.c_int, _long, _long]
        for name in ("product", "forward", "backward", "drop"):
            call = getattr(library, f"charlstm_{name}")
            call.argtypes, call.restype = [_pointer, ctypes.c_int, ctypes.c_int, _pointer], None
        self._library = library
        self.variants: int = library.charlstm_variants()
        self.variant = range(self.variants)[variant]
        self.name: str = library.charlstm_variant_name(self.variant).decode()
        self._product_scratch: int = library.charlstm_product_scratch()

    def product(self, a: Tensor, b: Tensor, out: Tensor | None = None, *, add: bool = False) -> Tensor:
        """a (M, K) · b (K, N), of any strides, into `out` (M, N) with unit stride along its rows; `add` adds to it."""
        (M, K), N = a.shape, b.shape[1]
        if out is None:
            out = a.new_empty(M, N)
        threads = _threads(M * N * K)
        scratch = a.new_empty(threads * self._product_scratch)
        pointers = (a.data_ptr(), b.data_ptr(), out.data_ptr(), scratch.data_ptr())
        task = _Product(*pointers, M, N, K, *a.stride(), *b.stride(), out.stride(0), add, threads)
        self.run("product", task, a.dtype)
        return out

    def drop(self, x: Tensor, share: float, keys: tuple[int, int]) -> Tensor:
        """x with `share` of its numbers dropped and the others scaled up; which ones, the two 32-bit keys decide."""
        x = x.contiguous()
        y = torch.empty_like(x)
        task = _Drop(x.data_ptr(), y.data_ptr(), x.numel(), _threads(x.numel()), share, *keys)
        self.run("drop", task, x.dtype)
        return y

    def scan_scratch(self, cell: str, hidden: int, dtype: torch.dtype) -> int:
        """Elements of `_Scan.packed`."""
        size = self._library.charlstm_scan_scratch(self.variant, dtype == torch.float64, _CELLS.index(cell), hidden)
        return int(size)

    def run(self, name: str, task: ctypes.Structure, dtype: torch.dtype) -> None:
        call = getattr(self._library, f"charlstm_{name}")
        call(ctypes.byref(task), self.variant, dtype == torch.float64, _openmp_pool())


class Saved(NamedTuple):
    """What the backward pass needs of the forward pass; `backward` overwrites gates and candidate in float32."""

    h: Tensor  # (T, B, H), that each step began with
    c: Tensor | None  # (T, B, H) likewise, where the cell has one
    whole_h: Tensor  # (T + 1, B, H), the first given, the others as the steps ended
    whole_c: Tensor | None
    gates: Tensor  # (T, B, G·H), squashed
    candidate: Tensor | None  # (T, B, H): the GRU's weight_hn · h + b_hn
    weight: Tensor
    peephole: Tensor | None
    fresh: Tensor | None  # (T, B), bool


def forward(
    cell: str,
    shape: tuple[int, int],
    source: Tensor,
    index: Tensor | None,
    state: Tensor,
    weight: Tensor,
    bias: Tensor,
    peephole: Tensor | None,
    fresh: Tensor | None = None,
) -> tuple[Tensor, Tensor, Saved]:
    """`scan_torch.forward`, but for the input: the rows of `source` in order, or those named by an index (T, B)."""
    assert NATIVE is not None
    (steps, batch), (_, hidden) = shape, weight.shape
    h = source.new_empty(steps + 1, batch, hidden)
    c = source.new_empty(steps + 1, batch, hidden) if len(state) > 1 else None
    h[0] = state[0]
    if c is not None:
        c[0] = state[1]
    saved = Saved(
        h[:-1] if fresh is None else torch.empty_like(h[:-1]),
        None if c is None else c[:-1] if fresh is None else torch.empty_like(c[:-1]),
        whole_h=h,
        whole_c=c,
        gates=source.new_empty(steps, batch, len(weight)),
        candidate=source.new_empty(steps, batch, hidden) if cell == "gru" else None,
        weight=weight,
        peephole=peephole,
        fresh=fresh,
    )
    task, _scratch = _scan(cell, saved)
    task.source, task.bias, task.index = source.data_ptr(), bias.data_ptr(), _address(index)
    NATIVE.run("forward", task, source.dtype)
    return h[1:], torch.stack((h[-1],) if c is None else (h[-1], c[-1])), saved


def backward(
    cell: str, saved: Saved, index: Tensor | None, rows: int, d_output: Tensor, d_state: Tensor
) -> scan_torch.Gradients:
    """`scan_torch.backward`, but for the gradient of the source: its own shape, `rows` rows of G·H."""
    assert NATIVE is not None
    if saved.gates.dtype == torch.float64:  # gradcheck goes backward more than once
        saved = saved._replace(gates=saved.gates.clone(), candidate=_clone(saved.candidate))
    gates, candidate, hidden = saved.gates, saved.candidate, saved.h.shape[-1]
    task, _scratch = _scan(cell, saved)
    d_output, d_state = d_output.contiguous(), d_state.clone(memory_format=torch.contiguous_format)
    d_bias = gates.new_zeros(task.threads, gates.shape[-1] + (hidden if cell == "gru" else 0))
    d_peephole = gates.new_zeros(task.threads, 3, hidden)
    d_source = None if index is None else gates.new_zeros(rows, gates.shape[-1])
    task.d_output, task.d_h = d_output.data_ptr(), d_state[0].data_ptr()
    task.d_c = d_state[1].data_ptr() if len(d_state) > 1 else None
    task.d_bias, task.d_peephole = d_bias.data_ptr(), d_peephole.data_ptr()
    if index is not None and d_source is not None:
        task.index, task.d_source = index.data_ptr(), d_source.data_ptr()
    NATIVE.run("backward", task, gates.dtype)
    if d_source is None:
        d_source = gates.flatten(0, 1)
        if candidate is not None:
            d_source = torch.cat((d_source[:, : 2 * hidden], candidate.flatten(0, 1)), 1)
    d_p = None if saved.peephole is None else d_peephole.sum(0)
    return scan_torch.Gradients(d_source, gates, d_state, d_bias.sum(0), d_p)


def _scan(cell: str, saved: Saved) -> tuple[_Scan, Tensor]:
    """The task with all that both passes share, and its scratch, which must live as long."""
    assert NATIVE is not None
    gates, hidden = saved.gates, saved.h.shape[-1]
    steps, batch = gates.shape[:2]
    scratch = gates.new_empty(NATIVE.scan_scratch(cell, hidden, gates.dtype))
    threads = min(_threads(steps * batch * gates.shape[-1] * hidden), batch)
    task = _Scan(_CELLS.index(cell), threads, steps, batch, hidden)
    task.weight, task.gates, task.packed = saved.weight.data_ptr(), saved.gates.data_ptr(), scratch.data_ptr()
    task.h, task.h_begin = saved.whole_h.data_ptr(), saved.h.data_ptr()
    task.c, task.c_begin = _address(saved.whole_c), _address(saved.c)
    task.candidate, task.peephole, task.fresh = map(_address, (saved.candidate, saved.peephole, saved.fresh))
    return task, scratch


def _threads(multiplications: int) -> int:
    """One for what takes a few microseconds anyway, else torch's number."""
    return torch.get_num_threads() if multiplications > 200_000 else 1


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _clone(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()


@functools.cache
def _openmp_pool() -> int | None:
    """The address of GOMP_parallel in the OpenMP runtime that torch computes with, or None where that is another one.

    Its threads spin for a while after each of torch's operations. Work given to them finds them awake; work given to
    threads of our own would find them in the way.
    """
    torch.mm(torch.ones(1, 1), torch.ones(1, 1))  # the runtime is loaded by now
    try:
        mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "gomp" in line}
    except OSError:
        return None
    if len(mapped) != 1:
        return None
    return ctypes.cast(ctypes.CDLL(mapped.pop()).GOMP_parallel, _pointer).value


def _load() -> Native | None:
    library = None if os.environ.get("CHARLSTM_KERNELS") == "off" else native_library.load("_recurrence")
    return None if library is None or _built_for() != ABI else Native(library)


def _built_for() -> int | None:
    """The ABI of the compiled library; None where there is none."""
    library = native_library.load("_recurrence")
    return None if library is None else int(getattr(library, "charlstm_abi", lambda: 0)())


NATIVE = _load()


def is_stale() -> bool:
    """Whether a library was compiled that does not fit this charlstm, so that torch alone does its work."""
    return NATIVE is None and os.environ.get("CHARLSTM_KERNELS") != "off" and _built_for() not in (None, ABI)


def keep_pages() -> None:
    """Let the C library keep what tensors give back, instead of returning it to the system after each step.

    A step takes T·B·G·H floats afresh, and their page faults cost a tenth of its time. For the whole process; without
    effect where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        m_trim_threshold, m_mmap_max = -1, -4
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)
