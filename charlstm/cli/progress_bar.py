"""A bar on the terminal for work that reports how much of it is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from charlstm.cli.console import Stderr
from charlstm.config import SymbolKind
from charlstm.progress import Report

if TYPE_CHECKING:
    from tqdm import tqdm

DELAY_SECONDS = 1.0


class Counter:
    """Drawn from the first report on: what was there then does not count for the speed. A report of less than the last
    one begins once more.

    Args:
        name: of what is done.
        unit: of what is counted.
        delay: seconds before it is drawn at all.
    """

    def __init__(self, name: str, unit: str, delay: float = 0.0) -> None:
        self._name, self._unit, self._delay = name, unit, delay
        self._drawn: tqdm[NoReturn] | None = None

    def __enter__(self) -> Counter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._drawn is not None:
            self._drawn.close()

    def __call__(self, done: int, total: int | None) -> None:
        """So many of so many, or of nobody knows how many."""
        if self._drawn is None:
            from tqdm import tqdm

            tqdm.monitor_interval = 0  # no thread to watch it
            self._drawn = tqdm(
                desc=self._name,
                total=total,
                initial=done,
                unit=self._unit,
                unit_scale=True,
                file=Stderr(),
                dynamic_ncols=True,
                leave=False,
                delay=self._delay,
            )
        elif done < self._drawn.n:
            self._drawn.reset(total)
        self._drawn.update(done - self._drawn.n)


@contextmanager
def counting(name: str, kind: SymbolKind, wanted: bool) -> Iterator[Report | None]:
    """A counter of symbols, for what takes longer than a second; None where it is not wanted, or nobody looks."""
    if not (wanted and Stderr().isatty()):
        yield None
        return
    with Counter(name, "char" if kind == "chars" else "B", DELAY_SECONDS) as counter:
        yield counter
