"""A submission that waits for room in the queue.

Threads: wait() on the submitter's, in a loop or blocking; wake() on any, under the ledger's lock.
Locks: none of its own; wake() takes none.
Holds: who is woken with `admitted` set has room, and uses it or gives it back; who is woken without it finds the
backend closing.
"""

import asyncio
import threading

from taskback import _clock
from taskback._loops import call_in
from taskback._run import Run
from taskback._task import Task


class Ticket:
    """See the top of the file.

    Args:
        run (Run): What is to be queued.
        task (Task): The same, as it came.
        backend (str): Whose queue it is.
    """

    __slots__ = ("_blocks", "_loop", "_woken", "admitted", "backend", "run", "shed", "task", "used")

    def __init__(self, run: Run, task: Task, backend: str) -> None:
        self.run = run
        self.task = task
        self.backend = backend
        self.admitted = False  # whether it has room; written under the ledger's lock, as the next two are
        self.used = False  # whether that is the run's by now, or given back
        self.shed: list[Run] = []  # what was dropped for it, to be ended
        self._loop = asyncio._get_running_loop()
        self._woken = asyncio.Event()
        self._blocks = threading.Lock()
        self._blocks.acquire()

    def wake(self, admitted: bool) -> None:
        """It has room, or the backend takes nothing any more. Once."""
        self.admitted = admitted
        if self._loop is None:
            self._blocks.release()
        else:
            call_in(self._loop, self._woken.set)  # if it has closed, nobody waits there any more

    async def wait(self) -> None:
        """In the loop that it was made in."""
        await self._woken.wait()

    def block(self, deadline: float) -> bool:
        """Where no loop runs; False if the time is over."""
        left = deadline - _clock.monotonic()
        return self._blocks.acquire(timeout=max(0.0, min(left, threading.TIMEOUT_MAX)))
