"""Read texts: from files, directories, stdin and named corpora to decoded or raw blocks.

A source is the path of a file, the path of a directory (all files below it that are not hidden, in sorted order), '-'
for stdin, or the name of a corpus (see `datasets`) if there is no file of that name. Gzip data is decompressed.
Decoding is strict, newlines are not translated, and a byte order mark is a character of the text.
"""

from __future__ import annotations

import codecs
import json
import os
import re
import select
import stat
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from charlstm.config import SymbolKind
from charlstm.errors import CorpusError, Field, UsageError
from charlstm.progress import Report
from charlstm.terminal import escape
from charlstm.text import datasets, documents

STDIN = "-"
MAX_CHARS = 2**31
MIN_FINGERPRINTED_BYTES = 2**21  # the ids of a smaller text are rarely cached, even if the text is compressed
BLOCK_BYTES = 1 << 18  # number of bytes that are read and decoded at a time

Source = str | Path
Block = str | bytes
"""A block of a text: one character per symbol if it is a str, one byte per symbol if it is bytes."""

_B = TypeVar("_B", str, bytes)
_AnyBlock = TypeVar("_AnyBlock", bound=Block)


@dataclass(frozen=True)
class TextFormat:
    """How a text is read from its sources.

    Attributes:
        encoding: the encoding of all sources except named corpora, which are UTF-8; any text encoding of Python.
        symbols: 'chars' decodes the sources; 'bytes' takes the bytes of any file as they are.
        documents: each file that is not empty is a document; no file may contain the symbol of the boundary.
        boundary: the text between the documents of one file; the end of a file ends a document, too.
        max_chars: the largest number of symbols; a longer text is an error. None means the default of each function.
    """

    encoding: str = "utf-8"
    symbols: SymbolKind = "chars"
    documents: bool = False
    boundary: str | None = None
    max_chars: int | None = None

    def codec(self) -> codecs.CodecInfo:
        """Return the codec of the encoding.

        Raises:
            UsageError: the encoding is unknown or does not encode text, or the symbols are bytes and an encoding is
                given.
        """
        if self.symbols == "bytes" and self.encoding != "utf-8":
            raise UsageError("bytes are read without decoding: leave out ", Field("encoding"), value=self.encoding)
        try:
            "".encode(self.encoding)  # refuses codecs that are not text encodings, such as hex
            return codecs.lookup(self.encoding)
        except (LookupError, ValueError):  # ValueError: the name contains a NUL character
            name = escape(ascii(self.encoding))[:60]
            raise UsageError(
                Field("encoding"), f" must be a text encoding of Python such as utf-8, got {name}", value=self.encoding
            ) from None

    def separator(self) -> Separator | None:
        """Return what separates the documents, or None if the text is not divided into documents.

        Raises:
            UsageError: the boundary is invalid.
        """
        if self.boundary is None and not self.documents:
            return None
        boundary = documents.RECORD_SEPARATOR if self.boundary is None else self.boundary
        symbol = documents.symbol_of(boundary, self.symbols)
        return Separator(boundary, symbol, is_reserved=self.boundary is None or symbol != boundary)


@dataclass(frozen=True)
class Separator:
    """The boundary between the documents of a text.

    Attributes:
        boundary: the text between two documents of one file.
        symbol: the one symbol that it is read as.
        is_reserved: no document may contain the symbol.
    """

    boundary: str
    symbol: str
    is_reserved: bool

    def insert_symbols(self, blocks: Iterator[_B], path: str, boundary: _B, symbol: _B) -> Iterator[_B]:
        """Replace each boundary in the blocks of one file by the symbol, and end the file with the symbol.

        Raises:
            CorpusError: the file contains the reserved symbol.
        """

        def checked() -> Iterator[_B]:
            for block in blocks:
                if self.is_reserved and symbol in block:
                    raise CorpusError(
                        f"{source_name(path)}: a document contains U+{ord(self.symbol):04X}, which is reserved for the "
                        "boundary between documents; choose another boundary with ",
                        Field("boundary"),
                    )
                yield block

        return documents.replace_boundaries(checked(), boundary, symbol)


DEFAULT_FORMAT = TextFormat()


def iter_symbols(sources: Sequence[Source], options: TextFormat, limit: int) -> Iterator[Block]:
    """Yield the symbols of all sources, joined in order; documents with a boundary symbol before and after each.

    Args:
        sources: see the module.
        options: how to read them; `max_chars` is ignored in favour of `limit`.
        limit: the largest number of symbols.

    Yields:
        Blocks that are not empty: str if the symbols are characters, bytes if they are bytes.

    Raises:
        CorpusError: a source cannot be read or decoded; the text is empty or too long; a document contains the reserved
            symbol.
        UsageError: an option is invalid.
    """
    separator, codec = options.separator(), options.codec()
    if options.symbols == "chars":
        yield from () if separator is None else [separator.symbol]
        yield from _decode_sources(sources, codec, limit, "strict", separator)
    else:
        yield from () if separator is None else [separator.symbol.encode()]
        yield from _read_raw_sources(sources, limit, separator)


def iter_text(sources: Sequence[Source], options: TextFormat = DEFAULT_FORMAT) -> Iterator[str]:
    """Yield the text of all sources in blocks, each as soon as its source provides it.

    If the symbols are bytes, each byte that is not UTF-8 is a surrogate, as in `vocabulary`. If the text is divided
    into documents, each file ends with the symbol of the boundary, but the text does not begin with it.

    Args:
        sources: see the module.
        options: how to read them; `max_chars` of None means no limit.

    Raises:
        CorpusError, UsageError: as `iter_symbols`.
    """
    limit = sys.maxsize if options.max_chars is None else options.max_chars
    errors = "strict" if options.symbols == "chars" else "surrogateescape"
    return _decode_sources(sources, options.codec(), limit, errors, options.separator())


def read_text(sources: Sequence[Source], options: TextFormat = DEFAULT_FORMAT) -> str:
    """Return the text of all sources as one string, read as by `iter_text`.

    Args:
        sources: see the module.
        options: how to read them; `max_chars` of None means as many as fit in half of the memory.

    Raises:
        CorpusError, UsageError: as `iter_symbols`.
    """
    limit = max_chars_in_memory() if options.max_chars is None else options.max_chars
    errors = "strict" if options.symbols == "chars" else "surrogateescape"
    return "".join(_decode_sources(sources, options.codec(), limit, errors, options.separator()))


def report_progress(
    blocks: Iterable[_AnyBlock], report: Report | None, total: int | None = None
) -> Iterator[_AnyBlock]:
    """Yield the blocks unchanged and report the number of symbols so far after each.

    Args:
        blocks: the blocks of a text.
        report: called with the number of symbols read and `total`, or None.
        total: the number of symbols in all blocks, if it is known.
    """
    done = 0
    for block in blocks:
        yield block
        done += len(block)
        if report is not None:
            report(done, total)


def iter_lines(blocks: Iterable[str], boundary: str | None = None) -> Iterator[list[str]]:
    """Yield, for each block, the lines that it completes, each with its line break; at the end the incomplete line.

    Args:
        blocks: a text in blocks.
        boundary: another symbol that ends a line.
    """
    ends = re.compile(f"[^{re.escape(boundary or '')}\n]*[{re.escape(boundary or '')}\n]")
    incomplete: list[str] = []
    for block in blocks:
        end = 1 + max(block.rfind("\n"), -1 if boundary is None else block.rfind(boundary))
        if end:
            text = "".join([*incomplete, block[:end]])
            incomplete = []
            yield ends.findall(text)
        incomplete.append(block[end:])
    if rest := "".join(incomplete):
        yield [rest]


def fingerprint(sources: Sequence[Source], options: TextFormat) -> str | None:
    """Return a string that identifies the sources in their present state, read with these options.

    Returns:
        JSON of paths, sizes, times and options; None if the sources are too small to be worth it, or if one of them
        cannot be read twice.
    """
    encoding, separator = options.codec().name, options.separator()
    files: list[Any] = []
    size = 0
    for source in sources:
        for path in files_of(source):
            file_encoding = encoding
            if path in datasets.DOWNLOADS and _is_corpus_name(path):
                path, file_encoding = os.fspath(datasets.file_of(path)), "utf-8"
            try:
                status = os.stat(path)
            except (OSError, ValueError):  # a generated corpus, or a missing file, which is reported when it is read
                return None
            if path == STDIN or not stat.S_ISREG(status.st_mode):
                return None
            size += status.st_size
            # A copy can keep the modification time of the file; st_ctime_ns changes with each change of its metadata.
            files.append([os.path.abspath(path), file_encoding, status.st_size, status.st_mtime_ns, status.st_ctime_ns])
    if size < MIN_FINGERPRINTED_BYTES:
        return None
    reading: list[Any] = [] if options.symbols == "chars" else [options.symbols]
    reading += [] if separator is None else [["documents", separator.boundary, separator.is_reserved]]
    return json.dumps([*reading, *files])


def max_chars_in_memory() -> int:
    """Return how many characters of a text fit in half of the memory, at 6 bytes each, and at most MAX_CHARS."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows, or a system without this information
        return MAX_CHARS
    return max(1, min(MAX_CHARS, memory // 2 // 6))


def source_name(path: Source) -> str:
    """Return the name of a source for a message; it is safe to print."""
    return "stdin" if str(path) == STDIN else escape(str(path))


def _decode_sources(
    sources: Sequence[Source], codec: codecs.CodecInfo, limit: int, errors: str, separator: Separator | None
) -> Iterator[str]:
    def blocks_of(path: str) -> Iterator[str]:
        used = codecs.lookup("utf-8") if _is_corpus_name(path) else codec
        blocks = _decode_file(path, used, limit, errors)
        return (
            blocks
            if separator is None
            else separator.insert_symbols(blocks, path, separator.boundary, separator.symbol)
        )

    return _join_sources(sources, blocks_of, limit, "character")


def _read_raw_sources(sources: Sequence[Source], limit: int, separator: Separator | None) -> Iterator[bytes]:
    def blocks_of(path: str) -> Iterator[bytes]:
        blocks = filter(None, _decompress(_read_blocks(path, limit), path))
        if separator is None:
            return blocks
        return separator.insert_symbols(blocks, path, separator.boundary.encode(), separator.symbol.encode())

    return _join_sources(sources, blocks_of, limit, "byte")


def _join_sources(
    sources: Sequence[Source], blocks_of: Callable[[str], Iterator[_B]], limit: int, unit: str
) -> Iterator[_B]:
    """Yield the blocks of all files in order, and check the length of the whole text."""
    length = 0
    for source in sources:
        for path in files_of(source):
            for block in blocks_of(path):
                length += len(block)
                if length > limit:
                    raise CorpusError(
                        f"{source_name(path)}: the text is longer than {limit} {unit}s; raise ", Field("max_chars")
                    )
                yield block
    if length == 0:
        names = ", ".join(source_name(source) for source in sources[:3]) or "no source"
        raise CorpusError(f"{names}: the text is empty; it needs one {unit} or more")


def files_of(source: Source) -> Iterator[str]:
    """Yield the path itself, or for a folder all files below it that are not hidden, sorted by path."""
    path = os.fspath(source)
    if path == STDIN or not os.path.isdir(path):
        yield path
        return
    found = []
    for folder, folders, names in os.walk(path, onerror=_raise_folder_error):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(folder, name) for name in names if not name.startswith(".")]
    if not found:
        raise CorpusError(f"{source_name(path)}: the directory contains no file; hidden files are ignored")
    yield from sorted(found)


def _raise_folder_error(error: OSError) -> None:
    raise CorpusError(f"{source_name(error.filename)}: {error.strerror or error}") from error


def _decode_file(path: str, codec: codecs.CodecInfo, limit: int, errors: str) -> Iterator[str]:
    decoder = codec.incrementaldecoder(errors) if codec.incrementaldecoder else None
    if decoder is None:
        raise UsageError(
            Field("encoding"), f" {codec.name} cannot be decoded in blocks; convert the text to UTF-8", value=codec.name
        )
    offset = lines = 0
    blocks = _decompress(_read_blocks(path, limit), path)
    while True:
        block = next(blocks, b"")
        undecoded = len(decoder.getstate()[0])
        try:
            text = decoder.decode(block, final=not block)
            text.encode("utf-8", errors)  # some codecs produce lone surrogates
        except UnicodeError as error:
            raise _decoding_error(path, codec.name, error, offset - undecoded, lines) from error
        if text:
            yield text
        if not block:
            return
        offset += len(block)
        lines += block.count(b"\n")


def _decoding_error(path: str, encoding: str, error: UnicodeError, offset: int, lines: int) -> CorpusError:
    """Return the error that names the first invalid byte, its place and a likely encoding."""
    if not isinstance(error, UnicodeDecodeError):
        reason = escape(str(error))[:100]
        return CorpusError(
            f"{source_name(path)}: the text is not {encoding} ({reason}); specify its encoding with ",
            Field("encoding"),
        )
    byte = error.object[error.start]
    where = offset + error.start
    line = lines + error.object[: error.start].count(b"\n") + 1
    start = bytes(error.object[:4]) if where == 0 else b""
    hint = "latin-1"
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        hint = "utf-32" if start == codecs.BOM_UTF32_LE else "utf-16"
    return CorpusError(
        f"{source_name(path)}: byte 0x{byte:02x} at offset {where} (line {line}) is not {encoding.upper()};"
        " specify the encoding of the text, such as ",
        Field("encoding"),
        f" {hint}, or correct the text",
    )


def _read_blocks(path: str, limit: int) -> Iterator[bytes]:
    """Yield the bytes of a file, of stdin or of a named corpus.

    The file is read, not mapped: if another process truncates it, the text only ends early.
    """
    try:
        if path == STDIN:
            if sys.stdin is None:
                raise CorpusError("-: this process has no stdin; name a file")
            yield from _read_stream(sys.stdin.buffer)
        elif _is_corpus_name(path):
            yield from _read_corpus(path)
        else:
            with open(path, "rb") as file:
                _check_file(file, path, limit)
                yield from _read_stream(file)
    except UsageError:  # a ValueError, too; an invalid name of a corpus
        raise
    except FileNotFoundError as error:
        raise CorpusError(f"{source_name(path)}: no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path, or a closed stdin
        raise CorpusError(f"{source_name(path)}: {getattr(error, 'strerror', None) or error}") from error


def _is_corpus_name(path: str) -> bool:
    """Return whether a path is the name of a corpus; an existing file of that name has precedence."""
    return (datasets.is_generated(path) or path in datasets.DOWNLOADS) and not os.path.lexists(path)


def _read_corpus(name: str) -> Iterator[bytes]:
    """Yield the bytes of a named corpus. Nothing is downloaded: a missing download is an error."""
    if datasets.is_generated(name):
        yield datasets.generate(name).encode()
    else:
        yield from datasets.text_blocks(datasets.cached_file(name))


def _check_file(file: BinaryIO, path: str, limit: int) -> None:
    status = os.fstat(file.fileno())
    if stat.S_ISBLK(status.st_mode) or (stat.S_ISCHR(status.st_mode) and not file.isatty() and path != os.devnull):
        raise CorpusError(f"{source_name(path)}: is a device; give a text file")
    if status.st_size > 4 * limit:  # a character takes at most four bytes in any encoding
        raise CorpusError(
            f"{source_name(path)}: the file has {status.st_size} bytes, more than a limit of {limit} allows; raise ",
            Field("max_chars"),
        )


def _read_stream(file: BinaryIO) -> Iterator[bytes]:
    raw = getattr(file, "raw", file)  # unbuffered: the bytes of a pipe are passed on as soon as they arrive
    while True:
        block: bytes | None = raw.read(BLOCK_BYTES)
        if block is None:  # a process that shares stdin made it non-blocking, and no data is available yet
            select.select([file], [], [])
        elif block:
            yield block
        else:
            return


def _decompress(blocks: Iterator[bytes], path: str) -> Iterator[bytes]:
    """Yield the blocks decompressed if the first starts with the magic number of gzip, else unchanged."""
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
            if member.eof and block:  # several gzip files were concatenated
                member = zlib.decompressobj(wbits=31)
    except zlib.error as error:
        raise CorpusError(
            f"{source_name(path)}: corrupt gzip data ({error}); copy or compress the file again"
        ) from error
    if not member.eof:
        raise CorpusError(f"{source_name(path)}: truncated gzip data; copy or compress the file again")
