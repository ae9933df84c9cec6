"""The checkpoint format: a model, and optionally the state of its training, in one safetensors file.

Tensors: `model/*` (the weights, float32) and, in a checkpoint that training can resume from, `optim/*`, `state/*` and
`rng/*`. The document in the metadata is a JSON object with format_version, model, vocabulary, step, training and facts.
`container` defines the bytes of the file.

A file from a stranger executes no code, and every claim that it makes is checked before it is used.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from charlstm import __version__, atomicfile, config, container
from charlstm.config import ModelConfig
from charlstm.container import Array, Entry, InvalidFile
from charlstm.errors import CheckpointError, UsageError
from charlstm.provenance import BaseRecord, CorpusRecord
from charlstm.terminal import escape, shortened
from charlstm.text.vocabulary import Vocabulary

FORMAT_VERSION = 1
_PREFIX = "model/"


@dataclass(frozen=True)
class Checkpoint:
    """A model, and with `tensors` and `training` everything that is needed to resume its training.

    Attributes:
        model: the shape of the model.
        vocabulary: the symbols, `model.vocab_size` of them.
        weights: name → float32 array, with the names and shapes of `model.shapes()`.
        step: number of updates so far.
        training: what the trainer needs besides the tensors; any JSON object, which the trainer checks.
        tensors: all other arrays under their full names in the file: "optim/…", "state/…", "rng/…".
        facts: what the file records about the model: texts, best validation, versions, … Any JSON object.
        corpus: the texts that the model was trained on and validated on, parsed from `facts`; an empty record if they
            do not name them.
        base: the model that this one was fine-tuned from, parsed from `facts`; None if its training began with random
            weights.
    """

    model: ModelConfig
    vocabulary: Vocabulary
    weights: Mapping[str, Array]
    step: int = 0
    training: Mapping[str, Any] | None = None
    tensors: Mapping[str, Array] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    corpus: CorpusRecord = field(init=False)
    base: BaseRecord | None = field(init=False)

    def __post_init__(self) -> None:
        base = self.facts.get("base")
        object.__setattr__(self, "corpus", CorpusRecord.from_json(self.facts.get("corpus")))
        object.__setattr__(self, "base", None if base is None else BaseRecord.from_json(base))


def save(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically and durably: when this returns, it is stored on the disk.

    All arrays are copied before the first byte is written, so that other threads may change them meanwhile. Equal
    checkpoints give equal bytes.

    Raises:
        CheckpointError: the file could not be written. An existing file is unchanged.
        ValueError: the arrays do not fit `checkpoint.model`, or the facts are not JSON, which has no NaN.
    """
    tensors = {_PREFIX + name: np.array(array, order="C") for name, array in checkpoint.weights.items()}
    tensors |= {name: np.array(array, order="C") for name, array in checkpoint.tensors.items()}
    entries = container.layout(tensors)
    if problem := _mismatch(checkpoint.model, checkpoint.vocabulary, entries):
        raise ValueError(problem)
    document = container.dump(
        {
            "format_version": FORMAT_VERSION,
            "model": config.to_json(checkpoint.model),
            "vocabulary": checkpoint.vocabulary.to_json(),
            "step": checkpoint.step,
            "training": checkpoint.training,
            "facts": checkpoint.facts,
        }
    )
    chunks = container.serialise(document, entries, tensors)
    try:
        atomicfile.replace(Path(path), chunks)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{shortened(path)} was not saved: {reason}") from error


def load(path: str | Path, *, training: bool = False, allow_nonfinite: bool = False) -> Checkpoint:
    """Read and check a checkpoint.

    Args:
        path: the file.
        training: also return the tensors besides the weights; otherwise they are only checked.
        allow_nonfinite: accept weights that are NaN or infinite.

    Raises:
        CheckpointError: the file is not a valid checkpoint, or its version is not supported.
    """
    with container.open_file(path) as file:
        try:
            checkpoint = _load(file, training)
        except RecursionError:
            raise CheckpointError(f"{shortened(path)} is invalid: its header is nested too deep") from None
        except OSError as error:
            raise CheckpointError(f"{shortened(path)} cannot be read: {error.strerror or error}") from error
        except InvalidFile as problem:
            raise CheckpointError(f"{shortened(path)} {problem}") from problem
    if not allow_nonfinite and (names := _nonfinite(checkpoint.weights)):
        raise CheckpointError(f"{shortened(path)} has weights that are not finite numbers: {names[0]}")
    return checkpoint


def verify(path: str | Path) -> list[str]:
    """Return everything that is wrong with a checkpoint, one line per problem; an empty list if nothing is."""
    try:
        checkpoint = load(path, training=True, allow_nonfinite=True)
    except CheckpointError as error:
        return [str(error)]
    tensors = {**{_PREFIX + name: array for name, array in checkpoint.weights.items()}, **checkpoint.tensors}
    return [f"{shortened(path)} has numbers that are not finite: {name}" for name in _nonfinite(tensors)]


def _load(file: BinaryIO, training: bool) -> Checkpoint:
    size = os.fstat(file.fileno()).st_size
    header, data_at = container.read_header(file, size)
    text, claimed = container.take_metadata(header)
    entries = container.entries_of(header, size - data_at)
    del header
    document = _document(text)
    model, vocabulary = _model(document)
    if problem := _mismatch(model, vocabulary, entries):
        raise InvalidFile(f"does not contain the model that it describes: {problem}")
    digest = container.digest_of(text, entries)
    kept: dict[str, Array] = {}
    for name in sorted(entries):
        entry = entries[name]
        array = entry.empty() if training or name.startswith(_PREFIX) else None
        for part in container.read(file, data_at + entry.begin, entry.end - entry.begin, array):
            digest.update(part)
        if array is not None:
            kept[name] = array
    if digest.hexdigest() != claimed:
        raise InvalidFile("is corrupt: the sha256 of its content is wrong; take another copy")
    return Checkpoint(
        model=model,
        vocabulary=vocabulary,
        weights={name: kept.pop(_PREFIX + name) for name in model.shapes()},
        step=document["step"],
        training=document["training"],
        tensors=kept,
        facts=document["facts"],
    )


def _document(text: str) -> dict[str, Any]:
    """Parse the document of the metadata, and check its version and the types of its entries."""
    document = container.parse(text, "metadata entry 'charlstm'")
    version = document.get("format_version")
    if type(version) is not int:
        raise InvalidFile("is invalid: it has no format version in its metadata")
    if version != FORMAT_VERSION:
        advice = "; install a newer charlstm: pip install -U charlstm" if version > FORMAT_VERSION else ""
        raise InvalidFile(
            f"has format version {shortened(version)}, but charlstm {__version__} reads {FORMAT_VERSION}{advice}"
        )
    expected = {"format_version", "model", "vocabulary", "step", "training", "facts"}
    if document.keys() != expected:
        names = ", ".join(shortened(name) for name in sorted(document.keys() ^ expected)[:5])
        raise InvalidFile(f"has missing or unknown entries in its metadata: {names}")
    if type(document["step"]) is not int or not 0 <= document["step"] <= 2**53:
        raise InvalidFile(f"has the invalid step {shortened(document['step'])}")
    if not isinstance(document["facts"], dict) or not isinstance(document["training"], (dict, type(None))):
        raise InvalidFile("has facts or a training record that is not a JSON object")
    return document


def _model(document: Mapping[str, Any]) -> tuple[ModelConfig, Vocabulary]:
    values = document["model"]
    if isinstance(values, dict) and any(value is None for value in values.values()):
        raise InvalidFile("describes an invalid model: a size is null")
    try:
        model = config.from_json(ModelConfig, values)
    except UsageError as error:
        raise InvalidFile(f"describes an invalid model: {error}") from error
    try:
        vocabulary = Vocabulary.from_json(document["vocabulary"])
    except ValueError as error:
        raise InvalidFile(f"has an invalid vocabulary: {error}") from error
    return model, vocabulary


def _mismatch(model: ModelConfig, vocabulary: Vocabulary, entries: Mapping[str, Entry]) -> str | None:
    """Return how the tensors and the vocabulary differ from the model, or None."""
    if len(vocabulary) != model.vocab_size:
        return f"the vocabulary has {len(vocabulary)} symbols, the model {model.vocab_size}"
    if vocabulary.boundary_id != model.boundary:
        return f"the vocabulary's boundary is symbol {vocabulary.boundary_id}, the model's {model.boundary}"
    expected = {_PREFIX + name: shape for name, shape in model.shapes().items()}
    for name, shape in expected.items():
        if name not in entries:
            return f"the tensor {name} is missing"
        if (found := entries[name].shape) != shape:
            return f"the tensor {name} has the shape {list(found)}, expected {list(shape)}"
        if entries[name].dtype != "F32":
            return f"the tensor {name} has the type {entries[name].dtype}, expected F32"
    for name in entries:
        if name not in expected and not name.startswith(("optim/", "state/", "rng/")):
            return f"the tensor {shortened(name)} is not expected"
    return None


def _nonfinite(tensors: Mapping[str, Array]) -> list[str]:
    """Return the names of the tensors that have NaN or infinite numbers, escaped."""
    return [escape(name) for name, array in tensors.items() if array.dtype.kind == "f" and not np.isfinite(array).all()]
