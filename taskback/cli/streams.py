"""The standard streams: which are closed, which are terminals, and how to write to one that does not wait.

What starts the command may hand it no standard stream at all (`<&-`, a service manager), or one in non-blocking
mode, which it then shares with whatever else has it open, so that the mode is not ours to change.
"""

import io
import os
import selectors
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


def write_all(fd: int, data: bytes) -> None:
    """Write all of it, and wait where there is no room, whether the file descriptor does so or not."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:
            _wait_for_room(fd)


def write_text(stream: TextIO, text: str) -> None:
    """The same for a text stream.

    Its own write() would lose what finds no room: without a buffer (`python -u`) in silence, with one in the middle
    of a text. So it is asked only where it has no file descriptor, as in tests.
    """
    _flush(stream)
    fd = _descriptor(stream)
    if fd is None:
        stream.write(text)
        stream.flush()
    else:
        write_all(fd, text.encode(stream.encoding, stream.errors or "strict"))


def _flush(stream: TextIO) -> None:
    """What it was given before comes first."""
    while True:
        try:
            stream.flush()
        except BlockingIOError:
            _wait_for_room(stream.fileno())
        else:
            return


def _descriptor(stream: TextIO) -> int | None:
    """Where it ends; None for a stand-in, which may do something else with what it is given."""
    try:
        return stream.fileno() if isinstance(stream, io.TextIOWrapper) else None
    except OSError:
        return None


def _wait_for_room(fd: int) -> None:
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_WRITE)
        selector.select()
