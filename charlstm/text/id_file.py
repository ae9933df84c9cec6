"""Ids in a file: a text larger than memory trains from the platform's folder for caches, a window at a time.

The file is the magic, the length of the header (8 bytes, little endian), the header (JSON: key, sha256 of the text,
number of ids, vocabulary), the ids in the vocabulary's smallest type, and the sha256 of all that. The key stands for
the sources as they are: a changed source has another. A file that is not whole, or of another key, is as good as none.

Windows are read, not mapped. The pages of a mapping count as the process's memory until the kernel wants them back, so
that a run would seem to need, and under a limit of its container would need, the whole text; and a file that is cut
short gives an error here, where a mapping ends the process.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import tempfile
import time
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from charlstm import atomicfile
from charlstm.errors import CorpusError
from charlstm.text.vocabulary import Vocabulary

KEPT = 4  # files, the latest used
ABANDONED_SECONDS = 86_400.0  # a temporary file so old is of a process that was killed
MAGIC = b"charlstm-ids-1\r\n"
DIGEST_BYTES = 32
BLOCK_BYTES = 1 << 20


class StoredIds:
    """Ids (N,) that lie in a file. A slice is another such view; `numpy.asarray` reads.

    Args:
        file: it is closed when the last view is gone.
        dtype: of one id.
        offset: bytes before the first.
        length: how many there are.
        table: what each stands for, (V,); None where each stands for itself.
    """

    def __init__(
        self,
        file: _File,
        dtype: np.dtype[Any],
        offset: int,
        length: int,
        table: np.ndarray[Any, Any] | None = None,
    ) -> None:
        self.dtype = dtype if table is None else table.dtype
        self._file, self._stored, self._offset, self._length, self._table = file, dtype, offset, length, table

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, part: slice) -> StoredIds:
        start, stop, step = part.indices(self._length)
        if step != 1:
            raise ValueError("ids in a file are cut without a step")
        offset = self._offset + start * self._stored.itemsize
        return StoredIds(self._file, self._stored, offset, max(0, stop - start), self._table)

    def through(self, table: np.ndarray[Any, Any]) -> StoredIds:
        """These ids as `table` (V,) has them; the file stays as it is."""
        table = table if self._table is None else table[self._table]
        return StoredIds(self._file, self._stored, self._offset, self._length, table)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        """Raises CorpusError: the file was cut short, or cannot be read."""
        try:
            ids = np.frombuffer(self._file.read(self._length * self._stored.itemsize, self._offset), self._stored)
        except (OSError, EOFError) as error:
            reason = getattr(error, "strerror", None) or "it became shorter"
            raise CorpusError(f"the text's ids in {folder()} cannot be read: {reason}; begin again") from error
        ids = ids if self._table is None else self._table[ids]
        return ids if dtype is None else ids.astype(dtype)


class _File:
    """An open file that is closed with its last user."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        weakref.finalize(self, os.close, fd)

    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def read(self, size: int, offset: int) -> bytes:
        """Raises EOFError: there are fewer bytes."""
        parts = []
        while size:
            if sys.platform == "win32":
                os.lseek(self._fd, offset, os.SEEK_SET)
                part = os.read(self._fd, size)
            else:
                part = os.pread(self._fd, size, offset)
            if not part:
                raise EOFError
            parts.append(part)
            size, offset = size - len(part), offset + len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def folder() -> Path:
    """Where the files are: ~/.cache/charlstm/ids on Linux, its like elsewhere. It need not exist."""
    import platformdirs

    return platformdirs.user_cache_path("charlstm", appauthor=False) / "ids"


def find(key: str) -> tuple[StoredIds, Vocabulary, str] | None:
    """The ids kept under `key`, their vocabulary and the sha256 of the text; None where no whole file has them."""
    path = _path(key)
    try:
        file = _open(path)
        found = _opened(file, key)
        if not _is_whole(file):
            return None
        os.utime(path)  # the latest used stay
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None
    return found


def keep(
    key: str, vocabulary: Vocabulary, sha256: str, length: int, blocks: Iterable[np.ndarray[Any, Any]]
) -> StoredIds:
    """Write ids under `key`, and remove the files that were not used for longest.

    Args:
        sha256: of the text.
        length: ids in all blocks together.

    Raises:
        OSError: the folder cannot be written, or is full; nothing is left there.
    """
    path = _path(key)
    _evict(path)
    header = {"key": key, "sha256": sha256, "length": length, "vocabulary": vocabulary.to_json()}
    atomicfile.replace(path, _chunks(json.dumps(header).encode(), blocks))
    return _opened(_open(path), key)[0]


def keep_nameless(file: IO[bytes], vocabulary: Vocabulary, blocks: Iterable[np.ndarray[Any, Any]]) -> StoredIds:
    """Write ids of a text that cannot be found again, such as that of a pipe, to a file from `nameless`, which lives as
    long as they are used.

    Raises:
        OSError: the folder is full.
    """
    length = 0
    with file:
        for block in blocks:
            file.write(block.data)
            length += len(block)
        file.flush()
        return StoredIds(_File(os.dup(file.fileno())), vocabulary.dtype, 0, length)


def nameless() -> IO[bytes]:
    """A temporary file in the folder that is gone once it is closed, however the process ends.

    Raises:
        OSError: the folder cannot be written.
    """
    where = folder()
    where.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryFile(dir=where, suffix=".tmp")


def _path(key: str) -> Path:
    return folder() / (hashlib.sha256(key.encode()).hexdigest()[:32] + ".ids")


def _chunks(header: bytes, blocks: Iterable[np.ndarray[Any, Any]]) -> Iterator[bytes | memoryview]:
    digest = hashlib.sha256()

    def counted() -> Iterator[bytes | memoryview]:
        yield MAGIC + len(header).to_bytes(8, "little") + header
        for block in blocks:
            yield block.data

    for chunk in counted():
        digest.update(chunk)
        yield chunk
    yield digest.digest()


def _open(path: Path) -> _File:
    return _File(os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)))


def _opened(file: _File, key: str) -> tuple[StoredIds, Vocabulary, str]:
    """What a file of this key holds; its digest is not compared here.

    Raises:
        ValueError, EOFError, KeyError, TypeError: it is no file of this key, or has another length than it should.
    """
    size = file.size()
    start = file.read(len(MAGIC) + 8, 0)
    length = int.from_bytes(start[len(MAGIC) :], "little")
    if not start.startswith(MAGIC) or length > size:
        raise ValueError("no file of ids")
    header = json.loads(file.read(length, len(start)))
    vocabulary = Vocabulary.from_json(header["vocabulary"])
    ids = StoredIds(file, vocabulary.dtype, len(start) + length, header["length"])
    if header["key"] != key or len(start) + length + len(ids) * ids.dtype.itemsize + DIGEST_BYTES != size:
        raise ValueError("of another text or length")
    return ids, vocabulary, str(header["sha256"])


def _is_whole(file: _File) -> bool:
    digest, end = hashlib.sha256(), file.size() - DIGEST_BYTES
    for offset in range(0, end, BLOCK_BYTES):
        digest.update(file.read(min(BLOCK_BYTES, end - offset), offset))
    return digest.digest() == file.read(DIGEST_BYTES, end)


def _evict(path: Path) -> None:
    """Make room for one more file, and remove what killed processes have left."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [entry for entry in os.scandir(path.parent) if entry.name.endswith((".ids", ".tmp"))]
    used: list[tuple[float, str]] = []
    for entry in files:
        with contextlib.suppress(OSError):  # another charlstm removes the same
            status = entry.stat()
            if entry.name.endswith(".ids"):
                used.append((status.st_mtime, entry.path))
            elif time.time() - status.st_mtime > ABANDONED_SECONDS:
                os.unlink(entry.path)
    for _, name in sorted(used, reverse=True)[KEPT - 1 :]:
        with contextlib.suppress(OSError):  # in use, on Windows
            os.unlink(name)
