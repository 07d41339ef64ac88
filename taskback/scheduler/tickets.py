"""Tasks in order of submission, where any of them may leave.

Holds: the heap has the ticket of each member, and tickets that were let go of, which are passed over; as soon as these
are the greater part, the heap is made anew. So each call costs O(log n), amortised. A ticket lies in its
member's entry, which is looked at anyway: no table says who is in, for in a large one each look-up waits for memory. An
entry has one ticket at a time, so it is in one such line at a time.
"""

import heapq
from typing import Any, Final

from taskback.scheduler.entry import Entry

SLACK: Final = 16  # tickets let go of that are not worth a new heap


class Tickets:
    """See the top of the file."""

    __slots__ = ("_heap", "_members")

    def __init__(self) -> None:
        self._heap: list[tuple[int, Entry[Any]]] = []
        self._members = 0

    def put(self, entry: Entry[Any]) -> None:
        """A task takes its place."""
        ticket = entry.ticket = (entry.sequence, entry)
        heapq.heappush(self._heap, ticket)
        self._members += 1

    def drop(self, entry: Entry[Any]) -> None:
        """It leaves, wherever it stands."""
        entry.ticket = None
        self._members -= 1
        if len(self._heap) > 2 * self._members + SLACK:
            self._heap = [ticket for ticket in self._heap if ticket[1].ticket is ticket]
            heapq.heapify(self._heap)

    def first(self) -> Entry[Any]:
        """The one that was submitted first; there must be one."""
        heap = self._heap
        while True:
            ticket = heap[0]
            if ticket[1].ticket is ticket:
                return ticket[1]
            heapq.heappop(heap)

    def take(self) -> Entry[Any]:
        """Take that one out."""
        entry = self.first()
        heapq.heappop(self._heap)
        entry.ticket = None
        self._members -= 1
        return entry

    def __len__(self) -> int:
        return self._members
