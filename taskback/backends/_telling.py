"""What a backend says of its runs in the log, and how it knows what user code its threads are in.

Threads: any.
Locks: none; nothing here is called under one, for a log is user code.
"""

import logging
import threading

from taskback import _clock
from taskback._call import Outcome
from taskback._errors import NoHandlerError
from taskback._run import Run
from taskback._state import TaskState
from taskback.pools.lane import Lane
from taskback.scheduler.attempts import Verdict
from taskback.scheduler.entry import Place

logger = logging.getLogger(__name__)


class UserCodeMark:
    """Notes that a thread is in user code, while it is."""

    __slots__ = ("_thread", "_what", "_where")

    def __init__(self, where: dict[int, tuple[str, str]], what: tuple[str, str]) -> None:
        self._where = where
        self._what = what
        self._thread = threading.get_ident()

    def __enter__(self) -> None:
        self._where[self._thread] = self._what

    def __exit__(self, *exc_info: object) -> None:
        self._where.pop(self._thread, None)


def stack_of(run: Run) -> str:
    """Where a run's handler is; empty if it is not under way, or nobody can tell."""
    lane: Lane | None = run.lane
    return "" if lane is None else lane.stack(run)


def log_end(run: Run) -> None:
    """Tell of a bad end once; the handle tells the rest."""
    outcome = run.outcome
    assert outcome is not None
    if outcome.error is None:
        return
    traces = outcome.state is TaskState.FAILED and not isinstance(outcome.error, NoHandlerError)
    logger.warning(
        "task %s of type %r %s: %s: %s",
        run.id,
        run.type,
        outcome.state.value.replace("_", " "),
        *run.told[:2],
        exc_info=outcome.error if traces else None,
    )


def log_attempt(run: Run, outcome: Outcome, verdict: Verdict) -> None:
    """Tell of an attempt that was not the last."""
    seconds = max(0.0, verdict.at - _clock.monotonic())
    if verdict.again is Place.DEFER:
        logger.debug("task %s of type %r has put itself off for %.3g s", run.id, run.type, seconds)
        return
    past = run.past[-1]
    logger.warning(
        "attempt %d of task %s of type %r %s, the next one comes in %.3g s: %s: %s",
        *(past.number, run.id, run.type, outcome.state.value, seconds, past.error_type, past.error_text),
    )
