"""Where results go: appended to a file, or to standard output, each line in one write.

After a `kill -9` the file holds whole lines and at most one torn last one, which the next `--resume` cuts off.
"""

import contextlib
import os
import stat
import sys
from collections.abc import Iterator
from typing import BinaryIO

from taskback.cli.complaints import SOME_FAILED, CommandError
from taskback.cli.resume import Finished, read_finished
from taskback.cli.streams import write_all

try:
    import fcntl
except ImportError:  # no such locks there: two runs on one file are not noticed
    fcntl = None  # type: ignore[assignment]  # the absence of a module is no module


class Results:
    """An open place for result lines.

    Attributes:
        name (str): What messages call it.
        finished (Finished): What it held when it was opened.
        resumable (bool): What is written can be read back: it is a regular file.
    """

    def __init__(self, fd: int, name: str, finished: Finished) -> None:
        self._fd = fd
        self.name = name
        self.finished = finished
        self.resumable = stat.S_ISREG(os.fstat(fd).st_mode)

    def append(self, line: bytes) -> None:
        """Write one line, to the operating system at once: a killed command loses nothing that was appended.

        Raises:
            CommandError: It cannot be written.
        """
        try:
            write_all(self._fd, line)
        except OSError as error:
            raise CommandError(f"cannot write {self.name}: {error.strerror or error}", SOME_FAILED) from error

    def sync(self) -> None:
        """Have a file's lines on the disk, as far as there is one below."""
        with contextlib.suppress(OSError):
            os.fsync(self._fd)


@contextlib.contextmanager
def results_file(path: str, *, resume: bool, tasks: BinaryIO) -> Iterator[Results]:
    """Open the results file for appending.

    Args:
        path (str): The file; it is made if there is none.
        resume (bool): Keep what it holds and go on; otherwise it must be empty.
        tasks (BinaryIO): The input, which must be another file.

    Raises:
        CommandError: It cannot be used so; nothing was changed.
    """
    fd = _open(path, resume)
    try:
        yield Results(fd, path, _prepare(fd, path, resume, tasks))
    finally:
        os.close(fd)


def _open(path: str, resume: bool) -> int:
    try:
        special = os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode)
        if special and resume:
            raise CommandError(f"--resume needs a regular file, which {path} is not")
        flags = os.O_WRONLY if special else os.O_RDWR | os.O_CREAT | os.O_APPEND
        return os.open(path, flags | getattr(os, "O_BINARY", 0), 0o666)
    except OSError as error:
        raise CommandError(f"cannot write {path}: {error.strerror or error}") from error


def _prepare(fd: int, path: str, resume: bool, tasks: BinaryIO) -> Finished:
    """Make sure that this file is ours to append to, and read what it holds."""
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        return Finished()
    if os.path.samestat(status, os.fstat(tasks.fileno())):
        raise CommandError(f"--out is the file that the tasks are read from: {path}")
    _lock(fd, path)
    size = os.fstat(fd).st_size  # again: another run may have ended between the first look and the lock
    if size and not resume:
        raise CommandError(f"{path} is not empty; --resume goes on with it, or give another --out")
    with open(fd, "rb", closefd=False) as stream:
        finished, end = read_finished(stream, path)
    if end < size:
        os.ftruncate(fd, end)  # the torn line of a killed run; its task will run again
    return finished


def _lock(fd: int, path: str) -> None:
    """Keep other runs off the file, for as long as this process holds it open.

    A record lock (`lockf`) and not `flock`: that one belongs to the open file, which forked workers inherit, and a
    worker that outlives a killed command would keep the next one out.
    """
    if fcntl is None:
        return
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise CommandError(f"another run is writing {path}") from error
    except OSError:  # a file system without locks; the run is worth more than the lock
        return


@contextlib.contextmanager
def standard_output() -> Iterator[Results]:
    """Results go to standard output, and what handlers print goes to standard error instead.

    Workers inherit file descriptor 1, so that a `print` in a handler would end up between the result lines.

    Raises:
        CommandError: It cannot be written.
    """
    try:
        sys.stdout.flush()
        fd = os.dup(1)
    except (OSError, ValueError) as error:
        raise CommandError(f"cannot write standard output: {error}") from error
    try:
        os.dup2(2, 1)
        yield Results(fd, "standard output", Finished())
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        os.dup2(fd, 1)
        os.close(fd)
