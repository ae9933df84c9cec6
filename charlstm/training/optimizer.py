"""How weights move: AdamW on two groups of parameters, a clipped gradient, a rate that warms up and falls to zero."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from charlstm.config import TrainingConfig

MOMENTS = ("exp_avg", "exp_avg_sq")


class Optimizer:
    """AdamW (Loshchilov & Hutter 2019), whose weight decay acts on matrices only: a bias that shrinks helps nobody.

    By default it has no momentum (β1 = 0): the gradient over its own running size, as RMSprop has it.

    It keeps the moments itself and calls torch's function on them: to make a `torch.optim.AdamW` imports all of
    torch's compiler, which takes longer than torch.

    Args:
        network: its parameters are updated in place.
        options: filled in by `recipe.choose`.

    Attributes:
        weight_decay: of the matrices; may be changed between steps.
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
        self._moments: dict[str, dict[str, Tensor]] = {}  # of each parameter; none before the first step
        self._steps: dict[str, Tensor] = {}  # how many each has behind it, in float32, as the kernels want it

    def clip(self) -> Tensor:
        """Scale the gradient to a global norm of at most `clip`; returns the norm that it had, a scalar tensor."""
        return nn.utils.clip_grad_norm_(self._parameters, self._options.clip)

    @torch.no_grad()
    def step(self, share: float, norm: Tensor, factor: float = 1.0) -> float:
        """Update the weights, clear the gradient; returns the rate.

        Args:
            share: of the budget that is spent before this step.
            norm: of the gradient, from `clip`. Where it is not finite, nothing is changed (in the fused kernels of CPU
                and CUDA), so that a caller on a GPU may look at it later instead of waiting for it now.
            factor: on the rate.
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
        """The learning rate: linear from near zero over `warmup`, then with the square of the time down to zero."""
        warmup = self._options.warmup
        if share < warmup:
            return self._options.lr * (0.02 + 0.98 * share / warmup)
        return self._options.lr * (1 - ((share - warmup) / (1 - warmup)) ** 2) if warmup < 1 else self._options.lr

    def tensors(self) -> dict[str, Tensor]:
        """Every parameter's moments as 'optim/exp_avg/<parameter>', for a checkpoint; none before the first step."""
        return {
            f"optim/{moment}/{name}": tensor
            for name, moments in self._moments.items()
            for moment, tensor in moments.items()
        }

    def load(self, tensors: dict[str, Tensor], step: int) -> None:
        """Take up the moments that `tensors` gave after `step` steps.

        Raises:
            KeyError: one that is missing.
            ValueError: one of another shape or type, in which the fused kernels would read and write beyond its end;
                or a square that is negative.
        """
        self._moments.clear()
        if step == 0:
            return
        self._begin(step)
        for name, moments in self._moments.items():
            for moment, ours in moments.items():
                found = tensors[f"optim/{moment}/{name}"]
                if found.shape != ours.shape or found.dtype != ours.dtype:
                    raise ValueError(f"{moment}/{name} is {found.dtype} {tuple(found.shape)}, not as its parameter")
                if moment == "exp_avg_sq" and bool((found < 0).any()):
                    raise ValueError(f"{moment}/{name} holds negative squares")
                ours.copy_(found)

    def _begin(self, step: int) -> None:
        for name, parameter in self._named.items():
            self._moments[name] = {moment: torch.zeros_like(parameter) for moment in MOMENTS}
            on = parameter.device if parameter.device.type == "cuda" else "cpu"
            self._steps[name] = torch.tensor(float(step), device=on)
