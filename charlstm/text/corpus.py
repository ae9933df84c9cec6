"""Turn a text into ids: the vocabulary, the split into training and validation part, and the storage of long texts.

The ids of a text of up to IN_MEMORY_CHARS symbols are in memory. A longer text is read twice, in blocks: first to find
its symbols, then to write its ids to a file (see `id_file`), where they are found the next time.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import IO, Any

import numpy as np

from charlstm.config import MAX_VOCABULARY, UNITS, SymbolKind, Unknown
from charlstm.errors import CorpusError, UnknownSymbols
from charlstm.progress import Report
from charlstm.terminal import escape
from charlstm.text import id_file, reading
from charlstm.text.id_file import StoredIds
from charlstm.text.reading import Block, Source, TextFormat
from charlstm.text.vocabulary import ByteVocabulary, Vocabulary, code_points

IN_MEMORY_CHARS = 2**25
SEARCH_SYMBOLS = 1 << 18  # the first radius of the search for the end of a document
CHANGED = "the text changed while it was read; read it again when no process writes to it"

Ids = np.ndarray[Any, Any]
Symbols = Ids | StoredIds


@dataclass(frozen=True)
class Corpus:
    """A text as ids.

    Attributes:
        ids: (N,) in the smallest type of the vocabulary: an array, or for a long text a view of a file.
        vocabulary: the vocabulary of the whole text.
        sha256: of the text in UTF-8, or of its bytes if the symbols are bytes; all sources joined.
        names: the sources as they were given, safe to print.
        encoding: the encoding in which the sources were read.
    """

    ids: Symbols
    vocabulary: Vocabulary
    sha256: str
    names: tuple[str, ...]
    encoding: str = "utf-8"

    def __len__(self) -> int:
        return len(self.ids)

    def recoded(self, vocabulary: Vocabulary) -> Corpus:
        """Return the same text in the ids of another vocabulary. Ids that are stored in a file stay there.

        Args:
            vocabulary: contains all symbols of the vocabulary of this corpus.

        Raises:
            UnknownSymbols: the vocabulary lacks a symbol.
            UsageError: the symbols of one vocabulary are bytes, those of the other are characters.
        """
        if vocabulary == self.vocabulary:
            return self
        vocabulary.check_compatible(self.vocabulary)
        table = vocabulary.lookup(self.vocabulary.symbols)[0]
        ids = self.ids.mapped(table) if isinstance(self.ids, StoredIds) else table[self.ids]
        return replace(self, ids=ids, vocabulary=vocabulary)

    def split(self, valid_share: float) -> tuple[Symbols, Symbols]:
        """Split the text into the training part and the last `valid_share` of it, the validation part.

        A validation part of fewer than two symbols has no transition to score: then it is empty, and the whole text is
        for training. A text of documents is split at the end of the document that is nearest to the share. The boundary
        there is in both parts: the training part predicts it, the validation part starts with it. A single document is
        not split.

        Args:
            valid_share: from 0 to 1.

        Returns:
            Two views, without copying.

        Raises:
            CorpusError: the training part has fewer than two symbols.
        """
        if self.vocabulary.boundary_id is not None:
            end = _document_end(self.ids, self.vocabulary.boundary_id, valid_share) if valid_share else None
            return (self.ids, self.ids[:0]) if end is None else (self.ids[: end + 1], self.ids[end:])
        cut = int(len(self.ids) * (1 - valid_share))
        if len(self.ids) - cut < 2:
            cut = len(self.ids)
        if cut < 2:
            unit = UNITS[self.vocabulary.unit]
            raise CorpusError(
                f"the training part has {cut} of the {len(self.ids)} {unit}s of the text; it needs 2 or more"
            )
        return self.ids[:cut], self.ids[cut:]


def read(
    sources: Sequence[Source],
    *,
    encoding: str = "utf-8",
    symbols: SymbolKind = "chars",
    documents: bool = False,
    boundary: str | None = None,
    max_chars: int | None = None,
    report: Report | None = None,
) -> Corpus:
    """Read texts and join them in the given order, with nothing between them or with a boundary between documents.

    Up to IN_MEMORY_CHARS it needs 6 bytes of memory per character: 1 to 4 for the text, 1 or 2 for the ids. The ids of
    a longer text are stored in a file in the cache folder of the platform, and found there the next time.

    Args:
        sources: a file, a folder (all files below it that are not hidden, in sorted order), '-' for stdin, or the name
            of a corpus that was downloaded or is generated, if there is no file of that name. Gzip data is
            decompressed. Decoding is strict, newlines are not translated, and a byte order mark is a character.
        encoding: the encoding of all sources except named corpora, which are UTF-8; any text encoding of Python.
        symbols: 'bytes' takes the bytes of any file as they are, without decoding.
        documents: each file that is not empty is a document. The symbol U+001E, which no file may contain, is read
            between them.
        boundary: the text between the documents of one file; the end of a file ends a document, too. A line break makes
            each line a document.
        max_chars: the largest number of characters; a longer text is an error. The default is 2**31, or what fits in
            half of the memory if the ids of a long text cannot be stored in a file.
        report: called after each block with the number of symbols read and the total number. The total is None while
            the text is read for the first time, and known while a long text is read for the second time.

    Returns:
        The ids, the vocabulary and the sha256 of the text.

    Raises:
        CorpusError: a source cannot be read or decoded; the text is empty or too long; a document contains the symbol
            of the boundary.
        UsageError: the encoding is unknown, or an encoding is given for bytes; the boundary is invalid.
    """
    options = TextFormat(encoding, symbols, documents, boundary, max_chars)
    limit = reading.MAX_CHARS if max_chars is None else max_chars
    names = tuple(escape(str(source)) for source in sources)
    key = reading.fingerprint(sources, options)
    codec_name, separator = options.codec().name, options.separator()
    found = None if key is None else id_file.find(key)
    if found is not None and len(found[0]) <= limit:
        return Corpus(*found, names, codec_name)

    def blocks() -> Iterator[Block]:
        return reading.iter_symbols(sources, options, limit)

    digest = hashlib.sha256()
    seen = np.zeros(MAX_VOCABULARY, dtype=bool)
    with _TextBuffer(blocks, key is not None, max_chars, symbols) as text:
        for block in reading.report_progress(blocks(), report):
            digest.update(_utf8(block))
            if isinstance(block, str):
                codes = code_points(block).astype(np.intp)
                if not seen.take(codes).all():  # reading costs a third of writing
                    seen[codes] = True
            text.append(block)
        vocabulary = Vocabulary.of_seen(seen) if symbols == "chars" else ByteVocabulary()
        vocabulary = vocabulary if separator is None else vocabulary.with_boundary(separator.boundary)
        sha256 = digest.hexdigest()
        ids = _store_ids(text, vocabulary, sha256, key, report) if text.is_long else _ids_in_memory(text, vocabulary)
    return Corpus(ids, vocabulary, sha256, names, codec_name)


def encode_text(vocabulary: Vocabulary, blocks: Iterable[str], unknown: Unknown = "error") -> tuple[Symbols, int]:
    """Encode a text that comes in blocks; documents get a boundary before and after each.

    Args:
        vocabulary: the vocabulary of the model.
        blocks: the text; more than IN_MEMORY_CHARS ids are stored in a file if one can be created.
        unknown: what to do with characters that are not in the vocabulary.

    Returns:
        The ids (N,), and the number of characters that were skipped or replaced.

    Raises:
        UnknownSymbols: there are unknown characters, and `unknown` is 'error'.
        CorpusError: the disk is full.
    """
    counts: Counter[str] = Counter()
    encoded = vocabulary.lookup_blocks(vocabulary.insert_boundaries(blocks), counts, unknown)
    in_memory: list[Ids] = []
    length = 0
    for ids in encoded:
        in_memory.append(ids)
        length += len(ids)
        if length > IN_MEMORY_CHARS:
            break
    file = None
    if length > IN_MEMORY_CHARS:
        with contextlib.suppress(OSError):  # the cache folder is not writable: keep the ids in memory
            file = id_file.temporary_file()
    if file is None:
        return np.concatenate([np.empty(0, vocabulary.dtype), *in_memory, *encoded]), sum(counts.values())
    try:
        return id_file.store_temporarily(file, vocabulary, itertools.chain(in_memory, encoded)), sum(counts.values())
    except OSError as error:
        raise _storage_error("the ids of the text", error) from error


def beginning(ids: Symbols, chars: int, boundary: int | None) -> Ids:
    """Return the beginning of a validation part.

    Args:
        ids: (N,) the validation part.
        chars: the number of symbols to return; 0 is all.
        boundary: the id of the boundary of documents. An incomplete document at the end is left out, unless it is the
            only one.
    """
    part = np.asarray(ids[: chars or None])
    if boundary is None or len(part) == len(ids):
        return part
    ends = np.flatnonzero(part[1:] == boundary)
    return part[: ends[-1] + 2] if len(ends) else part


def _document_end(ids: Symbols, boundary: int, valid_share: float) -> int | None:
    """Return the index of the boundary that is nearest to the wanted cut, or None if there is only one document."""
    last = len(ids) - 2
    wanted = int(len(ids) * (1 - valid_share)) - 1
    radius = SEARCH_SYMBOLS
    while True:
        begin, end = max(1, wanted - radius), min(last, wanted + radius)
        found = begin + np.flatnonzero(np.asarray(ids[begin : end + 1]) == boundary) if begin <= end else np.empty(0)
        if len(found):
            return int(found[np.abs(found - wanted).argmin()])
        if (begin == 1 and end == last) or begin > end:
            return None
        radius *= 4


def _ids_in_memory(text: _TextBuffer, vocabulary: Vocabulary) -> Ids:
    ids = np.empty(text.length, dtype=vocabulary.dtype)
    start = 0
    for block in text.blocks():
        ids[start : start + len(block)] = _encode_block(block, vocabulary)
        start += len(block)
    return ids


def _store_ids(
    text: _TextBuffer, vocabulary: Vocabulary, sha256: str, key: str | None, report: Report | None
) -> StoredIds:
    """Write the ids of a long text to a file: under `key`, or to a temporary file if it is None."""
    blocks = reading.report_progress(text.blocks(sha256), report, text.length)
    encoded = (_encode_block(block, vocabulary) for block in blocks)
    try:
        if key is None:
            return id_file.store_temporarily(id_file.temporary_file(), vocabulary, encoded)
        return id_file.store(key, vocabulary, sha256, text.length, encoded)
    except OSError as error:
        megabytes = text.length * vocabulary.dtype.itemsize / 1e6
        raise _storage_error(f"the ids of the text, {megabytes:,.0f} MB,", error) from error
    except UnknownSymbols as error:
        raise CorpusError(CHANGED) from error


def _encode_block(block: Block, vocabulary: Vocabulary) -> Ids:
    return np.frombuffer(block, np.uint8) if isinstance(block, bytes) else vocabulary.lookup(block)[0]


def _utf8(block: Block) -> bytes:
    return block if isinstance(block, bytes) else block.encode()


class _TextBuffer:
    """The blocks of a text, which are needed a second time.

    A short text is kept in memory. A long text is read again from its sources; if they cannot be read twice, such as a
    pipe, its blocks are written to a temporary file.

    Args:
        read_again: yields the blocks of the sources.
        is_repeatable: the sources can be read twice.
        max_chars: the largest number of symbols in memory if no file can be created; None is what fits in half of it.
        symbols: the kind of symbols in the blocks.

    Attributes:
        length: the number of symbols so far.
        is_long: the text is not kept in memory.
    """

    def __init__(
        self, read_again: Callable[[], Iterator[Block]], is_repeatable: bool, max_chars: int | None, symbols: SymbolKind
    ) -> None:
        self.length = 0
        self.is_long = False
        self._read_again, self._is_repeatable, self._symbols = read_again, is_repeatable, symbols
        self._max_chars = reading.max_chars_in_memory() if max_chars is None else max_chars
        self._blocks: list[Block] = []
        self._file: IO[bytes] | None = None
        self._storage_error: CorpusError | None = None  # why no file can be created

    def __enter__(self) -> _TextBuffer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # the disk is full, which was reported before
                self._file.close()

    def append(self, block: Block) -> None:
        """Add a block.

        Raises:
            CorpusError: the disk is full, or the text is too long for the memory and no file can be created.
        """
        self.length += len(block)
        if self.length > IN_MEMORY_CHARS and not self.is_long and self._storage_error is None:
            self._begin_file()
        if not self.is_long:
            self._blocks.append(block)
            if self._storage_error is not None and self.length > self._max_chars:
                raise self._storage_error
        elif self._file is not None:
            self._write(block)

    def blocks(self, sha256: str = "") -> Iterator[Block]:
        """Yield all blocks once more; a block in memory is freed when the next one is requested.

        Args:
            sha256: the digest of a long text.

        Raises:
            CorpusError: a long text has changed.
        """
        if not self.is_long:
            self._blocks.reverse()
            while self._blocks:
                yield self._blocks.pop()
            return
        digest, remaining = hashlib.sha256(), self.length
        for block in self._read_again() if self._file is None else self._written_blocks():
            block = block[:remaining]  # a file that grows, such as a log, is read up to its length of the first time
            remaining -= len(block)
            digest.update(_utf8(block))
            yield block
            if not remaining:
                break
        if digest.hexdigest() != sha256:
            raise CorpusError(CHANGED)

    def _begin_file(self) -> None:
        try:
            file = id_file.temporary_file()
        except OSError as error:  # the cache folder is not writable: keep the text in memory
            unit = UNITS["char" if self._symbols == "chars" else "byte"]
            self._storage_error = _storage_error(f"a text of more than {self._max_chars} {unit}s", error)
            return
        self.is_long = True
        if self._is_repeatable:
            file.close()
        else:
            self._file = file
            for block in self._blocks:
                self._write(block)
        self._blocks.clear()

    def _write(self, block: Block) -> None:
        assert self._file is not None
        try:
            self._file.write(_utf8(block))
        except OSError as error:
            raise _storage_error("the text", error) from error

    def _written_blocks(self) -> Iterator[Block]:
        assert self._file is not None
        self._file.seek(0)
        decoder = codecs.getincrementaldecoder("utf-8")()
        while block := self._file.read(reading.BLOCK_BYTES):
            yield decoder.decode(block) if self._symbols == "chars" else block


def _storage_error(what: str, error: OSError) -> CorpusError:
    where = escape(str(id_file.folder()))
    hint = "free some disk space, or set XDG_CACHE_HOME to another directory"
    return CorpusError(f"{what} cannot be stored in {where}: {error.strerror or error}; {hint}")
