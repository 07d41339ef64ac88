"""Lanes in an event loop: a run is an asyncio task of that loop.

Threads: send() and interrupt() on any, the call itself on the loop's, force() on the keeper's.
Holds: a run ends with its asyncio task. If the loop closes under it, it ends when it is next told to stop.
"""

import asyncio
import os
from functools import partial

from taskback import _forks
from taskback._call import AsyncCall, Outcome
from taskback._loops import call_in
from taskback._run import Run
from taskback._state import TaskState
from taskback.pools.lane import LaneOwner, OneRun


class LoopLane(OneRun):
    """A place in an event loop, for one run.

    Args:
        owner (LaneOwner): The backend.
        loop (asyncio.AbstractEventLoop): Where the run's handler is called.
    """

    def __init__(self, owner: LaneOwner, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._owner = owner
        self._loop = loop
        self._task: asyncio.Task[Outcome] | None = None  # the loop itself holds tasks weakly

    @property
    def pid(self) -> int | None:
        """This process."""
        return os.getpid()

    def started(self, run: Run) -> None:
        """The begin of each run is told."""

    def stack(self, run: Run) -> str:
        """Where its handler waits, or the loop is."""
        call = run.call
        return "" if call is None else str(call.stack())

    def send(self, run: Run) -> bool:
        """Make it a task of the loop."""
        if asyncio._get_running_loop() is self._loop:
            self._begin(run)
        elif not call_in(self._loop, self._begin, run):  # closed: nothing can run there any more
            self._owner.ended(run, Outcome(TaskState.CANCELLED))
        return True

    def _begin(self, run: Run) -> None:
        call = self._owner.make_async_call(run)
        variables = None if run.variables is None else run.variables.copy()  # as it was, for each attempt
        self._task = self._loop.create_task(self._perform(run, call), name=f"taskback-{run.id}", context=variables)
        call.runs_as(self._task)
        self._task.add_done_callback(partial(self._ended, run))

    async def _perform(self, run: Run, call: AsyncCall) -> Outcome:
        if not self._owner.may_start(run, call):
            return Outcome(TaskState.CANCELLED)
        pid = _forks.pid
        outcome = await call.run()
        if _forks.pid != pid:
            _forks.leave()
        try:
            if isinstance(outcome.error, KeyboardInterrupt):
                self._owner.ended(run, outcome)
                raise outcome.error  # the user's, who meant the program
            return outcome
        finally:
            del outcome  # an error's traceback leads to this frame

    def _ended(self, run: Run, task: "asyncio.Task[Outcome]") -> None:
        if task.cancelled():  # before its first step
            outcome = Outcome(TaskState.CANCELLED)
        elif (error := task.exception()) is not None:
            outcome = Outcome(TaskState.FAILED, error=error)
        else:
            outcome = task.result()
        self._task = None
        self._owner.ended(run, outcome)
        self._owner.idle(self, run)

    def interrupt(self, run: Run, firmly: bool) -> None:
        """Cancel the asyncio task; a sync handler gets the exception."""
        if run.call is not None:
            run.call.interrupt(firmly)

    def force(self, run: Run) -> None:
        """Give it up: the loop is the program's, and nothing can be killed in it."""
        if self._loop.is_closed():
            self._owner.ended(run, Outcome(TaskState.CANCELLED))
        else:
            self._owner.abandoned(run)
