"""Where a task came from, and what it is called."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from taskback.cli.tasks_file import BadLineError, Line

MAX_ID_CHARACTERS: Final = 64  # what a backend takes
_DERIVED: Final = re.compile(r"line-\d+")


@dataclass(frozen=True, slots=True)
class Source:
    """One line of the input, as its result line will name it.

    Attributes:
        line (int): Its number.
        where (str): `tasks.jsonl:12`, for messages.
        id (str): The task's own id, or one derived from the line where it has none, or none that will do.
        handle_id (str): The id that the backend is given, which no other task in flight has.
        type (str | None): The task's type; None where it has none, or the line is no task.
        size_bytes (int): What the line takes in the input.
    """

    line: int
    where: str
    id: str
    handle_id: str
    type: str | None
    size_bytes: int


class BadIdError(BadLineError):
    """The task's own id is none that it could have; the text says what would do."""


def source_of(line: Line, name: str, task: dict[str, Any] | None, taken: Callable[[str], bool]) -> Source:
    """Name the task of a line.

    `taken` tells which ids are in flight. A backend would let a second task of such an id join the run of the
    first, and the second line would never be run.
    """
    derived = f"line-{line.number}"
    own = _own_id(task or {}) or derived
    # An id that looks derived is left to the line of that number.
    free = own == derived or not (taken(own) or _DERIVED.fullmatch(own))
    kind = (task or {}).get("type")
    return Source(
        line=line.number,
        where=f"{name}:{line.number}",
        id=own,
        handle_id=own if free else derived,
        type=kind if isinstance(kind, str) else None,
        size_bytes=line.size_bytes,
    )


def check_id(task: dict[str, Any]) -> None:
    """See whether the task's own id, if it has one, can be its name.

    Raises:
        BadIdError: It cannot; another one in its place, in silence, would be missed by whoever looks for the result.
    """
    if task.get("id") is not None and _own_id(task) is None:
        raise BadIdError(f"id must be a string of 1 to {MAX_ID_CHARACTERS} characters or a whole number")


def _own_id(task: dict[str, Any]) -> str | None:
    """The task's `"id"`, if it is a string that will do or a whole number."""
    own = task.get("id")
    text = str(own) if isinstance(own, int) and not isinstance(own, bool) else own
    return text if isinstance(text, str) and 0 < len(text) <= MAX_ID_CHARACTERS else None
