"""The tasks that no rule has a say in: higher priority first, first come first served within one, and no more to it.

Most tasks are such, so they are kept as cheaply as can be: no `Entry` is made of them. As soon as one needs what only
an entry has (it has failed, say, or its type gets rules), it is given out as a `Plain` and is here no more.

Holds: a task that was added is among the `tasks` of its kind until it is over or given out, in order of submission;
those that were handed out are in `out` too. The heap has all that wait, and some that were cancelled, which are passed
over; as soon as these are the greater part, it is made anew. So each call costs O(log n), amortised.
"""

from collections.abc import Iterator
from heapq import heapify, heappop, heappush
from typing import Any, Final, Generic, NamedTuple

from taskback.scheduler.entry import I
from taskback.scheduler.rules import Rules

SLACK: Final = 64  # cancelled tasks in the heap, or kinds without tasks, that are not worth tidying up


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

    __slots__ = ("out", "rules", "tasks", "type")

    def __init__(self, type: str | None, rules: Rules) -> None:
        self.type = type
        self.rules = rules
        self.tasks: dict[int, tuple[I, float]] = {}  # by sequence number, with the time at which it came
        self.out: set[int] = set()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self.tasks) - len(self.out)

    def oldest(self) -> float | None:
        """Since when the oldest one waits. Looks at those that were handed out and at one more."""
        return next((since for number, (_, since) in self.tasks.items() if number not in self.out), None)


class PlainTasks(Generic[I]):
    """See the top of the file."""

    __slots__ = ("_cancelled", "_heap", "_kinds")

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, Kind[I]]] = []
        self._kinds: dict[str | None, Kind[I]] = {}
        self._cancelled = 0  # how many in the heap are

    # --- in and out: as little as can be ---

    def add(self, item: I, rules: Rules, now: float) -> bool:
        """A task comes; False if it is none of these."""
        kind = self._kinds.get(item.type)
        if kind is None or kind.rules is not rules or item.ready_at > now:
            return False
        sequence = item.sequence
        kind.tasks[sequence] = item, now
        heappush(self._heap, (-item.priority, sequence, kind))
        return True

    def take(self) -> I | None:
        """Hand out the task that is next, if there is one."""
        heap = self._heap
        while heap:
            _, sequence, kind = heappop(heap)
            found = kind.tasks.get(sequence)
            if found is not None:
                kind.out.add(sequence)
                return found[0]
            self._cancelled -= 1
        return None

    def end(self, item: I) -> bool:
        """A task is over; False if it was not here."""
        kind = self._kinds.get(item.type)
        if kind is None or kind.tasks.pop(item.sequence, None) is None:
            return False
        if item.sequence in kind.out:
            kind.out.remove(item.sequence)
        else:
            self._count_cancelled()
        return True

    # --- the rest ---

    def welcome(self, type: str | None, rules: Rules) -> None:
        """Tasks of this type that come with these rules are plain; none of the type is here with others."""
        if len(self._kinds) > SLACK and not any(len(kind.tasks) for kind in self._kinds.values()):
            self._kinds.clear()
        self._kinds[type] = Kind(type, rules)

    def put_back(self, item: I) -> bool:
        """A task that was handed out has not begun; False if it is none of these."""
        kind = self.kind_of(item)
        if kind is None:
            return False
        kind.out.remove(item.sequence)
        heappush(self._heap, (-item.priority, item.sequence, kind))
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
        since, out = kind.tasks[item.sequence][1], item.sequence in kind.out
        self.end(item)
        return Plain(item, kind.rules, since, out)

    def give_all(self, type: str | None) -> list[Plain]:
        """Give all of a type out, in order of submission: it has other rules from now on."""
        kind = self._kinds.pop(type, None)
        if kind is None:
            return []
        given = [Plain(item, kind.rules, since, number in kind.out) for number, (item, since) in kind.tasks.items()]
        self._cancelled += kind.waiting
        kind.tasks.clear()
        return given

    def rules(self, type: str | None) -> Rules | None:
        """The rules that plain tasks of a type come with."""
        kind = self._kinds.get(type)
        return None if kind is None else kind.rules

    def _count_cancelled(self) -> None:
        self._cancelled += 1
        if 2 * self._cancelled > len(self._heap) + SLACK:
            self._heap = [place for place in self._heap if place[1] in place[2].tasks]
            heapify(self._heap)
            self._cancelled = 0

    # --- answers ---

    def head(self) -> tuple[int, int] | None:
        """The highest priority here, negated, and the oldest task of that; None if none waits."""
        heap = self._heap
        while heap:
            negated, sequence, kind = heap[0]
            if sequence in kind.tasks:
                return negated, sequence
            heappop(heap)
            self._cancelled -= 1
        return None

    def before(self, priority: int, sequence: int) -> int:
        """How many go before a task of this priority and number. Looks at all: asked by people, and not often."""
        mine = -priority, sequence
        return sum(1 for place in self._heap if place[:2] < mine and place[1] in place[2].tasks)

    def kinds(self) -> Iterator[Kind[I]]:
        """Those that have tasks."""
        return (kind for kind in self._kinds.values() if kind.tasks)

    def __iter__(self) -> Iterator[I]:
        """The tasks that wait."""
        for kind in self._kinds.values():
            yield from (item for number, (item, _) in kind.tasks.items() if number not in kind.out)

    def __len__(self) -> int:
        """How many wait."""
        return len(self._heap) - self._cancelled
