"""The tasks that only a worker, a cap or a floor keeps waiting: which of them a free worker gets.

First a type that runs less than is reserved for it and has a task: so what is reserved and idle is lent to others, and
given back with the first worker that is free. Else the task of the highest priority, and of those the oldest, of the
types that are below their caps.

Holds: `_open` has the types that have a task here and are below their cap, `_owed` those of them that are below their
floor too. Whatever may change that of a type ends in `_rank`.
"""

from collections.abc import Iterable
from typing import Any

from taskback.scheduler.entry import Entry
from taskback.scheduler.places import Places
from taskback.scheduler.ranking import Ranking
from taskback.scheduler.rules import Rules
from taskback.scheduler.type_line import TypeLine


class Ready:
    """See the top of the file. `entries` are the scheduler's, by sequence number."""

    __slots__ = ("_lines", "_open", "_owed", "_places")

    def __init__(self, entries: dict[int, Entry[Any]]) -> None:
        self._lines: dict[str | None, TypeLine] = {}
        self._open: Ranking[str | None, tuple[int, int]] = Ranking()
        self._owed: Ranking[str | None, tuple[int, int]] = Ranking()
        self._places = Places(entries)

    def join(self, type: str | None, rules: Rules) -> TypeLine:
        """There is one more task of a type, wherever; the rules that came last are the type's. Gives its line."""
        line = self._lines.get(type)
        if line is None:
            line = self._lines[type] = TypeLine(type, rules)
        elif line.rules is not rules:
            line.rules = rules
            self._rank(line)
        line.members += 1
        return line

    def leave(self, line: TypeLine) -> None:
        """There is one less; of a type without tasks nothing is kept."""
        line.members -= 1
        if not line.members:
            del self._lines[line.type]

    def put(self, entry: Entry[Any]) -> None:
        """Nothing else keeps a task waiting any more."""
        entry.line.put(entry)
        self._places.add(entry)
        self._rank(entry.line)

    def drop(self, entry: Entry[Any]) -> None:
        """A task is to start no more, or not now."""
        entry.line.drop(entry)
        self._places.drop(entry)
        self._rank(entry.line)

    def take(self) -> Entry[Any] | None:
        """Take out the task that a free worker gets, and count it as running; None if none may start."""
        if self._owed:
            line = self._lines[self._owed.first()]
        elif self._open:
            line = self._lines[self._open.first()]
        else:
            return None
        entry = line.take()
        self._places.drop(entry)
        line.running += 1
        self._rank(line)
        return entry

    def hand_out(self, entry: Entry[Any]) -> None:
        """Take out this very task, which was handed out before it came here."""
        entry.line.drop(entry)
        self._places.drop(entry)
        entry.line.running += 1
        self._rank(entry.line)

    def yields_to(self, head: tuple[int, int]) -> bool:
        """Whether a task of this priority, negated, and of this number goes before all that may start here."""
        return not self._owed and (not self._open or head < self._open.first_rank())

    def restore(self, entry: Entry[Any]) -> None:
        """A task that was taken has not started."""
        line = entry.line
        line.restore(entry)
        self._places.add(entry)
        line.running -= 1
        self._live_on(entry)
        self._rank(line)

    def stopped(self, entry: Entry[Any]) -> None:
        """A task that was taken runs no more."""
        line = entry.line
        line.running -= 1
        self._live_on(entry)
        if line.rules.max_running is not None or line.rules.reserved:
            self._rank(line)

    def given_up(self, entry: Entry[Any]) -> None:
        """A task that was taken runs on, and another worker has taken the place of its own."""
        entry.line.given_up += 1
        self._rank(entry.line)

    def _rank(self, line: TypeLine) -> None:
        head = None if line.at_cap else line.head()
        shown = head, bool(line.rules.reserved) and head is not None and line.below_floor
        if shown == line.shown:
            return
        line.shown = shown
        if head is None:
            self._open.drop(line.type)
        else:
            self._open.put(line.type, head)
        if head is not None and shown[1]:
            self._owed.put(line.type, head)
        else:
            self._owed.drop(line.type)

    @staticmethod
    def _live_on(entry: Entry[Any]) -> None:
        """Whatever runs it next has not been given up."""
        entry.line.given_up -= entry.abandoned
        entry.abandoned = False

    # --- answers ---

    def line(self, type: str | None) -> TypeLine | None:
        """The line of a type, if it has tasks."""
        return self._lines.get(type)

    def lines(self) -> Iterable[TypeLine]:
        """The lines of all types that have tasks."""
        return self._lines.values()

    def owed_before(self, type: str | None) -> TypeLine | None:
        """The type that gets the next worker before this one, since more is reserved for it than it runs."""
        if not self._owed or type in self._owed:
            return None
        return self._lines[self._owed.first()]

    def before(self, entry: Entry[Any]) -> int:
        """How many tasks here have a higher priority than this one, or the same and an earlier place."""
        return self._places.before(entry)
