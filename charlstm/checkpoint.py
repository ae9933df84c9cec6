"""One file, one format: a model as safetensors with JSON metadata. Every check of a foreign file is here.

The file is 8 bytes of header length (little endian), the header (JSON, padded with spaces to a multiple of 8), the
tensors' bytes. Tensors: `model/*` (the weights, float32) and, in a checkpoint that training goes on from, `optim/*`,
`state/*`, `rng/*`. The header's `__metadata__` has two entries: `charlstm`, a JSON object (format_version, model,
vocabulary, step, training, facts), and `sha256` over that JSON text, the names, types and shapes of all tensors, and
their bytes.

The container is read and written here and not by the safetensors package: it is simple, whoever reads a stranger's
file should see every check, the package cannot tell a duplicate key or bound what the header's JSON grows to, and its
import costs numpy's again. Its tests hold that each reads what the other wrote.

A file from a stranger runs nothing. What it claims is compared with its size before anything of that size is
allocated: loading takes at most twice the file's size and 64 MB.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, Literal, NamedTuple, NoReturn

import numpy as np

from charlstm import __version__, atomicfile, config
from charlstm.config import ModelConfig
from charlstm.errors import CheckpointError, UsageError
from charlstm.provenance import BaseRecord, CorpusRecord
from charlstm.terminal import escape
from charlstm.text.vocabulary import Vocabulary

FORMAT_VERSION = 1
BEST, LAST = "best.safetensors", "last.safetensors"
ROOT = Path("checkpoints")

# The vocabulary of all of Unicode takes 4.4 MB of header. Text of one astral character takes 4 bytes a character once
# it is decoded, so this bound also keeps the memory for the header's parts below 64 MB.
MAX_HEADER = 6 << 20
# Every value of a JSON text but the first follows one of `,` `:` `[` `{`. A few bytes can stand for a hundred bytes
# of objects ("{},{},…"); this bounds how many there can be. 64 layers with all their training state have 20,000.
MAX_VALUES = 200_000
MAX_RANK = 8
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")

_DTYPES = MappingProxyType(
    {name: np.dtype(code) for name, code in (
        ("F64", "<f8"), ("F32", "<f4"), ("I64", "<i8"), ("I32", "<i4"),
        ("U64", "<u8"), ("U32", "<u4"), ("U16", "<u2"), ("U8", "u1"),
    )}
)  # fmt: skip
_NAMES = MappingProxyType({dtype: name for name, dtype in _DTYPES.items()})
_PREFIX = "model/"

# Without O_NONBLOCK the opening of a pipe would wait for a writer.
_FLAGS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Checkpoint:
    """A model, and with `tensors` and `training` all that its training needs to go on.

    Attributes:
        model: its shape.
        vocabulary: of `model.vocab_size` symbols.
        weights: name → float32 array; names and shapes are `model.shapes()`.
        step: updates made so far.
        training: what the trainer needs besides the tensors; any JSON object, the trainer checks it.
        tensors: all other arrays, under the full names they have in the file: "optim/…", "state/…", "rng/…".
        facts: what the file records about the model: texts, best validation, versions, … Any JSON object.
    """

    model: ModelConfig
    vocabulary: Vocabulary
    weights: Mapping[str, Array]
    step: int = 0
    training: Mapping[str, Any] | None = None
    tensors: Mapping[str, Array] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def corpus(self) -> CorpusRecord:
        """The texts that the model was trained on and validated on; an empty record if the facts do not name them."""
        return CorpusRecord.from_json(self.facts.get("corpus"))

    @property
    def base(self) -> BaseRecord | None:
        """The model that this one was fine-tuned from; None if its training began with random weights."""
        base = self.facts.get("base")
        return None if base is None else BaseRecord.from_json(base)


class _Entry(NamedTuple):
    """A tensor as the header describes it: `begin` and `end` count from the first byte behind the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def save(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint atomically and durably: when this returns, it is on the disk.

    All arrays are copied before the first byte is written: what other threads do to them later is not in the file.
    Equal checkpoints give equal bytes.

    Raises:
        CheckpointError: the file could not be written; what was there before is untouched.
        ValueError: arrays that do not fit `checkpoint.model`, or facts that are not JSON (NaN is not).
    """
    chunks = _serialise(checkpoint)
    try:
        atomicfile.replace(Path(path), chunks)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise CheckpointError(f"{_show(path)} was not saved: {getattr(error, 'strerror', None) or error}") from error


def load(path: str | Path, *, training: bool = False, allow_nonfinite: bool = False) -> Checkpoint:
    """Read a checkpoint and trust nothing in it.

    Args:
        training: keep the tensors besides the weights too; else they are only checked.
        allow_nonfinite: let weights that are NaN or infinite through.

    Raises:
        CheckpointError: no whole checkpoint of a version that this charlstm reads; the message says what is wrong.
    """
    with _open(path) as file:
        try:
            checkpoint = _load(file, training)
        except RecursionError:
            raise CheckpointError(f"{_show(path)} has a header that is nested too deep") from None
        except OSError as error:
            raise CheckpointError(f"{_show(path)} cannot be read: {error.strerror or error}") from error
        except _Bad as bad:
            raise CheckpointError(f"{_show(path)} {bad}") from bad
    if not allow_nonfinite and (broken := _nonfinite(checkpoint.weights)):
        raise CheckpointError(f"{_show(path)} holds weights that are not finite numbers: {broken[0]}")
    return checkpoint


def verify(path: str | Path) -> list[str]:
    """All that is wrong with a checkpoint, a line each; nothing where it is whole."""
    try:
        checkpoint = load(path, training=True, allow_nonfinite=True)
    except CheckpointError as error:
        return [str(error)]
    tensors = {**{_PREFIX + name: array for name, array in checkpoint.weights.items()}, **checkpoint.tensors}
    return [f"{_show(path)} holds numbers that are not finite: {name}" for name in _nonfinite(tensors)]


def newest_run(root: str | Path = ROOT, prefer: Literal["best", "last"] = "best") -> Path:
    """The checkpoint of the run below `root` that was saved last: its best one, or where it has none its last one.

    Raises:
        CheckpointError: there is no run.
    """
    runs: list[tuple[int, Path]] = []
    try:
        folders = [Path(root, name) for name in os.listdir(root)] if os.path.isdir(root) else []
        for folder in folders:
            if found := _in_folder(folder, prefer):
                runs.append((max(file.stat().st_mtime_ns for file in _candidates(folder)), found))
    except OSError as error:
        raise CheckpointError(f"{_show(root)} cannot be searched for runs: {error.strerror or error}") from error
    if not runs:
        raise CheckpointError(f"no trained model in {_show(root)}; train one first: charlstm train TEXT")
    return max(runs)[1]


def resolve(path: str | Path | None, prefer: Literal["best", "last"] = "best") -> Path:
    """The checkpoint that a user means: a file is itself, a run's folder its best (or last), None the newest run's.

    Raises:
        CheckpointError: there is none.
    """
    if path is None:
        return newest_run(prefer=prefer)
    if os.path.isdir(path):
        return _in_folder(path, prefer) or newest_run(path, prefer)
    if not os.path.lexists(path):
        raise CheckpointError(f"{_show(path)}: no such checkpoint; charlstm train makes one")
    return Path(path)


def _candidates(folder: str | Path) -> list[Path]:
    return [file for file in (Path(folder, BEST), Path(folder, LAST)) if file.is_file()]


def _in_folder(folder: str | Path, prefer: str) -> Path | None:
    files = _candidates(folder)
    if not files:
        return None
    return files[0] if prefer == "best" else files[-1]


def _serialise(checkpoint: Checkpoint) -> list[memoryview]:
    """The bytes of a checkpoint's file, copied from its arrays."""
    tensors = {_PREFIX + name: np.array(array, order="C") for name, array in checkpoint.weights.items()}
    tensors |= {name: np.array(array, order="C") for name, array in checkpoint.tensors.items()}
    for name, array in tensors.items():
        if array.dtype not in _NAMES or not array.size or array.ndim > MAX_RANK:
            raise ValueError(f"{name}: no checkpoint holds an array of {array.dtype} and shape {array.shape}")
    entries, position = {}, 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].itemsize, name)):  # wide types first: all aligned
        array = tensors[name]
        entries[name] = _Entry(_NAMES[array.dtype], array.shape, position, position + array.nbytes)
        position += array.nbytes
    if problem := _misfit(checkpoint.model, checkpoint.vocabulary, entries):
        raise ValueError(problem)
    document = _dump(
        {
            "format_version": FORMAT_VERSION,
            "model": config.to_json(checkpoint.model),
            "vocabulary": checkpoint.vocabulary.to_json(),
            "step": checkpoint.step,
            "training": checkpoint.training,
            "facts": checkpoint.facts,
        }
    )
    digest = _digest(document, entries)
    for name in sorted(tensors):
        digest.update(_bytes(tensors[name]))
    header: dict[str, Any] = {"__metadata__": {"charlstm": document, "sha256": digest.hexdigest()}}
    for name, entry in entries.items():
        header[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": (entry.begin, entry.end)}
    text = _dump(header).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER or _values(text.decode()) > MAX_VALUES:
        raise ValueError(f"the metadata is too large: {len(text)} bytes of at most {MAX_HEADER}")
    return [memoryview(len(text).to_bytes(8, "little") + text), *(_bytes(tensors[name]) for name in entries)]


class _Bad(Exception):
    """What is wrong with a file; `load` puts its name in front."""


def _open(path: str | Path) -> BinaryIO:
    """A regular file, and nothing else, opened for reading."""
    try:
        fd = os.open(path, os.O_RDONLY | _FLAGS)
    except OSError as error:
        raise CheckpointError(f"{_show(path)} cannot be opened: {error.strerror or error}") from error
    except ValueError as error:  # a name with a NUL in it
        raise CheckpointError(f"{_show(path)} is no name of a file") from error
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        kind = "a folder" if stat.S_ISDIR(mode) else "a device or pipe"
        raise CheckpointError(f"{_show(path)} is {kind}, not a checkpoint")
    return os.fdopen(fd, "rb", buffering=0)


def _load(file: BinaryIO, training: bool) -> Checkpoint:
    size = os.fstat(file.fileno()).st_size
    header, data_at = _header(file, size)
    document, claimed = _metadata(header)
    entries = _entries(header, size - data_at)
    del header
    facts = _facts(document)
    model, vocabulary = _model(facts)
    if problem := _misfit(model, vocabulary, entries):
        raise _Bad(f"does not hold the model that it describes: {problem}")
    digest = _digest(document, entries)
    kept: dict[str, Array] = {}
    for name in sorted(entries):
        entry = entries[name]
        keep = training or name.startswith(_PREFIX)
        array = np.empty(entry.shape, _DTYPES[entry.dtype]) if keep else None
        for part in _read(file, data_at + entry.begin, entry.end - entry.begin, array):
            digest.update(part)
        if array is not None:
            kept[name] = array
    if digest.hexdigest() != claimed:
        raise _Bad("is damaged: its content does not have the sha256 that it should have; take another copy")
    return Checkpoint(
        model=model,
        vocabulary=vocabulary,
        weights={name: kept.pop(_PREFIX + name) for name in model.shapes()},
        step=facts["step"],
        training=facts["training"],
        tensors=kept,
        facts=facts["facts"],
    )


def _header(file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """The header, and the position of the first tensor's first byte."""
    if size < 8:
        raise _Bad(f"is not a safetensors file: it has {size} bytes")
    length = int.from_bytes(_read_whole(file, 0, 8), "little")
    if not 2 <= length <= size - 8:
        raise _Bad(f"is not a whole safetensors file: a header of {length} bytes in a file of {size}")
    if length > MAX_HEADER:
        raise _Bad(f"has a header of {length} bytes; that of a charlstm checkpoint has at most {MAX_HEADER}")
    try:
        text = str(_read_whole(file, 8, length), "utf-8")
    except UnicodeDecodeError as error:
        raise _Bad(f"has a header that is not UTF-8 at its byte {error.start}") from error
    header = _parse(text, "header")
    return header, 8 + length


def _parse(text: str, what: str) -> dict[str, Any]:
    """An object from JSON: strict, of bounded size and depth."""
    if _values(text) > MAX_VALUES:
        raise _Bad(f"has a {what} of more than {MAX_VALUES} values")
    try:
        value = json.loads(
            text, object_pairs_hook=_unique, parse_int=_whole, parse_float=_real, parse_constant=_no_constant
        )
        if _SURROGATE.search(text):
            _dump(value).encode()  # a half of a pair could be neither printed nor saved again
    except ValueError as error:
        raise _Bad(f"has a {what} that is not JSON ({escape(str(error))[:80]})") from error
    if not isinstance(value, dict):
        raise _Bad(f"has a {what} that is not a JSON object")
    return value


def _values(text: str) -> int:
    """A bound on how many values a JSON text has."""
    return 1 + sum(map(text.count, ",:[{"))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("an object has two entries of one name")
    return values


def _whole(digits: str) -> int:
    if len(digits) > 100:  # int() takes time by the square of their number, and 128 bits are the most that is ours
        raise ValueError("a number of more than 100 digits")
    return int(digits)


def _real(digits: str) -> float:
    if math.isinf(value := float(digits)):
        raise ValueError("a number beyond the range of double precision")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _metadata(header: dict[str, Any]) -> tuple[str, str]:
    """Our JSON text, and the sha256 that the file claims."""
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not isinstance(metadata.get("charlstm"), str):
        raise _Bad("is a safetensors file, but not a checkpoint of charlstm: its metadata has no entry 'charlstm'")
    if not isinstance(metadata.get("sha256"), str):
        raise _Bad("has no sha256 in its metadata")
    return metadata["charlstm"], metadata["sha256"]


def _entries(header: dict[str, Any], data_size: int) -> dict[str, _Entry]:
    """The tensors that the header describes: side by side, and to the file's last byte."""
    entries: dict[str, _Entry] = {}
    for name, value in header.items():
        if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
            raise _Bad(f"describes the tensor {_show(name)} by other than dtype, shape and data_offsets")
        dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise _Bad(f"has a tensor {_show(name)} of the unknown type {_show(dtype)}")
        if not _is_counts(shape) or len(shape) > MAX_RANK or 0 in shape:
            raise _Bad(f"has a tensor {_show(name)} of the impossible shape {_show(shape)}")
        if not _is_counts(offsets) or len(offsets) != 2:
            raise _Bad(f"has a tensor {_show(name)} at the impossible place {_show(offsets)}")
        begin, end = offsets
        needed = math.prod(shape) * _DTYPES[dtype].itemsize
        if end - begin != needed:
            raise _Bad(f"has {end - begin} bytes for the tensor {_show(name)} and needs {needed}")
        entries[name] = _Entry(dtype, tuple(shape), begin, end)
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            raise _Bad(f"has a hole or an overlap before the tensor {_show(name)}")
        position = entry.end
    if position != data_size:
        raise _Bad(f"has {data_size} bytes of tensors and should have {position}; it was cut short or added to")
    return entries


def _is_counts(value: object) -> bool:
    """Whether it is a list of whole numbers of at most 2⁵³ (bool is an int to Python, but not here)."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= 2**53 for item in value)


def _facts(document: str) -> dict[str, Any]:
    facts = _parse(document, "metadata entry 'charlstm'")
    version = facts.get("format_version")
    if type(version) is not int:
        raise _Bad("has no format version in its metadata")
    if version != FORMAT_VERSION:
        advice = "; a newer charlstm reads it: pip install -U charlstm" if version > FORMAT_VERSION else ""
        raise _Bad(f"has format version {_show(version)}, and charlstm {__version__} reads {FORMAT_VERSION}{advice}")
    wanted = {"format_version", "model", "vocabulary", "step", "training", "facts"}
    if facts.keys() != wanted:
        names = ", ".join(_show(name) for name in sorted(facts.keys() ^ wanted)[:5])
        raise _Bad(f"has missing or unknown entries in its metadata: {names}")
    if type(facts["step"]) is not int or not 0 <= facts["step"] <= 2**53:
        raise _Bad(f"has the impossible step {_show(facts['step'])}")
    if not isinstance(facts["facts"], dict) or not isinstance(facts["training"], (dict, type(None))):
        raise _Bad("has facts or a training record that is not a JSON object")
    return facts


def _model(facts: dict[str, Any]) -> tuple[ModelConfig, Vocabulary]:
    values = facts["model"]
    if isinstance(values, dict) and any(value is None for value in values.values()):
        raise _Bad("describes a model with a size of null")
    try:
        model = config.from_json(ModelConfig, values)
    except UsageError as error:
        raise _Bad(f"describes an impossible model: {error}") from error
    try:
        vocabulary = Vocabulary.from_json(facts["vocabulary"])
    except ValueError as error:
        raise _Bad(f"has an impossible vocabulary: {error}") from error
    return model, vocabulary


def _misfit(model: ModelConfig, vocabulary: Vocabulary, entries: Mapping[str, _Entry]) -> str | None:
    """How tensors and model differ: what was found, what was expected."""
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
            return f"the tensor {_show(name)} is not expected"
    return None


def _digest(document: str, entries: Mapping[str, _Entry]) -> hashlib._Hash:
    """The sha256 of all but the tensors' bytes, which follow in the order of their names. Where they lie is left out:
    the safetensors package may write the same content in another order."""
    described = [[name, entries[name].dtype, list(entries[name].shape)] for name in sorted(entries)]
    return hashlib.sha256(json.dumps([document, described]).encode())


def _read(file: BinaryIO, position: int, size: int, into: Array | None = None) -> Iterator[memoryview]:
    """`size` bytes from `position`, in pieces of at most a megabyte. They stay in `into`; without it each piece is lost
    with the next one.
    """
    target = None if into is None else _bytes(into)
    piece = memoryview(bytearray(min(size, 1 << 20))) if target is None else target
    file.seek(position)
    done = 0
    while done < size:
        at = done if target is not None else 0
        count = file.readinto(piece[at : at + min(size - done, 1 << 20)])  # type: ignore[attr-defined]
        if not count:
            raise _Bad("became shorter while it was read")
        yield piece[at : at + count]
        done += count


def _read_whole(file: BinaryIO, position: int, size: int) -> memoryview:
    array = np.empty(size, np.uint8)
    for _ in _read(file, position, size, array):
        pass
    return array.data


def _nonfinite(tensors: Mapping[str, Array]) -> list[str]:
    return [escape(name) for name, array in tensors.items() if array.dtype.kind == "f" and not np.isfinite(array).all()]


def _bytes(array: Array) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _dump(value: object) -> str:
    """Canonical JSON: one text for one value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _show(value: object) -> str:
    """A value from outside, short enough and safe for a terminal."""
    text = escape(str(value))
    return text if len(text) <= 120 else text[:120] + "…"
