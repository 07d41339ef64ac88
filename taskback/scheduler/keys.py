"""Of the tasks of one type and key one runs at a time, in order of submission.

Holds: of each key that has tasks here one is in front, and it alone may start. Until it is handed out a task that was
submitted earlier takes its place: one whose delay is over, say. From then on it holds the key until it ends, however it
ends; while it waits for a retry, too, or one that was submitted after it would overtake it.

A priority does not change the order within a key. A task enters the line when its delay is over, not before: a task for
tomorrow does not hold up today's.
"""

from collections.abc import Hashable
from typing import Generic

from taskback.scheduler.entry import Entry, I
from taskback.scheduler.ranking import Ranking

Name = tuple[str | None, Hashable]


class KeyLine(Generic[I]):
    """The line of one key."""

    __slots__ = ("behind", "front", "joinable")

    def __init__(self) -> None:
        self.front: Entry[I] | None = None
        self.behind: Ranking[int, int] = Ranking()  # sequence numbers, most often none
        self.joinable: Ranking[int, int] | None = None  # those that another submission may join, the last one first

    @property
    def deserted(self) -> bool:
        """Whether nobody needs it any more."""
        return self.front is None and not self.joinable


class Keys(Generic[I]):
    """See the top of the file. `entries` are the scheduler's, by sequence number."""

    __slots__ = ("_entries", "_lines")

    def __init__(self, entries: dict[int, Entry[I]]) -> None:
        self._entries = entries
        self._lines: dict[Name, KeyLine[I]] = {}

    def enter(self, entry: Entry[I]) -> tuple[bool, Entry[I] | None]:
        """A task takes its place; whether that is the front, and who had it before."""
        line = self._line(entry)
        front = line.front
        if front is None:
            line.front = entry
            return True, None
        if front.begun or front.sequence < entry.sequence:
            line.behind.put(entry.sequence, entry.sequence)
            return False, None
        line.front = entry
        line.behind.put(front.sequence, front.sequence)
        return True, front

    def leave(self, entry: Entry[I]) -> Entry[I] | None:
        """A task is over, wherever it was; gives the one that is in front now in its stead."""
        self.close(entry)
        line = self._lines.get((entry.type, entry.key))
        if line is None:
            return None
        if line.front is not entry:
            line.behind.drop(entry.sequence)
            return None
        line.front = self._entries[line.behind.take()] if line.behind else None
        self._tidy(entry, line)
        return line.front

    def front(self, entry: Entry[I]) -> Entry[I]:
        """Who keeps a task of the same key waiting."""
        front = self._lines[entry.type, entry.key].front
        assert front is not None
        return front

    # --- joining ---

    def open(self, entry: Entry[I]) -> None:
        """Another submission may join a task."""
        line = self._line(entry)
        if line.joinable is None:
            line.joinable = Ranking()
        line.joinable.put(entry.sequence, -entry.sequence)

    def close(self, entry: Entry[I]) -> None:
        """None may join it any more."""
        line = self._lines.get((entry.type, entry.key))
        if line is not None and line.joinable is not None:
            line.joinable.drop(entry.sequence)
            self._tidy(entry, line)

    def joinable(self, name: Name) -> Entry[I] | None:
        """The last task of a key that may be joined."""
        line = self._lines.get(name)
        return self._entries[line.joinable.first()] if line is not None and line.joinable else None

    def _line(self, entry: Entry[I]) -> KeyLine[I]:
        name = entry.type, entry.key
        line = self._lines.get(name)
        if line is None:
            line = self._lines[name] = KeyLine()
        return line

    def _tidy(self, entry: Entry[I], line: KeyLine[I]) -> None:
        if line.deserted:
            del self._lines[entry.type, entry.key]
