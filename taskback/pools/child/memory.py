"""Memory that two processes share, used again for one large payload after another, in one direction.

Each piece of it, a *slab*, is a file without a name. The sender has it mapped and copies payloads into it; its
descriptor travels on the packets until the receiver is known to have it. The receiver reads pickles in place. Small
buffers it copies out. For large ones it maps the slab once more, privately: whoever has such an array can write into
it, and nobody else sees that, neither the other side nor a fork.

The first byte of a slab says whose it is. FREE: the sender's, who alone changes it, to SENT, before it sends. From then
on it is the receiver's, who changes it to FREE when the last thing that refers to it is gone, or to KEPT when the call
is over and an array is still there. What is kept is given away: the sender forgets that slab and makes another, and
the memory lives for as long as the array. What the sender has taken back unread it frees itself.

Holds: nobody writes into a slab while anybody can read it: the sender writes into FREE ones only, and the receiver
frees only what nothing refers to. Of a slab that was mapped when its process forked nobody can know that, so it is not
freed. Nobody ever makes one shorter, which would end the process that reads it: it is sealed against that. No mapping
holds a descriptor. A sender has at most SLABS, a receiver as many descriptors; what an array keeps needs none.

Race: a slab is given away while packets that name it are unread. Packets arrive in order, and a receiver forgets a slab
when another one comes in its place; what it has in hand then lives on with whatever refers to it.

Threads: one at a time may send, and one receive. What refers to a slab may go on any thread: all it does is a store.
"""

import errno
import itertools
import os
import struct
from collections.abc import Iterator
from typing import Any, Final

from taskback._packed import Parts
from taskback.pools import _os
from taskback.pools.child import layout

SLABS: Final = 4  # a sender; two are enough for one call at a time, whose result is kept until the next one is there
LEAST: Final = 1 << 20  # bytes of a slab; pages that nothing is written to cost nothing
MOST_KEPT: Final = 320 << 20  # bytes of slabs that a sender keeps, by what was used of them; room for two of 128 MB
MAPPED_FROM: Final = 1 << 20  # bytes of a payload's buffers from which on they are mapped, not copied out
FREE: Final = 0
SENT: Final = 1
KEPT: Final = 2
ONCE: Final = 255  # the place of a slab that is used once
_DATA: Final = layout.ALIGNMENT  # where payloads begin
_PLACE: Final = struct.Struct("<BQQQ")


class AllTakenError(OSError):
    """The receiver has all the slabs that there may be."""

    def __init__(self) -> None:
        super().__init__(errno.EAGAIN, "the memory for large payloads is all in use")


class LostPayloadError(OSError):
    """A payload has not arrived."""


class _Slab:
    """The sender's side of one."""

    def __init__(self, place: int, number: int, size: int) -> None:
        self.place = place
        self.number = number
        self.size = size
        self.filled = 0  # bytes, by the payload that was put there last
        self.used = 0  # bytes, by the largest so far
        self.sent = False  # to be found FREE then means that the receiver has had it, so that it knows it
        self.fd = _os.unnamed_memory(size)
        try:
            self.memory = memoryview(_os.map_memory(self.fd, size, private=False)).cast("B")
        except BaseException:
            self.close()
            raise

    def is_free(self) -> bool:
        if self.memory[0] != FREE:
            return False
        if self.sent:
            self.sent = False
            self.close()
        return True

    def what_is_there(self) -> bytes:
        """What its packet says of it."""
        return _PLACE.pack(self.place, self.number, self.size, self.filled)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Sender:
    """The sending end."""

    def __init__(self) -> None:
        self._slabs: list[_Slab | None] = [None] * SLABS
        self._numbers = itertools.count(1)

    def put(self, parts: Parts) -> _Slab:
        """Copy a payload into memory; then comes `sent`, or `unsent`.

        Raises:
            AllTakenError: There is none.
            OSError: No descriptor is left, or no memory.
        """
        size = _DATA + layout.size_of(parts)
        slab = self._free_one(size) or self._new_one(size)
        slab.filled = size
        slab.used = max(slab.used, size)
        layout.fill(slab.memory[_DATA:size], parts)
        slab.memory[0] = SENT
        slab.sent = True
        return slab

    def sent(self, slab: _Slab) -> None:
        """It is the receiver's."""
        if slab.place == ONCE:
            slab.close()

    def unsent(self, slab: _Slab) -> None:
        """It could not be sent, or was taken back unread."""
        slab.sent = False
        slab.memory[0] = FREE
        if slab.place == ONCE:
            slab.close()

    def taken_back(self, place: bytes) -> None:
        """A packet was taken back unread."""
        index, number, _, _ = _PLACE.unpack(place)
        slab = self._slabs[index] if index < SLABS else None
        if slab is not None and slab.number == number:
            self.unsent(slab)

    def give_all_away(self) -> None:
        """Forget what the receiver has: it has that for good."""
        for slab in self._held():
            if not slab.is_free():
                self._forget(slab)

    def close(self) -> None:
        """Let go of all."""
        for slab in self._held():
            self._forget(slab)

    def _held(self) -> Iterator[_Slab]:
        return (slab for slab in list(self._slabs) if slab is not None)

    def _free_one(self, size: int) -> _Slab | None:
        return next((slab for slab in self._held() if slab.size >= size and slab.is_free()), None)

    def _new_one(self, size: int) -> _Slab:
        """In an empty place, or in that of one that is free and too small, or kept."""
        for slab in self._held():
            if slab.is_free() or slab.memory[0] == KEPT:
                self._forget(slab)
        if None not in self._slabs:
            raise AllTakenError
        place = self._slabs.index(None)
        nominal = max(LEAST, 1 << (size - 1).bit_length())
        if sum(slab.used for slab in self._held()) + size > MOST_KEPT:
            return _Slab(ONCE, next(self._numbers), size)
        slab = self._slabs[place] = _Slab(place, next(self._numbers), nominal)
        return slab

    def _forget(self, slab: _Slab) -> None:
        slab.close()
        self._slabs[slab.place] = None


class _Claim:
    """What refers to a slab refers to one of these; when it goes, the slab is free.

    A fork has a copy of it, and counts as one more fork there too; so it frees nothing.
    """

    __slots__ = ("_before", "memory")

    def __init__(self, memory: memoryview) -> None:
        self.memory = memory
        self._before = _fork_count

    def __del__(self) -> None:
        if self._before == _fork_count:
            self.memory[0] = FREE


class _Lease:
    """The call's own claim."""

    __slots__ = ("_claim",)

    def __init__(self, claim: _Claim) -> None:
        self._claim = claim

    def __del__(self) -> None:
        self._claim.memory[0] = KEPT  # until the claim goes: now, unless an array has it


class _Known:
    """The receiver's side of a slab."""

    def __init__(self, number: int, size: int, fd: int) -> None:
        self.number = number
        self._fd = fd
        if not _os.is_unshrinkable(fd, size):
            raise ValueError("memory that could be made shorter while it is read is none of ours")
        self.memory = memoryview(_os.map_memory(fd, size, private=False)).cast("B")

    def map_privately(self, size: int) -> Any:
        """Its first bytes once more."""
        return _os.map_memory(self._fd, size, private=True)

    def close(self) -> None:
        os.close(self._fd)


class Receiver:
    """The receiving end."""

    def __init__(self) -> None:
        self._known: dict[int, _Known] = {}

    def get(self, place: bytes, fds: list[int]) -> Parts:
        """The payload that lies there; takes a descriptor from the list where it keeps it.

        Raises:
            LostPayloadError: It should have come with a descriptor, which the kernel has dropped.
            OSError: It cannot be mapped.
            ValueError: This is no payload.
        """
        if len(place) != _PLACE.size:
            raise ValueError(f"no place of a payload is told in {len(place)} bytes")
        index, number, size, filled = _PLACE.unpack(place)
        if not _DATA < filled <= size:
            raise ValueError(f"a payload of {filled} bytes in {size}")
        known = self._known.get(index)
        if known is None or known.number != number:
            known = self._learn(index, number, size, fds)
        try:
            return _read(known, filled)
        finally:
            if index == ONCE:
                known.close()

    def _learn(self, index: int, number: int, size: int, fds: list[int]) -> _Known:
        if not fds:
            raise LostPayloadError(errno.EMFILE, "this process has no file descriptor left")
        known = _Known(number, size, fds[0])
        del fds[0]  # it is the slab's now
        if index != ONCE:
            before = self._known.pop(index, None)
            if before is not None:
                before.close()
            self._known[index] = known
        return known

    def close(self) -> None:
        """Let go of all; what somebody still has lives on."""
        while self._known:
            self._known.popitem()[1].close()


def _read(known: _Known, filled: int) -> Parts:
    if not _counting:
        _count_forks()
    claim = _Claim(known.memory)
    found = layout.find(known.memory[_DATA:filled])
    exporter = None
    if sum(map(len, found.buffers)) >= MAPPED_FROM:
        exporter = _mapped(known, filled)
    if exporter is None:
        return Parts(found.heads, [bytearray(view) for view in found.buffers], claim)
    exporter.claim = claim
    whole = memoryview(exporter).cast("B")
    return Parts(found.heads, [whole[_DATA + begin : _DATA + end] for begin, end in found.places], _Lease(claim))


def _mapped(known: _Known, size: int) -> Any:
    try:
        return known.map_privately(size)
    except OSError:  # a process has so many mappings; then it is copied
        return None


_fork_count = 0  # how often this process has forked since it has had payloads
_counting = False


def _count_forks() -> None:
    global _counting
    _counting = True
    os.register_at_fork(after_in_parent=_one_more, after_in_child=_one_more)


def _one_more() -> None:
    global _fork_count
    _fork_count += 1
