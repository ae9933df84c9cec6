"""Choose the defaults that depend on the text, the budget and the machine: every option of `TrainingOptions` left None.

| option | chosen by |
|---|---|
| cell | `DEFAULT_CELL` |
| hidden | `_shape`: `HIDDEN_FOR_CHARS_READ`, at most `HIDDEN_FOR_TEXT` |
| layers | 1 |
| embedding | `_shape`: hidden, at most 128, or 256 for more than 256 symbols |
| batch_size | `DEFAULT_BATCH_SIZE` |
| seq_len | `_seq_len` |
| lr | `choose` |
| dropout, weight_decay | `regularisation` |
| precision | fp32; `Trainer.start` replaces it if the budget is a time and bf16 is faster |
| seconds | `DEFAULT_SECONDS`, if there is no budget |

All other defaults are in `config.TrainingOptions`. docs/defaults.md explains the choices, docs/experiments.md records
what was tried, and `python bench/quality.py` measures them.
"""

from __future__ import annotations

from typing import Any

from charlstm.cells import GATES
from charlstm.config import Cell, ModelConfig, TrainingConfig, TrainingOptions, to_json
from charlstm.errors import Field, UsageError

DEFAULT_CELL: Cell = "lstm"
DEFAULT_SECONDS = 240.0
NOMINAL_SPEED = 2.5e11  # floating-point operations per second, where the speed was not measured
HIDDEN_FOR_CHARS_READ = {512: 2_500_000, 384: 1_600_000, 256: 1_000_000, 128: 0, 64: 0}
"""Hidden size → number of characters read from which its slower steps give a better model. At that number two adjacent
sizes are nearly equal, so that an inaccurate speed costs little."""
HIDDEN_FOR_TEXT = {64: 0, 128: 10_000, 256: 100_000, 384: 300_000, 512: 800_000}
"""Hidden size → length of the training text, in characters, from which it does not overfit at any dropout."""
DROPOUT_FOR_EPOCHS = {0.0: 0, 0.1: 3, 0.3: 8, 0.4: 12, 0.5: 20}
"""Dropout → number of epochs from which it is used."""
DEFAULT_BATCH_SIZE = 32
GRU_RATE_FACTOR = 0.5  # factor on the learning rate of the other cells
FINE_TUNING_RATE_FACTOR = 0.7  # factor on the rate of random weights: the best of 0.1 to 1 in docs/fine-tuning.md


def choose(
    options: TrainingOptions,
    train_chars: int,
    vocab_size: int,
    base: ModelConfig | None = None,
    *,
    speed: float = NOMINAL_SPEED,
    product_speed: float | None = None,
) -> TrainingConfig:
    """Return the options with a value for every None.

    Args:
        options: the options that the user gave.
        train_chars: length of the training text, in characters.
        vocab_size: number of symbols in the vocabulary.
        base: the shape of the model that is fine-tuned; None for random weights.
        speed: speed of the machine, from `hardware.speed`. It is used if the budget is a time; a budget in steps or
            epochs gives the same choices, and so the same model, on every machine.
        product_speed: speed of matrix products, if they can be computed in bf16 and that is faster; None: as `speed`.

    Raises:
        UsageError: the options give another shape than that of `base`.
    """
    if options.steps is None and options.epochs is None and options.seconds is None:
        options = TrainingOptions(**{**to_json(options), "seconds": DEFAULT_SECONDS})
    speeds = (speed, product_speed or speed)
    shape = _shape(options, train_chars, vocab_size, speeds) if base is None else _shape_of(base, options)
    hidden = shape["hidden"]
    regular = regularisation(_chars_read(options, shape, train_chars, vocab_size, speeds) / train_chars)
    rate = 1e-2 * min(1.0, (256 / hidden) ** 0.5)
    rate *= (GRU_RATE_FACTOR if shape["cell"] == "gru" else 1.0) * (1.0 if base is None else FINE_TUNING_RATE_FACTOR)
    chosen = {
        **shape,
        **{name: value for name, value in regular.items() if getattr(options, name) is None},
        "batch_size": options.batch_size or DEFAULT_BATCH_SIZE,
        "seq_len": options.seq_len or _seq_len(hidden),
        "lr": rate if options.lr is None else options.lr,
        "precision": "fp32" if options.precision == "auto" else options.precision,
    }
    return TrainingConfig(**{**to_json(options), **chosen})


def regularisation(epochs: float) -> dict[str, float]:
    """Return dropout and weight decay for a text that is read `epochs` times; more epochs need more of both."""
    dropout = max(share for share, least in DROPOUT_FOR_EPOCHS.items() if epochs >= least)
    return {"dropout": dropout, "weight_decay": 0.1 if dropout else 0.02}


def _shape_of(base: ModelConfig, options: TrainingOptions) -> dict[str, Any]:
    """Return the shape of the model that is fine-tuned, which the options must not contradict."""
    shape = {name: getattr(base, name) for name in ("cell", "hidden", "layers", "embedding")}
    differing: list[str] = []
    for name, saved in shape.items():
        if (given := getattr(options, name)) not in (None, saved):
            differing += (", " if differing else "", Field(name), f" {given} (saved: {saved})")
    if differing:
        raise UsageError(Field("from_"), " keeps the shape of its model, but these options differ: ", *differing)
    return shape


def _shape(options: TrainingOptions, train_chars: int, vocab_size: int, speeds: tuple[float, float]) -> dict[str, Any]:
    """Choose the largest hidden size that pays in this budget and that the text is long enough for."""
    limit = max(hidden for hidden, least in HIDDEN_FOR_TEXT.items() if train_chars >= least)
    for hidden, worth in HIDDEN_FOR_CHARS_READ.items():
        shape = {
            "cell": options.cell or DEFAULT_CELL,
            "hidden": options.hidden or hidden,
            "layers": options.layers or 1,
        }
        if hidden <= limit and _chars_read(options, shape, train_chars, vocab_size, speeds) >= worth:
            break
    embedding = options.embedding or min(shape["hidden"], 128 if vocab_size <= 256 else 256)
    return {**shape, "embedding": embedding}


def _chars_read(
    options: TrainingOptions, shape: dict[str, Any], train_chars: int, vocab_size: int, speeds: tuple[float, float]
) -> float:
    """Estimate the number of characters that the budget is enough to read.

    Args:
        options: those that the user gave.
        shape: cell, hidden and layers.
        train_chars: length of the training text, in characters.
        vocab_size: number of symbols in the vocabulary.
        speeds: operations per second in general and of matrix products.
    """
    if options.epochs is not None:
        return options.epochs * train_chars
    hidden: int = shape["hidden"]
    if options.steps is not None:
        return options.steps * (options.batch_size or DEFAULT_BATCH_SIZE) * (options.seq_len or _seq_len(hidden))
    assert options.seconds is not None
    products: int = 6 * len(GATES[shape["cell"]]) * hidden**2 * (2 * shape["layers"] - 1) + 6 * hidden * vocab_size
    general, of_products = speeds
    seconds_per_char = 1.2 * products / of_products + 600_000 / general  # 600,000: measured, for all but the products
    return options.seconds / seconds_per_char


def _seq_len(hidden: int) -> int:
    """Choose the window length T."""
    return 32 if hidden <= 256 else 48
