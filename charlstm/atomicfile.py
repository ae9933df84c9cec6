"""Replace a file atomically and durably, and lock a folder.

After `replace` has returned, the new content is on the disk under the name of the file, even after a loss of power if
the filesystem honours fsync. If the process ends earlier, the old file is complete and unchanged.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
from collections.abc import Iterable
from pathlib import Path

if sys.platform == "darwin":
    import fcntl

_in_progress: set[str] = set()  # temporary files that threads of this process are writing


def replace(path: Path, chunks: Iterable[bytes | memoryview]) -> None:
    """Write the new content of a file: all of it or nothing.

    If the path is a symbolic link, the target of the link is replaced. An existing file keeps its mode, a new one has
    mode 0666 minus the umask. Temporary files that dead processes left for the same file are removed.

    Args:
        path: the file to replace or create.
        chunks: the new content.

    Raises:
        OSError: nothing was changed, and no temporary file is left. There is one exception: if the last step, the fsync
            of the folder, fails, the new content is in place but may not survive a loss of power.
    """
    target = os.path.realpath(path)
    folder, name = os.path.split(target)
    mode = _mode(target)
    _remove_abandoned(folder, name)
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
    """Return the permission bits of an existing regular file; None if there is no file."""
    try:
        status = os.stat(target)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):  # a device or a pipe must not be replaced by a file
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
            while rest:  # os.write may write less than it is given
                rest = rest[os.write(fd, rest) :]
        _sync(fd)
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(fd)
        raise
    os.close(fd)


def _sync(fd: int) -> None:
    os.fsync(fd)
    if sys.platform == "darwin":  # fsync does not flush the cache of the drive there
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)


def _remove_abandoned(folder: str, name: str) -> None:
    """Remove the temporary files of `name` whose processes are dead. A file that cannot be removed does no harm."""
    with contextlib.suppress(OSError):
        for entry in os.listdir(folder):
            if entry.startswith(f".{name}.") and entry.endswith(".tmp"):
                pid = entry[len(name) + 2 :].split(".")[0]
                path = os.path.join(folder, entry)
                if pid.isascii() and pid.isdigit() and path not in _in_progress and not _is_alive(int(pid)):
                    with contextlib.suppress(OSError):
                        os.unlink(path)


def _is_alive(pid: int) -> bool:
    """Return whether another process has this id; our own does not count: in a container each run may be process 1."""
    if os.name == "nt":
        return True  # os.kill would end the process
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
    """An exclusive lock on a folder, from construction to `close`; also a context manager.

    The operating system releases the lock when the process ends, however it ends. The lock is on the file `.lock`; the
    id of the holder is in `.lock.pid`, because Windows does not let other processes read a locked file. Both files
    stay: if a lock file is removed, two processes can lock different files of the same name.

    Args:
        folder: an existing folder.

    Raises:
        BlockingIOError: another holder has locked the folder; the message names its process id.
        OSError: the folder is not writable.
    """

    def __init__(self, folder: str | Path) -> None:
        import filelock

        path = os.path.join(folder, ".lock")
        holder = Path(folder, ".lock.pid")
        self._lock = filelock.FileLock(path, timeout=0)
        try:
            self._lock.acquire()
        except filelock.Timeout as error:
            try:
                pid = holder.read_text(encoding="ascii", errors="replace")[:32].strip()
            except OSError:
                pid = ""
            raise BlockingIOError(errno.EWOULDBLOCK, f"locked by process {pid or 'unknown'}", path) from error
        except NotImplementedError:
            return  # the filesystem has no locks: an unguarded folder is better than an unusable one
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                return  # as above
            raise
        try:
            holder.write_text(f"{os.getpid()}\n", encoding="ascii")
        except BaseException:
            self._lock.release()
            raise

    def close(self) -> None:
        """Release the lock. A second call has no effect."""
        self._lock.release()

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
