"""Named corpora from the net: loaded once, held to their sha256, and kept in the platform's folder for caches.

What has come of a transfer that broke off stays in a file ending in `.part`; the next one asks for the rest. The digest
is that of the loaded file and is compared at every use: nothing is unpacked or read that is not as it was published.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, TYPE_CHECKING
from urllib.parse import urlsplit

from charlstm.atomicfile import FolderLock
from charlstm.errors import CorpusError, DownloadError
from charlstm.progress import Report
from charlstm.terminal import escape

if TYPE_CHECKING:
    from requests import Response

BLOCK_BYTES = 1 << 14  # what a Ctrl-C can cost
TIMEOUT_SECONDS = 20.0  # to answer, and between two pieces of the answer


@dataclass(frozen=True)
class Source:
    """Where a corpus is and what it must be.

    Attributes:
        url: of a text, or of a zip with one member that is the text.
        bytes: of what the URL gives.
        sha256: of what the URL gives.
        text_bytes: of the text.
        licence: of the text.
        about: what it is, in a line.
    """

    url: str
    bytes: int
    sha256: str
    text_bytes: int
    licence: str
    about: str

    @property
    def is_zip(self) -> bool:
        return self.url.endswith(".zip")


# The digests of the two zips are those published in Hugging Face's LTCB/enwik8 (dataset_infos.json) and, for text8, in
# several public loaders that agree with each other; its size is that which TensorFlow's word2vec tutorial asks for.
# Those of the two plain texts were computed.
SOURCES = MappingProxyType(
    {
        "tinyshakespeare": Source(
            url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
            bytes=1_115_394,
            sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            text_bytes=1_115_394,
            licence="public domain",
            about="40,000 lines of Shakespeare's plays: what character models are compared on",
        ),
        "names": Source(
            url="https://raw.githubusercontent.com/karpathy/makemore/master/names.txt",
            bytes=228_145,
            sha256="0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d",
            text_bytes=228_145,
            licence="MIT",
            about="32,033 first names, one a line, in small letters",
        ),
        "enwik8": Source(
            url="https://mattmahoney.net/dc/enwik8.zip",
            bytes=36_445_475,
            sha256="547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc",
            text_bytes=100_000_000,
            licence="GFDL and CC BY-SA",
            about="the first 100 MB of the English Wikipedia of March 2006, with its markup",
        ),
        "text8": Source(
            url="https://mattmahoney.net/dc/text8.zip",
            bytes=31_344_016,
            sha256="a6640522afe85d1963ad56c05b0ede0a0c000dddc9671758a6cc09b7a38e5232",
            text_bytes=100_000_000,
            licence="GFDL and CC BY-SA",
            about="the same Wikipedia as words only: 26 letters and the space",
        ),
    }
)
"""Name → where it is and what it must be."""


def cache_folder() -> Path:
    """Where loaded corpora are kept: ~/.cache/charlstm on Linux, its like elsewhere. It need not exist."""
    import platformdirs

    return platformdirs.user_cache_path("charlstm", appauthor=False) / "corpora"


def is_cached(name: str, folder: Path | None = None) -> bool:
    """Whether a file of the right size is there; only `cached` and `fetch` compare the digest."""
    try:
        return file_of(name, folder).stat().st_size == SOURCES[name].bytes
    except OSError:
        return False


def cached(name: str, folder: Path | None = None) -> Path:
    """The file of a corpus that was loaded before; `blocks` reads it. Nothing is asked of the net.

    Raises:
        CorpusError: it was not loaded yet, or its file is not as it was loaded.
    """
    file = file_of(name, folder)
    load = f"charlstm corpus {name} > {name}.txt"
    try:
        if _sha256(file) == SOURCES[name].sha256:
            return file
    except FileNotFoundError:
        raise CorpusError(f"{name}: not loaded yet; load it first: {load}") from None
    raise CorpusError(f"{name}: {escape(str(file))} was changed since it was loaded; load it again: {load}")


def blocks(file: Path) -> Iterator[bytes]:
    """The bytes of the text in a file that `cached` or `fetch` returned, a piece at a time."""
    if file.suffix != ".zip":
        with file.open("rb") as plain:
            yield from _pieces(plain)
        return
    import zipfile

    with zipfile.ZipFile(file) as archive, archive.open(archive.infolist()[0]) as member:
        yield from _pieces(member)


def fetch(name: str, report: Report | None = None, folder: Path | None = None) -> Path:
    """The file of a corpus in `SOURCES`, loaded where it is not there yet; `blocks` reads it.

    Args:
        report: called with the bytes that are there and those that there will be, at the start and with each piece.
        folder: to keep it in; by default `cache_folder()`.

    Raises:
        DownloadError: it cannot be reached, broke off (what has come is kept), is not what it should be (nothing is
            kept), or cannot be written.
    """
    source, file = SOURCES[name], file_of(name, folder)
    try:
        if file.exists() and _sha256(file) == source.sha256:
            return file
        file.parent.mkdir(parents=True, exist_ok=True)
        with FolderLock(file.parent):
            part = file.with_name(file.name + ".part")
            _complete(part, name, report or (lambda done, total: None))
            if _sha256(part) != source.sha256:
                raise _changed(part, name, "has another sha256 than it should have")
            os.replace(part, file)
    except BlockingIOError as error:
        raise DownloadError(
            f"{name}: another charlstm is loading ({error.strerror}); try again when it is done"
        ) from error
    except OSError as error:
        where = escape(str(file.parent))
        raise DownloadError(f"{name}: cannot be kept in {where}: {error.strerror or error}") from error
    return file


def file_of(name: str, folder: Path | None = None) -> Path:
    """Where a corpus is kept once it was loaded."""
    return (folder or cache_folder()) / (name + (".zip" if SOURCES[name].is_zip else ".txt"))


def _sha256(file: Path) -> str:
    """Computed once for a file as it is, by its size and times: a long text is read twice."""
    status = file.stat()
    return _sha256_of(file, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)


@functools.lru_cache(maxsize=8)
def _sha256_of(file: Path, *as_it_is: int) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        for block in _pieces(opened):
            digest.update(block)
    return digest.hexdigest()


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    while block := file.read(1 << 18):
        yield block


def _complete(part: Path, name: str, report: Report) -> None:
    """Load what `part` lacks of its source."""
    import requests

    source = SOURCES[name]
    have = part.stat().st_size if part.exists() else 0
    if have > source.bytes:
        part.unlink()
        have = 0
    if have == source.bytes:
        return
    headers = {"Accept-Encoding": "identity"}  # ranges count the bytes as they are sent
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        answer = requests.get(source.url, headers=headers, stream=True, timeout=TIMEOUT_SECONDS)
    except requests.RequestException as error:
        raise DownloadError(f"{name}: {_unreached(source.url, error)}") from error
    with answer:
        start = _start(answer, part, name, have)
        report(start, source.bytes)
        try:
            have = _receive(answer, part, start, source.bytes, report)
        except requests.RequestException:  # the connection went down, or is silent
            have = part.stat().st_size
    if have > source.bytes:
        raise _changed(part, name, f"is longer than {source.bytes:,} bytes")
    if have < source.bytes:
        raise DownloadError(
            f"{name}: the transfer broke off after {have:,} of {source.bytes:,} bytes;"
            " they are kept, and the same command goes on from there"
        )


def _unreached(url: str, error: OSError) -> str:
    import requests

    host = urlsplit(url).hostname
    if isinstance(error, requests.exceptions.SSLError):
        return f"the certificate of {host} cannot be trusted; is the clock right, or does a proxy stand between?"
    if isinstance(error, requests.Timeout):
        return f"{host} did not answer within {TIMEOUT_SECONDS:g} s; try again later"
    if isinstance(error, requests.ConnectionError):
        return f"{host} cannot be reached; is there a network? (charlstm corpus python:docs needs none)"
    return f"{host} cannot be asked ({escape(str(error))[:100]})"


def _start(answer: Response, part: Path, name: str, have: int) -> int:
    """The offset that the answer's body begins at: that asked for, or 0 from a server that sends the whole."""
    size = SOURCES[name].bytes
    status = answer.status_code
    if status == 206 and answer.headers.get("Content-Range") == f"bytes {have}-{size - 1}/{size}":
        return have
    if status in (206, 416):  # has other ranges than a file of this size has
        raise _changed(part, name, "is not as long as it was")
    if status != 200:
        reason = escape(answer.reason or "")[:60]
        raise DownloadError(f"{name}: {SOURCES[name].url} answers {status} {reason}; try again later")
    length = answer.headers.get("Content-Length", "")
    if length.isdecimal() and int(length) != size:
        raise _changed(part, name, f"has {int(length):,} bytes and should have {size:,}")
    return 0


def _receive(answer: Response, part: Path, start: int, size: int, report: Report) -> int:
    """Write the body to `part` from `start` on; how long it is then. Stops where there is more than there should be."""
    have = start
    with part.open("ab" if start else "wb") as file:
        for block in answer.iter_content(BLOCK_BYTES):
            file.write(block)
            have += len(block)
            report(min(have, size), size)
            if have > size:
                break
    return have


def _changed(part: Path, name: str, how: str) -> DownloadError:
    """What is to be raised where the net gives something else than was published; what has come of it is removed."""
    part.unlink(missing_ok=True)
    return DownloadError(
        f"{name}: {SOURCES[name].url} gave a file that {how}; nothing was kept: damaged on the way, or changed since"
    )
