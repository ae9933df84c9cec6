"""How often each gate is closed or open, and how long each unit remembers.

It is the measure of Karpathy, Johnson & Fei-Fei (2015), "Visualizing and understanding recurrent networks".
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from charlstm.cells import GATES
from charlstm.explain.trace import Trace

CLOSED, OPEN = 0.1, 0.9


@dataclass(frozen=True)
class Saturation:
    """The gates over a text. S is the number of gates with a value from 0 to 1; the candidate is not one.

    Attributes:
        gates: (S,) the names of the gates, such as i, f, o; empty for a plain RNN.
        closed: (L, S, H) the share of the steps at which a gate is below CLOSED.
        open: (L, S, H) the share of the steps at which it is above OPEN.
        memory: (L, H) −1/ln(mean f) of each unit in steps: the time in which its cell state decays to 1/e if nothing
            is added. In a GRU z takes the place of f. Infinite where the mean rounds to 1; None for a plain RNN.
    """

    gates: tuple[str, ...]
    closed: NDArray[np.float32]
    open: NDArray[np.float32]
    memory: NDArray[np.float64] | None


def saturation(cell: str, found: Trace) -> Saturation:
    """Return the shares and the memory lengths of all units over a trace.

    Args:
        cell: the kind of the cell.
        found: the trace of a text.
    """
    names = GATES[cell]
    gates = [k for k, name in enumerate(names) if name in "ifozr"]
    values = found.gates[:, :, gates]  # (T, L, S, H)
    kept = next((names.index(name) for name in "fz" if name in names), None)
    memory = None
    if kept is not None:
        mean = found.gates[:, :, kept].mean(axis=0, dtype=np.float64)
        with np.errstate(divide="ignore"):
            memory = np.where(mean > 0, -1 / np.log(np.clip(mean, 1e-300, 1)), 0.0)
    return Saturation(
        tuple(names[k] for k in gates),
        (values < CLOSED).mean(axis=0, dtype=np.float32),
        (values > OPEN).mean(axis=0, dtype=np.float32),
        memory,
    )
