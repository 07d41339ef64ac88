"""The tasks of one type and one priority that may start, and whose turn it is.

They compete with other types by the oldest of them, so that a type gets no more and no less by taking turns: turns
only say which of its tasks is the one that starts.

Holds: a value of the field has one turn in a round, while it has a task here; one that comes anew is last in the round.
So a task waits for at most one task of each other value before the first of its own is started.
"""

from collections.abc import Hashable
from typing import Protocol

from taskback.scheduler.ranking import Ranking


class Level(Protocol):
    """Sequence numbers in the order in which they may start."""

    def add(self, sequence: int, value: Hashable) -> None: ...

    def restore(self, sequence: int, value: Hashable) -> None:
        """One that was taken and not used comes back, and so does its turn."""

    def drop(self, sequence: int, value: Hashable) -> None: ...

    def take(self) -> int: ...

    def oldest(self) -> int: ...

    def __len__(self) -> int: ...


class FirstCome:
    """First come, first served."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting: Ranking[int, int] = Ranking()

    def add(self, sequence: int, value: Hashable) -> None:
        """Put one in its place."""
        self._waiting.put(sequence, sequence)

    restore = add

    def drop(self, sequence: int, value: Hashable) -> None:
        """Take one out, wherever it stands."""
        self._waiting.drop(sequence)

    def take(self) -> int:
        """Take out the one whose turn it is."""
        return self._waiting.take()

    def oldest(self) -> int:
        """The one that was submitted first."""
        return self._waiting.first()

    def __len__(self) -> int:
        return len(self._waiting)


class Turns:
    """Each value in turn, and first come, first served within a value."""

    __slots__ = ("_ages", "_first_turn", "_last_turn", "_ring", "_size", "_waiting")

    def __init__(self) -> None:
        self._waiting: dict[Hashable, Ranking[int, int]] = {}  # by value; none is empty
        self._ring: Ranking[Hashable, int] = Ranking()  # values by the number of their next turn
        self._ages: Ranking[Hashable, int] = Ranking()  # values by their oldest task
        self._first_turn = self._last_turn = 0  # numbers of turns in use lie from one to the other
        self._size = 0

    def add(self, sequence: int, value: Hashable) -> None:
        """Put one in its place; the turn of a value that had none is the last."""
        if value not in self._waiting:
            self._waiting[value] = Ranking()
            self._to_the_end(value)
        self._waiting[value].put(sequence, sequence)
        self._size += 1
        self._ages.put(value, self._waiting[value].first())

    def restore(self, sequence: int, value: Hashable) -> None:
        """One that was taken and not used comes back: the next turn is its value's."""
        self.add(sequence, value)
        self._first_turn -= 1
        self._ring.put(value, self._first_turn)

    def drop(self, sequence: int, value: Hashable) -> None:
        """Take one out, wherever it stands; its value keeps its turn for the others."""
        waiting = self._waiting[value]
        waiting.drop(sequence)
        self._size -= 1
        if waiting:
            self._ages.put(value, waiting.first())
        else:
            self._leave(value)

    def take(self) -> int:
        """Take out the one whose turn it is; its value's next turn is the last."""
        value = self._ring.first()
        waiting = self._waiting[value]
        sequence = waiting.take()
        self._size -= 1
        if waiting:
            self._ages.put(value, waiting.first())
            self._to_the_end(value)
        else:
            self._leave(value)
        return sequence

    def oldest(self) -> int:
        """The one that was submitted first, of any value."""
        return self._ages.first_rank()

    def _to_the_end(self, value: Hashable) -> None:
        self._last_turn += 1
        self._ring.put(value, self._last_turn)

    def _leave(self, value: Hashable) -> None:
        del self._waiting[value]
        self._ring.drop(value)
        self._ages.drop(value)

    def __len__(self) -> int:
        return self._size
