"""The queue that the backends had before the scheduler, to be measured against: priority, then order, and delays.

Pure: the clock is passed in, and its owner's lock is held around every call.
Holds: a run that was pushed and not discarded is popped once. A push or a pop costs O(log n).
"""

import heapq
from collections.abc import Iterator

from taskback._run import Run


class TaskQueue:
    """Runs in the order in which they may start."""

    def __init__(self) -> None:
        self._ready: list[tuple[int, int]] = []
        self._delayed: list[tuple[float, int]] = []
        self._waiting: dict[int, Run] = {}  # by sequence number; what is not here any more is skipped by pop

    def push(self, run: Run, now: float) -> None:
        """Put a run in its place, by its `sequence`; one that comes back gets its old place."""
        self._waiting[run.sequence] = run
        if run.ready_at > now:
            heapq.heappush(self._delayed, (run.ready_at, run.sequence))
        else:
            heapq.heappush(self._ready, (-run.priority, run.sequence))

    def first(self, now: float) -> Run | None:
        """The run that may start now, if there is one."""
        while self._delayed and self._delayed[0][0] <= now:
            _, sequence = heapq.heappop(self._delayed)
            if sequence in self._waiting:
                heapq.heappush(self._ready, (-self._waiting[sequence].priority, sequence))
        while self._ready:
            run = self._waiting.get(self._ready[0][1])
            if run is not None:
                return run
            heapq.heappop(self._ready)
        return None

    def pop(self, now: float) -> Run | None:
        """Take that out."""
        run = self.first(now)
        if run is not None:
            heapq.heappop(self._ready)
            del self._waiting[run.sequence]
        return run

    def discard(self, run: Run) -> None:
        """Take a run out, wherever it stands."""
        self._waiting.pop(run.sequence, None)

    def __iter__(self) -> Iterator[Run]:
        """The runs that wait, in no order."""
        return iter(self._waiting.values())

    def __len__(self) -> int:
        return len(self._waiting)
