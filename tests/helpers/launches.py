"""Start `charlstm train` in several processes, as `torchrun` does and by `torchrun` itself."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.helpers.commands import environment

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]


def free_port() -> int:
    """Return a TCP port of this machine that is free at the moment."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def start(
    count: int, arguments: Sequence[object], cwd: Path, *, program: Sequence[str] = ("-m", "charlstm")
) -> list[subprocess.Popen[bytes]]:
    """Start `count` workers with the environment variables of torchrun, and return their processes by rank."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count)}
    return [
        subprocess.Popen(
            [sys.executable, *program, *map(str, arguments)],
            cwd=cwd,
            env=environment(**shared, RANK=str(rank), LOCAL_RANK=str(rank), OMP_NUM_THREADS="1"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(count)
    ]


def finish(workers: Sequence[subprocess.Popen[bytes]], timeout: float = 120) -> list[tuple[int, str]]:
    """Wait for workers; return the status and stderr of each. A worker that does not end in time is killed."""
    found = []
    try:
        for worker in workers:
            err = worker.communicate(timeout=timeout)[1].decode()
            found.append((worker.returncode, err))
    finally:
        stop(workers)
    return found


def stop(workers: Sequence[subprocess.Popen[bytes]]) -> None:
    """Kill processes that still run, and close their pipes."""
    for worker in workers:
        worker.kill()
        worker.wait()
        for pipe in (worker.stdout, worker.stderr):
            if pipe is not None:
                pipe.close()


def train(count: int, arguments: Sequence[object], cwd: Path) -> None:
    """Train in `count` workers until the end."""
    done = finish(start(count, ["train", *arguments], cwd))
    assert [status for status, _ in done] == [0] * count, done


def torchrun(
    count: int, arguments: Sequence[object], cwd: Path, *, options: Sequence[str] = (), program: Sequence[str] = ()
) -> subprocess.Popen[bytes]:
    """Start `torchrun` with `count` workers on this machine."""
    command = [*TORCHRUN, f"--nproc-per-node={count}", f"--master-port={free_port()}", *options]
    return subprocess.Popen(
        [*command, *(program or ("-m", "charlstm")), *map(str, arguments)],
        cwd=cwd,
        env=environment(OMP_NUM_THREADS="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
