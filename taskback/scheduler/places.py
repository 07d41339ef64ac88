"""How many of the tasks that wait go before one of them, for whoever asks why it waits.

Holds: each task that was added and not dropped is counted in the block of its priority and of its sequence number. To
add and to drop cost O(1). To ask looks at the priorities in use, at the blocks of one priority and at the tasks of one
block, never at all tasks.
"""

from collections import defaultdict
from typing import Any, Final

from taskback.scheduler.entry import Entry, Place

BLOCK: Final = 512  # sequence numbers that share a block


class Places:
    """See the top of the file. `entries` are the scheduler's, by sequence number."""

    __slots__ = ("_counts", "_entries")

    def __init__(self, entries: dict[int, Entry[Any]]) -> None:
        self._entries = entries
        self._counts: defaultdict[int, defaultdict[int, int]] = defaultdict(_counts)  # by priority, then by block

    def add(self, entry: Entry[Any]) -> None:
        """A task waits."""
        self._counts[entry.priority][entry.sequence // BLOCK] += 1

    def drop(self, entry: Entry[Any]) -> None:
        """It waits no more."""
        counts, block = self._counts[entry.priority], entry.sequence // BLOCK
        counts[block] -= 1
        if not counts[block]:
            del counts[block]
            if not counts:
                del self._counts[entry.priority]

    def before(self, entry: Entry[Any]) -> int:
        """How many have a higher priority than this one, or the same and an earlier place."""
        priority, mine = entry.priority, entry.sequence // BLOCK
        higher = sum(sum(counts.values()) for other, counts in self._counts.items() if other > priority)
        earlier = sum(count for block, count in self._counts.get(priority, {}).items() if block < mine)
        near = map(self._entries.get, range(mine * BLOCK, entry.sequence))
        return (
            higher
            + earlier
            + sum(
                1 for other in near if other is not None and other.place is Place.READY and other.priority == priority
            )
        )


def _counts() -> defaultdict[int, int]:
    return defaultdict(int)
