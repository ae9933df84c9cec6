"""The equations: one step of each cell, written to be read beside its paper.

Every function here is pure: the symbol's input x and the old state go in, the new state comes out. torch tensors and
numpy arrays both pass through it, in any float type. The fast forms (`kernels`, `recurrence`, `engine`) are held to
these functions by their tests.

Letters, here and everywhere: B batch, T time, V vocabulary, E embedding, H hidden, L layers, G gates of a cell.

Weights of one layer, in torch's layout and gate order, so that they interchange with torch.nn.LSTM, GRU and RNN:

    weight_ih  (G·H, in)  in = E for the first layer, H above it       bias_ih  (G·H,)
    weight_hh  (G·H, H)                                               bias_hh  (G·H,)
    peephole   (3, H)     rows i, f, o; the peephole cell only

The G blocks of H rows each stand in the order of `GATES`. The state is a tuple: (h, c) for the cells with a memory
cell, (h,) for the others, each (B, H).
"""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import Any, NamedTuple

Array = Any  # a numpy array or a torch tensor, floating point

GATES = MappingProxyType(
    {
        "lstm": ("i", "f", "g", "o"),
        "peephole": ("i", "f", "g", "o"),
        "coupled": ("f", "g", "o"),
        "gru": ("r", "z", "n"),
        "rnn": ("h",),
    }
)
"""The blocks of each cell's weight matrices, in order: the gates, and the candidate (g, n or h)."""

STATES = MappingProxyType(
    {"lstm": ("h", "c"), "peephole": ("h", "c"), "coupled": ("h", "c"), "gru": ("h",), "rnn": ("h",)}
)
"""What each cell carries from step to step."""


class Weights(NamedTuple):
    """One layer's weights; shapes in the module's docstring."""

    weight_ih: Array
    weight_hh: Array
    bias_ih: Array
    bias_hh: Array
    peephole: Array | None = None


def lstm(x: Array, state: tuple[Array, Array], w: Weights) -> tuple[Array, Array]:
    """Long short-term memory: Hochreiter & Schmidhuber (1997) with the forget gate of Gers et al. (2000).

    i, f, o = σ(W·[x, h] + b)    g = tanh(W_g·[x, h] + b_g)    c' = f⊙c + i⊙g    h' = o⊙tanh(c')

    The path from c to c' is a sum with one factor f and no squashing: along it a gradient lives for hundreds of steps.
    """
    h, c = state
    i, f, g, o = _split(_input(x, w) + _hidden(h, w), 4)
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c), c


def peephole(x: Array, state: tuple[Array, Array], w: Weights) -> tuple[Array, Array]:
    """LSTM whose gates see the cell: Gers & Schmidhuber (2000), "Recurrent nets that time and count".

    i = σ(… + p_i⊙c)    f = σ(… + p_f⊙c)    c' = f⊙c + i⊙g    o = σ(… + p_o⊙c')    h' = o⊙tanh(c')

    Input and forget gate look at the old cell, the output gate at the new one.
    """
    h, c = state
    assert w.peephole is not None
    p_i, p_f, p_o = w.peephole
    i, f, g, o = _split(_input(x, w) + _hidden(h, w), 4)
    c_new = sigmoid(f + p_f * c) * c + sigmoid(i + p_i * c) * tanh(g)
    return sigmoid(o + p_o * c_new) * tanh(c_new), c_new


def coupled(x: Array, state: tuple[Array, Array], w: Weights) -> tuple[Array, Array]:
    """LSTM with coupled gates, i = 1 − f: variant CIFG of Greff et al. (2017), "LSTM: a search space odyssey".

    f, o = σ(W·[x, h] + b)    g = tanh(W_g·[x, h] + b_g)    c' = f⊙c + (1 − f)⊙g    h' = o⊙tanh(c')

    What is forgotten makes room for what is written. Three matrices instead of four, and |c| ≤ 1 for ever.
    """
    h, c = state
    f, g, o = _split(_input(x, w) + _hidden(h, w), 3)
    f = sigmoid(f)
    c = f * c + (1 - f) * tanh(g)
    return sigmoid(o) * tanh(c), c


def gru(x: Array, state: tuple[Array], w: Weights) -> tuple[Array]:
    """Gated recurrent unit: Cho et al. (2014), in the form that torch and cuDNN compute.

    r, z = σ(W·[x, h] + b)    n = tanh(W_n·x + b_n + r⊙(U_n·h + u_n))    h' = (1 − z)⊙n + z⊙h

    The reset gate acts on the product U_n·h + u_n, not on h before it; hence the two separate biases.
    """
    (h,) = state
    r_x, z_x, n_x = _split(_input(x, w), 3)
    r_h, z_h, n_h = _split(_hidden(h, w), 3)
    z = sigmoid(z_x + z_h)
    n = tanh(n_x + sigmoid(r_x + r_h) * n_h)
    return ((1 - z) * n + z * h,)


def rnn(x: Array, state: tuple[Array], w: Weights) -> tuple[Array]:
    """Elman's simple recurrent network (1990), to show what gating is for: h' = tanh(W·[x, h] + b)."""
    (h,) = state
    return (tanh(_input(x, w) + _hidden(h, w)),)


STEP: MappingProxyType[str, Callable[..., tuple[Array, ...]]] = MappingProxyType(
    {"lstm": lstm, "peephole": peephole, "coupled": coupled, "gru": gru, "rnn": rnn}
)


def _input(x: Array, w: Weights) -> Array:
    return x @ w.weight_ih.T + w.bias_ih  # (B, G·H)


def _hidden(h: Array, w: Weights) -> Array:
    return h @ w.weight_hh.T + w.bias_hh  # (B, G·H)


def _split(gates: Array, count: int) -> list[Array]:
    size = gates.shape[-1] // count
    return [gates[..., k * size : (k + 1) * size] for k in range(count)]


def tanh(x: Array) -> Array:
    if hasattr(x, "tanh"):
        return x.tanh()
    import numpy

    return numpy.tanh(x)


def sigmoid(x: Array) -> Array:
    """σ(x) = 1/(1 + e^−x), in the form that can overflow nowhere."""
    return 0.5 + 0.5 * tanh(0.5 * x)
