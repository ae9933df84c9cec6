"""Export a model as one HTML page: the model, an engine in JavaScript, and a playground."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from charlstm import __version__, atomicfile
from charlstm.config import Precision
from charlstm.model import Model
from charlstm.web.page import ENGINE, assemble, asset
from charlstm.web.weights import page_model


@dataclass(frozen=True)
class WrittenPage:
    """A page that was written.

    Attributes:
        bytes: the size of the file.
        weight_bytes: the size of the weights in it, before base64.
        precision: the precision of the weights.
    """

    bytes: int
    weight_bytes: int
    precision: Literal["fp32", "int8"]


def export_html(model: Model, path: str | Path, precision: Precision = "auto") -> WrittenPage:
    """Write a model as one HTML page that works without a network.

    Args:
        model: a trained model.
        path: the file to write; an existing one is replaced.
        precision: of the weights; 'auto' selects fp32 if they then take at most 4 MB, else int8.

    Returns:
        The sizes and the precision.

    Raises:
        UsageError: the precision is invalid.
        CheckpointError: weights that are NaN or infinite, or too many for a page.
        OSError: the file cannot be written; an existing one is unchanged.
    """
    packed = page_model(model.config, model.vocabulary, model.weights, precision)
    about = {"name": page_name(model), "version": __version__, "weightBytes": len(packed.weights)}
    page = assemble(
        title="charlstm playground",
        body=asset("playground/playground.html", "charlstm.export"),
        scripts=[*map(asset, ENGINE), asset("playground/playground.js", "charlstm.export")],
        styles=[asset("playground/playground.css", "charlstm.export")],
        data={"about-data": about},
        model=packed,
    ).encode()
    atomicfile.replace(Path(path), [page])
    return WrittenPage(len(page), len(packed.weights), packed.precision)


def page_name(model: Model) -> str:
    """Return a heading for a page about a model: the names of the texts that it was trained on, else 'Playground'."""
    names = [name.replace("\\", "/").rsplit("/", 1)[-1] for name in model.corpus.names]
    return ", ".join(names)[:200] or "Playground"
