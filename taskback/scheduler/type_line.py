"""The tasks of one type that may start: which is next, and whether the type's cap or floor has a say.

Holds: `running` are those that were handed out and have not ended. The threads of `given_up` of them were given up and
replaced: these count towards the cap, for their work goes on, and not towards the floor, for they take no worker.
"""

from typing import Any

from taskback.scheduler.entry import Entry
from taskback.scheduler.ranking import Ranking
from taskback.scheduler.rules import Rules
from taskback.scheduler.turns import FirstCome, Level, Turns

Head = tuple[int, int]  # what a type competes with: its highest priority, negated, and the oldest task of that


class TypeLine:
    """See the top of the file."""

    __slots__ = ("_levels", "_order", "given_up", "members", "rules", "running", "type")

    def __init__(self, type: str | None, rules: Rules) -> None:
        self.type = type
        self.rules = rules
        self.members = 0  # tasks of the type, wherever they are
        self.running = 0
        self.given_up = 0
        self._levels: dict[int, Level] = {}  # by priority; none is empty
        self._order: Ranking[int, int] = Ranking()  # priorities, the highest first

    @property
    def at_cap(self) -> bool:
        """Whether no more of the type may start."""
        return self.rules.max_running is not None and self.running >= self.rules.max_running

    @property
    def below_floor(self) -> bool:
        """Whether the next worker is the type's, if it has a task for it."""
        return self.running - self.given_up < self.rules.reserved

    def head(self) -> Head | None:
        """What the type competes with; None if none of its tasks may start."""
        if not self._order:
            return None
        priority = self._order.first()
        return -priority, self._levels[priority].oldest()

    def put(self, entry: Entry[Any]) -> None:
        """Put a task in its place."""
        self._level(entry.priority).add(entry.sequence, entry.fair_value)

    def restore(self, entry: Entry[Any]) -> None:
        """Put a task that was taken and not used back in its old place."""
        self._level(entry.priority).restore(entry.sequence, entry.fair_value)

    def drop(self, entry: Entry[Any]) -> None:
        """Take a task out, wherever it stands."""
        self._levels[entry.priority].drop(entry.sequence, entry.fair_value)
        self._close(entry.priority)

    def take(self) -> int:
        """Take out the task that is next."""
        priority = self._order.first()
        sequence = self._levels[priority].take()
        self._close(priority)
        return sequence

    def _level(self, priority: int) -> Level:
        level = self._levels.get(priority)
        if level is None:
            level = self._levels[priority] = FirstCome() if self.rules.fair_by is None else Turns()
            self._order.put(priority, -priority)
        return level

    def _close(self, priority: int) -> None:
        if not len(self._levels[priority]):
            del self._levels[priority]
            self._order.drop(priority)
