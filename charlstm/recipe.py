"""The choices a user did not make: model size, batch, window, rate and dropout, from the text and the budget."""

from __future__ import annotations

from charlstm.config import TrainingConfig, TrainingOptions, to_json

DEFAULT_SECONDS = 240.0


def choose(options: TrainingOptions, train_chars: int, vocab_size: int) -> TrainingConfig:
    """The options with every None filled in.

    Args:
        train_chars: characters of the training part.
        vocab_size: distinct characters of the text.
    """
    seconds = options.seconds
    if seconds is None and options.steps is None and options.epochs is None:
        seconds = DEFAULT_SECONDS
    patience = seconds if seconds is not None else DEFAULT_SECONDS
    hidden = options.hidden or _hidden(train_chars, patience)
    layers = options.layers or 1
    expected_epochs = options.epochs or patience * _chars_per_second(hidden, layers) / train_chars
    chosen = {
        "seconds": seconds,
        "hidden": hidden,
        "layers": layers,
        "embedding": options.embedding or min(hidden, 128 if vocab_size <= 256 else 256),
        "dropout": _dropout(expected_epochs) if options.dropout is None else options.dropout,
        "batch_size": options.batch_size or 32,
        "seq_len": options.seq_len or (32 if hidden <= 256 else 48),
        "lr": options.lr or 1e-2 * min(1.0, (256 / hidden) ** 0.5),
        "weight_decay": 0.02 if options.weight_decay is None else options.weight_decay,
    }
    return TrainingConfig(**{**to_json(options), **chosen})


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
