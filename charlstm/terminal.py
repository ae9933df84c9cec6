"""What may reach a terminal: control characters made visible, model text written as bytes."""

from __future__ import annotations

import os
import re
import select
import time
from typing import Any, Literal

BLOCK_BYTES = 65_536  # a pipe's capacity on Linux
BLOCK_SECONDS = 0.05  # a reader of a slow generator sees text at least so often

# Controls (C0, DEL, C1), line and paragraph separators, surrogates, and all format characters that no eye sees:
# bidirectional overrides and isolates, soft hyphen, byte order mark, tags. Left alone: the two joiners that
# scripts and emoji need, and the format characters that have a glyph (Arabic and Kaithi number signs).
_UNSAFE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ud800-\udfff\ufeff\ufff9-\ufffb"
    "\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e007f]"
)

_SURROGATE = re.compile("[\ud800-\udfff]")

Buffering = Literal["auto", "line", "none", "block"]


def escape(text: str, keep: str = "") -> str:
    r"""`text` with every character that could drive or deceive a terminal written as \xNN, \uNNNN or \UNNNNNNNN.

    Args:
        keep: characters to let through, such as "\n\t" for text of several lines.
    """
    return _UNSAFE.sub(lambda match: match[0] if match[0] in keep else _spell(ord(match[0])), text)


def shortened(value: object) -> str:
    """Return a value from outside as text that is safe to print, cut to 120 characters."""
    text = escape(str(value))
    return text if len(text) <= 120 else text[:120] + "…"


def _spell(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def well_formed(text: str) -> str:
    """A text with U+FFFD for each surrogate, such as stands for a byte that is not UTF-8."""
    return _SURROGATE.sub("\ufffd", text)


def is_terminal(stream: Any) -> bool:
    """Whether a stream, or a file descriptor, is a terminal; False for None and for what is closed."""
    try:
        return os.isatty(stream) if isinstance(stream, int) else stream is not None and bool(stream.isatty())
    except ValueError:  # a closed stream
        return False


class TextOut:
    """Model text on its way to a file descriptor: always UTF-8, whatever the locale says.

    To a terminal every control but newline and tab is escaped, unless `raw`. To a pipe or a file it is byte exact. A
    surrogate that stands for a byte, as Python's `surrogateescape` has it, is that byte where `raw`, else U+FFFD.

    Args:
        fd: the descriptor; it stays open.
        raw: let a terminal have what the model says, controls and all.
        buffering: "none" hands over each write at once, "line" each line, "block" 64 kB at a time; "auto" is "none"
            on a terminal and else "block", but with at most 50 ms between the hand-overs while writes come.

    Raises:
        OSError: from `write`, `flush` and `close`, with what was not yet written dropped; BrokenPipeError where the
            reader has gone.
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
        """Take `text`; it is handed over now or later, as `buffering` says."""
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
        """Hand over all that was written."""
        pending, self._pending = memoryview(self._pending), bytearray()
        while pending:
            try:
                pending = pending[os.write(self._fd, pending) :]
            except BlockingIOError:  # someone who shares the descriptor made it non-blocking
                select.select([], [self._fd], [])
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Hand over the rest. The descriptor stays open: it was not opened here."""
        self.flush()
