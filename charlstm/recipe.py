"""The choices a user did not make: model size, batch, window, rate and dropout, from the text and the budget."""

from __future__ import annotations

from typing import Any

from charlstm.config import Cell, ModelConfig, TrainingConfig, TrainingOptions, flag, to_json
from charlstm.errors import UsageError

DEFAULT_CELL: Cell = "lstm"
DEFAULT_SECONDS = 240.0
FINE_TUNING = 0.7  # of the rate that suits fresh weights: the best of 0.1 to 1 in docs/training.md


def choose(
    options: TrainingOptions, train_chars: int, vocab_size: int, base: ModelConfig | None = None
) -> TrainingConfig:
    """The options with every None filled in.

    Args:
        train_chars: characters of the training part.
        vocab_size: distinct characters of the text.
        base: the shape of the model whose weights the training begins with; None for fresh ones.

    Raises:
        UsageError: the options ask for another shape than that of `base`.
    """
    seconds = options.seconds
    if seconds is None and options.steps is None and options.epochs is None:
        seconds = DEFAULT_SECONDS
    patience = seconds if seconds is not None else DEFAULT_SECONDS
    hidden = options.hidden or _hidden(train_chars, patience)
    shape: dict[str, Any] = {
        "cell": options.cell or DEFAULT_CELL,
        "hidden": hidden,
        "layers": options.layers or 1,
        "embedding": options.embedding or min(hidden, 128 if vocab_size <= 256 else 256),
    }
    if base is not None:
        shape = _shape_of(base, options)
    hidden, layers = shape["hidden"], shape["layers"]
    expected_epochs = options.epochs or patience * _chars_per_second(hidden, layers) / train_chars
    rate = 1e-2 * min(1.0, (256 / hidden) ** 0.5) * (1.0 if base is None else FINE_TUNING)
    chosen = {
        "seconds": seconds,
        **shape,
        "dropout": _dropout(expected_epochs) if options.dropout is None else options.dropout,
        "batch_size": options.batch_size or 32,
        "seq_len": options.seq_len or (32 if hidden <= 256 else 48),
        "lr": rate if options.lr is None else options.lr,
        "weight_decay": 0.02 if options.weight_decay is None else options.weight_decay,
    }
    return TrainingConfig(**{**to_json(options), **chosen})


def _shape_of(base: ModelConfig, options: TrainingOptions) -> dict[str, Any]:
    shape = {name: getattr(base, name) for name in ("cell", "hidden", "layers", "embedding")}
    differing = [
        f"{flag(name)} {given} (saved: {saved})"
        for name, saved in shape.items()
        if (given := getattr(options, name)) not in (None, saved)
    ]
    if differing:
        raise UsageError(f"--from keeps the shape of its model, but these differ: {', '.join(differing)}")
    return shape


def _hidden(train_chars: int, seconds: float) -> int:
    """Wider for more text and more time, in steps that the kernels like."""
    by_time = 128 if seconds < 15 else 256 if seconds < 100 else 512
    by_text = 64 if train_chars < 10_000 else 128 if train_chars < 100_000 else 256 if train_chars < 400_000 else 512
    return min(by_time, by_text)


def _chars_per_second(hidden: int, layers: int) -> float:
    """What two cores train on, roughly: good enough to tell one epoch from ten."""
    operations = 24 * hidden**2 * (2 * layers - 1)
    return 2.5e11 / (operations + 600_000)


def _dropout(epochs: float) -> float:
    """Regularisation begins to pay once the text is read several times."""
    return 0.0 if epochs < 4 else 0.1 if epochs < 8 else 0.3 if epochs < 20 else 0.5
