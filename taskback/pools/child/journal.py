"""Results of a chunk, written down one by one, so that those that are finished survive their worker.

It lies in the memory of the status page. The worker appends a record a task; its parent reads what is there when the
worker has died. As soon as it is full, or the chunk is done, the worker sends what is in it and begins again.

Holds: each word is written by one side alone, eight bytes at a time, which arrive whole. A record's bytes and its end
are in place before the count that includes it. `BASE` tells how many were sent before these, so that what has been
sent, and stands here still, is known from the rest.
"""

import struct
from typing import Any, Final

from taskback._chunk import END, MOST

DATA: Final = 196_608  # bytes of records
_CALL, _BASE, _COUNT, _WORDS = range(4)
SIZE: Final = 8 * (_WORDS + MOST) + DATA
_HEAD: Final = struct.Struct("<QQ")


class Journal:
    """See the top of the file.

    Args:
        memory (memoryview): SIZE bytes that both sides have.
    """

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self._words = memory[: 8 * (_WORDS + MOST)].cast("Q")
        self._data = memory[8 * (_WORDS + MOST) : SIZE]
        self._count = self._at = 0  # the worker's, which need not look them up

    # --- the worker ---

    def begin(self, call: int) -> None:
        """A chunk begins."""
        self._words[_COUNT] = self._words[_BASE] = 0
        self._words[_CALL] = call
        self._count = self._at = 0

    def add(self, data: bytes, flag: int = 0) -> bool:
        """Write a record down, with a flag of `Chunk`; False if there is no room for it."""
        at, count, words = self._at, self._count, self._words
        end = at + len(data)
        if end > DATA or count == MOST:
            return False
        self._data[at:end] = data
        words[_WORDS + count] = end | flag
        words[_COUNT] = self._count = count + 1
        self._at = end
        return True

    def packed(self) -> bytes:
        """All records, as they are sent."""
        words = self._words
        base, count = words[_BASE], min(words[_COUNT], MOST)  # a handler may have written anything there
        ends = words[_WORDS : _WORDS + count]
        length = min(ends[count - 1] & END, DATA) if count else 0
        return b"".join((_HEAD.pack(base, count), ends, self._data[:length]))

    @property
    def number(self) -> int:
        """Of the next record."""
        return self._words[_BASE] + self._words[_COUNT]

    def skip(self) -> None:
        """A record was sent that was never written down; there is no other."""
        self._words[_BASE] += 1

    def sent(self) -> None:
        """They have been sent."""
        words = self._words
        base, count = words[_BASE], words[_COUNT]
        words[_COUNT] = 0  # first: records that count twice are known by their number, others would be missing
        words[_BASE] = base + count
        self._count = self._at = 0

    # --- the parent ---

    def left(self, call: int) -> bytes:
        """Of a dead worker's chunk: the records, as if they had been sent; none of another call's."""
        return self.packed() if self._words[_CALL] == call else b""

    def close(self) -> None:
        """Let go of the memory."""
        self._words.release()
        self._data.release()
        self._memory.release()


def large(base: int, data: bytes, flag: int) -> bytes:
    """A record that is too large for the journal, as it is sent."""
    return b"".join((_HEAD.pack(base, 1), struct.pack("<Q", len(data) | flag), data))


def unpack(packed: Any) -> tuple[int, list[int], Any]:
    """What was sent: how many records went before these, where each ends, and the bytes of all.

    Raises:
        ValueError: No journal has sent this.
    """
    view = memoryview(packed)
    base, count = _HEAD.unpack_from(view) if len(view) >= _HEAD.size else (0, len(view))
    begin = _HEAD.size + 8 * count
    if begin > len(view):
        raise ValueError(f"{len(view)} bytes with {count} records are not what a journal sends")
    ends, data = view[_HEAD.size : begin].cast("Q").tolist(), view[begin:]
    if ends and ends[-1] & END > len(data):
        raise ValueError(f"records of {ends[-1] & END} bytes in {len(data)}")
    return base, ends, data
