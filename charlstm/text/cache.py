"""The folder for files that can be made again: downloaded corpora, and ids of large texts."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path:
    """Return ~/.cache/charlstm on Linux, the equivalent on other platforms; it may not exist yet.

    Without the package platformdirs it is ~/.cache/charlstm, or $XDG_CACHE_HOME/charlstm, on every platform.
    """
    try:
        import platformdirs
    except ImportError:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "charlstm"
    return platformdirs.user_cache_path("charlstm", appauthor=False)
