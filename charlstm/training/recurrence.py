"""Layers over time, for training. One choice of path, in one place: `choose_path`.

| path | what runs | where |
|---|---|---|
| reference | `cells`, step by step, under autograd | every cell and device; the oracle of the others |
| plain | `kernels.plain`: torch operations, the gradient written out | every cell and device |
| native | `kernels.training`: fused loops in C | every cell, on a CPU, where a compiler was found at install |
| vendor | torch's own layer: cuDNN on a GPU, oneDNN on a CPU | lstm, gru, rnn without a boundary |

All of them compute the same equations on the same parameters; the tests hold each to the reference in outputs, states
and gradients. In the plain and native paths the first layer's input product is a table with a row a symbol, embedding ·
weight_ih.T, looked up instead of multiplied B·T times, wherever the vocabulary is smaller than the window.

Letters: B batch, T time, V vocabulary, E embedding, H hidden, L layers, G gates, S states.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from charlstm import cells
from charlstm.config import ModelConfig
from charlstm.training import scan_native, scan_torch

Path = Literal["reference", "plain", "native", "vendor"]


def choose_path(cell: str, device: str, has_boundary: bool = False) -> Path:
    """The fastest path for this cell on this kind of device; a vendor's layer cannot begin afresh within a window."""
    if device == "cpu" and scan_native.NATIVE is not None:
        return "native"
    return "vendor" if cell in ("lstm", "gru", "rnn") and not has_boundary else "plain"


class Recurrence(nn.Module):
    """L layers of one cell; parameters named and laid out as in `torch.nn.LSTM`, so that they interchange.

    Args:
        config: cell and sizes.
        path: None takes `choose_path` for the device of the input.
    """

    def __init__(self, config: ModelConfig, path: Path | None = None) -> None:
        super().__init__()
        self.config = config
        self._path = path
        for name, shape in config.shapes().items():
            if name.startswith("recurrence."):
                self.register_parameter(name.removeprefix("recurrence."), nn.Parameter(torch.zeros(shape)))

    @property
    def path(self) -> Path:
        """The path that computes, on the device where the parameters are."""
        device: str = self.weight_hh_l0.device.type  # type: ignore[assignment]
        return self._path or choose_path(self.config.cell, device, self.config.boundary is not None)

    def weights(self, layer: int) -> cells.Weights:
        """One layer's parameters."""
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "peephole")
        return cells.Weights(*(getattr(self, f"{name}_l{layer}", None) for name in names))

    def forward(
        self,
        embedding: Tensor,
        ids: Tensor,
        state: Tensor,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Outputs (T, B, H) of the last layer and the state (L, S, B, H) after the last step.

        Args:
            embedding: (V, E), a row a symbol.
            ids: (T, B), int64.
            state: (L, S, B, H).
            dropout, generator: see `model.Network.forward`.
        """
        path, cell = self.path, self.config.cell
        ids = ids.contiguous()
        fresh = self._fresh(ids)
        x: Tensor | None = None  # the first layer's input is embedding[ids]
        finals = []
        for layer in range(self.config.layers):
            weights = self.weights(layer)
            if path in ("plain", "native"):
                x, final = _written_out(path, cell, x, embedding, ids, state[layer], weights, fresh)
            elif path == "reference":
                x, final = _reference(cell, embedding[ids] if x is None else x, state[layer], weights, fresh)
            else:
                assert fresh is None, "a vendor's layer has no boundary"
                x, final = _vendor(cell, embedding[ids] if x is None else x, state[layer], weights)
            finals.append(final)
            x = _drop(path, x, dropout, generator)
        assert x is not None
        return x, torch.stack(finals)

    def _fresh(self, ids: Tensor) -> Tensor | None:
        """Which steps (T, B) begin with the zero state, bool; None where none does."""
        if self.config.boundary is None:
            return None
        fresh = ids == self.config.boundary
        return fresh if fresh.device.type != "cpu" or fresh.any() else None  # to ask a GPU would be to wait for it


def _reference(
    cell: str, x: Tensor, state: Tensor, weights: cells.Weights, fresh: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One layer by its equations. x (T, B, in), state (S, B, H), fresh (T, B) or None → (T, B, H), (S, B, H)."""
    step = cells.STEP[cell]
    current = tuple(state)
    outputs = []
    for t, x_t in enumerate(x):
        if fresh is not None:
            current = tuple(part.masked_fill(fresh[t][:, None], 0) for part in current)
        current = step(x_t, current, weights)
        outputs.append(current[0])
    return torch.stack(outputs), torch.stack(current)


def _vendor(cell: str, x: Tensor, state: Tensor, weights: cells.Weights) -> tuple[Tensor, Tensor]:
    """One layer by torch's own implementation; signature of `_reference`, but that no step begins afresh."""
    flat = list(weights[:4])
    if cell == "lstm":
        outputs, h, c = torch.lstm(x, (state[:1], state[1:]), flat, True, 1, 0.0, True, False, False)
        return outputs, torch.cat((h, c))
    run = torch.gru if cell == "gru" else torch.rnn_tanh
    outputs, h = run(x, state, flat, True, 1, 0.0, True, False, False)
    return outputs, h


def _written_out(
    path: str,
    cell: str,
    x: Tensor | None,
    embedding: Tensor,
    ids: Tensor,
    state: Tensor,
    weights: cells.Weights,
    fresh: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """One layer by a path whose gradient is written out; x None stands for embedding[ids]."""
    index: Tensor | None = None
    if x is not None:
        source = product(path, x.flatten(0, 1), weights.weight_ih)
    elif len(embedding) <= ids.numel():
        source, index = product(path, embedding, weights.weight_ih), ids
    else:
        source = product(path, embedding[ids.flatten()], weights.weight_ih)
    if cell == "gru":  # its n block keeps the two biases apart
        gates = 2 * state.shape[-1]
        both = weights.bias_ih[:gates] + weights.bias_hh[:gates]
        bias = torch.cat((both, weights.bias_hh[gates:], weights.bias_ih[gates:]))
    else:
        bias = weights.bias_ih + weights.bias_hh
    result: tuple[Tensor, Tensor] = _Scan.apply(  # type: ignore[no-untyped-call]
        path, cell, ids.shape, source, index, state, weights.weight_hh, bias, weights.peephole, fresh
    )
    return result


def product(path: str, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (N, K) · weight (M, K).T + bias (M,) by the path's products: what a Linear layer computes."""
    if path != "native":
        return functional.linear(x, weight, bias)
    result: Tensor = _Product.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return result


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        assert scan_native.NATIVE is not None
        ctx.save_for_backward(x, weight)
        out = None if bias is None else bias.repeat(len(x), 1)
        return scan_native.NATIVE.product(x, weight.t(), out, add=bias is not None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
        assert scan_native.NATIVE is not None
        x, weight = ctx.saved_tensors
        d_x = scan_native.NATIVE.product(d_y, weight) if ctx.needs_input_grad[0] else None
        d_weight = scan_native.NATIVE.product(d_y.t(), x) if ctx.needs_input_grad[1] else None
        return d_x, d_weight, d_y.sum(0) if ctx.needs_input_grad[2] else None


class _Scan(torch.autograd.Function):
    """A layer over T steps, from the input's part of its gates on. Shapes in `kernels.plain.forward`."""

    @staticmethod
    def forward(
        ctx: Any,
        path: str,
        cell: str,
        shape: tuple[int, int],
        source: Tensor,
        index: Tensor | None,
        state: Tensor,
        weight: Tensor,
        bias: Tensor,
        peephole: Tensor | None,
        fresh: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.path, ctx.cell, ctx.index, ctx.rows = path, cell, index, len(source)
        if path == "native":
            given = (cell, shape, source, index, state, weight, bias, peephole, fresh)
            outputs, last, ctx.saved = scan_native.forward(*given)
        else:
            x = (source if index is None else source[index]).view(*shape, -1)
            outputs, last, ctx.saved = scan_torch.forward(cell, x, state, weight, bias, peephole, fresh)
        return outputs, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_output: Tensor, d_state: Tensor) -> tuple[Tensor | None, ...]:
        saved, hidden = ctx.saved, d_output.shape[-1]
        if saved is None:
            raise RuntimeError("a layer goes backward once: its gates were overwritten by their gradients")
        if d_output.dtype == torch.float32:  # float64 is the type of checks, which go backward more than once
            ctx.saved = None
        if ctx.path == "native":
            gradients = scan_native.backward(ctx.cell, saved, ctx.index, ctx.rows, d_output, d_state)
            multiply = scan_native.NATIVE.product  # type: ignore[union-attr]
        else:
            gradients = scan_torch.backward(ctx.cell, saved, d_output, d_state)
            multiply = torch.mm
        d_weight = multiply(gradients.gates.flatten(0, 1).t(), saved.h.view(-1, hidden))
        d_source = gradients.source
        if ctx.path == "plain":
            d_source = d_source.flatten(0, 1)
            if ctx.index is not None:
                d_source = d_source.new_zeros(ctx.rows, d_source.shape[1]).index_add_(0, ctx.index.flatten(), d_source)
        return None, None, None, d_source, None, gradients.state, d_weight, gradients.bias, gradients.peephole, None


def _drop(path: str, x: Tensor, share: float, generator: torch.Generator | None) -> Tensor:
    """Dropout (Srivastava et al. 2014), repeatable from its generator."""
    if share == 0:
        return x
    if path == "native":
        first, second = torch.randint(2**32, (2,), generator=generator).tolist()
        dropped: Tensor = _Dropout.apply(x, share, (first, second))  # type: ignore[no-untyped-call]
        return dropped
    keep = torch.empty_like(x).bernoulli_(1 - share, generator=generator)
    return x * keep.div_(1 - share)


class _Dropout(torch.autograd.Function):
    """The mask is computed twice and never stored."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: float, keys: tuple[int, int]) -> Tensor:
        assert scan_native.NATIVE is not None
        ctx.share, ctx.keys = share, keys
        return scan_native.NATIVE.drop(x, share, keys)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
        assert scan_native.NATIVE is not None
        return scan_native.NATIVE.drop(d_y, ctx.share, ctx.keys), None, None
