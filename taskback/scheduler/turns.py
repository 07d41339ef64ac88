"""The tasks of one type and one priority that may start, and whose turn it is.

They compete with other types by the oldest of them, so that a type gets no more and no less by taking turns: turns
only say which of its tasks is the one that starts.

Holds: a value of the field has one turn in a round, while it has a task here; one that comes anew is last in the round.
So a task waits for at most one task of each other value before the first of its own is started.
"""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Any, Protocol

from taskback.scheduler.entry import Entry
from taskback.scheduler.ranking import Ranking
from taskback.scheduler.tickets import Tickets


class Level(Protocol):
    """Tasks in the order in which they may start."""

    def add(self, entry: Entry[Any]) -> None: ...

    def restore(self, entry: Entry[Any]) -> None:
        """One that was taken and not used comes back, and so does its turn."""

    def drop(self, entry: Entry[Any]) -> None: ...

    def take(self) -> Entry[Any]: ...

    def oldest(self) -> int: ...

    def __len__(self) -> int: ...


class FirstCome(Tickets):
    """First come, first served."""

    __slots__ = ()

    add = Tickets.put
    restore = Tickets.put

    def oldest(self) -> int:
        """The one that was submitted first."""
        return self.first().sequence


class Turns:
    """Each value in turn, and first come, first served within a value."""

    __slots__ = ("_ages", "_waiting")

    def __init__(self) -> None:
        self._waiting: OrderedDict[Hashable, Tickets] = OrderedDict()  # by value, the next turn first; none is empty
        self._ages: Ranking[Hashable, int] = Ranking()  # values by their oldest task

    def add(self, entry: Entry[Any]) -> None:
        """Put one in its place; the turn of a value that had none is the last."""
        waiting = self._waiting.get(entry.fair_value)
        if waiting is None:
            waiting = self._waiting[entry.fair_value] = Tickets()
        waiting.put(entry)
        self._ages.put(entry.fair_value, waiting.first().sequence)

    def restore(self, entry: Entry[Any]) -> None:
        """One that was taken and not used comes back: the next turn is its value's."""
        self.add(entry)
        self._waiting.move_to_end(entry.fair_value, last=False)

    def drop(self, entry: Entry[Any]) -> None:
        """Take one out, wherever it stands; its value keeps its turn for the others."""
        waiting = self._waiting[entry.fair_value]
        waiting.drop(entry)
        self._aged(entry.fair_value, waiting)

    def take(self) -> Entry[Any]:
        """Take out the one whose turn it is; its value's next turn is the last."""
        value, waiting = next(iter(self._waiting.items()))
        entry = waiting.take()
        self._waiting.move_to_end(value)
        self._aged(value, waiting)
        return entry

    def oldest(self) -> int:
        """The one that was submitted first, of any value."""
        return self._ages.first_rank()

    def _aged(self, value: Hashable, waiting: Tickets) -> None:
        if waiting:
            self._ages.put(value, waiting.first().sequence)
        else:
            del self._waiting[value]
            self._ages.drop(value)

    def __len__(self) -> int:
        return len(self._waiting)
