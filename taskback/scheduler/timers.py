"""What tasks wait for that comes by itself: a time each, which may change or be called off.

Holds: each task that has an alarm has it in one of two places, and there are alarms there that were called off, which
are passed over; as soon as these are the greater part, both are made anew. Alarms that come in order of time, as those
of one limit do, stand in a queue, at no cost; the others in a heap. So each call costs O(log n), amortised.
"""

import heapq
from collections import deque
from typing import Any, Final

from taskback.scheduler.entry import Entry

SLACK: Final = 64  # alarms called off that are not worth tidying up
Alarm = tuple[float, int, Entry[Any]]


class Timers:
    """See the top of the file."""

    __slots__ = ("_heap", "_in_order", "_set")

    def __init__(self) -> None:
        self._in_order: deque[Alarm] = deque()
        self._heap: list[Alarm] = []
        self._set = 0  # how many are not called off

    def put(self, entry: Entry[Any], when: float) -> None:
        """Set the one alarm of a task."""
        if entry.alarm is not None:
            self.drop(entry)
        alarm = entry.alarm = (when, entry.sequence, entry)
        if not self._in_order or self._in_order[-1][:2] < alarm[:2]:
            self._in_order.append(alarm)
        else:
            heapq.heappush(self._heap, alarm)
        self._set += 1

    def drop(self, entry: Entry[Any]) -> None:
        """Call it off, if it is set."""
        if entry.alarm is None:
            return
        entry.alarm = None
        self._set -= 1
        if len(self._in_order) + len(self._heap) > 2 * self._set + SLACK:
            self._in_order = deque(alarm for alarm in self._in_order if alarm[2].alarm is alarm)
            self._heap = [alarm for alarm in self._heap if alarm[2].alarm is alarm]
            heapq.heapify(self._heap)

    def next(self) -> float | None:
        """When the first one is due; None if none is set."""
        first = self._first()
        return None if first is None else first[0]

    def due(self, now: float) -> Entry[Any] | None:
        """Take out the task whose alarm is due, if there is one."""
        first = self._first()
        if first is None or first[0] > now:
            return None
        entry = first[2]
        entry.alarm = None  # it is at the head of its place, and is passed over there
        self._set -= 1
        return entry

    def _first(self) -> Alarm | None:
        in_order, heap = self._in_order, self._heap
        while in_order and in_order[0][2].alarm is not in_order[0]:
            in_order.popleft()
        while heap and heap[0][2].alarm is not heap[0]:
            heapq.heappop(heap)
        if not heap:
            return in_order[0] if in_order else None
        return heap[0] if not in_order or heap[0][:2] < in_order[0][:2] else in_order[0]
