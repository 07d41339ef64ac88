"""One timer, for the next time at which a backend has to look at its tasks though nothing else happens.

Threads: set() on any, the rest on the keeper's.
Locks: none.
Holds: it rings at the earliest time that was set since it last rang, or later. Whoever is called sets it again.
"""

import asyncio
import logging
import math
from collections.abc import Callable

from taskback._keeper import LoopThread

logger = logging.getLogger(__name__)


class Alarm:
    """See the top of the file.

    Args:
        keeper (LoopThread): Keeps the time.
        ring (Callable[[], object]): What to call then.
    """

    def __init__(self, keeper: LoopThread, ring: Callable[[], object]) -> None:
        self._keeper = keeper
        self._ring = ring
        self._at = math.inf  # written on the keeper's thread
        self._timer: asyncio.TimerHandle | None = None

    def set(self, when: float) -> None:
        """Have it ring at this time of the monotonic clock, unless it does before."""
        if when >= self._at:
            return
        try:
            self._keeper.start()
        except RuntimeError:  # the program ends, and with it what waits
            logger.debug("no keeper for a timer")
            return
        self._keeper.call(self._set, when)

    def _set(self, when: float) -> None:
        if when >= self._at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._at = when
        self._timer = asyncio.get_running_loop().call_at(when, self._rings)  # its clock is the monotonic one

    def _rings(self) -> None:
        self._at, self._timer = math.inf, None
        self._ring()
