"""How many tasks of each type are where, and since when the oldest one waits.

Holds: every task that was added and has not left is counted in one place. To move one costs O(log n).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from taskback.scheduler.entry import Entry, Place
from taskback.scheduler.ranking import Ranking
from taskback.scheduler.ready import Ready

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

    __slots__ = ("_ages", "_counts", "running")

    def __init__(self) -> None:
        self._counts: dict[str | None, dict[Place, int]] = {}
        self._ages: dict[str | None, Ranking[int, float]] = {}
        self.running = 0

    def enter(self, entry: Entry[Any]) -> None:
        """A task comes in."""
        if entry.type not in self._counts:
            self._counts[entry.type] = dict.fromkeys(Place, 0)
            self._ages[entry.type] = Ranking()
        self._counts[entry.type][entry.place] += 1

    def move(self, entry: Entry[Any], place: Place) -> None:
        """A task is in another place from now on."""
        counts = self._counts[entry.type]
        counts[entry.place] -= 1
        counts[place] += 1
        self.running += (place is Place.RUNNING) - (entry.place is Place.RUNNING)
        entry.place = place
        ages = self._ages[entry.type]
        if place in _AGING:
            ages.put(entry.sequence, entry.since)
        else:
            ages.drop(entry.sequence)

    def leave(self, entry: Entry[Any]) -> None:
        """A task is gone; of a type without tasks nothing is kept."""
        counts = self._counts[entry.type]
        counts[entry.place] -= 1
        self.running -= entry.place is Place.RUNNING
        self._ages[entry.type].drop(entry.sequence)
        if not any(counts.values()):
            del self._counts[entry.type], self._ages[entry.type]

    def figures(self, ready: Ready, now: float) -> Mapping[str | None, Waiting]:
        """The figures of each type that has tasks."""
        return {type: self._of(type, ready.line(type).at_cap, now) for type in self._counts}

    def _of(self, type: str | None, at_cap: bool, now: float) -> Waiting:
        counts, ages = self._counts[type], self._ages[type]
        return Waiting(
            running=counts[Place.RUNNING],
            worker=0 if at_cap else counts[Place.READY],
            cap=counts[Place.READY] if at_cap else 0,
            key=counts[Place.KEY],
            delay=counts[Place.DELAYED],
            retry=counts[Place.RETRY],
            defer=counts[Place.DEFER],
            oldest=max(0.0, now - ages.first_rank()) if ages else None,
        )
