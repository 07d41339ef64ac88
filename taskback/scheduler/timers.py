"""What tasks wait for that comes by itself: a time each, which may change or be called off.

Holds: the heap has the alarm of each task that has one, and alarms that were called off, which are passed over; as soon
as these are the greater part, the heap is made anew. So each call costs O(log n), amortised.
"""

import heapq
from typing import Any, Final

from taskback.scheduler.entry import Entry

SLACK: Final = 64  # alarms called off that are not worth a new heap


class Timers:
    """See the top of the file."""

    __slots__ = ("_heap", "_set")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Entry[Any]]] = []
        self._set = 0  # how many are not called off

    def put(self, entry: Entry[Any], when: float) -> None:
        """Set the one alarm of a task."""
        if entry.alarm is not None:
            self.drop(entry)
        alarm = entry.alarm = (when, entry.sequence, entry)
        heapq.heappush(self._heap, alarm)
        self._set += 1

    def drop(self, entry: Entry[Any]) -> None:
        """Call it off, if it is set."""
        if entry.alarm is None:
            return
        entry.alarm = None
        self._set -= 1
        if len(self._heap) > 2 * self._set + SLACK:
            self._heap = [alarm for alarm in self._heap if alarm[2].alarm is alarm]
            heapq.heapify(self._heap)

    def next(self) -> float | None:
        """When the first one is due; None if none is set."""
        heap = self._heap
        while heap:
            alarm = heap[0]
            if alarm[2].alarm is alarm:
                return alarm[0]
            heapq.heappop(heap)
        return None

    def due(self, now: float) -> Entry[Any] | None:
        """Take out the task whose alarm is due, if there is one."""
        when = self.next()
        if when is None or when > now:
            return None
        entry = heapq.heappop(self._heap)[2]
        entry.alarm = None
        self._set -= 1
        return entry
