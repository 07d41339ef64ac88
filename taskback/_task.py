"""What a handler sees of its task: `current_task()`, its progress, and whether it is to stop."""

import math
import numbers
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final

from taskback._errors import TaskCancelled
from taskback._public import lives_in

if TYPE_CHECKING:
    from taskback._progress import Progress

Task = dict[str, Any]

ANNOUNCE_EVERY_NS: Final = 50_000_000  # listeners and other processes hear of progress at most 20 times a second


@lives_in("taskback")
class CurrentTask:
    """The task that the calling handler was given; see `current_task`.

    Attributes:
        id (str): The task's id; empty outside of a backend.
        type (str | None): The task's `"type"`.
        attempt (int): Which attempt this is, counted from 1.
        deadline (float | None): When its time is up, on `time.monotonic()`'s clock, or None without a limit.
    """

    __slots__ = ("_announce", "_cancelled", "_progress", "attempt", "deadline", "id", "type")

    def __init__(
        self,
        id: str = "",
        type: str | None = None,
        attempt: int = 1,
        deadline: float | None = None,
        announce: "Callable[[Progress], None] | None" = None,
    ) -> None:
        self.id = id
        self.type = type
        self.attempt = attempt
        self.deadline = deadline
        self._announce = announce
        self._cancelled = False
        self._progress: Progress | None = None

    @property
    def cancelled(self) -> bool:
        """Whether the task is to stop: it was cancelled, its time is up, or the backend shuts down.

        Returns:
            bool: True from the moment on that the backend wants the handler to return.
        """
        return self._cancelled

    def raise_if_cancelled(self) -> None:
        """Leave the handler here if the task is to stop.

        Raises:
            TaskCancelled: The task is to stop.
        """
        if self._cancelled:
            raise TaskCancelled("the task is to stop")

    def report(
        self, done: float | None = None, total: float | None = None, stage: str | None = None, **data: Any
    ) -> None:
        """Say how far the task is; `handle.progress` shows it, and listeners get a `TaskProgress`.

        What is not given keeps its last value. Listeners and other processes hear of it at most 20 times a second
        a task; what came in between is in the next report, or in the last one, which always arrives.

        Args:
            done (float | None): Units of work done.
            total (float | None): Units in all.
            stage (str | None): What the handler is doing now.
            **data (Any): Anything else; it must be picklable where the handler runs in a process.

        Raises:
            TypeError: `done` or `total` is no number, or `stage` no string.
            ValueError: `done` or `total` is NaN.
        """
        from taskback._progress import Progress

        last = self._progress or Progress()
        progress = Progress(
            last.done if done is None else _number("done", done),
            last.total if total is None else _number("total", total),
            last.stage if stage is None else _text("stage", stage),
            data or last.data,
        )
        self._progress = progress
        if self._announce is not None:
            self._announce(progress)


def checked_type(task: Task) -> str | None:
    """A task's type: a string, or None for a task without one."""
    task_type = task.get("type")
    if task_type is not None and not isinstance(task_type, str):
        raise TypeError(f'task["type"] must be a string, not a {type(task_type).__name__}')
    return None if task_type is None else plain(task_type)


def plain(text: str) -> str:
    """The same text as a `str` itself.

    A member of an enum of strings has its name's hash, not its text's, and is pickled by its class, which a worker
    may not have.
    """
    return str.__str__(text)


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"report({name}=...) takes a number, not {type(value).__name__}")
    plain = int(value) if isinstance(value, numbers.Integral) else float(value)  # NumPy's, too
    if math.isnan(plain):
        raise ValueError(f"report({name}=...) takes a number, not NaN")
    return plain


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"report({name}=...) takes a string, not {type(value).__name__}")
    return plain(value)


running_task: ContextVar[CurrentTask | None] = ContextVar("taskback_running_task", default=None)


@lives_in("taskback")
def current_task() -> CurrentTask:
    """The task that the calling handler was given.

    Works on every backend, in sync and async handlers, and in threads that a handler starts with its context
    (`asyncio.to_thread`). Outside of a backend, a handler called by hand in a test say, it gives a task of its own
    that nobody cancels and whose reports go nowhere.

    Returns:
        CurrentTask: Id, type, attempt, deadline; `cancelled`, `raise_if_cancelled()`, `report()`.
    """
    return running_task.get() or CurrentTask()
