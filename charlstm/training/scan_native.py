"""Call the training kernels of `csrc/recurrence.c` with torch tensors on the CPU.

`NATIVE` and `NATIVE_BF16` are None where the library is missing or cannot be used.

Tensors must be on the CPU, of one type (float32 or float64), and contiguous unless their strides are passed along:
`recurrence` guarantees that, and it is not checked again here.

Letters: B batch, T time, H hidden, G gates.
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
from charlstm.training.streams import Part

_CELLS = ("lstm", "peephole", "coupled", "gru", "rnn")
_pointer, _long = ctypes.c_void_p, ctypes.c_int64


class ProductTask(ctypes.Structure):
    """`product_task` of recurrence.h, where each field is explained."""

    _fields_ = [
        *((name, _pointer) for name in ("a", "b", "c", "scratch")),
        *(
            (name, _long)
            for name in ("M", "N", "K", "a_row", "a_col", "b_row", "b_col", "c_row", "accumulate", "threads")
        ),
    ]


class ScanTask(ctypes.Structure):
    """`scan_task` of recurrence.h, where each field is explained."""

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


class DropTask(ctypes.Structure):
    """`drop_task` of recurrence.h, where each field is explained."""

    _fields_ = [
        *(("x", _pointer), ("y", _pointer), ("n", _long), ("threads", _long)),
        *(("row", _long), ("stride", _long), ("first", _long)),
        *(("share", ctypes.c_double), ("key", ctypes.c_uint32), ("second_key", ctypes.c_uint32)),
    ]


class TrainingKernels:
    """The library, at one of its instruction sets.

    Args:
        library: the loaded library.
        variant: the instruction set, counted from the plainest; -1 is the best that runs here.
        is_bf16: round the operands of all products of float32 numbers to bf16; the sums stay in float32.
    """

    def __init__(self, library: ctypes.CDLL, variant: int = -1, *, is_bf16: bool = False) -> None:
        library.recurrence_variant_name.restype = ctypes.c_char_p
        library.recurrence_product_scratch.restype = _long
        library.recurrence_scan_scratch.restype = _long
        library.recurrence_scan_scratch.argtypes = [ctypes.c_int, ctypes.c_int, _long, _long, _long]
        for name in ("product", "forward", "backward", "drop"):
            call = getattr(library, f"recurrence_{name}")
            call.argtypes, call.restype = [_pointer, ctypes.c_int, ctypes.c_int, _pointer], None
        self._library = library
        self.variants: int = library.recurrence_variants()
        self.variant = range(self.variants)[variant]
        self.name: str = library.recurrence_variant_name(self.variant).decode()
        self.is_bf16 = is_bf16
        self._product_scratch: int = library.recurrence_product_scratch()

    @property
    def has_bf16(self) -> bool:
        """Whether the instruction set multiplies bf16 faster than float32."""
        return bool(self._library.recurrence_has_bf16(self.variant))

    def product(self, a: Tensor, b: Tensor, out: Tensor | None = None, *, add: bool = False) -> Tensor:
        """Multiply a (M, K) and b (K, N), of any strides, into `out` (M, N) with unit column stride, or add to it."""
        (M, K), N = a.shape, b.shape[1]
        if out is None:
            out = a.new_empty(M, N)
        threads = _threads(M * N * K)
        scratch = a.new_empty(threads * self._product_scratch)
        pointers = (a.data_ptr(), b.data_ptr(), out.data_ptr(), scratch.data_ptr())
        task = ProductTask(*pointers, M, N, K, *a.stride(), *b.stride(), out.stride(0), add, threads)
        self.run("product", task, a.dtype)
        return out

    def drop(self, x: Tensor, share: float, keys: tuple[int, int], part: Part | None = None) -> Tensor:
        """Drop `share` of the numbers of x, chosen by the two 32-bit keys, and scale the others by 1 / (1 - share).

        Args:
            x: (T, B, H).
            share: from 0 to 1.
            keys: the same keys drop the same numbers.
            part: the streams that x has of a larger batch; None means that it has all.
        """
        x = x.contiguous()
        y = torch.empty_like(x)
        width = x.shape[-1]
        of_batch = part or Part(0, x.shape[-2], x.shape[-2])
        rows = (of_batch.count * width, of_batch.total * width, of_batch.first * width)
        task = DropTask(x.data_ptr(), y.data_ptr(), x.numel(), _threads(x.numel()), *rows, share, *keys)
        self.run("drop", task, x.dtype)
        return y

    def scan_scratch(self, cell: str, batch: int, hidden: int, dtype: torch.dtype) -> int:
        """Return the number of elements of `ScanTask.packed`."""
        sizes = (_CELLS.index(cell), batch, hidden)
        return int(self._library.recurrence_scan_scratch(self.variant, self._element(dtype), *sizes))

    def run(self, name: str, task: ctypes.Structure, dtype: torch.dtype) -> None:
        """Call the C function `recurrence_{name}` with a task, in the variant for the element type `dtype`."""
        call = getattr(self._library, f"recurrence_{name}")
        call(ctypes.byref(task), self.variant, self._element(dtype), _openmp_pool())

    def _element(self, dtype: torch.dtype) -> int:
        """Return the `enum element` of recurrence.h for numbers of this type."""
        return 1 if dtype == torch.float64 else 2 if self.is_bf16 else 0


class ForwardCache(NamedTuple):
    """What the backward pass needs of the forward pass; in float32 it overwrites gates and candidate."""

    h: Tensor  # (T, B, H), with which each step begins
    c: Tensor | None  # (T, B, H) likewise, where the cell has one
    all_h: Tensor  # (T + 1, B, H): the first is given, the others are the states after each step
    all_c: Tensor | None
    gates: Tensor  # (T, B, G·H), after σ and tanh
    candidate: Tensor | None  # (T, B, H): the GRU's weight_hn · h + b_hn
    weight: Tensor
    peephole: Tensor | None
    fresh: Tensor | None  # (T, B), bool


def forward(
    kernels: TrainingKernels,
    cell: str,
    shape: tuple[int, int],
    source: Tensor,
    index: Tensor | None,
    state: Tensor,
    weight: Tensor,
    bias: Tensor,
    peephole: Tensor | None,
    fresh: Tensor | None = None,
) -> tuple[Tensor, Tensor, ForwardCache]:
    """Do what `scan_torch.forward` does, with another input: the rows of `source` in order, or by an index (T, B)."""
    (steps, batch), (_, hidden) = shape, weight.shape
    h = source.new_empty(steps + 1, batch, hidden)
    c = source.new_empty(steps + 1, batch, hidden) if len(state) > 1 else None
    h[0] = state[0]
    if c is not None:
        c[0] = state[1]
    cache = ForwardCache(
        h[:-1] if fresh is None else torch.empty_like(h[:-1]),
        None if c is None else c[:-1] if fresh is None else torch.empty_like(c[:-1]),
        all_h=h,
        all_c=c,
        gates=source.new_empty(steps, batch, len(weight)),
        candidate=source.new_empty(steps, batch, hidden) if cell == "gru" else None,
        weight=weight,
        peephole=peephole,
        fresh=fresh,
    )
    task, _scratch = _scan(kernels, cell, cache)
    task.source, task.bias, task.index = source.data_ptr(), bias.data_ptr(), _address(index)
    kernels.run("forward", task, source.dtype)
    return h[1:], torch.stack((h[-1],) if c is None else (h[-1], c[-1])), cache


def backward(
    kernels: TrainingKernels,
    cell: str,
    cache: ForwardCache,
    index: Tensor | None,
    rows: int,
    d_output: Tensor,
    d_state: Tensor,
) -> scan_torch.Gradients:
    """Do what `scan_torch.backward` does; the gradient of the source has the shape of the source, (rows, G·H)."""
    if cache.gates.dtype == torch.float64:  # gradcheck goes backward more than once
        cache = cache._replace(gates=cache.gates.clone(), candidate=_clone(cache.candidate))
    gates, candidate, hidden = cache.gates, cache.candidate, cache.h.shape[-1]
    task, _scratch = _scan(kernels, cell, cache)
    d_output, d_state = d_output.contiguous(), d_state.clone(memory_format=torch.contiguous_format)
    d_bias = gates.new_zeros(task.threads, gates.shape[-1] + (hidden if cell == "gru" else 0))
    d_peephole = gates.new_zeros(task.threads, 3, hidden)
    d_source = None if index is None else gates.new_zeros(rows, gates.shape[-1])
    task.d_output, task.d_h = d_output.data_ptr(), d_state[0].data_ptr()
    task.d_c = d_state[1].data_ptr() if len(d_state) > 1 else None
    task.d_bias, task.d_peephole = d_bias.data_ptr(), d_peephole.data_ptr()
    if index is not None and d_source is not None:
        task.index, task.d_source = index.data_ptr(), d_source.data_ptr()
    kernels.run("backward", task, gates.dtype)
    if d_source is None:
        d_source = gates.flatten(0, 1)
        if candidate is not None:
            d_source = torch.cat((d_source[:, : 2 * hidden], candidate.flatten(0, 1)), 1)
    d_p = None if cache.peephole is None else d_peephole.sum(0)
    return scan_torch.Gradients(d_source, gates, d_state, d_bias.sum(0), d_p)


def _scan(kernels: TrainingKernels, cell: str, cache: ForwardCache) -> tuple[ScanTask, Tensor]:
    """Return the task with the fields that both passes share, and its scratch, which must live as long as the task."""
    gates, hidden = cache.gates, cache.h.shape[-1]
    steps, batch = gates.shape[:2]
    scratch = gates.new_empty(kernels.scan_scratch(cell, batch, hidden, gates.dtype))
    threads = min(_threads(steps * batch * gates.shape[-1] * hidden), batch)
    task = ScanTask(_CELLS.index(cell), threads, steps, batch, hidden)
    task.weight, task.gates, task.packed = cache.weight.data_ptr(), cache.gates.data_ptr(), scratch.data_ptr()
    task.h, task.h_begin = cache.all_h.data_ptr(), cache.h.data_ptr()
    task.c, task.c_begin = _address(cache.all_c), _address(cache.c)
    task.candidate, task.peephole, task.fresh = map(_address, (cache.candidate, cache.peephole, cache.fresh))
    return task, scratch


def _threads(multiplications: int) -> int:
    """Return 1 for work of a few microseconds, else torch's number of threads."""
    return torch.get_num_threads() if multiplications > 200_000 else 1


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _clone(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.clone()


@functools.cache
def _openmp_pool() -> int | None:
    """Return the address of GOMP_parallel in the OpenMP runtime that torch computes with; None if that is not libgomp.

    Its threads spin for a while after each of torch's operations. Work given to them finds them awake; work given to
    other threads would compete with them for the processors. A process can have several libgomp (scikit-learn brings
    one): torch's is the one that the dynamic linker finds from libtorch_cpu.so.

    Measured on two idle cores of an AMD EPYC (Zen 4) with a second libgomp loaded, medians of four processes of each
    kind in turn, ms per training step at 1 × 256 and 1 × 512: torch's pool 15.1 and 65.5, a pool of our own 29.0 and
    84.8, threads made for every call 26.3 and 86.1. Without the second libgomp: 15.3 and 61.6.
    """
    torch.mm(torch.ones(1, 1), torch.ones(1, 1))  # the runtime is loaded by now
    try:
        mappings = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
        paths = {fields[5]: None for fields in mappings if len(fields) == 6}
        torch_library = next((path for path in paths if Path(path).name.startswith("libtorch_cpu.so")), None)
        if torch_library is None:
            return None
        address = ctypes.cast(ctypes.CDLL(torch_library).GOMP_parallel, _pointer).value
    except (OSError, AttributeError):
        return None
    for fields in mappings:
        begin, end = (int(bound, 16) for bound in fields[0].split("-"))
        if address is not None and begin <= address < end:
            return address if "gomp" in fields[-1] else None
    return None


def _load(*, is_bf16: bool = False) -> TrainingKernels | None:
    library = None if os.environ.get("CHARLSTM_KERNELS") == "off" else native_library.load().library
    return None if library is None else TrainingKernels(library, is_bf16=is_bf16)


NATIVE = _load()
NATIVE_BF16 = _load(is_bf16=True)
