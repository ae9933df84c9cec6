"""The equations of the cells: one step of each, in the notation of its paper.

Every function is pure: it takes the input x (B, in) of one symbol, the old state and the weights of one layer, and
returns the new state. It accepts torch tensors and numpy arrays of any float type. The tests compare the fast
implementations (`training.recurrence`, `training.scan_torch`, csrc/recurrence.c, csrc/engine.c) with these functions.

Letters, in all modules: B batch, T time, V vocabulary, E embedding, H hidden, L layers, G gates of a cell.

Weights of one layer, in torch's layout and gate order, so that they interchange with torch.nn.LSTM, GRU and RNN:

    weight_ih  (G·H, in)  in = E for the first layer, H above it       bias_ih  (G·H,)
    weight_hh  (G·H, H)                                               bias_hh  (G·H,)
    peephole   (3, H)     rows i, f, o; the peephole cell only

The G blocks of H rows are in the order of `GATES`. The state is a tuple of (B, H) arrays: (h, c) for the cells with a
memory cell, (h,) for the others. σ is the logistic function and ⊙ the elementwise product.
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
"""The order of the blocks in the weight matrices of each cell: the gates, and the candidate (g, n or h)."""

STATES = MappingProxyType(
    {"lstm": ("h", "c"), "peephole": ("h", "c"), "coupled": ("h", "c"), "gru": ("h",), "rnn": ("h",)}
)
"""The arrays of the state of each cell, in order."""


class Weights(NamedTuple):
    """The weights of one layer, with the shapes of the module's docstring."""

    weight_ih: Array
    weight_hh: Array
    bias_ih: Array
    bias_hh: Array
    peephole: Array | None = None


def lstm(x: Array, state: tuple[Array, Array], w: Weights) -> tuple[Array, Array]:
    """Compute a step of the LSTM of Hochreiter & Schmidhuber (1997) with the forget gate of Gers et al. (2000).

    i, f, o = σ(W·[x, h] + b)    g = tanh(W_g·[x, h] + b_g)    c' = f⊙c + i⊙g    h' = o⊙tanh(c')

    On the path from c to c' there is one factor, f, and no nonlinearity, so that a gradient survives hundreds of steps.
    """
    h, c = state
    i, f, g, o = _split(_input(x, w) + _hidden(h, w), 4)
    c = sigmoid(f) * c + sigmoid(i) * tanh(g)
    return sigmoid(o) * tanh(c), c


def peephole(x: Array, state: tuple[Array, Array], w: Weights) -> tuple[Array, Array]:
    """Compute a step of the LSTM with peepholes of Gers & Schmidhuber (2000), "Recurrent nets that time and count".

    i = σ(… + p_i⊙c)    f = σ(… + p_f⊙c)    c' = f⊙c + i⊙g    o = σ(… + p_o⊙c')    h' = o⊙tanh(c')

    The input and the forget gate read the old cell state, the output gate the new one.
    """
    h, c = state
    assert w.peephole is not None
    p_i, p_f, p_o = w.peephole
    i, f, g, o = _split(_input(x, w) + _hidden(h, w), 4)
    c_new = sigmoid(f + p_f * c) * c + sigmoid(i + p_i * c) * tanh(g)
    return sigmoid(o + p_o * c_new) * tanh(c_new), c_new


def coupled(x: Array, state: tuple[Array, Array], w: Weights) -> tuple[Array, Array]:
    """Compute a step of the LSTM with coupled gates, i = 1 − f.

    It is the variant CIFG of Greff et al. (2017), "LSTM: a search space odyssey".

    f, o = σ(W·[x, h] + b)    g = tanh(W_g·[x, h] + b_g)    c' = f⊙c + (1 − f)⊙g    h' = o⊙tanh(c')

    There are three matrices instead of four, and |c| stays at most 1.
    """
    h, c = state
    f, g, o = _split(_input(x, w) + _hidden(h, w), 3)
    f = sigmoid(f)
    c = f * c + (1 - f) * tanh(g)
    return sigmoid(o) * tanh(c), c


def gru(x: Array, state: tuple[Array], w: Weights) -> tuple[Array]:
    """Compute a step of the gated recurrent unit of Cho et al. (2014), in the form that torch and cuDNN compute.

    r, z = σ(W·[x, h] + b)    n = tanh(W_n·x + b_n + r⊙(U_n·h + u_n))    h' = (1 − z)⊙n + z⊙h

    The reset gate acts on the product U_n·h + u_n, not on h before it; therefore the two biases of n are separate.
    """
    (h,) = state
    r_x, z_x, n_x = _split(_input(x, w), 3)
    r_h, z_h, n_h = _split(_hidden(h, w), 3)
    z = sigmoid(z_x + z_h)
    n = tanh(n_x + sigmoid(r_x + r_h) * n_h)
    return ((1 - z) * n + z * h,)


def rnn(x: Array, state: tuple[Array], w: Weights) -> tuple[Array]:
    """Compute a step of the simple recurrent network of Elman (1990), without gates: h' = tanh(W·[x, h] + b)."""
    (h,) = state
    return (tanh(_input(x, w) + _hidden(h, w)),)


STEP: MappingProxyType[str, Callable[..., tuple[Array, ...]]] = MappingProxyType(
    {"lstm": lstm, "peephole": peephole, "coupled": coupled, "gru": gru, "rnn": rnn}
)


def _input(x: Array, w: Weights) -> Array:
    """Return the part of the gates that depends on the input."""
    return x @ w.weight_ih.T + w.bias_ih  # (B, G·H)


def _hidden(h: Array, w: Weights) -> Array:
    """Return the part of the gates that depends on the hidden state."""
    return h @ w.weight_hh.T + w.bias_hh  # (B, G·H)


def _split(gates: Array, count: int) -> list[Array]:
    """Split (B, G·H) into `count` blocks (B, H)."""
    size = gates.shape[-1] // count
    return [gates[..., k * size : (k + 1) * size] for k in range(count)]


def tanh(x: Array) -> Array:
    """Return the hyperbolic tangent of a torch tensor or a numpy array."""
    if hasattr(x, "tanh"):
        return x.tanh()
    import numpy

    return numpy.tanh(x)


def sigmoid(x: Array) -> Array:
    """Return σ(x) = 1/(1 + e^−x), as ½ + ½·tanh(x/2), which cannot overflow."""
    return 0.5 + 0.5 * tanh(0.5 * x)
