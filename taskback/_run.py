"""A run: one accepted task on its way to its outcome, shared by the handles of all who submitted it.

A run's fields are written under the ledger's lock. Reading one field without it is safe.
"""

import asyncio
import contextvars
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from taskback import _clock, _codec
from taskback._call import Outcome
from taskback._chunk import Chunk, unpack_tasks
from taskback._packed import Packed
from taskback._progress import Progress
from taskback._public import lives_in
from taskback._state import TaskState
from taskback._task import Task

SHUTDOWN: Final = "shutdown"  # what a run was struck by that no caller cancelled


@lives_in("taskback")
@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt at a task.

    Attributes:
        number (int): Counted from 1.
        pid (int | None): The process it ran in.
        started_at (float | None): In seconds since the epoch, None if it never started.
        finished_at (float): In seconds since the epoch.
        outcome (TaskState): How it ended.
        error_type (str | None): The type of the error, importable name, if it ended with one.
        error_text (str | None): Its text.
        traceback (str | None): Its traceback as text, the worker's where there was one.
    """

    number: int
    pid: int | None
    started_at: float | None
    finished_at: float
    outcome: TaskState
    error_type: str | None = None
    error_text: str | None = None
    traceback: str | None = None


Told = tuple[str | None, str | None, str | None]  # an error's type, text and traceback
NOTHING_TOLD: Final[Told] = (None, None, None)


class Run:
    """See the top of the file. `task` is the submitter's dict, copied; `data` the same pickled, for processes."""

    __slots__ = (
        "_announced_ns",
        "_task",
        "attempt",
        "call",
        "chunk",
        "context",
        "data",
        "fair_value",
        "false_starts",
        "finished_ns",
        "gave_up",
        "handle",
        "home_loop",
        "id",
        "joined",
        "key",
        "killed",
        "lane",
        "moved_ns",
        "number",
        "outcome",
        "past",
        "pid",
        "policy",
        "priority",
        "progress",
        "queued_ns",
        "ready_at",
        "sequence",
        "since",
        "started_ns",
        "state",
        "stop",
        "struck",
        "tally",
        "timeout",
        "told",
        "tried",
        "troubled",
        "type",
        "variables",
    )

    def __init__(
        self,
        id: str,
        type: str | None,
        task: Task | None,
        data: Packed | None,
        *,
        context: dict[str, str],
        priority: int,
        ready_at: float,
        timeout: float | None,
        chunk: Chunk | None = None,
        policy: Any = None,
        key: Hashable = None,
        fair_value: Hashable = None,
    ) -> None:
        self.id = id
        self.type = type
        self._task = task
        self.data = data
        self.context = context
        self.priority = priority
        self.ready_at = ready_at
        self.timeout = timeout
        self.chunk = chunk  # what it is, if it is several tasks
        self.policy = policy  # of its type, as it was when it was submitted
        self.key = key
        self.fair_value = fair_value
        # No use to another process, which takes a chosen few along, packed.
        self.variables: Any = None if task is None else contextvars.copy_context()
        self.home_loop: asyncio.AbstractEventLoop | None = None  # the loop that must run it, if one must
        self.sequence = 0  # its place in the queue, given by the ledger
        self.state = TaskState.QUEUED
        self.stop: TaskState | None = None  # what it is to end as: told to stop, and why
        self.struck = "timeout"  # what it is told to stop by: the name of the limit that was up, or SHUTDOWN
        self.killed = False
        self.false_starts = 0  # workers that died with it in hand, before they called its handler
        self.outcome: Outcome | None = None  # from its end on until that is logged
        self.lane: Any = None  # what runs it, from the moment on that it is handed over
        self.gave_up: Any = None  # the lane whose thread was given up with it
        self.call: Any = None  # the call under way, in this process
        self.number = 0  # of the call that its worker process was sent
        self.attempt = 1
        self.past: tuple[Attempt, ...] = ()  # before this one
        self.tried = False  # whether it has begun before, and been put back or tried in vain
        self.troubled: int | None = None  # how many of the last ones of its type ended badly, where that is to be told
        self.told = NOTHING_TOLD  # of the error that it ended with
        self.pid: int | None = None
        self.progress: Progress | None = None
        self.queued_ns = _clock.monotonic_ns()
        self.started_ns: int | None = None
        self.moved_ns = 0  # when it began, or reported last
        self.finished_ns: int | None = None
        self.handle: Any = None  # of whoever submitted it first, as long as it is in flight
        self.joined: list[Any] | None = None  # those of others
        self.tally: Any = None  # the figures of its type
        self.since = 0.0  # when it was accepted, on the monotonic clock
        self._announced_ns = 0

    def task(self) -> Task:
        """The task as it was submitted: a dict of the caller's own."""
        if self._task is not None:
            return dict(self._task)
        assert self.data is not None
        task: Task = (
            _codec.loads_a_copy(self.data)
            if self.chunk is None
            else {"tasks": list(unpack_tasks(_codec.loads_a_copy(self.data)))}
        )
        return task

    def unfinished(self) -> list[Task]:
        """The tasks that have not ended well or badly, as they were submitted."""
        if self.chunk is None:
            return [self.task()]
        tasks: list[Task] = self.task()["tasks"]
        return tasks[self.chunk.ended :]

    @property
    def handles(self) -> list[Any]:
        """All handles on it, while it is in flight."""
        first = [] if self.handle is None else [self.handle]
        return first if self.joined is None else first + self.joined

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """The attempts that have ended."""
        return (*self.past, self.last_attempt(self.state)) if self.state.final else self.past

    def last_attempt(self, outcome: TaskState) -> Attempt:
        """The attempt that has just ended so."""
        assert self.finished_ns is not None
        return Attempt(
            self.attempt,
            self.pid,
            _clock.epoch(self.started_ns),
            _clock.epoch_ns(self.finished_ns) / 1e9,
            outcome,
            *self.told,
        )

    @property
    def size(self) -> int:
        """How many bytes it is pickled to; 0 where it is not."""
        return 0 if self.data is None else len(self.data)

    def take_contents(self, other: "Run") -> None:
        """Have another one's contents; it never began, and the other never will."""
        self._task, self.data = other._task, other.data

    def replace(self, task: Task | None, data: Packed | None) -> None:
        """Other contents: those of a submission that joined it before it began."""
        self._task, self.data = task, data

    def seconds(self) -> float | None:
        """How long it has run, None if it never started."""
        if self.started_ns is None:
            return None
        return ((self.finished_ns or _clock.monotonic_ns()) - self.started_ns) / 1e9

    def announce_now(self, now_ns: int, every_ns: int) -> bool:
        """Whether its progress is due to be announced; remembers that it was."""
        if now_ns - self._announced_ns < every_ns:
            return False
        self._announced_ns = now_ns
        return True


class End(NamedTuple):
    """That a run is over, or its attempt, and what came of it."""

    run: Run
    outcome: Outcome
    pid: int | None = None  # where its handler was called
    started_ns: int | None = None  # and when, on the monotonic clock, where nobody has told yet
