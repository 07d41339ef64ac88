"""Watches for tasks that seem to be stuck: they run on, and report nothing.

Threads: see_to_it() on any, the looking on the keeper's; telling on the thread of the callbacks, for a worker takes
some milliseconds to write its stacks, and a log is user code.
Locks: none.
Holds: there is one timer at most, and none while no lane has a run: an idle backend is not woken, and a run that has
ended is not kept. Each silence of a task is told once.

Race: see_to_it() and a look that finds nothing to wait for. A lane has its run before see_to_it() asks whether somebody
looks, and a look says that it does not before it asks the lanes. So one of the two sees the other; if both do, the
second look calls the timer of the first off.
"""

import asyncio
from collections.abc import Callable, Iterable

from taskback import _clock
from taskback._courier import Courier
from taskback._keeper import LoopThread
from taskback._run import Run
from taskback._state import TaskState
from taskback.pools.lane import Lane


class Watch:
    """See the top of the file.

    Args:
        seconds (float): Without a report for so long a run is told.
        lanes (Callable[[], Iterable[Lane]]): What may have runs.
        refresh (Callable[[Run], None]): Finds out whether a run has begun.
        tell (Callable[[Run, float], None]): Gets the run, and for how many seconds it has been silent.
        keeper (LoopThread): Looks.
        courier (Courier): Tells.
    """

    def __init__(
        self,
        seconds: float,
        lanes: Callable[[], Iterable[Lane]],
        refresh: Callable[[Run], None],
        tell: Callable[[Run, float], None],
        keeper: LoopThread,
        courier: Courier,
    ) -> None:
        self._seconds = seconds
        self._lanes = lanes
        self._refresh = refresh
        self._tell = tell
        self._keeper = keeper
        self._courier = courier
        self._looks = False
        self._timer: asyncio.TimerHandle | None = None
        self._told: dict[str, int] = {}  # by task id: the silence that was told, by when it began

    def see_to_it(self) -> None:
        """A run was handed to a lane."""
        if not self._looks:
            self._looks = True
            self._keeper.start()
            self._keeper.call(self._look)

    def _look(self) -> None:
        self._looks = False  # first: see the race on the top
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = _clock.monotonic()
        running = [run for lane in self._lanes() if (run := lane.run) is not None]
        told, due = {}, now + self._seconds
        for run in running:
            self._refresh(run)
            if run.state is not TaskState.RUNNING or run.stop is not None:
                continue
            silent = now - run.moved_ns / 1e9
            if silent < self._seconds:
                due = min(due, now + self._seconds - silent)
                continue
            told[run.id] = run.moved_ns
            if self._told.get(run.id) != run.moved_ns:
                self._courier.post(self._tell, run, silent)
        self._told = told
        if running:
            self._looks = True
            self._timer = asyncio.get_running_loop().call_at(due, self._look)  # its clock is the monotonic one
