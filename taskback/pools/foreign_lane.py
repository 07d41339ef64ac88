"""A place in a process pool of somebody else: calls go there as bytes, and what it offers decides what can be kept.

Threads: send(), take_back() and interrupt() on any; replies come on the pool's own thread; force() on the keeper's.
Holds: a run that was handed over ends with the pool's future. It counts as running from then on, since a pool does not
say when a call has begun, and one that may have run must not be run again.
"""

import logging
import os
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from functools import partial

from taskback import _clock
from taskback._call import Outcome
from taskback._errors import WorkerDiedError
from taskback._run import Run
from taskback._state import TaskState
from taskback.pools import trees
from taskback.pools.child import calls
from taskback.pools.lane import LaneOwner

logger = logging.getLogger(__name__)


class ForeignLane:
    """See the top of the file.

    Args:
        owner (LaneOwner): The backend.
        pool (Executor): Somebody else's.
    """

    def __init__(self, owner: LaneOwner, pool: Executor) -> None:
        self.run: Run | None = None
        self._owner = owner
        self._pool = pool
        self._future: Future[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Not told by the pool."""
        return None

    def send(self, run: Run) -> bool:
        """Hand a run to the pool, as `loop.run_in_executor` does: by its `submit`."""
        key, handler = self._owner.handler_bytes()
        assert run.data is not None
        request = calls.Request(0, run.id, run.type, run.attempt, run.timeout, run.context, run.data, key, handler)
        try:
            future = self._future = self._pool.submit(calls.perform, request.pack())
        except BrokenExecutor as error:
            self._owner.pool_broke(self._pool)
            self._owner.ended(run, Outcome(TaskState.LOST, error=_died(run, error)))
            self._owner.idle(self, run)
            return True
        self._owner.has_started(run, 0, _clock.monotonic_ns())
        future.add_done_callback(partial(self._replied, run))
        return True

    def _replied(self, run: Run, future: "Future[bytes]") -> None:
        try:
            outcome = self._outcome(run, future)
        except BaseException as error:
            logger.error("the reply of task %s could not be read", run.id, exc_info=True)
            outcome = Outcome(TaskState.FAILED, error=error)
        self._owner.ended(run, outcome)
        self._owner.idle(self, run)

    def _outcome(self, run: Run, future: "Future[bytes]") -> Outcome:
        try:
            data = future.result()
        except CancelledError:
            return Outcome(TaskState.CANCELLED)
        except BrokenExecutor as error:
            self._owner.pool_broke(self._pool)
            return Outcome(TaskState.LOST, error=_died(run, error))
        except BaseException as error:  # the pool's own, for our call itself raises nothing
            return Outcome(TaskState.FAILED, error=error)
        with self._owner.user_code(f"rebuilding the result of task {run.id}"):
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
        """Kill all the pool's processes, which only a shutdown does; give the run up where there are none."""
        pids = processes_of(self._pool)
        if not pids:
            self._owner.abandoned(run)
            return
        run.killed = True
        for pid in pids:
            logger.warning("killing worker pid=%d of %r and what it has started", pid, type(self._pool).__name__)
            trees.kill_tree(pid, lambda: True)


def _died(run: Run, error: BaseException) -> WorkerDiedError:
    died = WorkerDiedError(None, None, run.seconds(), why=f"its pool broke: {error}")
    died.__cause__ = error
    return died


def processes_of(pool: Executor) -> list[int]:
    """The worker processes of a pool that has some, by the attribute that the stock pool and its kin keep them in."""
    processes = getattr(pool, "_processes", None) or {}
    pids = [getattr(process, "pid", None) for process in dict(processes).values()]
    return trees.alive(pid for pid in pids if isinstance(pid, int) and pid != os.getpid())
