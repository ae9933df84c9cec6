"""Fixtures that several test modules use, and the options of the test run."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Tests run in parallel, each with models so small that a second thread gains nothing. The variable must be set before
# torch is loaded; the processes that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--fault ROW`."""
    parser.addoption(
        "--fault", metavar="ROW", help="run only the tests of this row in docs/reliability.md, such as R12"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep only the tests of the row that `--fault` names, and give slow tests more time before they count as hung."""
    row = config.getoption("--fault")
    if row is not None:
        chosen = [item for item in items if any(row in mark.args for mark in item.iter_markers("fault"))]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(4 * 3600))


@pytest.fixture(autouse=True, scope="session")
def _no_cache_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep what tests cache out of the cache directory of the user."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium, started when the first test of this process needs it."""
    from tests.helpers.browser import launched

    with launched() as found:
        yield found


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory in memory where the system has one: an fsync on a busy disk may take seconds."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as folder:
        yield Path(os.path.realpath(folder))


if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # inherited from a shell's background job
    signal.signal(signal.SIGINT, signal.default_int_handler)
