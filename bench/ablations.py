"""What the recipe was tried without, and what was tried besides: a table for `bench/quality.py --ablate`.

A row is a name, options of a training, and a change to the library for what is no option: a context manager, while
which is open the trainings of this process have it. They reach into what is private, as an experiment may.

Letters as in charlstm: B batch, T time, V vocabulary, H hidden.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from charlstm import cells, training
from charlstm.cells import Weights, sigmoid
from charlstm.model import Network, Scorer
from charlstm.optimisation import Optimiser
from charlstm.recurrence import Recurrence, product
from charlstm.training import Training

Change = Callable[[], AbstractContextManager[None]]


@contextlib.contextmanager
def replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """`owner.name` is make(what it was)."""
    before = vars(owner)[name]
    setattr(owner, name, make(before))
    try:
        yield
    finally:
        setattr(owner, name, before)


def copies(network: Network) -> dict[str, Tensor]:
    """Its weights as they are now."""
    return {name: parameter.detach().clone() for name, parameter in network.named_parameters()}


def put(network: Network, weights: Mapping[str, Tensor]) -> None:
    """Give it these weights."""
    for name, parameter in network.named_parameters():
        parameter.data.copy_(weights[name])


# ---- the start ----


def scaled(part: str, factor: float) -> AbstractContextManager[None]:
    """Weights whose name has `part` begin `factor` times as large."""

    def make(initialise: Any) -> Any:
        def start(self: Network, *given: Any) -> None:
            initialise(self, *given)
            with torch.no_grad():
                for name, parameter in self.named_parameters():
                    if part in name:
                        parameter.mul_(factor)

        return start

    return replaced(Network, "initialise", make)


# ---- the rate ----


def falling(fall: Callable[[float], float]) -> AbstractContextManager[None]:
    """After the warm-up the rate is its peak times fall(share of the rest that is over)."""

    def make(rate: Any) -> Any:
        def changed(self: Optimiser, share: float) -> float:
            warmup = self._options.warmup
            over = (share - warmup) / (1 - warmup)
            return float(rate(self, share)) if over < 0 else self._options.lr * fall(over)

        return changed

    return replaced(Optimiser, "rate", make)


def rate_of(part: str, factor: float) -> AbstractContextManager[None]:
    """Weights whose name has `part` learn at `factor` times the rate."""

    def make(step: Any) -> Any:
        def scaled_step(self: Optimiser, *given: Any) -> Any:
            before = {name: p.detach().clone() for name, p in self._named.items() if part in name}
            rate = step(self, *given)
            with torch.no_grad():
                for name, old in before.items():
                    self._named[name].lerp_(old, 1 - factor)
            return rate

        return scaled_step

    return replaced(Optimiser, "step", make)


# ---- the update ----

Rule = Callable[[Optimiser, str, Tensor, Tensor, float], None]  # optimiser, name, weights, their gradient, rate


def updated_by(make_rule: Callable[[], Rule]) -> AbstractContextManager[None]:
    """A rule of each training's own in place of AdamW's; weight decay stays as it is."""

    def step(self: Optimiser, share: float, norm: Tensor, factor: float = 1.0) -> float:
        rate = factor * self.rate(share)
        rule = self.__dict__.setdefault("_rule", make_rule())
        with torch.no_grad():
            for name, parameter in self._named.items():
                if name in self._matrices:
                    parameter.mul_(1 - rate * self.weight_decay)
                gradient, parameter.grad = parameter.grad, None
                rule(self, name, parameter, gradient, rate)
        return rate

    return replaced(Optimiser, "step", lambda _: step)


class Adam:
    """The gradient over its running size, without momentum: what the recipe does, for rules to build on."""

    def __init__(self) -> None:
        self._squares: dict[str, Tensor] = {}
        self._steps: dict[str, int] = {}

    def __call__(self, optimiser: Optimiser, name: str, weights: Tensor, gradient: Tensor, rate: float) -> None:
        weights.sub_(self.normalised(optimiser, name, gradient), alpha=rate)

    def normalised(self, optimiser: Optimiser, name: str, gradient: Tensor) -> Tensor:
        """The gradient over the root of the mean of its squares, known by `name`."""
        beta = optimiser._options.beta2
        squares = self._squares.setdefault(name, torch.zeros_like(gradient))
        self._steps[name] = self._steps.get(name, 0) + 1
        squares.mul_(beta).addcmul_(gradient, gradient, value=1 - beta)
        return gradient / (squares / (1 - beta ** self._steps[name])).sqrt_().add_(1e-8)


def _gates(name: str, tensor: Tensor) -> Sequence[Tensor]:
    """An LSTM's matrix, gate by gate: views."""
    return tensor.chunk(4) if name.startswith("recurrence.weight") else (tensor,)


class Soap(Adam):
    """Vyas et al. (2024): the squares are kept in the eigenbasis of the gradient's covariances, which a step of QR
    brings up to date at every `every`-th step; for each gate by itself."""

    def __init__(self, every: int = 10) -> None:
        super().__init__()
        self._every = every
        self._bases: dict[str, list[tuple[Tensor, Tensor]]] = {}  # covariance and eigenvectors, of rows and columns

    def __call__(self, optimiser: Optimiser, name: str, weights: Tensor, gradient: Tensor, rate: float) -> None:
        if weights.ndim == 1:
            super().__call__(optimiser, name, weights, gradient, rate)
            return
        beta = optimiser._options.beta2
        for gate, (block, part) in enumerate(zip(_gates(name, weights), _gates(name, gradient), strict=True)):
            key, now = f"{name}.{gate}", (part @ part.T, part.T @ part)
            if key not in self._bases:
                self._bases[key] = [(each, torch.linalg.eigh(each)[1]) for each in now]
            else:
                self._bases[key] = [
                    (old.lerp(new, 1 - beta), basis) for (old, basis), new in zip(self._bases[key], now, strict=True)
                ]
            (_, rows), (_, columns) = self._bases[key]
            turned = self.normalised(optimiser, key, rows.T @ part @ columns)
            block.sub_(rows @ turned @ columns.T, alpha=rate)
            if self._steps[key] % self._every == 0:
                self._bases[key] = [(each, torch.linalg.qr(each @ basis)[0]) for each, basis in self._bases[key]]


class Muon(Adam):
    """Jordan et al. (2024) for the recurrent matrix, for each gate by itself: the momentum's nearest orthogonal matrix,
    by five Newton-Schulz steps."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self._factor = factor  # on the rate
        self._momentum: dict[str, Tensor] = {}

    def __call__(self, optimiser: Optimiser, name: str, weights: Tensor, gradient: Tensor, rate: float) -> None:
        if "weight_hh" not in name:
            super().__call__(optimiser, name, weights, gradient, rate)
            return
        momentum = self._momentum.setdefault(name, torch.zeros_like(gradient)).mul_(0.95).add_(gradient)
        ahead = gradient + 0.95 * momentum
        for block, part in zip(_gates(name, weights), _gates(name, ahead), strict=True):
            x = part / (part.norm() + 1e-7)
            for _ in range(5):
                square = x @ x.T
                x = 3.4445 * x + (2.0315 * square @ square - 4.775 * square) @ x
            block.sub_(x, alpha=self._factor * rate)


@contextlib.contextmanager
def schedule_free(between: float = 0.9) -> Iterator[None]:
    """Defazio et al. (2024): the rate stays; gradients are taken between the fast weights and their mean, which is
    what is validated. Without weight decay."""

    class Rule(Adam):
        def __init__(self) -> None:
            super().__init__()
            self.fast: dict[str, Tensor] = {}
            self.mean: dict[str, Tensor] = {}
            self._total: dict[str, float] = {}

        def __call__(self, optimiser: Optimiser, name: str, weights: Tensor, gradient: Tensor, rate: float) -> None:
            fast = self.fast.setdefault(name, weights.clone())
            mean = self.mean.setdefault(name, weights.clone())
            self._total[name] = self._total.get(name, 0.0) + rate**2
            fast.sub_(self.normalised(optimiser, name, gradient), alpha=rate)
            mean.lerp_(fast, rate**2 / self._total[name])
            weights.copy_(fast.lerp(mean, between))

    with (
        updated_by(Rule),
        falling(lambda _: 1.0),
        validated_with(lambda run: run._optimiser._rule.mean),  # type: ignore[attr-defined]
    ):
        yield


# ---- averages, ensembles, temperature: of what the training comes to ----


def validated_in_place() -> AbstractContextManager[None]:
    """The network itself validates, for the engine knows nothing of what is changed in it here."""
    return replaced(Training, "_reader", lambda _: lambda run: training.Scorer(run._network))


def validated_with(weights_of: Callable[[Training], Mapping[str, Tensor]]) -> AbstractContextManager[None]:
    """Other weights than the last ones are validated."""

    def make(validate: Any) -> Any:
        def with_others(self: Training, clock: Any) -> Iterator[Any]:
            kept = copies(self._network)
            put(self._network, weights_of(self))
            yield from validate(self, clock)
            put(self._network, kept)

        return with_others

    return replaced(Training, "_validate", make)


def after_each_step(look: Callable[[Training, float], None]) -> AbstractContextManager[None]:
    """look(training, share of the budget) after each step."""

    def make(step: Any) -> Any:
        def looked_at(self: Training, share: float) -> Any:
            rate = step(self, share)
            with torch.no_grad():
                look(self, share)
            return rate

        return looked_at

    return replaced(Training, "_step", make)


@contextlib.contextmanager
def averaged(*, decay: float = 1.0, last: float = 1.0) -> Iterator[None]:
    """The validated weights are a mean: exponential with a decay, or plain over the last share of the steps."""

    def look(run: Training, share: float) -> None:
        if share < 1 - last:
            return
        mean = run.__dict__.setdefault("_mean", {})
        run.__dict__["_averaged"] = count = run.__dict__.get("_averaged", 0) + 1
        weight = max(1 - decay, 1 / count)
        for name, parameter in run._network.named_parameters():
            mean.setdefault(name, parameter.detach().clone()).lerp_(parameter.detach(), weight)

    with after_each_step(look), validated_with(lambda run: run._mean):  # type: ignore[attr-defined]
        yield


@contextlib.contextmanager
def ensemble(count: int, apart: float) -> Iterator[None]:
    """The mean of the probabilities of the last `count` models, a share `apart` of the steps from each other."""
    snapshots: list[dict[str, Tensor]] = []

    def look(run: Training, _: float) -> None:
        steps = run._total_steps() or 1
        if (steps - run._tally.step) % max(1, round(apart * steps)) == 0:
            snapshots.append(copies(run._network))
            del snapshots[:-count]

    class Together(Scorer):
        def zero_state(self, batch: int = 1) -> Any:
            return np.concatenate([super().zero_state(batch)] * len(snapshots))

        def _run(self, ids: Any, state: Any) -> Any:
            shares, states = [], []
            for weights, own in zip(snapshots, np.split(state, len(snapshots)), strict=True):
                put(self._network, weights)
                logits, after = super()._run(ids, np.ascontiguousarray(own))
                shares.append(logits.softmax(-1))
                states.append(after)
            return torch.stack(shares).mean(0).log(), np.concatenate(states)

    with after_each_step(look), replaced(training, "Scorer", lambda _: Together):
        yield


def temperature(value: float) -> AbstractContextManager[None]:
    """Logits are divided by it where they are validated."""

    class Tempered(Scorer):
        def _run(self, ids: Any, state: Any) -> Any:
            logits, after = super()._run(ids, state)
            return logits / value, after

    return replaced(training, "Scorer", lambda _: Tempered)


# ---- the equations ----


@contextlib.contextmanager
def lstm_as(step: Callable[..., tuple[Tensor, ...]]) -> Iterator[None]:
    """Other equations for the LSTM, step by step under autograd: slow."""
    with (
        replaced(cells, "STEP", lambda steps: {**steps, "lstm": step}),
        replaced(Recurrence, "path", lambda _: property(lambda self: "reference")),
    ):
        yield


def _cell(z: Tensor, c: Tensor, cap: bool = False) -> tuple[Tensor, Tensor]:
    i, f, g, o = z.chunk(4, -1)
    f = sigmoid(f)
    write = torch.minimum(sigmoid(i), 1 - f) if cap else sigmoid(i)
    c = f * c + write * g.tanh()
    return sigmoid(o) * c.tanh(), c


def capped(x: Tensor, state: tuple[Tensor, Tensor], w: Weights) -> tuple[Tensor, Tensor]:
    """Input gate at most 1 − f (Melis et al. 2018), so that |c| ≤ 1."""
    h, c = state
    return _cell(functional.linear(x, w.weight_ih, w.bias_ih) + functional.linear(h, w.weight_hh, w.bias_hh), c, True)


def normalised(by: Callable[[Tensor, Sequence[int]], Tensor]) -> Callable[..., tuple[Tensor, Tensor]]:
    """Each gate's pre-activations normalised before the bias: by mean and deviation (Ba et al. 2016) or by their root
    mean square alone (Zhang & Sennrich 2019)."""

    def step(x: Tensor, state: tuple[Tensor, Tensor], w: Weights) -> tuple[Tensor, Tensor]:
        h, c = state
        z = (functional.linear(x, w.weight_ih) + functional.linear(h, w.weight_hh)).unflatten(-1, (4, -1))
        return _cell(by(z, z.shape[-1:]).flatten(-2) + w.bias_ih + w.bias_hh, c)

    return step


def dropconnect(share: float) -> AbstractContextManager[None]:
    """Of the recurrent matrix a share is dropped, anew in each window (Merity et al. 2018)."""

    def make(weights: Any) -> Any:
        def dropped(self: Recurrence, layer: int) -> Weights:
            whole: Weights = weights(self, layer)
            return whole._replace(
                weight_hh=functional.dropout(whole.weight_hh, share, training=torch.is_grad_enabled())
            )

        return dropped

    return replaced(Recurrence, "weights", make)


# ---- from outputs to logits ----


@contextlib.contextmanager
def headed(
    add: Callable[[Network], None], logits_of: Callable[[Network, Tensor, Tensor], Tensor] | None = None
) -> Iterator[None]:
    """A network with more parameters, which `add` makes, and logits (T·B, V) of its own from outputs (T·B, H) and
    ids."""

    def init(before: Any) -> Any:
        def changed(self: Network, config: Any) -> None:
            before(self, config)
            add(self)

        return changed

    def forward(before: Any) -> Any:
        def changed(
            self: Network, ids: Tensor, state: Tensor, dropout: float = 0.0, generator: Any = None
        ) -> tuple[Tensor, Tensor]:
            outputs, state = self.recurrence(self.embedding.weight, ids, state, dropout, generator)
            assert logits_of is not None
            return logits_of(self, outputs.flatten(0, 1), ids.flatten()).view(*ids.shape, -1), state

        return before if logits_of is None else changed

    def weights(before: Any) -> Any:
        return lambda self: {name: w for name, w in before(self).items() if name in self.config.shapes()}

    with (
        replaced(Network, "__init__", init),
        replaced(Network, "forward", forward),
        replaced(Network, "weights", weights),
    ):
        yield


def projected(network: Network, outputs: Tensor) -> Tensor:
    """The projection as it is."""
    return product(network.recurrence.path, outputs, network.projection.weight, network.projection.bias)


def bigrams() -> AbstractContextManager[None]:
    """A skip connection: a table of V × V is added to the logits."""

    def add(network: Network) -> None:
        network.bigrams = nn.Parameter(torch.zeros(2 * (network.config.vocab_size,)))

    return headed(add, lambda network, outputs, ids: projected(network, outputs) + network.bigrams[ids])


def outputs_normalised() -> AbstractContextManager[None]:
    """The outputs over their root mean square, times a gain that is learned, before the projection."""

    def add(network: Network) -> None:
        network.gain = nn.Parameter(torch.ones(network.config.hidden))

    def logits(network: Network, outputs: Tensor, _: Tensor) -> Tensor:
        size = torch.rsqrt(outputs.square().mean(-1, keepdim=True) + 1e-6)
        return projected(network, outputs * size * network.gain)

    return headed(add, logits)


def bottleneck(width: int) -> AbstractContextManager[None]:
    """From outputs to logits through `width` numbers: a projected embedding on the way out."""

    def add(network: Network) -> None:
        generator, hidden = torch.Generator().manual_seed(1), network.config.hidden
        network.narrow = nn.Parameter(torch.randn(width, hidden, generator=generator) * hidden**-0.5)
        network.widen = nn.Parameter(torch.randn(network.config.vocab_size, width, generator=generator) * width**-0.5)

    def logits(network: Network, outputs: Tensor, _: Tensor) -> Tensor:
        unused = 0 * network.projection.weight.sum()  # the optimiser wants a gradient of every parameter
        narrow = functional.linear(outputs, network.narrow)
        return functional.linear(narrow, network.widen, network.projection.bias) + unused

    return headed(add, logits)


def tied() -> AbstractContextManager[None]:
    """The projection is the embedding (Press & Wolf 2017), which must be as wide as the layer."""

    def add(network: Network) -> None:
        network.projection.weight = network.embedding.weight

    return headed(add)


# ---- the table ----

DEFAULTS = "the defaults"
ABLATIONS: dict[str, tuple[dict[str, Any], Change | None]] = {
    DEFAULTS: ({}, None),
    "momentum 0.9": ({"beta1": 0.9}, None),
    "momentum 0.5": ({"beta1": 0.5}, None),
    "shorter memory of squares": ({"beta2": 0.98}, None),
    "longer memory of squares": ({"beta2": 0.995}, None),
    "rate x 1.5": ({"lr": 0.015}, None),
    "rate / 1.5": ({"lr": 0.0067}, None),
    "rate falls in a line": ({}, lambda: falling(lambda over: 1 - over)),
    "rate falls as a cosine": ({}, lambda: falling(lambda over: 0.5 + 0.5 * math.cos(math.pi * over))),
    "rate stays, falls in the second half": ({}, lambda: falling(lambda over: min(1.0, 2 - 2 * over))),
    "recurrent matrix at 0.7 of the rate": ({}, lambda: rate_of("weight_hh", 0.7)),
    "recurrent matrix at 1.5 times the rate": ({}, lambda: rate_of("weight_hh", 1.5)),
    "input matrix at half the rate": ({}, lambda: rate_of("weight_ih", 0.5)),
    "embedding at twice the rate": ({}, lambda: rate_of("embedding", 2.0)),
    "projection at half the rate": ({}, lambda: rate_of("projection.weight", 0.5)),
    "biases at 0.3 of the rate": ({}, lambda: rate_of("bias", 0.3)),
    "soap": ({}, lambda: updated_by(Soap)),
    "soap, rate / 1.5": ({"lr": 0.0067}, lambda: updated_by(Soap)),
    "muon on the recurrent matrix": ({}, lambda: updated_by(lambda: Muon(1.0))),
    "muon at 0.4 of the rate": ({}, lambda: updated_by(lambda: Muon(0.4))),
    "schedule-free": ({}, schedule_free),
    "schedule-free, half the rate": ({"lr": 0.005}, schedule_free),
    "half the streams, twice the window": ({"batch_size": 16, "seq_len": 64}, None),
    "twice the streams, half the window": ({"batch_size": 64, "seq_len": 16}, None),
    "states never reset": ({"reset": 0.0}, None),
    "states reset at 5 % of the windows": ({"reset": 0.05}, None),
    "no weight decay": ({"weight_decay": 0.0}, None),
    "weight decay 0.1": ({"weight_decay": 0.1}, None),
    "gradient clipped at 0.3": ({"clip": 0.3}, None),
    "gradient clipped at 5": ({"clip": 5.0}, None),
    "forget bias 0": ({"forget_bias": 0.0}, None),
    "forget bias 2": ({"forget_bias": 2.0}, None),
    "the projection's bias begins at 0": ({}, lambda: scaled("projection.bias", 0.0)),
    "embedding begins twice as large": ({}, lambda: scaled("embedding", 2.0)),
    "embedding begins half as large": ({}, lambda: scaled("embedding", 0.5)),
    "input matrix begins half as large": ({}, lambda: scaled("weight_ih", 0.5)),
    "recurrent matrix begins half as large": ({}, lambda: scaled("weight_hh", 0.5)),
    "projection begins half as large": ({}, lambda: scaled("projection.weight", 0.5)),
    "embedding of 64": ({"embedding": 64}, None),
    "embedding of 256": ({"embedding": 256}, None),
    "embedding of 256, tied": ({"embedding": 256}, tied),
    "logits through 128 numbers": ({}, lambda: bottleneck(128)),
    "bigrams added to the logits": ({}, bigrams),
    "outputs normalised": ({}, outputs_normalised),
    "pre-activations normalised": ({}, lambda: lstm_as(normalised(functional.layer_norm))),
    "pre-activations normalised by size": (
        {},
        lambda: lstm_as(normalised(functools.partial(functional.rms_norm, eps=1e-5))),
    ),
    "capped input gate": ({}, lambda: lstm_as(capped)),
    "dropout 0.1": ({"dropout": 0.1}, None),
    "dropout 0.3": ({"dropout": 0.3}, None),
    "dropconnect 0.3": ({}, lambda: dropconnect(0.3)),
    "exponential average, 0.99": ({}, lambda: averaged(decay=0.99)),
    "average of the last tenth": ({}, lambda: averaged(last=0.1)),
    "average of the last fifth": ({}, lambda: averaged(last=0.2)),
    "ensemble of the last 4, 5 % apart": ({}, lambda: ensemble(4, 0.05)),
    "ensemble of the last 4, 1 % apart": ({}, lambda: ensemble(4, 0.01)),
    "temperature 1.04": ({}, lambda: temperature(1.04)),
    "peephole": ({"cell": "peephole"}, None),
    "coupled": ({"cell": "coupled"}, None),
    "gru": ({"cell": "gru"}, None),
    "rnn": ({"cell": "rnn"}, None),
}
"""What differs from the defaults at 1 x 256."""
