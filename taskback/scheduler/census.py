"""How many tasks of a type are where, and since when the oldest one waits.

Holds: every task that was added and has not left is counted in one place. `_ages` has each that waits, once, which its
entry's `aged` says; those that run or have left are there too until they are in the way. To move one costs O(log n).
"""

import heapq
from dataclasses import dataclass, replace
from typing import Any, Final

from taskback.scheduler.entry import Entry, Place
from taskback.scheduler.plain import Kind

SLACK: Final = 64  # ages of tasks that have left that are not worth a new heap
_AGING = frozenset({Place.KEY, Place.READY, Place.RETRY, Place.DEFER})


@dataclass(frozen=True, slots=True)
class Waiting:
    """The tasks of one type.

    Attributes:
        running (int): Handed out.
        worker (int): Wait for a worker.
        cap (int): Wait for one of their type to end.
        key (int): Wait for another of their key to end.
        delay (int): Wait for the time that they were submitted for.
        retry (int): Wait to be tried again.
        defer (int): Have put themselves off.
        oldest (float | None): Seconds since the oldest that waits was submitted or, where it was delayed, since its
            time. Those whose time has not come do not count.
    """

    running: int = 0
    worker: int = 0
    cap: int = 0
    key: int = 0
    delay: int = 0
    retry: int = 0
    defer: int = 0
    oldest: float | None = None


class Census:
    """See the top of the file."""

    __slots__ = ("_ages", "_counts", "_gone")

    def __init__(self) -> None:
        self._counts = dict.fromkeys(Place, 0)
        self._ages: list[tuple[float, int, Entry[Any]]] = []
        self._gone = 0  # how many in there have left

    def enter(self, entry: Entry[Any]) -> None:
        """A task comes in."""
        self._counts[entry.place] += 1

    def move(self, entry: Entry[Any], place: Place) -> None:
        """A task is in another place from now on."""
        counts = self._counts
        counts[entry.place] -= 1
        counts[place] += 1
        entry.place = place
        if not entry.aged and place in _AGING:
            entry.aged = True
            heapq.heappush(self._ages, (entry.since, entry.sequence, entry))

    def leave(self, entry: Entry[Any]) -> None:
        """A task is gone."""
        self._counts[entry.place] -= 1
        if not entry.aged:
            return
        entry.aged = False
        self._gone += 1
        if 2 * self._gone > len(self._ages) + SLACK:
            self._ages = [age for age in self._ages if age[2].aged]
            heapq.heapify(self._ages)
            self._gone = 0

    def figures(self, at_cap: bool, now: float) -> Waiting:
        """The figures; `at_cap` says whether no more of the type may start."""
        counts, since = self._counts, self._oldest()
        return Waiting(
            running=counts[Place.RUNNING],
            worker=0 if at_cap else counts[Place.READY],
            cap=counts[Place.READY] if at_cap else 0,
            key=counts[Place.KEY],
            delay=counts[Place.DELAYED],
            retry=counts[Place.RETRY],
            defer=counts[Place.DEFER],
            oldest=None if since is None else max(0.0, now - since),
        )

    def _oldest(self) -> float | None:
        while self._ages:
            since, _, entry = self._ages[0]
            if entry.aged and entry.place in _AGING:
                return since
            heapq.heappop(self._ages)
            self._gone -= not entry.aged
            entry.aged = False  # if it runs and comes back, it is put here again
        return None


def plus(waiting: Waiting, kind: Kind[Any], now: float) -> Waiting:
    """The figures of a type and of its plain tasks."""
    since = kind.oldest()
    ages = [age for age in (waiting.oldest, None if since is None else max(0.0, now - since)) if age is not None]
    return replace(
        waiting,
        running=waiting.running + len(kind.out),
        worker=waiting.worker + kind.waiting,
        oldest=max(ages, default=None),
    )
