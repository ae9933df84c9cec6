"""Pages of `charlstm explain` for tests: of a given model, or of one with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from charlstm.config import Cell, ModelConfig
from charlstm.explain.page.build import build
from charlstm.model import Model
from charlstm.text.vocabulary import Vocabulary
from tests.helpers.browser import Visit
from tests.helpers.models import random_weights

CHARS = 600


def write_page(path: Path, model: Model, text: str | None = None, **options: Any) -> Path:
    """Write the page of a model and return its path."""
    found = model.explain(text, chars=CHARS, unknown="replace", beside=options.pop("beside", ()))
    path.write_text(build(found, model, options.pop("precision", "fp32")), encoding="utf-8")
    return path


def random_model(
    cell: Cell, text: str, layers: int = 1, boundary: str | None = None, path: Path | None = None
) -> Model:
    """Return a model with random weights whose vocabulary is that of a text."""
    vocabulary = Vocabulary.of(text)
    if boundary is not None:
        vocabulary = vocabulary.with_boundary(boundary)
    config = ModelConfig(len(vocabulary), 8, layers, 5, cell, vocabulary.boundary_id)
    return Model(config, vocabulary, random_weights(config, scale=4.0), path=path, precision="fp32")


def wait(found: Visit) -> None:
    """Wait until the page has run the model over the text."""
    found.wait_for("document.documentElement.dataset.traced === 'true'", 60)
