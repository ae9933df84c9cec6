"""Update the weights: AdamW on two groups of parameters, gradient clipping, and a schedule of the learning rate.

With the gradient g, the rate η and the weight decay λ, a step is (Loshchilov & Hutter 2019, "Decoupled Weight Decay
Regularization"; m̂ and v̂ are the moments with their bias corrected):

    m ← β₁·m + (1 − β₁)·g        v ← β₂·v + (1 − β₂)·g²        θ ← θ − η·λ·θ − η·m̂ / (√v̂ + ε)

λ is 0 for biases and peepholes. By default β₁ is 0, so that g is divided by its own running size, as in RMSprop.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from charlstm.config import TrainingConfig

MOMENTS = ("exp_avg", "exp_avg_sq")


class Optimizer:
    """AdamW with weight decay on matrices only; decaying a bias does not regularise.

    The moments are kept here and passed to torch's function: making a `torch.optim.AdamW` imports all of torch's
    compiler, which takes longer than importing torch.

    Args:
        network: its parameters are updated in place.
        options: rate, schedule, decay and clipping, as `defaults.choose` returns them.

    Attributes:
        weight_decay: λ of the matrices; may be changed between steps.
    """

    def __init__(self, network: nn.Module, options: TrainingConfig) -> None:
        self._options = options
        self.weight_decay = options.weight_decay
        self._named = dict(network.named_parameters())
        self._parameters = list(self._named.values())
        self._fused = self._parameters[0].device.type in ("cpu", "cuda")
        matrices = {name: p.ndim > 1 and "peephole" not in name for name, p in self._named.items()}
        self._matrices = [name for name, is_matrix in matrices.items() if is_matrix]
        self._others = [name for name, is_matrix in matrices.items() if not is_matrix]
        self._moments: dict[str, dict[str, Tensor]] = {}  # by parameter; empty before the first step
        self._steps: dict[str, Tensor] = {}  # steps made, by parameter; float32, as torch requires

    def clip(self) -> Tensor:
        """Scale the gradient to a global norm of at most `clip`.

        Returns:
            The norm before scaling, a scalar tensor.
        """
        return nn.utils.clip_grad_norm_(self._parameters, self._options.clip)

    @torch.no_grad()
    def step(self, share: float, norm: Tensor, factor: float = 1.0) -> float:
        """Update the weights and clear the gradients.

        Args:
            share: the share of the budget that is spent before this step, 0 to 1.
            norm: the norm of the gradient, from `clip`. If it is NaN or infinite, the fused kernels of CPU and CUDA
                change nothing; a caller on a GPU can check it later and need not wait for it now.
            factor: a factor on the rate.

        Returns:
            The learning rate of this step.
        """
        rate = factor * self.rate(share)
        if not self._moments:
            self._begin(0)
        for names, weight_decay in ((self._matrices, self.weight_decay), (self._others, 0.0)):
            adamw(
                [self._named[name] for name in names],
                [self._named[name].grad for name in names],  # type: ignore[misc]
                [self._moments[name]["exp_avg"] for name in names],
                [self._moments[name]["exp_avg_sq"] for name in names],
                [],
                [self._steps[name] for name in names],
                fused=self._fused,
                found_inf=(~norm.isfinite()).float() if self._fused else None,
                amsgrad=False,
                beta1=self._options.beta1,
                beta2=self._options.beta2,
                lr=rate,
                weight_decay=weight_decay,
                eps=1e-8,
                maximize=False,
            )
        for parameter in self._parameters:
            parameter.grad = None
        return rate

    def rate(self, share: float) -> float:
        """Return the learning rate: lr · (0.02 + 0.98·s/w) up to s = w, then lr · (1 − ((s − w) / (1 − w))²).

        Args:
            share: s, the share of the budget that is spent; w is the option `warmup`.
        """
        warmup = self._options.warmup
        if share < warmup:
            return self._options.lr * (0.02 + 0.98 * share / warmup)
        return self._options.lr * (1 - ((share - warmup) / (1 - warmup)) ** 2) if warmup < 1 else self._options.lr

    def tensors(self) -> dict[str, Tensor]:
        """Return the moments of every parameter for a checkpoint, named 'optim/exp_avg/<parameter>'.

        Returns:
            Name → moment, not copied; empty before the first step.
        """
        return {
            f"optim/{moment}/{name}": tensor
            for name, moments in self._moments.items()
            for moment, tensor in moments.items()
        }

    def load(self, tensors: dict[str, Tensor], step: int) -> None:
        """Restore the moments that `tensors` returned.

        Args:
            tensors: the moments by name.
            step: the number of steps made when they were saved.

        Raises:
            KeyError: a moment is missing.
            ValueError: a moment has another shape or type than its parameter, so that the fused kernels would access
                memory beyond its end; or a mean of squares is negative.
        """
        self._moments.clear()
        if step == 0:
            return
        self._begin(step)
        for name, moments in self._moments.items():
            for moment, ours in moments.items():
                found = tensors[f"optim/{moment}/{name}"]
                if found.shape != ours.shape or found.dtype != ours.dtype:
                    raise ValueError(f"{moment}/{name} is {found.dtype} {tuple(found.shape)}, unlike its parameter")
                if moment == "exp_avg_sq" and bool((found < 0).any()):
                    raise ValueError(f"{moment}/{name} contains negative squares")
                ours.copy_(found)

    def _begin(self, step: int) -> None:
        """Make moments of zero for every parameter."""
        for name, parameter in self._named.items():
            self._moments[name] = {moment: torch.zeros_like(parameter) for moment in MOMENTS}
            on = parameter.device if parameter.device.type == "cuda" else "cpu"
            self._steps[name] = torch.tensor(float(step), device=on)
