"""The tasks in flight, and the figures: one lock, and every move that a run makes.

Threads: any.
Locks: lock guards everything here, the scheduler, and the fields of runs. Below it come leaves alone (the states of
handles, the listeners' queue); no user code runs under it. Callers that need several steps at once hold it themselves;
the methods that want it held say so.
Holds: a run is in `runs` from its acceptance to its outcome, and its handles end in the same step in which it leaves,
so that whoever is woken finds the figures right. Nothing is accepted unless `open`.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from taskback import _clock, _codec
from taskback._call import Outcome
from taskback._errors import QueueFullError, TaskTimeoutError, UnknownTaskError
from taskback._events import Listeners, TaskFinished, TaskProgress, TaskQueued, TaskRetrying, TaskStarted
from taskback._give_way import give_way
from taskback._handle import TaskHandle
from taskback._packed import Packed
from taskback._progress import Progress
from taskback._report import Tally, TypeStats, total
from taskback._router import NO_POLICY
from taskback._run import NOTHING_TOLD, End, Run, Told
from taskback._state import TASK_MOVES, TaskState
from taskback._task import ANNOUNCE_EVERY_NS, Task
from taskback._worker_died import WorkerDiedError
from taskback.backends._ticket import Ticket
from taskback.scheduler.attempts import Verdict
from taskback.scheduler.census import Waiting
from taskback.scheduler.coalescing import Joining
from taskback.scheduler.entry import Place
from taskback.scheduler.pressure import Answer, Limits, Pressure
from taskback.scheduler.scheduler import Scheduler
from taskback.scheduler.trouble import Trouble

NOBODY: Final[list[TaskHandle]] = []  # to be told; shared, and left as it is


class Ledger:
    """See the top of the file."""

    def __init__(self, listeners: Listeners, keep_ended: int, limits: Limits | None = None) -> None:
        self.lock = threading.Lock()
        self._states = threading.RLock()  # of handles; see LightFuture
        self.open = False
        self.runs: dict[str, Run] = {}
        self.chunked = 0  # tasks in them that are in a chunk behind the first
        self.scheduler: Scheduler[Run] = Scheduler()
        self.pressure: Pressure[Ticket] | None = None  # where the queue has limits
        if limits is not None and limits.any:
            self.pressure = Pressure(limits)
        self._queued: dict[int, Run] = {}  # what the pressure counts, by sequence number
        self.schedules = True  # whether runs come from the scheduler, and may go back to it
        self.listeners = listeners
        self.on_empty: list[Callable[[], object]] = []  # called, outside the lock, when nothing is in flight
        self.on_end: Callable[[Run, list[TaskHandle]], None] | None = None  # called under the lock
        self._keep_ended = keep_ended
        self._ended: OrderedDict[str, TaskHandle] = OrderedDict()
        self._by_type: dict[str, Tally] = {}
        self._sequence = 0
        self._trouble = Trouble()

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
        if run.joined is None:
            run.joined = []
        run.joined.append(handle)
        run.tally.joined += 1
        return handle

    def admit(
        self, run: Run, owner: Any, queue: bool, ticket: Ticket | None = None, merged: "Merged | None" = None
    ) -> "TaskHandle | Joining[Run] | Ticket | None":
        """Accept a run, or join another one; None if nothing is accepted any more.

        It joins the one that has its id, or one of its key, as their policy says. Where that is to merge the two, the
        Joining is given back, and comes in again with what it was merged to. Where the run has to wait for room, its
        ticket is given back, and comes in again when it is woken.

        Raises:
            QueueFullError: There is no room, and it is not to wait for some.
        """
        if self.lock.locked():
            give_way(self.lock)
        with self.lock:
            if not self.open:
                return None
            joined: TaskHandle | Joining[Run] | None = self._join(run.id, owner) if run.id in self.runs else None
            if joined is None and queue and run.key is not None and run.policy.coalesce is not None:
                joined = self._coalesce(run, owner, merged)
            if joined is not None:
                return joined
            if ticket is not None and not self._has_room(ticket):
                return ticket
            handle = self._take_in(run, owner)
            if queue:
                self.scheduler.add(run, run.policy, _clock.monotonic())
                if ticket is not None:
                    self._enter(ticket)
            return handle

    def _take_in(self, run: Run, owner: Any) -> TaskHandle:
        """A run is accepted. The lock is held."""
        handle = run.handle = TaskHandle(run, owner, self._states)
        run.sequence = self._sequence = self._sequence + 1
        self.runs[run.id] = run
        tally = run.tally = self._by_type.get(run.type or "") or self._new_tally(run)
        if run.chunk is None:
            tally.accepted += 1
        else:
            tally.accepted += run.chunk.count
            self.chunked += run.chunk.count - 1
        if self.listeners.listening:
            self.listeners.emit(TaskQueued, **facts_of(run))
        return handle

    def admit_all(self, runs: list[Run], owner: Any) -> list[TaskHandle] | None:
        """Accept runs that need no more than a place in the queue; None if nothing is accepted any more."""
        with self.lock:
            if not self.open:
                return None
            now = _clock.monotonic()
            handles = []
            for run in runs:
                handles.append(self._take_in(run, owner))
                self.scheduler.add(run, run.policy, now)
            return handles

    def _new_tally(self, run: Run) -> Tally:
        tally = self._by_type[run.type or ""] = Tally()
        return tally

    # --- room in the queue, where it has limits ---

    def _has_room(self, ticket: Ticket) -> bool:
        assert self.pressure is not None
        if ticket.admitted:
            return True
        answer, shed = self.pressure.ask(ticket, ticket.run.size, ticket.run.priority)
        if answer is Answer.REFUSED:
            raise QueueFullError(ticket.backend, f"{self.pressure.queued} tasks wait")
        ticket.admitted = answer is Answer.ADMITTED
        ticket.shed = [self._queued.pop(sequence) for sequence in shed]
        for run in ticket.shed:  # here and now, or a worker that is free would still get it
            self.scheduler.ended(run)
        return ticket.admitted

    def _enter(self, ticket: Ticket) -> None:
        assert self.pressure is not None
        run, ticket.used = ticket.run, True
        self.pressure.enter(run.sequence, run.size, run.priority)
        self._queued[run.sequence] = run

    def give_up(self, ticket: Ticket) -> None:
        """A submission has come to nothing, or has joined a run: its room, or its place in the line, is another's."""
        with self.lock:
            if self.pressure is None or ticket.used:
                return
            ticket.used = True
            room = self.pressure.give_back(ticket.run.size) if ticket.admitted else self.pressure.give_up(ticket)
            _wake(room)

    def _leave(self, run: Run) -> None:
        """A run is queued no more."""
        assert self.pressure is not None
        if self._queued.pop(run.sequence, None) is not None:
            _wake(self.pressure.leave(run.sequence))

    def _return(self, run: Run) -> None:
        """A run is queued again; it is not refused."""
        if self.pressure is not None:
            self.pressure.come_back(run.sequence, run.size, run.priority)
            self._queued[run.sequence] = run

    def close(self) -> None:
        """Accept nothing any more; those who wait for room are told. The lock is held."""
        self.open = False
        if self.pressure is not None:
            _wake(self.pressure.close(), admitted=False)

    # --- the scheduler; the lock is held ---

    def next(self, now: float) -> Run | None:
        """Take out the run that a free worker gets."""
        run = self._first(now)
        if run is not None and self.pressure is not None:
            self._leave(run)
        return run

    def ahead(self, most: int, now: float) -> list[Run]:
        """Take out those that may wait in a worker that is still busy: no limit and no rule has a say in them."""
        runs = self.scheduler.next_plain(most) if self.pressure is None else []
        for at, run in enumerate(runs):
            if run.policy is not NO_POLICY or run.timeout is not None or run.stop is not None or run.chunk is not None:
                for other in runs[at:]:
                    self.scheduler.put_back(other)
                del runs[at:]
        while len(runs) < most and (one := self._next_ahead(now)) is not None:
            runs.append(one)
        return runs

    def _next_ahead(self, now: float) -> Run | None:
        run = self._first(now)
        if run is None:
            return None
        policy = run.policy
        free = policy is NO_POLICY or (policy.idle_timeout is None and self.scheduler.may_go_ahead(run))
        if not free or run.timeout is not None or run.chunk is not None:
            self.scheduler.put_back(run)
            return None
        if self.pressure is not None:
            self._leave(run)
        return run

    def _first(self, now: float) -> Run | None:
        # Race: a run is told to stop while it waits, and not ended yet. Whoever told it to ends it; no lane gets it, or
        # its handle would end while its handler runs.
        while (run := self.scheduler.next(now)) is not None and run.stop is not None:
            self.scheduler.ended(run)
        return run

    def _coalesce(self, run: Run, owner: Any, merged: "Merged | None") -> "TaskHandle | Joining[Run] | None":
        now = _clock.monotonic()
        joining = self.scheduler.joining(run.type, run.key, now) if merged is None else merged.joining
        if joining is None or (joining.merge is not None and merged is None):
            return joining
        if not self.scheduler.join(joining, run.priority, run.ready_at, now):  # it has begun or changed meanwhile
            return self._coalesce(run, owner, None)
        waits = joining.item
        if merged is not None:
            waits.replace(merged.task, merged.data)
        elif joining.replaces:
            waits.take_contents(run)
        waits.priority = max(waits.priority, run.priority)
        if self.pressure is not None:
            _wake(self.pressure.change(waits.sequence, waits.size, waits.priority))
        return self._join(joining.item.id, owner)

    def come_back(self, run: Run) -> None:
        """A run that was handed over has not started: back to its old place."""
        with self.lock:
            run.lane = None
            if not run.state.final:
                self.scheduler.put_back(run)
                self._return(run)

    # --- moves; the lock is held ---

    def _move(self, run: Run, state: TaskState, by: TaskState | None = None) -> None:
        """Change a run's state; it may have been in another one meanwhile, of which nobody was told."""
        assert state in TASK_MOVES[by or run.state], (run.state, by, state)
        if run.chunk is None:
            run.tally.move(run.state, state)
        elif state.final:
            run.tally.end_chunk(run.state, run.chunk, state)
        else:
            run.tally.move(run.state, state, run.chunk.count)
        run.state = state

    def _start(self, run: Run, pid: int | None, started_ns: int) -> None:
        self._move(run, TaskState.RUNNING)
        self._has_begun(run, pid, started_ns)
        run.handle._mark_running()
        for handle in run.joined or ():
            handle._mark_running()
        if self.listeners.listening:
            self.listeners.emit(TaskStarted, **facts_of(run))

    def _has_begun(self, run: Run, pid: int | None, started_ns: int) -> None:
        run.pid, run.started_ns = pid, max(started_ns, run.queued_ns)
        run.moved_ns = max(run.moved_ns, run.started_ns)  # it may have reported before its start was looked up

    # --- under way ---

    def start(self, run: Run, pid: int | None, started_ns: int) -> bool:
        """The handler has been called; True if that was news."""
        with self.lock:
            if run.state is not TaskState.QUEUED:
                return False
            self._start(run, pid, started_ns)
            return True

    def start_here(self, run: Run, call: Any) -> bool:
        """The handler is about to be called in this process; False if it must not be any more."""
        if self.lock.locked():
            give_way(self.lock)
        with self.lock:
            if run.state is not TaskState.QUEUED or run.stop is not None:
                return False
            run.call = call
            self._start(run, run.lane.pid, _clock.monotonic_ns())
            return True

    def refresh(self, run: Run) -> None:
        """Find out whether a run that was handed over has begun, where nobody tells."""
        lane = run.lane
        found = None if lane is None else lane.started(run)
        if found is not None:
            self.start(run, *found)

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
    ) -> "list[TaskHandle] | Verdict | None":
        """End a run and its handles; gives those that have somebody to tell, or None if it had ended before.

        Where it may be tried again it goes back to the scheduler, and the verdict says when it is.
        """
        return self.end_all([End(run, outcome, pid, started_ns)])[0]

    def end_all(self, ends: "list[End]") -> "list[list[TaskHandle] | Verdict | None]":
        """The same for several, in one step."""
        told = [_told(end.outcome.error) for end in ends]  # an error's text is user code
        ended: list[list[TaskHandle] | Verdict | None] = []
        if self.lock.locked():
            give_way(self.lock)
        with self.lock:
            quiet = self._nobody_looks()
            now = _clock.monotonic_ns()
            for (run, outcome, pid, started_ns), words in zip(ends, told, strict=True):
                if quiet and outcome.state is TaskState.SUCCEEDED and self._is_plain(run):
                    ended.append(self._end_well(run, outcome.value, pid, started_ns, now))
                else:
                    ended.append(self._end_or_again(run, outcome, pid, started_ns, words))
            empty = not self.runs and bool(self.on_empty)
        if empty and any(isinstance(one, list) for one in ended):
            self._tell_empty()
        return ended

    def _tell_empty(self) -> None:
        for function in list(self.on_empty):
            function()

    def end_plainly(
        self, run: Run, value: Any, pid: int | None = None, started_ns: int | None = None
    ) -> list[TaskHandle] | None:
        """End one that went well, where nobody else has a say in it; None where somebody has, and nothing is done."""
        if self.lock.locked():
            give_way(self.lock)
        with self.lock:
            if run.policy is not NO_POLICY or not self._nobody_looks() or not self._is_plain(run):
                return None
            handles = self._end_well(run, value, pid, started_ns, _clock.monotonic_ns())
            empty = not self.runs and bool(self.on_empty)
        if empty:
            self._tell_empty()
        return handles

    def _nobody_looks(self) -> bool:
        """Whether nobody is to be told of each end."""
        return not (self.listeners.listening or self._keep_ended or self.pressure is not None or self.on_end)

    def _is_plain(self, run: Run) -> bool:
        """Whether nobody has stopped or joined a run, or ended it before, and its type is in no trouble."""
        return (
            run.type in self._trouble.well
            and run.stop is None
            and run.joined is None
            and run.chunk is None
            and not run.state.final
        )

    def _end_well(self, run: Run, value: Any, pid: int | None, started_ns: int | None, now: int) -> list[TaskHandle]:
        """What `_end` does where all went well, nobody else has a say, and nobody looks: so do most runs end."""
        counts = run.tally.counts
        if run.state is TaskState.RUNNING:
            counts[TaskState.RUNNING] -= 1
        elif started_ns is not None:  # nobody has asked until now
            self._has_begun(run, pid, started_ns)
        counts[TaskState.SUCCEEDED] += 1
        run.state = TaskState.SUCCEEDED
        run.finished_ns = max(now, run.started_ns or run.queued_ns)
        run.call = run.lane = None
        del self.runs[run.id]
        self.scheduler.ended(run)
        handle: TaskHandle = run.handle
        run.handle = None
        handle._end(value)
        return NOBODY if handle._loop_waiters is None and handle._callbacks is None else [handle]

    def _end_or_again(
        self, run: Run, outcome: Outcome, pid: int | None, started_ns: int | None, told: Told
    ) -> "list[TaskHandle] | Verdict | None":
        if outcome.own and run.stop is None and not run.state.final and self.schedules:
            verdict = self._judged(run, outcome, told, pid, started_ns)
            if verdict.again is not None:
                return verdict
            outcome, told = _with_verdict(outcome, told, verdict)
        return self._end(run, outcome, told, pid, started_ns)

    def _judged(self, run: Run, outcome: Outcome, told: Told, pid: int | None, started_ns: int | None) -> Verdict:
        """Ask whether the run is to be tried again, and if so, have it wait for that."""
        if started_ns is not None and run.state is TaskState.QUEUED:
            self._start(run, pid, started_ns)
        now = _clock.monotonic()
        if outcome.state is TaskState.LOST:
            verdict = self.scheduler.crashed(run, now)
        else:
            assert outcome.error is not None
            verdict = self.scheduler.failed(run, outcome.error, now, _clock.epoch_ns(_clock.monotonic_ns()) / 1e9)
        if verdict.again is not None:
            self._try_again(run, outcome, told, verdict, now)
        return verdict

    def _try_again(self, run: Run, outcome: Outcome, told: Told, verdict: Verdict, now: float) -> None:
        if self.listeners.listening:
            seconds, (error_type, error_text, _) = max(0.0, verdict.at - now), told
            facts = facts_of(run)
            self.listeners.emit(TaskRetrying, seconds=seconds, error_type=error_type, error_text=error_text, **facts)
        if verdict.again is not Place.DEFER:
            run.finished_ns = max(_clock.monotonic_ns(), run.started_ns or run.queued_ns)
            run.told = told
            run.past = (*run.past, run.last_attempt(outcome.state))
            run.attempt += 1
        if run.state is TaskState.RUNNING:
            self._move(run, TaskState.QUEUED)
        self._return(run)
        run.tried = True
        run.told = NOTHING_TOLD
        run.lane = run.call = run.pid = run.started_ns = run.finished_ns = run.progress = None
        run.false_starts = 0
        for handle in run.handles:
            handle._mark_queued()

    def _end(
        self, run: Run, outcome: Outcome, told: Told, pid: int | None, started_ns: int | None
    ) -> list[TaskHandle] | None:
        if run.state.final:
            return None
        looked_up = started_ns is not None and run.state is TaskState.QUEUED  # nobody has asked until now
        if looked_up and started_ns is not None:
            if self.listeners.listening:
                self._start(run, pid, started_ns)
            else:
                self._has_begun(run, pid, started_ns)
        run.finished_ns = max(_clock.monotonic_ns(), run.started_ns or run.queued_ns)
        if run.stop is not None:
            verdict = _verdict(run, outcome, told)
            if verdict.error is not outcome.error:
                told = _told_of_ours(verdict.error, told)
            outcome = verdict
        self._move(run, outcome.state, TaskState.RUNNING if looked_up else run.state)
        run.told = told
        run.outcome = outcome
        run.call = None
        run.lane = None  # a handle that is kept must not keep a worker's descriptors
        well = outcome.state is TaskState.SUCCEEDED
        if outcome.state is not TaskState.CANCELLED and not (well and run.type in self._trouble.well):
            run.troubled = self._trouble.ended(run.type, not well)
        del self.runs[run.id]
        if run.chunk is not None:
            self.chunked -= run.chunk.count - 1
        if self.pressure is not None:
            self._leave(run)
        if outcome.state is TaskState.ABANDONED and self.schedules:  # it holds its key until its thread ends
            self.scheduler.abandoned(run)
        else:
            self.scheduler.ended(run)
        handles = [run.handle] if run.joined is None else run.handles
        run.handle = run.joined = None
        to_tell = [handle for handle in handles if handle._settle(outcome)]
        if self._keep_ended:
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
        return to_tell

    def _keep(self, run: Run, handles: list[TaskHandle]) -> None:
        self._ended[run.id] = handles[0]
        self._ended.move_to_end(run.id)
        while len(self._ended) > self._keep_ended:
            self._ended.popitem(last=False)

    def let_go(self, handle: TaskHandle) -> bool:
        """A handle lets go of a run that others hold too; False if it is the last one that does."""
        with self.lock:
            run = handle._run
            handles = run.handles
            if handle not in handles or len(handles) == 1:
                return False
            handles.remove(handle)
            run.handle, *others = handles
            run.joined = others or None
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

    def figures(self) -> tuple[dict[str, Any], dict[str, TypeStats]]:
        """The figures over all types, and a type."""
        with self.lock:
            waiting = {type or "": each for type, each in self.scheduler.figures(_clock.monotonic()).items()}
            all_types = {**total(self._by_type.values()), **_waiting(list(waiting.values()))}
            return all_types, {
                name: TypeStats(**tally.figures(), **_waiting([waiting[name]] if name in waiting else []))
                for name, tally in self._by_type.items()
            }


def _wake(tickets: list[Ticket], admitted: bool = True) -> None:
    for ticket in tickets:
        ticket.wake(admitted)


def _waiting(types: list[Waiting]) -> dict[str, Any]:
    """What tasks wait for, as the fields of `TypeStats`."""
    return {
        "waiting_for_time": sum(each.delay for each in types),
        "waiting_for_key": sum(each.key for each in types),
        "waiting_for_cap": sum(each.cap for each in types),
        "waiting_for_retry": sum(each.retry for each in types),
        "waiting_for_defer": sum(each.defer for each in types),
        "oldest_seconds": max((each.oldest for each in types if each.oldest is not None), default=None),
    }


@dataclass(frozen=True, slots=True)
class Merged:
    """What a merge function has made of a run that waits and of one that joins it."""

    joining: Joining[Run]
    task: Task | None
    data: Packed | None


def facts_of(run: Run) -> dict[str, Any]:
    """What every event about a run's task tells."""
    return {"task_id": run.id, "type": run.type, "attempt": run.attempt, "pid": run.pid}


def _verdict(run: Run, outcome: Outcome, told: Told) -> Outcome:
    """What a run ends as: what it was told to stop for wins over whatever its handler made of that."""
    if run.stop is None or outcome.state is TaskState.ABANDONED:
        return outcome
    if run.stop is TaskState.TIMED_OUT:
        stack = outcome.stack or (told[2] if outcome.state is TaskState.CANCELLED else None)
        error = _time_was_up(run, stack)
        error.__cause__ = outcome.error if outcome.state is TaskState.FAILED else None
        return Outcome(TaskState.TIMED_OUT, error=error)
    return Outcome(TaskState.CANCELLED)


def _time_was_up(run: Run, stack: str | None) -> TaskTimeoutError:
    if run.struck == "queue_timeout":
        assert run.finished_ns is not None
        waited = run.finished_ns / 1e9 - max(run.queued_ns / 1e9, run.ready_at)
        return TaskTimeoutError(run.id, run.policy.queue_timeout, waited, limit=run.struck)
    limit = run.timeout if run.struck == "timeout" else run.policy.idle_timeout
    assert limit is not None
    stage = None if run.progress is None else run.progress.stage
    return TaskTimeoutError(run.id, limit, run.seconds() or 0.0, stack, run.struck, stage)


def _with_verdict(outcome: Outcome, told: Told, verdict: Verdict) -> tuple[Outcome, Told]:
    """The last outcome, with the reason why it is the last where that is ours to say."""
    error = outcome.error
    if not verdict.why or type(error) is not WorkerDiedError:
        return outcome, told
    last = error.because(verdict.why)
    return outcome._replace(error=last), _told_of_ours(last, told)


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
