"""`SyncTaskBackend`: runs a task as it is submitted."""

import asyncio
from concurrent.futures import Executor, Future
from concurrent.futures import wait as wait_for
from typing import Any

from taskback import _clock
from taskback._handle import TaskHandle
from taskback._promises import Promises
from taskback._public import lives_in
from taskback._run import Run
from taskback._state import TaskState
from taskback._task import Task
from taskback.backends._managed import ManagedBackend
from taskback.pools.loop_lane import LoopLane
from taskback.pools.thread_lane import ThreadLane


@lives_in("taskback")
class SyncTaskBackend(ManagedBackend):
    """Runs a task as it is submitted: when `submit` returns, the task has run.

    For tests, scripts and programs that embed a library which takes a backend. A sync handler blocks the caller,
    the event loop included; an async one runs in the submitter's loop, or in one made for it where there is none.

    Args:
        handler (Callable[[dict], Any] | None): Sync or async; None leaves it to `set_handler`.
        timeout (float | None): Seconds that a task may run, where neither its type nor its submission says so.
        shutdown_timeout_seconds (float): How long `shutdown` drains (tasks of other threads) if it is not told.
        cancel_grace_seconds (float): How long a task that is told to stop may take.
        exit_grace_seconds (float): How long all that may take at the end of a program that did not shut down.
        keep_ended (int): How many ended tasks `handle` still finds; their results stay in memory.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument makes no sense.
    """

    _queues = False

    promises = Promises(
        live_objects=True,
        priority=True,  # nothing ever waits
        timeout=True,
        cancels_running=True,
        exact_start=True,
        progress=True,
        bounded_shutdown=True,
        exits_without_shutdown=True,
        no_orphans=True,
        no_orphans_in_c_code=True,
        no_main_guard=True,
        daemonic_parent=True,
        stacks=True,
        idle_costs_nothing=True,
    )

    async def submit(self, task: Task, **options: Any) -> TaskHandle:
        """Run a task; when this returns, it has run.

        Args:
            task (dict[str, Any]): What to do. It is copied.
            **options (Any): As for every backend, but for `delay` and `not_before`, which this one cannot keep.

        Returns:
            TaskHandle: It has ended.

        Raises:
            TypeError: The task is no dict, or an option has the wrong type.
            ValueError: An option makes no sense, or this backend cannot keep it.
            UnknownTaskTypeError: The handler is a router that lacks the task's type.
            BackendClosedError: After `shutdown`.
        """
        handle = self._accept(task, options, queue=False)
        assert isinstance(handle, TaskHandle)  # there is no queue that could be full
        run = handle._run
        if run.state is TaskState.QUEUED and run.lane is None:
            run.home_loop = asyncio.get_running_loop()
            self._go(run, LoopLane(self, run.home_loop))
        await handle._until_done(cancels=True)
        return handle

    def submit_sync(self, task: Task, *, wait: float | None = None, **options: Any) -> TaskHandle:
        """Run a task in the calling thread; when this returns, it has run.

        Args:
            task (dict[str, Any]): What to do. It is copied.
            wait (float | None): Not needed here: a `timeout` is what bounds a task that runs in the caller.
            **options (Any): As for every backend, but for `delay` and `not_before`, which this one cannot keep.

        Returns:
            TaskHandle: It has ended.

        Raises:
            KeyboardInterrupt: Ctrl-C while the handler ran in the caller's thread.
            Exception: As `submit` does.
        """
        _clock.deadline_after(wait)
        handle = self._accept(task, options, queue=False)
        assert isinstance(handle, TaskHandle)  # there is no queue that could be full
        run = handle._run
        if run.state is TaskState.QUEUED and run.lane is None:
            self._go(run, _HereLane(self, _HerePool()))
            if handle.state is TaskState.FAILED and isinstance(handle.exception(), KeyboardInterrupt):
                handle.result()  # raises what was the user's, who meant the program
        else:
            handle._refuse_to_block()
            wait_for([handle])
        try:
            return handle
        finally:
            del handle  # an error's traceback leads to this frame, and the handle has the error

    def _start_afresh(self) -> None:
        super()._start_afresh()
        self._ledger.schedules = False

    def _go(self, run: Run, lane: Any) -> None:
        with self._ledger.lock:
            run.lane = lane
            lane.took(run)
        self._hand_over(run)

    def _lane_freed(self, lane: Any) -> bool:
        return False


class _HereLane(ThreadLane):
    """The calling thread, as a lane."""

    on_callers_thread = True


class _HerePool(Executor):
    """The calling thread, as a pool."""

    def submit(self, fn: Any, /, *args: Any, **options: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        future.set_result(fn(*args, **options))
        return future
