"""Load the libraries that were compiled from `csrc` when charlstm was installed."""

from __future__ import annotations

import ctypes
import importlib.util


def load(name: str) -> ctypes.CDLL | None:
    """The compiled library `charlstm.<name>`, or None where there was no compiler at install."""
    spec = importlib.util.find_spec(f"charlstm.{name}")
    return None if spec is None or spec.origin is None else ctypes.CDLL(spec.origin)
