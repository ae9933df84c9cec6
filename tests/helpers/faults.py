"""Tools that cause faults on purpose.

`FaultyOs` replaces `os` and makes a system call fail, stop early or kill the process. `Disk` is a model of a disk that
loses its power. `mutate_value` changes the metadata of a checkpoint at random. `Forks` forks children from one process
that has everything imported, which makes a thousand children affordable; run as a script, this file is that process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from charlstm import atomicfile, checkpoint
from charlstm.checkpoint import Checkpoint
from charlstm.config import ModelConfig
from charlstm.errors import CharlstmError
from charlstm.text import corpus
from charlstm.text.vocabulary import Vocabulary

HANG_SECONDS = 10.0  # CPU seconds that no small file may take; a loop over what a file claims to hold takes far longer

Hook = Callable[[str, tuple[Any, ...], Callable[[], Any]], Any]


class FaultyOs:
    """A replacement of the module `os` in `atomicfile` that passes each system call to a hook.

    Args:
        hook: Receives the name of the call, its arguments and a function that makes the call. Its result is the result
            of the call.
    """

    SYSTEM_CALLS = frozenset(
        ("open", "write", "fsync", "close", "replace", "unlink", "fchmod", "stat", "listdir", "kill")
    )

    def __init__(self, hook: Hook) -> None:
        self._hook = hook

    def __getattr__(self, name: str) -> Any:
        value = getattr(os, name)
        if name not in self.SYSTEM_CALLS:
            return value
        return lambda *args: self._hook(name, args, lambda: value(*args))


@contextlib.contextmanager
def hooked(hook: Hook) -> Iterator[None]:
    """Pass the system calls of `atomicfile` to `hook` within this context."""
    module: Any = atomicfile
    module.os = FaultyOs(hook)
    try:
        yield
    finally:
        module.os = os


class At:
    """A hook that makes all calls but the k-th, counted from 1, and passes the k-th to `fault`."""

    def __init__(self, k: int, fault: Hook) -> None:
        self.left = k
        self.name = ""  # of the k-th call
        self._fault = fault

    def __call__(self, name: str, args: tuple[Any, ...], call: Callable[[], Any]) -> Any:
        self.left -= 1
        if self.left:
            return call()
        self.name = name
        return self._fault(name, args, call)


def die(name: str, args: tuple[Any, ...], call: Callable[[], Any]) -> None:
    """Kill the process before the call."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_within(name: str, args: tuple[Any, ...], call: Callable[[], Any]) -> None:
    """Kill the process in the middle of a write, or before any other call."""
    if name == "write":
        os.write(args[0], args[1][: len(args[1]) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


def fail(code: int) -> Hook:
    """Return a hook that fails with this errno. A failing close still closes the descriptor, as on Linux."""

    def fault(name: str, args: tuple[Any, ...], call: Callable[[], Any]) -> None:
        if name == "close":
            call()
        raise OSError(code, os.strerror(code))

    return fault


class Recorder:
    """A hook that makes every call and records those that change the disk.

    Attributes:
        calls: ("open", path, fd), ("write", fd, data), ("fsync", fd), ("close", fd), ("replace", old, new) or
            ("unlink", path).

    Args:
        skip: Selects calls that are neither made nor recorded, to remove a guard.
    """

    def __init__(self, skip: Callable[[str, tuple[Any, ...]], bool] = lambda name, args: False) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._skip = skip

    def __call__(self, name: str, args: tuple[Any, ...], call: Callable[[], Any]) -> Any:
        if self._skip(name, args):
            return None
        result = call()
        if name == "open":
            self.calls.append((name, os.fspath(args[0]), result))
        elif name == "write":
            self.calls.append((name, args[0], bytes(args[1][:result])))
        elif name in ("fsync", "close", "replace", "unlink"):
            self.calls.append((name, *args))
        return result


class Disk:
    """A model of what a disk may contain after a loss of power, on a filesystem that honours fsync only.

    A write without a later fsync of its file may survive, survive in part (by sectors of 512 bytes) or be lost, and so
    may the new length of the file. Each name that was created, changed or removed since the last fsync of the directory
    is changed or not, independently. A rename is atomic. So a rename may survive whose data is lost.
    """

    SECTOR = 512

    def __init__(self, folder: str, files: dict[str, bytes]) -> None:
        self._folder = folder
        self._names = {os.path.join(folder, name): index for index, name in enumerate(files)}
        self._safe = dict(enumerate(files.values()))
        self._unsafe: dict[int, list[tuple[int, bytes]]] = {index: [] for index in self._safe}
        self._end = {index: len(data) for index, data in self._safe.items()}
        self._changes: list[tuple[str | None, str | None, int | None]] = []  # (removed name, added name, its file)
        self._now = dict(self._names)
        self._fds: dict[int, int | None] = {}  # descriptor → file; None is the folder

    def replay(self, calls: list[tuple[Any, ...]]) -> None:
        """Apply the recorded calls of a process."""
        for name, *args in calls:
            getattr(self, "do_" + name)(*args)

    def lose_power(self, rng: random.Random) -> dict[str, bytes]:
        """Return one possible content of the directory after the loss: name → content."""
        names = dict(self._names)
        keep = rng.choice((0.0, 0.5, 0.5, 1.0))
        for gone, come, file in self._changes:
            if rng.random() < keep:
                if gone is not None:
                    names.pop(gone, None)
                if come is not None and file is not None:
                    names[come] = file
        return {os.path.basename(name): self._content(file, rng) for name, file in names.items()}

    def _content(self, file: int, rng: random.Random) -> bytes:
        data = bytearray(self._safe[file])
        keep = rng.choice((0.0, 0.5, 0.9, 1.0))
        for position, chunk in self._unsafe[file]:
            for start in range(0, len(chunk), self.SECTOR):
                if rng.random() < keep:
                    _put(data, position + start, chunk[start : start + self.SECTOR])
        if self._unsafe[file] and rng.random() < 0.5:  # the length was written, not all of the data
            data.extend(bytes(max(0, self._end[file] - len(data))))
        return bytes(data)

    def do_open(self, path: str, fd: int) -> None:
        if path == self._folder:
            self._fds[fd] = None
            return
        self._fds[fd] = file = len(self._safe)
        self._safe[file], self._unsafe[file], self._end[file] = b"", [], 0
        self._now[path] = file
        self._changes.append((None, path, file))

    def do_write(self, fd: int, data: bytes) -> None:
        file = self._fds[fd]
        assert file is not None
        self._unsafe[file].append((self._end[file], data))
        self._end[file] += len(data)

    def do_fsync(self, fd: int) -> None:
        file = self._fds[fd]
        if file is None:
            self._names, self._changes = dict(self._now), []
            return
        data = bytearray(self._safe[file])
        for position, chunk in self._unsafe[file]:
            _put(data, position, chunk)
        self._safe[file], self._unsafe[file] = bytes(data), []

    def do_close(self, fd: int) -> None:
        del self._fds[fd]

    def do_replace(self, old: str, new: str) -> None:
        self._now[new] = file = self._now.pop(old)
        self._changes.append((old, new, file))

    def do_unlink(self, path: str) -> None:
        self._now.pop(path)
        self._changes.append((path, None, None))


def _put(data: bytearray, position: int, chunk: bytes) -> None:
    data.extend(bytes(max(0, position + len(chunk) - len(data))))
    data[position : position + len(chunk)] = chunk


def example(step: int = 0, hidden: int = 6, seed: int = 0) -> Checkpoint:
    """A checkpoint with every kind of tensor; equal arguments give equal ones. About 6 kB, or 12·hidden² numbers."""
    vocabulary = Vocabulary("\n abcé☃😀")
    model = ModelConfig(len(vocabulary), hidden, layers=2, embedding=5, cell="peephole")
    rng = np.random.default_rng((seed, step))
    weights = {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in model.shapes().items()}
    tensors: dict[str, Any] = {
        "optim/step": np.asarray(step, dtype=np.int64),
        "optim/mean": rng.standard_normal((3, hidden), dtype=np.float32),
        "state/carried": rng.standard_normal((2, 2, 3, hidden)),
        "rng/torch": rng.integers(0, 256, 13, dtype=np.uint8),
    }
    return Checkpoint(
        model=model,
        vocabulary=vocabulary,
        weights=weights,
        step=step,
        training={"cursor": step, "options": {"lr": 0.01, "seed": 2**63 - 1}},
        tensors=tensors,
        facts={"corpus": {"names": ["naïve ☃.txt"], "chars": 1000}, "valid_nats_per_char": 1.25, "best": None},
    )


INTERESTING: list[Any] = [
    0, 1, -1, 2, 7, 255, 256, 2**31, 2**32, 2**53, 2**63, 2**64, 10**30, 0.5, 1e308, True, False, None, "", "x", "F32",
    "U8", "model/projection.bias", "\x1b", "\ud800", [], [[]], [0], [1, 2], {}, {"a": 1},
]  # fmt: skip


def mutate_value(value: Any, rng: random.Random) -> Any:
    """Return a JSON value with one part of it replaced, removed, duplicated, renamed or moved."""
    if isinstance(value, (dict, list)) and value and rng.random() < 0.9:
        value = dict(value) if isinstance(value, dict) else list(value)
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        action = rng.random()
        if action < 0.7:
            value[key] = mutate_value(value[key], rng)
        elif action < 0.8:
            del value[key]
        elif action < 0.9:
            other = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
            value[key], value[other] = value[other], value[key]
        elif isinstance(value, dict):
            value[rng.choice(["x", "optim/x", "model/x", "\x1b[1m"])] = value[key]
        else:
            value.insert(key, value[key])
        return value
    if type(value) is int and rng.random() < 0.5:
        return value + rng.choice((-8, -4, -1, 1, 4, 8))
    if isinstance(value, str) and value and rng.random() < 0.5:
        place = rng.randrange(len(value))
        return value[:place] + rng.choice(("", "x", value, "\0", "😀")) + value[place + rng.randrange(2) :]
    return rng.choice(INTERESTING)


class Forks:
    """A process with everything imported that forks children: a child takes 2 ms to start instead of 200 ms.

    A child runs one of the functions `child_*` below and ends. Systems without fork skip the tests that use this.

    Args:
        modules: Modules that the process imports before it forks.
    """

    def __init__(self, *modules: str) -> None:
        if not hasattr(os, "fork"):
            pytest.skip("this system has no fork")
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}  # a process with threads must not fork
        root = str(Path(checkpoint.__file__).parents[1])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, environment.get("PYTHONPATH"))))
        command = [sys.executable, __file__, *modules]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env=environment
        )
        self._received = b""

    def start(self, name: str, *args: Any, **options: Any) -> int:
        """Fork a child that runs `child_{name}(*args, **options)`, and return its id. Then read all of `lines`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([name, args, options]).encode() + b"\n")
        return int(self._line()["pid"])

    def lines(self, timeout: float = 600) -> Iterator[Any]:
        """Yield each JSON value that the child prints; the last is {"exit": status}, negative for a signal."""
        while True:
            line = self._line(timeout)
            yield line
            if isinstance(line, dict) and "exit" in line:
                return

    def call(self, name: str, *args: Any) -> Any:
        """Return the first value that a child prints; the child must end with status 0."""
        self.start(name, *args)
        said, *_, end = self.lines()
        assert end == {"exit": 0}, end
        return said

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(600)
        self._process.stdout.close()

    def _line(self, timeout: float = 600) -> Any:
        assert self._process.stdout is not None
        while b"\n" not in self._received:
            ready, _, _ = select.select([self._process.stdout], [], [], timeout)
            assert ready, f"the child printed nothing for {timeout} s"
            piece = os.read(self._process.stdout.fileno(), 65536)
            assert piece, "the forking process died"
            self._received += piece
        line, _, self._received = self._received.partition(b"\n")
        return json.loads(line)


def say(value: Any) -> None:
    """Send a value from a child to its test, in one write."""
    os.write(1, json.dumps(value).encode() + b"\n")


def limit_files(size: int) -> None:
    """Let no file of this process grow beyond `size` bytes."""
    import resource  # not on Windows

    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def child_save_for_ever(path: str, hidden: int) -> None:
    """Save steps 1, 2, … and print each step after `save` has returned."""
    states = [example(step, hidden) for step in range(8)]
    for step in range(1, 1_000_000):
        state = states[step % 8]
        checkpoint.save(path, dataclasses.replace(state, step=step))
        say(step)


def child_save_and_die(path: str, step: int, k: int, within: bool) -> None:
    """Save, and be killed at the k-th system call; exit with 0 where there are fewer calls."""
    state = example(step)
    with hooked(At(k, die_within if within else die)):
        checkpoint.save(path, state)


def child_save_with_limit(path: str, limit: int) -> None:
    """Save while no file may grow beyond `limit` bytes, as on a full disk; print the error."""
    limit_files(limit)
    try:
        checkpoint.save(path, example(2))
    except CharlstmError as error:
        say(str(error))


def child_save_as_nobody(path: str) -> None:
    """Save as a user other than root, because root may write everywhere; print the error."""
    state = example(2)
    if os.getuid() == 0:
        os.setuid(65534)
    try:
        checkpoint.save(path, state)
    except CharlstmError as error:
        say(str(error))


def child_measure_load(path: str, training: bool) -> None:
    """Load; print the error or None, the peak growth of the process in bytes, and the CPU seconds."""
    _measure(lambda: checkpoint.load(path, training=training))


def child_measure_read(path: str, max_chars: int | None = None) -> None:
    """Read a corpus; print the same values."""
    _measure(lambda: corpus.read([path], max_chars=max_chars))


def child_read_as_nobody(path: str) -> None:
    """Read a corpus as a user other than root; print the error."""
    corpus.read([__file__])  # imports everything that another user may not be able to read
    os.chdir(path if os.path.isdir(path) else os.path.dirname(path))
    if os.getuid() == 0:
        os.setuid(65534)
    try:
        corpus.read([path])
    except CharlstmError as error:
        say(str(error))


def child_charlstm(*words: str, save_seconds: float, file_limit: int | None = None) -> None:
    """Run the command `charlstm`; its output is what the child prints.

    Args:
        words: The arguments of the command.
        save_seconds: Interval between two saves of a training.
        file_limit: Largest size of a file in bytes, as on a full disk.
    """
    from charlstm.cli.main import run
    from charlstm.training import loop

    loop.SAVE_SECONDS = save_seconds
    if file_limit is not None:
        limit_files(file_limit)
    os._exit(run(words))


def _measure(work: Callable[[], Any]) -> None:
    before, start, error = memory("VmRSS"), time.process_time(), None
    try:
        work()
    except CharlstmError as caught:
        error = str(caught)
    seconds = time.process_time() - start
    say([error, memory("VmHWM") - before, seconds])


def memory(field: str) -> int:
    """Return a field of /proc/self/status in bytes; 0 on a system without it, where no bound is tested."""
    status = Path("/proc/self/status")
    return int(status.read_text().split(field + ":")[1].split()[0]) * 1024 if status.exists() else 0


def descriptors() -> int:
    """Return the number of open descriptors of this process."""
    return len(os.listdir("/dev/fd"))


def warm_up() -> None:
    """Run once what children measure, so that memory of the first use is not counted for a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        checkpoint.save(path, example())
        checkpoint.load(path, training=True)
        corpus.read([__file__])
        for reader in (checkpoint.load, lambda path: corpus.read([path])):
            with contextlib.suppress(CharlstmError):
                path.write_bytes(b"\xff" * 99)
                reader(path)


def serve() -> None:
    """Fork a child for each line of stdin."""
    for module in sys.argv[1:]:
        importlib.import_module(module)
    warm_up()
    for line in sys.stdin:
        name, args, options = json.loads(line)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                say({"pid": os.getpid()})
                globals()["child_" + name](*args, **options)
                status = 0
            except KeyboardInterrupt:  # before or after the work of the child
                status = 130
            except BaseException:
                traceback.print_exc()
            os._exit(status)  # without the exit handlers of the parent
        _, status = os.waitpid(pid, 0)
        say({"exit": os.waitstatus_to_exitcode(status)})


if __name__ == "__main__":
    serve()
