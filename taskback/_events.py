"""What happens in a backend, as events, and those who listen.

Threads: emit() from any; listeners are called on one thread of ours, never a lane or a loop.
Locks: _lock is a leaf below the ledger's; listeners are called under none.
Holds: time_ns never goes backwards from one event to the next; a listener that is slow loses events, no time.

The file goes without the `annotations` future: `typing.get_type_hints` must resolve these classes.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from taskback import _clock
from taskback._courier import Courier
from taskback._progress import Progress
from taskback._public import lives_in
from taskback._state import TaskState

logger = logging.getLogger(__name__)

MAX_WAITING_EVENTS: Final = 10_000


@lives_in("taskback")
@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened in a backend.

    Attributes:
        time_ns (int): When, in nanoseconds since the epoch; never backwards from one event to the next.
        pid (int | None): The worker's process.
    """

    time_ns: int
    pid: int | None = None


@lives_in("taskback")
@dataclass(frozen=True, slots=True, kw_only=True)
class TaskEvent(Event):
    """Something that happened to a task.

    Attributes:
        task_id (str): The task's id.
        type (str | None): The task's type.
        attempt (int): Which attempt, from 1.
    """

    task_id: str
    type: str | None
    attempt: int


@lives_in("taskback")
@dataclass(frozen=True, slots=True, kw_only=True)
class TaskQueued(TaskEvent):
    """A task was accepted."""


@lives_in("taskback")
@dataclass(frozen=True, slots=True, kw_only=True)
class TaskStarted(TaskEvent):
    """A task's handler was called."""


@lives_in("taskback")
@dataclass(frozen=True, slots=True, kw_only=True)
class TaskProgress(TaskEvent):
    """A handler reported; at most 20 a second a task.

    Attributes:
        progress (Progress): What it said.
    """

    progress: Progress


@lives_in("taskback")
@dataclass(frozen=True, slots=True, kw_only=True)
class TaskStuck(TaskEvent):
    """A task has run for `stuck_after_seconds` without a report; told once until it reports again.

    Attributes:
        seconds (float): For how long it has been silent.
        stack (str): Where it is, as text; empty if its worker does not tell.
    """

    seconds: float
    stack: str


@lives_in("taskback")
@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRetrying(TaskEvent):
    """An attempt did not succeed, and the task waits to be called again.

    `attempt` is the one that has ended. A handler that raised `Defer` has put its task off.

    Attributes:
        seconds (float): How long it waits.
        error_type (str | None): The type of the error.
        error_text (str | None): Its text.
    """

    seconds: float
    error_type: str | None = None
    error_text: str | None = None


@lives_in("taskback")
@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFinished(TaskEvent):
    """A task reached its outcome.

    Attributes:
        state (TaskState): A final one.
        seconds (float | None): How long it ran, None if it never started.
        error_type (str | None): The type of the error, if it ended with one.
        error_text (str | None): Its text.
    """

    state: TaskState
    seconds: float | None = None
    error_type: str | None = None
    error_text: str | None = None


@lives_in("taskback")
@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStarted(Event):
    """A worker process is ready."""


@lives_in("taskback")
@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerDied(Event):
    """A worker process ended.

    Attributes:
        exitcode (int | None): Its exit status, negative for a signal; None if it is not known.
        task_id (str | None): The task that it was running.
        why (str): What of the backend's had to do with it: a limit, a shutdown; empty if nothing.
    """

    exitcode: int | None = None
    task_id: str | None = None
    why: str = ""


class Listeners:
    """Those who subscribed, and the thread that calls them.

    `listening` is what every event costs where nobody listens: one truth test, made by the caller.
    """

    def __init__(self, name: str) -> None:
        self.listening = False
        self.dropped = 0
        self._name = name
        self._lock = threading.Lock()
        self._listeners: tuple[Callable[[Any], Any], ...] = ()
        self._courier = Courier(f"{name}-listeners", MAX_WAITING_EVENTS)
        self._last_ns = 0

    def subscribe(self, listener: Callable[[Any], Any]) -> Callable[[], None]:
        """Add a listener; gives what takes it out again."""
        if not callable(listener):
            raise TypeError(f"a listener must be callable, not a {type(listener).__name__}")
        entry = _Entry(listener)
        with self._lock:
            self._listeners = (*self._listeners, entry)
            self.listening = True

        def unsubscribe() -> None:
            with self._lock:
                self._listeners = tuple(other for other in self._listeners if other is not entry)
                self.listening = bool(self._listeners)

        return unsubscribe

    def afresh(self) -> "Listeners":
        """In a fork: the same listeners, with a thread and a lock of this process."""
        mine = Listeners(self._name)
        mine._listeners, mine.listening = self._listeners, self.listening
        return mine

    def emit(self, kind: type[Event], **facts: Any) -> None:
        """Tell the listeners; `facts` are the event's fields but for its time."""
        with self._lock:
            self._last_ns = max(self._last_ns, _clock.epoch_ns(_clock.monotonic_ns()))
            if not self._courier.post(self._deliver, kind(time_ns=self._last_ns, **facts)):
                self.dropped += 1

    def _deliver(self, event: Event) -> None:
        for listener in self._listeners:
            try:
                listener(event)
            except BaseException:
                logger.error("listener %r raised on %s", listener, type(event).__name__, exc_info=True)

    def stop(self, deadline: float) -> bool:
        """Deliver what waits and end the thread; False if a listener holds it at the deadline."""
        return self._courier.stop(deadline)


class _Entry:
    """One subscription: the same function may listen twice, and be taken out once."""

    __slots__ = ("_listener",)

    def __init__(self, listener: Callable[[Any], Any]) -> None:
        self._listener = listener

    def __call__(self, event: Event) -> None:
        self._listener(event)

    def __repr__(self) -> str:
        return repr(self._listener)
