"""What a backend tells of itself: its figures, and how its shutdown went.

The file goes without the `annotations` future: `typing.get_type_hints` must resolve these classes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from taskback._chunk import Chunk
from taskback._handle import TaskHandle
from taskback._public import lives_in
from taskback._state import TaskState


@lives_in("taskback")
@dataclass(frozen=True, slots=True)
class TypeStats:
    """The figures of one task type.

    Once nothing is in flight, `accepted == succeeded + failed + timed_out + cancelled + lost + abandoned`.

    Attributes:
        accepted (int): Tasks taken, joined submissions not counted.
        succeeded (int): Ended SUCCEEDED; likewise `failed`, `timed_out`, `cancelled`, `lost` and `abandoned`.
        joined (int): Submissions that joined a task in flight instead of making one.
        queued (int): Waiting now.
        running (int): Running now.
        waiting_for_time (int): Of those that are queued, for the time that they were submitted for.
        waiting_for_key (int): For another task of their key to end.
        waiting_for_cap (int): For one of their type to end, of which no more may run.
        waiting_for_retry (int): To be tried again.
        waiting_for_defer (int): For the time that they have put themselves off to.
        oldest_seconds (float | None): For how long the oldest one waits; None if none does. One whose time has not come
            does not count.
    """

    accepted: int = 0
    succeeded: int = 0
    failed: int = 0
    timed_out: int = 0
    cancelled: int = 0
    lost: int = 0
    abandoned: int = 0
    joined: int = 0
    queued: int = 0
    running: int = 0
    waiting_for_time: int = 0
    waiting_for_key: int = 0
    waiting_for_cap: int = 0
    waiting_for_retry: int = 0
    waiting_for_defer: int = 0
    oldest_seconds: float | None = None


@lives_in("taskback")
@dataclass(frozen=True, slots=True)
class WorkerStats:
    """One worker, as it is now.

    Attributes:
        pid (int): The process it lives in; the program's own for threads.
        task_id (str | None): What it runs, or None if it is idle.
        task_type (str | None): The type of that.
        since (float | None): Since when, in seconds since the epoch.
        rss_bytes (int | None): Resident memory of a worker process; None for threads.
    """

    pid: int
    task_id: str | None = None
    task_type: str | None = None
    since: float | None = None
    rss_bytes: int | None = None


@lives_in("taskback")
@dataclass(frozen=True, slots=True)
class BackendStats(TypeStats):
    """The figures of a backend since it was made, over all types.

    Attributes:
        workers (tuple[WorkerStats, ...]): The workers that are up.
        by_type (Mapping[str, TypeStats]): The same figures a type; "" stands for tasks without one.
        events_dropped (int): Events that listeners did not get, since they were too slow.
    """

    workers: tuple[WorkerStats, ...] = ()
    by_type: Mapping[str, TypeStats] = field(default_factory=dict)
    events_dropped: int = 0


@lives_in("taskback")
@dataclass(slots=True)
class ShutdownReport:
    """How a shutdown went.

    A handle stands in one list. A task that several submitters share stands there with the handle of each.

    Attributes:
        succeeded (list[TaskHandle]): Ended well while the shutdown waited.
        failed (list[TaskHandle]): Ended FAILED, TIMED_OUT or LOST meanwhile.
        cancelled (list[TaskHandle]): Were running, and stopped when they were told to, or waited for another attempt.
        killed (list[TaskHandle]): Were running, and were stopped by killing their worker.
        abandoned (list[TaskHandle]): Were running in a thread that did not stop.
        never_started (list[TaskHandle]): Were still queued.
        unfinished (list[dict[str, Any]]): The tasks of the last four, to be submitted elsewhere.
        dying (list[int]): Pids that were killed and that the kernel has not finished with.
        stuck (list[str]): Threads of the backend that user code holds (a callback, a listener), by name.
        seconds (float): How long it took.
    """

    succeeded: list[TaskHandle] = field(default_factory=list)
    failed: list[TaskHandle] = field(default_factory=list)
    cancelled: list[TaskHandle] = field(default_factory=list)
    killed: list[TaskHandle] = field(default_factory=list)
    abandoned: list[TaskHandle] = field(default_factory=list)
    never_started: list[TaskHandle] = field(default_factory=list)
    unfinished: list[dict[str, Any]] = field(default_factory=list)
    dying: list[int] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        counts = ", ".join(
            f"{len(getattr(self, name))} {name.replace('_', ' ')}"
            for name in (
                "succeeded",
                "failed",
                "cancelled",
                "killed",
                "abandoned",
                "never_started",
                "dying",
                "stuck",
            )
            if getattr(self, name)
        )
        return f"shut down in {self.seconds:.2f} s: {counts or 'nothing was in flight'}"


class Tally:
    """Counts that move with the tasks of one type. Held by the ledger's lock.

    What is accepted and in no other state is queued, so that a task which comes costs one count.
    """

    __slots__ = ("accepted", "counts", "joined")

    def __init__(self) -> None:
        self.accepted = 0
        self.joined = 0
        self.counts = dict.fromkeys(TaskState, 0)
        del self.counts[TaskState.QUEUED]

    def move(self, before: TaskState, after: TaskState, count: int = 1) -> None:
        """A task has changed its state, or several of them have."""
        if before is not TaskState.QUEUED:
            self.counts[before] -= count
        if after is not TaskState.QUEUED:
            self.counts[after] += count

    def end_chunk(self, before: TaskState, chunk: Chunk, state: TaskState) -> None:
        """A chunk is over, having ended in that state; of its tasks those that have no end are accepted no more."""
        if before is not TaskState.QUEUED:
            self.counts[before] -= chunk.count
        figures = chunk.figures(state)
        for each, count in figures.items():
            self.counts[each] += count
        self.accepted -= chunk.count - sum(figures.values())

    def figures(self) -> dict[str, int]:
        """The fields of `TypeStats`, by name."""
        return {
            "accepted": self.accepted,
            "joined": self.joined,
            "queued": self.accepted - sum(self.counts.values()),
            **{state.value: count for state, count in self.counts.items()},
        }


def total(tallies: Iterable[Tally]) -> dict[str, int]:
    """The fields of `TypeStats` over several types."""
    found = Tally().figures()
    for tally in tallies:
        for name, count in tally.figures().items():
            found[name] += count
    return found
