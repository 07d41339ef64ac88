"""What tasks have really done: each call of a handler leaves a record in a file, so that a second one shows.

A record is one write() to a file opened for appending, so records of several processes do not mix, and what is written
survives its writer. Workers import this file, so it stays light.

Holds: a record is there before the handler does anything else.
"""

import os
import struct
from collections import Counter
from typing import Any, Final

_RECORD: Final = struct.Struct("<QQ")  # the task's number, and its attempt
_open: dict[
    str, tuple[int, int, int]
] = {}  # by path: the process that opened it, the descriptor, and what it refers to


def note(path: str, number: int, attempt: int) -> None:
    """Write down that a task's handler is called."""
    record = _RECORD.pack(number, attempt)
    kept = _open.get(path)
    if kept is not None and kept[0] == os.getpid():
        try:
            if os.fstat(kept[1]).st_ino == kept[2]:  # not what a handler has opened in its place
                os.write(kept[1], record)
                return
        except OSError:  # a handler has closed it
            pass
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.write(fd, record)
    _open[path] = (os.getpid(), fd, os.fstat(fd).st_ino)


def forget(path: str) -> None:
    """Close the file here."""
    kept = _open.pop(path, None)
    if kept is not None and kept[0] == os.getpid():
        os.close(kept[1])


def read(path: str) -> Counter[tuple[int, int]]:
    """How often each attempt of each task was called."""
    found: Counter[tuple[int, int]] = Counter()
    if os.path.exists(path):
        with open(path, "rb") as file:
            data = file.read()
        found.update(_RECORD.iter_unpack(data[: len(data) - len(data) % _RECORD.size]))
    return found


def of_task(task: dict[str, Any], attempt: int) -> None:
    """The record of a task that says where to."""
    note(task["effects"], task["n"], attempt)
