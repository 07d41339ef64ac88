"""Lanes in this process: a run is a call on a thread, of our own or of a pool of somebody else's.

Threads: send() and interrupt() on any, force() on the keeper's, the call itself on the lane's thread.
Holds: a thread that was given up takes no other run, and ends when its call does.

Race: force() and the end of the call. The lane is given up only if its run is still there, and both, giving it up and
the end of a run, are steps under the ledger's lock. (1) The run ends first: it has left the lane, and nothing is given
up. (2) The lane is given up first: another has its place from then on, and when the call has returned the thread finds
the lane `retired`, and ends. The run's outcome is told by whoever comes first, the keeper or the thread: ABANDONED, or
what it was stopped for.
"""

import logging
from concurrent.futures import Executor
from queue import SimpleQueue

from taskback import _forks
from taskback._call import Outcome
from taskback._keeper import join
from taskback._run import Run
from taskback._state import TaskState
from taskback.pools.lane import LaneOwner, OneRun
from taskback.pools.worker_thread import END, WorkerThread

logger = logging.getLogger(__name__)


class LaneInThread(OneRun):
    """What the two kinds share: how a run is performed, and how it is stopped.

    Args:
        owner (LaneOwner): The backend.
    """

    on_callers_thread = False

    def __init__(self, owner: LaneOwner) -> None:
        super().__init__()
        self._owner = owner

    @property
    def pid(self) -> int | None:
        """This process."""
        return _forks.pid

    def started(self, run: Run) -> None:
        """The begin of each run is told."""

    def call(self, run: Run) -> None:
        """Call the handler, here and now."""
        owner, pid = self._owner, _forks.pid
        try:
            call = owner.make_call(run)
            if owner.may_start(run, call):
                outcome = call.run()
                if _forks.pid != pid:
                    _forks.leave()
                owner.ended(run, outcome)
                del outcome  # an error's traceback leads to this frame
            else:
                owner.ended(run, Outcome(TaskState.CANCELLED))
        except BaseException as error:  # ours, for the call itself raises nothing
            logger.error("a lane failed on task %s", run.id, exc_info=True)
            owner.ended(run, Outcome(TaskState.FAILED, error=error))
        if _forks.pid != pid and not self.on_callers_thread:  # by a callback
            _forks.leave()

    def stack(self, run: Run) -> str:
        """Where its thread is."""
        call = run.call
        return "" if call is None else str(call.stack())

    def send(self, run: Run) -> bool:
        """Have a thread call the handler."""
        raise NotImplementedError

    def interrupt(self, run: Run, firmly: bool) -> None:
        """The cooperative flag and the exception, which is all that a thread offers."""
        if run.call is not None:
            run.call.interrupt(firmly)

    def force(self, run: Run) -> None:
        """Give the thread up."""
        self._owner.abandoned(run)


class ThreadLane(LaneInThread):
    """A place in a pool of somebody else's threads.

    Args:
        owner (LaneOwner): The backend.
        pool (Executor): Whose threads are in this process.
    """

    def __init__(self, owner: LaneOwner, pool: Executor) -> None:
        super().__init__(owner)
        self._pool = pool

    def send(self, run: Run) -> bool:
        """Have the pool call the handler."""
        self._pool.submit(self._perform, run)
        return True

    def _perform(self, run: Run) -> None:
        self.call(run)
        self._owner.idle(self, run)


class OwnThreadLane(LaneInThread):
    """A thread of our own, started with its first run.

    Args:
        owner (LaneOwner): The backend.
        name (str): The thread's.
    """

    def __init__(self, owner: LaneOwner, name: str) -> None:
        super().__init__(owner)
        self.thread: WorkerThread[_Sent] | None = None
        self.retired = False  # given up; written under the ledger's lock
        self._name = name
        self._sent: SimpleQueue[_Sent | None] = SimpleQueue()

    def __del__(self) -> None:
        self._sent.put(END)

    def send(self, run: Run) -> bool:
        """Pass it to the thread."""
        if self.thread is None:
            thread = WorkerThread(self._name, self._sent, _perform)
            thread.start()
            self.thread = thread  # only now: what could not be started must not be joined
        self._sent.put((self, run))
        return True

    def perform(self, run: Run) -> None:
        """Call the handler, and those of what comes next, as long as there is something."""
        following: Run | None = run
        while following is not None:
            run = following
            self.call(run)
            following = self._owner.next_after(self, run)
            if following is not None:
                self._owner.handed_over(following)

    def close(self) -> None:
        """Let the thread end after what it was sent."""
        self._sent.put(END)

    def join(self, deadline: float) -> bool:
        """Wait for the thread; False if something holds it at the deadline."""
        return join(self.thread, deadline)


_Sent = tuple[OwnThreadLane, Run]


def _perform(sent: _Sent) -> None:
    """An idle thread holds no lane, and so no backend: one that nobody refers to any more ends its threads."""
    lane, run = sent
    lane.perform(run)
