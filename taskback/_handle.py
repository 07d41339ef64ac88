"""What a caller holds of its task: a future that can also be awaited.

Threads: any. A handle is ended by the ledger's owner, in two steps: `_settle` under the ledger's lock (state, result,
those who block on it), then `_announce` outside of it (loops that await it, callbacks, which are user code).
Locks: those of a light future are leaves below the ledger's lock.
Holds: a handle ends once. Whoever is woken by it finds the backend's figures already up to date.
"""

import asyncio
from collections.abc import Callable, Generator
from concurrent.futures import Future
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, PENDING, RUNNING
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

from taskback import _clock, _forks
from taskback._call import Outcome
from taskback._errors import ShedError
from taskback._future import OVER, LightFuture
from taskback._mailbox import Mailbox, mailbox_of
from taskback._progress import Progress
from taskback._public import lives_in
from taskback._run import Attempt, Run
from taskback._state import TaskState
from taskback._task import Task


class Owner(Protocol):
    """What a handle needs of its backend."""

    def release(self, handle: "TaskHandle") -> bool:
        """The handle lets go of its run; True if it will end CANCELLED."""
        ...

    def refresh(self, run: Run) -> None:
        """Find out whether a run that was handed over has begun, where nobody tells."""
        ...


@lives_in("taskback")
class TaskHandle(LightFuture):
    """A submitted task, as its submitter sees it.

    A `concurrent.futures.Future`, so `wait`, `as_completed` and `asyncio.wrap_future` take it, that can also be
    awaited, from any event loop. As with an `asyncio.Task`, cancelling the coroutine that awaits it cancels the task;
    `asyncio.shield` is the way around that. It ends only when its work has really stopped (ABANDONED aside).

    Source:
        `concurrent.futures.Future` (Python 3.11 documentation) for what it shares with it.
    """

    __slots__ = ("_let_go_ns", "_loop_waiters", "_owner", "_run")

    def __init__(self, run: Run, owner: Owner, states: AbstractContextManager[object]) -> None:
        super().__init__(states)
        self._run = run
        self._owner = owner
        self._let_go_ns: int | None = None  # when it let go of a run that goes on for others
        self._loop_waiters: list[tuple[Mailbox, Callable[[], object], object]] | None = None

    @property
    def id(self) -> str:
        """The task's id: the caller's own, or one that grows with time.

        Returns:
            str: 1 to 64 characters.
        """
        return self._run.id

    @property
    def task(self) -> Task:
        """The task as it was submitted.

        Returns:
            dict[str, Any]: A copy; in a process backend rebuilt from its bytes at each call.
        """
        return self._run.task()

    @property
    def type(self) -> str | None:
        """The task's `"type"`.

        Returns:
            str | None: None for a task without one.
        """
        return self._run.type

    @property
    def context(self) -> dict[str, str]:
        """What travels beside the task; see `add_context`.

        Returns:
            dict[str, str]: A copy.
        """
        return dict(self._run.context)

    @property
    def state(self) -> TaskState:
        """Where the task is; CANCELLED as soon as this handle has let go of a run that others share.

        Returns:
            TaskState: One of eight; `state.final` tells whether it is over.
        """
        self._look()
        return TaskState.CANCELLED if self._let_go_ns is not None else self._run.state

    @property
    def attempt(self) -> int:
        """Which attempt this is.

        Returns:
            int: From 1.
        """
        return self._run.attempt

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """The attempts that have ended.

        Returns:
            tuple[Attempt, ...]: In order.
        """
        return self._run.attempts

    @property
    def queued_at(self) -> float:
        """When the task was accepted.

        Returns:
            float: Seconds since the epoch.
        """
        return _clock.epoch_ns(self._run.queued_ns) / 1e9

    @property
    def started_at(self) -> float | None:
        """When the handler was called.

        Returns:
            float | None: Seconds since the epoch, None before that.
        """
        self._look()
        return _clock.epoch(self._run.started_ns)

    @property
    def finished_at(self) -> float | None:
        """When the task, or this handle's hold on it, ended.

        Returns:
            float | None: Seconds since the epoch, None before that.
        """
        return _clock.epoch(self._let_go_ns or self._run.finished_ns)

    @property
    def worker_pid(self) -> int | None:
        """The process that the handler runs, or ran, in.

        Returns:
            int | None: None before that is known.
        """
        self._look()
        return self._run.pid

    @property
    def progress(self) -> Progress | None:
        """What the handler last reported.

        Returns:
            Progress | None: None before the first report.
        """
        return self._run.progress

    def running(self) -> bool:
        """Whether the handler has been called and has not ended.

        Returns:
            bool: As `concurrent.futures.Future.running`.
        """
        self._look()
        return super().running()

    def _look(self) -> None:
        run = self._run
        if run.state is TaskState.QUEUED and run.lane is not None and self._pid == _forks.pid:
            self._owner.refresh(run)

    def cancel(self) -> bool:
        """Stop the task.

        A queued one ends there and then. A running one is told to stop; the handle ends when it has. Where others
        share the task (same id), this handle alone ends, and the task is stopped when the last one has let go.

        Returns:
            bool: True if the task will not complete for this handle; False if it is over, or cannot be stopped.

        Raises:
            ForeignHandleError: In a fork of the process that submitted it.
        """
        self._refuse_foreign()
        return self._owner.release(self)

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the task and give its result.

        Args:
            timeout (float | None): Seconds to wait; None waits for as long as it takes. Nothing happens to the task
                when they have passed.

        Returns:
            Any: What the handler returned.

        Raises:
            TimeoutError: The wait was over before the task; `done()` is then False. A task whose own time was
                up raises `TaskTimeoutError`, which is one too.
            concurrent.futures.CancelledError: The task was cancelled.
            ForeignHandleError: In a fork of the process that submitted it.
            RuntimeError: Called in the event loop that is to run the task, which would wait for itself.
            BaseException: What the handler raised.
        """
        try:
            if self._state not in OVER:
                self._refuse_to_block()
            return super().result(timeout)
        finally:
            del self  # an error's traceback holds this frame, and the handle the error

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the task and give what it ended with.

        Args:
            timeout (float | None): Seconds to wait; None waits for as long as it takes.

        Returns:
            BaseException | None: None if it succeeded.

        Raises:
            TimeoutError: The wait was over before the task.
            concurrent.futures.CancelledError: The task was cancelled.
            ForeignHandleError: In a fork of the process that submitted it.
            RuntimeError: Called in the event loop that is to run the task, which would wait for itself.
        """
        if self._state not in OVER:
            self._refuse_to_block()
        return super().exception(timeout)

    def _task_id(self) -> str:
        return self.id

    def _refuse_to_block(self) -> None:
        self._refuse_foreign()
        home = self._run.home_loop
        if home is not None and asyncio._get_running_loop() is home:
            raise RuntimeError(f"task {self.id} runs in this event loop; blocking on it here would never end: await it")

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """Have `fn(handle)` called when the handle ends, or at once if it has ended.

        It runs on the thread that ends the handle, so it should be short. What asyncio itself adds (`asyncio.wait`)
        is called in its event loop.

        Args:
            fn (Callable[[TaskHandle], object]): What to call; what it raises is logged.

        Raises:
            ForeignHandleError: In a fork of the process that submitted it.
        """
        self._refuse_foreign()
        # asyncio.wait takes whatever is no coroutine for a future of its loop, and would be called in ours.
        if getattr(fn, "__module__", None) == "asyncio.tasks":
            self._wake_in_loop(asyncio.get_running_loop(), partial(fn, self), fn)
        else:
            super().add_done_callback(fn)

    def remove_done_callback(self, fn: Callable[[Future[Any]], object]) -> int:
        """Take a callback out again; asyncio's own functions do.

        Args:
            fn (Callable[[TaskHandle], object]): What was added.

        Returns:
            int: How many times it was found.
        """
        with self._states:
            waiters, callbacks = self._loop_waiters or [], self._callbacks or []
            self._loop_waiters = [entry for entry in waiters if entry[2] != fn]
            self._callbacks = [other for other in callbacks if other != fn]
            return len(waiters) + len(callbacks) - len(self._loop_waiters) - len(self._callbacks)

    def __await__(self) -> Generator[Any, None, Any]:
        try:
            if self._state not in OVER:
                yield from self._until_done(cancels=True).__await__()
            if self._state == CANCELLED_AND_NOTIFIED:
                raise asyncio.CancelledError(f"task {self.id} was cancelled") from self._exception
            return super().result(0)
        finally:
            del self  # an error's traceback holds this frame, and the handle the error

    async def _until_done(self, cancels: bool) -> None:
        """Wait in the running loop; being cancelled cancels the task where `cancels` is set."""
        self._refuse_foreign()
        loop = asyncio.get_running_loop()
        if self.done():
            return
        waiter: asyncio.Future[None] = loop.create_future()
        self._wake_in_loop(loop, partial(_release, waiter), waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if cancels:
                self.cancel()
            raise
        finally:
            if not self.done():
                self.remove_done_callback(waiter)  # type: ignore[arg-type]  # the waiter is its own key

    def _wake_in_loop(self, loop: asyncio.AbstractEventLoop, wake: Callable[[], object], key: object) -> None:
        mailbox = mailbox_of(loop)
        with self._states:
            if self._state not in OVER:
                if self._loop_waiters is None:
                    self._loop_waiters = []
                self._loop_waiters.append((mailbox, wake, key))
                return
        loop.call_soon(wake)

    def _mark_running(self) -> None:
        """The handler has been called. Under the ledger's lock, under which it ends, too."""
        if self._state == PENDING:
            self._state = RUNNING

    def _mark_queued(self) -> None:
        """It waits again, to be tried once more. Under the ledger's lock."""
        with self._states:
            if self._state == RUNNING:
                self._state = PENDING

    def _settle(self, outcome: Outcome) -> bool:
        """End the handle, without its callbacks; True if it has some, or is awaited. Under the ledger's lock."""
        if outcome.state is TaskState.CANCELLED:
            # From the first moment on as `concurrent.futures.wait` knows a cancelled future that is over.
            shed = outcome.error if isinstance(outcome.error, ShedError) else None
            self._end(None, shed, CANCELLED_AND_NOTIFIED)
        else:
            self._end(outcome.value, outcome.error)
        return self._loop_waiters is not None or self._callbacks is not None

    def _wake_loops(self) -> None:
        """Wake the loops that await the handle. After `_settle`, outside of any lock; runs no user code."""
        waiters, self._loop_waiters = self._loop_waiters, None
        for mailbox, wake, _ in waiters or ():
            mailbox.post(wake)

    def __repr__(self) -> str:
        foreign = f" of process {self._pid}" if self._pid != _forks.pid else ""
        return f"<TaskHandle {self.id} type={self.type!r} {self.state.value}{foreign}>"


def _release(waiter: "asyncio.Future[None]") -> None:
    if not waiter.done():
        waiter.set_result(None)
