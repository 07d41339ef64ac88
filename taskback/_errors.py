"""Every error of taskback, under one base.

Each also derives from the built-in that a caller would catch anyway, is made from facts, keeps them as
attributes, and survives pickle (`__reduce__`: pickle would otherwise call the class with the message alone).
What a handler raises reaches the caller as it is; the errors here are for what befell the backend.
"""

import queue
from collections.abc import Iterable
from typing import Any

from taskback._public import lives_in


@lives_in("taskback")
class TaskbackError(Exception):
    """The base of all errors that taskback raises."""


@lives_in("taskback")
class TaskCancelled(BaseException):
    """Raised inside a handler to stop it.

    A `BaseException`, so that `except Exception` in a handler does not swallow it. It is raised at the next
    bytecode of a running sync handler, and by `current_task().raise_if_cancelled()`.
    """


@lives_in("taskback")
class BackendClosedError(TaskbackError, RuntimeError):
    """The backend was shut down, or is being shut down, and takes no task."""

    def __init__(self, backend: str, state: str) -> None:
        super().__init__(f"{backend} takes no tasks: it is {state}; initialize it again to go on")
        self.backend = backend
        self.state = state

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.backend, self.state)


@lives_in("taskback")
class NoHandlerError(TaskbackError, RuntimeError):
    """A task came before there was a handler."""

    def __init__(self, backend: str, task_type: str | None) -> None:
        super().__init__(f"{backend} has no handler for a task of type {task_type!r}; call set_handler first")
        self.backend = backend
        self.task_type = task_type

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.backend, self.task_type)


@lives_in("taskback")
class UnknownTaskTypeError(TaskbackError, LookupError):
    """The router has no handler for the task's type and no fallback."""

    def __init__(self, task_type: str | None, known: Iterable[str]) -> None:
        self.task_type = task_type
        self.known = tuple(sorted(known))
        super().__init__(f"no handler for task type {task_type!r}; known types: {', '.join(self.known) or 'none'}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.task_type, self.known)


@lives_in("taskback")
class UnknownTaskError(TaskbackError, LookupError):
    """No task of this id is in flight, nor among the ended ones that are kept."""

    def __init__(self, task_id: str, kept: int) -> None:
        super().__init__(f"no task {task_id!r} in flight, nor among the last {kept} that ended (keep_ended={kept})")
        self.task_id = task_id
        self.kept = kept

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.task_id, self.kept)


@lives_in("taskback")
class UnsupportedOptionError(TaskbackError, ValueError):
    """This backend cannot keep an option of the submission."""

    def __init__(self, backend: str, option: str, why: str) -> None:
        super().__init__(f"{backend} cannot keep {option}: {why}")
        self.backend = backend
        self.option = option
        self.why = why

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.backend, self.option, self.why)


@lives_in("taskback")
class NotSerializableError(TaskbackError, TypeError):
    """Something that must cross to a process cannot be pickled; `path` says which part of it."""

    what = "value"

    def __init__(self, path: str, type_name: str, why: str) -> None:
        super().__init__(f"{self.what} cannot cross to a process: {path} is a {type_name} ({why})")
        self.path = path
        self.type_name = type_name
        self.why = why

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.type_name, self.why)


@lives_in("taskback")
class TaskNotSerializableError(NotSerializableError):
    """The task cannot be pickled. Raised by submit; nothing was accepted."""

    what = "task"


@lives_in("taskback")
class HandlerNotSerializableError(NotSerializableError):
    """The handler, or what it drags along by value, cannot be pickled. Raised by set_handler."""

    what = "handler"


@lives_in("taskback")
class ResultNotSerializableError(NotSerializableError):
    """The handler's result cannot be pickled, or not be rebuilt in the parent. Fails its own task alone."""

    what = "result"


@lives_in("taskback")
class ProgressNotSerializableError(NotSerializableError):
    """What a handler reported cannot be pickled. Raised by report, in the handler."""

    what = "progress"


@lives_in("taskback")
class RemoteTraceback(TaskbackError):
    """The traceback of a worker, as text: the cause of an exception that was raised there."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text.rstrip()}"


@lives_in("taskback")
class RemoteError(TaskbackError, RuntimeError):
    """Stands for an exception of a worker that could not be rebuilt here."""

    def __init__(self, type_name: str, text: str, traceback: str) -> None:
        super().__init__(f"{type_name}: {text}" if text else type_name)
        self.type_name = type_name
        self.text = text
        self.traceback = traceback

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.type_name, self.text, self.traceback)


@lives_in("taskback")
class QueueFullError(TaskbackError, queue.Full):
    """The backend's queue is full, and the task was not taken."""

    def __init__(self, backend: str, why: str) -> None:
        super().__init__(f"{backend} does not take the task: its queue is full; {why}")
        self.backend = backend
        self.why = why

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.backend, self.why)


@lives_in("taskback")
class ShedError(TaskbackError, RuntimeError):
    """The task was dropped for another one, since the queue was full. The cause of its `CancelledError`."""

    def __init__(self, task_id: str, backend: str) -> None:
        super().__init__(f"task {task_id} was dropped for another one, since the queue of {backend} was full")
        self.task_id = task_id
        self.backend = backend

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.task_id, self.backend)


@lives_in("taskback")
class TaskTimeoutError(TaskbackError, TimeoutError):
    """The task's time was up.

    `limit` says which of its times: "timeout", "idle_timeout" or "queue_timeout"; `timeout` is how many seconds that
    was. `ran` is how long the task ran, or waited where `limit` is "queue_timeout". `stage` is what it last reported,
    `stack` what it was doing when it was stopped, where the backend can tell (`promises.stacks`).
    """

    def __init__(
        self,
        task_id: str,
        timeout: float,
        ran: float,
        stack: str | None = None,
        limit: str = "timeout",
        stage: str | None = None,
    ) -> None:
        self.task_id = task_id
        self.timeout = timeout
        self.ran = ran
        self.stack = stack
        self.limit = limit
        self.stage = stage
        super().__init__(self._text())

    def _text(self) -> str:
        if self.limit == "queue_timeout":
            return f"task {self.task_id} exceeded its queue_timeout of {self.timeout:g} s (waited for {self.ran:.3f} s)"
        stage = "" if self.stage is None else f", last in stage {self.stage!r}"
        ran = f"(ran for {self.ran:.3f} s{stage})"
        if self.limit == "idle_timeout":
            return f"task {self.task_id} reported nothing for its idle_timeout of {self.timeout:g} s {ran}"
        return f"task {self.task_id} exceeded its time limit of {self.timeout:g} s {ran}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.task_id, self.timeout, self.ran, self.stack, self.limit, self.stage)


@lives_in("taskback")
class TaskAbandonedError(TaskbackError, RuntimeError):
    """The task was told to stop and did not; its thread cannot be killed and may still run."""

    def __init__(self, task_id: str, grace: float, why: str) -> None:
        super().__init__(f"task {task_id} did not stop within {grace:g} s after its {why} and was abandoned")
        self.task_id = task_id
        self.grace = grace
        self.why = why

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.task_id, self.grace, self.why)


@lives_in("taskback")
class ForeignHandleError(TaskbackError, RuntimeError):
    """The handle, or a pool's future, belongs to the process that this one was forked from; here it will never end.

    Attributes:
        task_id (str | None): The task; None for a call of a pool.
        pid (int): That process.
    """

    def __init__(self, task_id: str | None, pid: int) -> None:
        what = "future of a call" if task_id is None else f"handle of task {task_id}"
        super().__init__(f"the {what} belongs to process {pid}, not to this fork of it")
        self.task_id = task_id
        self.pid = pid

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.task_id, self.pid)


@lives_in("taskback")
class JournalError(TaskbackError, OSError):
    """The journal of a `DurableTaskBackend` cannot be opened, read or written; nothing in it was thrown away."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"journal {path}: {why}")
        self.path = path
        self.why = why

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.why)


@lives_in("taskback")
class JournalHeldError(JournalError):
    """Another backend has the journal open, in this process or in another one."""

    def __init__(self, path: str, pid: int | None) -> None:
        holder = "another process" if pid is None else f"process {pid}"
        super().__init__(path, f"{holder} has it open; one at a time may")
        self.pid = pid

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.pid)
