"""What the main thread is told of: by the feed, by the threads that end tasks, by signal handlers.

All of it goes through one `queue.SimpleQueue`, whose put() may interrupt itself: signal handlers use it too.
"""

import queue
from dataclasses import dataclass

from taskback import TaskHandle
from taskback.cli.source import Source


@dataclass(frozen=True, slots=True)
class Ended:
    """A task has reached its outcome."""

    source: Source
    handle: TaskHandle


@dataclass(frozen=True, slots=True)
class Refused:
    """A line is no task, or the backend did not take it."""

    source: Source
    error: Exception


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """A line was in the window when the backend closed; it was not run."""

    source: Source


@dataclass(frozen=True, slots=True)
class InputOver:
    """The feed has ended: `complete` if it read to the end of the input, otherwise told to, or by an error."""

    complete: bool
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Interrupted:
    """A signal came."""


Message = Ended | Refused | Withdrawn | InputOver | Interrupted
Messages = queue.SimpleQueue[Message | None]  # None only wakes the main thread
