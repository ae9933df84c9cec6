"""Named corpora: generated on this machine, or downloaded once and kept in the cache folder.

The sha256 is checked after a download and at each use of the cached file, so that a file that differs from the
published one is never decompressed or read. An interrupted download leaves no file.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import os
import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO
from urllib.parse import urlsplit

from charlstm.atomicfile import FolderLock
from charlstm.errors import CorpusError, DownloadError, UsageError
from charlstm.progress import Report
from charlstm.terminal import escape
from charlstm.text import recall
from charlstm.text.cache import user_cache

CHUNK_BYTES = 1 << 14  # a download can be interrupted after each chunk
TIMEOUT_SECONDS = 20.0  # for the connection, and between two chunks of the response
RETRIES = 1  # after a connection error or a wrong checksum

GENERATED = MappingProxyType(
    {
        "python:docs": "the documentation topics of your Python; about 0.5 MB of English prose",
        "python:source": "the source of your Python's standard library; about 10 MB of code",
        "recall:N": "5,000 lines that ask for a symbol N characters earlier, to measure memory",
    }
)
"""Name → description in one line."""


@dataclass(frozen=True)
class Download:
    """A corpus that can be downloaded.

    Attributes:
        url: the address of a text, or of a zip archive with one member that is the text.
        bytes: size of the file at the URL.
        sha256: digest of the file at the URL.
        text_bytes: size of the text.
        licence: licence of the text.
        about: description in one line.
    """

    url: str
    bytes: int
    sha256: str
    text_bytes: int
    licence: str
    about: str

    @property
    def is_zip(self) -> bool:
        """Whether the file is a zip archive."""
        return self.url.endswith(".zip")


# The digests of the two archives are published: that of enwik8 in LTCB/enwik8 of Hugging Face (dataset_infos.json),
# that of text8 in several public loaders that agree, and its size in the word2vec tutorial of TensorFlow. The digests
# of the two plain texts were computed from a download.
DOWNLOADS = MappingProxyType(
    {
        "tinyshakespeare": Download(
            url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
            bytes=1_115_394,
            sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            text_bytes=1_115_394,
            licence="public domain",
            about="40,000 lines of Shakespeare's plays",
        ),
        "names": Download(
            url="https://raw.githubusercontent.com/karpathy/makemore/master/names.txt",
            bytes=228_145,
            sha256="0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d",
            text_bytes=228_145,
            licence="MIT",
            about="32,033 first names, one per line, in lower case",
        ),
        "enwik8": Download(
            url="https://mattmahoney.net/dc/enwik8.zip",
            bytes=36_445_475,
            sha256="547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
            text_bytes=100_000_000,
            licence="GFDL and CC BY-SA",
            about="Wikipedia of March 2006, with markup",
        ),
        "text8": Download(
            url="https://mattmahoney.net/dc/text8.zip",
            bytes=31_344_016,
            sha256="a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232",
            text_bytes=100_000_000,
            licence="GFDL and CC BY-SA",
            about="Wikipedia as 26 letters and the space",
        ),
    }
)
"""Name → address, expected size and digest, and licence."""

_EXCLUDED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


def names() -> tuple[str, ...]:
    """Return the names of all corpora."""
    return (*GENERATED, *DOWNLOADS)


def is_generated(name: str) -> bool:
    """Return whether a name is that of a generated corpus; the N of recall:N may be invalid."""
    return name in GENERATED or name.startswith(recall.PREFIX)


def unknown_corpus(name: str) -> UsageError:
    """Return the error for a name that is not in `names()`."""
    return UsageError(f"there is no corpus called {escape(ascii(name))[:60]}; choose one of {', '.join(names())}")


def generate(name: str) -> str:
    """Return a generated corpus; the same for the same Python installation.

    Args:
        name: one of `GENERATED`, where a whole number replaces the N of recall:N.

    Raises:
        UsageError: there is no such name, or N is outside its range.
        CorpusError: this Python installation lacks the files.
    """
    if name == "python:docs":
        return _python_docs()
    if name == "python:source":
        return _python_source(Path(sysconfig.get_path("stdlib")))
    if name.startswith(recall.PREFIX):
        return recall.text(recall.lag_of(name))
    raise unknown_corpus(name)


def _python_docs() -> str:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise CorpusError("this Python lacks pydoc_data, the source of python:docs; try python:source") from error
    return "".join(f"{title}\n\n{topics[title].strip()}\n\n\n" for title in sorted(topics))


def _python_source(library: Path) -> str:
    paths: list[Path] = []
    for folder, folders, names in os.walk(library):
        folders[:] = [name for name in folders if name not in _EXCLUDED_FOLDERS]
        paths += [Path(folder, name) for name in names if name.endswith(".py")]
    parts = []
    for path in sorted(paths, key=lambda path: path.relative_to(library).parts):
        try:
            parts.append(path.read_bytes().decode())
        except (OSError, UnicodeDecodeError):  # not readable, or in another encoding
            continue
    if not parts:
        raise CorpusError(f"{escape(str(library))} contains no source of the standard library; try python:docs")
    return "".join(parts)


def cache_folder() -> Path:
    """Return the folder for downloads: ~/.cache/charlstm/corpora on Linux, the equivalent on other platforms.

    The folder may not exist yet.
    """
    return user_cache() / "corpora"


def file_of(name: str, folder: Path | None = None) -> Path:
    """Return the path of a downloaded corpus, which may not exist yet.

    Args:
        name: one of `DOWNLOADS`.
        folder: the folder of the file; None is `cache_folder()`.
    """
    return (folder or cache_folder()) / (name + (".zip" if DOWNLOADS[name].is_zip else ".txt"))


def is_cached(name: str, folder: Path | None = None) -> bool:
    """Return whether a file of the right size exists; only `cached_file` and `download` check its digest."""
    try:
        return file_of(name, folder).stat().st_size == DOWNLOADS[name].bytes
    except OSError:
        return False


def cached_file(name: str, folder: Path | None = None) -> Path:
    """Return the file of a corpus that was downloaded before, without using the network; `text_blocks` reads it.

    Args:
        name: one of `DOWNLOADS`.
        folder: the folder of the file; None is `cache_folder()`.

    Raises:
        CorpusError: the corpus was not downloaded yet, or its file has changed since.
    """
    file = file_of(name, folder)
    command = f"charlstm corpus {name} > {name}.txt"
    try:
        if _sha256(file) == DOWNLOADS[name].sha256:
            return file
    except FileNotFoundError:
        raise CorpusError(f"{name}: not downloaded yet; download it first: {command}") from None
    raise CorpusError(f"{name}: {escape(str(file))} was changed after the download; download it again: {command}")


def download(name: str, report: Report | None = None, folder: Path | None = None) -> Path:
    """Return the file of a corpus, and download it if it is missing or corrupt; `text_blocks` reads it.

    Args:
        name: one of `DOWNLOADS`.
        report: called with the number of bytes received and the total number, at the start and after each chunk.
        folder: where to keep the file; None is `cache_folder()`.

    Raises:
        DownloadError: a package is not installed, the server cannot be reached or refuses, the connection breaks, the
            checksum is wrong, another process is downloading, or the file cannot be written. Nothing is kept.
    """
    source, file = DOWNLOADS[name], file_of(name, folder)
    try:
        if file.exists() and _sha256(file) == source.sha256:
            return file
        _require_packages(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        with FolderLock(file.parent):
            for abandoned in file.parent.glob("tmp????????"):  # of a process that was killed during a download
                abandoned.unlink()
            _fetch(name, file, report or (lambda done, total: None))
    except BlockingIOError as error:
        raise DownloadError(f"{name}: another process is downloading ({error.strerror}); try again later") from error
    except OSError as error:
        where = escape(str(file.parent))
        raise DownloadError(f"{name}: cannot be stored in {where}: {error.strerror or error}") from error
    return file


def _require_packages(name: str) -> None:
    try:
        import filelock  # noqa: F401
        import pooch  # noqa: F401
        import requests  # noqa: F401
    except ImportError as error:
        raise DownloadError(
            f"{name}: a download requires filelock, pooch and requests ({error}): "
            "install them with pip install filelock pooch requests"
        ) from error


def text_blocks(file: Path) -> Iterator[bytes]:
    """Yield the bytes of the text in a file that `cached_file` or `download` returned, in blocks."""
    if file.suffix != ".zip":
        with file.open("rb") as plain:
            yield from _blocks(plain)
        return
    import zipfile

    with zipfile.ZipFile(file) as archive, archive.open(archive.infolist()[0]) as member:
        yield from _blocks(member)


def _sha256(file: Path) -> str:
    """Return the digest of a file; it is computed once for each state of the file, by its size and times."""
    status = file.stat()
    return _sha256_of(file, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


@functools.lru_cache(maxsize=8)
def _sha256_of(file: Path, *state: int) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        for block in _blocks(opened):
            digest.update(block)
    return digest.hexdigest()


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    while block := file.read(1 << 18):
        yield block


class _ProgressFile:
    """A file that reports the number of bytes written to it, and refuses more than the expected number."""

    def __init__(self, file: IO[bytes], name: str, report: Report) -> None:
        self._file, self._name, self._report = file, name, report
        self.size = 0

    def write(self, chunk: bytes) -> None:
        self.size += len(chunk)
        total = DOWNLOADS[self._name].bytes
        if self.size > total:
            raise _wrong_file(self._name, f"is longer than {total:,} bytes")
        self._file.write(chunk)
        self._report(self.size, total)

    def flush(self) -> None:
        self._file.flush()


def _fetch(name: str, file: Path, report: Report) -> None:
    """Download a corpus to a temporary file, check its digest and rename it."""
    import pooch
    import requests

    source = DOWNLOADS[name]
    received = 0

    def download_to(url: str, path: str, _: pooch.Pooch | None) -> None:
        nonlocal received
        received = 0
        report(0, source.bytes)
        with ExitStack() as responses, open(path, "wb") as opened:
            get = pooch.HTTPDownloader(
                chunk_size=CHUNK_BYTES,
                timeout=TIMEOUT_SECONDS,
                headers={"Accept-Encoding": "identity"},
                hooks={"response": lambda response, **_: responses.enter_context(response)},  # pooch leaves them open
            )
            progress = _ProgressFile(opened, name, report)
            try:
                get(url, progress, None)
            except requests.HTTPError as error:
                response = error.response
                status = "" if response is None else f" {response.status_code} {escape(response.reason or '')[:60]}"
                raise DownloadError(f"{name}: {url} responded with{status}; try again later") from error
            finally:
                received = progress.size

    cache = pooch.Pooch(file.parent, "", {file.name: source.sha256}, {file.name: source.url}, retry_if_failed=RETRIES)
    try:
        with _quiet(pooch.get_logger()):
            cache.fetch(file.name, downloader=download_to)
    except requests.RequestException as error:
        raise DownloadError(f"{name}: {_connection_failure(source, received, error)}") from error
    except ValueError as error:  # pooch raises it for another digest
        is_short = received < source.bytes
        how = f"has {received:,} bytes instead of {source.bytes:,}" if is_short else "has another sha256"
        raise _wrong_file(name, how) from error


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Hide the messages of pooch, which would write them to stderr."""
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _connection_failure(source: Download, received: int, error: OSError) -> str:
    import requests

    host = urlsplit(source.url).hostname
    if received:
        return f"the connection broke after {received:,} of {source.bytes:,} bytes; nothing was kept, try again"
    if isinstance(error, requests.exceptions.SSLError):
        return f"the certificate of {host} is not trusted; check the clock and the proxy of this computer"
    if isinstance(error, requests.Timeout):
        return f"{host} did not answer within {TIMEOUT_SECONDS:g} s; try again later"
    if isinstance(error, requests.ConnectionError):
        return f"{host} cannot be reached; check the network (charlstm corpus python:docs needs none)"
    return f"the request to {host} failed ({escape(str(error))[:100]})"


def _wrong_file(name: str, how: str) -> DownloadError:
    """Return the error for a download that differs from what was published."""
    return DownloadError(
        f"{name}: the file at {DOWNLOADS[name].url} {how}; nothing was kept, because it is corrupt or was changed"
    )
