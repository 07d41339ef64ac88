"""A shutdown: drain, then cancel, then kill, then clear up, each until its deadline.

Threads: start() and what it leads to on the keeper's; hurry() on any, and in a signal handler; note() on whichever
ends a run.
Locks: note() is called under the ledger's lock; hurry() takes none. _report_lock is a leaf but for the unpickling of
tasks, which is why only callers of shutdown take it.
Holds: `done` is set, whatever happens, at most grace + `settle` after the drain's deadline. A thread of ours that only
user code can hold (a listener, a callback, a handler that was given up) is waited for until USER_CODE after the grace,
so that of the second that `shutdown` may take beside it about a half is left for a system that is busy.
"""

import asyncio
import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, Protocol

from taskback import _clock
from taskback._call import Outcome
from taskback._courier import Courier
from taskback._events import Listeners
from taskback._handle import TaskHandle
from taskback._keeper import LoopThread
from taskback._report import ShutdownReport
from taskback._run import SHUTDOWN, Run
from taskback._state import BackendState, TaskState
from taskback._task import Task
from taskback.backends._ledger import Ledger
from taskback.backends._stopping import Stopping
from taskback.pools.lane import Lane

logger = logging.getLogger(__name__)

USER_CODE: Final = 0.4  # seconds after the grace that a thread which user code holds is waited for
TURN: Final = 0.05  # seconds that such a thread gets in any case: it may have nothing to do but end


class Closable(Protocol):
    """The backend, as its closing sees it."""

    keeper: LoopThread
    _name: str
    _callbacks: Courier
    _listeners: Listeners
    _idle: list[Lane]

    def _move(self, state: BackendState) -> None: ...

    def _nothing_will_start(self) -> None: ...

    async def _close_lanes(self, soft: float, hard: float) -> tuple[list[int], list[str]]: ...

    def held_by_user_code(self) -> dict[str, str]:
        """By name the threads of ours that are in user code, and in which."""
        ...

    def ended(self, run: Run, outcome: Outcome) -> None:
        """The run is over; the first to say so wins."""
        ...


class Closing:
    """See the top of the file.

    Args:
        backend (Closable): What is shut down.
        ledger (Ledger): Its tasks.
        stopping (Stopping): Tells tasks to stop; its grace is the shutdown's, and the end of the program shortens it.
        settle (float): Seconds for what comes after the grace: killing, and clearing up.
    """

    def __init__(self, backend: Closable, ledger: Ledger, stopping: Stopping, settle: float) -> None:
        self.done: Future[ShutdownReport] = Future()
        self.thread: threading.Thread | None = None
        self._backend = backend
        self._ledger = ledger
        self._keeper = backend.keeper
        self._stopping = stopping
        self._settle = settle
        self._begun = _clock.monotonic()
        self._deadlines: list[float] = []  # appended to without a lock; the earliest counts
        self._changed = asyncio.Event()
        self._report = ShutdownReport()
        self._report_lock = threading.Lock()
        self._stopped: dict[Run, None] = {}  # what this shutdown stopped, in order
        self._task: asyncio.Task[None] | None = None

    def hurry(self, until: float) -> None:
        """Drain until `until` at the latest."""
        self._deadlines.append(until)
        self._keeper.call(self._changed.set)

    def shorten(self, seconds: float) -> None:
        """The program ends: what comes after the grace may take `seconds`."""
        self._settle = min(self._settle, seconds)
        self.hurry(_clock.monotonic())

    def note(self, run: Run, handles: list[TaskHandle]) -> None:
        """A run has ended. Under the ledger's lock."""
        report = self._report
        if run.state is TaskState.SUCCEEDED:
            report.succeeded += handles
        elif run.state is TaskState.ABANDONED:
            report.abandoned += handles
        elif run.state is not TaskState.CANCELLED:
            report.failed += handles
        elif run.started_ns is None and not run.tried:
            report.never_started += handles
        elif run.killed:
            report.killed += handles
        else:
            report.cancelled += handles

    def start(self, deadline: float) -> None:
        """Begin; on the keeper's thread."""
        self._deadlines.append(deadline)
        self._task = asyncio.get_running_loop().create_task(self._close())

    async def _close(self) -> None:
        try:
            await self._steps()
        except BaseException:
            logger.error("the shutdown of %r failed", self._backend, exc_info=True)
        finally:
            self._finish()

    async def _steps(self) -> None:
        self._ledger.on_empty.append(self._wake)
        await self._until_empty(lambda: min(self._deadlines))
        told = _clock.monotonic()
        if self._ledger.runs:
            self._stop_all()
            await self._until_empty(lambda: told + self._stopping.grace)  # the end of the program may shorten it
            self._force_all()
        soft = told + self._stopping.grace
        hard = _clock.monotonic() + self._settle if self._ledger.runs else soft + self._settle
        await self._until_empty(lambda: hard - 0.1)
        dying, stuck = await self._backend._close_lanes(soft, hard)
        self._end_what_is_left()
        for name, courier in (("callbacks", self._backend._callbacks), ("listeners", self._backend._listeners)):
            if not courier.stop(until_user_code_ends(soft, hard)):
                stuck.append(f"{self._backend._name}-{name}")
        held = self._backend.held_by_user_code()
        self._report.dying = dying
        self._report.stuck = [name for name in stuck if name not in held]
        self._report.stuck += [f"{name}: {what}" for name, what in held.items()]

    def _wake(self) -> None:
        self._keeper.call(self._changed.set)

    async def _until_empty(self, until: Callable[[], float]) -> None:
        """Wait until nothing is in flight, or the deadline, which a hurry may bring forward meanwhile."""
        while True:
            self._changed.clear()
            # Race: the last run ended, or a hurry came, before clear(). Then what is looked at now tells.
            if not self._ledger.runs or _clock.monotonic() >= until():
                return
            deadline = until()
            try:
                async with asyncio.timeout_at(None if deadline == float("inf") else deadline):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def _stop_all(self) -> None:
        """Cancel what is queued, and tell what runs to stop."""
        backend, ledger = self._backend, self._ledger
        with ledger.lock:
            backend._move(BackendState.STOPPING)
            runs = sorted(ledger.runs.values(), key=lambda run: run.sequence)
            running = []
            for run in runs:
                if run.stop is None:
                    run.stop, run.struck = TaskState.CANCELLED, SHUTDOWN
                    self._stopped[run] = None
                    if run.lane is not None:
                        running.append(run)
        for run in running:
            self._stopping.stop(run)
        for run in runs:
            if run.lane is None:
                backend.ended(run, Outcome(TaskState.CANCELLED))
        backend._nothing_will_start()

    def _force_all(self) -> None:
        for run in list(self._ledger.runs.values()):
            lane = run.lane
            if lane is not None:
                self._ledger.refresh(run)  # a lane may hear of the death too late to tell the report that it had begun
                lane.force(run)

    def _end_what_is_left(self) -> None:
        """What has no process or thread to wait for any more, and still no outcome."""
        for run in list(self._ledger.runs.values()):
            if run.killed:
                self._backend.ended(run, Outcome(TaskState.CANCELLED))
            else:
                error = RuntimeError(f"the backend was shut down while the result of task {run.id} was being rebuilt")
                run.stop = None
                self._backend.ended(run, Outcome(TaskState.FAILED, error=error))

    def _finish(self) -> None:
        """Whatever came before: the backend is stopped, and whoever waits is told."""
        backend = self._backend
        self._report.seconds = _clock.monotonic() - self._begun
        with self._ledger.lock:
            backend._idle.clear()
            backend._move(BackendState.STOPPED)
        self.thread = self._keeper.stop()
        self.done.set_result(self._report)

    def full_report(self) -> ShutdownReport:
        """The report with the unfinished tasks, which are rebuilt by its first reader."""
        with self._report_lock:
            if self._stopped:
                self._report.unfinished = [task for run in self._stopped for task in _unfinished(run)]
                self._stopped.clear()
            return self._report


def until_user_code_ends(soft: float, hard: float) -> float:
    """The deadline of a thread that user code may hold, given when the grace is over and when all is."""
    return max(min(hard, soft + USER_CODE), _clock.monotonic() + TURN)


def _unfinished(run: Run) -> list[Task]:
    try:
        return run.unfinished()
    except Exception:  # a task that unpickles in a worker alone
        logger.error("task %s cannot be rebuilt for the shutdown's report", run.id, exc_info=True)
        return []
