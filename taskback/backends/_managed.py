"""What all backends of ours share: passing tasks to lanes, stopping them, and the end. `_submitting` takes them.

Threads: submit, cancel, shutdown on any; lanes call back on theirs; limits and the shutdown run on the keeper's.
Locks: _open_lock is held while the backend starts; of the program's only what makes a pool, and what pickles a handler,
runs under it. Below it comes the ledger's lock (see there), which also guards _state, _idle and which lane has which
run. Decide under it, act outside.
Holds: a run is handed to one lane at a time. Every run that is handed over comes to `ended` or to `come_back`.

Lanes with a worker process take runs themselves (`next_run`), and only a lane that found none is in _idle; the others
are in _idle whenever they have no run. Whoever brings a run hands it to an idle lane.

Race: cancel and start. cancel() sets `stop` under the ledger's lock; a lane asks may_start() under it, just before it
calls the handler. Whichever comes second sees the other: the run never starts, or it is interrupted. An interruption
that comes before the handler's first bytecode is kept by the call and raised there.
"""

import asyncio
import contextvars
import logging
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from taskback import _clock, _codec, _forks, _role
from taskback._backend import tell_at_the_end
from taskback._call import AsyncCall, Call, Handler, Outcome
from taskback._context import restores
from taskback._courier import Courier
from taskback._errors import (
    BackendClosedError,
    TaskAbandonedError,
)
from taskback._events import Listeners, TaskStuck, WorkerDied, WorkerStarted
from taskback._give_way import give_way
from taskback._handle import TaskHandle
from taskback._keeper import LoopThread, join
from taskback._loops import call_in
from taskback._options import checked_count
from taskback._progress import Progress
from taskback._report import BackendStats, ShutdownReport, WorkerStats
from taskback._router import NO_POLICY, TaskRouter
from taskback._run import SHUTDOWN, End, Run
from taskback._state import BACKEND_MOVES, BackendState, TaskState
from taskback._task import CurrentTask
from taskback.backends._alarm import Alarm
from taskback.backends._closing import Closing
from taskback.backends._ledger import Ledger, facts_of
from taskback.backends._packing import HandlerPacker
from taskback.backends._stopping import Stopping
from taskback.backends._submitting import SubmittingBackend
from taskback.backends._telling import UserCodeMark, log_attempt, log_end, stack_of
from taskback.backends._warming import Warming
from taskback.backends._watch import Watch
from taskback.pools import _os
from taskback.pools.lane import Lane
from taskback.scheduler.attempts import Verdict
from taskback.scheduler.pressure import Limits
from taskback.scheduler.rules import check_floors

logger = logging.getLogger(__name__)

MAY_START = (BackendState.RUNNING, BackendState.DRAINING)  # tasks, in a backend of that state
MAX_ABANDONED = 4  # threads given up that are replaced; beyond that tasks wait for one of them to end


class ManagedBackend(SubmittingBackend):
    """See the top of the file. Subclasses say what lanes there are.

    Args:
        handler (Callable[[dict], Any] | None): Sync or async; None leaves it to `set_handler`.
        timeout (float | None): Seconds that a task may run, where neither its type nor its submission says so.
        shutdown_timeout_seconds (float): How long `shutdown` drains if it is not told.
        cancel_grace_seconds (float): How long a task that is told to stop may take.
        exit_grace_seconds (float): How long all that may take at the end of a program that did not shut down.
        keep_ended (int): How many ended tasks `handle` still finds; their results stay in memory.
        stuck_after_seconds (float | None): A task that runs for so long without a `report()` is told, with its stack:
            in the log and as a `TaskStuck`. None tells of none.
        max_queued (int | None): Tasks that may wait for a worker; None sets no limit.
        max_queued_bytes (int | None): Bytes that those may be pickled to; None sets no limit.
        when_full (str): What becomes of a submission beyond that: "wait" has it wait for room, "reject" raises
            `QueueFullError`, "shed" drops the oldest task of the lowest priority for it.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument makes no sense.
    """

    _max_workers: int | None = None  # how many tasks may run at a time, where that is known

    def __init__(
        self,
        handler: Handler | None = None,
        *,
        timeout: float | None = None,
        shutdown_timeout_seconds: float = 20.0,
        cancel_grace_seconds: float = 2.0,
        exit_grace_seconds: float = 2.0,
        keep_ended: int = 0,
        stuck_after_seconds: float | None = None,
        max_queued: int | None = None,
        max_queued_bytes: int | None = None,
        when_full: str = "wait",
    ) -> None:
        self._limits = Limits(max_queued, max_queued_bytes, when_full)
        if max_queued_bytes is not None and not self.crosses:
            raise ValueError(
                "max_queued_bytes needs a backend that pickles its tasks; this one does not know their size"
            )
        self._stuck_after = _clock.checked_limit("stuck_after_seconds", stuck_after_seconds)
        self._timeout = _clock.checked_limit("timeout", timeout)
        self._shutdown_timeout = _clock.checked_seconds("shutdown_timeout_seconds", shutdown_timeout_seconds)
        self._cancel_grace = _clock.checked_seconds("cancel_grace_seconds", cancel_grace_seconds)
        self._exit_grace = _clock.checked_seconds("exit_grace_seconds", exit_grace_seconds)
        self._keep_ended = checked_count("keep_ended", keep_ended, least=0)
        self._name = type(self).__name__
        self._listeners = Listeners(self._name)
        self._packer = HandlerPacker()
        self._inherited: list[object] = []  # a fork's: the parent's, kept so that nothing of it is finalized here
        self._start_afresh()
        if handler is not None:
            self.set_handler(handler)

    def _start_afresh(self) -> None:
        self._state = BackendState.NEW
        self._initialized = False
        self._open_lock = threading.Lock()
        self._ledger = Ledger(self._listeners, self._keep_ended, self._limits)
        self.keeper = LoopThread(f"{self._name}-keeper")
        self._stopping = Stopping(self._ledger, self.keeper, self._cancel_grace)
        self._callbacks = Courier(f"{self._name}-callbacks")
        self._alarm = Alarm(self.keeper, self._time_has_come)
        self._watch: Watch | None = None
        if self._stuck_after is not None:
            watched = (self._lanes, self._ledger.refresh, self._tell_stuck)
            self._watch = Watch(self._stuck_after, *watched, self.keeper, self._callbacks)
        self._closing: Closing | None = None
        self._warming: Warming | None = None  # of this life, where its workers are started before the first task
        self._idle: list[Lane] = []
        self._in_user_code: dict[int, tuple[str, str]] = {}  # by thread: what it does, of which task

    # --- what subclasses say ---

    def _open(self) -> None:
        """Get lanes ready. Under _open_lock."""

    def _has_lane(self) -> bool:
        """Whether a run could be handed over now. Under the ledger's lock."""
        return bool(self._idle)

    def _somebody_is_free(self) -> bool:
        return self._has_lane()

    def _take_lane(self, run: Run) -> Lane:
        """The lane that a run is handed to. Under the ledger's lock."""
        return self._idle.pop()

    def _lanes_wanted(self) -> None:
        """Tasks wait and no lane is idle. Under the ledger's lock."""

    def _give_up(self, lane: Lane) -> None:
        """A lane's thread is given up; maybe another takes its place. Under the ledger's lock."""

    def _lane_freed(self, lane: Lane) -> bool:
        """A lane has nothing to do; False if it is not to be used again. Under the ledger's lock."""
        return True

    def _lanes(self) -> list[Lane]:
        """The lanes that are workers, for `stats`."""
        return []

    def _nothing_will_start(self) -> None:
        """A shutdown has cancelled what was queued; on the keeper's thread."""

    async def _close_lanes(self, soft: float, hard: float) -> tuple[list[int], list[str]]:
        """End the workers: kindly until `soft`, by force then, waiting until `hard`. On the keeper's thread.

        Gives the pids that the kernel has not finished with, and the threads that could not be joined.
        """
        return [], []

    def _close_at_exit(self) -> None:
        """The program ends and no thread can be started any more."""

    # --- the handler ---

    def set_handler(self, handler: Handler) -> None:
        if not callable(handler):
            raise TypeError(f"a handler must be callable, not a {type(handler).__name__}")
        if self.crosses:
            self._packer.check(handler)
        self._check_floors(handler)
        self._executor = handler

    def _check_floors(self, handler: Handler | None) -> None:
        """Refuse policies that cannot be kept with the workers that there are."""
        if self._max_workers is not None and isinstance(handler, TaskRouter):
            check_floors(handler.policies, self._max_workers)

    def handler_bytes(self) -> tuple[tuple[str, int], bytes | None]:
        """The handler and what restores context, for a process: a key that changes with them, and their bytes."""
        return self._packer.pack(self._executor)

    def make_call(self, run: Run) -> Call:
        """The call of a run's handler in this process."""
        assert self._executor is not None
        return Call(
            self._executor,
            run.task(),
            self._current(run),
            restores(),
            run.context,
            contextvars.Context() if run.variables is None else run.variables.copy(),  # as it was, for each attempt
        )

    def make_async_call(self, run: Run) -> AsyncCall:
        """The call of a run's handler as a task of an event loop."""
        assert self._executor is not None
        return AsyncCall(self._executor, run.task(), self._current(run), restores(), run.context)

    def _current(self, run: Run) -> CurrentTask:
        deadline = None if run.timeout is None else _clock.monotonic() + run.timeout
        return CurrentTask(run.id, run.type, run.attempt, deadline, lambda progress: self.progressed(run, progress))

    # --- start ---

    async def initialize(self, *, warm: bool = True, timeout: float | None = 60.0) -> None:
        """Get ready to take tasks. A second call does nothing; after `shutdown` it starts afresh.

        Args:
            warm (bool): Whether worker processes are started now, in parallel, and waited for until each has loaded
                the handler: what that raises, this raises. (A handler that is set later is loaded with the first
                task.) False has them started by the first task. Other backends need no warming.
            timeout (float | None): Seconds that this may take; None sets no bound.

        Raises:
            BackendClosedError: The backend is being shut down.
            RuntimeError: Called while a worker imports its handler or the main script.
            TimeoutError: The workers were not ready in time.
            WorkerDiedError: No worker could be started.
            BaseException: What loading the handler raised in a worker, with the worker's traceback as its cause.
                After this, or if it is cancelled, the backend is shut down, and can be initialized again.
        """
        deadline = _clock.deadline_after(timeout)
        warming = self._begin(warm)
        if warming is None:
            return
        try:
            async with asyncio.timeout_at(None if timeout is None else deadline):
                await asyncio.shield(asyncio.wrap_future(warming.done))
        except BaseException as error:
            if isinstance(error, TimeoutError) and warming.succeeded:  # just in time
                return
            late = isinstance(error, TimeoutError) and not warming.done.done()
            closing = self._give_up_start(warming)
            if closing is not None:
                await asyncio.shield(asyncio.wrap_future(closing.done))
                self._reported(closing)
            if late:
                raise self._too_late(timeout) from None
            raise

    def initialize_sync(self, *, warm: bool = True, timeout: float | None = 60.0) -> None:
        """`initialize`, for callers without an event loop; from any thread.

        Args:
            warm (bool): As for `initialize`.
            timeout (float | None): As for `initialize`.

        Raises:
            BackendClosedError: The backend is being shut down.
            RuntimeError: Called while a worker imports its handler or the main script.
            TimeoutError: The workers were not ready in time.
            WorkerDiedError: No worker could be started.
            BaseException: As from `initialize`.
        """
        deadline = _clock.deadline_after(timeout)
        warming = self._begin(warm)
        if warming is None:
            return
        try:
            warming.done.result(None if timeout is None else max(0.0, deadline - _clock.monotonic()))
        except BaseException as error:
            if isinstance(error, TimeoutError) and warming.succeeded:
                return
            late = isinstance(error, TimeoutError) and not warming.done.done()
            closing = self._give_up_start(warming)
            if closing is not None:
                closing.done.result()
                self._reported(closing)
            if late:
                raise self._too_late(timeout) from None
            raise

    def _begin(self, warm: bool) -> Warming | None:
        """Start, unless that has been done; what there is to wait for."""
        _role.refuse_to_start(self._name)
        with self._open_lock:
            if self._state is not BackendState.RUNNING:
                if self._state in (BackendState.DRAINING, BackendState.STOPPING):
                    raise BackendClosedError(self._name, self._state.value)
                self._check_floors(self._executor)  # a router's may have been written down after set_handler
                tell_at_the_end(self)
                self._warming = Warming() if warm else None
                self._open()
                with self._ledger.lock:
                    self._closing = None
                    # The old one's timer went with the keeper's loop.
                    self._alarm = Alarm(self.keeper, self._time_has_come)
                    self._ledger.on_end = None
                    self._move(BackendState.RUNNING)
                    self._ledger.open = self._initialized = True
            return None if self._warming is None or not warm else self._warming.joined()

    def _give_up_start(self, warming: Warming) -> Closing | None:
        """Somebody waits no more for the first workers: the shutdown that is to be waited for, if any."""
        if warming.left() or (not warming.succeeded and warming.done.done()):
            return self._begin_shutdown(0, warming)
        return None

    def _too_late(self, timeout: float | None) -> TimeoutError:
        return TimeoutError(f"the workers of {self._name} were not ready within {timeout:g} s; is an import hanging?")

    def _move(self, state: BackendState) -> None:
        """Change the backend's state. The ledger's lock is held."""
        assert state in BACKEND_MOVES[self._state], (self._state, state)
        logger.debug("%s %s -> %s", self._name, self._state.value, state.value)
        self._state = state

    # --- handing over ---

    def look_again(self) -> None:
        """Hand over what may start, as long as there is a lane for it, and see to it that times are kept."""
        lock = self._ledger.lock
        while True:
            if lock.locked():
                give_way(lock)
            with lock:
                run = self._next()
                wake_at = self._ledger.scheduler.wake_at()
            if wake_at is not None:
                self._alarm.set(wake_at)
            if run is None:
                return
            self._hand_over(run)

    def _time_has_come(self) -> None:
        """On the keeper's thread: end what has waited too long, and hand over what may start now."""
        with self._ledger.lock:
            expired = self._ledger.scheduler.expired(_clock.monotonic())
            for run in expired:
                if run.stop is None:
                    run.stop, run.struck = TaskState.TIMED_OUT, "queue_timeout"
        for run in expired:
            self.ended(run, Outcome(TaskState.TIMED_OUT))
        self.look_again()

    def _next(self) -> Run | None:
        scheduler = self._ledger.scheduler
        if not len(scheduler) or self._state not in MAY_START:
            return None
        if not self._has_lane():
            self._lanes_wanted()
            return None
        run = self._ledger.next(_clock.monotonic())
        if run is None:
            return None
        lane = run.lane = self._take_lane(run)
        lane.took(run)
        return run

    def next_after(self, lane: Lane, run: Run) -> Run | None:
        """What the lane is to do after this run; None makes it idle, or ends it."""
        lock = self._ledger.lock
        if lock.locked():
            give_way(lock)
        with lock:
            given_up = self._leave(lane, run)
            freed = self._lane_freed(lane)
            following = None
            if freed and self._state in MAY_START:
                following = self._ledger.next(_clock.monotonic())
            if following is not None:
                following.lane = lane
                lane.took(following)
            elif freed and lane not in self._idle:
                self._idle.append(lane)
        if given_up or not freed:
            self.look_again()
        return following

    def _leave(self, lane: Lane, run: Run) -> bool:
        """The lane is done with a run; whether its thread had been given up with it. Under the ledger's lock."""
        lane.left(run)
        given_up = run.gave_up is lane
        if given_up:  # it has ended after all, which frees its key
            self._ledger.scheduler.ended(run)
        return given_up

    def next_run(self, lane: Lane) -> Run | None:
        """What the lane is to do, whose worker is free; None makes it idle."""
        lock = self._ledger.lock
        if lock.locked():
            give_way(lock)
        with lock:
            run = self._ledger.next(_clock.monotonic()) if self._state in MAY_START else None
            if run is not None:
                run.lane = lane
                lane.took(run)
            elif self._lane_freed(lane) and lane not in self._idle:
                self._idle.append(lane)
            return run

    def more_runs(self, lane: Lane, most: int) -> list[Run]:
        """What it may do after that, as anybody may: the next ones, up to the first that a limit or rule constrains."""
        lock = self._ledger.lock
        if lock.locked():
            give_way(lock)
        with lock:
            if self._state not in MAY_START or not len(self._ledger.scheduler):
                return []
            runs = self._ledger.ahead(most, _clock.monotonic())
            for run in runs:
                run.lane = lane
                lane.took(run)
        return runs

    def _hand_over(self, run: Run) -> None:
        lane: Lane = run.lane
        try:
            lane.send(run)
            self.handed_over(run)
        except BaseException as error:
            # Without its frames, which would keep the lane for as long as somebody has the error.
            logger.error("task %s could not be handed over\n%s", run.id, _codec.traceback_text(error))
            self.ended(run, Outcome(TaskState.FAILED, error=_codec.frameless(error)))
            self.idle(lane, run)

    # --- what lanes say ---

    def handed_over(self, run: Run) -> None:
        """A lane has sent a run."""
        if run.policy is not NO_POLICY and run.policy.idle_timeout is not None and self.promises.timeout:
            self._stopping.limit_idle(run)
        if self._watch is not None:
            self._watch.see_to_it()

    def may_start(self, run: Run, call: Call | AsyncCall) -> bool:
        """The handler is about to be called in this process; False if it must not be any more."""
        if not self._ledger.start_here(run, call):
            return False
        if run.timeout is not None or run.policy is not NO_POLICY:
            self._set_limit(run)
        return True

    def has_started(self, run: Run, pid: int | None, started_ns: int) -> bool:
        """The handler has been called in another process; True if it is to stop."""
        if self._ledger.start(run, pid, started_ns):
            self._set_limit(run)
        return run.stop is not None and not run.state.final

    def _set_limit(self, run: Run) -> None:
        self._stopping.limit(run)

    def time_was_up(self, run: Run) -> None:
        """The worker's guardian has found the run's time limit to be up, and stops it."""
        self._stopping.time_was_up(run)

    def keep_limit(self, run: Run, seconds: float) -> None:
        """The worker has lost its guardian: what is left of the run's time limit is ours to keep."""
        lane: Lane | None = run.lane
        if lane is not None:
            self._stopping.limit_here(run, lane, seconds)

    @property
    def grace(self) -> float:
        """Seconds that a task which is told to stop may take."""
        return self._stopping.grace

    @property
    def listened_to(self) -> bool:
        """Whether events are wanted."""
        return self._listeners.listening

    def progressed(self, run: Run, progress: Progress) -> None:
        """The handler reported."""
        self._ledger.progress(run, progress)

    def ended(self, run: Run, outcome: Outcome, *, pid: int | None = None, started_ns: int | None = None) -> None:
        """The run is over, or is to be tried again; the first to say so wins."""
        plainly = None
        if outcome.state is TaskState.SUCCEEDED:
            plainly = self._ledger.end_plainly(run, outcome.value, pid, started_ns)
        if plainly is None:
            self.ended_all([End(run, outcome, pid, started_ns)])
            return
        run.variables = None
        if plainly:
            self._announce(plainly)

    def ended_all(self, ends: list[End]) -> None:
        """The same of several, in one step."""
        handles: list[TaskHandle] = []
        frees = False
        for end, ended in zip(ends, self._ledger.end_all(ends), strict=True):
            run = end.run
            if ended is None:
                continue
            if isinstance(ended, Verdict):
                log_attempt(run, end.outcome, ended)
                frees = True
                continue
            run.variables = None
            if end.outcome.state is not TaskState.SUCCEEDED or run.stop is not None:
                log_end(run)
            if run.troubled is not None:
                logger.warning("of the last 20 tasks of type %r %d have ended badly", run.type, run.troubled)
            run.outcome = None  # an error's traceback leads to the run; from here on the handles alone have it
            handles += ended
            policy = run.policy
            if policy is not NO_POLICY and (run.key is not None or policy.max_running is not None or policy.reserved):
                frees = True  # what waited for that may start, on another lane too
        if handles:
            self._announce(handles)
        if frees:
            self.look_again()

    def _announce(self, handles: list[TaskHandle]) -> None:
        """Wake those who wait, and call the callbacks: here, unless this is the keeper's thread, which has duties."""
        for handle in handles:
            handle._wake_loops()
        with_callbacks = [handle for handle in handles if handle._callbacks]
        if not with_callbacks:
            return
        if not self.keeper.here() or not self._callbacks.post(self._call_back, with_callbacks):
            self._call_back(with_callbacks)

    def _call_back(self, handles: list[TaskHandle]) -> None:
        pid = _forks.pid
        for handle in handles:
            if _forks.pid != pid:  # one has forked: the others are the parent's to call
                return
            with self.user_code("a callback", handle.id):
                try:
                    handle._invoke_callbacks()  # type: ignore[attr-defined]  # Future's own; pinned by a test
                except BaseException:
                    logger.error("a callback of task %s raised", handle.id, exc_info=True)

    def user_code(self, what: str, task_id: str) -> "UserCodeMark":
        """Around user code on a thread of ours, so that a shutdown can say what holds that thread."""
        return UserCodeMark(self._in_user_code, (what, task_id))

    def held_by_user_code(self) -> dict[str, str]:
        """By name the threads of ours that are in user code, and in which."""
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        held = list(self._in_user_code.items())
        return {names.get(thread, "?"): f"{what} of task {task_id}" for thread, (what, task_id) in held}

    def abandoned(self, run: Run) -> None:
        """The run's thread is given up; the run ends ABANDONED."""
        with self._ledger.lock:
            lane: Lane | None = run.lane
            if lane is None:  # it has ended meanwhile, and its lane is another's
                return
            run.gave_up = lane
            self._give_up(lane)
        if run.state is TaskState.QUEUED:  # its thread never came to it, and may_start() refuses it from now on
            self.ended(run, Outcome(TaskState.CANCELLED))
        else:
            why = "time limit" if run.stop is TaskState.TIMED_OUT else "cancellation"
            error = TaskAbandonedError(run.id, self._stopping.grace, why)
            self.ended(run, Outcome(TaskState.ABANDONED, error=error))
        self.look_again()

    def come_back(self, run: Run) -> None:
        """The run cannot have started: back to its old place, or to its end if it is to stop anyway."""
        self._ledger.come_back(run)
        if run.stop is not None:
            self.ended(run, Outcome(TaskState.CANCELLED))

    def idle(self, lane: Lane, run: Run | None) -> None:
        """The lane is ready, or has finished `run`, and can take another one."""
        with self._ledger.lock:
            if run is not None:
                self._leave(lane, run)
            if lane.run is None and self._lane_freed(lane) and lane not in self._idle:
                self._idle.append(lane)
        self.look_again()

    def withdraw(self, lane: Lane) -> None:
        """The lane can take none until it asks again, or says that it is idle."""
        with self._ledger.lock:
            if lane in self._idle:
                self._idle.remove(lane)

    def worker_started(self, pid: int) -> None:
        """A worker process is ready."""
        if self._listeners.listening:
            self._listeners.emit(WorkerStarted, pid=pid)

    def lane_ready(self, lane: Lane, error: BaseException | None) -> None:
        """The lane's worker is ready; `error` is what loading the handler has raised there."""

    def worker_died(self, pid: int, exitcode: int | None, run: Run | None, why: str) -> None:
        """A worker process has ended."""
        if self._listeners.listening:
            task_id = None if run is None else run.id
            self._listeners.emit(WorkerDied, pid=pid, exitcode=exitcode, task_id=task_id, why=why)

    def cannot_start(self, lane: Lane, error: BaseException, tried_ns: int) -> bool:
        """Workers die before they are ready, the last one begun at that time; True if the lane is to try again."""
        return False

    def pool_broke(self, pool: Executor) -> None:
        """A pool of somebody else takes no more calls."""

    # --- stop ---

    def release(self, handle: TaskHandle) -> bool:
        """A handle is cancelled; True if its task will not complete for it."""
        run = handle._run
        if handle.done():
            return handle.cancelled()
        if self._ledger.let_go(handle):
            self._announce([handle])
            return True
        with self._ledger.lock:
            if run.state.final:
                return handle.cancelled()
            if run.stop is not None:
                return True
            if run.lane is not None and not self._can_stop(run):
                return False
            run.stop = TaskState.CANCELLED
            waits = run.lane is None
        if waits:
            self.ended(run, Outcome(TaskState.CANCELLED))
        else:
            self._stopping.stop(run)
        return True

    def _can_stop(self, run: Run) -> bool:
        """Whether a run that was handed over can be stopped. Under the ledger's lock."""
        return True

    # --- the end ---

    async def shutdown(self, timeout: float | None = None) -> ShutdownReport:
        """Take no more tasks, and bring those in flight to an end, within `timeout` + grace + 1 s.

        Refuses new tasks, drains what is queued and running until the deadline, then cancels what is left, then kills.
        If the coroutine that awaits this is cancelled, the shutdown goes on behind it.

        Args:
            timeout (float | None): Seconds to drain; None takes `shutdown_timeout_seconds`. A second call, from any
                thread or task, with a shorter one hurries the first. Each gives the one report, also one that comes
                after the end.

        Returns:
            ShutdownReport: What became of the tasks that were in flight.

        Raises:
            TypeError: `timeout` is no number.
            ValueError: `timeout` is negative or NaN.
        """
        closing = self._begin_shutdown(timeout)
        if closing is None:
            return ShutdownReport()
        await asyncio.shield(asyncio.wrap_future(closing.done))
        return self._reported(closing)

    def shutdown_sync(self, timeout: float | None = None) -> ShutdownReport:
        """`shutdown`, for callers without an event loop; from any thread.

        Args:
            timeout (float | None): As for `shutdown`.

        Returns:
            ShutdownReport: As from `shutdown`.

        Raises:
            RuntimeError: Called in an event loop that runs tasks of this backend, which would wait for itself.
            TypeError: `timeout` is no number.
            ValueError: `timeout` is negative or NaN.
        """
        here = asyncio._get_running_loop()
        if here is not None and any(run.home_loop is here for run in list(self._ledger.runs.values())):
            raise RuntimeError(
                f"{self._name} runs tasks in this event loop; blocking on its shutdown here would stop them: await it"
            )
        closing = self._begin_shutdown(timeout)
        if closing is None:
            return ShutdownReport()
        closing.done.result()
        return self._reported(closing)

    def _reported(self, closing: Closing) -> ShutdownReport:
        join(closing.thread, _clock.monotonic() + 1.0)  # it has nothing to do but end
        return closing.full_report()

    def _begin_shutdown(self, timeout: float | None, failed: Warming | None = None) -> Closing | None:
        """Begin it, or hurry it; after a start that has failed, only of that life and if nobody else has begun it."""
        deadline = _clock.deadline_after(self._shutdown_timeout if timeout is None else timeout)
        with self._open_lock, self._ledger.lock:
            closing, warming = self._closing, None
            if failed is not None and (self._warming is not failed or self._state is not BackendState.RUNNING):
                return failed.closing
            if self._state is BackendState.NEW:
                self._move(BackendState.STOPPED)
            if self._state is BackendState.STOPPED:
                return closing
            if self._state is BackendState.RUNNING:
                self.keeper.start()
                closing = self._closing = Closing(self, self._ledger, self._stopping, 0.9)
                self._initialized = False
                self._ledger.close()
                self._ledger.on_end = closing.note
                self._move(BackendState.DRAINING)
                self.keeper.call(closing.start, deadline)
                warming, self._warming = self._warming, None
                if failed is not None:
                    failed.closing = closing
        assert closing is not None
        closing.hurry(deadline)
        if warming is not None:
            warming.fail(BackendClosedError(self._name, BackendState.DRAINING.value))
        return closing

    def hurry(self, timeout: float = 0) -> None:
        until = _clock.monotonic() + _clock.checked_seconds("timeout", timeout)
        closing = self._closing
        if closing is not None:
            closing.hurry(until)

    async def wait_for_pending_tasks(self, timeout: float | None = None) -> bool:
        """Wait until no task is in flight; new ones are taken meanwhile.

        Args:
            timeout (float | None): Seconds; None waits for as long as it takes.

        Returns:
            bool: False if tasks were still in flight when the time was over.

        Raises:
            TypeError: `timeout` is no number.
            ValueError: `timeout` is negative or NaN.
        """
        deadline = _clock.deadline_after(timeout)
        loop = asyncio.get_running_loop()
        empty = asyncio.Event()
        wake = _Wake(loop, empty)
        self._ledger.on_empty.append(wake)
        try:
            # Race: the last task ended before `wake` was there. Then `runs` is empty by now.
            if self._ledger.runs:
                async with asyncio.timeout_at(None if timeout is None else deadline):
                    await empty.wait()
            return True
        except TimeoutError:
            return not self._ledger.runs
        finally:
            self._ledger.on_empty.remove(wake)

    def at_exit(self) -> "Future[Any] | None":
        """The program ends: cancel what is queued, kill the workers, within `exit_grace_seconds`."""
        if self._state not in (BackendState.RUNNING, BackendState.DRAINING, BackendState.STOPPING):
            return None
        # With a limit: a thread of the program may have been frozen while it held them.
        if not self._open_lock.acquire(timeout=0.5):
            return None
        try:
            if not self._ledger.lock.acquire(timeout=0.5):
                return None
            self._ledger.lock.release()
        finally:
            self._open_lock.release()
        self._stopping.grace = min(self._stopping.grace, self._exit_grace / 2)
        try:
            closing = self._begin_shutdown(0)
        except RuntimeError:  # there was no keeper, and no thread can be started any more
            self._end_without_keeper()
            return None
        if closing is None:
            return None
        closing.shorten(self._exit_grace / 2)
        return closing.done

    def exit_seconds(self) -> float:
        """How long the end of the program may wait for this backend."""
        return self._exit_grace + 0.5

    def _end_without_keeper(self) -> None:
        self._initialized = False
        with self._ledger.lock:  # nobody has it: see above
            self._ledger.close()
        for run in list(self._ledger.runs.values()):
            handles = list(run.handles)
            if run.stop is None:
                run.struck = SHUTDOWN
            for handle in handles:
                self.release(handle)
        self._close_at_exit()

    def forked(self) -> None:
        """This is a fork: start afresh, and touch nothing of the parent's."""
        self._inherited.append((self._ledger, self.keeper, self._callbacks, self._closing, self._idle, self._sync_loop))
        self._sync_loop = None
        self._listeners = self._listeners.afresh()
        self._start_afresh()

    # --- answers ---

    def handle(self, task_id: str) -> TaskHandle:
        return self._ledger.find(task_id)

    @property
    def inflight_count(self) -> int:
        return len(self._ledger.runs) + self._ledger.chunked

    def stats(self) -> BackendStats:
        for lane in self._lanes():
            run = lane.run  # once: the lane may have another one, or none, at the next look
            if run is not None:
                self.refresh(run)
        figures, by_type = self._ledger.figures()
        workers = tuple(worker for lane in self._lanes() if (worker := self._worker_stats(lane)) is not None)
        return BackendStats(**figures, workers=workers, by_type=by_type, events_dropped=self._listeners.dropped)

    def explain(self, handle: TaskHandle) -> str:
        """Why a task is still waiting, as a sentence.

        Args:
            handle (TaskHandle): A handle of this backend.

        Returns:
            str: What it waits for: its time, a worker, another task of its key, the cap of its type, its next attempt.

        Raises:
            ValueError: The handle is of another backend.
        """
        if handle._owner is not self:
            raise ValueError(f"task {handle.id} is not of this backend")
        if handle.state.final:
            return f"it does not wait: it is {handle.state.value}"
        run = handle._run
        with self._ledger.lock:
            reason = self._ledger.scheduler.explain(run, _clock.monotonic())
        if reason is None:
            return "it does not wait: it runs where it was submitted"
        return str(reason)  # outside of the lock, for a key's text is user code

    def stacks(self) -> dict[str, str]:
        running = [run for run in list(self._ledger.runs.values()) if run.lane is not None]
        return {run.id: stack for run in running if (stack := stack_of(run))}

    def _tell_stuck(self, run: Run, silent: float) -> None:
        stack = stack_of(run)
        if run.state.final:
            return
        logger.warning(
            "task %s of type %r has run for %.3g s, the last %.3g s of them without a report; it is here:\n%s",
            *(run.id, run.type, run.seconds() or 0.0, silent, stack or "(its worker does not tell)"),
        )
        if self._listeners.listening:
            self._listeners.emit(TaskStuck, seconds=silent, stack=stack, **facts_of(run))

    def _worker_stats(self, lane: Lane) -> WorkerStats | None:
        pid, run = lane.pid, lane.run
        if pid is None:
            return None
        if run is None or run.started_ns is None or run.state.final:  # it ends before its lane is free of it
            return WorkerStats(pid)
        return WorkerStats(pid, run.id, run.type, _clock.epoch(run.started_ns))

    def subscribe(self, listener: Callable[[Any], Any]) -> Callable[[], None]:
        return self._listeners.subscribe(listener)

    # --- for `map` ---

    def _get_ready_to_drop(self) -> None:
        if self._state is BackendState.RUNNING:
            self.keeper.start()

    def _worker_count(self) -> int:
        return self._max_workers or _os.available_cpus()

    def _drop(self, handles: list[TaskHandle]) -> None:
        self.keeper.call(_cancel_all, handles)

    def __repr__(self) -> str:
        return f"<{self._name} {self._state.value} in_flight={self.inflight_count}>"


def _cancel_all(handles: list[TaskHandle]) -> None:
    for handle in handles:
        handle.cancel()


class _Wake:
    """Sets an event of a loop from any thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
        self._loop = weakref.ref(loop)
        self._event = event

    def __call__(self) -> None:
        loop = self._loop()
        if loop is not None:  # if it has closed, nobody waits there any more
            call_in(loop, self._event.set)
