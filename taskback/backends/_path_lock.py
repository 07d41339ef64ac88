"""One process at a time for a path: a lock beside it that no dead process leaves behind.

It is the kernel's lock of a process on a file (`fcntl`): gone with the process, however that ends, and not inherited
by a fork, as `flock` would be. But it is also gone as soon as its process closes any descriptor of that file. So the
file is one that nobody else opens, and that is opened in a process once: `_mine` tells, by device and inode, what this
process has.

Locks: _guard is a leaf, for which nothing waits but a few system calls.
"""

import os
import threading
from typing import Final

from taskback import _forks
from taskback._errors import JournalHeldError
from taskback.pools import _os

_FLAGS: Final = os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)

_guard = threading.Lock()
_mine: dict[tuple[int, int], int] = {}  # device and inode of a lock's file: its descriptor
_watching = False


class PathLock:
    """Take the lock of a path, which another one may have.

    Args:
        path (str): What it is for; the lock's file is beside it.

    Raises:
        JournalHeldError: This or another process has it.
        OSError: There can be no such file here.
    """

    def __init__(self, path: str) -> None:
        file = f"{path}-lock"
        with _guard:
            _forget_in_forks()
            if _identity(file) in _mine:
                raise JournalHeldError(path, os.getpid())
            fd = os.open(file, _FLAGS, 0o600)
            try:
                if not _os.lock_file(fd):
                    raise JournalHeldError(path, _pid_in(fd))
                os.ftruncate(fd, 0)
                os.write(fd, b"%d\n" % os.getpid())
                found = os.fstat(fd)
            except BaseException:
                os.close(fd)
                raise
            self._key = found.st_dev, found.st_ino
            self._pid = os.getpid()
            _mine[self._key] = fd

    def release(self) -> None:
        """Give it back; in a fork nothing happens, for it has none."""
        with _guard:
            fd = _mine.pop(self._key, None) if self._pid == os.getpid() else None
            if fd is not None:
                os.close(fd)


def _identity(file: str) -> tuple[int, int] | None:
    try:
        found = os.stat(file)  # not opened: closing it again would let go of the lock
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _pid_in(fd: int) -> int | None:
    try:
        return int(os.read(fd, 32))
    except (OSError, ValueError):  # it is being written just now
        return None


def _forget_in_forks() -> None:
    global _watching
    if not _watching:
        _watching = True
        _forks.watch(_forked)


def _forked() -> None:
    global _guard
    _guard = threading.Lock()
    _mine.clear()
