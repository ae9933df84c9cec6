"""Compute a layer over time with torch operations and an explicit gradient: any device, any float type, no C compiler.

Compared with autograd through `cells`, this needs no graph of a dozen nodes for each step, and computes the gradient of
the weights as one product over all steps. On a CUDA device, torch.compile fuses the elementwise operations of a step
into one kernel each way. The names are those of csrc/recurrence.c, which does the same in fused loops.

The equations of the forward pass are in `cells`; each backward function is the derivative of the forward function
before it. A name d_x is the gradient of the loss with respect to x.

Letters: B batch, T time, V vocabulary, H hidden, G gates, S states.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class ForwardCache(NamedTuple):
    """The tensors of the forward pass that the backward pass needs."""

    h: Tensor  # (T, B, H), before each step
    c: Tensor | None  # (T, B, H), before each step; None if the cell has no c
    c_after: Tensor | None  # (T, B, H), after each step
    gates: list[Tensor]  # T tensors (B, G·H), after the nonlinearity
    candidate: list[Tensor]  # T tensors (B, H): the GRU's weight_hn · h + b_hn
    weight: Tensor
    peephole: Tensor | None
    fresh: Tensor | None  # (T, B), bool


class Gradients(NamedTuple):
    """The gradients of the loss with respect to the inputs of a layer."""

    source: Tensor  # (T, B, G·H): with respect to the input part of the gates
    gates: Tensor  # (T, B, G·H): with respect to the hidden part; the same tensor except for the GRU
    state: Tensor  # (S, B, H)
    bias: Tensor
    peephole: Tensor | None


def forward(
    cell: str,
    x: Tensor,
    state: Tensor,
    weight: Tensor,
    bias: Tensor,
    peephole: Tensor | None,
    fresh: Tensor | None = None,
) -> tuple[Tensor, Tensor, ForwardCache]:
    """Compute a layer over T steps.

    Args:
        cell: the name of the cell.
        x: (T, B, G·H), the input part of the gates.
        state: (S, B, H).
        weight: (G·H, H), recurrent.
        bias: (G·H,), or for the GRU (4·H,): the last H belong to the input part of n.
        peephole: (3, H) or None.
        fresh: (T, B), bool: the steps before which the state is set to zero; None if there are no such steps.

    Returns:
        The outputs (T, B, H), the last state (S, B, H), and the tensors that `backward` needs.
    """
    size = weight.shape[0]
    h, c = state[0], state[1] if len(state) > 1 else None
    hs, cs, gates, candidates = _Steps(fresh is not None), _Steps(fresh is not None), [], []
    transposed = weight.t().contiguous()
    gates_of = None if cell in ("gru", "rnn") else _fused(_GATES[cell], x.is_cuda)
    for t, x_t in enumerate(x):
        if fresh is not None:
            h, c = _zeroed(fresh[t], h), _zeroed(fresh[t], c)
        hs.begin(h)
        cs.begin(c)
        z = torch.addmm(bias[:size], h, transposed)
        if cell == "gru":
            y, h, q = _gates_gru(x_t, z, h, bias[size:])
            candidates.append(q)
        elif cell == "rnn":
            y = h = torch.tanh(x_t + z)
        else:
            assert gates_of is not None
            y, h, c = gates_of(x_t + z, c, peephole)
        hs.end(h)
        cs.end(c)
        gates.append(y)
    last = torch.stack((h,) if c is None else (h, c))
    before, outputs = hs.stacked()
    c_before, c_after = (None, None) if c is None else cs.stacked()
    return outputs, last, ForwardCache(before, c_before, c_after, gates, candidates, weight, peephole, fresh)


def backward(cell: str, cache: ForwardCache, d_output: Tensor, d_state: Tensor) -> Gradients:
    """Compute the gradients of a layer by backpropagation through time.

    Args:
        cell: the name of the cell.
        cache: the tensors that `forward` returned.
        d_output: (T, B, H), the gradient of the outputs.
        d_state: (S, B, H), the gradient of the last state.
    """
    h, c, c_after, gates, weight, p = cache.h, cache.c, cache.c_after, cache.gates, cache.weight, cache.peephole
    d_h, d_c = d_state[0], d_state[1] if len(d_state) > 1 else None
    gate_gradients = None if cell in ("gru", "rnn") else _fused(_GATE_GRADIENTS[cell], d_output.is_cuda)
    hidden_part: list[Tensor] = []
    input_part: list[Tensor] = []
    for t in reversed(range(len(gates))):
        d_h = d_output[t] + d_h
        if cell == "gru":
            d_x, d_z, through = _gate_gradients_gru(gates[t], cache.candidate[t], h[t], d_h)
            input_part.append(d_x)
            d_h = torch.addmm(through, d_z, weight)
        else:
            if cell == "rnn":
                d_z = d_h * (1 - gates[t] ** 2)
            else:
                assert gate_gradients is not None
                assert c is not None
                assert c_after is not None
                d_z, d_c = gate_gradients(gates[t], c[t], c_after[t], d_h, d_c, p)
            d_h = torch.mm(d_z, weight)
        hidden_part.append(d_z)
        if cache.fresh is not None:
            d_h, d_c = _zeroed(cache.fresh[t], d_h), _zeroed(cache.fresh[t], d_c)
    d_gates = torch.stack(hidden_part[::-1])
    d_source = torch.stack(input_part[::-1]) if input_part else d_gates
    d_bias = d_gates.sum((0, 1))
    if cell == "gru":
        d_bias = torch.cat((d_bias, d_source[..., -weight.shape[1] :].sum((0, 1))))
    d_p = None
    if cell == "peephole":
        assert c is not None
        assert c_after is not None
        d_i, d_f, _, d_o = d_gates.chunk(4, -1)
        d_p = torch.stack([(d * seen).sum((0, 1)) for d, seen in ((d_i, c), (d_f, c), (d_o, c_after))])
    return Gradients(d_source, d_gates, torch.stack((d_h,) if d_c is None else (d_h, d_c)), d_bias, d_p)


class _Steps:
    """Collect a state before and after each step.

    Args:
        apart: some steps do not begin with the state after the step before; otherwise both are views of one tensor.
    """

    def __init__(self, apart: bool) -> None:
        self._apart = apart
        self._begins: list[Any] = []
        self._ends: list[Any] = []

    def begin(self, state: Tensor | None) -> None:
        """Add the state before a step, (B, H)."""
        if self._apart or not self._begins:
            self._begins.append(state)

    def end(self, state: Tensor | None) -> None:
        """Add the state after a step, (B, H)."""
        self._ends.append(state)

    def stacked(self) -> tuple[Tensor, Tensor]:
        """Return the states before and after each step, both (T, B, H)."""
        if self._apart:
            return torch.stack(self._begins), torch.stack(self._ends)
        whole = torch.stack([*self._begins, *self._ends])
        return whole[:-1], whole[1:]


def _zeroed(fresh: Tensor, state: Any) -> Any:
    """Set the rows of `fresh` (B,) to zero in h, c or a gradient of either (B, H); None stays None."""
    return None if state is None else state.masked_fill(fresh[:, None], 0)


def _gates_lstm(z: Tensor, c: Tensor, p: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    i, f, g, o = z.chunk(4, -1)
    if p is not None:
        i, f = i + p[0] * c, f + p[1] * c
    i, f, g = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g)
    c = f * c + i * g
    o = torch.sigmoid(o if p is None else o + p[2] * c)
    return torch.cat((i, f, g, o), -1), o * torch.tanh(c), c


def _gate_gradients_lstm(
    y: Tensor, c_before: Tensor, c: Tensor, d_h: Tensor, d_c: Tensor, p: Tensor | None
) -> tuple[Tensor, Tensor]:
    i, f, g, o = y.chunk(4, -1)
    tanh_c = torch.tanh(c)
    d_o = d_h * tanh_c * o * (1 - o)
    d_c = d_c + d_h * o * (1 - tanh_c**2)
    if p is not None:
        d_c = d_c + d_o * p[2]
    d_i, d_f, d_g = d_c * g * i * (1 - i), d_c * c_before * f * (1 - f), d_c * i * (1 - g**2)
    d_before = d_c * f if p is None else d_c * f + d_i * p[0] + d_f * p[1]
    return torch.cat((d_i, d_f, d_g, d_o), -1), d_before


def _gates_coupled(z: Tensor, c: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    f, g, o = z.chunk(3, -1)
    f, g, o = torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
    c = f * c + (1 - f) * g
    return torch.cat((f, g, o), -1), o * torch.tanh(c), c


def _gate_gradients_coupled(
    y: Tensor, c_before: Tensor, c: Tensor, d_h: Tensor, d_c: Tensor, _: Tensor | None
) -> tuple[Tensor, Tensor]:
    f, g, o = y.chunk(3, -1)
    tanh_c = torch.tanh(c)
    d_o = d_h * tanh_c * o * (1 - o)
    d_c = d_c + d_h * o * (1 - tanh_c**2)
    d_f, d_g = d_c * (c_before - g) * f * (1 - f), d_c * (1 - f) * (1 - g**2)
    return torch.cat((d_f, d_g, d_o), -1), d_c * f


def _gates_gru(x: Tensor, z: Tensor, h: Tensor, b_n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r_x, u_x, n_x = x.chunk(3, -1)
    r_h, u_h, q = z.chunk(3, -1)
    r, u = torch.sigmoid(r_x + r_h), torch.sigmoid(u_x + u_h)
    n = torch.tanh(n_x + b_n + r * q)
    return torch.cat((r, u, n), -1), (1 - u) * n + u * h, q


def _gate_gradients_gru(y: Tensor, q: Tensor, h: Tensor, d_h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r, u, n = y.chunk(3, -1)
    d_n = d_h * (1 - u) * (1 - n**2)
    d_u = d_h * (h - n) * u * (1 - u)
    d_r = d_n * q * r * (1 - r)
    return torch.cat((d_r, d_u, d_n), -1), torch.cat((d_r, d_u, d_n * r), -1), d_h * u


def _fused(function: Callable[..., Any], on_cuda: bool) -> Callable[..., Any]:
    """Return the function compiled into one kernel on CUDA, if triton is installed; otherwise the function itself."""
    if on_cuda and importlib.util.find_spec("triton") is not None:
        return _compiled(function)
    return function


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(function, fullgraph=True, dynamic=False)
    return compiled


_GATES = {"lstm": _gates_lstm, "peephole": _gates_lstm, "coupled": _gates_coupled}
_GATE_GRADIENTS = {"lstm": _gate_gradients_lstm, "peephole": _gate_gradients_lstm, "coupled": _gate_gradients_coupled}
