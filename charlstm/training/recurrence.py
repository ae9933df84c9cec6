"""The recurrent layers over time, for training.

`choose_path` selects one of five implementations, called paths:

| path | what computes a layer | available for |
|---|---|---|
| reference | `cells`, step by step, with autograd | every cell and device; the oracle of the other paths |
| plain | `scan_torch`: torch operations with an explicit gradient | every cell and device |
| native | `scan_native`: fused loops in C | every cell, on a CPU, if the C library was built |
| native-bf16 | `scan_native`, with the operands of every product rounded to bf16 | as native |
| vendor | torch's own layer: cuDNN on a GPU, oneDNN on a CPU | lstm, gru and rnn without a boundary |

All paths compute the same equations on the same parameters. The tests compare each path with the reference in outputs,
states and gradients, and native-bf16 with the equations on rounded operands. In native-bf16 the parameters, sums,
gates, states and gradients are float32, as elsewhere; what is rounded is what the processor multiplies.

The plain and native paths receive the input part of the gates, x·weight_ihᵀ. For the first layer, x = embedding[ids]
has at most V distinct rows: if V ≤ B·T, the product is computed once per symbol, and the ids select its rows.

Letters: B batch, T time, V vocabulary, E embedding, H hidden, L layers, G gates, S states, N = T·B.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from charlstm import cells
from charlstm.config import ModelConfig
from charlstm.training import scan_native, scan_torch
from charlstm.training.streams import Part

Path = Literal["reference", "plain", "native", "native-bf16", "vendor"]


def choose_path(cell: str, device: str, has_boundary: bool = False) -> Path:
    """Return the fastest available path in float32.

    Args:
        cell: the name of the cell.
        device: the type of the device, such as "cuda".
        has_boundary: whether the state is reset within a window, which the vendor path does not support.
    """
    if device == "cpu" and scan_native.NATIVE is not None:
        return "native"
    return "vendor" if cell in ("lstm", "gru", "rnn") and not has_boundary else "plain"


class Recurrence(nn.Module):
    """L layers of one cell, with the parameter names and layouts of `torch.nn.LSTM`, so that weights interchange.

    Args:
        config: the cell and the sizes.
        path: the path; None selects it by `choose_path` for the device of the parameters.

    Attributes:
        requested_path: the argument `path`; it may be changed between two calls. `path` is the path in use.
    """

    def __init__(self, config: ModelConfig, path: Path | None = None) -> None:
        super().__init__()
        self.config = config
        self.requested_path = path
        for name, shape in config.shapes().items():
            if name.startswith("recurrence."):
                self.register_parameter(name.removeprefix("recurrence."), nn.Parameter(torch.zeros(shape)))

    @property
    def path(self) -> Path:
        """The selected path, for the device of the parameters."""
        device: str = self.weight_hh_l0.device.type  # type: ignore[assignment]
        return self.requested_path or choose_path(self.config.cell, device, self.config.boundary is not None)

    def weights(self, layer: int) -> cells.Weights:
        """Return the parameters of one layer."""
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "peephole")
        return cells.Weights(*(getattr(self, f"{name}_l{layer}", None) for name in names))

    def forward(
        self,
        embedding: Tensor,
        ids: Tensor,
        state: Tensor,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
        part: Part | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Compute all layers over T steps.

        Args:
            embedding: (V, E), one row per symbol.
            ids: (T, B), int64.
            state: (L, S, B, H).
            dropout: the share of the outputs of each layer that is dropped; see `network.Network.forward`.
            generator: the random generator of dropout.
            part: see `network.Network.forward`.

        Returns:
            The outputs (T, B, H) of the last layer, and the state (L, S, B, H) after the last step.
        """
        path, cell = self.path, self.config.cell
        ids = ids.contiguous()
        fresh = self._fresh(ids)
        x: Tensor | None = None
        finals = []
        for index in range(self.config.layers):
            layer, weights = _LayerInput(x, embedding, ids, state[index], fresh), self.weights(index)
            if path in ("plain", "native", "native-bf16"):
                x, final = _explicit_gradient(path, cell, layer, weights)
            elif path == "reference":
                x, final = _reference(cell, layer, weights)
            else:
                x, final = _vendor(cell, layer, weights)
            finals.append(final)
            x = _drop(path, x, dropout, generator, part)
        assert x is not None
        return x, torch.stack(finals)

    def _fresh(self, ids: Tensor) -> Tensor | None:
        """Return the steps (T, B), bool, before which the state is set to zero; None if there are no such steps."""
        if self.config.boundary is None:
            return None
        fresh = ids == self.config.boundary
        return fresh if fresh.device.type != "cpu" or fresh.any() else None  # reading from a GPU would wait for it


class _LayerInput(NamedTuple):
    """The input of one layer, apart from its weights."""

    x: Tensor | None  # (T, B, H), the outputs of the layer below; None: embedding[ids]
    embedding: Tensor  # (V, E)
    ids: Tensor  # (T, B), int64
    state: Tensor  # (S, B, H)
    fresh: Tensor | None  # (T, B), bool: the steps before which the state is set to zero

    def embedded(self) -> Tensor:
        """Return x, (T, B, E) for the first layer and (T, B, H) above it."""
        return self.embedding[self.ids] if self.x is None else self.x


def _reference(cell: str, layer: _LayerInput, weights: cells.Weights) -> tuple[Tensor, Tensor]:
    """Compute one layer by the equations of its cell.

    Returns:
        The outputs (T, B, H) and the last state (S, B, H).
    """
    step = cells.STEP[cell]
    current = tuple(layer.state)
    outputs = []
    for t, x_t in enumerate(layer.embedded()):
        if layer.fresh is not None:
            current = tuple(part.masked_fill(layer.fresh[t][:, None], 0) for part in current)
        current = step(x_t, current, weights)
        outputs.append(current[0])
    return torch.stack(outputs), torch.stack(current)


def _vendor(cell: str, layer: _LayerInput, weights: cells.Weights) -> tuple[Tensor, Tensor]:
    """Compute one layer by torch's own implementation, which cannot reset a state; see `_reference` for the result."""
    assert layer.fresh is None, "the vendor path does not support a boundary"
    x, state, flat = layer.embedded(), layer.state, list(weights[:4])
    if cell == "lstm":
        outputs, h, c = torch.lstm(x, (state[:1], state[1:]), flat, True, 1, 0.0, True, False, False)
        return outputs, torch.cat((h, c))
    run = torch.gru if cell == "gru" else torch.rnn_tanh
    outputs, h = run(x, state, flat, True, 1, 0.0, True, False, False)
    return outputs, h


def _explicit_gradient(path: str, cell: str, layer: _LayerInput, weights: cells.Weights) -> tuple[Tensor, Tensor]:
    """Compute one layer by the plain or the native path; see `_reference` for the result."""
    x, embedding, ids = layer.x, layer.embedding, layer.ids
    index: Tensor | None = None
    if x is not None:
        source = product(path, x.flatten(0, 1), weights.weight_ih)
    elif len(embedding) <= ids.numel():
        source, index = product(path, embedding, weights.weight_ih), ids
    else:
        source = product(path, embedding[ids.flatten()], weights.weight_ih)
    if cell == "gru":  # the two biases of its n block are separate
        gates = 2 * layer.state.shape[-1]
        both = weights.bias_ih[:gates] + weights.bias_hh[:gates]
        bias = torch.cat((both, weights.bias_hh[gates:], weights.bias_ih[gates:]))
    else:
        bias = weights.bias_ih + weights.bias_hh
    result: tuple[Tensor, Tensor] = _ScanFunction.apply(  # type: ignore[no-untyped-call]
        path, cell, ids.shape, source, index, layer.state, weights.weight_hh, bias, weights.peephole, layer.fresh
    )
    return result


def product(path: str, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute x (N, K) · weight (M, K)ᵀ + bias (M,), a linear layer, by the matrix product of the path."""
    kernels = _kernels(path)
    if kernels is None:
        return functional.linear(x, weight, bias)
    result: Tensor = _ProductFunction.apply(kernels, x, weight, bias)  # type: ignore[no-untyped-call]
    return result


def _kernels(path: str) -> scan_native.TrainingKernels | None:
    """Return the kernels of a native path, None for another path."""
    found = {"native": scan_native.NATIVE, "native-bf16": scan_native.NATIVE_BF16}.get(path)
    assert found is not None or not path.startswith("native"), "the native library is missing"
    return found


class _ProductFunction(torch.autograd.Function):
    """The product of a linear layer by the native kernels: y = x·weightᵀ + bias."""

    @staticmethod
    def forward(
        ctx: Any, kernels: scan_native.TrainingKernels, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.kernels = kernels
        ctx.save_for_backward(x, weight)
        out = None if bias is None else bias.repeat(len(x), 1)
        return kernels.product(x, weight.t(), out, add=bias is not None)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        d_x = ctx.kernels.product(d_y, weight) if ctx.needs_input_grad[1] else None
        d_weight = ctx.kernels.product(d_y.t(), x) if ctx.needs_input_grad[2] else None
        return None, d_x, d_weight, d_y.sum(0) if ctx.needs_input_grad[3] else None


class _ScanFunction(torch.autograd.Function):
    """One layer over T steps, given the input part of its gates; see `scan_torch.forward` for the shapes."""

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
        kernels = _kernels(path)
        ctx.kernels, ctx.cell, ctx.index, ctx.rows = kernels, cell, index, len(source)
        if kernels is not None:
            given = (kernels, cell, shape, source, index, state, weight, bias, peephole, fresh)
            outputs, last, ctx.cache = scan_native.forward(*given)
        else:
            x = (source if index is None else source[index]).view(*shape, -1)
            outputs, last, ctx.cache = scan_torch.forward(cell, x, state, weight, bias, peephole, fresh)
        return outputs, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_output: Tensor, d_state: Tensor) -> tuple[Tensor | None, ...]:
        cache, hidden = ctx.cache, d_output.shape[-1]
        if cache is None:
            raise RuntimeError("a layer can be differentiated once: the gradients have overwritten its gates")
        if d_output.dtype == torch.float32:  # gradcheck uses float64 and differentiates more than once
            ctx.cache = None
        if ctx.kernels is not None:
            gradients = scan_native.backward(ctx.kernels, ctx.cell, cache, ctx.index, ctx.rows, d_output, d_state)
            multiply = ctx.kernels.product
        else:
            gradients = scan_torch.backward(ctx.cell, cache, d_output, d_state)
            multiply = torch.mm
        d_weight = multiply(gradients.gates.flatten(0, 1).t(), cache.h.view(-1, hidden))
        d_source = gradients.source
        if ctx.kernels is None:
            d_source = d_source.flatten(0, 1)
            if ctx.index is not None:
                d_source = d_source.new_zeros(ctx.rows, d_source.shape[1]).index_add_(0, ctx.index.flatten(), d_source)
        return None, None, None, d_source, None, gradients.state, d_weight, gradients.bias, gradients.peephole, None


def _drop(path: str, x: Tensor, share: float, generator: torch.Generator | None, part: Part | None = None) -> Tensor:
    """Apply dropout (Srivastava et al. 2014): the same state of the generator gives the same mask."""
    if share == 0:
        return x
    if (kernels := _kernels(path)) is not None:
        first, second = torch.randint(2**32, (2,), generator=generator).tolist()
        given = (kernels, x, share, (first, second), part)
        dropped: Tensor = _DropoutFunction.apply(*given)  # type: ignore[no-untyped-call]
        return dropped
    steps, streams, width = x.shape
    keep = x.new_empty(steps, streams if part is None else part.total, width).bernoulli_(1 - share, generator=generator)
    if part is not None:
        keep = keep[:, part.first : part.first + part.count].contiguous()
    return x * keep.div_(1 - share)


class _DropoutFunction(torch.autograd.Function):
    """Dropout by the native kernels, which compute the mask in both passes and do not store it."""

    @staticmethod
    def forward(
        ctx: Any,
        kernels: scan_native.TrainingKernels,
        x: Tensor,
        share: float,
        keys: tuple[int, int],
        part: Part | None,
    ) -> Tensor:
        ctx.kernels, ctx.given = kernels, (share, keys, part)
        return kernels.drop(x, share, keys, part)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
        return None, ctx.kernels.drop(d_y, *ctx.given), None, None, None
