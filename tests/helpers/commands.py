"""Help for the tests of the command line: a model with random weights, and three ways to run a command.

`here` runs it in this process, which is quick; `spawn` in one of its own, with real descriptors; `in_terminal` in a
pseudoterminal of a given size.
"""

from __future__ import annotations

import fcntl
import functools
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
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
ONCE = functools.cache(typer.main.get_command)  # to make all options takes longer than most commands do


class Done(NamedTuple):
    status: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()


def model_file(path: Path, symbols: str = "\n abcdefgh", facts: Mapping[str, Any] | None = None) -> Path:
    """A checkpoint of a small model that was never trained."""
    vocabulary = Vocabulary.of(symbols)
    config = ModelConfig(len(vocabulary), hidden=12, layers=1, embedding=5)
    draw = np.random.default_rng(7)
    weights = {name: draw.normal(0, 0.3, shape).astype(np.float32) for name, shape in config.shapes().items()}
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
    """This process's environment, where a child finds charlstm from any folder; None takes a variable away."""
    merged: dict[str, str | None] = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": None, **changes}
    return {name: value for name, value in merged.items() if value is not None}


def spawn(arguments: Sequence[object], *, cwd: Path | None = None, stdin: bytes = b"", **changes: str | None) -> Done:
    """Run a command in a process of its own and wait for it."""
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
    """Run any command with stdin, stdout and stderr on a pseudoterminal; `out` is all that it was shown."""
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
            except OSError:  # Linux says EIO where the last writer has closed a terminal
                break
            if not data:
                break
            shown += data
    else:
        process.send_signal(signal.SIGKILL)
    os.close(parent)
    return Done(process.wait(), shown, "")
