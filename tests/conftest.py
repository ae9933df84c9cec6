"""Fixtures of several rooms' tests."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# Tests run side by side, each with models so small that a second thread would only wait for its turn. Before torch is
# loaded, and for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="session")
def _no_cache_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing that a test keeps goes into the folder for caches of whoever runs it."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory where there is one: an fsync there costs nothing, on a busy disk it may take seconds."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as folder:
        yield Path(os.path.realpath(folder))


if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a shell's background job; the tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)
