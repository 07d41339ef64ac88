"""A place in a process pool of somebody else: calls go there as bytes, and what it offers decides what can be kept.

Threads: send(), take_back() and interrupt() on any; replies come on the pool's own thread; force() on the keeper's.
Locks: none. A stock pool that breaks tells so with its own lock held (CPython 3.12 on), and what follows shuts it down
and hands over other calls: so that happens on the keeper's thread.
Holds: a run that was handed over ends with the pool's future. It counts as running from then on, since a pool does not
say when a call has begun, and one that may have run must not be run again.
"""

import logging
import os
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from functools import partial

from taskback import _clock, _forks
from taskback._call import Outcome
from taskback._run import Run
from taskback._state import TaskState
from taskback._worker_died import WorkerDiedError
from taskback.pools import trees
from taskback.pools.child import calls
from taskback.pools.lane import LaneOwner, OneRun

logger = logging.getLogger(__name__)


class ForeignLane(OneRun):
    """See the top of the file.

    Args:
        owner (LaneOwner): The backend.
        find_pool (Callable[[], Executor]): Gives somebody else's pool; called under no lock.
    """

    def __init__(self, owner: LaneOwner, find_pool: Callable[[], Executor]) -> None:
        super().__init__()
        self._owner = owner
        self._find_pool = find_pool
        self._pool: Executor | None = None  # once something was sent
        self._future: Future[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Not told by the pool."""
        return None

    def started(self, run: Run) -> None:
        """The begin of each run is told."""

    def stack(self, run: Run) -> str:
        """Nobody can tell."""
        return ""

    def send(self, run: Run) -> bool:
        """Hand a run to the pool, as `loop.run_in_executor` does: by its `submit`."""
        key, handler = self._owner.handler_bytes()
        assert run.data is not None
        request = calls.Request(
            *(0, run.id, run.type, run.attempt, run.timeout, run.context, run.data, key, handler),
            variables=run.variables,
        )
        pool = self._pool = self._find_pool()
        try:
            future = self._future = _submit(pool, request.pack())
        except BrokenExecutor as error:
            self._owner.pool_broke(pool)
            self._owner.ended(run, Outcome(TaskState.LOST, error=_died(run, error)))
            self._owner.idle(self, run)
            return True
        self._owner.has_started(run, None, _clock.monotonic_ns())
        future.add_done_callback(partial(self._replied, run))
        return True

    def _replied(self, run: Run, future: "Future[bytes]") -> None:
        broke = not future.cancelled() and isinstance(future.exception(), BrokenExecutor)
        if not broke or not self._owner.keeper.call(self._end, run, future):
            self._end(run, future)

    def _end(self, run: Run, future: "Future[bytes]") -> None:
        pid = _forks.pid
        try:
            outcome = self._outcome(run, future)
        except BaseException as error:
            logger.error("the reply of task %s could not be read", run.id, exc_info=True)
            outcome = Outcome(TaskState.FAILED, error=error)
        self._owner.ended(run, outcome)
        if _forks.pid != pid:  # by a callback, on a thread of the pool's
            _forks.leave()
        self._owner.idle(self, run)

    def _outcome(self, run: Run, future: "Future[bytes]") -> Outcome:
        try:
            data = future.result()
        except CancelledError:
            return Outcome(TaskState.CANCELLED)
        except BrokenExecutor as error:
            assert self._pool is not None
            self._owner.pool_broke(self._pool)
            return Outcome(TaskState.LOST, error=_died(run, error), own=True)
        except BaseException as error:  # the pool's own, for our call itself raises nothing
            return Outcome(TaskState.FAILED, error=error)
        with self._owner.user_code("rebuilding the result", run.id):
            reply = calls.unpack_reply(data)
            run.pid = reply.pid
            if reply.progress is not None:
                self._owner.progressed(run, calls.unpack_progress(reply.progress))
            return reply.outcome()

    def take_back(self) -> bool:
        """Whether the pool gives the call back, not having begun it."""
        return self._future is not None and self._future.cancel()

    def interrupt(self, run: Run, firmly: bool) -> None:
        """Take it back if the pool lets us; a call that has begun cannot be told."""
        self.take_back()

    def force(self, run: Run) -> None:
        """Kill all the pool's processes, which only a shutdown does; give the run up where it has none."""
        if self._pool is None or not hasattr(self._pool, "_processes"):
            self._owner.abandoned(run)
            return
        run.killed = True  # also where there are none any more: for another run they were killed a moment ago
        for pid in processes_of(self._pool):
            logger.warning("killing worker pid=%d of %r and what it has started", pid, type(self._pool).__name__)
            trees.kill_tree(pid, lambda: True)


def _submit(pool: Executor, data: bytes) -> "Future[bytes]":
    """Hand a call to a pool.

    The stock pool's thread is woken before the worker is started that the call needs, and may wait on without it: then
    that worker's death goes unnoticed, and its call never ends (CPython 3.11 to 3.13; loky's has the same origin). So
    it is woken once more. By private names; a test pins them.
    """
    before = set(getattr(pool, "_processes", None) or ())
    future = pool.submit(calls.perform, data)
    if set(getattr(pool, "_processes", None) or ()) != before:
        lock, wakeup = (getattr(pool, name, None) for name in ("_shutdown_lock", "_executor_manager_thread_wakeup"))
        if lock is not None and wakeup is not None:
            with lock:
                wakeup.wakeup()
    return future


def _died(run: Run, error: BaseException) -> WorkerDiedError:
    died = WorkerDiedError(None, None, run.seconds(), why=f"its pool broke: {error}")
    died.__cause__ = error
    return died


def processes_of(pool: Executor) -> list[int]:
    """The worker processes of a pool that has some, by the attribute that the stock pool and its kin keep them in."""
    processes = getattr(pool, "_processes", None) or {}
    pids = [getattr(process, "pid", None) for process in dict(processes).values()]
    return trees.alive(pid for pid in pids if isinstance(pid, int) and pid != os.getpid())
