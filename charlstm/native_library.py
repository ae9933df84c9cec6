"""Load `charlstm._core`, the library that is compiled from `csrc` when charlstm is installed.

The compiled file is a plain shared library without any Python in it; ctypes releases the interpreter lock while its
functions run. Where it is missing or cannot be used, numpy and torch compute instead, many times slower.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from typing import Literal, NamedTuple

ABI = 7
"""CHARLSTM_ABI of `csrc/core.h`. A library with another number is not used."""

Status = Literal["loaded", "missing", "broken", "stale"]


class Loaded(NamedTuple):
    """The outcome of loading the library."""

    library: ctypes.CDLL | None
    status: Status
    """`missing`: none was compiled; `broken`: it cannot be loaded; `stale`: it was compiled for another version."""


@functools.cache
def load() -> Loaded:
    """Load the library, once in a process.

    Returns:
        The library and `loaded`, or None and the reason. A library that cannot be loaded raises nothing.
    """
    spec = importlib.util.find_spec("charlstm._core")
    if spec is None or spec.origin is None:
        return Loaded(None, "missing")
    try:
        library = ctypes.CDLL(spec.origin)
    except OSError:  # truncated, for another processor, or with a symbol that this system lacks
        return Loaded(None, "broken")
    if not hasattr(library, "charlstm_abi"):
        return Loaded(None, "broken")
    return Loaded(library, "loaded") if library.charlstm_abi() == ABI else Loaded(None, "stale")


def is_unusable() -> bool:
    """Return whether a library was compiled and cannot be used, so that installing charlstm again would help."""
    return load().status in ("broken", "stale")
