"""The tasks in flight, and the figures: one lock, and every move that a run makes.

Threads: any.
Locks: lock guards everything here, the queue, and the fields of runs. Below it come leaves alone (a future's condition,
the listeners' queue); no user code runs under it. Callers that need several steps at once hold it themselves; the
methods that want it held say so.
Holds: a run is in `runs` from its acceptance to its outcome, and its handles end in the same step in which it leaves,
so that whoever is woken finds the figures right. Nothing is accepted unless `open`.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from taskback import _clock, _codec
from taskback._call import Outcome
from taskback._errors import TaskTimeoutError, UnknownTaskError
from taskback._events import Listeners, TaskFinished, TaskProgress, TaskQueued, TaskStarted
from taskback._handle import TaskHandle
from taskback._report import Tally, TypeStats
from taskback._run import NOTHING_TOLD, Run, Told
from taskback._state import TASK_MOVES, TaskState
from taskback._task import ANNOUNCE_EVERY_NS, Progress
from taskback.scheduler.queue import TaskQueue


class Ledger:
    """See the top of the file."""

    def __init__(self, listeners: Listeners, keep_ended: int) -> None:
        self.lock = threading.Lock()
        self._states = threading.RLock()  # of handles; see LightFuture
        self.open = False
        self.runs: dict[str, Run] = {}
        self.queue = TaskQueue()
        self.listeners = listeners
        self.on_empty: list[Callable[[], object]] = []  # called, outside the lock, when nothing is in flight
        self.on_end: Callable[[Run, list[TaskHandle]], None] | None = None  # called under the lock
        self._keep_ended = keep_ended
        self._ended: OrderedDict[str, TaskHandle] = OrderedDict()
        self._total = Tally()
        self._by_type: dict[str, Tally] = {}
        self._sequence = 0

    # --- in ---

    def join(self, task_id: str, owner: Any) -> TaskHandle | None:
        """A handle of its own on the run in flight that has this id, if there is one."""
        with self.lock:
            return self._join(task_id, owner)

    def _join(self, task_id: str, owner: Any) -> TaskHandle | None:
        run = self.runs.get(task_id)
        if run is None or not self.open:
            return None
        handle = TaskHandle(run, owner, self._states)
        if run.state is TaskState.RUNNING:
            handle._mark_running()
        run.handles.append(handle)
        for tally in self._tallies(run):
            tally.joined += 1
        return handle

    def admit(self, run: Run, owner: Any, queue: bool) -> TaskHandle | None:
        """Accept a run, or join the one that has its id; None if nothing is accepted any more."""
        with self.lock:
            if not self.open:
                return None
            joined = self._join(run.id, owner)
            if joined is not None:
                return joined
            handle = TaskHandle(run, owner, self._states)
            run.handles.append(handle)
            self._sequence += 1
            run.sequence = self._sequence
            self.runs[run.id] = run
            for tally in self._tallies(run):
                tally.accepted += 1
                tally.counts[TaskState.QUEUED] += 1
            if queue:
                self.queue.push(run, _clock.monotonic())
            if self.listeners.listening:
                self.listeners.emit(TaskQueued, **facts_of(run))
            return handle

    def come_back(self, run: Run) -> None:
        """A run that was handed over has not started: back to its old place."""
        with self.lock:
            run.lane = None
            if not run.state.final:
                self.queue.push(run, _clock.monotonic())

    # --- moves; the lock is held ---

    def _move(self, run: Run, state: TaskState) -> None:
        assert state in TASK_MOVES[run.state], (run.state, state)
        for tally in self._tallies(run):
            tally.counts[run.state] -= 1
            tally.counts[state] += 1
        run.state = state

    def _tallies(self, run: Run) -> tuple[Tally, Tally]:
        name = run.type or ""
        if name not in self._by_type:
            self._by_type[name] = Tally()
        return self._total, self._by_type[name]

    def _start(self, run: Run, pid: int | None, started_ns: int) -> None:
        self._move(run, TaskState.RUNNING)
        run.pid, run.started_ns = pid, max(started_ns, run.queued_ns)
        run.moved_ns = run.started_ns
        for handle in run.handles:
            handle._mark_running()
        if self.listeners.listening:
            self.listeners.emit(TaskStarted, **facts_of(run))

    # --- under way ---

    def start(self, run: Run, pid: int | None, started_ns: int) -> bool:
        """The handler has been called; True if that was news."""
        with self.lock:
            if run.state is not TaskState.QUEUED:
                return False
            self._start(run, pid, started_ns)
            return True

    def progress(self, run: Run, progress: Progress) -> None:
        """The handler reported."""
        run.progress, run.moved_ns = progress, _clock.monotonic_ns()
        if not self.listeners.listening:
            return
        with self.lock:
            if not run.state.final and run.announce_now(_clock.monotonic_ns(), ANNOUNCE_EVERY_NS):
                self.listeners.emit(TaskProgress, progress=progress, **facts_of(run))

    # --- out ---

    def end(
        self, run: Run, outcome: Outcome, pid: int | None = None, started_ns: int | None = None
    ) -> list[TaskHandle] | None:
        """End a run and its handles; gives those, or None if it had ended before."""
        told = _told(outcome.error)  # an error's text is user code
        with self.lock:
            handles = self._end(run, outcome, told, pid, started_ns)
            empty = handles is not None and not self.runs and bool(self.on_empty)
        if empty:
            for function in list(self.on_empty):
                function()
        return handles

    def _end(
        self, run: Run, outcome: Outcome, told: Told, pid: int | None, started_ns: int | None
    ) -> list[TaskHandle] | None:
        if run.state.final:
            return None
        if started_ns is not None and run.state is TaskState.QUEUED:
            self._start(run, pid, started_ns)
        if run.state is TaskState.QUEUED:
            self.queue.discard(run)
        run.finished_ns = max(_clock.monotonic_ns(), run.started_ns or run.queued_ns)
        verdict = _verdict(run, outcome, told)
        if verdict.error is not outcome.error:
            told = _told_of_ours(verdict.error, told)
        outcome = verdict
        self._move(run, outcome.state)
        run.told = told
        run.outcome = outcome
        run.call = None
        run.lane = None  # a handle that is kept must not keep a worker's descriptors
        del self.runs[run.id]
        handles, run.handles = run.handles, []
        for handle in handles:
            handle._settle(outcome)
        self._keep(run, handles)
        if self.on_end is not None:
            self.on_end(run, handles)
        if self.listeners.listening:
            self.listeners.emit(
                TaskFinished,
                state=outcome.state,
                seconds=run.seconds(),
                error_type=told[0],
                error_text=told[1],
                **facts_of(run),
            )
        return handles

    def _keep(self, run: Run, handles: list[TaskHandle]) -> None:
        if self._keep_ended and handles:
            self._ended[run.id] = handles[0]
            self._ended.move_to_end(run.id)
            while len(self._ended) > self._keep_ended:
                self._ended.popitem(last=False)

    def let_go(self, handle: TaskHandle) -> bool:
        """A handle lets go of a run that others hold too; False if it is the last one that does."""
        with self.lock:
            run = handle._run
            if handle not in run.handles or len(run.handles) == 1:
                return False
            run.handles.remove(handle)
            handle._let_go_ns = _clock.monotonic_ns()
            handle._settle(Outcome(TaskState.CANCELLED))
            return True

    # --- answers ---

    def find(self, task_id: str) -> TaskHandle:
        """The handle of a task in flight, or of an ended one that is kept."""
        with self.lock:
            run = self.runs.get(task_id)
            found = run.handles[0] if run is not None else self._ended.get(task_id)
        if found is None:
            raise UnknownTaskError(task_id, self._keep_ended)
        return found

    def figures(self) -> tuple[dict[str, int], dict[str, TypeStats]]:
        """The figures over all types, and a type."""
        with self.lock:
            by_type = {name: TypeStats(**tally.figures()) for name, tally in self._by_type.items()}
            return self._total.figures(), by_type


def facts_of(run: Run) -> dict[str, Any]:
    """What every event about a run's task tells."""
    return {"task_id": run.id, "type": run.type, "attempt": run.attempt, "pid": run.pid}


def _verdict(run: Run, outcome: Outcome, told: Told) -> Outcome:
    """What a run ends as: what it was told to stop for wins over whatever its handler made of that."""
    if run.stop is None or outcome.state is TaskState.ABANDONED:
        return outcome
    if run.stop is TaskState.TIMED_OUT:
        assert run.timeout is not None
        stack = outcome.stack or (told[2] if outcome.state is TaskState.CANCELLED else None)
        error = TaskTimeoutError(run.id, run.timeout, run.seconds() or 0.0, stack)
        error.__cause__ = outcome.error if outcome.state is TaskState.FAILED else None
        return Outcome(TaskState.TIMED_OUT, error=error)
    return Outcome(TaskState.CANCELLED)


def _told(error: BaseException | None) -> Told:
    if error is None:
        return NOTHING_TOLD
    return _codec.error_type(error), _codec.error_text(error), _codec.error_traceback(error)


def _told_of_ours(error: BaseException | None, cause: Told) -> Told:
    """The same of an error of ours, under the lock: what its cause says is user code, and was told before."""
    if error is None:
        return NOTHING_TOLD
    name, text = _codec.type_name(error), str(error)
    trace = f"{name}: {text}\n"
    if error.__cause__ is not None:
        trace = f"{cause[2]}\nThe above exception was the direct cause of the following exception:\n\n{trace}"
    return name, text, trace
