"""Memory that a worker shares with its parent and its guardian: what it is doing, told without a message.

The worker writes which call it runs, since when, whether user code has begun, how many replies it has sent, and the
latest progress; behind that come what it wrote last to stderr, and the journal of a chunk. The parent and the guardian
write which call is to stop, the parent whether the worker has calls, the guardian whether it watches the worker's
memory. Reading is possible of a stopped or dead worker too.

Holds: each word is written by one side alone, eight bytes at a time, which arrive whole. The worker writes PHASE last
when a call begins and first when it ends, and a reader looks at the id before and after: so a phase never belongs to
another call than the id beside it. Progress is between two counts of its writer (odd: being written), so that a reader
knows a torn one. The memory is sealed against shrinking: a handler that truncates every file it finds cannot end its
parent.

Race: the guardian stops watching while the parent gives the worker something. The parent writes that there are calls,
and then reads whether it is watched; the guardian writes that it is not, and a while later looks once more whether
there are calls. So either the parent asks the guardian to watch, or the guardian finds the calls.
"""

import mmap
import os
from typing import Final, NamedTuple

from taskback.pools import _os
from taskback.pools._os import fcntl
from taskback.pools.child import journal
from taskback.pools.child.journal import Journal

_PROGRESS_AT: Final = 512
_STDERR_AT: Final = 16_384
STDERR_ROOM: Final = 4_096
_JOURNAL_AT: Final = _STDERR_AT + STDERR_ROOM
PROGRESS_ROOM: Final = _STDERR_AT - _PROGRESS_AT
SIZE: Final = _JOURNAL_AT + journal.SIZE  # what is not written to takes no memory

# Words
_CALL, _SINCE, _PHASE, _REPLIES, _COUNT, _LENGTH, _STOP, _STOP_FIRMLY, _HAS_CALLS, _WEIGHED, _WRITTEN = range(11)

IDLE: Final = 0
READING: Final = 1  # its arguments are being unpickled
IN_USER_CODE: Final = 2
REPLYING: Final = 3


class Snapshot(NamedTuple):
    """What a worker was doing at one moment.

    Attributes:
        call (int): The id of its call, 0 if it had none yet.
        phase (int): One of the constants above.
        since_ns (int): When it began with that, on the monotonic clock.
        replies (int): How many it had sent.
    """

    call: int
    phase: int
    since_ns: int
    replies: int


def create() -> int:
    """A new page, as a descriptor."""
    fd = _os.unnamed_file("taskback-status")
    os.ftruncate(fd, SIZE)
    if _os.HAS_PACKETS:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd


class StatusPage:
    """A page that is mapped.

    Args:
        fd (int): Of `create`; it may be closed after this.
    """

    def __init__(self, fd: int) -> None:
        self._map = mmap.mmap(fd, SIZE)
        self._bytes = memoryview(self._map)
        self._words = self._bytes[:_PROGRESS_AT].cast("Q")
        self.journal = Journal(self._bytes[_JOURNAL_AT:])

    # --- the worker ---

    def begin(self, call: int, now_ns: int) -> None:
        """A call has been read."""
        words = self._words
        words[_PHASE] = IDLE
        words[_CALL] = call
        words[_SINCE] = now_ns
        words[_LENGTH] = 0
        words[_PHASE] = READING

    def enter(self, now_ns: int) -> None:
        """User code is about to run."""
        self._words[_SINCE] = now_ns
        self._words[_PHASE] = IN_USER_CODE

    def leave(self) -> None:
        """User code has ended; the reply is being sent."""
        self._words[_PHASE] = REPLYING

    def end(self) -> None:
        """The reply is sent."""
        self._words[_PHASE] = IDLE
        self._words[_REPLIES] += 1

    def report(self, progress: bytes) -> None:
        """Put the latest progress down."""
        words, length = self._words, len(progress)
        if length > PROGRESS_ROOM:
            raise ValueError(f"a progress of {length} bytes; there is room for {PROGRESS_ROOM}")
        words[_COUNT] |= 1
        self._bytes[_PROGRESS_AT : _PROGRESS_AT + length] = progress
        words[_LENGTH] = length
        words[_COUNT] += 1

    def is_entered(self) -> bool:
        """Whether user code has begun, and not ended."""
        return self._words[_PHASE] == IN_USER_CODE

    def wrote(self, data: "bytes | memoryview[int]") -> None:
        """Keep the end of what goes to stderr. Threads that write at once may spoil each other's, here alone."""
        written = self._words[_WRITTEN]
        if len(data) > STDERR_ROOM:
            written += len(data) - STDERR_ROOM
            data = data[-STDERR_ROOM:]
        at = _STDERR_AT + written % STDERR_ROOM
        first = min(len(data), _JOURNAL_AT - at)
        self._bytes[at : at + first] = data[:first]
        self._bytes[_STDERR_AT : _STDERR_AT + len(data) - first] = data[first:]
        self._words[_WRITTEN] = written + len(data)

    def stop_wanted(self, call: int) -> bool:
        """Whether this call is to stop."""
        return self._words[_STOP] == call

    def firmly(self, call: int) -> bool:
        """Whether it is to stop by force, having had its time to stop."""
        return self._words[_STOP_FIRMLY] == call

    # --- the parent and the guardian ---

    def ask_to_stop(self, call: int, firmly: bool) -> None:
        """Name the call that is to stop; a signal then has the worker look."""
        if firmly:
            self._words[_STOP_FIRMLY] = call
        self._words[_STOP] = call

    def set_calls(self, any: bool) -> None:
        """The parent: whether it has given the worker anything that is not answered."""
        self._words[_HAS_CALLS] = any

    def has_calls(self) -> bool:
        """Whether the worker was given anything that is not answered."""
        return self._words[_HAS_CALLS] != 0

    def set_weighed(self, on: bool) -> None:
        """The guardian: whether it watches the worker's memory."""
        self._words[_WEIGHED] = on

    def is_weighed(self) -> bool:
        """Whether the guardian watches the worker's memory."""
        return self._words[_WEIGHED] != 0

    def snapshot(self) -> Snapshot:
        """What the worker is doing."""
        words = self._words
        for _ in range(100):
            call, phase, since, replies = words[_CALL], words[_PHASE], words[_SINCE], words[_REPLIES]
            if words[_CALL] == call and words[_PHASE] == phase and words[_SINCE] == since:
                break
        return Snapshot(call, phase, since, replies)

    def stderr(self) -> str:
        """The end of what was written to stderr."""
        written = self._words[_WRITTEN]
        data = bytes(self._bytes[_STDERR_AT:_JOURNAL_AT])
        at = written % STDERR_ROOM
        return (data[:written] if written <= STDERR_ROOM else data[at:] + data[:at]).decode("utf-8", "replace")

    def progress(self) -> bytes | None:
        """The latest progress; None if there is none, or it is being written over and over."""
        words = self._words
        for _ in range(100):
            count, length = words[_COUNT], min(words[_LENGTH], PROGRESS_ROOM)
            data = bytes(self._bytes[_PROGRESS_AT : _PROGRESS_AT + length])
            if not count & 1 and words[_COUNT] == count:
                return data or None
        return None

    def close(self) -> None:
        """Let go of it."""
        self._words.release()
        self.journal.close()
        self._bytes.release()
        self._map.close()
