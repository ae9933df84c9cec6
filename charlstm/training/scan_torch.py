"""A layer over time in plain torch operations, with its gradient written out: any device, any float type, no compiler.

On a CUDA device the squashing of a step, a dozen small operations, is one kernel each way, that torch.compile makes.

Against autograd through `cells` it saves the graph of a dozen nodes a step, and the gradient of the weights becomes one
product over all steps. The names are those of recurrence.c, which does the same in fused loops.

Letters: B batch, T time, V vocabulary, H hidden, G gates, S states.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Saved(NamedTuple):
    """What the backward pass needs of the forward pass."""

    h: Tensor  # (T, B, H), that each step began with
    c: Tensor | None  # (T, B, H) likewise, where the cell has one
    c_after: Tensor | None  # (T, B, H), that each step ended with
    gates: list[Tensor]  # T times (B, G·H), squashed
    candidate: list[Tensor]  # T times (B, H): the GRU's weight_hn · h + b_hn
    weight: Tensor
    peephole: Tensor | None
    fresh: Tensor | None  # (T, B), bool


class Gradients(NamedTuple):
    """Of the loss, with respect to what went in."""

    source: Tensor  # (T, B, G·H): of the input's part of the gates
    gates: Tensor  # (T, B, G·H): of the hidden part; the same tensor but for the GRU
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
) -> tuple[Tensor, Tensor, Saved]:
    """Outputs (T, B, H), last state (S, B, H), and what `backward` needs.

    Args:
        x: (T, B, G·H), the input's part of the gates.
        state: (S, B, H).
        weight: (G·H, H), recurrent.
        bias: (G·H,), or for the GRU (4·H,): the last H belong to the input's part of n.
        peephole: (3, H) or None.
        fresh: (T, B), bool: these steps begin with the zero state; None: none does.
    """
    size = weight.shape[0]
    h, c = state[0], state[1] if len(state) > 1 else None
    hs, cs, gates, candidates = _Steps(fresh is not None), _Steps(fresh is not None), [], []
    transposed = weight.t().contiguous()
    squash = None if cell in ("gru", "rnn") else _fused(_SQUASH[cell], x.is_cuda)
    for t, x_t in enumerate(x):
        if fresh is not None:
            h, c = _zeroed(fresh[t], h), _zeroed(fresh[t], c)
        hs.begin(h)
        cs.begin(c)
        z = torch.addmm(bias[:size], h, transposed)
        if cell == "gru":
            y, h, q = _squash_gru(x_t, z, h, bias[size:])
            candidates.append(q)
        elif cell == "rnn":
            y = h = torch.tanh(x_t + z)
        else:
            assert squash is not None
            y, h, c = squash(x_t + z, c, peephole)
        hs.end(h)
        cs.end(c)
        gates.append(y)
    last = torch.stack((h,) if c is None else (h, c))
    before, outputs = hs.stacked()
    c_before, c_after = (None, None) if c is None else cs.stacked()
    return outputs, last, Saved(before, c_before, c_after, gates, candidates, weight, peephole, fresh)


def backward(cell: str, saved: Saved, d_output: Tensor, d_state: Tensor) -> Gradients:
    """From the gradients of the outputs (T, B, H) and of the last state (S, B, H)."""
    h, c, c_after, gates, weight, p = saved.h, saved.c, saved.c_after, saved.gates, saved.weight, saved.peephole
    d_h, d_c = d_state[0], d_state[1] if len(d_state) > 1 else None
    unsquash = None if cell in ("gru", "rnn") else _fused(_UNSQUASH[cell], d_output.is_cuda)
    hidden_part: list[Tensor] = []
    input_part: list[Tensor] = []
    for t in reversed(range(len(gates))):
        d_h = d_output[t] + d_h
        if cell == "gru":
            d_x, d_z, through = _unsquash_gru(gates[t], saved.candidate[t], h[t], d_h)
            input_part.append(d_x)
            d_h = torch.addmm(through, d_z, weight)
        else:
            if cell == "rnn":
                d_z = d_h * (1 - gates[t] ** 2)
            else:
                assert unsquash is not None
                assert c is not None
                assert c_after is not None
                d_z, d_c = unsquash(gates[t], c[t], c_after[t], d_h, d_c, p)
            d_h = torch.mm(d_z, weight)
        hidden_part.append(d_z)
        if saved.fresh is not None:
            d_h, d_c = _zeroed(saved.fresh[t], d_h), _zeroed(saved.fresh[t], d_c)
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
    """A state as each step began with it and ended with it.

    Args:
        apart: some steps do not begin with what the one before has left; else both are views of one tensor.
    """

    def __init__(self, apart: bool) -> None:
        self._apart = apart
        self._begins: list[Any] = []
        self._ends: list[Any] = []

    def begin(self, state: Tensor | None) -> None:
        if self._apart or not self._begins:
            self._begins.append(state)

    def end(self, state: Tensor | None) -> None:
        self._ends.append(state)

    def stacked(self) -> tuple[Tensor, Tensor]:
        """Both (T, B, H)."""
        if self._apart:
            return torch.stack(self._begins), torch.stack(self._ends)
        whole = torch.stack([*self._begins, *self._ends])
        return whole[:-1], whole[1:]


def _zeroed(fresh: Tensor, state: Any) -> Any:
    """h, c or a gradient of either (B, H), or None: with zeros in the rows of `fresh` (B,)."""
    return None if state is None else state.masked_fill(fresh[:, None], 0)


def _squash_lstm(z: Tensor, c: Tensor, p: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    i, f, g, o = z.chunk(4, -1)
    if p is not None:
        i, f = i + p[0] * c, f + p[1] * c
    i, f, g = torch.sigmoid(i), torch.sigmoid(f), torch.tanh(g)
    c = f * c + i * g
    o = torch.sigmoid(o if p is None else o + p[2] * c)
    return torch.cat((i, f, g, o), -1), o * torch.tanh(c), c


def _unsquash_lstm(
    y: Tensor, c_before: Tensor, c: Tensor, d_h: Tensor, d_c: Tensor, p: Tensor | None
) -> tuple[Tensor, Tensor]:
    i, f, g, o = y.chunk(4, -1)
    squashed = torch.tanh(c)
    d_o = d_h * squashed * o * (1 - o)
    d_c = d_c + d_h * o * (1 - squashed**2)
    if p is not None:
        d_c = d_c + d_o * p[2]
    d_i, d_f, d_g = d_c * g * i * (1 - i), d_c * c_before * f * (1 - f), d_c * i * (1 - g**2)
    d_before = d_c * f if p is None else d_c * f + d_i * p[0] + d_f * p[1]
    return torch.cat((d_i, d_f, d_g, d_o), -1), d_before


def _squash_coupled(z: Tensor, c: Tensor, _: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    f, g, o = z.chunk(3, -1)
    f, g, o = torch.sigmoid(f), torch.tanh(g), torch.sigmoid(o)
    c = f * c + (1 - f) * g
    return torch.cat((f, g, o), -1), o * torch.tanh(c), c


def _unsquash_coupled(
    y: Tensor, c_before: Tensor, c: Tensor, d_h: Tensor, d_c: Tensor, _: Tensor | None
) -> tuple[Tensor, Tensor]:
    f, g, o = y.chunk(3, -1)
    squashed = torch.tanh(c)
    d_o = d_h * squashed * o * (1 - o)
    d_c = d_c + d_h * o * (1 - squashed**2)
    d_f, d_g = d_c * (c_before - g) * f * (1 - f), d_c * (1 - f) * (1 - g**2)
    return torch.cat((d_f, d_g, d_o), -1), d_c * f


def _squash_gru(x: Tensor, z: Tensor, h: Tensor, b_n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r_x, u_x, n_x = x.chunk(3, -1)
    r_h, u_h, q = z.chunk(3, -1)
    r, u = torch.sigmoid(r_x + r_h), torch.sigmoid(u_x + u_h)
    n = torch.tanh(n_x + b_n + r * q)
    return torch.cat((r, u, n), -1), (1 - u) * n + u * h, q


def _unsquash_gru(y: Tensor, q: Tensor, h: Tensor, d_h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r, u, n = y.chunk(3, -1)
    d_n = d_h * (1 - u) * (1 - n**2)
    d_u = d_h * (h - n) * u * (1 - u)
    d_r = d_n * q * r * (1 - r)
    return torch.cat((d_r, d_u, d_n), -1), torch.cat((d_r, d_u, d_n * r), -1), d_h * u


def _fused(function: Callable[..., Any], on_cuda: bool) -> Callable[..., Any]:
    """The function as one kernel, where there is a GPU and what compiles for it."""
    if on_cuda and importlib.util.find_spec("triton") is not None:
        return _compiled(function)
    return function


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    compiled: Callable[..., Any] = torch.compile(function, fullgraph=True, dynamic=False)
    return compiled


_SQUASH = {"lstm": _squash_lstm, "peephole": _squash_lstm, "coupled": _squash_coupled}
_UNSQUASH = {"lstm": _unsquash_lstm, "peephole": _unsquash_lstm, "coupled": _unsquash_coupled}
