"""Valid and damaged checkpoint files, made from the description of the format and not with the code under test."""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from charlstm.checkpoint import Checkpoint, save
from tests.helpers.faults import example

MEGABYTE = 1 << 20


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Fail the test if the body takes longer, even if it would never return."""

    def stop(number: int, frame: FrameType | None) -> None:
        pytest.fail(f"took longer than {seconds} s")  # not an OSError: the code under test may catch one

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def written(folder: Path, state: Checkpoint | None = None) -> bytes:
    """Return the bytes of a checkpoint file."""
    path = folder / "written.safetensors"
    save(path, state or example())
    return path.read_bytes()


def take_apart(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header, and the bytes of the tensors."""
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def put_together(header: Any, body: bytes) -> bytes:
    """Return the bytes of a file with this header (JSON, or raw bytes) and these bytes of tensors."""
    text = (
        header if isinstance(header, bytes) else json.dumps(header, ensure_ascii=False).encode("utf-8", "surrogatepass")
    )
    return struct.pack("<Q", len(text)) + text + body


def digest(header: dict[str, Any], body: bytes) -> str:
    """Return the sha256 of a file as the description of the format defines it."""
    names = sorted(name for name in header if name != "__metadata__")
    described = [[name, header[name]["dtype"], header[name]["shape"]] for name in names]
    text = json.dumps([header["__metadata__"]["charlstm"], described])
    data = b"".join(body[slice(*header[name]["data_offsets"])] for name in names)
    return hashlib.sha256(text.encode() + data).hexdigest()


def crafted(data: bytes, change: Callable[[dict[str, Any], dict[str, Any]], Any]) -> bytes:
    """Return `data` with its header and document changed in place by `change(header, document)` and a valid digest."""
    header, body = take_apart(data)
    document = json.loads(header["__metadata__"]["charlstm"])
    change(header, document)
    header["__metadata__"]["charlstm"] = json.dumps(document)
    header["__metadata__"]["sha256"] = digest(header, body)
    return put_together(header, body)


def tensor(header: dict[str, Any]) -> dict[str, Any]:
    return header["optim/mean"]  # type: ignore[no-any-return]


def set_at(holder: Any, key: Any, value: Any) -> None:
    holder[key] = value


def move(header: dict[str, Any], by: int) -> None:
    tensor(header)["data_offsets"] = [place + by for place in tensor(header)["data_offsets"]]


def add(header: dict[str, Any], name: str, dtype: Any, shape: Any, begin: Any, end: Any) -> None:
    header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def double(text: bytes, entry: bytes) -> bytes:
    """Return a JSON object with an entry added at its end."""
    return text.rstrip()[:-1] + b"," + entry + b"}"


# Kinds of damage to the entries of a header. Each function changes the header in place.
DAMAGED_ENTRIES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "overlap": lambda h: move(h, -4),
    "hole": lambda h: move(h, 4),
    "beyond the end": lambda h: move(h, 1 << 40),
    "negative place": lambda h: move(h, -(1 << 20)),
    "end before begin": lambda h: tensor(h)["data_offsets"].reverse(),
    "one offset": lambda h: tensor(h)["data_offsets"].pop(),
    "three offsets": lambda h: tensor(h)["data_offsets"].append(9),
    "offsets of float": lambda h: set_at(tensor(h), "data_offsets", [0.0, 72.0]),
    "offsets of bool": lambda h: set_at(tensor(h), "data_offsets", [False, True]),
    "offsets of text": lambda h: set_at(tensor(h), "data_offsets", ["0", "72"]),
    "offsets null": lambda h: set_at(tensor(h), "data_offsets", None),
    "two tensors at one place": lambda h: set_at(h, "optim/twin", dict(tensor(h))),
    "nothing, in the middle of another": lambda h: add(h, "optim/none", "F32", [0], 4, 4),
    "nothing, of astronomic shape": lambda h: add(h, "optim/none", "F32", [2**53, 2**53, 0], 0, 0),
    "dimensions that overflow 64 bits": lambda h: set_at(tensor(h), "shape", [2**32, 2**32, 3]),
    "dimensions that overflow to the right size": lambda h: set_at(tensor(h), "shape", [2**62 + 18]),
    "dimension beyond 2⁶⁴": lambda h: set_at(tensor(h), "shape", [2**80]),
    "negative dimension": lambda h: set_at(tensor(h), "shape", [-3, -6]),
    "dimension of float": lambda h: set_at(tensor(h), "shape", [3.0, 6]),
    "dimension of bool": lambda h: set_at(tensor(h), "shape", [True, 18]),
    "dimension of text": lambda h: set_at(tensor(h), "shape", ["18"]),
    "shape that is a number": lambda h: set_at(tensor(h), "shape", 18),
    "rank 1000": lambda h: set_at(tensor(h), "shape", [1] * 999 + [18]),
    "unknown type": lambda h: set_at(tensor(h), "dtype", "F31"),
    "type of an object": lambda h: set_at(tensor(h), "dtype", "O"),
    "type that numpy lacks": lambda h: set_at(tensor(h), "dtype", "BF16"),
    "type in a list": lambda h: set_at(tensor(h), "dtype", ["F32"]),
    "type null": lambda h: set_at(tensor(h), "dtype", None),
    "wider type than there are bytes": lambda h: set_at(tensor(h), "dtype", "F64"),
    "tensor that is a list": lambda h: set_at(h, "optim/mean", []),
    "tensor that is null": lambda h: set_at(h, "optim/mean", None),
    "tensor without a shape": lambda h: tensor(h).pop("shape"),
    "tensor with more to it": lambda h: set_at(tensor(h), "strides", [1]),
    "tensor without a name": lambda h: set_at(h, "", h.pop("optim/mean")),
    "unknown kind of tensor": lambda h: set_at(h, "../../etc/passwd", h.pop("optim/mean")),
    "no tensors": lambda h: [h.pop(name) for name in list(h) if name != "__metadata__"],
    "metadata missing": lambda h: h.pop("__metadata__"),
    "metadata null": lambda h: set_at(h, "__metadata__", None),
    "metadata a list": lambda h: set_at(h, "__metadata__", []),
    "our entry missing": lambda h: h["__metadata__"].pop("charlstm"),
    "our entry not text": lambda h: set_at(h["__metadata__"], "charlstm", {}),
    "our entry not JSON": lambda h: set_at(h["__metadata__"], "charlstm", "{"),
    "our entry not an object": lambda h: set_at(h["__metadata__"], "charlstm", "[1]"),
    "our entry empty": lambda h: set_at(h["__metadata__"], "charlstm", ""),
    "digest missing": lambda h: h["__metadata__"].pop("sha256"),
    "digest null": lambda h: set_at(h["__metadata__"], "sha256", None),
    "digest of upper case": lambda h: set_at(h["__metadata__"], "sha256", h["__metadata__"]["sha256"].upper()),
    "digest cut": lambda h: set_at(h["__metadata__"], "sha256", h["__metadata__"]["sha256"][:-1]),
    "digest empty": lambda h: set_at(h["__metadata__"], "sha256", ""),
}  # fmt: skip


# Kinds of damage to the text of a header. Each function returns the damaged text.
DAMAGED_HEADERS: dict[str, Callable[[bytes], bytes]] = {
    "not UTF-8": lambda t: t.replace(b"optim/mean", b"optim/m\xffan"),
    "overlong UTF-8": lambda t: t.replace(b"optim/mean", b"optim/m\xc1\xa1n"),
    "UTF-16": lambda t: t.decode().encode("utf-16"),
    "with a byte order mark": lambda t: b"\xef\xbb\xbf" + t,
    "not JSON": lambda t: t[:-20],
    "two values": lambda t: t + b"{}",
    "a comma too many": lambda t: t.rstrip()[:-1] + b",}",
    "a single quote": lambda t: t.replace(b'"optim/mean"', b"'optim/mean'"),
    "a raw control": lambda t: t.replace(b"optim/mean", b"optim/me\nan"),
    "a list": lambda t: b"[" + t + b"]",
    "a number": lambda t: b"12345678",
    "null": lambda t: b"null    ",
    "empty": lambda t: b"{}",
    "only NULs": lambda t: bytes(len(t)),
    "only spaces": lambda t: b" " * len(t),
    "a duplicate tensor": lambda t: double(t, b'"optim/mean":{"dtype":"F32","shape":[3,6],"data_offsets":[0,72]}'),
    "a duplicate key in a tensor": lambda t: t.replace(b'"dtype":"F64"', b'"dtype":"F32","dtype":"F64"', 1),
    "a duplicate metadata": lambda t: double(t, b'"__metadata__":{}'),
    "NaN": lambda t: t.replace(b"[3,6]", b"[NaN,6]", 1),
    "Infinity": lambda t: t.replace(b"[3,6]", b"[3,Infinity]", 1),
    "a number beyond double": lambda t: t.replace(b"[3,6]", b"[3,6e999]", 1),
    "a number of 5,000 digits": lambda t: t.replace(b"[3,6]", b"[3," + b"6" * 5000 + b"]", 1),
    "a number of 5,000,000 digits": lambda t: t.replace(b"[3,6]", b"[3," + b"6" * 5_000_000 + b"]", 1),
    "lists 900 deep": lambda t: t.replace(b"[3,6]", b"[" * 900 + b"]" * 900, 1),
    "lists 100,000 deep": lambda t: t.replace(b"[3,6]", b"[" * 100_000 + b"]" * 100_000, 1),
    "objects 100,000 deep": lambda t: t.replace(b"[3,6]", b'{"a":' * 100_000 + b"1" + b"}" * 100_000, 1),
    "17 MB of spaces": lambda t: t + b" " * (17 * MEGABYTE),
    "17 MB of text": lambda t: t.replace(b"optim/mean", b"x" * (17 * MEGABYTE)),
    "5 MB of empty lists": lambda t: t.replace(b"[3,6]", b"[" + b"[]," * (5 * MEGABYTE // 3) + b"1]", 1),
    "5 MB of empty objects": lambda t: t.replace(b"[3,6]", b"[" + b"{}," * (5 * MEGABYTE // 3) + b"1]", 1),
    "199,000 empty objects": lambda t: t.replace(b"[3,6]", b"[" + b"{}," * 99_500 + b"1]", 1),
    "5 MB of text with one astral character": lambda t: double(t, b'"\xf0\x9f\x98\x80' + b"x" * 5_000_000 + b'":1'),
    "5 MB of text in our entry": lambda t: t.replace("☃.txt".encode(), "😀".encode() + b"x" * (5 * MEGABYTE)),
}  # fmt: skip
