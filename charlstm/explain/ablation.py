"""What each unit and each gate is worth: the surprisal that is added when it is switched off.

All changed models read the same part of the text side by side, from the states that the unchanged model has there.

Letters: R changed models, P parts of the text, L layers, G gates, H hidden.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from charlstm.cells import GATES, STATES, Weights, sigmoid
from charlstm.config import ModelConfig
from charlstm.explain.trace import Floats, Ids, Trace
from charlstm.inference.engine import layer_weights

BUDGET = 10e9  # floating-point operations for the units: about 0.2 s
MIN_STEPS, MAX_STEPS, PARTS = 16, 256, 4
GATE_CHARS = 1000
BATCH = 512


@dataclass(frozen=True)
class Ablation:
    """The cost of each change, in bits per character, of the part of the text that was read.

    Attributes:
        units: (L, H) cost of setting the output h of a unit to zero; NaN for units that were not tried because the
            model is large: those with the smallest product of outgoing weights and standard deviation of h.
        unit_chars: number of characters that each of them was measured on.
        gates: the names of the gates that were set to a constant.
        gate_costs: (L, S, 2) cost of setting a gate of all units of a layer to 0, and to 1.
        gate_chars: number of characters that this was measured on.
    """

    units: NDArray[np.float64]
    unit_chars: int
    gates: tuple[str, ...]
    gate_costs: NDArray[np.float64]
    gate_chars: int

    def ranking(self) -> NDArray[np.int64]:
        """Return the units as rows (layer, unit), the most costly first, without those that were not tried."""
        order = np.argsort(-np.nan_to_num(self.units, nan=-np.inf), axis=None, kind="stable")
        order = order[: np.count_nonzero(~np.isnan(self.units))]
        return np.stack(np.unravel_index(order, self.units.shape), 1)


@dataclass(frozen=True)
class _Change:
    """Sets a quantity of one unit, or of all units of a layer, to a constant.

    Attributes:
        layer: the layer.
        gate: the index of the gate in `cells.GATES`; None changes the output h.
        unit: the unit; None changes all.
        value: the constant.
    """

    layer: int
    gate: int | None
    unit: int | None
    value: float


def ablation(config: ModelConfig, weights: Mapping[str, Any], found: Trace, bits: NDArray[np.float64]) -> Ablation:
    """Measure the cost of switching off each unit, and of setting each gate of a layer to 0 and to 1.

    Args:
        config: the shape of the model.
        weights: the weights of the model.
        found: the trace of a text of T > 1 symbols.
        bits: (T,) the surprisal of each symbol in the unchanged model.
    """
    transitions = len(found.ids) - 1
    parameters = sum(weights[name].size for name in weights if name != "embedding.weight")
    units = [(layer, unit) for layer in range(config.layers) for unit in range(config.hidden)]
    affordable = int(BUDGET / (2 * parameters))  # characters, for all units together
    steps = int(np.clip(affordable // len(units), MIN_STEPS, MAX_STEPS))
    steps = min(steps, transitions)
    if affordable < len(units) * steps:
        units = [units[k] for k in _importance(config, weights, found)[: max(1, affordable // steps)]]
    parts, length = _parts(transitions, steps)
    changes = [_Change(layer, None, unit, 0.0) for layer, unit in units]
    costs = np.full((config.layers, config.hidden), np.nan)
    costs[tuple(np.array(units).T)] = _costs(config, weights, found, bits, changes, parts, length)

    names = GATES[config.cell]
    gates = [k for k, name in enumerate(names) if name in "ifozr"]
    gate_changes = [
        _Change(layer, gate, None, value) for layer in range(config.layers) for gate in gates for value in (0.0, 1.0)
    ]
    gate_parts, gate_length = _parts(transitions, min(transitions, GATE_CHARS))
    gate_costs = _costs(config, weights, found, bits, gate_changes, gate_parts, gate_length) if gates else np.zeros(0)
    return Ablation(
        costs,
        len(parts) * length,
        tuple(names[k] for k in gates),
        gate_costs.reshape(config.layers, len(gates), 2),
        len(gate_parts) * gate_length,
    )


def _parts(transitions: int, steps: int) -> tuple[NDArray[np.int64], int]:
    """Return the first symbols of up to PARTS parts of a text, and their length; together about `steps` symbols."""
    count = min(PARTS, max(1, steps // MIN_STEPS))
    length = steps // count
    return np.linspace(0, transitions - length, count).astype(np.int64), length


def _importance(config: ModelConfig, weights: Mapping[str, Any], found: Trace) -> list[int]:
    """Return the indices layer · H + unit, ordered by outgoing weights times the standard deviation of h."""
    spread = found.h.std(axis=0, dtype=np.float64)  # (L, H)
    for layer in range(config.layers):
        squares = (weights[f"recurrence.weight_hh_l{layer}"].astype(np.float64) ** 2).sum(axis=0)
        above = f"recurrence.weight_ih_l{layer + 1}" if layer + 1 < config.layers else "projection.weight"
        spread[layer] *= np.sqrt(squares + (weights[above].astype(np.float64) ** 2).sum(axis=0))
    return [int(k) for k in np.argsort(-spread, axis=None, kind="stable")]


def _costs(
    config: ModelConfig,
    weights: Mapping[str, Any],
    found: Trace,
    bits: NDArray[np.float64],
    changes: Sequence[_Change],
    parts: NDArray[np.int64],
    length: int,
) -> NDArray[np.float64]:
    """Return the added bits per character (R,) of each change.

    Args:
        config: the shape of the model.
        weights: the weights of the model.
        found: the trace of the unchanged model.
        bits: (T,) the surprisals of the unchanged model.
        changes: R changes.
        parts: (P,) the first symbols of the parts of the text.
        length: number of predictions in each part.
    """
    rows = parts + np.arange(length + 1)[:, None]  # (length + 1, P)
    expected = float(bits[rows[1:]].mean())
    size = max(1, BATCH // len(parts))
    costs = []
    for first in range(0, len(changes), size):
        batch = changes[first : first + size]
        read = np.tile(rows, len(batch))  # (length + 1, R·P), the parts of one change side by side
        nats = _read(config, weights, found, read, [change for change in batch for _ in parts])
        costs.append(nats.reshape(len(batch), len(parts)).mean(axis=1) / np.log(2) - expected)
    return np.concatenate(costs)


def _read(
    config: ModelConfig, weights: Mapping[str, Any], found: Trace, rows: Ids, changes: Sequence[_Change]
) -> NDArray[np.float64]:
    """Return the mean surprisal (B,) in nats of each stream.

    Args:
        config: the shape of the model.
        weights: the weights of the model.
        found: the trace of the unchanged model, which gives the states before the first step.
        rows: (length + 1, B) the steps of the text that each stream reads.
        changes: the change of each stream.
    """
    layers = [layer_weights(config, weights, layer) for layer in range(config.layers)]
    histories = [found.h] if found.c is None else [found.h, found.c]
    states = np.stack([found.before(history, config.boundary)[rows[0]] for history in histories])  # (S, B, L, H)
    states = np.ascontiguousarray(states.transpose(2, 0, 1, 3))  # (L, S, B, H)
    inputs = weights["embedding.weight"] @ layers[0].weight_ih.T  # (V, G·H)
    projection = np.ascontiguousarray(weights["projection.weight"].T)
    ids = found.ids[rows].astype(np.int64)
    edits = [_edits(config, changes, layer) for layer in range(config.layers)]
    nats = np.zeros(rows.shape[1])
    for t in range(len(rows) - 1):
        if config.boundary is not None and (fresh := ids[t] == config.boundary).any():
            states[:, :, fresh] = 0
        x = inputs[ids[t]]
        for layer, w in enumerate(layers):
            if layer:
                x = x @ w.weight_ih.T
            states[layer] = _step(config.cell, x, states[layer], w, edits[layer])
            x = states[layer, 0]
        scores = x @ projection + weights["projection.bias"]
        highest = scores.max(axis=1)
        total = np.log(np.exp(scores - highest[:, None]).sum(axis=1, dtype=np.float64))
        nats += total + highest - scores[np.arange(len(scores)), ids[t + 1]]
    return nats / (len(rows) - 1)


_Edits = Mapping[str | None, tuple[NDArray[np.bool_], NDArray[np.float32]]]
"""For the gates that are changed, and None for the output: where (B, H), and the values."""


def _edits(config: ModelConfig, changes: Sequence[_Change], layer: int) -> _Edits:
    """Return what is changed in a layer, for a batch with one stream per change."""
    found: dict[str | None, tuple[NDArray[np.bool_], NDArray[np.float32]]] = {}
    shape = (len(changes), config.hidden)
    for row, change in enumerate(changes):
        if change.layer == layer:
            name = None if change.gate is None else GATES[config.cell][change.gate]
            where, values = found.setdefault(name, (np.zeros(shape, bool), np.zeros(shape, np.float32)))
            units = slice(None) if change.unit is None else change.unit
            where[row, units] = True
            values[row, units] = change.value
    return found


def _step(cell: str, x: Floats, state: Floats, w: Weights, edits: _Edits) -> Floats:
    """Compute a step of `cells` with changed gates or outputs.

    Args:
        cell: the kind of the cell.
        x: (B, G·H) the input's part of the gates, without bias.
        state: (S, B, H) the state before the step.
        w: the weights of the layer.
        edits: what to change.

    Returns:
        The state (S, B, H) after the step.
    """
    h, c = state[0], state[-1]
    batch, hidden = h.shape
    names = GATES[cell]
    a = (h @ w.weight_hh.T + w.bias_hh).reshape(batch, len(names), hidden)
    x = (x + w.bias_ih).reshape(a.shape)
    peephole = np.zeros((3, hidden), x.dtype) if w.peephole is None else w.peephole
    new = np.empty((len(STATES[cell]), batch, hidden), x.dtype)

    def edited(values: Floats, name: str | None) -> Floats:
        if name in edits:
            np.copyto(values, edits[name][1], where=edits[name][0])
        return values

    def gate(name: str, extra: Any = 0) -> Floats:
        k = names.index(name)
        return edited(sigmoid(x[:, k] + a[:, k] + extra), name)

    if cell == "rnn":
        new[0] = np.tanh(x[:, 0] + a[:, 0])
    elif cell == "gru":
        z = gate("z")
        new[0] = (1 - z) * np.tanh(x[:, 2] + gate("r") * a[:, 2]) + z * h
    else:
        f = gate("f", peephole[1] * c)
        i = 1 - f if cell == "coupled" else gate("i", peephole[0] * c)
        g = names.index("g")
        new[1] = f * c + i * np.tanh(x[:, g] + a[:, g])
        new[0] = gate("o", peephole[2] * new[1]) * np.tanh(new[1])
    edited(new[0], None)
    return new
