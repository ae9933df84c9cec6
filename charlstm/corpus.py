"""From files to ids: strict reading, the split, and parallel streams over the training part.

Letters: B batch, T time, S transitions of one stream.
"""

from __future__ import annotations

import codecs
import hashlib
import os
import select
import stat
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from charlstm import bundled, downloads
from charlstm.config import MAX_VOCABULARY
from charlstm.errors import CorpusError, UsageError
from charlstm.terminal import escape
from charlstm.vocab import Vocabulary, code_points

STDIN = "-"
MAX_CHARS = 2**31
BLOCK_BYTES = 1 << 18  # read and decoded at a time

Ids = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Corpus:
    """A text as ids.

    Attributes:
        ids: (N,) in the vocabulary's smallest type.
        vocabulary: that of the whole text.
        sha256: of the text in UTF-8, all sources joined.
        names: the sources as they were given, safe to print.
    """

    ids: Ids
    vocabulary: Vocabulary
    sha256: str
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.ids)

    def split(self, valid_share: float) -> tuple[Ids, Ids]:
        """The training part and the last `valid_share` of the text, held out; views, no copies.

        A held-out part of fewer than two characters has no transition to score: then all is for training and the
        second array is empty.

        Raises:
            CorpusError: fewer than two characters for training.
        """
        cut = int(len(self.ids) * (1 - valid_share))
        if len(self.ids) - cut < 2:
            cut = len(self.ids)
        if cut < 2:
            raise CorpusError(f"of the text's {len(self.ids)} characters {cut} would train; it takes 2 or more")
        return self.ids[:cut], self.ids[cut:]


def read(sources: Sequence[str | Path], *, encoding: str = "utf-8", max_chars: int | None = None) -> Corpus:
    """Read texts, joined in the given order with nothing between them.

    A source is a file, a folder (every file below it that is not hidden, in sorted order), '-' for stdin, or the name
    of a corpus, where there is no file of that name: of one that Python brings along, or of one from the net that was
    loaded before. What is compressed with gzip is expanded. Decoding is strict, no newline is translated, a byte order
    mark is a character.

    Args:
        encoding: of all sources but named corpora, which are UTF-8; utf-8 or another that Python knows.
        max_chars: where to stop with an error; by default 2**31 or what half of the machine's memory can hold.

    Needs up to 6 bytes a character while it reads: the text, 1 to 4 bytes, and the ids, 1 or 2.

    Raises:
        CorpusError: a source that cannot be read or decoded, that is too long, or a text of no characters.
        UsageError: an encoding that does not exist.
    """
    digest = hashlib.sha256()
    seen = np.zeros(MAX_VOCABULARY, dtype=bool)
    parts: list[str] = []
    for part in _decoded(sources, encoding, max_chars):
        digest.update(part.encode())
        seen[code_points(part)] = True
        parts.append(part)
    vocabulary = Vocabulary.of_seen(seen)
    ids = np.empty(sum(map(len, parts)), dtype=vocabulary.dtype)
    parts.reverse()
    start = 0
    while parts:  # each part is freed as its ids are made
        part = parts.pop()
        ids[start : start + len(part)] = vocabulary.encode(part)
        start += len(part)
    return Corpus(ids, vocabulary, digest.hexdigest(), tuple(escape(str(source)) for source in sources))


def read_text(sources: Sequence[str | Path], *, encoding: str = "utf-8", max_chars: int | None = None) -> str:
    """The text that `read` would turn into ids. Arguments and errors as there."""
    return "".join(_decoded(sources, encoding, max_chars))


def parts(sources: Sequence[str | Path], *, encoding: str = "utf-8") -> Iterator[str]:
    """The text in parts, each as soon as its source gives it, and without a limit. Errors as in `read`."""
    return _decoded(sources, encoding, sys.maxsize)


def fit(n_chars: int, batch_size: int, seq_len: int) -> tuple[int, int]:
    """The largest (B, T) up to those wished for with which a training part of `n_chars` fills a window of every stream.

    Raises:
        CorpusError: fewer than two characters.
    """
    transitions = n_chars - 1
    if transitions < 1:
        raise CorpusError(f"the training part has {n_chars} characters; it needs 2 or more")
    seq_len = min(seq_len, transitions)
    return min(batch_size, transitions // seq_len), seq_len


class Streams:
    """B parallel streams over the ids of a training part, in windows of T; the same for ever, whatever the seed.

    Of the N − 1 transitions each stream has its own S = (N − 1) // B that lie side by side. In one epoch each
    transition is in exactly one window, but for the N − 1 − B·S < B left over; which these are changes from epoch to
    epoch. The last window of an epoch is shorter than T where T does not divide S.

    Attributes:
        cursor: windows given so far; `seek(cursor)` goes on from there.
        windows_per_epoch: ⌈S / T⌉.

    Raises:
        CorpusError: fewer transitions than streams.
    """

    def __init__(self, ids: Ids, batch_size: int, seq_len: int) -> None:
        self._ids = ids
        self._streams = batch_size
        self._length = (len(ids) - 1) // batch_size
        self._window = seq_len
        if self._length < 1:
            raise CorpusError(f"{batch_size} streams need {batch_size + 1} characters or more, not {len(ids)}")
        self.windows_per_epoch = -(-self._length // seq_len)
        self.cursor = 0

    @property
    def chars_per_epoch(self) -> int:
        """Transitions in the windows of one epoch, B·S."""
        return self._streams * self._length

    def seek(self, cursor: int) -> None:
        """Go to the window after `cursor` windows.

        Raises:
            ValueError: a negative cursor.
        """
        if cursor < 0:
            raise ValueError(f"a cursor counts windows from 0, not {cursor}")
        self.cursor = cursor

    def next(self) -> tuple[Ids, Ids, Ids]:
        """The next window: inputs (T, B) and targets (T, B), int64, and fresh (B,), bool: start from the zero state."""
        epoch, window = divmod(self.cursor, self.windows_per_epoch)
        self.cursor += 1
        offset = epoch % (len(self._ids) - self.chars_per_epoch)
        begin, end = window * self._window, min((window + 1) * self._window, self._length)
        inputs, targets = (
            self._ids[first : first + self.chars_per_epoch].reshape(self._streams, self._length)[:, begin:end].T
            for first in (offset, offset + 1)
        )
        fresh = np.full(self._streams, window == 0)
        return inputs.astype(np.int64, order="C"), targets.astype(np.int64, order="C"), fresh


def _decoded(sources: Sequence[str | Path], encoding: str, max_chars: int | None) -> Iterator[str]:
    """The text of all sources in parts, none of them empty."""
    try:
        "".encode(encoding)  # refuses what Python calls an encoding but is none of text, such as hex
        codec = codecs.lookup(encoding)
    except (LookupError, ValueError):  # ValueError: a NUL in the name
        name = escape(ascii(encoding))[:60]
        raise UsageError(f"--encoding {name} is not an encoding of text that Python knows") from None
    limit = _default_max_chars() if max_chars is None else max_chars
    chars = 0
    for source in sources:
        for path in _files(source):
            for part in _decode(path, codecs.lookup("utf-8") if _is_named(path) else codec, limit):
                chars += len(part)
                if chars > limit:
                    raise CorpusError(f"{_name(path)}: the text is longer than {limit} characters; raise --max-chars")
                yield part
    if chars == 0:
        names = ", ".join(_name(source) for source in sources[:3]) or "no source"
        raise CorpusError(f"{names}: the text is empty; there is nothing to learn from")


def _files(source: str | Path) -> Iterator[str]:
    """The files of a source: itself, or all below a folder, sorted by their paths, without hidden ones."""
    path = os.fspath(source)
    if path == STDIN or not os.path.isdir(path):
        yield path
        return
    found = []
    for folder, folders, names in os.walk(path, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(folder, name) for name in names if not name.startswith(".")]
    if not found:
        raise CorpusError(f"{_name(path)}: the folder holds no file")
    yield from sorted(found)


def _refuse(error: OSError) -> None:
    raise CorpusError(f"{_name(error.filename)}: {error.strerror or error}") from error


def _decode(path: str, codec: codecs.CodecInfo, limit: int) -> Iterator[str]:
    decoder = codec.incrementaldecoder("strict") if codec.incrementaldecoder else None
    if decoder is None:
        raise UsageError(f"--encoding {codec.name} cannot be read piece by piece; convert the text to UTF-8")
    offset = lines = 0
    blocks = _expanded(_blocks(path, limit), path)
    while True:
        block = next(blocks, b"")
        waiting = len(decoder.getstate()[0])
        try:
            part = decoder.decode(block, final=not block)
            part.encode()  # some codecs let lone surrogates through
        except UnicodeError as error:
            raise CorpusError(_undecodable(path, codec.name, error, offset - waiting, lines)) from error
        if part:
            yield part
        if not block:
            return
        offset += len(block)
        lines += block.count(b"\n")


def _undecodable(path: str, encoding: str, error: UnicodeError, offset: int, lines: int) -> str:
    if not isinstance(error, UnicodeDecodeError):
        return f"{_name(path)}: not text in {encoding} ({escape(str(error))[:100]}); name the right one with --encoding"
    byte = error.object[error.start]
    where = offset + error.start
    line = lines + error.object[: error.start].count(b"\n") + 1
    start = bytes(error.object[:4]) if where == 0 else b""
    hint = "latin-1"
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        hint = "utf-32" if start == codecs.BOM_UTF32_LE else "utf-16"
    return (
        f"{_name(path)}: byte 0x{byte:02x} at offset {where} (line {line}) is not {encoding.upper()};"
        f" name the text's encoding, such as --encoding {hint}, or repair it"
    )


def _blocks(path: str, limit: int) -> Iterator[bytes]:
    """The bytes of a file or of stdin. Read, not mapped: a file that another process shortens ends early, no more."""
    try:
        if path == STDIN:
            if sys.stdin is None:
                raise CorpusError("-: there is no stdin to read from")
            yield from _read(sys.stdin.buffer)
        elif _is_named(path):
            yield from _named(path)
        else:
            with open(path, "rb") as file:
                _check_kind(file, path, limit)
                yield from _read(file)
    except FileNotFoundError as error:
        raise CorpusError(f"{_name(path)}: no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name, a closed stdin
        raise CorpusError(f"{_name(path)}: {getattr(error, 'strerror', None) or error}") from error


def _is_named(path: str) -> bool:
    """Whether it is the name of a corpus; a file of that name goes before it."""
    return path in (*bundled.NAMES, *downloads.SOURCES) and not os.path.lexists(path)


def _named(name: str) -> Iterator[bytes]:
    """The bytes of a named corpus. One that was never loaded is not loaded here: reading is no place for a download."""
    if name in bundled.NAMES:
        yield bundled.text(name).encode()
    elif downloads.is_cached(name):
        yield from downloads.blocks(downloads.fetch(name))
    else:
        raise CorpusError(f"{name}: not loaded yet; load it first: charlstm corpus {name} > {name}.txt")


def _check_kind(file: BinaryIO, path: str, limit: int) -> None:
    status = os.fstat(file.fileno())
    if stat.S_ISBLK(status.st_mode) or (stat.S_ISCHR(status.st_mode) and not file.isatty() and path != os.devnull):
        raise CorpusError(f"{_name(path)}: a device, not a text")
    if status.st_size > 4 * limit:  # no character of any encoding has more than four bytes in it
        raise CorpusError(f"{_name(path)}: {status.st_size} bytes hold more than {limit} characters; raise --max-chars")


def _read(file: BinaryIO) -> Iterator[bytes]:
    raw = getattr(file, "raw", file)  # without a buffer: a pipe's bytes come as soon as they are there
    while True:
        block: bytes | None = raw.read(BLOCK_BYTES)
        if block is None:  # someone who shares stdin made it non-blocking, and there is nothing yet
            select.select([file], [], [])
        elif block:
            yield block
        else:
            return


def _expanded(blocks: Iterator[bytes], path: str) -> Iterator[bytes]:
    """The blocks as they are, or, where the first begins with gzip's magic, what they expand to, a piece at a time."""
    first = next(blocks, b"")
    if not first.startswith(b"\x1f\x8b"):
        yield first
        yield from blocks
        return
    member = zlib.decompressobj(wbits=31)
    block = first
    try:
        while block:
            if piece := member.decompress(block, BLOCK_BYTES):
                yield piece
            block = member.unused_data if member.eof else member.unconsumed_tail
            block = block or next(blocks, b"")
            if member.eof and block:  # files joined after they were compressed
                member = zlib.decompressobj(wbits=31)
    except zlib.error as error:
        raise CorpusError(f"{_name(path)}: damaged gzip data ({error})") from error
    if not member.eof:
        raise CorpusError(f"{_name(path)}: the gzip data ends too early; fetch or make the file again")


def _name(path: str | Path) -> str:
    return "stdin" if str(path) == STDIN else escape(str(path))


def _default_max_chars() -> int:
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows, and systems that do not tell
        return MAX_CHARS
    return max(1, min(MAX_CHARS, memory // 2 // 6))
