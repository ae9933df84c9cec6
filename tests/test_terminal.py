"""Generated text cannot control a terminal, and reaches a pipe unchanged."""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
import time
import unicodedata
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from charlstm.terminal import BLOCK_BYTES, TextOut, escape, is_terminal

EVERYTHING = "".join(map(chr, range(sys.maxunicode + 1)))
HOSTILE = "\x1b]52;c;ZXZpbA==\x07 \x1b[2J \x9b31m \r \b \x7f \u202e \u2066 \u2028 \x00"


def drain(fd: int) -> bytes:
    """Return the bytes of a descriptor until its other end is closed."""
    said = b""
    while True:
        try:
            piece = os.read(fd, 65536)
        except OSError:  # the end of a terminal on Linux
            return said
        if not piece:
            return said
        said += piece


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for fd in ends:
        os.close(fd)


def ready(fd: int) -> bytes:
    """Return the bytes that can be read without waiting."""
    os.set_blocking(fd, False)
    try:
        return os.read(fd, 1 << 20)
    except BlockingIOError:
        return b""


# --- escaping


@pytest.mark.fault("R84")
def test_every_control_and_invisible_format_character_is_escaped() -> None:
    """Compare with the categories in the Unicode data of Python."""
    joiners = "\u200c\u200d"  # scripts and emoji need them
    number_signs = "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"
    for c in EVERYTHING:
        category = unicodedata.category(c)
        unsafe = category in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in joiners + number_signs
        if unsafe:
            assert escape(c) != c, ascii(c)
        elif category != "Cn":  # not assigned in the Unicode version of this Python
            assert escape(c) == c, ascii(c)


@pytest.mark.fault("R84")
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31m", r"\x1b[31m"),
        ("\x9b", r"\x9b"),
        ("\u202e", r"\u202e"),
        ("\ud800", r"\ud800"),
        ("\U000e0041", r"\U000e0041"),
        ("a\nb\tc", r"a\x0ab\x09c"),
        ("naïve ☃ 👩‍👩‍👧 نص", "naïve ☃ 👩‍👩‍👧 نص"),
        ("", ""),
    ],
)
def test_a_character_is_escaped_as_its_code_point(text: str, shown: str) -> None:
    assert escape(text) == shown


def test_kept_characters_are_not_escaped() -> None:
    assert escape("a\n\t\x1b\r", keep="\n\t") == "a\n\t\\x1b\\x0d"


@given(st.text(st.characters()))
def test_escaped_text_has_no_control_characters(text: str) -> None:
    shown = escape(text)
    assert not any(unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") for c in shown)
    assert escape(shown) == shown
    shown.encode()


# --- terminals


def test_only_an_open_terminal_is_a_terminal(pipe: tuple[int, int]) -> None:
    control, terminal = pytest.importorskip("pty").openpty()
    with os.fdopen(control, "wb"), os.fdopen(terminal, "w") as stream:
        assert is_terminal(terminal)
        assert is_terminal(stream)
    assert not is_terminal(stream)  # closed by now
    assert not is_terminal(None)
    assert not is_terminal(pipe[0])
    assert not is_terminal(io.StringIO())


# --- output


def to_terminal(text: str, **options: Any) -> bytes:
    """Return the bytes that a terminal receives for a text."""
    control, terminal = pytest.importorskip("pty").openpty()
    pytest.importorskip("tty").setraw(terminal)  # otherwise the terminal would translate newlines
    out = TextOut(terminal, **options)
    said: list[bytes] = []
    reader = threading.Thread(target=lambda: said.append(drain(control)))
    reader.start()
    out.write(text)
    os.close(terminal)
    reader.join()
    os.close(control)
    return said[0]


@pytest.mark.fault("R84")
def test_a_terminal_receives_controls_escaped_except_newline_and_tab() -> None:
    said = to_terminal("a\n\tb" + HOSTILE)
    assert said.decode() == "a\n\tb" + escape(HOSTILE)
    assert not set(said) & (set(range(32)) - {9, 10} | {127})


@pytest.mark.fault("R84")
def test_a_terminal_receives_raw_text_unchanged() -> None:
    assert to_terminal(HOSTILE, raw=True).decode() == HOSTILE


@pytest.mark.fault("R85")
def test_a_pipe_receives_every_byte_of_every_character() -> None:
    text = "".join(c for c in EVERYTHING if not "\ud800" <= c <= "\udfff")
    read_end, write_end = os.pipe()
    said: list[bytes] = []
    reader = threading.Thread(target=lambda: said.append(drain(read_end)))
    reader.start()
    out = TextOut(write_end)
    for start in range(0, len(text), 1000):
        out.write(text[start : start + 1000])
    out.close()
    os.close(write_end)
    reader.join()
    os.close(read_end)
    assert said[0] == text.encode()


def test_a_block_is_flushed_when_it_is_full(pipe: tuple[int, int]) -> None:
    out = TextOut(pipe[1], buffering="block")
    out.write("x" * (BLOCK_BYTES - 1))
    time.sleep(0.06)
    out.write("")
    assert ready(pipe[0]) == b""
    out.write("y")
    assert len(ready(pipe[0])) == BLOCK_BYTES
    out.write("z")
    assert ready(pipe[0]) == b""
    out.close()
    assert ready(pipe[0]) == b"z"


@pytest.mark.fault("R52")
def test_slowly_generated_text_is_flushed_after_50_ms(pipe: tuple[int, int]) -> None:
    out = TextOut(pipe[1])
    out.write("a")
    time.sleep(0.06)
    out.write("b")
    assert ready(pipe[0]) == b"ab"
    out.write("c")  # less than 50 ms later
    assert ready(pipe[0]) == b""


def test_line_buffering_flushes_complete_lines(pipe: tuple[int, int]) -> None:
    out = TextOut(pipe[1], buffering="line")
    out.write("one")
    assert ready(pipe[0]) == b""
    out.write(" line\ntw")
    assert ready(pipe[0]) == b"one line\ntw"


def test_without_buffering_each_write_is_flushed(pipe: tuple[int, int]) -> None:
    out = TextOut(pipe[1], buffering="none")
    for c in "äb\n":
        out.write(c)
        assert ready(pipe[0]) == c.encode()


@pytest.mark.fault("R4")
def test_short_writes_are_continued(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:3]))
    TextOut(pipe[1], buffering="none").write("short writes, é ☃")
    assert ready(pipe[0]).decode() == "short writes, é ☃"


@pytest.mark.fault("R4")
@pytest.mark.fault("R52")
def test_signals_and_a_full_pipe_lose_nothing(pipe: tuple[int, int]) -> None:
    """The reader is slow, the descriptor is non-blocking, and a signal interrupts every millisecond."""
    hits = []

    def hit(number: int, frame: FrameType | None) -> None:
        hits.append(number)

    said: list[bytes] = []

    def read() -> None:
        while sum(map(len, said)) < len(text):
            said.append(os.read(pipe[0], 20_000))
            time.sleep(0.002)

    text = "".join(map(str, range(100_000)))
    reader = threading.Thread(target=read)
    os.set_blocking(pipe[1], False)
    before = signal.signal(signal.SIGALRM, hit)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    try:
        reader.start()
        out = TextOut(pipe[1])
        for start in range(0, len(text), 997):
            out.write(text[start : start + 997])
        out.close()
        reader.join()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert b"".join(said).decode() == text
    assert hits


@pytest.mark.fault("R48")
def test_a_closed_pipe_is_reported_once() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    out = TextOut(write_end)
    with pytest.raises(BrokenPipeError):
        out.write("x" * BLOCK_BYTES)
    out.close()  # the unwritten text was discarded
    os.close(write_end)


@pytest.mark.fault("R49")
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk_is_an_oserror() -> None:
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError, match="No space left"):
        TextOut(full.fileno(), buffering="none").write("x")
