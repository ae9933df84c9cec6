"""A file is replaced completely or not at all, with any failure in between.

The marks R1 … name the rows of docs/reliability.md.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from charlstm import atomicfile
from charlstm.atomicfile import FolderLock
from tests.helpers.faults import At, Disk, Recorder, descriptors, fail, hooked

OLD = b"old" * 700
NEW: list[bytes | memoryview[int]] = [b"new head", memoryview(b"N" * 3000), b"tail" * 300]
WHOLE = b"".join(NEW)


@pytest.fixture
def file(memory: Path) -> Path:
    path = memory / "model.safetensors"
    path.write_bytes(OLD)
    return path


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def record(path: Path, skip: Any = lambda name, args: False) -> list[tuple[Any, ...]]:
    recorder = Recorder(skip)
    with hooked(recorder):
        atomicfile.replace(path, NEW)
    return recorder.calls


def error_of(path: Path, fault: At) -> OSError | None:
    try:
        with hooked(fault):
            atomicfile.replace(path, NEW)
    except OSError as error:
        return error
    return None


def test_the_content_is_the_chunks_and_no_other_file_remains(memory: Path) -> None:
    path = memory / "new"
    atomicfile.replace(path, iter(NEW))
    assert path.read_bytes() == WHOLE
    assert names(memory) == ["new"]
    atomicfile.replace(path, [])
    assert path.read_bytes() == b""


@pytest.mark.fault("R3")
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("exists", [True, False])
def test_an_error_at_any_call_leaves_the_old_or_new_file_and_no_temporary(
    memory: Path, code: int, exists: bool
) -> None:
    path, renamed, held = memory / "model", False, descriptors()
    met = []
    for k in itertools.count(1):
        path.unlink(missing_ok=True)
        if exists:
            path.write_bytes(OLD)
        fault = At(k, fail(code))
        if fault_met := error_of(path, fault):
            assert fault_met.errno == code
            expected = WHOLE if renamed else OLD if exists else None
            assert (path.read_bytes() if path.exists() else None) == expected, fault.name
        else:  # no call failed, or only the search for old temporary files, which is not required
            assert path.read_bytes() == WHOLE
            assert fault.name in ("", "listdir")
        assert names(memory) in ([path.name], [])
        assert descriptors() == held
        if not fault.name:
            break
        renamed |= fault.name == "replace"
        met.append(fault.name)
    assert {"open", "write", "fsync", "close", "replace", "stat"} <= set(met)
    assert met[-2:] == ["fsync", "close"]  # of the folder, after the rename


@pytest.mark.fault("R4")
@pytest.mark.parametrize("at_most", range(1, 8))
def test_short_writes_are_continued(file: Path, at_most: int) -> None:
    def shorten(name: str, args: tuple[Any, ...], call: Any) -> Any:
        return os.write(args[0], args[1][:at_most]) if name == "write" else call()

    with hooked(shorten):
        atomicfile.replace(file, NEW)
    assert file.read_bytes() == WHOLE


@pytest.mark.fault("R6")
def test_calls_are_in_the_order_that_durability_requires(file: Path) -> None:
    calls = record(file)
    opened = {path: fd for name, path, fd in (call for call in calls if call[0] == "open")}
    folder_fd = opened.pop(str(file.parent))
    ((temporary, fd),) = opened.items()
    writes = [("write", fd, bytes(chunk)) for chunk in NEW]
    assert [call for call in calls if call[0] != "open"] == [
        *writes,
        ("fsync", fd),
        ("close", fd),
        ("replace", temporary, str(file)),
        ("fsync", folder_fd),
        ("close", folder_fd),
    ]


def states_after_power_loss(path: Path, old: bytes | None, calls: list[tuple[Any, ...]], count: int) -> Iterator[Any]:
    """Yield whether all calls were made, and the content of the file, for `count` disks after a loss of power."""
    rng = random.Random(1)
    for n in range(count):
        made = n % (len(calls) + 1)
        disk = Disk(str(path.parent), {} if old is None else {path.name: old})
        disk.replay(calls[:made])
        yield made == len(calls), disk.lose_power(rng).get(path.name)


def broken_states(path: Path, old: bytes | None, calls: list[tuple[Any, ...]], count: int) -> int:
    states = states_after_power_loss(path, old, calls, count)
    return sum(content != WHOLE and (finished or content != old) for finished, content in states)


@pytest.mark.fault("R5")
@pytest.mark.parametrize("count", [500, pytest.param(50_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("exists", [True, False])
def test_after_a_loss_of_power_the_file_is_the_old_or_the_new(memory: Path, exists: bool, count: int) -> None:
    path, old = memory / "model", OLD if exists else None
    if old:
        path.write_bytes(old)
    calls = record(path)
    assert broken_states(path, old, calls, count) == 0
    seen = {content for _, content in states_after_power_loss(path, old, calls, count)}
    assert seen == {old, WHOLE}


@pytest.mark.fault("R5")
@pytest.mark.fault("R6")
def test_without_fsync_of_the_file_a_loss_of_power_corrupts_it(file: Path) -> None:
    def of_the_file(name: str, args: tuple[Any, ...]) -> bool:
        return name == "fsync" and not stat.S_ISDIR(os.fstat(args[0]).st_mode)

    assert broken_states(file, OLD, record(file, of_the_file), 500) > 10


@pytest.mark.fault("R5")
@pytest.mark.fault("R6")
def test_without_fsync_of_the_folder_a_loss_of_power_reverts_a_completed_write(file: Path) -> None:
    def of_the_folder(name: str, args: tuple[Any, ...]) -> bool:
        return name == "fsync" and stat.S_ISDIR(os.fstat(args[0]).st_mode)

    assert broken_states(file, OLD, record(file, of_the_folder), 500) > 10


@pytest.mark.fault("R9")
def test_temporary_files_of_dead_processes_are_removed_and_all_others_remain(file: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    gone = [
        f".{file.name}.{pid}.0a1b2c3d.tmp" for pid in (dead.pid, os.getpid())
    ]  # our own id: in a container an earlier run can have it
    kept = [
        f".{file.name}.{os.getppid()}.0a1b2c3d.tmp",
        f".{file.name}.notes.tmp",
        f".other.{dead.pid}.0a1b2c3d.tmp",
        f".{'x' * len(file.name)}.{dead.pid}.0a1b2c3d.tmp",
        f"{file.name}.tmp",
        "mine.tmp",
    ]
    for name in gone + kept:
        (file.parent / name).write_bytes(b"x")
    atomicfile.replace(file, NEW)
    assert names(file.parent) == sorted([*kept, file.name])


@pytest.mark.fault("R9")
def test_a_temporary_file_that_another_thread_writes_remains(file: Path) -> None:
    def slow() -> Iterator[bytes]:
        yield b"outer"
        thread = threading.Thread(target=atomicfile.replace, args=(file, [b"inner"]))
        thread.start()
        thread.join()
        assert file.read_bytes() == b"inner"
        yield b" end"

    atomicfile.replace(file, slow())
    assert file.read_bytes() == b"outer end"
    assert names(file.parent) == [file.name]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_during_the_write_leaves_the_old_file(file: Path, error: type[BaseException]) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"half"
        raise error

    with pytest.raises(error):
        atomicfile.replace(file, chunks())
    assert file.read_bytes() == OLD
    assert names(file.parent) == [file.name]


@pytest.mark.fault("R10")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_has_the_mode_of_the_umask(memory: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        atomicfile.replace(memory / "new", NEW)
    finally:
        os.umask(before)
    assert stat.S_IMODE((memory / "new").stat().st_mode) == mode


@pytest.mark.fault("R10")
@pytest.mark.parametrize("mode", [0o640, 0o600, 0o666, 0o444])
def test_an_existing_file_keeps_its_mode(file: Path, mode: int) -> None:
    file.chmod(mode)
    atomicfile.replace(file, NEW)
    assert stat.S_IMODE(file.stat().st_mode) == mode
    assert file.read_bytes() == WHOLE


@pytest.mark.fault("R11")
def test_a_symbolic_link_remains_and_its_target_is_replaced(memory: Path) -> None:
    (memory / "elsewhere").mkdir()
    target, link, chain = memory / "elsewhere" / "model", memory / "link", memory / "chain"
    target.write_bytes(OLD)
    link.symlink_to(target)
    chain.symlink_to("link")
    atomicfile.replace(chain, NEW)
    assert link.is_symlink()
    assert chain.is_symlink()
    assert target.read_bytes() == WHOLE
    assert names(memory) == ["chain", "elsewhere", "link"]
    assert names(target.parent) == ["model"]


@pytest.mark.fault("R11")
def test_a_folder_or_a_pipe_is_not_replaced(memory: Path) -> None:
    folder, pipe = memory / "folder", memory / "pipe"
    folder.mkdir()
    os.mkfifo(pipe)
    for path in (folder, pipe):
        with pytest.raises(OSError, match=path.name):
            atomicfile.replace(path, NEW)
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert names(memory) == ["folder", "pipe"]


@pytest.mark.fault("R12")
def test_a_folder_has_one_lock_and_an_error_names_its_holder(memory: Path) -> None:
    with FolderLock(memory), pytest.raises(BlockingIOError, match=f"process {os.getpid()}"):
        FolderLock(memory)
    FolderLock(memory).close()


@pytest.mark.fault("R12")
def test_a_lock_is_released_when_its_process_ends(memory: Path) -> None:
    code = (
        "import sys, time; from charlstm.atomicfile import FolderLock\n"
        "lock = FolderLock(sys.argv[1]); print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(memory)], stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(BlockingIOError, match=f"process {holder.pid}"):
        FolderLock(memory)
    holder.kill()
    holder.wait()
    holder.stdout.close()
    FolderLock(memory).close()
