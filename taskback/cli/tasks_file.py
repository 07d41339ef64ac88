"""The tasks: lines of the input, read one at a time, and the JSON object that each is to be."""

import io
import json
import os
import select
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, Final

from taskback.cli.complaints import CommandError

MAX_LINE_BYTES: Final = 256 * 2**20  # a file that is no text at all must not end up in memory as one line
_BOM: Final = b"\xef\xbb\xbf"


class BadLineError(ValueError):
    """A line that is no task; the text says why."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the input.

    Attributes:
        number (int): Counted from 1, empty lines included.
        data (bytes): What stands there, without the line's end; of a line that is too long the beginning.
        size_bytes (int): What it takes in the input.
        too_long (bool): It has more than the greatest number of bytes.
    """

    number: int
    data: bytes
    size_bytes: int
    too_long: bool = False


class ReadingStoppedError(Exception):
    """The input was not read on, because somebody called `stop`."""


class Input(io.BufferedReader):
    """The input, whose reader can be stopped while it waits for a pipe or a terminal.

    A thread that waits in a plain read cannot be woken, and would hold the stream's lock, which whoever closes the
    stream wants, and the interpreter at its exit.
    """

    def __init__(self, file: io.FileIO) -> None:
        self._stoppable = _Stoppable(file)
        super().__init__(self._stoppable)

    def stop(self) -> None:
        """Have `ReadingStoppedError` raised by the read that waits, and by all that would read on; from any thread."""
        self._stoppable.stop()


class _Stoppable(io.RawIOBase):
    """Reads from a file once something has come.

    Race: stop() and a read. A read that waits, or begins to, finds the pipe readable, since nobody takes the byte out
    of it; one that is under way had found data, and does not wait.
    """

    def __init__(self, file: io.FileIO) -> None:
        super().__init__()
        self._file = file
        self._stop_reader, self._stop_writer = os.pipe()
        self._stopped = False

    def stop(self) -> None:
        if not self._stopped:
            self._stopped = True
            os.write(self._stop_writer, b".")

    def readinto(self, buffer: Any) -> int | None:
        self._wait()
        if self._stopped:
            raise ReadingStoppedError
        return self._file.readinto(buffer)

    def _wait(self) -> None:
        if not hasattr(select, "poll"):  # where there is none, only sockets can be waited for
            return
        poll = select.poll()
        poll.register(self._file.fileno(), select.POLLIN)
        poll.register(self._stop_reader, select.POLLIN)
        poll.poll()

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._file.close()
            os.close(self._stop_reader)
            os.close(self._stop_writer)


def open_tasks(path: str) -> Input:
    """Open the input; `-` is standard input.

    Standard input is opened anew, on its file descriptor: a thread that still waits in `sys.stdin` would hold the
    lock that the interpreter wants at its exit.

    Raises:
        CommandError: It cannot be read.
    """
    try:
        return Input(io.FileIO(0 if path == "-" else path, "rb", closefd=path != "-"))
    except OSError as error:
        raise CommandError(f"cannot read the tasks: {path}: {error.strerror or error}") from error


def size_of(stream: BinaryIO) -> int | None:
    """How many bytes the input has; None for a pipe and the like."""
    status = os.fstat(stream.fileno())
    return status.st_size or None


def read_lines(stream: BinaryIO, max_bytes: int = MAX_LINE_BYTES) -> Iterator[Line]:
    """Read line by line, each as soon as it has arrived, never more than one into memory."""
    number = 0
    while data := stream.readline(max_bytes + 1):
        number += 1
        if len(data) > max_bytes and not data.endswith(b"\n"):
            yield Line(number, data[:64], len(data) + _skip_line(stream), too_long=True)
        else:
            start = len(_BOM) if number == 1 and data.startswith(_BOM) else 0
            yield Line(number, data[start:].strip(), len(data))


def _skip_line(stream: BinaryIO) -> int:
    """Read on to the end of the line; gives how many bytes that were."""
    size = 0
    while data := stream.readline(2**20):
        size += len(data)
        if data.endswith(b"\n"):
            break
    return size


def parse_task(line: Line) -> dict[str, Any]:
    """The task of a line.

    Raises:
        BadLineError: The line is no JSON object.
    """
    if line.too_long:
        raise BadLineError(f"the line has {line.size_bytes:,} bytes, more than a task may have")
    try:
        task = json.loads(line.data.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise BadLineError(f"no UTF-8: byte 0x{line.data[error.start]:02x} at position {error.start}") from error
    except RecursionError as error:
        raise BadLineError("no JSON that can be read: nested too deeply") from error
    except json.JSONDecodeError as error:  # whose own text speaks of line 1
        raise BadLineError(f"no JSON: {error.msg}, at character {error.pos + 1}") from error
    except ValueError as error:  # a number with too many digits, or ours
        raise BadLineError(f"no JSON: {error}") from error
    if not isinstance(task, dict):
        raise BadLineError(f"no JSON object, but {_kind(task)}")
    return task


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is Python's, not JSON's")


def _kind(value: Any) -> str:
    kinds = {list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return kinds.get(type(value), "a number")
