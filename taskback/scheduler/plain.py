"""The tasks that no rule has a say in: higher priority first, first come first served within one, and no more to it.

Most tasks are such, so they are kept as cheaply as can be: no `Entry` is made of them. As soon as one needs what only
an entry has (it has failed, say, or its type gets rules), it is given out as a `Plain` and is here no more.

Holds: a task that was added is among the `tasks` of its kind until it is over or given out, in order of submission;
those that were handed out are in `out` too. The line of its priority has all that wait, and some that were cancelled,
which are passed over; as soon as these are the greater part, the lines are made anew. So a call costs O(1), and O(log)
of the priorities in use; what was put back costs O(log) of what was put back.
"""

import itertools
from collections import deque
from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import Any, Final, Generic, NamedTuple

from taskback.scheduler.entry import I
from taskback.scheduler.rules import Rules

SLACK: Final = 64  # cancelled tasks in the lines, or kinds without tasks, that are not worth tidying up
_BITS: Final = 32  # of a place that number the kind
_MASK: Final = (1 << _BITS) - 1


def is_plain(rules: Rules) -> bool:
    """Whether they say no more of a task that waits than its priority."""
    return (
        rules.key is None
        and rules.fair_by is None
        and rules.max_running is None
        and not rules.reserved
        and rules.queue_timeout is None
    )


class Plain(NamedTuple):
    """A task that leaves to become an entry."""

    item: Any
    rules: Rules
    since: float  # when it came, on the monotonic clock
    out: bool  # whether it was handed out


class Kind(Generic[I]):
    """The tasks of one type. They came with the very same rules."""

    __slots__ = ("number", "out", "rules", "tasks", "type")

    def __init__(self, type: str | None, rules: Rules, number: int) -> None:
        self.type = type
        self.rules = rules
        self.number = number  # unlike any other kind's, those that are gone included
        self.tasks: dict[int, I] = {}  # by sequence number
        self.out: set[int] = set()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self.tasks) - len(self.out)

    def oldest(self) -> float | None:
        """Since when the oldest one waits. Looks at those that were handed out and at one more."""
        return next((item.since for number, item in self.tasks.items() if number not in self.out), None)


class Line:
    """The places of one priority: those of tasks that came, in order, and those of tasks that were put back, a heap.

    A place is a sequence number and the number of a kind in one, so that one which is out of date keeps no task.
    """

    __slots__ = ("back", "fresh")

    def __init__(self) -> None:
        self.fresh: deque[int] = deque()
        self.back: list[int] = []

    def first(self) -> int | None:
        """The oldest one, None if there is none."""
        fresh, back = self.fresh, self.back
        if back and (not fresh or back[0] < fresh[0]):
            return back[0]
        return fresh[0] if fresh else None

    def drop_first(self) -> None:
        """Take that out."""
        fresh, back = self.fresh, self.back
        if back and (not fresh or back[0] < fresh[0]):
            heappop(back)
        else:
            fresh.popleft()


class PlainTasks(Generic[I]):
    """See the top of the file."""

    __slots__ = ("_cancelled", "_count", "_kinds", "_lines", "_numbered", "_numbers", "_priorities")

    def __init__(self) -> None:
        self._lines: dict[int, Line] = {}  # by priority
        self._priorities: list[int] = []  # those that have a line, negated; a heap
        self._kinds: dict[str | None, Kind[I]] = {}
        self._numbered: dict[int, Kind[I]] = {}
        self._numbers = itertools.count()
        self._count = 0  # places in the lines
        self._cancelled = 0  # how many of them are of tasks that do not wait here any more

    # --- in and out: as little as can be ---

    def add(self, item: I, rules: Rules, now: float) -> bool:
        """A task comes; False if it is none of these."""
        kind = self._kinds.get(item.type)
        if kind is None or kind.rules is not rules or item.ready_at > now:
            return False
        item.since = now
        sequence = item.sequence
        kind.tasks[sequence] = item
        line = self._lines.get(item.priority)
        if line is None:
            line = self._new_line(item.priority)
        line.fresh.append(sequence << _BITS | kind.number)
        self._count += 1
        return True

    def take(self) -> I | None:
        """Hand out the task that is next, if there is one."""
        while (line := self._first_line()) is not None:
            fresh, back = line.fresh, line.back
            place = heappop(back) if back and (not fresh or back[0] < fresh[0]) else fresh.popleft()
            self._count -= 1
            kind = self._numbered.get(place & _MASK)
            if kind is not None and (item := kind.tasks.get(place >> _BITS)) is not None:
                kind.out.add(place >> _BITS)
                return item
            self._cancelled -= 1
        return None

    def take_many(self, most: int) -> list[I]:
        """Hand out those that are next, at most so many."""
        found: list[I] = []
        numbered = self._numbered
        while len(found) < most and (line := self._first_line()) is not None:
            fresh, back = line.fresh, line.back
            while len(found) < most and (fresh or back):
                place = heappop(back) if back and (not fresh or back[0] < fresh[0]) else fresh.popleft()
                self._count -= 1
                kind, sequence = numbered.get(place & _MASK), place >> _BITS
                item = None if kind is None else kind.tasks.get(sequence)
                if kind is None or item is None:
                    self._cancelled -= 1
                else:
                    kind.out.add(sequence)
                    found.append(item)
        return found

    def end(self, item: I) -> bool:
        """A task is over; False if it was not here."""
        kind, sequence = self._kinds.get(item.type), item.sequence
        if kind is None or kind.tasks.pop(sequence, None) is None:
            return False
        if sequence in kind.out:
            kind.out.remove(sequence)
        else:
            self._count_cancelled()
        return True

    # --- the rest ---

    def welcome(self, type: str | None, rules: Rules) -> None:
        """Tasks of this type that come with these rules are plain; none of the type is here with others."""
        if len(self._kinds) > SLACK and not any(len(kind.tasks) for kind in self._kinds.values()):
            self._kinds.clear()
            self._numbered.clear()
        kind = self._kinds[type] = Kind(type, rules, next(self._numbers))
        self._numbered[kind.number] = kind

    def put_back(self, item: I) -> bool:
        """A task that was handed out has not begun; False if it is none of these."""
        kind = self.kind_of(item)
        if kind is None:
            return False
        kind.out.remove(item.sequence)
        line = self._lines.get(item.priority) or self._new_line(item.priority)
        heappush(line.back, item.sequence << _BITS | kind.number)
        self._count += 1
        return True

    def kind_of(self, item: I) -> Kind[I] | None:
        """The kind of a task that is here."""
        kind = self._kinds.get(item.type)
        return kind if kind is not None and item.sequence in kind.tasks else None

    def give(self, item: I) -> Plain | None:
        """Give a task out, if it is here."""
        kind = self.kind_of(item)
        if kind is None:
            return None
        out = item.sequence in kind.out
        self.end(item)
        return Plain(item, kind.rules, item.since, out)

    def give_all(self, type: str | None) -> list[Plain]:
        """Give all of a type out, in order of submission: it has other rules from now on."""
        kind = self._kinds.pop(type, None)
        if kind is None:
            return []
        del self._numbered[kind.number]
        self._cancelled += kind.waiting
        return [Plain(item, kind.rules, item.since, number in kind.out) for number, item in kind.tasks.items()]

    def rules(self, type: str | None) -> Rules | None:
        """The rules that plain tasks of a type come with."""
        kind = self._kinds.get(type)
        return None if kind is None else kind.rules

    def _new_line(self, priority: int) -> Line:
        line = self._lines[priority] = Line()
        heappush(self._priorities, -priority)
        return line

    def _first_line(self) -> Line | None:
        """The line of the highest priority that has places, of cancelled ones too."""
        priorities, lines = self._priorities, self._lines
        while priorities:
            line = lines[-priorities[0]]
            if line.fresh or line.back:
                return line
            if len(priorities) == 1:  # the next task will want it again
                return None
            del lines[-heappop(priorities)]
        return None

    def _waits(self, place: int) -> bool:
        """Whether the task of a place still waits."""
        kind = self._numbered.get(place & _MASK)
        return kind is not None and place >> _BITS in kind.tasks

    def _count_cancelled(self) -> None:
        self._cancelled += 1
        if 2 * self._cancelled > self._count + SLACK:
            for line in self._lines.values():
                line.fresh = deque(filter(self._waits, line.fresh))
                line.back = list(filter(self._waits, line.back))
                heapify(line.back)
            self._count -= self._cancelled
            self._cancelled = 0

    # --- answers ---

    def head(self) -> tuple[int, int] | None:
        """The highest priority here, negated, and the oldest task of that; None if none waits."""
        while (line := self._first_line()) is not None:
            place = line.first()
            assert place is not None
            if self._waits(place):
                return self._priorities[0], place >> _BITS
            line.drop_first()
            self._count -= 1
            self._cancelled -= 1
        return None

    def before(self, priority: int, sequence: int) -> int:
        """How many go before a task of this priority and number. Looks at all: asked by people, and not often."""
        end = sequence << _BITS
        return sum(
            1
            for its, line in self._lines.items()
            if its >= priority
            for place in itertools.chain(line.fresh, line.back)
            if (its > priority or place < end) and self._waits(place)
        )

    def kinds(self) -> Iterator[Kind[I]]:
        """Those that have tasks."""
        return (kind for kind in self._kinds.values() if kind.tasks)

    def __iter__(self) -> Iterator[I]:
        """The tasks that wait."""
        for kind in self._kinds.values():
            yield from (item for number, item in kind.tasks.items() if number not in kind.out)

    def __len__(self) -> int:
        """How many wait."""
        return self._count - self._cancelled
