"""The type of the callbacks through which long operations other than training report their progress."""

from __future__ import annotations

from collections.abc import Callable

Report = Callable[[int, int | None], None]
"""Called with the amount of work done and the total amount, or None where the total is not known."""
