"""Progress bars on stderr."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from charlstm.cli.console import Stderr
from charlstm.config import SymbolKind
from charlstm.progress import Report

if TYPE_CHECKING:
    from tqdm import tqdm

DELAY_SECONDS = 1.0


def can_be_shown() -> bool:
    """Return whether stderr is a terminal and tqdm is installed."""
    return Stderr().isatty() and importlib.util.find_spec("tqdm") is not None


def progress_bar(file: Stderr, **options: Any) -> tqdm[NoReturn]:
    """Return a tqdm progress bar on a terminal.

    Args:
        file: the terminal; tqdm recognises by its identity that lines and bar are on the same terminal.
        **options: further options of tqdm.
    """
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # no monitoring thread: the bar is updated by its owner
    return tqdm(file=file, dynamic_ncols=True, leave=False, **options)


class Counter:
    """A progress bar that is shown from the first report on; earlier work does not count for the speed.

    If a report is smaller than the previous one, the bar starts again.

    Args:
        name: the name of the work.
        unit: the unit of the reported numbers.
        delay: seconds before the bar is shown.
    """

    def __init__(self, name: str, unit: str, delay: float = 0.0) -> None:
        self._name, self._unit, self._delay = name, unit, delay
        self._bar: tqdm[NoReturn] | None = None

    def __enter__(self) -> Counter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def __call__(self, done: int, total: int | None) -> None:
        """Report that `done` of `total` units are done; a total of None is unknown."""
        if self._bar is None:
            self._bar = progress_bar(
                Stderr(),
                desc=self._name,
                total=total,
                initial=done,
                unit=self._unit,
                unit_scale=True,
                delay=self._delay,
            )
        elif done < self._bar.n:
            self._bar.reset(total)
        self._bar.update(done - self._bar.n)


@contextmanager
def counting(name: str, kind: SymbolKind, wanted: bool) -> Iterator[Report | None]:
    """Show a counter of symbols for work that takes more than a second.

    Yields:
        The function that receives the reports; None if `wanted` is false or no bar can be shown.
    """
    if not (wanted and can_be_shown()):
        yield None
        return
    with Counter(name, "char" if kind == "chars" else "B", DELAY_SECONDS) as counter:
        yield counter
