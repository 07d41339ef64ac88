"""The tasks of one type that may start: which is next, and whether the type's cap or floor has a say.

Holds: `running` are those that were handed out and have not ended. The threads of `given_up` of them were given up and
replaced: these count towards the cap, for their work goes on, and not towards the floor, for they take no worker.
"""

from collections.abc import Hashable
from typing import Any

from taskback.scheduler.census import Census
from taskback.scheduler.entry import Entry
from taskback.scheduler.keys import KeyLine
from taskback.scheduler.ranking import Ranking
from taskback.scheduler.rules import Rules
from taskback.scheduler.turns import FirstCome, Level, Turns

Head = tuple[int, int]  # what a type competes with: its highest priority, negated, and the oldest task of that
Shown = tuple[Head | None, bool]


class TypeLine:
    """See the top of the file. What else is known of a type lies here, so that its tasks find it without a search."""

    __slots__ = (
        "_levels",
        "_order",
        "_top",
        "_top_rank",
        "census",
        "given_up",
        "keys",
        "members",
        "rules",
        "running",
        "shown",
        "type",
    )

    def __init__(self, type: str | None, rules: Rules) -> None:
        self.type = type
        self.rules = rules
        self.members = 0  # tasks of the type, wherever they are
        self.running = 0
        self.given_up = 0
        self.census = Census()
        self.keys: dict[Hashable, KeyLine[Any]] = {}  # those that tasks here have to do with
        self.shown: Shown = (None, False)  # what it competes with, and whether it is owed a worker, as ranked last
        self._levels: dict[int, Level] = {}  # by priority; none is empty
        self._order: Ranking[int, int] = Ranking()  # priorities, the highest first
        self._top: Level | None = None  # of the highest priority
        self._top_rank = 0  # that priority, negated

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
        return None if self._top is None else (self._top_rank, self._top.oldest())

    def put(self, entry: Entry[Any]) -> None:
        """Put a task in its place."""
        self._level(entry.priority).add(entry)

    def restore(self, entry: Entry[Any]) -> None:
        """Put a task that was taken and not used back in its old place."""
        self._level(entry.priority).restore(entry)

    def drop(self, entry: Entry[Any]) -> None:
        """Take a task out, wherever it stands."""
        self._levels[entry.priority].drop(entry)
        self._close(entry.priority)

    def take(self) -> Entry[Any]:
        """Take out the task that is next; there must be one."""
        assert self._top is not None
        entry = self._top.take()
        self._close(entry.priority)
        return entry

    def _level(self, priority: int) -> Level:
        level = self._levels.get(priority)
        if level is None:
            level = self._levels[priority] = FirstCome() if self.rules.fair_by is None else Turns()
            self._order.put(priority, -priority)
            self._find_top()
        return level

    def _close(self, priority: int) -> None:
        if not self._levels[priority]:
            del self._levels[priority]
            self._order.drop(priority)
            self._find_top()

    def _find_top(self) -> None:
        if self._order:
            self._top, self._top_rank = self._levels[self._order.first()], self._order.first_rank()
        else:
            self._top = None
