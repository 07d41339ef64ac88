"""Workers that are started before the first task, and those who wait until they are ready.

Threads: any. Locks: _lock is a leaf; `done`, whose callbacks are asyncio's alone, is set outside it.
Holds: `done` is set once: when each lane has had a worker that has loaded the handler, or with the first error of that.
A lane that cannot start one (it has no descriptors, say) goes on trying, and is not waited for where others can.

Race: one initialize() is cancelled, or its time is up, beside another that waits for the same workers. Only the last
one that leaves is told that nobody waits any more, so that no backend is shut down under another's feet.
"""

import threading
from collections.abc import Iterable
from concurrent.futures import Future
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from taskback.backends._closing import Closing


class Warming:
    """See the top of the file.

    Attributes:
        done (Future[None]): To be waited for.
        closing (Closing | None): The shutdown that came of its failure.
    """

    def __init__(self) -> None:
        self.done: Future[None] = Future()
        self.closing: Closing | None = None
        self._lock = threading.Lock()
        self._cold: set[object] = set()
        self._any_ready = False
        self._waiting = 0
        self._expects = False
        self._decided = False

    def expect(self, lanes: Iterable[object]) -> None:
        """These are about to be started."""
        with self._lock:
            self._cold |= set(lanes)
            self._expects = bool(self._cold)

    def joined(self) -> "Warming | None":
        """Somebody waits; None if there is nothing to wait for."""
        with self._lock:
            if not self._expects:
                return None
            self._waiting += 1
            return self

    def left(self) -> bool:
        """Somebody waits no more; True if that was the last one."""
        with self._lock:
            self._waiting -= 1
            return not self._waiting

    def ready(self, lane: object, error: BaseException | None) -> None:
        """A lane has a worker; `error` is what loading the handler has raised there."""
        self._heard(lane, error, final=error is not None)

    def unable(self, lane: object, error: BaseException) -> None:
        """A lane cannot start a worker for now."""
        self._heard(lane, error, final=False)

    def _heard(self, lane: object, error: BaseException | None, final: bool) -> None:
        with self._lock:
            self._cold.discard(lane)
            self._any_ready |= error is None
            if self._decided or (self._cold and not final):
                return
            self._decided = True
            self._cold.clear()
            failure = error if final or not self._any_ready else None
        self._tell(failure)

    def fail(self, error: BaseException) -> None:
        """It will not come to that."""
        with self._lock:
            if self._decided:
                return
            self._decided = True
            self._cold.clear()
        self._tell(error)

    def _tell(self, error: BaseException | None) -> None:
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)

    @property
    def succeeded(self) -> bool:
        """Whether the workers are ready."""
        return self.done.done() and self.done.exception() is None
