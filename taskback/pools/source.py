"""Where calls come from: what a lane may ask of it, and what it is told.

Lanes *pull*: a lane whose worker is free takes the next call, so that whatever decides which call is next decides at
the last moment. When there is none the lane is idle, which the source remembers; whoever has a call then gives it to an
idle lane itself (`WorkerLane.send`), without a thread in between. A plain queue is one source, a backend's scheduler
another.

What stands for a call, an item, is the source's own affair; it says how it is sent (`Message`).
"""

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from taskback._packed import Packed
from taskback.pools.child.packets import Packet
from taskback.pools.worker_process import Ending

if TYPE_CHECKING:
    from taskback.pools.worker_lane import WorkerLane


class Message(NamedTuple):
    """A call, as it is sent.

    Attributes:
        kind (int): `packets.CALL` or `packets.TASK`.
        call (int): Its id, unlike that of any other call of the source; at least 1.
        data (bytes | Parts): What the worker is to do.
        function (tuple[int, bytes] | None): What it refers to by number.
        seconds (float | None): How long it may run, kept by the guardian.
        grace (float): Seconds from then until its worker is killed.
    """

    kind: int
    call: int
    data: Packed
    function: "tuple[int, bytes] | None" = None
    seconds: float | None = None
    grace: float = 0.0


class Source(Protocol):
    """All is called by a lane's own thread, under no lock; `take`, `put_back` and `message` by any."""

    def hello(self) -> "tuple[Packed, tuple[int, bytes] | None]":
        """What each worker does before its first call, packed as a call is: (initializer, arguments, {}).

        And a function, by number, that it is to have unpickled by then; if that fails, `worker_started` finds it as
        the lane's `trouble`, and so does each call of it.
        """
        ...

    def take(self, lane: "WorkerLane") -> Any | None:
        """The next item for a lane whose worker is free; None makes the lane idle."""
        ...

    def take_ahead(self, most: int) -> "list[Any]":
        """More items for a lane that has one; of those that anybody may do next, and that have no time limit."""
        ...

    def sent(self, lane: "WorkerLane", items: "list[Any]") -> None:
        """The lane has sent items that it took."""
        ...

    def withdraw(self, lane: "WorkerLane") -> None:
        """The lane is not idle any more, and takes nothing until it asks again."""
        ...

    def put_back(self, items: "list[Any]") -> None:
        """These have not begun; they go to their old places."""
        ...

    def message(self, item: Any) -> Message:
        """How an item is sent; what this raises fails the item."""
        ...

    def begun(self, lane: "WorkerLane", item: Any) -> None:
        """The item's handler is about to be called; told if it asked for that."""
        ...

    def finished(self, lane: "WorkerLane", replies: "list[tuple[Any, Packet]]") -> None:
        """Items have their replies; rebuilding what is in them is user code. What this raises fails the lane."""
        ...

    def part(self, lane: "WorkerLane", item: Any, packet: Packet) -> None:
        """Of a chunk: some of the results, more of which follow. What this raises fails the lane."""
        ...

    def progressed(self, lane: "WorkerLane", item: Any, progress: bytes | None) -> None:
        """The item's handler has reported; packed, as it stands on the status page."""
        ...

    def time_is_up(self, lane: "WorkerLane", item: Any) -> None:
        """The guardian has found the item's time to be up, and has it stopped. The reply comes after this."""
        ...

    def failed(self, lane: "WorkerLane", item: Any, error: BaseException) -> None:
        """The item could not be sent, or the lane itself failed with it in hand."""
        ...

    def unguarded(self, lane: "WorkerLane", item: Any) -> None:
        """The item's worker goes on with it, but has no guardian any more, which keeps its time limit."""
        ...

    def lost(self, lane: "WorkerLane", item: Any, ending: Ending) -> None:
        """The item's worker has ended with it in hand."""
        ...

    def worker_started(self, lane: "WorkerLane", pid: int) -> None:
        """The lane has a worker that takes calls."""
        ...

    def worker_ended(self, lane: "WorkerLane", ending: Ending, item: Any) -> None:
        """The lane's worker has ended; `item` is what it was at, None if nothing."""
        ...

    def cannot_start(self, lane: "WorkerLane", error: BaseException, tries: int) -> bool:
        """The lane has failed that many times in a row to start a worker; False ends the lane."""
        ...

    def is_over(self) -> bool:
        """Whether nothing will come any more, so that idle lanes are to end. Takes no lock."""
        ...

    def lane_ended(self, lane: "WorkerLane") -> None:
        """The lane's thread is about to end; the last thing that it does."""
        ...
