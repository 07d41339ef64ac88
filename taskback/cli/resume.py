"""Which tasks have their result: read from the results file of an earlier run.

A task is known by its line number. A few bytes a line are kept, whatever the results hold, so that a file of a
million lines can be resumed: a fingerprint of the id and type that the result names, to notice that the input is no
longer the one that the results came from.
"""

import json
import zlib
from array import array
from collections import Counter
from typing import BinaryIO, Final

from taskback import TaskState
from taskback.cli.complaints import CommandError
from taskback.cli.source import Source

FINAL_STATES: Final[frozenset[str]] = frozenset(state.value for state in TaskState if state.final)
RESULT_START: Final = b'{"id": '  # how every result line begins
_BLOCK: Final = 4096  # lines whose fingerprints lie together


class InputChangedError(CommandError):
    """A line has a result that belongs to another task."""


class Finished:
    """The finished lines: four bytes each, in blocks that are made as they are needed.

    Attributes:
        by_state (Counter[str]): How many results of which state there are.
        highest (int): The greatest line number among them; 0 if there are none.
    """

    def __init__(self) -> None:
        self.by_state: Counter[str] = Counter()
        self.highest = 0
        self._blocks: dict[int, array[int]] = {}

    def add(self, line: int, task_id: str, task_type: str | None, state: str) -> None:
        """Note a result; the first one of a line counts."""
        index, offset = divmod(line, _BLOCK)
        block = self._blocks.get(index)
        if block is None:
            block = self._blocks[index] = array("I", [0]) * _BLOCK
        if not block[offset]:
            block[offset] = _fingerprint(task_id, task_type)
            self.by_state[state] += 1
            self.highest = max(self.highest, line)

    def has(self, source: Source) -> bool:
        """Whether a line has its result.

        Raises:
            InputChangedError: It has one, of a task with another id or type.
        """
        index, offset = divmod(source.line, _BLOCK)
        block = self._blocks.get(index)
        known = block[offset] if block is not None else 0
        if not known:
            return False
        if known != _fingerprint(source.id, source.type):
            raise InputChangedError(
                f"{source.where}: this line has a result, of a task with another id or type: the input is not "
                "the one that the results came from; run it with a new --out"
            )
        return True


def _fingerprint(task_id: str, task_type: str | None) -> int:
    return zlib.crc32(repr((task_id, task_type)).encode()) or 1  # 0 means no result


def read_finished(stream: BinaryIO, name: str) -> tuple[Finished, int]:
    """Read a results file.

    A line that was being written when the run was killed is left out; it can only be the last.

    Args:
        stream (BinaryIO): The file, from its start.
        name (str): What to call it in messages.

    Returns:
        tuple[Finished, int]: What is finished, and where the last whole line ends, in bytes from the start.

    Raises:
        CommandError: It is no results file.
    """
    finished = Finished()
    end = 0
    for number, line in enumerate(stream, 1):
        if not _note(line, finished):
            if stream.read(1) or not _looks_torn(line):
                raise CommandError(f"{name}:{number}: no result line of taskback; is this the right --out?")
            break
        end += len(line)
    return finished, end


def _note(line: bytes, finished: Finished) -> bool:
    """Note one result line; False if it is none, or not whole."""
    facts = _facts(line) if line.endswith(b"\n") else None
    if facts is None:
        return False
    finished.add(*facts)
    return True


def _facts(line: bytes) -> tuple[int, str, str | None, str] | None:
    """The line's number, and the task's id, type and state; None if this is no result."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict):
        return None
    number, task_id, task_type, state = (record.get(key) for key in ("line", "id", "type", "state"))
    if type(number) is not int or number < 1 or not isinstance(task_id, str) or state not in FINAL_STATES:
        return None
    return number, task_id, task_type, state


def _looks_torn(line: bytes) -> bool:
    """Whether this may be the beginning of a result line, or the zeros that a file system leaves after a power cut.

    Anything else is somebody's file, and nothing is cut off it: what begins like a result, but is JSON to its end
    and no result, neither.
    """
    text = line.rstrip(b"\0\n")
    if RESULT_START.startswith(text):
        return True
    return text.startswith(RESULT_START) and (not _is_json(text) or _facts(text) is not None)


def _is_json(text: bytes) -> bool:
    try:
        json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError):
        return False
    except (ValueError, RecursionError):  # JSON that is not read: a number too long, say. A torn line is none of that.
        return True
    return True
