"""How weights move: AdamW on two groups of parameters, a clipped gradient, a rate that warms up and decays to zero."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from charlstm.config import TrainingConfig

MOMENTS = ("exp_avg", "exp_avg_sq")


class Optimiser:
    """AdamW (Loshchilov & Hutter 2019), whose weight decay acts on matrices only: a bias that shrinks helps nobody.

    By default it has no momentum (β1 = 0): the gradient over its own running size, as RMSprop has it.

    Args:
        network: its parameters are updated in place.
        options: filled in by `recipe.choose`.
    """

    def __init__(self, network: nn.Module, options: TrainingConfig) -> None:
        self._options = options
        self._named = dict(network.named_parameters())
        self._parameters = list(self._named.values())
        matrices = [p for name, p in self._named.items() if p.ndim > 1 and "peephole" not in name]
        others = [p for name, p in self._named.items() if p.ndim == 1 or "peephole" in name]
        self._adamw = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": options.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=options.lr,
            betas=(options.beta1, options.beta2),
            fused=self._parameters[0].device.type in ("cpu", "cuda"),
        )

    def clip(self) -> Tensor:
        """Scale the gradient to a global norm of at most `clip`; returns the norm that it had, a scalar tensor."""
        return nn.utils.clip_grad_norm_(self._parameters, self._options.clip)

    def step(self, share: float, norm: Tensor, factor: float = 1.0) -> float:
        """Update the weights, clear the gradient; returns the rate.

        Args:
            share: of the budget that is spent before this step.
            norm: of the gradient, from `clip`. Where it is not finite, nothing is changed (in the fused kernels of CPU
                and CUDA), so that a caller on a GPU may look at it later instead of waiting for it now.
            factor: on the rate.
        """
        if self._adamw.defaults["fused"]:
            self._adamw.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        rate = factor * self.rate(share)
        for group in self._adamw.param_groups:
            group["lr"] = rate
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        return rate

    def rate(self, share: float) -> float:
        """The learning rate: linear from near zero over `warmup`, then linear down to zero at the budget's end."""
        warmup = self._options.warmup
        if share < warmup:
            return self._options.lr * (0.02 + 0.98 * share / warmup)
        return self._options.lr * (1 - share) / (1 - warmup) if warmup < 1 else self._options.lr

    def tensors(self) -> dict[str, Tensor]:
        """Every parameter's moments as 'optim/exp_avg/<parameter>', for a checkpoint; none before the first step."""
        return {
            f"optim/{moment}/{name}": self._adamw.state[parameter][moment]
            for name, parameter in self._named.items()
            if parameter in self._adamw.state
            for moment in MOMENTS
        }

    def load(self, tensors: dict[str, Tensor], step: int) -> None:
        """Take up the moments that `tensors` gave after `step` steps.

        Raises:
            KeyError: one that is missing.
            ValueError: one of another shape or type, in which the fused kernels would read and write beyond its end;
                or a square that is negative.
        """
        self._adamw.state.clear()
        if step == 0:
            return
        for name, parameter in self._named.items():
            state: dict[str, Tensor] = {}
            for moment in MOMENTS:
                found = tensors[f"optim/{moment}/{name}"]
                if found.shape != parameter.shape or found.dtype != parameter.dtype:
                    raise ValueError(f"{moment}/{name} is {found.dtype} {tuple(found.shape)}, not as its parameter")
                if moment == "exp_avg_sq" and bool((found < 0).any()):
                    raise ValueError(f"{moment}/{name} holds negative squares")
                state[moment] = found.to(parameter.device).clone()
            on = parameter.device if parameter.device.type == "cuda" else torch.device("cpu")
            self._adamw.state[parameter] = {"step": torch.tensor(float(step), device=on), **state}
