"""Background work for Python services: start it, see it, stop it and shut it down, for certain.

A `TaskBackend` takes tasks, plain dicts, and has one handler run them: inline, as asyncio tasks, in threads, in
processes. Callers do not change with the backend.
"""

import logging
import typing

from taskback import _public

if typing.TYPE_CHECKING:  # the same names for those who read and do not run; a test compares the two
    from taskback._again import Defer, Retry
    from taskback._backend import TaskBackend
    from taskback._context import add_context
    from taskback._errors import (
        BackendClosedError,
        ForeignHandleError,
        HandlerNotSerializableError,
        JournalError,
        JournalHeldError,
        NoHandlerError,
        NotSerializableError,
        ProgressNotSerializableError,
        QueueFullError,
        RemoteError,
        RemoteTraceback,
        ResultNotSerializableError,
        ShedError,
        TaskAbandonedError,
        TaskbackError,
        TaskCancelled,
        TaskNotSerializableError,
        TaskTimeoutError,
        UnknownTaskError,
        UnknownTaskTypeError,
        UnsupportedOptionError,
    )
    from taskback._events import (
        Event,
        TaskEvent,
        TaskFinished,
        TaskProgress,
        TaskQueued,
        TaskRetrying,
        TaskStarted,
        TaskStuck,
        WorkerDied,
        WorkerStarted,
    )
    from taskback._handle import TaskHandle
    from taskback._log_filter import TaskLogFilter
    from taskback._progress import Progress
    from taskback._promises import Promises
    from taskback._report import BackendStats, ShutdownReport, TypeStats, WorkerStats
    from taskback._router import Policy, TaskRouter
    from taskback._run import Attempt
    from taskback._state import BackendState, TaskState
    from taskback._task import CurrentTask, current_task
    from taskback._worker_died import WorkerDiedError
    from taskback.backends.asyncio_tasks import AsyncFireAndTrackBackend
    from taskback.backends.default import get_default_task_backend, set_default_task_backend
    from taskback.backends.durable import DurableTaskBackend, QuarantinedTask
    from taskback.backends.executor import ExecutorTaskBackend
    from taskback.backends.inline import SyncTaskBackend
    from taskback.backends.process import ProcessPoolTaskBackend
    from taskback.backends.thread import ThreadPoolTaskBackend
    from taskback.scheduler.backoff import Backoff

__version__ = "0.1.0"

__all__ = [
    "AsyncFireAndTrackBackend",
    "Attempt",
    "BackendClosedError",
    "BackendState",
    "BackendStats",
    "Backoff",
    "CurrentTask",
    "Defer",
    "DurableTaskBackend",
    "Event",
    "ExecutorTaskBackend",
    "ForeignHandleError",
    "HandlerNotSerializableError",
    "JournalError",
    "JournalHeldError",
    "NoHandlerError",
    "NotSerializableError",
    "Policy",
    "ProcessPoolTaskBackend",
    "Progress",
    "ProgressNotSerializableError",
    "Promises",
    "QuarantinedTask",
    "QueueFullError",
    "RemoteError",
    "RemoteTraceback",
    "ResultNotSerializableError",
    "Retry",
    "ShedError",
    "ShutdownReport",
    "SyncTaskBackend",
    "TaskAbandonedError",
    "TaskBackend",
    "TaskCancelled",
    "TaskEvent",
    "TaskFinished",
    "TaskHandle",
    "TaskLogFilter",
    "TaskNotSerializableError",
    "TaskProgress",
    "TaskQueued",
    "TaskRetrying",
    "TaskRouter",
    "TaskStarted",
    "TaskState",
    "TaskStuck",
    "TaskTimeoutError",
    "TaskbackError",
    "ThreadPoolTaskBackend",
    "TypeStats",
    "UnknownTaskError",
    "UnknownTaskTypeError",
    "UnsupportedOptionError",
    "WorkerDied",
    "WorkerDiedError",
    "WorkerStarted",
    "WorkerStats",
    "add_context",
    "current_task",
    "get_default_task_backend",
    "set_default_task_backend",
]

__getattr__ = _public.finder(
    __name__,
    {
        "_again": ("Defer", "Retry"),
        "_backend": ("TaskBackend",),
        "_context": ("add_context",),
        "_errors": (
            "BackendClosedError",
            "ForeignHandleError",
            "HandlerNotSerializableError",
            "JournalError",
            "JournalHeldError",
            "NoHandlerError",
            "NotSerializableError",
            "ProgressNotSerializableError",
            "QueueFullError",
            "RemoteError",
            "RemoteTraceback",
            "ResultNotSerializableError",
            "ShedError",
            "TaskAbandonedError",
            "TaskbackError",
            "TaskCancelled",
            "TaskNotSerializableError",
            "TaskTimeoutError",
            "UnknownTaskError",
            "UnknownTaskTypeError",
            "UnsupportedOptionError",
        ),
        "_events": (
            "Event",
            "TaskEvent",
            "TaskFinished",
            "TaskProgress",
            "TaskQueued",
            "TaskRetrying",
            "TaskStarted",
            "TaskStuck",
            "WorkerDied",
            "WorkerStarted",
        ),
        "_handle": ("TaskHandle",),
        "_log_filter": ("TaskLogFilter",),
        "_progress": ("Progress",),
        "_promises": ("Promises",),
        "_report": ("BackendStats", "ShutdownReport", "TypeStats", "WorkerStats"),
        "_router": ("Policy", "TaskRouter"),
        "_run": ("Attempt",),
        "_state": ("BackendState", "TaskState"),
        "_task": ("CurrentTask", "current_task"),
        "_worker_died": ("WorkerDiedError",),
        "backends.asyncio_tasks": ("AsyncFireAndTrackBackend",),
        "backends.default": ("get_default_task_backend", "set_default_task_backend"),
        "backends.durable": ("DurableTaskBackend", "QuarantinedTask"),
        "backends.executor": ("ExecutorTaskBackend",),
        "backends.inline": ("SyncTaskBackend",),
        "backends.process": ("ProcessPoolTaskBackend",),
        "backends.thread": ("ThreadPoolTaskBackend",),
        "scheduler.backoff": ("Backoff",),
    },
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


logging.getLogger(__name__).addHandler(logging.NullHandler())
