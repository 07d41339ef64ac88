"""Back-pressure: whether a submission is taken now, waits for room, is refused, or has another task shed for it.

Pure: its owner's lock is held around every call; nothing is called from here. A submitter that waits is a token of the
owner's, unlike any other; whom a call names as admitted is to be woken by its owner, outside the lock, and has its room
already. So nobody can come in between, and those who wait are served in order.

Holds: what is queued, and what was admitted and is not queued yet, is counted in `queued` and `queued_bytes`. A token
waits from `ask` until it is admitted, gives up, or all are woken by `close`. Nobody waits while the first in line fits.
A submission that is larger than all the room there is fits where nothing else is queued, or it would wait for ever.

Which task is shed: of the lowest priority the oldest, but none of a higher priority than the new one; if there is none,
the new one is refused. A call costs O(log n), amortised.
"""

import enum
import heapq
from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from taskback._options import checked_count

T = TypeVar("T", bound=Hashable)  # a submitter that waits
WHEN_FULL: Final = ("wait", "reject", "shed")
SLACK: Final = 64  # tasks that are queued no more and that are not worth a new heap


class Answer(enum.Enum):
    """What becomes of a submission."""

    ADMITTED = "admitted"  # it has its room; to be queued, or its room to be given back
    WAITS = "waits"  # until its token is admitted
    REFUSED = "refused"  # QueueFullError


@dataclass(frozen=True, slots=True)
class Limits:
    """How much may be queued.

    Attributes:
        max_queued (int | None): Tasks; None sets no limit.
        max_queued_bytes (int | None): Bytes of tasks; None sets no limit.
        when_full (str): "wait", "reject" or "shed".

    Raises:
        TypeError: A field has the wrong type.
        ValueError: A field makes no sense.
    """

    max_queued: int | None = None
    max_queued_bytes: int | None = None
    when_full: str = "wait"

    def __post_init__(self) -> None:
        for name in ("max_queued", "max_queued_bytes"):
            if getattr(self, name) is not None:
                checked_count(name, getattr(self, name), least=1)
        if not isinstance(self.when_full, str):
            raise TypeError(f"when_full must be a string, not {type(self.when_full).__name__}")
        if self.when_full not in WHEN_FULL:
            raise ValueError(f"when_full must be one of {', '.join(WHEN_FULL)}, not {self.when_full!r}")

    @property
    def any(self) -> bool:
        """Whether there is a limit at all."""
        return self.max_queued is not None or self.max_queued_bytes is not None


class Pressure(Generic[T]):
    """See the top of the file. A task that is queued is known by its sequence number."""

    __slots__ = ("_by_rank", "_limits", "_queued", "_waiting", "queued", "queued_bytes")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.queued = 0
        self.queued_bytes = 0
        self._waiting: OrderedDict[T, int] = OrderedDict()  # how many bytes each asks for
        self._queued: dict[int, tuple[int, int]] = {}  # by sequence number: priority and bytes
        self._by_rank: list[tuple[int, int]] = []  # priority and sequence number; for shedding alone

    # --- submissions ---

    def ask(self, token: T, size: int, priority: int) -> tuple[Answer, list[int]]:
        """A submission comes, of so many bytes.

        Returns:
            tuple[Answer, list[int]]: What becomes of it, and the sequence numbers of the tasks that are to be shed for
            it: their owner ends them CANCELLED, with ShedError as the cause. Their room is not theirs any more.
        """
        if not self._waiting and self._fits(size):
            self._take_room(size)
            return Answer.ADMITTED, []
        if self._limits.when_full == "wait":
            self._waiting[token] = size
            return Answer.WAITS, []
        if self._limits.when_full == "shed":
            shed = self._shed_for(size, priority)
            if shed is not None:
                self._take_room(size)
                return Answer.ADMITTED, shed
        return Answer.REFUSED, []

    def give_up(self, token: T) -> list[T]:
        """A submitter waits no more: nothing is left of it. If it was admitted meanwhile, `give_back` is to be called.

        Returns:
            list[T]: Whom that admits: those behind it may be smaller.
        """
        return [] if self._waiting.pop(token, None) is None else self._admit()

    def give_back(self, size: int) -> list[T]:
        """What was admitted is not queued after all: it was cancelled, or has joined a run. Gives whom that admits."""
        self.queued -= 1
        self.queued_bytes -= size
        return self._admit()

    def close(self) -> list[T]:
        """Nothing is accepted any more: those who wait are to be woken with BackendClosedError."""
        woken = list(self._waiting)
        self._waiting.clear()
        return woken

    # --- the queue ---

    def enter(self, sequence: int, size: int, priority: int) -> None:
        """A task that was admitted is queued."""
        self._queued[sequence] = priority, size
        self._rank(sequence, priority)

    def come_back(self, sequence: int, size: int, priority: int) -> None:
        """A task that had begun, or was handed out, is queued again: it is not refused, even above the limit."""
        self._take_room(size)
        self.enter(sequence, size, priority)

    def change(self, sequence: int, size: int, priority: int) -> list[T]:
        """A submission has joined a task that is queued: this is its size and priority now. Gives whom that admits."""
        known = self._queued.get(sequence)
        if known is None:
            return []
        self.queued_bytes += size - known[1]
        self._queued[sequence] = priority, size
        if priority != known[0]:
            self._rank(sequence, priority)
        return self._admit()

    def leave(self, sequence: int) -> list[T]:
        """A task is queued no more: handed out, or over. Gives whom that admits; none if it was not here."""
        return self._admit() if self._drop(sequence) else []

    @property
    def waiting(self) -> int:
        """How many submitters wait."""
        return len(self._waiting)

    # --- room ---

    def _fits(self, size: int, tasks: int = 0, size_less: int = 0) -> bool:
        """Whether there is room for one more, if so many tasks and bytes less were queued."""
        limits, queued, queued_bytes = self._limits, self.queued - tasks, self.queued_bytes - size_less
        if limits.max_queued is not None and queued >= limits.max_queued:
            return False
        return limits.max_queued_bytes is None or not queued or queued_bytes + size <= limits.max_queued_bytes

    def _take_room(self, size: int) -> None:
        self.queued += 1
        self.queued_bytes += size

    def _admit(self) -> list[T]:
        admitted = []
        while self._waiting:
            token, size = next(iter(self._waiting.items()))
            if not self._fits(size):
                break
            del self._waiting[token]
            self._take_room(size)
            admitted.append(token)
        return admitted

    def _drop(self, sequence: int) -> bool:
        known = self._queued.pop(sequence, None)
        if known is None:
            return False
        self.queued -= 1
        self.queued_bytes -= known[1]
        if len(self._by_rank) > 2 * len(self._queued) + SLACK:
            self._by_rank = [(priority, each) for each, (priority, _) in self._queued.items()]
            heapq.heapify(self._by_rank)
        return True

    # --- shedding ---

    def _rank(self, sequence: int, priority: int) -> None:
        if self._limits.when_full == "shed":
            heapq.heappush(self._by_rank, (priority, sequence))

    def _shed_for(self, size: int, priority: int) -> list[int] | None:
        """Take tasks out until there is room; None, and nothing is changed, if that cannot be made."""
        places: list[tuple[int, int]] = []
        tasks = size_less = 0
        while not self._fits(size, tasks, size_less):
            place = self._lowest()
            if place is None or place[0] > priority:
                for each in places:
                    heapq.heappush(self._by_rank, each)
                return None
            heapq.heappop(self._by_rank)
            if places and place == places[-1]:  # it left and came back, so it is there twice, one behind the other
                continue
            places.append(place)
            tasks += 1
            size_less += self._queued[place[1]][1]
        shed = [sequence for _, sequence in places]
        for sequence in shed:
            self._drop(sequence)
        return shed

    def _lowest(self) -> tuple[int, int] | None:
        while self._by_rank:
            priority, sequence = self._by_rank[0]
            known = self._queued.get(sequence)
            if known is not None and known[0] == priority:
                return self._by_rank[0]
            heapq.heappop(self._by_rank)
        return None
