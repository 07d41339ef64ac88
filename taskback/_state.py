"""The states of a task, and of a backend, each with its table of moves."""

import enum
from typing import Final

from taskback._public import lives_in


@lives_in("taskback")
class TaskState(enum.Enum):
    """Where a task is.

    Attributes:
        final (bool): Whether the task is over: True for the last six, which a task never leaves.
    """

    final: bool
    _value_: str

    QUEUED = "queued"  # waits for a worker
    RUNNING = "running"  # its handler has been called
    SUCCEEDED = "succeeded"  # the handler returned
    FAILED = "failed"  # the handler raised, or there was none
    TIMED_OUT = "timed_out"  # its time was up and the work has been stopped
    CANCELLED = "cancelled"  # cancelled, and the work has been stopped
    LOST = "lost"  # its worker died
    ABANDONED = "abandoned"  # told to stop, did not, and cannot be killed

    # A member is hashed some twenty times a task, and the one of Enum is written in Python.
    __hash__ = object.__hash__

    def __init__(self, value: str) -> None:
        self.final = value not in ("queued", "running")


TASK_MOVES: Final = {
    TaskState.QUEUED: {
        *(TaskState.RUNNING, TaskState.FAILED, TaskState.CANCELLED, TaskState.LOST),
        TaskState.TIMED_OUT,  # its time for waiting was up
    },
    TaskState.RUNNING: {
        TaskState.QUEUED,  # to be tried again, or put off
        *(state for state in TaskState if state.final),
    },
    **{state: set[TaskState]() for state in TaskState if state.final},
}


@lives_in("taskback")
class BackendState(enum.Enum):
    """Where a backend is."""

    NEW = "new"  # never initialized
    RUNNING = "running"  # takes tasks
    DRAINING = "draining"  # refuses tasks, waits for those in flight
    STOPPING = "stopping"  # the deadline has passed: cancels, then kills
    STOPPED = "stopped"  # no thread or process of ours is left


BACKEND_MOVES: Final = {
    BackendState.NEW: {BackendState.RUNNING, BackendState.STOPPED},
    BackendState.RUNNING: {BackendState.DRAINING},
    BackendState.DRAINING: {BackendState.STOPPING, BackendState.STOPPED},
    BackendState.STOPPING: {BackendState.STOPPED},
    BackendState.STOPPED: {BackendState.RUNNING},  # a closed backend can be initialized again
}
