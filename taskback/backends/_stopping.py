"""How a run that was handed to a lane is stopped: it is told, told firmly at half the grace, and forced after it.

Threads: limit() and stop() on any; what they set off runs on the keeper's.
Locks: the ledger's lock, to set `run.stop` once.
Holds: whoever sets `run.stop` calls stop(); a run that has ended meanwhile, or is in another lane, is let alone.
"""

import asyncio
import logging

from taskback._keeper import LoopThread
from taskback._run import Run
from taskback._state import TaskState
from taskback.backends._ledger import Ledger
from taskback.pools.lane import Lane

logger = logging.getLogger(__name__)


class Stopping:
    """See the top of the file.

    Args:
        ledger (Ledger): The tasks.
        keeper (LoopThread): Keeps the times.
        grace (float): Seconds that a task which is told to stop may take.
    """

    def __init__(self, ledger: Ledger, keeper: LoopThread, grace: float) -> None:
        self.grace = grace
        self._ledger = ledger
        self._keeper = keeper

    def limit(self, run: Run) -> None:
        """Keep a run's time limit; its handler has been called."""
        if run.timeout is not None:
            self._keeper.start()
            self._keeper.call(self._time_it, run)

    def _time_it(self, run: Run) -> None:
        if run.timeout is not None and run.started_ns is not None and not run.state.final:
            # The loop's clock is the monotonic one.
            asyncio.get_running_loop().call_at(run.started_ns / 1e9 + run.timeout, self._time_is_up, run)

    def limit_here(self, run: Run, lane: Lane, seconds: float) -> None:
        """Keep what is left of the limit of a run whose begin nobody tells; nothing if it leaves its lane before."""
        self._keeper.start()
        self._keeper.call(self._time_it_here, run, lane, seconds)

    def _time_it_here(self, run: Run, lane: Lane, seconds: float) -> None:
        asyncio.get_running_loop().call_later(seconds, self._time_is_up_here, run, lane)

    def _time_is_up_here(self, run: Run, lane: Lane) -> None:
        if run.lane is lane and self.time_was_up(run):
            self.stop(run)

    def _time_is_up(self, run: Run) -> None:
        if run.state is TaskState.RUNNING and self.time_was_up(run):
            self.stop(run)

    def time_was_up(self, run: Run) -> bool:
        """A run's time is up; False if it has ended, or is to stop already."""
        with self._ledger.lock:
            if run.state.final or run.stop is not None:
                return False
            run.stop = TaskState.TIMED_OUT
        logger.warning("task %s of type %r exceeded %.3g s and is stopped", run.id, run.type, run.timeout)
        return True

    def stop(self, run: Run) -> None:
        """Tell a run that was handed over to stop; `run.stop` says why. It is forced after the grace."""
        lane: Lane | None = run.lane
        if lane is None:  # it has ended meanwhile
            return
        try:
            self._keeper.start()
        except RuntimeError:  # the program ends: the worker is told, and nobody can wait for it
            logger.debug("no keeper for the grace of task %s", run.id)
        lane.interrupt(run, firmly=False)
        self._keeper.call(self._be_firmer, run, lane)

    def _be_firmer(self, run: Run, lane: Lane) -> None:
        loop = asyncio.get_running_loop()
        loop.call_later(self.grace / 2, self._firmly, run, lane)
        loop.call_later(self.grace, self._force, run, lane)

    def _firmly(self, run: Run, lane: Lane) -> None:
        if not run.state.final and run.lane is lane:
            lane.interrupt(run, firmly=True)

    def _force(self, run: Run, lane: Lane) -> None:
        if not run.state.final and run.lane is lane:
            lane.force(run)
