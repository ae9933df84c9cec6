"""Output of untrusted text: escape control characters for a terminal, and write generated text as bytes."""

from __future__ import annotations

import os
import re
import select
import time
from typing import Any, Literal

BLOCK_BYTES = 65_536  # a pipe's capacity on Linux
BLOCK_SECONDS = 0.05  # the longest time between two writes while text is generated slowly

# Controls (C0, DEL, C1), line and paragraph separators, surrogates, and all invisible format characters:
# bidirectional overrides and isolates, soft hyphen, byte order mark, tags. Not included: the two joiners that
# scripts and emoji need, and the format characters that have a glyph (Arabic and Kaithi number signs).
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
    "\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e007f]"
)

_SURROGATE = re.compile("[\ud800-\udfff]")

Buffering = Literal["auto", "line", "none", "block"]


def escape(text: str, keep: str = "") -> str:
    r"""Return a text in which characters that could control or deceive a terminal are \xNN, \uNNNN or \UNNNNNNNN.

    Args:
        text: any text.
        keep: characters that are not escaped, such as "\n\t" for text of several lines.
    """
    return _UNSAFE.sub(lambda match: match[0] if match[0] in keep else _spell(ord(match[0])), text)


def shortened(value: object) -> str:
    """Return an untrusted value as text that is safe to print, truncated to 120 characters."""
    text = escape(str(value))
    return text if len(text) <= 120 else text[:120] + "…"


def _spell(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def well_formed(text: str) -> str:
    """Return a text with U+FFFD for each surrogate, for example for each byte that is not UTF-8."""
    return _SURROGATE.sub("\ufffd", text)


def is_terminal(stream: Any) -> bool:
    """Return whether a stream, or a file descriptor, is a terminal; False for None and for a closed stream."""
    try:
        return os.isatty(stream) if isinstance(stream, int) else stream is not None and bool(stream.isatty())
    except ValueError:  # a closed stream
        return False


class TextOut:
    """Write generated text to a file descriptor: always in UTF-8, whatever the locale.

    On a terminal, all control characters except newline and tab are escaped, unless `raw`. In a pipe or a file the text
    is unchanged. A surrogate that represents a byte, as in Python's `surrogateescape`, is written as that byte if
    `raw`, else as U+FFFD.

    Args:
        fd: the descriptor; it stays open.
        raw: do not escape anything.
        buffering: "none" flushes after each write, "line" after each line, "block" after 64 kB; "auto" means "none" on
            a terminal, and elsewhere "block", but at a write at least 50 ms after the last flush it flushes, too.

    Raises:
        OSError: from `write`, `flush` and `close`; the unwritten text is lost. It is a BrokenPipeError if the reader
            has closed the pipe.
    """

    def __init__(self, fd: int = 1, raw: bool = False, buffering: Buffering = "auto") -> None:
        terminal = os.isatty(fd)
        self._fd = fd
        self._escapes = terminal and not raw
        self._raw = raw
        self._buffering = "none" if buffering == "auto" and terminal else buffering
        self._pending = bytearray()
        self._flushed = time.monotonic()

    def write(self, text: str) -> None:
        """Write a text; when it is flushed depends on `buffering`."""
        if not self._raw:
            text = well_formed(text)
        if self._escapes:
            text = escape(text, keep="\n\t")
        self._pending += text.encode("utf-8", "surrogateescape")
        if (
            self._buffering == "none"
            or len(self._pending) >= BLOCK_BYTES
            or (self._buffering == "line" and "\n" in text)
            or (self._buffering == "auto" and time.monotonic() - self._flushed >= BLOCK_SECONDS)
        ):
            self.flush()

    def flush(self) -> None:
        """Pass everything that was written to the operating system."""
        pending, self._pending = memoryview(self._pending), bytearray()
        while pending:
            try:
                pending = pending[os.write(self._fd, pending) :]
            except BlockingIOError:  # a process that shares the descriptor made it non-blocking
                select.select([], [self._fd], [])
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Flush. The descriptor stays open, because it was not opened here."""
        self.flush()
