"""Members in the order of their ranks, where ranks change and members leave.

Holds: `_ranks` says who is in and with which rank. The heap has an entry for each of those, and entries that are out of
date, which are passed over; as soon as these are the greater part, the heap is made anew. So each call costs
O(log n), amortised: the cost of passing over an entry, or of making it anew, was paid when it went out of date.
"""

import heapq
from collections.abc import Hashable
from typing import Final, Generic, TypeVar

M = TypeVar("M", bound=Hashable)
R = TypeVar("R", int, float, tuple[int, int])

SLACK: Final = 64  # entries out of date that are not worth a new heap


class Ranking(Generic[M, R]):
    """See the top of the file. Members may share a rank if they can be compared: they come in their own order then."""

    __slots__ = ("_heap", "_ranks")

    def __init__(self) -> None:
        self._heap: list[tuple[R, M]] = []
        self._ranks: dict[M, R] = {}

    def put(self, member: M, rank: R) -> None:
        """Give a member its rank, whether it is in or not."""
        if self._ranks.get(member) == rank:
            return
        self._ranks[member] = rank
        heapq.heappush(self._heap, (rank, member))
        if len(self._heap) > 2 * len(self._ranks) + SLACK:
            self._renew()

    def drop(self, member: M) -> None:
        """Take a member out, if it is in."""
        if self._ranks.pop(member, None) is not None and len(self._heap) > 2 * len(self._ranks) + SLACK:
            self._renew()

    def first(self) -> M:
        """The member of the lowest rank; there must be one."""
        return self._top()[1]

    def first_rank(self) -> R:
        """The lowest rank; there must be one."""
        return self._top()[0]

    def take(self) -> M:
        """Take out the member of the lowest rank; there must be one."""
        member = self._top()[1]
        heapq.heappop(self._heap)
        del self._ranks[member]
        return member

    def _top(self) -> tuple[R, M]:
        while True:
            rank, member = entry = self._heap[0]
            if self._ranks.get(member) == rank:
                return entry
            heapq.heappop(self._heap)

    def _renew(self) -> None:
        self._heap = [(rank, member) for member, rank in self._ranks.items()]
        heapq.heapify(self._heap)

    def __contains__(self, member: M) -> bool:
        return member in self._ranks

    def __len__(self) -> int:
        return len(self._ranks)
