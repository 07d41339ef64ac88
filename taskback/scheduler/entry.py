"""A task as the scheduler sees it.

Holds: an entry is in one place at a time, and `place` says which. What decides about it is copied when it is added:
the item may change later without harm.
"""

import enum
import math
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from taskback.scheduler.rules import Rules

if TYPE_CHECKING:
    from taskback.scheduler.keys import KeyLine
    from taskback.scheduler.type_line import TypeLine


class Item(Protocol):
    """What the scheduler needs to know of a task.

    `sequence` is unlike any other's and grows in order of submission. `ready_at` is on the monotonic clock. `key` and
    `fair_value` are None for a task that has none. `since` is the scheduler's own: when it came, on the same clock.
    """

    since: float

    @property
    def id(self) -> str: ...

    @property
    def sequence(self) -> int: ...

    @property
    def type(self) -> str | None: ...

    @property
    def priority(self) -> int: ...

    @property
    def ready_at(self) -> float: ...

    @property
    def key(self) -> Hashable: ...

    @property
    def fair_value(self) -> Hashable: ...


I = TypeVar("I", bound=Item)  # noqa: E741  # what goes in comes out, and is not looked into beyond the fields above


class Place(enum.Enum):
    """Where a task is."""

    DELAYED = "delayed"  # its time has not come; in no line yet
    KEY = "key"  # in the line of its key, behind another
    READY = "ready"  # only a worker, a cap or a floor keeps it waiting
    RUNNING = "running"  # handed out
    RETRY = "retry"  # has failed or lost its worker, and waits to be tried again; keeps its key
    DEFER = "defer"  # has put itself off; keeps its key

    __hash__ = object.__hash__  # hashed several times a task, and the one of Enum is written in Python


class Budget:
    """What a task has used up so far."""

    __slots__ = ("crashes", "defers", "failures")

    def __init__(self) -> None:
        self.failures = 0  # attempts that raised
        self.crashes = 0  # attempts that took their worker along
        self.defers = 0  # charge nothing, but the task has begun once

    @property
    def untouched(self) -> bool:
        """Whether no attempt of the task has begun and ended yet."""
        return not (self.failures or self.crashes or self.defers)


class Entry(Budget, Generic[I]):
    """See the top of the file."""

    __slots__ = (
        "abandoned",
        "aged",
        "alarm",
        "begun",
        "due",
        "expires",
        "fair_value",
        "item",
        "joins",
        "key",
        "key_line",
        "line",
        "place",
        "priority",
        "rules",
        "sequence",
        "since",
        "ticket",
        "type",
    )

    def __init__(self, item: I, rules: Rules, line: "TypeLine", now: float) -> None:
        self.failures = self.crashes = self.defers = 0
        self.line = line  # of its type
        self.key_line: KeyLine[I] | None = None  # of its key, while it has to do with that
        self.ticket: tuple[int, Any] | None = None  # for its place in a line; see `tickets`
        self.alarm: tuple[float, int, Any] | None = None  # for the time that it waits for; see `timers`
        self.aged = False  # whether the census knows since when it waits
        self.item = item
        self.sequence = item.sequence
        self.type = item.type
        self.key = item.key
        self.fair_value = item.fair_value
        self.priority = item.priority
        self.rules = rules
        self.due = item.ready_at  # until when it is delayed, or waits for a retry
        self.place = Place.DELAYED
        self.begun = False  # handed out at least once: holds its key until it ends
        self.abandoned = False  # its thread was given up and still works on it
        self.joins = 0  # how often another submission has changed it
        self.wait_from(now)

    def wait_from(self, now: float) -> None:
        """Its wait counts from now, or from its time if that is later."""
        self.since = now if now > self.due else self.due
        limit = self.rules.queue_timeout
        self.expires = math.inf if limit is None else self.since + limit

    @property
    def unseen(self) -> bool:
        """Whether no handler can have seen its contents yet, so that another submission may join it."""
        return self.place is not Place.RUNNING and self.untouched
