"""Corpora from the net, against a server on this machine that misbehaves in every way that a net does."""

from __future__ import annotations

import hashlib
import io
import os
import re
import signal
import socket
import subprocess
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType

import pytest

from charlstm.atomicfile import FolderLock
from charlstm.errors import DownloadError
from charlstm.text import downloads
from charlstm.text.downloads import SOURCES, Source
from tests.helpers.commands import COMMAND, ROOT, Done, environment, here, in_terminal

TEXT = "".join(f"{n}: It was the best of times, «naïve» times.\n" for n in range(3000)).encode()


@dataclass
class Net:
    """What the server gives, how it goes wrong, and what it was asked for."""

    body: bytes = TEXT
    knows_ranges: bool = True
    breaks_after: int | None = None
    says_length: bool = True
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    stops_at: int | None = None  # bytes of the file, where it sends no more but stays connected
    asked: list[str | None] = field(default_factory=list)
    port: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/text.txt"


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> Iterator[Net]:
    net = Net()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/moved":
                self.send_response(302)
                self.send_header("Location", net.url)
                self.end_headers()
                return
            wanted = self.headers["Range"]
            net.asked.append(wanted)
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and net.knows_ranges else 0
            status = net.status or (206 if start else 200)
            if start >= len(net.body) and start:
                status = 416
            self.send_response(status)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(net.body) - 1}/{len(net.body)}")
            if net.says_length:
                self.send_header("Content-Length", str(len(net.body) - start))
            for name, value in net.headers.items():
                self.send_header(name, value)
            self.end_headers()
            if net.breaks_after is not None:
                self.wfile.write(net.body[start : start + net.breaks_after])
            elif net.stops_at is not None:
                self.wfile.write(net.body[start : net.stops_at])
                net.over.wait(60)
            else:
                self.wfile.write(net.body[start:])

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    net.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield net
    net.over.set()
    server.shutdown()
    thread.join()
    server.server_close()


def source(net: Net, data: bytes = TEXT, **changes: object) -> Source:
    digest = hashlib.sha256(data).hexdigest()
    return replace(Source(net.url, len(data), digest, len(TEXT), "none", "a test"), **changes)  # type: ignore[arg-type]


@pytest.fixture
def known(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """`book` is a corpus that the server has."""
    monkeypatch.setattr(downloads, "SOURCES", MappingProxyType({"book": source(net)}))


def text(folder: Path) -> bytes:
    return b"".join(downloads.blocks(downloads.fetch("book", folder=folder)))


def left(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()} - {".lock"}


def test_a_corpus_is_loaded_once_and_told_of(net: Net, known: None, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    folder = tmp_path / "new" / "cache"
    file = downloads.fetch("book", lambda done, total: seen.append((done, total)), folder)
    assert file.read_bytes() == TEXT
    assert seen[0] == (0, len(TEXT))
    assert seen[-1] == (len(TEXT), len(TEXT))
    assert seen == sorted(seen)
    assert downloads.is_cached("book", folder)
    assert text(folder) == TEXT
    assert net.asked == [None]
    assert left(folder) == {"book.txt"}


@pytest.mark.parametrize("says_length", [True, False])
def test_a_transfer_that_broke_off_goes_on_where_it_stopped(
    net: Net, known: None, tmp_path: Path, says_length: bool
) -> None:
    net.breaks_after, net.says_length = 50_001, says_length
    part = tmp_path / "book.txt.part"
    sizes = [0]
    for _ in range(2):
        with pytest.raises(DownloadError) as raised:
            text(tmp_path)
        sizes.append(part.stat().st_size)
        assert 50_001 - downloads.BLOCK_BYTES < sizes[-1] - sizes[-2] <= 50_001
        assert f"broke off after {sizes[-1]:,} of {len(TEXT):,} bytes" in str(raised.value)
        assert part.read_bytes() == TEXT[: sizes[-1]]
        assert not downloads.is_cached("book", tmp_path)
    net.breaks_after = None
    assert text(tmp_path) == TEXT
    assert net.asked == [None, f"bytes={sizes[1]}-", f"bytes={sizes[2]}-"]
    assert left(tmp_path) == {"book.txt"}


def test_a_server_without_ranges_sends_all_again(net: Net, known: None, tmp_path: Path) -> None:
    (tmp_path / "book.txt.part").write_bytes(b"x" * 50_000)
    net.knows_ranges = False
    assert text(tmp_path) == TEXT
    assert net.asked == ["bytes=50000-"]


def test_a_part_that_was_whole_when_charlstm_died_is_not_asked_for_again(net: Net, known: None, tmp_path: Path) -> None:
    (tmp_path / "book.txt.part").write_bytes(TEXT)
    assert text(tmp_path) == TEXT
    assert net.asked == []


def test_a_part_that_is_too_long_begins_anew(net: Net, known: None, tmp_path: Path) -> None:
    (tmp_path / "book.txt.part").write_bytes(TEXT + b"x")
    assert text(tmp_path) == TEXT
    assert net.asked == [None]


def flipped(data: bytes) -> bytes:
    return data[:70_000] + bytes([data[70_000] ^ 1]) + data[70_001:]


@pytest.mark.parametrize(
    ("body", "says_length", "message"),
    [
        (flipped(TEXT), True, "has another sha256 than it should have"),
        (TEXT + b"more", True, f"has {len(TEXT) + 4:,} bytes and should have {len(TEXT):,}"),
        (TEXT + b"more", False, f"is longer than {len(TEXT):,} bytes"),
        (TEXT[:-1], True, f"has {len(TEXT) - 1:,} bytes and should have {len(TEXT):,}"),
    ],
)
def test_a_file_that_was_damaged_or_changed_is_refused_and_nothing_kept(
    net: Net, known: None, tmp_path: Path, body: bytes, says_length: bool, message: str
) -> None:
    net.body, net.says_length = body, says_length
    with pytest.raises(DownloadError, match=f"{re.escape(message)}; nothing was kept"):
        text(tmp_path)
    assert left(tmp_path) == set()
    net.body = TEXT
    assert text(tmp_path) == TEXT


@pytest.mark.parametrize("length", [49_000, 60_000, len(TEXT) + 9])
def test_a_file_that_changed_between_two_halves_of_a_transfer_is_refused(
    net: Net, known: None, tmp_path: Path, length: int
) -> None:
    (tmp_path / "book.txt.part").write_bytes(TEXT[:50_000])
    net.body = bytes(length)
    with pytest.raises(DownloadError, match="is not as long as it was; nothing was kept"):
        text(tmp_path)
    assert left(tmp_path) == set()


def test_a_part_that_was_damaged_on_the_disk_is_found_out(net: Net, known: None, tmp_path: Path) -> None:
    (tmp_path / "book.txt.part").write_bytes(flipped(TEXT)[:80_000])
    with pytest.raises(DownloadError, match="another sha256"):
        text(tmp_path)
    assert text(tmp_path) == TEXT


def test_a_damaged_cache_is_loaded_again(net: Net, known: None, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_bytes(flipped(TEXT))
    assert text(tmp_path) == TEXT
    assert net.asked == [None]


def test_a_redirect_is_followed(net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = source(net, url=f"http://127.0.0.1:{net.port}/moved")
    monkeypatch.setattr(downloads, "SOURCES", {"book": moved})
    (tmp_path / "book.txt.part").write_bytes(TEXT[:50_000])
    assert text(tmp_path) == TEXT
    assert net.asked == ["bytes=50000-"]


@pytest.mark.parametrize("status", [404, 403, 500, 503])
def test_a_server_that_refuses_is_named_with_its_answer(net: Net, known: None, tmp_path: Path, status: int) -> None:
    net.status = status
    (tmp_path / "book.txt.part").write_bytes(TEXT[:50_000])
    with pytest.raises(DownloadError, match=f"{net.url} answers {status} "):
        text(tmp_path)
    assert left(tmp_path) == {"book.txt.part"}


def test_an_answer_that_cannot_be_a_file_is_no_traceback(net: Net, known: None, tmp_path: Path) -> None:
    net.headers = {"Content-Encoding": "gzip"}
    with pytest.raises(DownloadError):
        text(tmp_path)


def test_a_server_that_falls_silent_is_left_and_what_came_is_kept(
    net: Net, known: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "TIMEOUT_SECONDS", 0.2)
    net.stops_at = 5 * downloads.BLOCK_BYTES
    with pytest.raises(DownloadError, match=f"broke off after {net.stops_at:,}"):
        text(tmp_path)
    net.stops_at = None
    assert text(tmp_path) == TEXT


def test_without_a_network_the_host_is_named_and_a_text_that_needs_none(
    tmp_path: Path, net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:  # bound and not listening: who connects is refused
        taken.bind(("127.0.0.1", 0))
        nowhere = source(net, url=f"http://127.0.0.1:{taken.getsockname()[1]}/x")
        monkeypatch.setattr(downloads, "SOURCES", {"book": nowhere})
        with pytest.raises(DownloadError, match=r"127\.0\.0\.1 cannot be reached; is there a network\? .*python:docs"):
            text(tmp_path)


def test_a_server_that_accepts_and_says_nothing_is_left(
    net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "TIMEOUT_SECONDS", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(
            downloads, "SOURCES", {"book": source(net, url=f"http://127.0.0.1:{silent.getsockname()[1]}/")}
        )
        with pytest.raises(DownloadError, match=r"did not answer within 0\.2 s"):
            text(tmp_path)


def test_plain_http_where_tls_is_expected_is_no_certificate_to_trust(
    net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "SOURCES", {"book": source(net, url=net.url.replace("http:", "https:"))})
    with pytest.raises(DownloadError, match="certificate"):
        text(tmp_path)


def test_a_zip_is_kept_as_it_came_and_read_as_its_text(
    net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("book", TEXT)
    net.body = packed.getvalue()
    url = net.url.replace(".txt", ".zip")
    monkeypatch.setattr(downloads, "SOURCES", {"book": source(net, net.body, url=url)})
    assert text(tmp_path) == TEXT
    assert (tmp_path / "book.zip").read_bytes() == net.body


def test_a_second_charlstm_does_not_write_into_the_firsts_transfer(net: Net, known: None, tmp_path: Path) -> None:
    with (
        FolderLock(tmp_path),
        pytest.raises(DownloadError, match=f"another charlstm is loading .*process {os.getpid()}"),
    ):
        text(tmp_path)
    assert text(tmp_path) == TEXT


def test_a_cache_that_cannot_be_written_is_named(net: Net, known: None, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match=r"cannot be kept in .*file.*: Not a directory"):
        text(tmp_path / "file" / "cache")


def test_each_source_is_whole_and_its_text_is_not_smaller_than_what_is_loaded() -> None:
    for name, known in SOURCES.items():
        assert re.fullmatch(r"[a-z0-9]+", name)
        assert re.fullmatch(r"[0-9a-f]{64}", known.sha256)
        assert known.url.startswith("https://")
        assert known.text_bytes > known.bytes if known.is_zip else known.text_bytes == known.bytes
        assert known.licence
        assert "\n" not in known.about


def test_the_document_has_every_source_and_the_list_as_it_is_printed(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = (ROOT / "docs" / "corpora.md").read_text(encoding="utf-8")
    for name, known in SOURCES.items():
        (row,) = re.findall(rf"^\\| `{name}` .*$", document, re.MULTILINE)
        assert f"{known.bytes:,} bytes" in row
        assert row.endswith(f"| {known.licence} |")
    monkeypatch.setattr(downloads, "cache_folder", lambda: tmp_path)
    listed = "".join(line[:100] + "\n" for line in here(capfd, "corpus").text.splitlines())
    assert f"$ charlstm corpus | cut -c 1-100\n{listed}```" in document


def test_the_cache_is_the_platforms(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = downloads.cache_folder()
    assert folder.name == "corpora"
    assert os.name == "nt" or os.uname().sysname == "Darwin" or folder == tmp_path / "charlstm" / "corpora"


# On the command line

PATCHED = """
import sys
from types import MappingProxyType
from charlstm.text import downloads
from charlstm.text.downloads import Source
downloads.SOURCES = MappingProxyType({{"book": {source!r}}})
from charlstm.__main__ import main
sys.argv = ["charlstm", *{arguments!r}]
main()
"""


def command(net: Net, *arguments: str) -> list[str]:
    """A charlstm that knows the server's corpus, in a process of its own."""
    return [COMMAND[0], "-c", PATCHED.format(source=source(net), arguments=arguments)]


def run(net: Net, cache: Path, *arguments: str) -> Done:
    done = subprocess.run(
        command(net, *arguments),
        env=environment(XDG_CACHE_HOME=str(cache), HOME=str(cache)),
        capture_output=True,
        timeout=60,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr.decode())


def test_the_command_writes_the_text_and_only_it(net: Net, tmp_path: Path) -> None:
    assert run(net, tmp_path, "corpus", "book") == Done(0, TEXT, "downloading book, 0.1 MB\n")
    assert run(net, tmp_path, "corpus", "book") == Done(0, TEXT, "")
    assert net.asked == [None]


def test_the_list_has_sizes_licences_and_what_is_cached(net: Net, tmp_path: Path) -> None:
    def line() -> str:
        (line,) = [line for line in run(net, tmp_path, "corpus").text.splitlines() if line.startswith("book ")]
        return line

    assert line().endswith("a test; 0.1 MB, none; downloads 0.1 MB")
    run(net, tmp_path, "corpus", "book")
    assert line().endswith("a test; 0.1 MB, none; cached")


def test_a_failed_transfer_is_one_line_and_status_1(net: Net, tmp_path: Path) -> None:
    net.status = 404
    done = run(net, tmp_path, "corpus", "book")
    assert (done.status, done.out) == (1, b"")
    assert done.err.splitlines()[1:] == [f"charlstm: book: {net.url} answers 404 Not Found; try again later"]


def test_ctrl_c_keeps_what_has_come_and_the_next_command_goes_on(net: Net, tmp_path: Path) -> None:
    net.stops_at = 4 * downloads.BLOCK_BYTES
    process = subprocess.Popen(
        command(net, "corpus", "book"),
        env=environment(XDG_CACHE_HOME=str(tmp_path), HOME=str(tmp_path)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 60
    while not (parts := list(tmp_path.rglob("book.txt.part"))) or parts[0].stat().st_size < net.stops_at // 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, b"")
    assert "the part of book that was downloaded is kept" in err.decode()
    assert "Traceback" not in err.decode()
    kept = parts[0].stat().st_size
    assert 0 < kept <= net.stops_at
    net.stops_at = None
    assert run(net, tmp_path, "corpus", "book").out == TEXT
    assert net.asked == [None, f"bytes={kept}-"]


def test_a_bar_is_drawn_on_a_terminal(net: Net, tmp_path: Path) -> None:
    shown = in_terminal(
        ["sh", "-c", '"$@" > /dev/null', "sh", *command(net, "corpus", "book")],
        XDG_CACHE_HOME=str(tmp_path),
        HOME=str(tmp_path),
    )
    assert shown.status == 0
    assert b"book: " in shown.out
    assert b"%|" in shown.out


def test_names_complete_and_unknown_ones_are_answered_with_those_there_are(capfd: pytest.CaptureFixture[str]) -> None:
    done = here(capfd, "corpus", "enwik")
    assert done.status == 2
    assert all(name in done.err for name in (*SOURCES, "python:docs"))
