"""From files to ids: strict reading, and the split into a training part and a held-out part."""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import itertools
import json
import os
import re
import select
import stat
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeVar

import numpy as np

from charlstm.config import MAX_VOCABULARY, UNITS, SymbolKind, Unknown
from charlstm.errors import CorpusError, UnknownSymbols, UsageError
from charlstm.progress import Report
from charlstm.terminal import escape
from charlstm.text import bundled, documents, downloads, id_file
from charlstm.text.id_file import StoredIds
from charlstm.text.vocabulary import ByteVocabulary, Vocabulary, code_points

STDIN = "-"
MAX_CHARS = 2**31
IN_MEMORY_CHARS = 2**25  # of a longer text the ids are kept in a file: see `stored`
LOOKED_UP_BYTES = 2**21  # files of fewer bytes are not looked for there: how small can a compressed text be?
BLOCK_BYTES = 1 << 18  # read and decoded at a time
ERRORS: Mapping[SymbolKind, str] = {"chars": "strict", "bytes": "surrogateescape"}
CHANGED = "the text changed while it was read; read it again when nothing writes to it"

Ids = np.ndarray[Any, Any]
Symbols = Ids | StoredIds
Part = str | bytes  # of a text: one character a symbol, or one byte
_P = TypeVar("_P", str, bytes)
_Part = TypeVar("_Part", bound=Part)


@dataclass(frozen=True)
class Corpus:
    """A text as ids.

    Attributes:
        ids: (N,) in the vocabulary's smallest type: an array, or of a long text a view of a file.
        vocabulary: that of the whole text.
        sha256: of the text in UTF-8, or of its bytes as they are; all sources joined.
        names: the sources as they were given, safe to print.
        encoding: in which they were read.
    """

    ids: Symbols
    vocabulary: Vocabulary
    sha256: str
    names: tuple[str, ...]
    encoding: str = "utf-8"

    def __len__(self) -> int:
        return len(self.ids)

    def recoded(self, vocabulary: Vocabulary) -> Corpus:
        """The same text in the ids of another vocabulary. What is kept in a file stays there.

        Raises:
            UnknownSymbols: it lacks some of this one's symbols.
            UsageError: the symbols of one are bytes, of the other characters.
        """
        if vocabulary == self.vocabulary:
            return self
        vocabulary.check_kind(self.vocabulary)
        table = vocabulary.lookup(self.vocabulary.symbols)[0]
        ids = self.ids.through(table) if isinstance(self.ids, StoredIds) else table[self.ids]
        return replace(self, ids=ids, vocabulary=vocabulary)

    def split(self, valid_share: float) -> tuple[Symbols, Symbols]:
        """The training part and the last `valid_share` of the text, held out; views, no copies.

        A held-out part of fewer than two characters has no transition to score: then all is for training and the
        second array is empty. Of documents, whole ones are held out: the cut is at the document's end that is nearest
        to the share, and the boundary there is in both parts, predicted in the first and read in the second. One
        document is all for training.

        Raises:
            CorpusError: fewer than two characters for training.
        """
        if self.vocabulary.boundary_id is not None:
            end = _document_end(self.ids, self.vocabulary.boundary_id, valid_share) if valid_share else None
            return (self.ids, self.ids[:0]) if end is None else (self.ids[: end + 1], self.ids[end:])
        cut = int(len(self.ids) * (1 - valid_share))
        if len(self.ids) - cut < 2:
            cut = len(self.ids)
        if cut < 2:
            unit = UNITS[self.vocabulary.unit]
            raise CorpusError(f"of the text's {len(self.ids)} {unit}s {cut} would train; it takes 2 or more")
        return self.ids[:cut], self.ids[cut:]


def read(
    sources: Sequence[str | Path],
    *,
    encoding: str = "utf-8",
    symbols: SymbolKind = "chars",
    documents: bool = False,
    boundary: str | None = None,
    max_chars: int | None = None,
    report: Report | None = None,
) -> Corpus:
    """Read texts, joined in the given order: with nothing between them, or, as `documents`, with a boundary.

    A source is a file, a folder (every file below it that is not hidden, in sorted order), '-' for stdin, or the name
    of a corpus, where there is no file of that name: of one that Python brings along, or of one from the net that was
    loaded before. What is compressed with gzip is expanded. Decoding is strict, no newline is translated, a byte order
    mark is a character.

    Args:
        encoding: of all sources but named corpora, which are UTF-8; utf-8 or another that Python knows.
        symbols: 'bytes' takes the bytes of any file as they are; nothing is decoded.
        documents: each file is one, if it is not empty; U+001E, which none may have, stands for what is between them.
        boundary: what stands between the documents within a file; each file ends one, too. A line break makes each
            line a document.
        max_chars: where to stop with an error; by default 2**31, or what half of the memory can hold where the ids of a
            long text cannot be kept in a file.
        report: called after each block with how many symbols have been read, and of how many: None the first time
            through, and all there are where a text is so long that it is gone through once more.

    Up to IN_MEMORY_CHARS it needs 6 bytes a character while it reads: the text, 1 to 4 bytes, and the ids, 1 or 2. A
    longer text is read twice, in blocks, and its ids are kept in a file (see `stored`) and found there the next time.

    Raises:
        CorpusError: a source that cannot be read or decoded, that is too long, or a text of no characters; a document
            that has the symbol which stands for the boundary.
        UsageError: an encoding that does not exist, or one for bytes; a boundary that cannot be one.
    """
    names = tuple(escape(str(source)) for source in sources)
    mark = _Mark.of(boundary, symbols, each_file=documents)
    limit = MAX_CHARS if max_chars is None else max_chars
    codec = _codec(encoding, symbols)
    key = _key(sources, codec.name, symbols, mark)
    found = None if key is None else id_file.find(key)
    if found is not None and len(found[0]) <= limit:
        return Corpus(*found, names, codec.name)
    digest = hashlib.sha256()
    seen = np.zeros(MAX_VOCABULARY, dtype=bool)
    in_memory = _default_max_chars() if max_chars is None else max_chars

    def pieces() -> Iterator[Part]:
        if symbols == "chars":
            yield from () if mark is None else [mark.symbol]
            yield from _decoded(sources, codec, limit, ERRORS["chars"], mark)
        else:
            yield from () if mark is None else [mark.symbol.encode()]
            yield from _as_they_are(sources, limit, mark)

    with _Text(pieces, key is not None, in_memory, symbols) as text:
        for part in told(pieces(), report):
            digest.update(_octets(part))
            if isinstance(part, str):
                codes = code_points(part).astype(np.intp)
                if not seen.take(codes).all():  # reading costs a third of writing
                    seen[codes] = True
            text.add(part)
        vocabulary = Vocabulary.of_seen(seen) if symbols == "chars" else ByteVocabulary()
        vocabulary = vocabulary if mark is None else vocabulary.with_boundary(mark.boundary)
        sha256 = digest.hexdigest()
        ids = _ids(text, vocabulary, sha256, key, report) if text.is_long else _ids_in_memory(text, vocabulary)
    return Corpus(ids, vocabulary, sha256, names, codec.name)


def told(parts: Iterable[_Part], report: Report | None, total: int | None = None) -> Iterator[_Part]:
    """The parts; each is reported when the next is asked for."""
    done = 0
    for part in parts:
        yield part
        done += len(part)
        if report is not None:
            report(done, total)


def _ids_in_memory(text: _Text, vocabulary: Vocabulary) -> Ids:
    ids = np.empty(text.chars, dtype=vocabulary.dtype)
    start = 0
    for part in text.parts():
        ids[start : start + len(part)] = _ids_of(part, vocabulary)
        start += len(part)
    return ids


def _ids(text: _Text, vocabulary: Vocabulary, sha256: str, key: str | None, report: Report | None) -> StoredIds:
    """The ids of a long text, in a file."""
    blocks = (_ids_of(part, vocabulary) for part in told(text.parts(sha256), report, text.chars))
    try:
        if key is None:
            return id_file.keep_nameless(id_file.nameless(), vocabulary, blocks)
        return id_file.keep(key, vocabulary, sha256, text.chars, blocks)
    except OSError as error:
        megabytes = text.chars * vocabulary.dtype.itemsize / 1e6
        raise _not_kept(f"the text's ids, {megabytes:,.0f} MB,", error) from error
    except UnknownSymbols as error:
        raise CorpusError(CHANGED) from error


def _ids_of(part: Part, vocabulary: Vocabulary) -> Ids:
    return np.frombuffer(part, np.uint8) if isinstance(part, bytes) else vocabulary.lookup(part)[0]


def _octets(part: Part) -> bytes:
    return part if isinstance(part, bytes) else part.encode()


class _Text:
    """The parts of a text, to be gone through once more: kept in memory while it is short, then read again, or, where
    the sources cannot be, such as a pipe, from a temporary file.

    Args:
        again: reads the sources.
        is_there_again: whether they can be read twice.
        max_chars: the most to keep in memory where no file can be made.
        symbols: of what its parts are.
    """

    def __init__(
        self, again: Callable[[], Iterator[Part]], is_there_again: bool, max_chars: int, symbols: SymbolKind
    ) -> None:
        self.chars = 0
        self.is_long = False
        self._again, self._is_there_again, self._max_chars, self._symbols = again, is_there_again, max_chars, symbols
        self._parts: list[Part] = []
        self._file: IO[bytes] | None = None
        self._refused: CorpusError | None = None  # why no file can be made

    def __enter__(self) -> _Text:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # of a full disk, that was told before
                self._file.close()

    def add(self, part: Part) -> None:
        self.chars += len(part)
        if self.chars > IN_MEMORY_CHARS and not self.is_long and self._refused is None:
            self._begin_file()
        if not self.is_long:
            self._parts.append(part)
            if self._refused is not None and self.chars > self._max_chars:
                raise self._refused
        elif self._file is not None:
            self._write(part)

    def parts(self, sha256: str = "") -> Iterator[Part]:
        """All parts once more; each is freed as the next is asked for. `sha256` is that of a long text."""
        if not self.is_long:
            self._parts.reverse()
            while self._parts:
                yield self._parts.pop()
            return
        digest, left = hashlib.sha256(), self.chars
        for part in self._again() if self._file is None else self._written():
            part = part[:left]  # of a file that grows, such as a log, what was there the first time
            left -= len(part)
            digest.update(_octets(part))
            yield part
            if not left:
                break
        if digest.hexdigest() != sha256:
            raise CorpusError(CHANGED)

    def _begin_file(self) -> None:
        try:
            file = id_file.nameless()
        except OSError as error:  # a folder for caches that may not be written, or cannot be made: the memory, then
            unit = UNITS["char" if self._symbols == "chars" else "byte"]
            self._refused = _not_kept(f"a text of more than {self._max_chars} {unit}s", error)
            return
        self.is_long = True
        if self._is_there_again:
            file.close()
        else:
            self._file = file
            for part in self._parts:
                self._write(part)
        self._parts.clear()

    def _write(self, part: Part) -> None:
        assert self._file is not None
        try:
            self._file.write(_octets(part))
        except OSError as error:
            raise _not_kept("the text", error) from error

    def _written(self) -> Iterator[Part]:
        assert self._file is not None
        self._file.seek(0)
        decoder = codecs.getincrementaldecoder("utf-8")()
        while block := self._file.read(BLOCK_BYTES):
            yield decoder.decode(block) if self._symbols == "chars" else block


def _not_kept(what: str, error: OSError) -> CorpusError:
    where = escape(str(id_file.folder()))
    hint = "give it room there, or another folder by XDG_CACHE_HOME"
    return CorpusError(f"{what} cannot be kept in {where}: {error.strerror or error}; {hint}")


def _key(sources: Sequence[str | Path], encoding: str, symbols: SymbolKind, mark: _Mark | None) -> str | None:
    """What tells these sources, as they are now, from all others; None where they are small or cannot be read twice."""
    known, size = [], 0
    for source in sources:
        for path in _files(source):
            used = encoding
            if path in downloads.SOURCES and _is_named(path):
                path, used = os.fspath(downloads.file_of(path)), "utf-8"
            try:
                status = os.stat(path)
            except (OSError, ValueError):  # made by us, or not there, as reading it will tell
                return None
            if path == STDIN or not stat.S_ISREG(status.st_mode):
                return None
            size += status.st_size
            # The time of the last change of name or mode, too: a copy may keep the file's own.
            times = [status.st_mtime_ns, status.st_ctime_ns]
            known.append([os.path.abspath(path), used, status.st_size, *times])
    if size < LOOKED_UP_BYTES:
        return None
    reading: list[Any] = [] if symbols == "chars" else [symbols]
    reading += [] if mark is None else [["documents", mark.boundary, mark.is_free]]
    return json.dumps([*reading, *known])


def read_text(
    sources: Sequence[str | Path],
    *,
    encoding: str = "utf-8",
    symbols: SymbolKind = "chars",
    boundary: str | None = None,
    max_chars: int | None = None,
) -> str:
    """The text that `read` would turn into ids; bytes that are not UTF-8 as `vocab` has it. Arguments and errors as
    there. With a boundary each file ends with the symbol that stands for it; the first symbol is none.
    """
    limit = _default_max_chars() if max_chars is None else max_chars
    mark = _Mark.of(boundary, symbols)
    return "".join(_decoded(sources, _codec(encoding, symbols), limit, ERRORS[symbols], mark))


def parts(
    sources: Sequence[str | Path],
    *,
    encoding: str = "utf-8",
    symbols: SymbolKind = "chars",
    boundary: str | None = None,
    max_chars: int | None = None,
) -> Iterator[str]:
    """The text in parts, each as soon as its source gives it, and without a limit where none is given. All else as in
    `read_text`.
    """
    limit = sys.maxsize if max_chars is None else max_chars
    mark = _Mark.of(boundary, symbols)
    return _decoded(sources, _codec(encoding, symbols), limit, ERRORS[symbols], mark)


def encoded(vocabulary: Vocabulary, parts: Iterable[str], unknown: Unknown = "error") -> tuple[Symbols, int]:
    """The ids of a text that comes in parts, documents with a boundary in front and behind; and how many characters of
    it were skipped or replaced. Of more than IN_MEMORY_CHARS the ids are kept in a file, where one can be made.

    Raises:
        UnknownSymbols: there are characters that are not in the vocabulary, and unknown is 'error'.
        CorpusError: the disk is full.
    """
    foreign: Counter[str] = Counter()
    blocks = vocabulary.lookup_each(vocabulary.framed(parts), foreign, unknown)
    held: list[Ids] = []
    length = 0
    for block in blocks:
        held.append(block)
        length += len(block)
        if length > IN_MEMORY_CHARS:
            break
    file = None
    if length > IN_MEMORY_CHARS:
        with contextlib.suppress(OSError):  # no folder for it: the memory, then
            file = id_file.nameless()
    if file is None:
        return np.concatenate([np.empty(0, vocabulary.dtype), *held, *blocks]), sum(foreign.values())
    try:
        return id_file.keep_nameless(file, vocabulary, itertools.chain(held, blocks)), sum(foreign.values())
    except OSError as error:
        raise _not_kept("the text's ids", error) from error


def whole_lines(parts: Iterable[str], boundary: str | None = None) -> Iterator[list[str]]:
    """For each part the lines that it completes, each with its line break; at the end what is left.

    Args:
        boundary: another symbol that ends a line.
    """
    ends = re.compile(f"[^{re.escape(boundary or '')}\n]*[{re.escape(boundary or '')}\n]")
    begun: list[str] = []
    for part in parts:
        end = 1 + max(part.rfind("\n"), -1 if boundary is None else part.rfind(boundary))
        if end:
            text = "".join([*begun, part[:end]])
            begun = []
            yield ends.findall(text)
        begun.append(part[end:])
    if rest := "".join(begun):
        yield [rest]


def _document_end(ids: Symbols, boundary: int, valid_share: float) -> int | None:
    """Where a document ends, neither the first place nor the last, nearest to what leaves `valid_share` behind it."""
    last = len(ids) - 2
    wished = int(len(ids) * (1 - valid_share)) - 1
    radius = BLOCK_BYTES
    while True:
        begin, end = max(1, wished - radius), min(last, wished + radius)
        places = begin + np.flatnonzero(np.asarray(ids[begin : end + 1]) == boundary) if begin <= end else np.empty(0)
        if len(places):
            return int(places[np.abs(places - wished).argmin()])
        if (begin == 1 and end == last) or begin > end:
            return None
        radius *= 4


def beginning(ids: Symbols, chars: int, boundary: int | None) -> Ids:
    """The first `chars` of a held-out part, all where that is 0; of documents those that are whole there, if one is."""
    part = np.asarray(ids[: chars or None])
    if boundary is None or len(part) == len(ids):
        return part
    ends = np.flatnonzero(part[1:] == boundary)
    return part[: ends[-1] + 2] if len(ends) else part


@dataclass(frozen=True)
class _Mark:
    """How the documents of a text are told apart."""

    boundary: str
    symbol: str  # what it is read as
    is_free: bool  # no document may have that symbol

    @classmethod
    def of(cls, boundary: str | None, kind: SymbolKind, *, each_file: bool = False) -> _Mark | None:
        if boundary is None and not each_file:
            return None
        is_free = boundary is None
        boundary = documents.RECORD_SEPARATOR if boundary is None else boundary
        symbol = documents.symbol_of(boundary, kind)
        return cls(boundary, symbol, is_free or symbol != boundary)

    def checked(self, parts: Iterator[_P], path: str, symbol: _P) -> Iterator[_P]:
        """The parts of a file.

        Raises:
            CorpusError: it has the symbol that it may not have.
        """
        for part in parts:
            if self.is_free and symbol in part:
                raise CorpusError(
                    f"{_name(path)}: a document has U+{ord(self.symbol):04X}, which is to stand between documents; "
                    "choose another text for that by --boundary"
                )
            yield part


def _codec(encoding: str, symbols: SymbolKind) -> codecs.CodecInfo:
    if symbols == "bytes" and encoding != "utf-8":
        raise UsageError("bytes are read as they are, whatever they encode: leave out --encoding")
    try:
        "".encode(encoding)  # refuses what Python calls an encoding but is none of text, such as hex
        return codecs.lookup(encoding)
    except (LookupError, ValueError):  # ValueError: a NUL in the name
        name = escape(ascii(encoding))[:60]
        raise UsageError(f"--encoding {name} is not an encoding of text that Python knows") from None


def _decoded(
    sources: Sequence[str | Path],
    codec: codecs.CodecInfo,
    limit: int,
    errors: str = "strict",
    mark: _Mark | None = None,
) -> Iterator[str]:
    def decoded(path: str) -> Iterator[str]:
        return _decode(path, codecs.lookup("utf-8") if _is_named(path) else codec, limit, errors)

    if mark is None:
        return _joined(sources, decoded, limit)
    pair = (mark.boundary, mark.symbol)
    return _joined(sources, lambda path: documents.marked(mark.checked(decoded(path), path, pair[1]), *pair), limit)


def _as_they_are(sources: Sequence[str | Path], limit: int, mark: _Mark | None = None) -> Iterator[bytes]:
    def octets(path: str) -> Iterator[bytes]:
        return filter(None, _expanded(_blocks(path, limit), path))

    if mark is None:
        return _joined(sources, octets, limit, "byte")
    pair = (mark.boundary.encode(), mark.symbol.encode())
    return _joined(
        sources, lambda path: documents.marked(mark.checked(octets(path), path, pair[1]), *pair), limit, "byte"
    )


def _joined(
    sources: Sequence[str | Path], of_file: Callable[[str], Iterator[_P]], limit: int, unit: str = "character"
) -> Iterator[_P]:
    """The text of all sources in parts, none of them empty."""
    chars = 0
    for source in sources:
        for path in _files(source):
            for part in of_file(path):
                chars += len(part)
                if chars > limit:
                    raise CorpusError(f"{_name(path)}: the text is longer than {limit} {unit}s; raise --max-chars")
                yield part
    if chars == 0:
        names = ", ".join(_name(source) for source in sources[:3]) or "no source"
        raise CorpusError(f"{names}: the text is empty; it needs one {unit} or more")


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


def _decode(path: str, codec: codecs.CodecInfo, limit: int, errors: str) -> Iterator[str]:
    decoder = codec.incrementaldecoder(errors) if codec.incrementaldecoder else None
    if decoder is None:
        raise UsageError(f"--encoding {codec.name} cannot be read piece by piece; convert the text to UTF-8")
    offset = lines = 0
    blocks = _expanded(_blocks(path, limit), path)
    while True:
        block = next(blocks, b"")
        waiting = len(decoder.getstate()[0])
        try:
            part = decoder.decode(block, final=not block)
            part.encode("utf-8", errors)  # some codecs let lone surrogates through
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
    else:
        yield from downloads.blocks(downloads.cached(name))


def _check_kind(file: BinaryIO, path: str, limit: int) -> None:
    status = os.fstat(file.fileno())
    if stat.S_ISBLK(status.st_mode) or (stat.S_ISCHR(status.st_mode) and not file.isatty() and path != os.devnull):
        raise CorpusError(f"{_name(path)}: a device, not a text")
    if status.st_size > 4 * limit:  # no character of any encoding has more than four bytes in it
        raise CorpusError(
            f"{_name(path)}: {status.st_size} bytes are more than a limit of {limit} allows; raise --max-chars"
        )


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
