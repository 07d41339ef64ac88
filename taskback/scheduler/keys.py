"""Of the tasks of one type and key one runs at a time, in order of submission.

Holds: of each key that has tasks here one is in front, and it alone may start. Until it is handed out a task that was
submitted earlier takes its place: one whose delay is over, say. From then on it holds the key until it ends, however it
ends; while it waits for a retry, too, or one that was submitted after it would overtake it.

A priority does not change the order within a key. A task enters the line when its delay is over, not before: a task for
tomorrow does not hold up today's.
"""

from typing import Generic

from taskback.scheduler.entry import Entry, I
from taskback.scheduler.tickets import Tickets


class KeyLine(Generic[I]):
    """The line of one key."""

    __slots__ = ("behind", "front", "joinable")

    def __init__(self) -> None:
        self.front: Entry[I] | None = None
        self.behind: Tickets | None = None  # most often none
        self.joinable: dict[int, Entry[I]] | None = None  # those that another submission may join, by sequence number

    @property
    def deserted(self) -> bool:
        """Whether nobody needs it any more."""
        return self.front is None and not self.joinable


def enter(entry: Entry[I]) -> tuple[bool, Entry[I] | None]:
    """A task comes; whether it is in front now, and whose place it takes there. One that is not is to `fall_in`."""
    line = _line(entry)
    front = line.front
    if front is not None and (front.begun or front.sequence < entry.sequence):
        return False, None
    line.front = entry
    return True, front


def fall_in(entry: Entry[I]) -> None:
    """A task waits for its key: it takes its place behind the one in front. It is in no other line any more."""
    line = entry.key_line
    assert line is not None
    if line.behind is None:
        line.behind = Tickets()
    line.behind.put(entry)


def leave(entry: Entry[I]) -> Entry[I] | None:
    """A task is over, wherever it was; gives the one that is in front now in its stead."""
    line = entry.key_line
    assert line is not None
    if line.joinable:
        line.joinable.pop(entry.sequence, None)
    following = None
    if line.front is entry:
        following = line.front = line.behind.take() if line.behind else None
    elif line.behind is not None and entry.ticket is not None:
        line.behind.drop(entry)
    _tidy(entry, line)
    return following


def front(entry: Entry[I]) -> Entry[I]:
    """Who keeps a task of the same key waiting."""
    assert entry.key_line is not None
    assert entry.key_line.front is not None
    return entry.key_line.front


# --- joining ---


def open(entry: Entry[I]) -> None:
    """Another submission may join a task."""
    line = _line(entry)
    if line.joinable is None:
        line.joinable = {}
    line.joinable[entry.sequence] = entry


def close(entry: Entry[I]) -> None:
    """None may join it any more."""
    line = entry.key_line
    if line is not None and line.joinable:
        line.joinable.pop(entry.sequence, None)


def joinable(line: KeyLine[I] | None) -> Entry[I] | None:
    """The last task of a key that may be joined. There are two at most where each submission joins if it can."""
    return line.joinable[max(line.joinable)] if line is not None and line.joinable else None


def _line(entry: Entry[I]) -> KeyLine[I]:
    line = entry.key_line
    if line is None:
        lines = entry.line.keys
        line = lines.get(entry.key)
        if line is None:
            line = lines[entry.key] = KeyLine()
        entry.key_line = line
    return line


def _tidy(entry: Entry[I], line: KeyLine[I]) -> None:
    entry.key_line = None
    if line.deserted:
        del entry.line.keys[entry.key]
