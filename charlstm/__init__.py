"""charlstm: a character-level language model trained in minutes.

    import charlstm

    text = charlstm.read(["book.txt"])
    model = charlstm.train(text, seconds=60)
    print(model.sample("It was", length=300))

The names are imported when they are first used: `import charlstm` loads nothing, and only `train` imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from charlstm.checkpoint import Checkpoint
    from charlstm.config import ModelConfig, SamplingConfig, TrainingOptions
    from charlstm.errors import (
        CharlstmError,
        CheckpointError,
        CorpusError,
        DivergenceError,
        DownloadError,
        ResumeError,
        RunBusy,
        UnknownSymbols,
        UsageError,
    )
    from charlstm.explain.explanation import Explanation
    from charlstm.inference.context import Context
    from charlstm.inference.engine import Engine
    from charlstm.inference.evaluation import Score
    from charlstm.model import Model, load, mix
    from charlstm.text.corpus import Corpus, read
    from charlstm.text.vocabulary import Vocabulary
    from charlstm.training.trainer import Trainer, train

__version__ = "0.1.0"

_HOMES = {
    "checkpoint": ("Checkpoint",),
    "config": ("ModelConfig", "SamplingConfig", "TrainingOptions"),
    "text.corpus": ("Corpus", "read"),
    "inference.engine": ("Engine",),
    "errors": (
        "CharlstmError",
        "CheckpointError",
        "CorpusError",
        "DivergenceError",
        "DownloadError",
        "ResumeError",
        "RunBusy",
        "UnknownSymbols",
        "UsageError",
    ),
    "inference.evaluation": ("Score",),
    "model": ("Model", "load", "mix"),
    "explain.explanation": ("Explanation",),
    "inference.context": ("Context",),
    "training.trainer": ("Trainer", "train"),
    "text.vocabulary": ("Vocabulary",),
}

__all__ = [
    "CharlstmError",
    "Checkpoint",
    "CheckpointError",
    "Context",
    "Corpus",
    "CorpusError",
    "DivergenceError",
    "DownloadError",
    "Engine",
    "Explanation",
    "Model",
    "ModelConfig",
    "ResumeError",
    "RunBusy",
    "SamplingConfig",
    "Score",
    "Trainer",
    "TrainingOptions",
    "UnknownSymbols",
    "UsageError",
    "Vocabulary",
    "__version__",
    "load",
    "mix",
    "read",
    "train",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(importlib.import_module(f"charlstm.{home}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module 'charlstm' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
