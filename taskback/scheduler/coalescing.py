"""One task instead of two: a submission that joins one which waits.

The scheduler decides, its owner acts, for a merge function is user code and runs under no lock:

1. Under the lock, `Scheduler.joining` gives a Joining, or None: then the task is added as it is.
2. Where the Joining has a function, it is called outside of the lock, with the dict of the task that waits and the new
   one. If it raises, the submission fails and nothing has changed.
3. Under the lock again, `Scheduler.join` says whether it holds. Race: meanwhile the task may have begun or ended, or
   have been joined by another. Then it is False, and the submitter goes back to 1; of those who meet there one is
   always through, so all come through.

The task that is joined keeps its place, its id and its time limit for waiting. It never waits longer than the new one
would have alone: it takes the higher priority and the earlier time of the two.
"""

from dataclasses import dataclass
from typing import Generic

from taskback.scheduler.entry import Entry, I
from taskback.scheduler.rules import Merge


@dataclass(frozen=True, slots=True)
class Joining(Generic[I]):
    """A task that a submission may join.

    Attributes:
        item (I): The task that waits.
        replaces (bool): Whether the new contents take the place of its own.
        merge (Merge | None): Makes the contents of the two.
    """

    item: I
    replaces: bool
    merge: Merge | None
    joins: int  # which state of its contents this is about


def joining(entry: Entry[I]) -> Joining[I]:
    """How the rules of a task that waits have another one join it."""
    how = entry.rules.coalesce
    return Joining(entry.item, how == "rerun", how if callable(how) else None, entry.joins)


def still_holds(decision: Joining[I], entry: Entry[I] | None) -> bool:
    """Whether a decision that was made a while ago is still right."""
    if entry is None or entry.item is not decision.item or not entry.unseen:
        return False
    return decision.merge is None or entry.joins == decision.joins
