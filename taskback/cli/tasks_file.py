"""The tasks: lines of the input, read one at a time, and the JSON object that each is to be."""

import json
import os
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


def open_tasks(path: str) -> BinaryIO:
    """Open the input; `-` is standard input.

    Standard input is opened anew, on its file descriptor: a thread that still waits in `sys.stdin` would hold the
    lock that the interpreter wants at its exit.

    Raises:
        CommandError: It cannot be read.
    """
    try:
        stream = open(0 if path == "-" else path, "rb", closefd=path != "-")  # noqa: SIM115 - the caller closes it
    except OSError as error:
        raise CommandError(f"cannot read the tasks: {path}: {error.strerror or error}") from error
    return stream


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
