"""Background work for Python services: start it, see it, stop it and shut it down, for certain.

A `TaskBackend` takes tasks, plain dicts, and has one handler run them: inline, as asyncio tasks, in threads, in
processes. Callers do not change with the backend.
"""

import logging
from types import FunctionType

from taskback._again import Defer, Retry
from taskback._backend import TaskBackend, get_default_task_backend, set_default_task_backend
from taskback._context import add_context
from taskback._errors import (
    BackendClosedError,
    ForeignHandleError,
    HandlerNotSerializableError,
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
    WorkerDiedError,
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
from taskback._promises import Promises
from taskback._report import BackendStats, ShutdownReport, TypeStats, WorkerStats
from taskback._router import Policy, TaskRouter
from taskback._run import Attempt
from taskback._state import BackendState, TaskState
from taskback._task import CurrentTask, Progress, current_task
from taskback.backends.asyncio_tasks import AsyncFireAndTrackBackend
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
    "Event",
    "ExecutorTaskBackend",
    "ForeignHandleError",
    "HandlerNotSerializableError",
    "NoHandlerError",
    "NotSerializableError",
    "Policy",
    "ProcessPoolTaskBackend",
    "Progress",
    "ProgressNotSerializableError",
    "Promises",
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

for _name in __all__:  # errors and pickles name taskback.X, so private files can move
    if isinstance(globals()[_name], (type, FunctionType)):
        globals()[_name].__module__ = __name__

logging.getLogger(__name__).addHandler(logging.NullHandler())
