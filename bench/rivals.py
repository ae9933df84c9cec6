"""Implement two well-known recipes that `bench/quality.py` compares with charlstm on the same data.

    char-rnn   the defaults of char-rnn (Karpathy 2015): 2 x 128 LSTM, RMSprop 2e-3 that decays by 0.97 an epoch from
               the tenth on, windows of 50, 50 streams, gradients clamped to 5, no dropout
    nanogpt    nanoGPT's recipe for a CPU: a transformer of 4 layers, 4 heads, width 128 (0.8 M parameters), 2,000 steps
               of 12 random windows of 64, AdamW 1e-3 with 100 steps of warm-up and a cosine down to 1e-4

Both use the standard layers of torch. Both train on the first nine tenths of the text and are scored on the whole last
tenth, each transition once: char-rnn carries its state, and the transformer has a context of at least half a window.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

Reading = tuple[float, int, float]  # seconds of training so far, steps, nats per character on the validation part
Ids = NDArray[np.integer]


class CharRnn(nn.Module):
    """Two layers of LSTM that receive one-hot symbols, as in char-rnn."""

    def __init__(self, vocabulary: int, hidden: int = 128, layers: int = 2) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.lstm = nn.LSTM(vocabulary, hidden, layers)
        self.projection = nn.Linear(hidden, vocabulary)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -0.08, 0.08)
        for name, parameter in self.lstm.named_parameters():
            if name.startswith("bias_ih"):
                nn.init.constant_(parameter[hidden : 2 * hidden], 1.0)

    def forward(self, ids: Tensor, state: tuple[Tensor, Tensor] | None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the logits (T, B, V) after each of the ids (T, B), and the state."""
        outputs, state = self.lstm(functional.one_hot(ids, self.vocabulary).float(), state)
        return self.projection(outputs), state


def char_rnn(train: Ids, valid: Ids, vocabulary: int, seconds: list[float], seed: int) -> Iterator[Reading]:
    """Train until the last of `seconds`, and return a reading at each of them."""
    torch.manual_seed(seed)
    batch, window = 50, 50
    length = (len(train) - 1) // batch
    inputs, targets = (
        torch.from_numpy(train[shift : shift + batch * length].astype(np.int64)).view(batch, length).t()
        for shift in (0, 1)
    )
    model = CharRnn(vocabulary)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=2e-3, alpha=0.95, eps=1e-8)
    windows = max(1, length // window)
    clock, step, waiting = _Clock(), 0, list(seconds)
    state = None
    while waiting:
        epoch, place = divmod(step, windows)
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * 0.97 ** max(0, epoch - 9)
        part = slice(place * window, (place + 1) * window)
        logits, state = model(inputs[part], state)
        state = (state[0].detach(), state[1].detach())
        loss = functional.cross_entropy(logits.flatten(0, 1), targets[part].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_value_(model.parameters(), 5.0)
        optimizer.step()
        step += 1
        if clock.seconds() >= waiting[0]:
            with clock.stopped():
                reading = (waiting.pop(0), step, _score_char_rnn(model, valid))
            yield reading


@torch.no_grad()
def _score_char_rnn(model: CharRnn, valid: Ids) -> float:
    ids = torch.from_numpy(valid.astype(np.int64))[:, None]
    nats, state = 0.0, None
    for start in range(0, len(ids) - 1, 10_000):
        targets = ids[start + 1 : start + 10_001]
        logits, state = model(ids[start : start + len(targets)], state)
        nats += float(functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"))
    return nats / (len(ids) - 1)


class Block(nn.Module):
    """Attention and a perceptron, each with a layer norm before it and a residual connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width, bias=False) for _ in range(2))
        self.mix, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output (B, T, C) for an input (B, T, C)."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.mix(self.norms[0](x)).chunk(3, -1)
        )
        x = x + self.out(functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        result: Tensor = x + self.down(functional.gelu(self.up(self.norms[1](x))))
        return result


class Gpt(nn.Module):
    """A decoder like GPT-2 with tied embeddings."""

    def __init__(self, vocabulary: int, layers: int = 4, heads: int = 4, width: int = 128, window: int = 64) -> None:
        super().__init__()
        self.window = window
        self.symbols, self.places = nn.Embedding(vocabulary, width), nn.Embedding(window, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim > 1:
                last = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers) if last else 0.02)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the logits (B, T, V) after each of the ids (B, T)."""
        x = self.symbols(ids) + self.places.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return functional.linear(self.norm(x), self.symbols.weight)


def nanogpt(train: Ids, valid: Ids, vocabulary: int, every: int, seed: int, steps: int = 2000) -> Iterator[Reading]:
    """Run the recipe, and return a reading after each `every` steps."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    text = torch.from_numpy(train.astype(np.int64))
    model = Gpt(vocabulary)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        betas=(0.9, 0.99),
        fused=True,
    )
    clock = _Clock()
    for step in range(steps):
        rate = (
            1e-3 * (step + 1) / 101
            if step < 100
            else 1e-4 + 4.5e-4 * (1 + math.cos(math.pi * (step - 100) / (steps - 100)))
        )
        for group in optimizer.param_groups:
            group["lr"] = rate
        starts = torch.randint(len(text) - model.window - 1, (12, 1), generator=generator) + torch.arange(
            model.window + 1
        )
        windows = text[starts]
        loss = functional.cross_entropy(model(windows[:, :-1]).flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % every == 0 or step + 1 == steps:
            with clock.stopped():
                reading = (clock.seconds(), step + 1, _score_gpt(model, valid))
            yield reading


@torch.no_grad()
def _score_gpt(model: Gpt, valid: Ids) -> float:
    """Return the loss over windows that overlap by half; only the second half of each later window is scored."""
    ids = torch.from_numpy(valid.astype(np.int64))
    half = model.window // 2
    first = min(model.window, len(ids) - 1)
    nats = float(_surprises(model, ids[None, : first + 1]).sum())
    starts = torch.arange(half, len(ids) - model.window, half)[:, None]
    for group in starts.split(256):
        nats += float(_surprises(model, ids[group + torch.arange(model.window + 1)])[:, half:].sum())
    scored = first + half * len(starts)
    if rest := len(ids) - 1 - scored:
        nats += float(_surprises(model, ids[None, -model.window - 1 :])[0, -rest:].sum())
    return nats / (len(ids) - 1)


def _surprises(model: Gpt, ids: Tensor) -> Tensor:
    logits = model(ids[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)


class _Clock:
    """A clock of training seconds that is paused during scoring."""

    def __init__(self) -> None:
        self._origin = time.perf_counter()
        self._halted = 0.0

    def seconds(self) -> float:
        return (self._halted or time.perf_counter()) - self._origin

    def stopped(self) -> _Clock:
        return self

    def __enter__(self) -> None:
        self._halted = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self._origin += time.perf_counter() - self._halted
        self._halted = 0.0
