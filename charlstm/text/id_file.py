"""Files of ids: the training on a text that is larger than memory reads one window at a time from the cache folder.

A file consists of the magic number, the length of the header (8 bytes, little endian), the header (JSON: key, sha256 of
the text, number of ids, vocabulary), the ids in the smallest type of the vocabulary, and the sha256 of all of this. The
key identifies the sources in their present state: a changed source has another key. A truncated, corrupt or mismatching
file is ignored and rebuilt.

Windows are read, not mapped. The pages of a mapping count as memory of the process until the kernel reclaims them, so
that a run would seem to need memory for the whole text, and would need it under the limit of a container. And a file
that is truncated causes an error here, where a mapping ends the process.
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
from charlstm.text.cache import user_cache
from charlstm.text.vocabulary import Vocabulary

MAX_FILES = 4  # the most recently used files are kept
ABANDONED_SECONDS = 86_400.0  # an older temporary file belongs to a process that was killed
MAGIC = b"charlstm-ids-1\r\n"
DIGEST_BYTES = 32
BLOCK_BYTES = 1 << 20


class StoredIds:
    """A view of ids (N,) in a file. A slice is another view; `numpy.asarray` reads the ids.

    Args:
        file: the open file; it is closed when the last view is deleted.
        dtype: type of a stored id.
        offset: number of bytes before the first id.
        length: number of ids, N.
        table: (V,) what each stored id is mapped to; None maps each to itself.

    Attributes:
        dtype: type of the ids that are read.
    """

    def __init__(
        self,
        file: IdFile,
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
            raise ValueError("ids in a file can only be sliced with step 1")
        offset = self._offset + start * self._stored.itemsize
        return StoredIds(self._file, self._stored, offset, max(0, stop - start), self._table)

    def mapped(self, table: np.ndarray[Any, Any]) -> StoredIds:
        """Return a view in which each id k is `table[k]`; the file is unchanged.

        Args:
            table: (V,) the new ids.
        """
        table = table if self._table is None else table[self._table]
        return StoredIds(self._file, self._stored, self._offset, self._length, table)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        """Read the ids.

        Raises:
            CorpusError: the file was truncated, or cannot be read.
        """
        try:
            ids = np.frombuffer(self._file.read(self._length * self._stored.itemsize, self._offset), self._stored)
        except (OSError, EOFError) as error:
            reason = getattr(error, "strerror", None) or "the file was truncated"
            raise CorpusError(
                f"the ids of the text in {folder()} cannot be read: {reason}; run the command again"
            ) from error
        ids = ids if self._table is None else self._table[ids]
        return ids if dtype is None else ids.astype(dtype)


class IdFile:
    """An open file that is closed when the last reference to it is deleted.

    Args:
        fd: the file descriptor.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        weakref.finalize(self, os.close, fd)

    @classmethod
    def open(cls, path: Path) -> IdFile:
        """Open a file for reading.

        Raises:
            OSError: the file cannot be opened.
        """
        return cls(os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)))

    def size(self) -> int:
        """Return the size in bytes."""
        return os.fstat(self._fd).st_size

    def read(self, size: int, offset: int) -> bytes:
        """Read `size` bytes at `offset`.

        Raises:
            EOFError: the file has fewer bytes.
        """
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
    """Return the folder of the files: ~/.cache/charlstm/ids on Linux, the equivalent on other platforms.

    The folder may not exist yet.
    """
    return user_cache() / "ids"


def find(key: str) -> tuple[StoredIds, Vocabulary, str] | None:
    """Look for the ids that were stored under a key.

    Returns:
        The ids, their vocabulary and the sha256 of the text; None if there is no valid file.
    """
    path = _path(key)
    try:
        file = IdFile.open(path)
        found = _parse(file, key)
        if not _has_valid_digest(file):
            return None
        os.utime(path)  # marks it as recently used
    except (OSError, EOFError, ValueError, KeyError, TypeError):
        return None
    return found


def store(
    key: str, vocabulary: Vocabulary, sha256: str, length: int, blocks: Iterable[np.ndarray[Any, Any]]
) -> StoredIds:
    """Write ids to a file under a key, and remove the least recently used files.

    Args:
        key: identifies the sources.
        vocabulary: the vocabulary of the ids.
        sha256: digest of the text.
        length: number of ids in all blocks.
        blocks: the ids.

    Returns:
        A view of all ids in the file.

    Raises:
        OSError: the folder is not writable, or the disk is full; no partial file is left.
    """
    path = _path(key)
    _evict(path)
    header = {"key": key, "sha256": sha256, "length": length, "vocabulary": vocabulary.to_json()}
    atomicfile.replace(path, _chunks(json.dumps(header).encode(), blocks))
    return _parse(IdFile.open(path), key)[0]


def store_temporarily(file: IO[bytes], vocabulary: Vocabulary, blocks: Iterable[np.ndarray[Any, Any]]) -> StoredIds:
    """Write ids of a text that cannot be read twice, such as a pipe, to a temporary file.

    Args:
        file: from `temporary_file`; it exists as long as the returned view.
        vocabulary: the vocabulary of the ids.
        blocks: the ids.

    Returns:
        A view of all ids in the file.

    Raises:
        OSError: the disk is full.
    """
    length = 0
    with file:
        for block in blocks:
            file.write(block.data)
            length += len(block)
        file.flush()
        return StoredIds(IdFile(os.dup(file.fileno())), vocabulary.dtype, 0, length)


def temporary_file() -> IO[bytes]:
    """Create a temporary file in the folder; it is deleted when it is closed, however the process ends.

    Raises:
        OSError: the folder is not writable.
    """
    target = folder()
    target.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryFile(dir=target, suffix=".tmp")


def _path(key: str) -> Path:
    return folder() / (hashlib.sha256(key.encode()).hexdigest()[:32] + ".ids")


def _chunks(header: bytes, blocks: Iterable[np.ndarray[Any, Any]]) -> Iterator[bytes | memoryview]:
    digest = hashlib.sha256()

    def content() -> Iterator[bytes | memoryview]:
        yield MAGIC + len(header).to_bytes(8, "little") + header
        for block in blocks:
            yield block.data

    for chunk in content():
        digest.update(chunk)
        yield chunk
    yield digest.digest()


def _parse(file: IdFile, key: str) -> tuple[StoredIds, Vocabulary, str]:
    """Parse the header of a file, and check its key and length, but not its digest.

    Raises:
        ValueError, EOFError, KeyError, TypeError: the file is invalid, or has another key or length.
    """
    size = file.size()
    start = file.read(len(MAGIC) + 8, 0)
    length = int.from_bytes(start[len(MAGIC) :], "little")
    if not start.startswith(MAGIC) or length > size:
        raise ValueError("not a file of ids")
    header = json.loads(file.read(length, len(start)))
    vocabulary = Vocabulary.from_json(header["vocabulary"])
    ids = StoredIds(file, vocabulary.dtype, len(start) + length, header["length"])
    if header["key"] != key or len(start) + length + len(ids) * ids.dtype.itemsize + DIGEST_BYTES != size:
        raise ValueError("another key or length")
    return ids, vocabulary, str(header["sha256"])


def _has_valid_digest(file: IdFile) -> bool:
    digest, end = hashlib.sha256(), file.size() - DIGEST_BYTES
    for offset in range(0, end, BLOCK_BYTES):
        digest.update(file.read(min(BLOCK_BYTES, end - offset), offset))
    return digest.digest() == file.read(DIGEST_BYTES, end)


def _evict(path: Path) -> None:
    """Remove the least recently used files before one is added, and the temporary files of killed processes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [entry for entry in os.scandir(path.parent) if entry.name.endswith((".ids", ".tmp"))]
    used: list[tuple[float, str]] = []
    for entry in files:
        with contextlib.suppress(OSError):  # another process removed the same file
            status = entry.stat()
            if entry.name.endswith(".ids"):
                used.append((status.st_mtime, entry.path))
            elif time.time() - status.st_mtime > ABANDONED_SECONDS:
                os.unlink(entry.path)
    for _, name in sorted(used, reverse=True)[MAX_FILES - 1 :]:
        with contextlib.suppress(OSError):  # the file is in use on Windows
            os.unlink(name)
