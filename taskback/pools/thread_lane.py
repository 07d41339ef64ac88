"""Lanes in this process: a run is a call on a thread of a stock pool.

Threads: send() and interrupt() on any, force() on the keeper's, the call itself on the pool's thread.
Holds: a thread that was given up takes no other run, and ends when its call does.
"""

import logging
import os
import threading
from concurrent.futures import Executor, ThreadPoolExecutor

from taskback._call import Outcome
from taskback._keeper import join
from taskback._run import Run
from taskback._state import TaskState
from taskback.pools.lane import LaneOwner

logger = logging.getLogger(__name__)


class ThreadLane:
    """A place in a pool of threads.

    Args:
        owner (LaneOwner): The backend.
        pool (Executor): Whose threads are in this process.
    """

    def __init__(self, owner: LaneOwner, pool: Executor) -> None:
        self.run: Run | None = None
        self.retired = False
        self._owner = owner
        self._pool = pool

    @property
    def pid(self) -> int | None:
        """This process."""
        return os.getpid()

    def send(self, run: Run) -> bool:
        """Have the pool call the handler."""
        self._pool.submit(self._work, run)
        return True

    def _work(self, run: Run) -> None:
        owner = self._owner
        try:
            call = owner.make_call(run)
            if owner.may_start(run, call):
                owner.ended(run, call.run())
            else:
                owner.ended(run, Outcome(TaskState.CANCELLED))
        except BaseException as error:  # ours, for the call itself raises nothing
            logger.error("a lane failed on task %s", run.id, exc_info=True)
            owner.ended(run, Outcome(TaskState.FAILED, error=error))
        owner.idle(self, run)

    def interrupt(self, run: Run, firmly: bool) -> None:
        """The cooperative flag and the exception, which is all that a thread offers."""
        if run.call is not None:
            run.call.interrupt(firmly)

    def force(self, run: Run) -> None:
        """Give the thread up."""
        self.retired = True
        self._owner.abandoned(run)


class OwnThreadLane(ThreadLane):
    """A stock pool of one thread, so that one that was given up can be replaced."""

    def __init__(self, owner: LaneOwner, name: str) -> None:
        self.thread: threading.Thread | None = None
        pool = ThreadPoolExecutor(1, thread_name_prefix=name, initializer=self._begin)
        super().__init__(owner, pool)

    def _begin(self) -> None:
        self.thread = threading.current_thread()

    def close(self) -> None:
        """Let the thread end once it is idle."""
        self._pool.shutdown(wait=False)

    def join(self, deadline: float) -> bool:
        """Wait for the thread; False if something holds it at the deadline."""
        return join(self.thread, deadline)
