"""Named corpora: generated ones, and downloads from a local server that simulates the failures of a network."""

from __future__ import annotations

import ast
import builtins
import hashlib
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

from charlstm.atomicfile import FolderLock
from charlstm.errors import CorpusError, DownloadError, UsageError
from charlstm.text import corpus, datasets, recall
from charlstm.text.datasets import DOWNLOADS, Download
from tests.helpers.commands import COMMAND, ROOT, Done, environment, here, in_terminal

TEXT = "".join(f"{n}: It was the best of times, «naïve» times.\n" for n in range(3000)).encode()


@dataclass
class Net:
    """The response of the server, its failures, and the number of requests."""

    body: bytes = TEXT
    says_length: bool = True
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    stops_at: int | None = None  # the server sends this number of bytes and then keeps the connection open
    breaks: int = 0  # the number of requests for which it closes the connection after the first bytes
    requests: int = 0
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
            net.requests += 1
            self.send_response(net.status or 200)
            if net.says_length:
                self.send_header("Content-Length", str(len(net.body)))
            for name, value in net.headers.items():
                self.send_header(name, value)
            self.end_headers()
            if net.requests <= net.breaks:
                self.wfile.write(net.body[:50_001])
            elif net.stops_at is not None:
                self.wfile.write(net.body[: net.stops_at])
                net.over.wait(60)
            else:
                self.wfile.write(net.body)

        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(datasets, "RETRIES", 0)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    net.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield net
    net.over.set()
    server.shutdown()
    thread.join()
    server.server_close()


def source(net: Net, data: bytes = TEXT, **changes: object) -> Download:
    digest = hashlib.sha256(data).hexdigest()
    return replace(Download(net.url, len(data), digest, len(TEXT), "none", "a test"), **changes)  # type: ignore[arg-type]


@pytest.fixture
def known(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `book` a corpus that the server provides."""
    monkeypatch.setattr(datasets, "DOWNLOADS", MappingProxyType({"book": source(net)}))


def text(folder: Path) -> bytes:
    return b"".join(datasets.text_blocks(datasets.download("book", folder=folder)))


def left(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()} - {".lock", ".lock.pid"}


def test_a_corpus_is_downloaded_once_and_its_progress_is_reported(net: Net, known: None, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    folder = tmp_path / "new" / "cache"
    file = datasets.download("book", lambda done, total: seen.append((done, total)), folder)
    assert file.read_bytes() == TEXT
    assert seen[0] == (0, len(TEXT))
    assert seen[-1] == (len(TEXT), len(TEXT))
    assert seen == sorted(seen)
    assert datasets.is_cached("book", folder)
    assert text(folder) == TEXT
    assert net.requests == 1
    assert left(folder) == {"book.txt"}


def test_a_broken_connection_leaves_no_file_and_reports_the_position(net: Net, known: None, tmp_path: Path) -> None:
    net.breaks = 1
    with pytest.raises(
        DownloadError, match=r"the connection broke after [\d,]+ of .* bytes; nothing was kept"
    ) as raised:
        text(tmp_path)
    assert f" of {len(TEXT):,} bytes" in str(raised.value)
    assert left(tmp_path) == set()
    assert not datasets.is_cached("book", tmp_path)
    assert text(tmp_path) == TEXT


def test_a_truncated_body_of_unknown_length_is_refused(net: Net, known: None, tmp_path: Path) -> None:
    net.breaks, net.says_length = 1, False
    with pytest.raises(DownloadError, match=f"has 50,001 bytes instead of {len(TEXT):,}; nothing was kept"):
        text(tmp_path)
    assert left(tmp_path) == set()


@pytest.mark.parametrize("breaks", [1, 2])
def test_a_broken_connection_is_retried_as_often_as_set(
    net: Net, known: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks: int
) -> None:
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)
    monkeypatch.setattr(datasets, "RETRIES", 1)
    net.breaks = breaks
    if breaks == 1:
        assert text(tmp_path) == TEXT
    else:
        with pytest.raises(DownloadError, match="the connection broke"):
            text(tmp_path)
    assert net.requests == 2


def test_the_file_of_a_killed_download_is_removed_by_the_next_download(net: Net, known: None, tmp_path: Path) -> None:
    (tmp_path / "tmpabcd_123").write_bytes(TEXT[:100])
    assert text(tmp_path) == TEXT
    assert left(tmp_path) == {"book.txt"}


def flipped(data: bytes) -> bytes:
    return data[:70_000] + bytes([data[70_000] ^ 1]) + data[70_001:]


@pytest.mark.parametrize(
    ("body", "says_length", "message"),
    [
        (flipped(TEXT), True, "has another sha256"),
        (TEXT + b"more", True, f"is longer than {len(TEXT):,} bytes"),
        (TEXT + b"more", False, f"is longer than {len(TEXT):,} bytes"),
        (TEXT[:-1], True, f"has {len(TEXT) - 1:,} bytes instead of {len(TEXT):,}"),
    ],
)
def test_a_corrupt_or_changed_file_is_refused_and_nothing_is_kept(
    net: Net, known: None, tmp_path: Path, body: bytes, says_length: bool, message: str
) -> None:
    net.body, net.says_length = body, says_length
    with pytest.raises(DownloadError, match=f"{re.escape(message)}; nothing was kept"):
        text(tmp_path)
    assert left(tmp_path) == set()
    net.body = TEXT
    assert text(tmp_path) == TEXT


def test_a_corrupt_cached_file_is_downloaded_again(net: Net, known: None, tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_bytes(flipped(TEXT))
    assert text(tmp_path) == TEXT
    assert net.requests == 1


def test_a_redirect_is_followed(net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = source(net, url=f"http://127.0.0.1:{net.port}/moved")
    monkeypatch.setattr(datasets, "DOWNLOADS", {"book": moved})
    assert text(tmp_path) == TEXT
    assert net.requests == 1


@pytest.mark.parametrize("status", [404, 403, 500, 503])
def test_a_refusing_server_is_named_with_its_status(
    net: Net, known: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    net.status = status
    monkeypatch.setattr(datasets, "RETRIES", 1)  # an HTTP status is not retried
    with pytest.raises(DownloadError, match=f"{net.url} responded with {status} "):
        text(tmp_path)
    assert net.requests == 1
    assert left(tmp_path) == set()


def test_a_body_that_cannot_be_decoded_is_an_error_of_one_line(net: Net, known: None, tmp_path: Path) -> None:
    net.headers = {"Content-Encoding": "gzip"}
    with pytest.raises(DownloadError) as raised:
        text(tmp_path)
    assert "\n" not in str(raised.value)
    assert left(tmp_path) == set()


def test_a_server_that_stops_sending_is_an_error_after_the_timeout(
    net: Net, known: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "TIMEOUT_SECONDS", 0.2)
    net.stops_at = 5 * datasets.CHUNK_BYTES
    with pytest.raises(DownloadError, match=f"broke after {net.stops_at:,}"):
        text(tmp_path)
    net.stops_at = None
    assert text(tmp_path) == TEXT


def test_without_a_network_the_error_names_the_host_and_a_generated_corpus(
    tmp_path: Path, net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as taken:  # bound and not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        nowhere = source(net, url=f"http://127.0.0.1:{taken.getsockname()[1]}/x")
        monkeypatch.setattr(datasets, "DOWNLOADS", {"book": nowhere})
        with pytest.raises(DownloadError, match=r"127\.0\.0\.1 cannot be reached; check the network .*python:docs"):
            text(tmp_path)


def test_a_server_that_does_not_answer_is_an_error_after_the_timeout(
    net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "TIMEOUT_SECONDS", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(
            datasets, "DOWNLOADS", {"book": source(net, url=f"http://127.0.0.1:{silent.getsockname()[1]}/")}
        )
        with pytest.raises(DownloadError, match=r"did not answer within 0\.2 s"):
            text(tmp_path)


def test_plain_http_instead_of_tls_is_reported_as_an_untrusted_certificate(
    net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "DOWNLOADS", {"book": source(net, url=net.url.replace("http:", "https:"))})
    with pytest.raises(DownloadError, match="certificate"):
        text(tmp_path)


def test_a_zip_archive_is_kept_unchanged_and_read_as_its_text(
    net: Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("book", TEXT)
    net.body = packed.getvalue()
    url = net.url.replace(".txt", ".zip")
    monkeypatch.setattr(datasets, "DOWNLOADS", {"book": source(net, net.body, url=url)})
    assert text(tmp_path) == TEXT
    assert (tmp_path / "book.zip").read_bytes() == net.body


def test_a_second_process_does_not_download_at_the_same_time(net: Net, known: None, tmp_path: Path) -> None:
    with (
        FolderLock(tmp_path),
        pytest.raises(DownloadError, match=f"another process is downloading .*process {os.getpid()}"),
    ):
        text(tmp_path)
    assert text(tmp_path) == TEXT


def test_a_cache_folder_that_cannot_be_written_is_named(net: Net, known: None, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match=r"cannot be stored in .*file.*: Not a directory"):
        text(tmp_path / "file" / "cache")


def test_each_entry_is_complete_and_its_text_is_not_smaller_than_the_download() -> None:
    for name, known in DOWNLOADS.items():
        assert re.fullmatch(r"[a-z0-9]+", name)
        assert re.fullmatch(r"[0-9a-f]{64}", known.sha256)
        assert known.url.startswith("https://")
        assert known.text_bytes > known.bytes if known.is_zip else known.text_bytes == known.bytes
        assert known.licence
        assert "\n" not in known.about


def test_the_document_has_every_download_and_the_list_as_it_is_printed(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = (ROOT / "docs" / "corpora.md").read_text(encoding="utf-8")
    for name, known in DOWNLOADS.items():
        (row,) = re.findall(rf"^\| `{name}` .*$", document, re.MULTILINE)
        assert f"{known.bytes:,} bytes" in row
        assert row.endswith(f"| {known.licence} |")
    monkeypatch.setattr(datasets, "cache_folder", lambda: tmp_path)
    listed = here(capfd, "corpus").text
    assert f"$ charlstm corpus\n{listed}```" in document
    assert all(len(line) <= 100 for line in listed.splitlines())


def test_the_cache_folder_is_that_of_the_platform(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = datasets.cache_folder()
    assert folder.name == "corpora"
    assert os.name == "nt" or os.uname().sysname == "Darwin" or folder == tmp_path / "charlstm" / "corpora"


# Generated corpora


def test_the_documentation_is_half_a_megabyte_of_prose() -> None:
    text = datasets.generate("python:docs")
    assert 300_000 < len(text) < 2_000_000
    words = text.split()
    assert words.count("the") / len(words) > 0.03  # English
    assert text == datasets.generate("python:docs")
    assert text.isascii() or text.encode().decode() == text


def test_every_topic_is_in_the_documentation_under_its_title() -> None:
    from pydoc_data.topics import topics

    text = datasets.generate("python:docs")
    for title, body in topics.items():
        assert f"{title}\n\n{body.strip()}\n" in text


def test_the_source_is_the_standard_library_without_tests() -> None:
    text = datasets.generate("python:source")
    assert 5_000_000 < len(text) < 40_000_000
    assert Path(json.__file__).read_bytes().decode() in text
    assert Path(ast.__file__).read_bytes().decode() in text
    assert Path(pytest.__file__).read_bytes().decode() not in text


def test_sources_are_sorted_and_without_other_packages_and_encodings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "b.py": b"B\r\n",
        "a/z.py": b"Z",
        "a/b.py": "é".encode(),
        "a.txt": b"no",
        "latin.py": b"\xe9",
        "test/x.py": b"no",
        "a/tests/x.py": b"no",
        "site-packages/x.py": b"no",
        "a/__pycache__/x.py": b"no",
    }
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    assert datasets.generate("python:source") == "éZB\r\n"


@pytest.mark.parametrize("lag", [1, 2, 8, 300])
def test_each_line_of_recall_asks_for_the_symbol_that_was_lag_characters_before_the_question_mark(lag: int) -> None:
    lines = datasets.generate(f"recall:{lag}").splitlines(keepends=True)
    assert len(lines) == recall.LINES
    for line in lines:
        question = line.index("?")
        assert (question, line[question - lag], line[question + 1 :]) == (lag, line[0], f"{line[0]}\n")
    assert {*"".join(line[1:lag] for line in lines)} == ({*"abcd"} if lag > 1 else set())


def predicted_by(feature: Callable[[str], str], lines: Sequence[str]) -> float:
    """Return how often the answer is the most frequent one for a feature of the line, on the second half of the lines.

    The most frequent answers are counted on the first half.
    """
    half = len(lines) // 2
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for line in lines[:half]:
        counts[feature(line)][line[-1]] += 1
    likeliest = {value: count.most_common(1)[0][0] for value, count in counts.items()}
    right = [likeliest.get(feature(line)) == line[-1] for line in lines[half:]]
    return sum(right) / len(right)


def test_nothing_but_the_key_predicts_the_answer_of_recall() -> None:
    """The answer is one of eight; 0.03 is 4.5 standard errors of 2,500 lines. The key itself is the control."""
    lines = datasets.generate("recall:20").splitlines()
    previous = dict(zip(lines[1:], lines, strict=False))
    features: list[Callable[[str], str]] = [
        *(lambda line, place=place: line[place] for place in range(1, 21)),
        *(lambda line, symbol=symbol: str(line.count(symbol)) for symbol in "abcd"),
        lambda line: line[1:4],
        lambda line: line[17:20],
        lambda line: previous.get(line, "A")[0],
    ]
    for feature in features:
        assert predicted_by(feature, lines) == pytest.approx(1 / 8, abs=0.03)
    assert predicted_by(lambda line: line[0], lines) == 1


def test_the_text_of_recall_depends_on_the_lag_alone() -> None:
    """The digest is that of the published text: another text would not be comparable with it."""
    digest = hashlib.sha256(datasets.generate("recall:200").encode()).hexdigest()
    assert digest == "72d3fd225951af6c364042a64f67e6afc82acdad350fc86ed249d2479d9af3a3"
    assert datasets.generate("recall:4").splitlines()[0][:4] != datasets.generate("recall:5").splitlines()[0][:4]


@pytest.mark.parametrize(
    "lag", ["", "0", "-1", "N", "1.5", "07", "10001", "1e3", "１２", "9" * 5000, "\x1b[31m", "5\n"]
)
def test_a_lag_that_is_not_a_number_in_its_range_is_an_error_of_one_line(lag: str) -> None:
    with pytest.raises(UsageError, match=r"^recall:N requires a whole number N from 1 to 10,000, such as .*$") as error:
        datasets.generate(f"recall:{lag}")
    assert str(error.value).isprintable()
    with pytest.raises(UsageError, match=r"^recall:N requires"):
        corpus.read([f"recall:{lag}"])


def test_recall_can_be_named_in_place_of_a_file_unless_a_file_has_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert corpus.read(["recall:7"]).sha256 == hashlib.sha256(datasets.generate("recall:7").encode()).hexdigest()
    Path("recall:7").write_text("a file")
    assert "".join(corpus.read(["recall:7"]).vocabulary.symbols) == " aefil"


def test_each_generated_corpus_has_a_description_of_one_line() -> None:
    for line in datasets.GENERATED.values():
        assert line
        assert "\n" not in line


def test_a_missing_file_of_python_and_an_unknown_name_are_different_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="python:docs, python:source"):
        datasets.generate("python:\x1b[31m")
    monkeypatch.delitem(sys.modules, "pydoc_data.topics", raising=False)
    find = builtins.__import__

    def refuse(name: str, *args: Any) -> Any:
        if name.startswith("pydoc_data"):
            raise ModuleNotFoundError(name)
        return find(name, *args)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(CorpusError, match="python:source"):
        datasets.generate("python:docs")
    monkeypatch.setattr("sysconfig.get_path", lambda _: str(tmp_path))
    with pytest.raises(CorpusError, match="python:docs"):
        datasets.generate("python:source")


# On the command line

PATCHED = """
import sys
from types import MappingProxyType
from charlstm.text import datasets
from charlstm.text.datasets import Download
datasets.DOWNLOADS = MappingProxyType({{"book": {source!r}}})
from charlstm.__main__ import main
sys.argv = ["charlstm", *{arguments!r}]
main()
"""


def command(net: Net, *arguments: str) -> list[str]:
    """Return the command of a charlstm process that has the corpus of the server."""
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


def test_the_command_writes_only_the_text(net: Net, tmp_path: Path) -> None:
    assert run(net, tmp_path, "corpus", "book") == Done(0, TEXT, "downloading book, 0.1 MB\n")
    assert run(net, tmp_path, "corpus", "book") == Done(0, TEXT, "")
    assert net.requests == 1


def test_the_list_has_sizes_licences_and_the_state_of_the_cache(net: Net, tmp_path: Path) -> None:
    def line() -> str:
        (line,) = [line for line in run(net, tmp_path, "corpus").text.splitlines() if line.startswith("book ")]
        return line

    assert line().endswith("a test; 0.1 MB, none; downloads 0.1 MB")
    run(net, tmp_path, "corpus", "book")
    assert line().endswith("a test; 0.1 MB, none; cached")


def test_a_failed_download_prints_one_line_and_exits_with_status_1(net: Net, tmp_path: Path) -> None:
    net.status = 404
    done = run(net, tmp_path, "corpus", "book")
    assert (done.status, done.out) == (1, b"")
    assert done.err.splitlines()[1:] == [f"charlstm: book: {net.url} responded with 404 Not Found; try again later"]


def size_of(file: Path) -> int:
    """Return the size of a file in bytes; 0 if it was removed since it was listed."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def test_ctrl_c_leaves_no_file_and_the_next_command_downloads(net: Net, tmp_path: Path) -> None:
    net.stops_at = 4 * datasets.CHUNK_BYTES
    process = subprocess.Popen(
        command(net, "corpus", "book"),
        env=environment(XDG_CACHE_HOME=str(tmp_path), HOME=str(tmp_path)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 60
    while not (parts := [file for file in tmp_path.rglob("tmp????????") if size_of(file) >= net.stops_at // 2]):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, b"")
    assert "Traceback" not in err.decode()
    assert left(parts[0].parent) == set()
    net.stops_at = None
    assert run(net, tmp_path, "corpus", "book").out == TEXT
    assert net.requests == 2


def test_a_progress_bar_is_shown_on_a_terminal(net: Net, tmp_path: Path) -> None:
    shown = in_terminal(
        ["sh", "-c", '"$@" > /dev/null', "sh", *command(net, "corpus", "book")],
        XDG_CACHE_HOME=str(tmp_path),
        HOME=str(tmp_path),
    )
    assert shown.status == 0
    assert b"book: " in shown.out
    assert b"%|" in shown.out


def test_an_unknown_name_is_answered_with_the_list_of_names(capfd: pytest.CaptureFixture[str]) -> None:
    done = here(capfd, "corpus", "enwik")
    assert done.status == 2
    assert all(name in done.err for name in (*DOWNLOADS, "python:docs"))
