"""A synthetic text that measures memory: each line asks for a symbol that was N characters earlier, among noise.

A line for N = 8, with its positions:

    Ebadbbca?E      0: the key    1 to N - 1: noise    N: the question mark    N + 1: the key again

Key and noise are uniform and independent, and they have no symbol in common. So the only way to predict the symbol
after the question mark better than by chance, 1 in 8, is to carry the key over N steps. All lines have the same length,
and their number is a multiple of many batch sizes, so that a window of one line per stream can hold whole lines.
"""

from __future__ import annotations

import hashlib
import re

from charlstm.errors import UsageError

PREFIX = "recall:"
KEYS, NOISE = b"ABCDEFGH", b"abcd"
LINES = 5000
MAX_LAG = 10_000  # a text of 50 MB


def lag_of(name: str) -> int:
    """Return the N of a corpus name `recall:N`.

    Raises:
        UsageError: N is not a whole number from 1 to MAX_LAG.
    """
    digits = name.removeprefix(PREFIX)
    if not re.fullmatch(r"[1-9][0-9]{0,4}", digits) or int(digits) > MAX_LAG:
        raise UsageError(
            f"recall:N requires a whole number N from 1 to {MAX_LAG:,}, such as recall:200, got {ascii(name)[:60]}",
            value=name,
            allowed=f"recall:1 to recall:{MAX_LAG}",
        )
    return int(digits)


def text(lag: int) -> str:
    """Return the text of `LINES` lines for a lag: the same on every machine.

    Args:
        lag: N, the number of characters from the key to the question mark.
    """
    random = hashlib.shake_256(f"charlstm recall:{lag}".encode()).digest(LINES * lag)
    noise = random.translate(bytes(NOISE[value % len(NOISE)] for value in range(256)))
    lines = []
    for start in range(0, LINES * lag, lag):
        key = KEYS[random[start] % len(KEYS) :][:1]
        lines.append(key + noise[start + 1 : start + lag] + b"?" + key + b"\n")
    return b"".join(lines).decode("ascii")
