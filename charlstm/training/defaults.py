"""The choices a user did not make: model size, batch, window, rate and dropout, from the text, the budget, the machine.

What they rest on, and what was tried besides, stands in docs/experiments.md; `python bench/quality.py` measures them.
"""

from __future__ import annotations

from typing import Any

from charlstm.cells import GATES
from charlstm.config import Cell, ModelConfig, TrainingConfig, TrainingOptions, flag, to_json
from charlstm.errors import UsageError

DEFAULT_CELL: Cell = "lstm"
DEFAULT_SECONDS = 240.0
NOMINAL_SPEED = 2.5e11  # floating-point operations a second, where none was measured
WIDTHS = {512: 2_500_000, 384: 1_600_000, 256: 1_000_000, 128: 0, 64: 0}
"""Each is worth its slower steps from so many characters read. Neighbours are nearly equal there, so that a speed which
was measured in a bad moment costs little."""
FILLED_FROM = {64: 0, 128: 10_000, 256: 100_000, 384: 300_000, 512: 800_000}
"""Each can be filled by a text of so many characters: a wider one learns it by heart, however much of it is dropped."""
DROPPED_FROM = {0.0: 0, 0.1: 3, 0.3: 8, 0.4: 12, 0.5: 20}  # this share of a layer's output, from so many epochs on
BATCH_SIZE = 32
GRU_RATE = 0.5  # of the rate that suits the other cells
FINE_TUNING = 0.7  # of the rate that suits fresh weights: the best of 0.1 to 1 in docs/fine-tuning.md


def choose(
    options: TrainingOptions,
    train_chars: int,
    vocab_size: int,
    base: ModelConfig | None = None,
    *,
    speed: float = NOMINAL_SPEED,
) -> TrainingConfig:
    """The options with every None filled in.

    Args:
        train_chars: characters of the training part.
        vocab_size: distinct characters of the text.
        base: the shape of the model whose weights the training begins with; None for fresh ones.
        speed: of the machine, from `machine.speed`. It counts where the budget is a time; a budget in steps or epochs
            gets the same choices, and so the same model, on every machine.

    Raises:
        UsageError: the options ask for another shape than that of `base`.
    """
    if options.steps is None and options.epochs is None and options.seconds is None:
        options = TrainingOptions(**{**to_json(options), "seconds": DEFAULT_SECONDS})
    shape = _shape(options, train_chars, vocab_size, speed) if base is None else _shape_of(base, options)
    hidden = shape["hidden"]
    regular = regularisation(_chars_read(options, shape, train_chars, vocab_size, speed) / train_chars)
    rate = 1e-2 * min(1.0, (256 / hidden) ** 0.5)
    rate *= (GRU_RATE if shape["cell"] == "gru" else 1.0) * (1.0 if base is None else FINE_TUNING)
    chosen = {
        **shape,
        **{name: value for name, value in regular.items() if getattr(options, name) is None},
        "batch_size": options.batch_size or BATCH_SIZE,
        "seq_len": options.seq_len or _seq_len(hidden),
        "lr": rate if options.lr is None else options.lr,
    }
    return TrainingConfig(**{**to_json(options), **chosen})


def regularisation(epochs: float) -> dict[str, float]:
    """Dropout and weight decay for a text that is read so many times: both begin to pay with several."""
    dropout = max(share for share, least in DROPPED_FROM.items() if epochs >= least)
    return {"dropout": dropout, "weight_decay": 0.1 if dropout else 0.02}


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


def _shape(options: TrainingOptions, train_chars: int, vocab_size: int, speed: float) -> dict[str, Any]:
    """As wide as is worth its slower steps in this budget, and no wider than the text can fill."""
    filled = max(hidden for hidden, least in FILLED_FROM.items() if train_chars >= least)
    for hidden, worth in WIDTHS.items():
        shape = {
            "cell": options.cell or DEFAULT_CELL,
            "hidden": options.hidden or hidden,
            "layers": options.layers or 1,
        }
        if hidden <= filled and _chars_read(options, shape, train_chars, vocab_size, speed) >= worth:
            break
    embedding = options.embedding or min(shape["hidden"], 128 if vocab_size <= 256 else 256)
    return {**shape, "embedding": embedding}


def _chars_read(
    options: TrainingOptions, shape: dict[str, Any], train_chars: int, vocab_size: int, speed: float
) -> float:
    """Characters that a training of this budget will read."""
    if options.epochs is not None:
        return options.epochs * train_chars
    hidden: int = shape["hidden"]
    if options.steps is not None:
        return options.steps * (options.batch_size or BATCH_SIZE) * (options.seq_len or _seq_len(hidden))
    assert options.seconds is not None
    products: int = 6 * len(GATES[shape["cell"]]) * hidden**2 * (2 * shape["layers"] - 1) + 6 * hidden * vocab_size
    operations = 1.2 * products + 600_000  # what is no product takes as long as so many more operations
    return options.seconds * speed / operations


def _seq_len(hidden: int) -> int:
    return 32 if hidden <= 256 else 48
