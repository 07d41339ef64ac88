"""Several plain tasks that travel to a process as one: what `map` makes of them.

To the backend a chunk is one run; its figures count the tasks. Each task of it has its own result or error. If the
worker dies, the task that it was at is lost, those before it have their results, and those after it go another way.

Threads: written by whoever ends the run, before its handle ends; read after that.
"""

import itertools
from collections.abc import Iterator
from typing import Any, Final

from taskback import _codec
from taskback._state import TaskState

MOST: Final = 4096  # tasks of a chunk, for which a journal has room
FAILED: Final = 1 << 62  # a flag on the end of a record: it is an error
BRIEF: Final = 1 << 61  # another: it is a plain value, and written down by `marshal`, which is quicker
END: Final = BRIEF - 1
PLAIN: Final = frozenset((type(None), bool, int, float, str, bytes))  # values that are nobody's own


def pack_tasks(tasks: list[Any]) -> list[Any]:
    """Tasks as they are pickled: as they are where no two share a value that could be changed, else each by itself.

    What is pickled together would arrive as one where it was one, and a handler that changes its task would change
    others.
    """
    if len(set(map(id, tasks))) == len(tasks):
        values = itertools.chain.from_iterable(map(dict.values, tasks))
        if set(map(type, values)) <= PLAIN:
            return tasks
    return [_codec.dumps(task) for task in tasks]


def unpack_tasks(packed: list[Any]) -> Iterator[Any]:
    """The tasks, each rebuilt when it is its turn."""
    return map(_codec.loads, packed) if packed and type(packed[0]) is bytes else iter(packed)


class Chunk:
    """What has become of the tasks of a chunk so far.

    Args:
        count (int): How many there are.

    Attributes:
        parts (list[tuple[list[int], memoryview]]): The results in order: where each ends, and the bytes of all.
        whole (list[Any] | None): All results, where each is a plain value.
        known (int): How many those are.
        lost (BaseException | None): What happened to the task after those.
        seconds (float): That they took.
    """

    __slots__ = ("count", "known", "lost", "parts", "seconds", "whole")

    def __init__(self, count: int) -> None:
        self.count = count
        self.parts: list[tuple[list[int], Any]] = []
        self.whole: list[Any] | None = None
        self.known = 0
        self.lost: BaseException | None = None
        self.seconds = 0.0

    def add(self, base: int, ends: list[int], data: Any) -> None:
        """Results have come, of which so many go before them; some of them may have come before.

        Raises:
            ValueError: There are some missing before them, or more than there are tasks.
        """
        twice = self.known - base
        if twice < 0 or base + len(ends) > self.count:
            raise ValueError(f"{len(ends)} results from number {base} on, of {self.count}, with {self.known} known")
        if twice > 0:
            cut = ends[min(twice, len(ends)) - 1] & END if ends else 0
            ends, data = [end - cut for end in ends[twice:]], data[cut:]
        if ends:
            self.parts.append((ends, data))
            self.known += len(ends)

    def add_all(self, results: list[Any]) -> None:
        """All results have come at once.

        Raises:
            ValueError: They are not one for each task.
        """
        if type(results) is not list or len(results) != self.count:
            raise ValueError(f"a chunk of {self.count} tasks was answered by something else than its results")
        self.whole, self.known = results, self.count

    def records(self) -> Iterator[tuple[int, Any]]:
        """For each result its flag, and its bytes."""
        for ends, data in self.parts:
            at = 0
            for end in ends:
                until = end & END
                yield end & ~END, data[at:until]
                at = until

    @property
    def ended(self) -> int:
        """How many have ended: those before the first that has not."""
        return self.known + (self.lost is not None)

    def figures(self, state: TaskState) -> dict[TaskState, int]:
        """How many have ended how, where the run has ended so. Those that are missing go another way."""
        failed = sum(end >= FAILED for ends, _ in self.parts for end in ends)
        found = {TaskState.SUCCEEDED: self.known - failed, TaskState.FAILED: failed}
        if self.lost is not None:
            found[TaskState.LOST] = 1
        if state is TaskState.CANCELLED:
            found[TaskState.CANCELLED] = self.count - sum(found.values())
        return found
