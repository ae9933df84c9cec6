"""A model file with random weights, and three ways to run a command.

`here` runs a command in this process, which is fast; `spawn` runs it in a new process with real descriptors;
`in_terminal` runs it in a pseudoterminal of a given size. Every name can be imported on Windows, too.
"""

from __future__ import annotations

import functools
import os
import select
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
import typer.main

from charlstm import checkpoint
from charlstm.checkpoint import Checkpoint
from charlstm.cli.main import run
from charlstm.config import ModelConfig
from charlstm.text.vocabulary import Vocabulary

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "charlstm"]
ONCE = functools.cache(typer.main.get_command)  # building all options takes longer than most commands


class Done(NamedTuple):
    status: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()


def model_file(path: Path, symbols: str = "\n abcdefgh", facts: Mapping[str, Any] | None = None) -> Path:
    """Write a checkpoint of a small model with random weights, and return its path."""
    vocabulary = Vocabulary.of(symbols)
    config = ModelConfig(len(vocabulary), hidden=12, layers=1, embedding=5)
    random = np.random.default_rng(7)
    weights = {name: random.normal(0, 0.3, shape).astype(np.float32) for name, shape in config.shapes().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.save(path, Checkpoint(config, vocabulary, weights, step=3, facts=facts or {}))
    return path


def here(capfd: pytest.CaptureFixture[str], *arguments: object) -> Done:
    """Run a command in this process."""
    capfd.readouterr()
    with mock.patch("typer.main.get_command", ONCE):
        status = run([str(argument) for argument in arguments])
    sys.stdout.flush()
    out, err = capfd.readouterr()
    return Done(status, out.encode("utf-8", "surrogateescape"), err)


def environment(**changes: str | None) -> dict[str, str]:
    """Return this process's environment with changes; None removes a variable. A child can import charlstm."""
    merged: dict[str, str | None] = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": None, **changes}
    return {name: value for name, value in merged.items() if value is not None}


def spawn(arguments: Sequence[object], *, cwd: Path | None = None, stdin: bytes = b"", **changes: str | None) -> Done:
    """Run a command in a new process and wait for it."""
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        env=environment(**changes),
        timeout=120,
        check=False,
    )
    return Done(done.returncode, done.stdout, done.stderr.decode())


def in_terminal(command: Sequence[object], *, columns: int = 80, **changes: str | None) -> Done:
    """Run any command with stdin, stdout and stderr on a pseudoterminal; `out` is everything it writes there."""
    pty, fcntl, termios = (pytest.importorskip(name) for name in ("pty", "fcntl", "termios"))
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        [*map(str, command)], stdin=child, stdout=child, stderr=child, env=environment(TERM="xterm", **changes)
    )
    os.close(child)
    shown = b""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        ready, _, _ = select.select([parent], [], [], 1.0)
        if ready:
            try:
                data = os.read(parent, 65536)
            except OSError:  # on Linux EIO: the last writer closed the terminal
                break
            if not data:
                break
            shown += data
    else:
        process.kill()
    os.close(parent)
    return Done(process.wait(), shown, "")
