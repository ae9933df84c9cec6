"""Fast forms of the equations in `cells`, in C where a compiler was found at install, each beside its parity test."""

from __future__ import annotations

import ctypes
import importlib.util


def load(name: str) -> ctypes.CDLL | None:
    """The compiled library `charlstm.kernels.<name>`, or None where there was no compiler at install."""
    spec = importlib.util.find_spec(f"charlstm.kernels.{name}")
    return None if spec is None or spec.origin is None else ctypes.CDLL(spec.origin)
