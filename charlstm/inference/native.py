"""The door to `engine.c`: where it was compiled at install, its functions through ctypes; else `library()` is None.

The compiled file is a plain shared library that knows nothing of Python. ctypes releases the interpreter while it runs.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import threading
from collections.abc import Mapping
from ctypes import POINTER, byref, c_double, c_int, c_int32, c_uint64, c_void_p
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charlstm.config import ModelConfig
from charlstm.inference.filters import SamplingRule

Ids = NDArray[np.int32]
State = NDArray[np.float32]

ABI = 4  # of engine.h: a library of another number is not used
CELLS = ("lstm", "peephole", "coupled", "gru", "rnn")
NO_MEMORY, NOT_FINITE = 1, 3
BATCH = 1024  # most texts in one call
BATCH_LOGITS = 2**22  # most logits of such a batch: fewer texts where the vocabulary is enormous


class Options(ctypes.Structure):
    """engine_options."""

    _fields_ = [
        (name, c_int32)
        for name in (
            *("cell", "vocabulary", "embedding", "hidden", "layers"),
            *("int8", "batch", "threads", "isa", "boundary"),
        )
    ]


class Drawing(ctypes.Structure):
    """engine_rule."""

    _fields_ = [
        *((name, c_double) for name in ("temperature", "top_p", "min_p", "typical", "penalty")),
        *((name, c_int32) for name in ("top_k", "window", "states")),
        *((name, c_void_p) for name in ("allowed", "recent", "follows", "phases")),
    ]


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled engine, or None where there is none that fits this charlstm."""
    found = importlib.util.find_spec("charlstm._engine")
    if found is None or found.origin is None:
        return None
    try:
        engine = ctypes.CDLL(found.origin)
        if engine.engine_abi() != ABI:
            return None
    except (OSError, AttributeError):
        return None
    engine.engine_isa_name.restype = ctypes.c_char_p
    engine.engine_create.restype = c_void_p
    engine.engine_create.argtypes = [POINTER(Options), POINTER(c_void_p), POINTER(c_int)]
    engine.engine_destroy.argtypes = [c_void_p]
    engine.engine_isa.argtypes = [c_void_p]
    engine.engine_threads.argtypes = [c_void_p, c_int]
    read: list[Any] = [c_void_p, c_int, c_int, c_void_p, c_void_p]
    engine.engine_read.argtypes = [*read, c_void_p]
    engine.engine_score.argtypes = [*read, c_void_p]
    engine.engine_generate.argtypes = [*read, POINTER(Drawing), c_uint64, c_void_p, c_uint64, c_void_p]
    return engine


def is_stale() -> bool:
    """Whether a library was compiled that does not fit this charlstm, so that numpy does its work."""
    return importlib.util.find_spec("charlstm._engine") is not None and library() is None


def isas() -> list[str]:
    """The instruction sets that were compiled and that this processor has, best first; empty without a library."""
    engine = library()
    names: list[str] = []
    if engine is not None:
        isa = 0
        while name := engine.engine_isa_name(isa):
            if engine.engine_isa_present(isa):
                names.append(name.decode())
            isa += 1
    return names


def _index(engine: ctypes.CDLL, isa: str) -> int:
    index = 0
    while name := engine.engine_isa_name(index):
        if name.decode() == isa:
            return index
        index += 1
    raise ValueError(f"no instruction set {isa!r} in this installation; there are {', '.join(isas())}")


def has_int8() -> bool:
    """Whether the best instruction set multiplies bytes faster than floats."""
    engine = library()
    return engine is not None and bool(engine.engine_isa_has_int8(_index(engine, isas()[0])))


def batch_of(config: ModelConfig) -> int:
    """Most texts in one call of a backend; `Engine` splits more."""
    return max(1, min(BATCH, BATCH_LOGITS // config.vocab_size))


def available_threads() -> int:
    """The processors this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Native:
    """A handle of engine.c. Same methods as the numpy backend; arguments are checked by `Engine`."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Mapping[str, NDArray[np.float32]],
        int8: bool,
        threads: int | None,
        isa: str | None,
    ) -> None:
        engine = library()
        assert engine is not None
        arrays = [np.require(weights[name], np.float32, ["C", "A"]) for name in config.shapes()]
        options = Options(
            CELLS.index(config.cell),
            config.vocab_size,
            config.embedding,
            config.hidden,
            config.layers,
            int8,
            batch_of(config),
            threads if threads is not None else available_threads(),
            -1 if isa is None else _index(engine, isa),
            -1 if config.boundary is None else config.boundary,
        )
        error = c_int()
        pointers = (c_void_p * len(arrays))(*(array.ctypes.data for array in arrays))
        self._handle: int | None = engine.engine_create(byref(options), pointers, byref(error))
        if self._handle is None:
            if error.value == NO_MEMORY:
                raise MemoryError(f"no memory for the engine of a model with {config.parameters():,} parameters")
            raise ValueError(f"the native engine refuses {config}")
        self._engine = engine
        self._vocabulary = config.vocab_size
        self._lock = threading.Lock()  # a handle serves one call at a time
        self.isa: str = engine.engine_isa_name(engine.engine_isa(self._handle)).decode()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self._engine.engine_destroy(self._handle)

    def threads(self, batch: int) -> int:
        """How many threads a call with so many texts uses."""
        return int(self._engine.engine_threads(self._handle, batch))

    def advance(self, ids: Ids, state: State, project: bool) -> tuple[NDArray[np.float32], State]:
        """Feed ids (T, B) and return the logits (B, V) after the last, or (B, 0) without `project`, and the state."""
        state = np.array(state, order="C")
        logits = np.empty((ids.shape[1], self._vocabulary if project else 0), np.float32)
        self._call("engine_read", ids, len(ids), state, logits.ctypes.data if project else None)
        return logits, state

    def score(self, ids: Ids, state: State) -> tuple[NDArray[np.float64], State]:
        """ids (T + 1, B) → nats (T, B) and the state."""
        state = np.array(state, order="C")
        nats = np.empty((max(0, len(ids) - 1), ids.shape[1]), np.float64)
        self._call("engine_score", ids, len(nats), state, nats.ctypes.data)
        return nats, state

    def generate(
        self,
        ids: Ids,
        state: State,
        length: int,
        rule: SamplingRule,
        seed: int,
        position: int,
        streams: NDArray[np.uint64],
        recent: Ids,
        phases: NDArray[np.uint8],
    ) -> tuple[Ids, State]:
        """ids (B,) → symbols (length, B) and the state; FloatingPointError where logits are not finite."""
        state = np.array(state, order="C")
        symbols = np.empty((length, len(ids)), np.int32)
        streams = np.ascontiguousarray(streams, np.uint64)
        allowed = None if rule.allowed is None else np.ascontiguousarray(rule.allowed, np.uint8)
        follows = None if rule.follows is None else np.ascontiguousarray(rule.follows)
        recent = np.ascontiguousarray(recent, np.int32)
        phases = np.ascontiguousarray(phases)
        drawing = Drawing(
            rule.temperature,
            rule.top_p,
            rule.min_p,
            rule.typical,
            rule.penalty,
            min(rule.top_k, self._vocabulary),
            len(recent),
            0 if follows is None else len(follows),
            None if allowed is None else allowed.ctypes.data,
            recent.ctypes.data,
            None if follows is None else follows.ctypes.data,
            phases.ctypes.data,
        )
        numbers = (byref(drawing), seed, streams.ctypes.data, position, symbols.ctypes.data)
        self._call("engine_generate", ids, length, state, *numbers)
        return symbols, state

    def _call(self, function: str, ids: Ids, length: int, state: State, *rest: Any) -> None:
        ids = np.ascontiguousarray(ids, np.int32)
        with self._lock:
            error = getattr(self._engine, function)(
                self._handle, ids.shape[-1], length, ids.ctypes.data, state.ctypes.data, *rest
            )
        if error == NOT_FINITE:
            raise FloatingPointError("the model's logits are not finite")
        if error:
            raise ValueError(f"{function} refused its arguments: error {error}")
