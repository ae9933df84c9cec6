"""The safetensors container: named arrays and JSON metadata in one file, with a checksum over all of it.

A file consists of the length of the header (8 bytes, little endian), the header (JSON, padded with spaces to a multiple
of 8), and the bytes of the tensors. The `__metadata__` of the header has two entries: `charlstm`, a JSON object that is
called the document here, and `sha256` over the text of the document, the names, types and shapes of the tensors, and
their bytes.

This module reads and writes the container instead of the safetensors package. The format is simple, and a reader of
files from strangers should see every check. The package cannot detect a duplicate key or limit the memory that the JSON
of a header takes, and its import takes as long as that of numpy. The tests check that each reads what the other wrote.

What a header claims is compared with the size of the file before memory of that size is allocated: loading takes at
most twice the size of the file and 64 MB.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple, NoReturn

import numpy as np

from charlstm.errors import CheckpointError
from charlstm.terminal import escape, shortened

# The vocabulary of all of Unicode takes 4.4 MB of header. Decoded text with one character beyond the Basic Multilingual
# Plane takes 4 bytes per character, so that this limit also keeps the memory for a header below 64 MB.
MAX_HEADER = 6 << 20
# Each value of a JSON text but the first follows one of `,` `:` `[` `{`. A few bytes of text can become a hundred
# bytes of objects ("{},{},…"); this limits their number. 64 layers with all their training state have 20,000 values.
MAX_VALUES = 200_000
MAX_RANK = 8
PIECE_BYTES = 1 << 20  # read at a time
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")

_DTYPES = MappingProxyType(
    {name: np.dtype(code) for name, code in (
        ("F64", "<f8"), ("F32", "<f4"), ("I64", "<i8"), ("I32", "<i4"),
        ("U64", "<u8"), ("U32", "<u4"), ("U16", "<u2"), ("U8", "u1"),
    )}
)  # fmt: skip
_NAMES = MappingProxyType({dtype: name for name, dtype in _DTYPES.items()})

# Without O_NONBLOCK, opening a pipe would wait for a writer.
_FLAGS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)

Array = np.ndarray[Any, Any]


class InvalidFile(Exception):
    """The problem of a file. The message continues the name of the file, which the caller puts before it."""


class Entry(NamedTuple):
    """The description of a tensor in a header; `begin` and `end` are offsets from the end of the header, in bytes."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    def empty(self) -> Array:
        """Return an uninitialised array of this type and shape."""
        return np.empty(self.shape, _DTYPES[self.dtype])


def layout(tensors: Mapping[str, Array]) -> dict[str, Entry]:
    """Return the entries of contiguous arrays in the order of the file: wide types first, so that all are aligned.

    Raises:
        ValueError: an array has a type or shape that a file cannot contain.
    """
    for name, array in tensors.items():
        if array.dtype not in _NAMES or not array.size or array.ndim > MAX_RANK:
            raise ValueError(f"{name}: a checkpoint cannot contain an array of {array.dtype} and shape {array.shape}")
    entries, position = {}, 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].itemsize, name)):
        array = tensors[name]
        entries[name] = Entry(_NAMES[array.dtype], array.shape, position, position + array.nbytes)
        position += array.nbytes
    return entries


def serialise(document: str, entries: Mapping[str, Entry], tensors: Mapping[str, Array]) -> list[memoryview]:
    """Return the bytes of a file in chunks. Equal arguments give equal bytes.

    Args:
        document: a JSON object as text.
        entries: from `layout`.
        tensors: name → contiguous array.

    Raises:
        ValueError: the header would be too large.
    """
    digest = digest_of(document, entries)
    for name in sorted(tensors):
        digest.update(_bytes(tensors[name]))
    header: dict[str, Any] = {"__metadata__": {"charlstm": document, "sha256": digest.hexdigest()}}
    for name, entry in entries.items():
        header[name] = {"dtype": entry.dtype, "shape": entry.shape, "data_offsets": (entry.begin, entry.end)}
    text = dump(header).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MAX_HEADER or _values(text.decode()) > MAX_VALUES:
        raise ValueError(f"the metadata is too large: {len(text)} bytes; the limit is {MAX_HEADER}")
    return [memoryview(len(text).to_bytes(8, "little") + text), *(_bytes(tensors[name]) for name in entries)]


def dump(value: object) -> str:
    """Return canonical JSON: equal values give equal texts. NaN and infinite numbers are a ValueError."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def open_file(path: str | Path) -> BinaryIO:
    """Open a regular file for reading; the open file is unbuffered.

    Raises:
        CheckpointError: the file cannot be opened, or is not a regular file.
    """
    try:
        fd = os.open(path, os.O_RDONLY | _FLAGS)
    except OSError as error:
        raise CheckpointError(f"{shortened(path)} cannot be opened: {error.strerror or error}") from error
    except ValueError as error:  # a NUL in the path
        raise CheckpointError(f"{shortened(path)} is not a valid file name") from error
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        kind = "a directory" if stat.S_ISDIR(mode) else "a device or pipe"
        raise CheckpointError(f"{shortened(path)} is {kind}, not a checkpoint")
    return os.fdopen(fd, "rb", buffering=0)


def read_header(file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """Read the header of a file of `size` bytes.

    Returns:
        The header, and the position of the first byte of the tensors.

    Raises:
        InvalidFile: the header is truncated, too large, or not a JSON object.
    """
    if size < 8:
        raise InvalidFile(f"is not a safetensors file: it has {size} bytes")
    length = int.from_bytes(_read_all(file, 0, 8), "little")
    if not 2 <= length <= size - 8:
        raise InvalidFile(f"is not a safetensors file, or is truncated: a header of {length} bytes in {size} bytes")
    if length > MAX_HEADER:
        raise InvalidFile(f"has a header of {length} bytes; the limit for a charlstm checkpoint is {MAX_HEADER}")
    try:
        text = str(_read_all(file, 8, length), "utf-8")
    except UnicodeDecodeError as error:
        raise InvalidFile(f"has a header that is not UTF-8 at its byte {error.start}") from error
    return parse(text, "header"), 8 + length


def parse(text: str, what: str) -> dict[str, Any]:
    """Parse a JSON object strictly, with a limited number of values.

    Raises:
        InvalidFile: the text is not a JSON object, has too many values, or has a duplicate key.
        RecursionError: the objects are nested too deep.
    """
    if _values(text) > MAX_VALUES:
        raise InvalidFile(f"has a {what} of more than {MAX_VALUES} values")
    try:
        value = json.loads(
            text, object_pairs_hook=_unique, parse_int=_integer, parse_float=_real, parse_constant=_no_constant
        )
        if _SURROGATE.search(text):
            dump(value).encode()  # a lone surrogate could be neither printed nor saved again
    except ValueError as error:
        raise InvalidFile(f"has a {what} that is not JSON ({escape(str(error))[:80]})") from error
    if not isinstance(value, dict):
        raise InvalidFile(f"has a {what} that is not a JSON object")
    return value


def _values(text: str) -> int:
    """Return an upper bound on the number of values of a JSON text."""
    return 1 + sum(map(text.count, ",:[{"))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("an object has two entries of one name")
    return values


def _integer(digits: str) -> int:
    if len(digits) > 100:  # int() takes quadratic time, and checkpoints have at most 128 bits
        raise ValueError("a number of more than 100 digits")
    return int(digits)


def _real(digits: str) -> float:
    if math.isinf(value := float(digits)):
        raise ValueError("a number beyond the range of double precision")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def take_metadata(header: dict[str, Any]) -> tuple[str, str]:
    """Remove the metadata from a header, and return the text of the document and the sha256 that the file claims.

    Raises:
        InvalidFile: an entry is missing.
    """
    metadata = header.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not isinstance(metadata.get("charlstm"), str):
        raise InvalidFile("is a safetensors file, but not a charlstm checkpoint: its metadata has no entry 'charlstm'")
    if not isinstance(metadata.get("sha256"), str):
        raise InvalidFile("is invalid: it has no sha256 in its metadata")
    return metadata["charlstm"], metadata["sha256"]


def entries_of(header: Mapping[str, Any], data_size: int) -> dict[str, Entry]:
    """Return the tensors that a header describes, which fill the rest of the file without gaps.

    Args:
        header: the header without its metadata.
        data_size: number of bytes after the header.

    Raises:
        InvalidFile: a description is invalid, or does not match the size of the file.
    """
    entries: dict[str, Entry] = {}
    for name, value in header.items():
        if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
            raise InvalidFile(f"describes the tensor {shortened(name)} by other than dtype, shape and data_offsets")
        dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
        if not isinstance(dtype, str) or dtype not in _DTYPES:
            raise InvalidFile(f"has a tensor {shortened(name)} of the unknown type {shortened(dtype)}")
        if not _is_counts(shape) or len(shape) > MAX_RANK or 0 in shape:
            raise InvalidFile(f"has a tensor {shortened(name)} of the invalid shape {shortened(shape)}")
        if not _is_counts(offsets) or len(offsets) != 2:
            raise InvalidFile(f"has a tensor {shortened(name)} at the invalid offsets {shortened(offsets)}")
        begin, end = offsets
        needed = math.prod(shape) * _DTYPES[dtype].itemsize
        if end - begin != needed:
            raise InvalidFile(f"has {end - begin} bytes for the tensor {shortened(name)}, which needs {needed}")
        entries[name] = Entry(dtype, tuple(shape), begin, end)
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            raise InvalidFile(f"has a gap or an overlap before the tensor {shortened(name)}")
        position = entry.end
    if position != data_size:
        raise InvalidFile(f"is truncated or has extra bytes: {data_size} bytes of tensors, expected {position}")
    return entries


def _is_counts(value: object) -> bool:
    """Return whether a value is a list of integers from 0 to 2⁵³; bool, a subclass of int, does not count."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= 2**53 for item in value)


def digest_of(document: str, entries: Mapping[str, Entry]) -> hashlib._Hash:
    """Return the sha256 of all but the bytes of the tensors, which follow in the order of their names.

    The offsets are not part of it: the safetensors package may write the same content in another order.
    """
    described = [[name, entries[name].dtype, list(entries[name].shape)] for name in sorted(entries)]
    return hashlib.sha256(json.dumps([document, described]).encode())


def read(file: BinaryIO, position: int, size: int, into: Array | None = None) -> Iterator[memoryview]:
    """Read `size` bytes from a position in pieces of at most PIECE_BYTES.

    The bytes are stored in `into`. Without it a piece is valid only until the next one is requested.

    Raises:
        InvalidFile: the file has become shorter.
    """
    target = None if into is None else _bytes(into)
    piece = memoryview(bytearray(min(size, PIECE_BYTES))) if target is None else target
    file.seek(position)
    done = 0
    while done < size:
        at = done if target is not None else 0
        count = file.readinto(piece[at : at + min(size - done, PIECE_BYTES)])  # type: ignore[attr-defined]
        if not count:
            raise InvalidFile("became shorter while it was read")
        yield piece[at : at + count]
        done += count


def _read_all(file: BinaryIO, position: int, size: int) -> memoryview:
    array = np.empty(size, np.uint8)
    for _ in read(file, position, size, array):
        pass
    return array.data


def _bytes(array: Array) -> memoryview:
    return array.reshape(-1).view(np.uint8).data
