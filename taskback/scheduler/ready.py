"""The tasks that only a worker, a cap or a floor keeps waiting: which of them a free worker gets.

First a type that runs less than is reserved for it and has a task: so what is reserved and idle is lent to others, and
given back with the first worker that is free. Else the task of the highest priority, and of those the oldest, of the
types that are below their caps.

Holds: `_open` has the types that have a task here and are below their cap, `_owed` those of them that are below their
floor too. Whatever may change that of a type ends in `_rank`.
"""

from typing import Any

from taskback.scheduler.entry import Entry
from taskback.scheduler.places import Places
from taskback.scheduler.ranking import Ranking
from taskback.scheduler.rules import Rules
from taskback.scheduler.type_line import TypeLine


class Ready:
    """See the top of the file."""

    __slots__ = ("_lines", "_open", "_owed", "_places")

    def __init__(self) -> None:
        self._lines: dict[str | None, TypeLine] = {}
        self._open: Ranking[str | None, tuple[int, int]] = Ranking()
        self._owed: Ranking[str | None, tuple[int, int]] = Ranking()
        self._places = Places()

    def join(self, type: str | None, rules: Rules) -> None:
        """There is one more task of a type, wherever; the rules that came last are the type's."""
        line = self._lines.get(type)
        if line is None:
            line = self._lines[type] = TypeLine(type, rules)
        elif line.rules is not rules:
            line.rules = rules
            self._rank(line)
        line.members += 1

    def leave(self, type: str | None) -> None:
        """There is one less; of a type without tasks nothing is kept."""
        line = self._lines[type]
        line.members -= 1
        if not line.members:
            del self._lines[type]

    def put(self, entry: Entry[Any]) -> None:
        """Nothing else keeps a task waiting any more."""
        line = self._lines[entry.type]
        line.put(entry)
        self._places.add(entry.priority, entry.sequence)
        self._rank(line)

    def drop(self, entry: Entry[Any]) -> None:
        """A task is to start no more, or not now."""
        line = self._lines[entry.type]
        line.drop(entry)
        self._places.drop(entry.priority, entry.sequence)
        self._rank(line)

    def take(self) -> int | None:
        """Take out the task that a free worker gets, and count it as running; None if none may start."""
        if self._owed:
            line = self._lines[self._owed.first()]
        elif self._open:
            line = self._lines[self._open.first()]
        else:
            return None
        head = line.head()
        assert head is not None
        sequence = line.take()
        self._places.drop(-head[0], sequence)
        line.running += 1
        self._rank(line)
        return sequence

    def restore(self, entry: Entry[Any]) -> None:
        """A task that was taken has not started."""
        line = self._lines[entry.type]
        line.restore(entry)
        self._places.add(entry.priority, entry.sequence)
        self.stopped(entry)

    def stopped(self, entry: Entry[Any]) -> None:
        """A task that was taken runs no more."""
        line = self._lines[entry.type]
        line.running -= 1
        line.given_up -= entry.abandoned
        entry.abandoned = False
        self._rank(line)

    def given_up(self, entry: Entry[Any]) -> None:
        """A task that was taken runs on, and another worker has taken the place of its own."""
        line = self._lines[entry.type]
        line.given_up += 1
        self._rank(line)

    def _rank(self, line: TypeLine) -> None:
        head = line.head()
        if head is None or line.at_cap:
            self._open.drop(line.type)
            self._owed.drop(line.type)
            return
        self._open.put(line.type, head)
        if line.below_floor:
            self._owed.put(line.type, head)
        else:
            self._owed.drop(line.type)

    # --- answers ---

    def line(self, type: str | None) -> TypeLine:
        """The line of a type that has tasks."""
        return self._lines[type]

    def owed_before(self, type: str | None) -> TypeLine | None:
        """The type that gets the next worker before this one, since more is reserved for it than it runs."""
        if not self._owed or type in self._owed:
            return None
        return self._lines[self._owed.first()]

    def before(self, entry: Entry[Any]) -> int:
        """How many tasks here have a higher priority than this one, or the same and an earlier place."""
        return self._places.before(entry.priority, entry.sequence)
