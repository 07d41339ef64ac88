"""How many of the tasks that wait go before one of them, for whoever asks why it waits.

Holds: each task that was added and not dropped lies in the block of its priority and of its sequence number. To add and
to drop cost O(1). To ask looks at the priorities in use, at the blocks of one priority and at the tasks of one block,
never at all tasks.
"""

from typing import Final

BLOCK: Final = 512  # sequence numbers that share a block


class Places:
    """See the top of the file."""

    __slots__ = ("_blocks", "_counts")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}  # by priority
        self._blocks: dict[int, dict[int, set[int]]] = {}  # by priority, then by block

    def add(self, priority: int, sequence: int) -> None:
        """A task waits."""
        self._counts[priority] = self._counts.get(priority, 0) + 1
        self._blocks.setdefault(priority, {}).setdefault(sequence // BLOCK, set()).add(sequence)

    def drop(self, priority: int, sequence: int) -> None:
        """It waits no more."""
        blocks = self._blocks[priority]
        block = blocks[sequence // BLOCK]
        block.remove(sequence)
        if not block:
            del blocks[sequence // BLOCK]
        self._counts[priority] -= 1
        if not self._counts[priority]:
            del self._counts[priority], self._blocks[priority]

    def before(self, priority: int, sequence: int) -> int:
        """How many have a higher priority, or the same and an earlier place."""
        higher = sum(count for other, count in self._counts.items() if other > priority)
        blocks = self._blocks.get(priority, {})
        mine = sequence // BLOCK
        earlier = sum(len(block) for number, block in blocks.items() if number < mine)
        return higher + earlier + sum(1 for other in blocks.get(mine, ()) if other < sequence)
