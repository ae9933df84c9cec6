"""Run the inference engine of `csrc/engine.c` through ctypes. Without a compiled library `library()` is None.

Letters: B batch (sequences in one call), T time, V vocabulary.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Mapping
from ctypes import POINTER, byref, c_double, c_int, c_int32, c_int64, c_uint64, c_void_p
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charlstm import native_library
from charlstm.config import ModelConfig
from charlstm.inference.filters import SamplingRule

Ids = NDArray[np.int32]
State = NDArray[np.float32]

CELLS = ("lstm", "peephole", "coupled", "gru", "rnn")
"""In the order of `enum cell` in core.h."""
NO_MEMORY, NOT_FINITE = 1, 3  # of enum engine_error
MAX_BATCH = 1024  # sequences in one call
MAX_BATCH_LOGITS = 2**22  # logits of such a batch: fewer sequences for a very large vocabulary


class Options(ctypes.Structure):
    """`engine_options` of engine.h, where each field is explained."""

    _fields_ = [
        (name, c_int32)
        for name in (
            *("cell", "vocabulary", "embedding", "hidden", "layers"),
            *("int8", "batch", "threads", "isa", "boundary"),
        )
    ]


class EngineRule(ctypes.Structure):
    """`engine_rule` of engine.h, where each field is explained."""

    _fields_ = [
        *((name, c_double) for name in ("temperature", "top_p", "min_p", "typical", "penalty")),
        *((name, c_int32) for name in ("top_k", "window", "states", "classes", "end")),
        *((name, c_void_p) for name in ("allowed", "recent", "follows", "class_of", "distances", "phases")),
        ("limit", c_int64),
    ]


def library() -> ctypes.CDLL | None:
    """Return the compiled library with the engine's functions declared, or None if no usable library exists."""
    engine = native_library.load().library
    if engine is None:
        return None
    engine.engine_isa_name.restype = ctypes.c_char_p
    engine.engine_create.restype = c_void_p
    engine.engine_create.argtypes = [POINTER(Options), POINTER(c_void_p), POINTER(c_int)]
    engine.engine_destroy.argtypes = [c_void_p]
    engine.engine_isa.argtypes = [c_void_p]
    engine.engine_threads.argtypes = [c_void_p, c_int]
    common: list[Any] = [c_void_p, c_int, c_int, c_void_p, c_void_p]  # handle, batch, length, ids, state
    engine.engine_read.argtypes = [*common, c_void_p]
    engine.engine_score.argtypes = [*common, c_void_p, c_int, c_void_p, c_void_p]
    engine.engine_generate.argtypes = [*common, POINTER(EngineRule), c_uint64, c_void_p, c_uint64, c_void_p]
    return engine


def _address(array: NDArray[Any] | None) -> int | None:
    return None if array is None else array.ctypes.data


def isas() -> list[str]:
    """Return the instruction sets that were compiled and that this processor has, best first."""
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
    raise ValueError(f"no instruction set {isa!r} in this installation; choose one of {', '.join(isas())}")


def has_int8() -> bool:
    """Return whether the best instruction set multiplies bytes faster than floats."""
    engine = library()
    return engine is not None and bool(engine.engine_isa_has_int8(_index(engine, isas()[0])))


def batch_of(config: ModelConfig) -> int:
    """Return the most sequences in one call of a backend; `Engine` splits a larger batch."""
    return max(1, min(MAX_BATCH, MAX_BATCH_LOGITS // config.vocab_size))


def available_threads() -> int:
    """Return the number of processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class NativeEngine:
    """A handle of engine.c, with the methods of the numpy backend. `Engine` checks the arguments.

    Args:
        config: Shape of the model.
        weights: Name -> float32 array, as `config.shapes()` lists them. They are copied.
        int8: Whether to round weights and hidden activations to 8 bits.
        threads: Most threads in one call; None, one for each processor.
        isa: Name of an instruction set, one of `isas()`; None, the best.

    Raises:
        MemoryError: If there is no memory for the handle.
        ValueError: If a size is out of range.
    """

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
                raise MemoryError(
                    f"not enough memory for the engine of a model with {config.parameters():,} parameters"
                )
            raise ValueError(f"a size is out of the range of the native engine: {config}")
        self._engine = engine
        self._vocabulary = config.vocab_size
        self._lock = threading.Lock()  # a handle serves one call at a time
        self.isa: str = engine.engine_isa_name(engine.engine_isa(self._handle)).decode()

    def __del__(self) -> None:
        if getattr(self, "_handle", None) is not None:
            self._engine.engine_destroy(self._handle)

    def threads(self, batch: int) -> int:
        """Return the most threads that a call with `batch` sequences uses."""
        return int(self._engine.engine_threads(self._handle, batch))

    def advance(self, ids: Ids, state: State, project: bool) -> tuple[NDArray[np.float32], State]:
        """Feed ids (T, B) and return the logits (B, V) after the last, or (B, 0) without `project`, and the state."""
        state = np.array(state, order="C")
        logits = np.empty((ids.shape[1], self._vocabulary if project else 0), np.float32)
        self._call("engine_read", ids, len(ids), state, logits.ctypes.data if project else None)
        return logits, state

    def score(self, ids: Ids, state: State) -> tuple[NDArray[np.float64], State]:
        """Read ids (T + 1, B); return the surprisals of all but the first in nats, (T, B), and the new state."""
        state = np.array(state, order="C")
        nats = np.empty((max(0, len(ids) - 1), ids.shape[1]), np.float64)
        self._call("engine_score", ids, len(nats), state, nats.ctypes.data, 0, None, None)
        return nats, state

    def score_top(
        self, ids: Ids, state: State, top: int
    ) -> tuple[NDArray[np.float64], Ids, NDArray[np.float64], State]:
        """Score as `score`; also return the `top` most probable symbols and their probabilities, (T, B, top) each."""
        state = np.array(state, order="C")
        nats = np.empty((max(0, len(ids) - 1), ids.shape[1]), np.float64)
        best, shares = np.empty((*nats.shape, top), np.int32), np.empty((*nats.shape, top), np.float64)
        found = (nats.ctypes.data, top, best.ctypes.data, shares.ctypes.data)
        self._call("engine_score", ids, len(nats), state, *found)
        return nats, best, shares, state

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
        phases: NDArray[np.int32],
        remaining: int | None,
    ) -> tuple[Ids, State]:
        """Sample `length` symbols of each sequence, after ids (B,).

        Args:
            ids: Last symbol of each sequence, (B,), which the state does not hold yet.
            state: (L, S, B, H) float32.
            length: Symbols to sample.
            rule: How logits become a symbol.
            seed: Seed of the random numbers.
            position: Symbols of each sequence that were sampled before.
            streams: Stream of random numbers of each sequence, (B,).
            recent: Symbols before, for the repetition penalty, (window, B); -1: none.
            phases: State of each sequence's automaton, (B,).
            remaining: Number of symbols that each sequence may still have; None, no limit.

        Returns:
            The symbols (length, B), and the new state.

        Raises:
            FloatingPointError: If logits are NaN or infinite.
        """
        state = np.array(state, order="C")
        symbols = np.empty((length, len(ids)), np.int32)
        streams = np.ascontiguousarray(streams, np.uint64)
        allowed = None if rule.allowed is None else np.ascontiguousarray(rule.allowed, np.uint8)
        automaton = rule.automaton
        follows = None if automaton is None else np.ascontiguousarray(automaton.follows)
        class_of = None if automaton is None else np.ascontiguousarray(automaton.classes)
        limited = automaton is not None and automaton.distances is not None and remaining is not None
        distances = np.ascontiguousarray(automaton.distances) if automaton is not None and limited else None
        recent = np.ascontiguousarray(recent, np.int32)
        phases = np.ascontiguousarray(phases)
        engine_rule = EngineRule(
            rule.temperature,
            rule.top_p,
            rule.min_p,
            rule.typical,
            rule.penalty,
            min(rule.top_k, self._vocabulary),
            len(recent),
            *((0, 0, -1) if automaton is None else (*automaton.follows.shape, automaton.end)),
            _address(allowed),
            recent.ctypes.data,
            _address(follows),
            _address(class_of),
            _address(distances),
            phases.ctypes.data,
            remaining if limited else -1,
        )
        numbers = (byref(engine_rule), seed, streams.ctypes.data, position, symbols.ctypes.data)
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
            raise ValueError(f"an argument of {function} is out of range: error {error}")
