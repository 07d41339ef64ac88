"""How a run that was handed to a lane is stopped: it is told, told firmly at half the grace, and forced after it.

Threads: limit() and stop() on any; what they set off runs on the keeper's.
Locks: the ledger's lock, to set `run.stop` once.
Holds: whoever sets `run.stop` calls stop(); a run that has ended meanwhile, or is in another lane, is let alone.
"""

import asyncio
import logging
from typing import Final

from taskback import _clock
from taskback._keeper import LoopThread
from taskback._run import Run
from taskback._state import TaskState
from taskback._task import ANNOUNCE_EVERY_NS
from taskback.backends._ledger import Ledger
from taskback.pools.lane import Lane

logger = logging.getLogger(__name__)

REPORTS_LATE: Final = ANNOUNCE_EVERY_NS / 1e9  # seconds that a report may be under way
SHORTEST: Final = 0.005  # seconds between two looks at a run


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
            self._keeper.call(self._time_it, run, run.attempt)

    def _time_it(self, run: Run, attempt: int) -> None:
        if run.timeout is not None and run.started_ns is not None and not run.state.final:
            # The loop's clock is the monotonic one.
            asyncio.get_running_loop().call_at(run.started_ns / 1e9 + run.timeout, self._time_is_up, run, attempt)

    def limit_idle(self, run: Run) -> None:
        """Keep the limit of a run's silence, which was handed to its lane."""
        self._keeper.start()
        self._keeper.call(self._look_whether_idle, run, run.lane, run.attempt)

    def _look_whether_idle(self, run: Run, lane: Lane | None, attempt: int) -> None:
        if lane is None or run.lane is not lane or run.attempt != attempt or run.state.final:
            return
        limit = run.policy.idle_timeout + REPORTS_LATE
        self._ledger.refresh(run)
        silent = _clock.monotonic() - run.moved_ns / 1e9 if run.state is TaskState.RUNNING else 0.0
        if silent < limit:
            loop = asyncio.get_running_loop()
            loop.call_later(max(limit - silent, SHORTEST), self._look_whether_idle, run, lane, attempt)
        elif self.time_was_up(run, "idle_timeout"):
            self.stop(run)

    def limit_here(self, run: Run, lane: Lane, seconds: float) -> None:
        """Keep what is left of the limit of a run whose begin nobody tells; nothing if it leaves its lane before."""
        self._keeper.start()
        self._keeper.call(self._time_it_here, run, lane, seconds)

    def _time_it_here(self, run: Run, lane: Lane, seconds: float) -> None:
        asyncio.get_running_loop().call_later(seconds, self._time_is_up_here, run, lane)

    def _time_is_up_here(self, run: Run, lane: Lane) -> None:
        if run.lane is lane and self.time_was_up(run):
            self.stop(run)

    def _time_is_up(self, run: Run, attempt: int) -> None:
        if run.state is TaskState.RUNNING and run.attempt == attempt and self.time_was_up(run):
            self.stop(run)

    def time_was_up(self, run: Run, limit: str = "timeout") -> bool:
        """A run's time is up; False if it has ended, or is to stop already."""
        with self._ledger.lock:
            if run.state.final or run.stop is not None:
                return False
            run.stop, run.struck = TaskState.TIMED_OUT, limit
        seconds = run.timeout if limit == "timeout" else run.policy.idle_timeout
        logger.warning("task %s of type %r exceeded its %s of %.3g s and is stopped", run.id, run.type, limit, seconds)
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
