"""The standard streams: which are closed, which are terminals.

What starts the command may hand it none at all (`<&-`, a service manager).
"""

import os
import sys
from typing import Final, TextIO

STDIN: Final = 0
STDOUT: Final = 1


def fill_closed() -> frozenset[int]:
    """Open the null device in place of each standard stream that is closed.

    The next files to be opened, a socket of ours, say, would take their numbers: handlers would print into it, and
    `-` would read from it. Workers inherit what is opened here.

    Returns:
        frozenset[int]: The file descriptors of those that are closed, filled now or by an earlier call.
    """
    closed = set()
    for fd, stream in enumerate((sys.stdin, sys.stdout, sys.stderr)):
        if not _is_open(fd):
            _open_null(fd)
            closed.add(fd)
        elif stream is None:  # so Python marks those that were closed when it began
            closed.add(fd)
    return frozenset(closed)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def _open_null(fd: int) -> None:
    opened = os.open(os.devnull, os.O_RDWR)
    if opened == fd:  # the lowest number that is free
        os.set_inheritable(fd, True)
    else:
        os.dup2(opened, fd)
        os.close(opened)


def is_terminal(stream: TextIO | None) -> bool:
    """Whether somebody may be looking at it; None is a stream that was closed."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # closed since
        return False
