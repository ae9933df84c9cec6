"""Replace a file or leave it untouched, durably; and a lock on a folder.

After `replace` has returned, the new bytes are on the disk under the file's name, also after a loss of power on a
filesystem that honours fsync. Whenever the process dies before, the old file is there whole.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterable
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_in_progress: set[str] = set()  # temporaries that threads of this process are writing now


def replace(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Write `chunks` as the new content of `path`: all of it or nothing.

    A symbolic link stays one and its target is replaced. An existing file keeps its mode, a new one gets 0666 less
    the umask. Temporaries that dead processes left beside the same file are removed.

    Raises:
        OSError: nothing was changed and no temporary is left. With one exception: where the folder's fsync, the last
            step, fails, the new content is in place and may not survive a loss of power.
    """
    target = os.path.realpath(path)
    folder, name = os.path.split(target)
    mode = _mode(target)
    _sweep(folder, name)
    temporary = os.path.join(folder, f".{name}.{os.getpid()}.{os.urandom(4).hex()}.tmp")
    folder_fd = None if os.name == "nt" else os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    _in_progress.add(temporary)
    try:
        _write(temporary, chunks, mode)
        os.replace(temporary, target)
        if folder_fd is not None:
            os.fsync(folder_fd)  # the new name itself
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    finally:
        _in_progress.discard(temporary)
        if folder_fd is not None:
            os.close(folder_fd)


def _mode(target: str) -> int | None:
    """The permission bits of an existing regular file; None where there is no file."""
    try:
        status = os.stat(target)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):  # else a device or a pipe would be replaced by a file
        code = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL
        raise OSError(code, os.strerror(code), target)
    return stat.S_IMODE(status.st_mode)


def _write(temporary: str, chunks: Iterable[bytes | memoryview], mode: int | None) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    fd = os.open(temporary, flags, 0o666)
    try:
        if mode is not None and os.name != "nt":
            os.fchmod(fd, mode)
        for chunk in chunks:
            rest = memoryview(chunk).cast("B")
            while rest:  # a write may take less than it is given
                rest = rest[os.write(fd, rest) :]
        _sync(fd)
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(fd)
        raise
    os.close(fd)


def _sync(fd: int) -> None:
    os.fsync(fd)
    if sys.platform == "darwin":  # there fsync stops at the drive's own cache
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)


def _sweep(folder: str, name: str) -> None:
    """Remove the temporaries of `name` whose writers are dead. What cannot be removed stays: it does no harm."""
    with contextlib.suppress(OSError):
        for entry in os.listdir(folder):
            if entry.startswith(f".{name}.") and entry.endswith(".tmp"):
                pid = entry[len(name) + 2 :].split(".")[0]
                path = os.path.join(folder, entry)
                if pid.isascii() and pid.isdigit() and path not in _in_progress and not _alive(int(pid)):
                    with contextlib.suppress(OSError):
                        os.unlink(path)


def _alive(pid: int) -> bool:
    """Whether another process of this id lives. Our own id does not count: in a container each run may be process 1."""
    if os.name == "nt":
        return True  # os.kill would end it there
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


class FolderLock:
    """At most one holder of a folder at a time, from construction to `close`; the lock ends with its process, however
    that dies. Also a context manager.

    Raises:
        BlockingIOError: another holder has it; the message names its process id.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: str | Path) -> None:
        path = os.path.join(folder, ".lock")
        fd = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            _lock(fd, path)
            os.ftruncate(fd, 0)
            os.write(fd, b"%d\n" % os.getpid())
        except BaseException:
            os.close(fd)
            raise
        self._fd: int | None = fd

    def close(self) -> None:
        """Give the folder back. The file stays: removing it could remove the one that another has just locked."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def _lock(fd: int, path: str) -> None:
    try:
        if sys.platform == "win32":
            os.lseek(fd, 1 << 30, os.SEEK_SET)  # far behind the process id, which stays readable
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)
            os.lseek(fd, 0, os.SEEK_SET)
        else:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
            return  # a filesystem without locks: better unguarded than unusable
        os.lseek(fd, 0, os.SEEK_SET)
        holder = os.read(fd, 32).decode("ascii", "replace").strip() or "unknown"
        raise BlockingIOError(errno.EWOULDBLOCK, f"locked by process {holder}", path) from error
