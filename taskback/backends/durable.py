"""`DurableTaskBackend`: any backend, with its tasks in a journal from before `submit` returns until their outcome.

A submission is checked, pickled, written, and then passed on to the inner backend, which does all the rest. So at
every moment a task whose `submit` has returned is in the journal, or has its outcome.

Threads: any. Locks: _lock is a leaf; it guards the records and the moves of the backend's state. No user code under it.
Holds: a record is in `_records` from before its row is written until nobody holds on to its task any more: those are
its submitters, a handle each, and the journal itself for a task that a previous life left. Then its row goes, unless
the task was stopped by a shutdown: that one is for the next life.

Race: two submissions with one id. (1) The first one's run is in flight: the second joins it, needs no row of its own,
and holds the record too. (2) The first one is on its way in, or left by a previous life and not submitted again yet:
the second waits for that, and shares its run or, where that is over by then, its outcome. (3) The first one's run is
over, and its row is yet to go: the second one's row takes its place, in one transaction, with a record of its own.

Race: a submission and the shutdown. The inner backend refuses it, or accepts it and ends it. If it is refused its row
is withdrawn, for which the journal waits.
"""

import asyncio
import dataclasses
import inspect
import logging
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial
from typing import Any, Final

from taskback import _clock, _codec, _role
from taskback._backend import TaskBackend, _refuse_id, tell_at_the_end
from taskback._call import Handler
from taskback._context import captured
from taskback._errors import BackendClosedError, QueueFullError, TaskNotSerializableError
from taskback._handle import TaskHandle
from taskback._keeper import join
from taskback._options import NO_OPTIONS, UNSET, Options, checked_count, read_options
from taskback._public import lives_in
from taskback._report import BackendStats, ShutdownReport
from taskback._router import TaskRouter
from taskback._run import SHUTDOWN
from taskback._state import BACKEND_MOVES, BackendState, TaskState
from taskback._task import Task, checked_type
from taskback.backends._hosts_own import KEY, Named
from taskback.backends._journal import Insertion, Journal, Row, discard, quarantined
from taskback.backends._managed import ManagedBackend
from taskback.backends._marking import marking, unmarked

logger = logging.getLogger(__name__)

CLOSE: Final = 1.0  # seconds beyond the inner backend's shutdown that a disk which does not answer may take
PATIENCE: Final = 30.0  # seconds that a question to the journal may take


@lives_in("taskback")
@dataclasses.dataclass(frozen=True, slots=True)
class QuarantinedTask:
    """A task that was running at the end of too many lives of the program, and is not run again by itself.

    Attributes:
        id (str): Its id.
        type (str | None): The task's `"type"`.
        crashes (int): How many lives ended while it was running.
        submitted_at (float): In seconds since the epoch.
        pickled (bytes): The task, as it is kept.
    """

    id: str
    type: str | None
    crashes: int
    submitted_at: float
    pickled: bytes = dataclasses.field(repr=False)

    @property
    def task(self) -> Task:
        """The task as it was submitted, unpickled at each call.

        Returns:
            dict[str, Any]: A dict of the caller's own.

        Raises:
            Exception: It cannot be unpickled here.
        """
        task: Task = _codec.loads(self.pickled)
        return task


class _Record:
    """A task that the journal has a row of, and how many hold on to it.

    Args:
        row (Row): The row.
        journal (Journal): Whose it is.
        may_be_joined (bool): Whether another submission may come with its id before it is accepted.
    """

    __slots__ = ("by_handler", "ended", "entered", "holds", "id", "journal", "kept", "row", "submitted")

    def __init__(self, row: Row, journal: Journal, may_be_joined: bool = True) -> None:
        self.id = row.id
        self.row = row
        self.journal = journal
        self.holds = 1
        self.kept = False  # a shutdown has stopped it
        self.entered: Future[Any] | None = Future() if may_be_joined else None  # gives its handle, None if refused
        self.submitted: Any = None  # what a host's own backend gave for it
        self.by_handler = False  # it gave nothing that ends
        self.ended = False  # its handler has, in a host's own backend


class _Submission:
    """A task on its way in."""

    __slots__ = ("named", "options", "record", "row", "task")

    def __init__(self, row: Row, task: Task, options: dict[str, Any], named: bool) -> None:
        self.row = row
        self.task = task
        self.options = options
        self.named = named  # by the caller, so that another one may have the same id
        self.record: _Record


@lives_in("taskback")
class DurableTaskBackend(TaskBackend):
    """Keeps the tasks of another backend in a journal, so that they survive the program.

    A task is in the journal before `submit` returns, and leaves it when its outcome is known: SUCCEEDED, FAILED,
    TIMED_OUT, LOST, CANCELLED by a caller or shed, or ABANDONED at its time limit. What a shutdown or the end of the
    program stopped, or never came to, stays. `initialize` submits again what is there, in the order of submission and
    with its ids. So a task is run at least once; one that was running when the program was killed is run again.

    Such a task is charged a crash. When it has used up its budget it is quarantined: told in the log, kept, listed
    by `quarantined()`, and never run again by itself. A type's `max_crashes` counts workers and stays the inner
    backend's; the budget here is that or `max_crashes` of this one, whichever is more.

    The journal is a SQLite file, and four more files beside it while it is open. One process at a time may have it.
    It holds pickles: whoever can write to it can run code, so its files are made for their owner alone.

    A task must be picklable, and what its handler gets is always a copy. An inner backend of a host's own gets each
    dict with one more key, which is gone when its handler is called; its tasks end when what its `submit` returned
    does (a future, a task), or else when the handler has.

    Args:
        inner (TaskBackend): What runs the tasks; it is this one's from now on, and not to be submitted to by itself.
        path (str | os.PathLike): The journal. Its folder must exist; the file is made where there is none.
        fsync (bool): Whether `submit` waits for the disk. What was submitted survives the death of the program in any
            case; without it a power cut, or a crash of the system, may take the last tasks with it (and bring
            back the last ones that ended). It costs each submission a flush of the disk, which those that wait at the
            same time share.
        max_crashes (int): How many lives of the program a task may be running at the end of.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument makes no sense.
    """

    def __init__(
        self, inner: TaskBackend, path: "str | os.PathLike[str]", *, fsync: bool = True, max_crashes: int = 3
    ) -> None:
        if isinstance(inner, DurableTaskBackend) or not isinstance(inner, TaskBackend):
            raise TypeError(f"inner must be a backend that is not durable yet, not a {type(inner).__name__}")
        if not isinstance(fsync, bool):
            raise TypeError(f"fsync must be True or False, not {type(fsync).__name__}")
        path = os.fsdecode(path)
        if not path or "\0" in path:
            raise ValueError(f"path must name a file, not be {path!r}")
        self._inner = inner
        self._managed = inner if isinstance(inner, ManagedBackend) else None
        self._path = os.path.abspath(path)
        self._fsync = fsync
        self._max_crashes = checked_count("max_crashes", max_crashes, least=1)
        self._name = type(self).__name__
        self.promises = dataclasses.replace(inner.promises, live_objects=False)
        self._inherited: list[object] = []
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._lock = threading.Lock()
        self._state = BackendState.NEW
        self._journal: Journal | None = None
        self._starters = 0
        self._records: dict[str, _Record] = {}
        self._left: OrderedDict[str, _Record] = OrderedDict()  # of a previous life, not submitted again yet
        self._feeding: _Feeding | None = None
        self._limbo = 0  # of those, how many are being submitted just now
        self._starved = False  # the feeding waits for room
        self._room = threading.Lock()  # on which it waits; whoever ends a task lets go of it

    def set_handler(self, handler: Handler) -> None:
        self._inner.set_handler(handler)
        journal = self._journal
        if journal is not None:
            self._equip(journal)

    # --- start ---

    async def initialize(self, *, warm: bool = True, timeout: float | None = 60.0) -> None:
        """Open the journal, initialize the inner backend, and submit again what a previous life left.

        Where the inner backend's queue is full, or where it runs tasks as they are submitted, this does not wait: the
        rest follows as there is room, and new tasks may overtake it.

        Args:
            warm (bool): As for the inner backend's `initialize`.
            timeout (float | None): Seconds that this may take; None sets no bound.

        Raises:
            JournalHeldError: Another backend has the journal open, in this process or another one.
            JournalError: It cannot be opened, is damaged, no journal, or of a later version; it was left as it is.
            BackendClosedError: The backend is being shut down.
            TimeoutError: The disk, or the inner backend, took too long.
            Exception: As from the inner backend's `initialize`.
        """
        deadline = _clock.deadline_after(timeout)
        journal = self._begin()
        try:
            async with asyncio.timeout_at(None if timeout is None else deadline):
                left = await asyncio.shield(asyncio.wrap_future(journal.opened))
                self._equip(journal)
                await self._inner.initialize(**self._start_options(warm, deadline))
                if self._journal is not journal:  # it was shut down meanwhile
                    await self._inner.shutdown()
                    raise BackendClosedError(self._name, self._state.value)
                feeding, first = self._feed(journal, left)
                if first and self._managed is None:
                    await self._feed_here(feeding)
                await asyncio.shield(asyncio.wrap_future(feeding.settled))
        except BaseException as error:
            self._started(journal, error)
            raise
        self._started(journal, None)

    def initialize_sync(self, *, warm: bool = True, timeout: float | None = 60.0) -> None:
        """`initialize`, for callers without an event loop; from any thread.

        Args:
            warm (bool): As for `initialize`.
            timeout (float | None): As for `initialize`.

        Raises:
            Exception: As `initialize` does.
        """
        if self._managed is None:  # its tasks belong to the loop that submits them
            return self._from_sync(self.initialize(timeout=timeout))
        deadline = _clock.deadline_after(timeout)
        journal = self._begin()
        try:
            left = journal.opened.result(_left_until(deadline))
            self._equip(journal)
            self._managed.initialize_sync(**self._start_options(warm, deadline))
            if self._journal is not journal:
                self._managed.shutdown_sync(0)
                raise BackendClosedError(self._name, self._state.value)
            self._feed(journal, left)[0].settled.result(_left_until(deadline))
        except BaseException as error:
            self._started(journal, error)
            raise
        return self._started(journal, None)

    def _begin(self) -> Journal:
        _role.refuse_to_start(self._name)
        with self._lock:
            if self._state in (BackendState.DRAINING, BackendState.STOPPING):
                raise BackendClosedError(self._name, self._state.value)
            self._starters += 1
            journal, first = self._journal, self._journal is None
            if journal is None:
                journal = self._journal = Journal(self._path, self._fsync, f"{self._name}-journal", self._budget)
                self._feeding = None
        if first:
            tell_at_the_end(self)
            journal.start()
        return journal

    def _started(self, journal: Journal, error: BaseException | None) -> None:
        """A start has come to its end. The last one that fails leaves nothing behind."""
        with self._lock:
            self._starters -= 1
            if self._journal is not journal or self._state is BackendState.RUNNING:
                return
            if error is None:
                self._move(BackendState.RUNNING)
                self._initialized = True
            elif not self._starters or not isinstance(error, (asyncio.CancelledError, TimeoutError)):
                self._journal = None
            else:
                return
        if error is not None:
            journal.close(force=True)
            with suppress(TimeoutError):
                journal.closed.result(CLOSE)
            journal.thread.join(CLOSE)

    def _equip(self, journal: Journal) -> None:
        """Have the inner backend's handler mark what it runs."""
        handler = self._inner._executor
        if handler is None or getattr(handler, "_marks", None) is journal.marks:
            return
        handler = handler.__wrapped__ if isinstance(handler, Named) else unmarked(handler)
        if self._managed is None:
            self._inner.set_handler(Named(handler, journal.marks, partial(self._handler_ended, journal)))
        else:
            self._inner.set_handler(marking(handler, journal.marks))

    def _start_options(self, warm: bool, deadline: float) -> dict[str, Any]:
        return {} if self._managed is None else {"warm": warm, "timeout": _left_until(deadline)}

    def _budget(self, task_type: str | None) -> int:
        handler = self._inner._executor
        if isinstance(handler, TaskRouter):
            try:
                return max(self._max_crashes, handler.policy(task_type).max_crashes)
            except Exception:  # the host's own function
                logger.error("no policy for type %r", task_type, exc_info=True)
        return self._max_crashes

    def _move(self, state: BackendState) -> None:
        """Change the state. _lock is held."""
        assert state in BACKEND_MOVES[self._state], (self._state, state)
        logger.debug("%s %s -> %s", self._name, self._state.value, state.value)
        self._state = state

    # --- what a previous life left ---

    def _feed(self, journal: Journal, left: list[Row]) -> "tuple[_Feeding, bool]":
        """What there is to wait for, and whether it begins with this."""
        with self._lock:
            feeding = self._feeding
            if feeding is not None:
                return feeding, False
            feeding = self._feeding = _Feeding(self._feed_all, f"{self._name}-feeding")
            for row in left:
                self._records[row.id] = self._left[row.id] = _Record(row, journal)
        if self._managed is not None:
            feeding.begin(bool(left))
        return feeding, True

    def _feed_all(self, feeding: "_Feeding") -> None:
        """On its thread: submit what is left, in order."""
        if not self.promises.returns_before_run:
            feeding.settle()
        while (record := self._next_left()) is not None and self._feed_one(record, feeding.settle):
            pass

    async def _feed_here(self, feeding: "_Feeding") -> None:
        """The same in the running loop, which the tasks of a host's own backend may belong to."""
        try:
            while (record := self._next_left()) is not None:
                try:
                    task, options = _codec.loads(record.row.task), _again(record.row)
                    del options["id"]
                    submitted = await self._inner.submit({**task, KEY: record.id}, **options)
                except Exception as error:
                    self._cannot_run(record, error)
                    continue
                self._follow(record, submitted)
                self._entered(record)
        finally:
            feeding.settle()

    def _next_left(self, task_id: str | None = None) -> _Record | None:
        with self._lock:
            if task_id is None and self._left:
                task_id = next(iter(self._left))
            record = None if task_id is None else self._left.pop(task_id, None)
            self._limbo += record is not None
            return record

    def _entered(self, record: _Record, handle: Any = None) -> None:
        """A task that was left is submitted again, or cannot be."""
        with self._lock:
            self._limbo -= 1
        _done(record.entered, handle)

    def _feed_one(self, record: _Record, no_room: Callable[[], None]) -> bool:
        """Submit a task again, waiting for room, of which it tells; False if no more are taken."""
        assert self._managed is not None
        wait: float | None = 0.0
        while True:
            try:
                task, options = _codec.loads(record.row.task), _again(record.row)
                handle = self._managed.submit_sync(task, wait=wait, **options)
                break
            except TimeoutError:
                no_room()
                wait = None
            except QueueFullError:  # so the host wants it for its own submissions; these wait
                no_room()
                self._starved = True
                # Race: the last one has ended before this was set. Then it is looked at after a second.
                self._room.acquire(timeout=1.0)
            except BackendClosedError:  # it stays for the next life
                self._entered(record)
                return False
            except Exception as error:
                self._cannot_run(record, error)
                return True
        self._follow(record, handle)
        self._entered(record, handle)
        return True

    def _cannot_run(self, record: _Record, error: Exception) -> None:
        """It stays in the journal, and is tried again by the next `initialize`: code that knows it may be back then."""
        logger.error(
            "task %s of type %r, left by an earlier life, cannot be submitted again; it stays in the journal",
            *(record.id, record.row.type),
            exc_info=error,
        )
        with self._lock:
            self._records.pop(record.id, None)
        self._entered(record)

    # --- submissions ---

    async def submit(self, task: Task, **options: Any) -> Any:
        """Write a task into the journal, and hand it over; returns before it has run if the inner backend's does.

        Args:
            task (dict[str, Any]): What to do; it must be picklable.
            **options (Any): As for the inner backend; they are kept, too.

        Returns:
            TaskHandle: The inner backend's.

        Raises:
            TaskNotSerializableError: The task cannot be pickled, or not be read back.
            JournalError: It could not be written: the disk is full, say. Nothing was submitted.
            Exception: As the inner backend's `submit` does. Nothing was submitted.
        """
        if self._state is not BackendState.RUNNING:
            self._be_open(task)
            await self.initialize(warm=False)
        submission = self._new(task, options)
        waited: Any = None
        while (claimed := self._claim(submission, waited)) is not None:
            if not isinstance(claimed, _Entering):
                return claimed
            waited = await asyncio.shield(asyncio.wrap_future(claimed.future))
        insertion = self._insert([submission], asyncio.get_running_loop())
        try:
            await insertion.wait()
            self._check_written(insertion, submission)
            handle = await self._inner.submit(submission.task, **submission.options)
        except BaseException:
            self._withdraw(insertion, [submission])
            raise
        self._accept([submission], [handle])
        return handle

    def submit_sync(self, task: Task, *, wait: float | None = None, **options: Any) -> Any:
        """`submit`, for callers without an event loop; from any thread.

        Args:
            task (dict[str, Any]): As for `submit`.
            wait (float | None): Seconds that the call may block; None sets no bound.
            **options (Any): As for `submit`.

        Returns:
            TaskHandle: As from `submit`.

        Raises:
            TimeoutError: `wait` was over; nothing was submitted.
            Exception: As `submit` does.
        """
        if self._managed is None:
            return super().submit_sync(task, wait=wait, **options)
        deadline = _clock.deadline_after(wait)
        if self._state is not BackendState.RUNNING:
            self._be_open(task)
            self.initialize_sync(warm=False)
        submission = self._new(task, options)
        waited: Any = None
        while (claimed := self._claim(submission, waited)) is not None:
            if not isinstance(claimed, _Entering):
                return claimed
            waited = claimed.future.result(_left_until(deadline))
        insertion = self._insert([submission], None)
        try:
            if not insertion.block(deadline):
                raise TimeoutError(f"the journal did not take the task within {wait:g} s; nothing was submitted")
            self._check_written(insertion, submission)
            handle = self._inner.submit_sync(submission.task, wait=_left_until(deadline), **submission.options)
        except BaseException:
            self._withdraw(insertion, [submission])
            raise
        self._accept([submission], [handle])
        return handle

    async def submit_many(self, tasks: Iterable[Task], **options: Any) -> list[Any]:
        _refuse_id(options)
        tasks = list(tasks)
        if not tasks:
            return []
        if self._state is not BackendState.RUNNING:
            self._be_open(tasks[0])
            await self.initialize(warm=False)
        submissions = [self._new(task, options) for task in tasks]
        for each in submissions:
            self._claim(each)
        insertion = self._insert(submissions, asyncio.get_running_loop())
        handles: list[Any] = []
        try:
            await insertion.wait()
            self._check_written(insertion, submissions[0])
            for each in submissions:
                handles.append(await self._inner.submit(each.task, **each.options))  # those so far
        except BaseException:
            self._undo(insertion, submissions, handles)
            raise
        self._accept(submissions, handles)
        return handles

    def submit_many_sync(self, tasks: Iterable[Task], *, wait: float | None = None, **options: Any) -> list[Any]:
        if self._managed is None:
            return self._from_sync(self.submit_many(tasks, **options), wait)
        _refuse_id(options)
        deadline = _clock.deadline_after(wait)
        tasks = list(tasks)
        if not tasks:
            return []
        if self._state is not BackendState.RUNNING:
            self._be_open(tasks[0])
            self.initialize_sync(warm=False)
        submissions = [self._new(task, options) for task in tasks]
        for each in submissions:
            self._claim(each)
        insertion = self._insert(submissions, None)
        handles: list[Any] = []
        try:
            if not insertion.block(deadline):
                raise TimeoutError(f"the journal did not take the tasks within {wait:g} s; nothing was submitted")
            self._check_written(insertion, submissions[0])
            for each in submissions:
                handles.append(self._inner.submit_sync(each.task, wait=_left_until(deadline), **each.options))
        except BaseException:
            self._undo(insertion, submissions, handles)
            raise
        self._accept(submissions, handles)
        return handles

    def _be_open(self, task: Any) -> None:
        if self._state is not BackendState.NEW:
            raise BackendClosedError(self._name, self._state.value)
        task_type = task.get("type") if isinstance(task, dict) else None
        logger.warning("%s: a task of type %r came before initialize; initializing", self._name, task_type)

    def _claim(self, submission: _Submission, waited: Any = None) -> Any:
        """Have a record for it. Else the handle of the run that it joins, or what is to be waited for before.

        `waited` is the handle of the one with its id that it has waited for, whose run may be over by now.
        """
        journal = self._journal
        if journal is None:
            raise BackendClosedError(self._name, self._state.value)
        task_id = submission.row.id
        while submission.named:
            known = self._records.get(task_id)
            if known is not None:
                entering = known.entered is not None and not known.entered.done()  # first: see below
                joined = self._join(known)
                if joined is not None:
                    return joined
                # Race: it is accepted just now. If it had been before it was asked for, its run is over; else we wait,
                # if for nothing, and look again.
                if entering:
                    return self._have_enter(known)
            if isinstance(waited, TaskHandle) and waited.done() and not waited.cancelled():
                return waited
            with self._lock:
                if self._records.get(task_id) is known:
                    submission.record = self._records[task_id] = _Record(submission.row, journal)
                    return None
        with self._lock:
            submission.record = self._records[task_id] = _Record(submission.row, journal, may_be_joined=False)
        return None

    def _join(self, record: _Record) -> Any:
        """The handle of one who joins its run; None if that is not in flight."""
        if self._managed is None:
            return record.submitted
        joined = self._managed._ledger.join(record.id, self._managed)
        if joined is not None:
            with self._lock:
                held = self._records.get(record.id) is record
                record.holds += held
            # Race: the last who held it has let go just now. Then the run is over, and so is this handle.
            if held:
                joined.add_done_callback(partial(self._over, record))
        return joined

    def _have_enter(self, record: _Record) -> "_Entering":
        """Somebody waits for a task to be accepted; one of a previous life has its turn now, ahead of others."""
        assert record.entered is not None
        if self._managed is not None and self._next_left(record.id) is not None:
            thread = threading.Thread(
                target=self._feed_one, args=(record, _nothing), name=f"{self._name}-feeding-{record.id}", daemon=True
            )
            thread.start()
        return _Entering(record.entered)

    def _new(self, task: Task, given: dict[str, Any]) -> _Submission:
        """All that can be refused before anything is written."""
        if not isinstance(task, dict):
            raise TypeError(f"a task is a dict, not a {type(task).__name__}")
        task_type = checked_type(task)
        inner = self._managed
        name = type(self._inner).__name__
        options = read_options(name, self._inner.promises, given) if given else NO_OPTIONS
        if inner is not None:
            inner._policy(task_type)  # that of a router, which may lack the type
        task = dict(task)
        data = _codec.dumps_or_refuse(task, "task", TaskNotSerializableError)
        if inner is None or not inner.crosses:
            try:
                task = _codec.loads(data)  # what the handler would get in the next life
            except Exception as error:
                raise TaskNotSerializableError("task", "dict", f"not read back: {error}") from error
        kept, passed = self._kept(options)
        row = Row(
            0, options.id or _clock.new_task_id(), task_type, data, kept, _clock.epoch_ns(_clock.monotonic_ns()) / 1e9
        )
        named = options.id is not None
        if inner is not None:
            return _Submission(row, task, {**passed, "id": row.id}, named)
        given = {key: value for key, value in given.items() if key != "id"}
        return _Submission(row, {**task, KEY: row.id}, given, named)

    def _kept(self, options: Options) -> tuple[dict[str, Any], dict[str, Any]]:
        """The options of a submission, as they are kept and as they are passed on."""
        context = captured(options.context)
        kept: dict[str, Any] = {}
        if options is not NO_OPTIONS:
            if options.priority is not None:
                kept["priority"] = int(options.priority)
            if options.timeout is not UNSET:
                kept["timeout"] = options.timeout
            if options.ready_at:
                kept["not_before"] = _clock.epoch_ns(int(options.ready_at * 1e9)) / 1e9
        if context:
            kept["context"] = context
        return kept, dict(kept)

    def _insert(self, submissions: list[_Submission], loop: asyncio.AbstractEventLoop | None) -> Insertion:
        insertion = submissions[0].record.journal.insert([each.row for each in submissions], loop)
        if insertion is None:
            for each in submissions:
                self._forget(each.record)
            raise BackendClosedError(self._name, self._state.value)
        return insertion

    def _check_written(self, insertion: Insertion, submission: _Submission) -> None:
        if insertion.error is not None:
            raise submission.record.journal.error_of(insertion.error)

    def _withdraw(self, insertion: Insertion, submissions: list[_Submission]) -> None:
        submissions[0].record.journal.withdraw(insertion, [each.row for each in submissions])
        for each in submissions:
            self._forget(each.record)

    def _forget(self, record: _Record) -> None:
        """It was not accepted; nobody has joined it."""
        with self._lock:
            if self._records.get(record.id) is record:
                del self._records[record.id]
        _done(record.entered)

    def _undo(self, insertion: Insertion, submissions: list[_Submission], handles: list[Any]) -> None:
        """Several were to be submitted, and one was refused: none is, but where the queue has limits."""
        accepted = len(handles)
        if self._managed is not None and self._managed._ledger.pressure is not None and accepted:
            self._accept(submissions[:accepted], handles)
            submissions = submissions[accepted:]
        else:
            for handle in handles:
                handle.cancel()
        if submissions:
            self._withdraw(insertion, submissions)

    def _accept(self, submissions: list[_Submission], handles: list[Any]) -> None:
        for each, handle in zip(submissions, handles, strict=True):
            self._follow(each.record, handle)
            _done(each.record.entered, handle)
        submissions[0].record.journal.settle([each.row for each in submissions])

    def _follow(self, record: _Record, submitted: Any) -> None:
        """Its row leaves when this has ended, or, if it is nothing that ends, when the handler has."""
        if self._managed is None:
            record.submitted = submitted
        if hasattr(submitted, "add_done_callback"):
            submitted.add_done_callback(partial(self._over, record))
            return
        with self._lock:
            record.by_handler, ended = True, record.ended
        if ended:
            self._let_go(record, record.kept)

    def _handler_ended(self, journal: Journal, task_id: str, error: BaseException | None) -> None:
        """In a host's own backend."""
        stopped = error is not None and not isinstance(error, Exception) and self._state is not BackendState.RUNNING
        with self._lock:
            record = self._records.get(task_id)
            if record is None or record.journal is not journal or record.ended:
                return
            record.ended, record.kept = True, stopped
            waits = record.by_handler
        if waits:
            self._let_go(record, stopped)

    def _over(self, record: _Record, handle: Any) -> None:
        """A handle has ended. A callback: on whichever thread ends it."""
        if isinstance(handle, TaskHandle):
            stopped = _was_stopped(handle)
        else:
            stopped = handle.cancelled() and self._state is not BackendState.RUNNING
        self._let_go(record, stopped)
        self._look_for_room()

    def _look_for_room(self) -> None:
        if self._starved:
            with suppress(RuntimeError):  # nobody waits just now
                self._room.release()

    def _let_go(self, record: _Record, stopped: bool) -> None:
        with self._lock:
            record.holds -= 1
            record.kept = record.kept or stopped
            if record.holds:
                return
            if self._records.get(record.id) is record:
                del self._records[record.id]
        if not record.kept:
            record.journal.remove(record.row.seq)

    # --- the end ---

    async def shutdown(self, timeout: float | None = None) -> Any:
        """Shut the inner backend down, then close the journal; what was not finished stays in it for the next life.

        Args:
            timeout (float | None): As for the inner backend's `shutdown`. Where a disk does not answer, this takes a
                second longer than that.

        Returns:
            ShutdownReport: The inner backend's. If the disk did not answer, the journal's thread is among those that
                are `stuck`; what it had still to write is in the file or not, and no task is lost.

        Raises:
            Exception: As from the inner backend's `shutdown`.
        """
        _clock.deadline_after(timeout)  # nothing is shut down for one that makes no sense
        journal = self._refuse_more()
        if journal is None and self._managed is None:  # a host's own may not stand a second one
            return None
        try:
            shutdown: Callable[..., Any] = self._inner.shutdown
            takes_timeout = self._managed is not None or bool(inspect.signature(shutdown).parameters)
            report = await (shutdown(timeout) if takes_timeout and timeout is not None else shutdown())
        except BaseException:
            self._close_behind(journal)
            raise
        if journal is not None:
            for force in (False, True):
                journal.close(force)
                with suppress(TimeoutError):
                    async with asyncio.timeout(CLOSE / 2):
                        await asyncio.shield(asyncio.wrap_future(journal.closed))
            self._finish(journal, report)
        return report

    def shutdown_sync(self, timeout: float | None = None) -> Any:
        """`shutdown`, for callers without an event loop; from any thread.

        Args:
            timeout (float | None): As for `shutdown`.

        Returns:
            ShutdownReport: As from `shutdown`.

        Raises:
            Exception: As from the inner backend's `shutdown_sync`.
        """
        if self._managed is None:
            return super().shutdown_sync(timeout)
        _clock.deadline_after(timeout)
        journal = self._refuse_more()
        try:
            report = self._managed.shutdown_sync(timeout)
        except BaseException:
            self._close_behind(journal)
            raise
        if journal is not None:
            for force in (False, True):
                journal.close(force)
                with suppress(TimeoutError):
                    journal.closed.result(CLOSE / 2)
            self._finish(journal, report)
        return report

    def _refuse_more(self) -> Journal | None:
        with self._lock:
            if self._state is BackendState.RUNNING:
                self._move(BackendState.DRAINING)
            self._initialized = False
            journal = self._journal
            if self._state in (BackendState.NEW, BackendState.STOPPED):
                self._journal = None  # of a start that is under way, which finds that out
                self._state = BackendState.STOPPED
        self._look_for_room()
        return journal

    def _close_behind(self, journal: Journal | None) -> None:
        """Whoever waited for the shutdown does so no more: close the journal when it is over."""
        closing = None if self._managed is None else self._managed._closing
        if journal is not None:
            if closing is None:
                self._finish_later(journal)
            else:
                closing.done.add_done_callback(lambda _: self._finish_later(journal))

    def _finish_later(self, journal: Journal) -> None:
        journal.close(force=True)
        journal.closed.add_done_callback(lambda _: self._finish(journal, None))

    def _finish(self, journal: Journal, report: Any) -> None:
        stuck = []
        feeding = self._feeding
        if feeding is not None and not feeding.end(_clock.monotonic() + 0.1):
            stuck.append(feeding.name)
        if threading.current_thread() is not journal.thread:
            journal.thread.join(0.1 if journal.closed.done() else 0)
            if journal.thread.is_alive():
                stuck.append(journal.thread.name)
        if isinstance(report, ShutdownReport):
            report.stuck += [name for name in stuck if name not in report.stuck]
        with self._lock:
            if self._journal is journal:
                self._journal = None
                self._records.clear()
                self._left.clear()
                if self._state is BackendState.DRAINING:
                    self._move(BackendState.STOPPED)

    def hurry(self, timeout: float = 0) -> None:
        self._inner.hurry(timeout)

    def at_exit(self) -> "Future[Any] | None":
        """The program ends: once the inner backend has ended, close the journal."""
        journal = self._journal
        if journal is None:
            return None
        ended = None if self._managed is None else self._managed.at_exit()
        if ended is None:
            journal.close(force=True)
        else:
            ended.add_done_callback(lambda _: journal.close(force=True))
        return journal.closed

    def exit_seconds(self) -> float:
        """How long the end of the program may wait for this backend."""
        return CLOSE + (0.0 if self._managed is None else self._managed.exit_seconds())

    def forked(self) -> None:
        """This is a fork: start afresh, and touch nothing of the parent's."""
        self._inherited.append((self._journal, self._records, self._left, self._feeding, self._room, self._sync_loop))
        self._sync_loop = None
        self._initialized = False
        self._start_afresh()

    # --- answers ---

    def quarantined(self) -> list[QuarantinedTask]:
        """The tasks that were running at the end of too many lives. To run one again, submit it with its id.

        Returns:
            list[QuarantinedTask]: In order of submission.

        Raises:
            BackendClosedError: The backend is not initialized.
            JournalError: They cannot be read.
        """
        rows: list[Row] = self._asked(quarantined)
        return [QuarantinedTask(row.id, row.type, row.crashes, row.submitted_at, row.task) for row in rows]

    def discard(self, task_id: str) -> bool:
        """Remove a quarantined task.

        Args:
            task_id (str): Its id.

        Returns:
            bool: False if there was none with this id.

        Raises:
            BackendClosedError: The backend is not initialized.
            JournalError: It cannot be removed.
        """
        return bool(self._asked(partial(discard, task_id)))

    def _asked(self, question: Callable[[Any], Any]) -> Any:
        journal = self._journal
        answer = None if journal is None else journal.ask(question)
        if answer is None:
            raise BackendClosedError(self._name, self._state.value)
        return answer.result(PATIENCE)

    def handle(self, task_id: str) -> TaskHandle:
        return self._inner.handle(task_id)

    @property
    def inflight_count(self) -> int:
        return self._inner.inflight_count + len(self._left) + self._limbo

    def stats(self) -> BackendStats:
        """The figures of the inner backend; what was left by a previous life counts from when it is submitted again.

        Returns:
            BackendStats: As of now.
        """
        return self._inner.stats()

    def subscribe(self, listener: Callable[[Any], Any]) -> Callable[[], None]:
        return self._inner.subscribe(listener)

    def explain(self, handle: TaskHandle) -> str:
        return self._inner.explain(handle)

    def stacks(self) -> dict[str, str]:
        return self._inner.stacks()

    def _worker_count(self) -> int:
        return self._inner._worker_count()

    def _get_ready_to_drop(self) -> None:
        self._inner._get_ready_to_drop()

    def _drop(self, handles: list[TaskHandle]) -> None:
        self._inner._drop(handles)

    def __repr__(self) -> str:
        return f"<{self._name} {self._state.value} path={self._path!r} inner={self._inner!r}>"


class _Feeding:
    """The thread that submits again what a previous life left; `settled` when initialize need not wait any longer."""

    def __init__(self, work: "Callable[[_Feeding], None]", name: str) -> None:
        self.settled: Future[None] = Future()
        self.name = name
        self._work = work
        self._thread: threading.Thread | None = None

    def begin(self, needed: bool) -> None:
        """Start, if there is anything to do."""
        if not needed:
            self.settle()
            return
        self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
        self._thread.start()

    def settle(self) -> None:
        """Nobody need wait for it any longer."""
        _done(self.settled)

    def _run(self) -> None:
        try:
            self._work(self)
        except BaseException:
            logger.error("%s ended before its time", self.name, exc_info=True)
        finally:
            self.settle()

    def end(self, deadline: float) -> bool:
        """Wait for it; False if it has not ended."""
        return join(self._thread, deadline)


class _Entering:
    """What a submission waits for whose id another one has that is on its way in."""

    __slots__ = ("future",)

    def __init__(self, future: "Future[Any]") -> None:
        self.future = future


def _done(future: "Future[Any] | None", value: Any = None) -> None:
    with suppress(InvalidStateError):
        if future is not None:
            future.set_result(value)


def _nothing() -> None:
    return None


def _again(row: Row) -> dict[str, Any]:
    """The options to submit a left task with; its time may have come."""
    options = {"id": row.id, **row.options}
    if "not_before" in options and options["not_before"] <= _clock.epoch_ns(_clock.monotonic_ns()) / 1e9:
        del options["not_before"]
    return options


def _was_stopped(handle: Any) -> bool:
    """Whether a shutdown has stopped a task, and no caller."""
    if not isinstance(handle, TaskHandle) or handle._let_go_ns is not None:
        return False
    run = handle._run
    return run.struck == SHUTDOWN and run.state in (TaskState.CANCELLED, TaskState.ABANDONED)


def _left_until(deadline: float) -> float | None:
    return None if deadline == float("inf") else max(0.0, deadline - _clock.monotonic())
