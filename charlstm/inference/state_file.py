"""Save the context of a text to a small file, and load it in another process.

The file consists of a header, the state (float32), the symbols before the last (int32), and the sha256 of all that.
All numbers are little endian. Every value of a file is checked, because it may come from a stranger.
"""

from __future__ import annotations

import hashlib
import math
import struct
from pathlib import Path

import numpy as np

from charlstm import atomicfile, terminal
from charlstm.config import MAX_REPEAT_WINDOW, ModelConfig
from charlstm.errors import CheckpointError
from charlstm.inference.context import Context

MAGIC = b"charlstm-state-2"
HEADER = struct.Struct("<16s32sqqqq")  # magic, digest of the model, last, position, seed or −1, symbols before the last


def save(path: str | Path, context: Context, digest: bytes) -> None:
    """Write a context atomically.

    Args:
        path: the file.
        context: the context.
        digest: (32 bytes) identifies the model, which must be the same when the file is loaded.

    Raises:
        OSError: the file could not be written. An existing file is unchanged.
    """
    seed = -1 if context.seed is None else context.seed
    before = context.before
    data = HEADER.pack(MAGIC, digest, context.last, context.position, seed, len(before))
    data += np.ascontiguousarray(context.state, "<f4").tobytes() + np.ascontiguousarray(before, "<i4").tobytes()
    atomicfile.replace(Path(path), [data, hashlib.sha256(data).digest()])


def load(path: str | Path, config: ModelConfig, digest: bytes) -> Context:
    """Read a context that `save` wrote.

    Args:
        path: the file.
        config: the shape of the model.
        digest: (32 bytes) identifies the model.

    Raises:
        CheckpointError: the file cannot be read, is no state file, is truncated or corrupt, or was saved by another
            model.
    """
    name = terminal.escape(str(path))
    shape = config.state_shape(1)
    size = HEADER.size + 4 * math.prod(shape)
    try:
        with Path(path).open("rb") as file:
            data = file.read(size + 4 * MAX_REPEAT_WINDOW + 32)
    except OSError as error:
        raise CheckpointError(f"cannot read the state {name}: {error.strerror}") from error
    if not data.startswith(MAGIC):
        raise CheckpointError(f"{name} is not a state file of charlstm")
    same_model = len(data) > size and data[len(MAGIC) : len(MAGIC) + 32] == digest
    if not same_model or len(data) != size + 4 * HEADER.unpack_from(data)[-1] + 32:
        raise CheckpointError(f"the state {name} belongs to another model or is truncated; save it again")
    if hashlib.sha256(data[:-32]).digest() != data[-32:]:
        raise CheckpointError(f"the state {name} is corrupt: its checksum is wrong; save it again")
    _, _, last, position, seed, _ = HEADER.unpack_from(data)
    state = np.frombuffer(data[HEADER.size : size], "<f4").astype(np.float32).reshape(shape)
    before = np.frombuffer(data[size:-32], "<i4").astype(np.int32)
    known = 0 <= last < config.vocab_size and all(0 <= symbol < config.vocab_size for symbol in before)
    if not (known and position >= 0 and seed >= -1 and np.isfinite(state).all()):
        raise CheckpointError(f"the state {name} is invalid: it has values that no model can produce")
    return Context(state, last, position, None if seed == -1 else seed, before)
