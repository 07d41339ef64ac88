"""Why a task is still waiting, in a sentence.

Asked by people, so it may cost more than a decision does; still it looks at no more than its own line (see `places`).
How many tasks go before it is what their order says: with caps, floors and turns some of those may start after it.
"""

import enum
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic

from taskback.scheduler import keys
from taskback.scheduler.entry import Entry, I, Place
from taskback.scheduler.plain import PlainTasks
from taskback.scheduler.ready import Ready


class Cause(enum.Enum):
    """What a task waits for."""

    DELAY = "delay"  # its time
    RETRY = "retry"  # its next attempt
    DEFER = "defer"  # the time that it has put itself off to
    KEY = "key"  # another task of its key
    CAP = "cap"  # another of its type, of which no more may run
    FLOOR = "floor"  # a worker, which a type with a floor gets first
    WORKER = "worker"  # a worker
    NOTHING = "nothing"  # it runs


@dataclass(frozen=True, slots=True)
class Reason(Generic[I]):
    """Why a task waits; as a string, the sentence.

    Attributes:
        cause (Cause): What it waits for.
        text (str): The same as a sentence; of a key, what its holder is at.
        key (Hashable): Its key, where it waits for that. It becomes text when this does: that is user code, and whoever
            has this made holds a lock.
        holder (I | None): The task that has its key.
        until (float | None): When it is looked at again, on the monotonic clock, where that is known.
        before (int | None): How many tasks go before it, where only workers are wanting.
    """

    cause: Cause
    text: str
    key: Hashable = None
    holder: I | None = None
    until: float | None = None
    before: int | None = None

    def __str__(self) -> str:
        return self.text if self.cause is not Cause.KEY else f"waits for its key {self.key!r}: {self.text}"


def explain(entry: Entry[I], ready: Ready, plain: PlainTasks[I], now: float) -> Reason[I]:
    """Say why a task is where it is."""
    match entry.place:
        case Place.RUNNING:
            return Reason(Cause.NOTHING, "it does not wait: a worker has it")
        case Place.DELAYED:
            return Reason(Cause.DELAY, f"waits for its time, in {_in(entry, now)}", until=entry.due)
        case Place.RETRY:
            text = f"waits for its next attempt, in {_in(entry, now)}, after {_past(entry)}"
            return Reason(Cause.RETRY, text, until=entry.due)
        case Place.DEFER:
            return Reason(Cause.DEFER, f"has put itself off for another {_in(entry, now)}", until=entry.due)
        case Place.KEY:
            holder = keys.front(entry)
            return Reason(Cause.KEY, f"task {holder.item.id} {_doing(holder, now)}", key=entry.key, holder=holder.item)
    return _ready(entry, ready, plain)


def _ready(entry: Entry[I], ready: Ready, plain: PlainTasks[I]) -> Reason[I]:
    line, before = entry.line, ready.before(entry) + plain.before(entry.priority, entry.sequence)
    others = f"{before} other{'' if before == 1 else 's'}"
    if line.at_cap:
        cap = f"max_running={line.rules.max_running} of type {entry.type!r} are running"
        return Reason(Cause.CAP, f"waits for one of its type to end: {cap}; {others} before it", before=before)
    owed = ready.owed_before(entry.type)
    if owed is not None:
        floor = f"runs {owed.running - owed.given_up} of the {owed.rules.reserved} reserved for it"
        text = f"waits for a worker; the next one goes to type {owed.type!r}, which {floor}; {others} before it"
        return Reason(Cause.FLOOR, text, before=before)
    return Reason(Cause.WORKER, f"waits for a worker, {others} before it", before=before)


def _in(entry: Entry[I], now: float) -> str:
    return f"{max(0.0, entry.due - now):.1f} s"


def _past(entry: Entry[I]) -> str:
    failures, crashes = entry.failures, entry.crashes
    failed = f"{failures} of {entry.rules.max_attempts} attempts failed"
    crashed = f"{crashes} of {entry.rules.max_crashes} crashes"
    return " and ".join(text for number, text in ((failures, failed), (crashes, crashed)) if number)


def _doing(holder: Entry[I], now: float) -> str:
    """What the task is at that has the key."""
    match holder.place:
        case Place.RUNNING if holder.abandoned:
            return "has it, in a thread that was given up and has not ended"
        case Place.RUNNING:
            return "has it and runs"
        case Place.RETRY:
            return f"has it and waits for its next attempt, in {_in(holder, now)}"
        case Place.DEFER:
            return f"has it and has put itself off for another {_in(holder, now)}"
    return "goes first and waits for a worker itself"
