"""The same packets on byte streams, for systems that have no packet sockets or no memory without a name.

A packet is its length, its kind, its id and its bytes, whatever their number; of parts, all of them as they would lie
in memory. The interface is that of `packets`.

Holds: the parent never waits for half a packet: reading takes what is there, and what could not be sent yet is kept
and sent by `flush` (`unsent` says that there is some). What is sent cannot be read back, so take_back() gives nothing:
a worker has one call at a time, and what it had in hand when it died counts as begun.
Threads: one at a time may send on an end, and one may receive.
"""

import socket
import struct
from typing import Final

from taskback._packed import Packed, Parts
from taskback.pools.child import layout
from taskback.pools.child.packets import KINDS, NoRoomError, Packet

_LENGTH: Final = struct.Struct("<Q")
_HEADER: Final = struct.Struct("<BQ")
_CHUNK: Final = 262_144  # bytes read at a time
_IN_PARTS: Final = 0x80  # a flag on the kind
_MOST: Final = 2**40  # bytes; a length above this is no length of ours


class Stream:
    """One end of a pair; see `packets.Socket`."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._unsent = bytearray()
        self._got = bytearray()

    @property
    def unsent(self) -> bool:
        """Whether something waits to be sent by `flush`."""
        return bool(self._unsent)

    def fileno(self) -> int:
        """The descriptor, to be waited on; -1 once it is closed."""
        return self._socket.fileno()

    def send(self, kind: int, id: int, data: Packed = b"", wait: bool = False) -> None:
        """Send a packet, or as much of it as there is room for now.

        Raises:
            NoRoomError: An earlier one is not sent yet.
            OSError: The other end is closed.
        """
        if self._unsent:
            self.flush()
            if self._unsent:
                raise NoRoomError(11, "an earlier packet is still being sent")
        if type(data) is Parts:
            kind, data = kind | _IN_PARTS, _laid_out(data)
        message = b"".join((_LENGTH.pack(_HEADER.size + len(data)), _HEADER.pack(kind, id), data))
        if wait:
            self._socket.sendall(message)
        else:
            self._unsent += message
            self.flush()

    def flush(self) -> None:
        """Send what there is room for."""
        while self._unsent:
            try:
                sent = self._socket.send(self._unsent, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            del self._unsent[:sent]

    def receive(self, wait: bool = False) -> Packet | None:
        """The next packet; None if it is not there whole by now.

        Raises:
            EOFError: The other end is closed, and all it said has been given.
            ValueError: This is no packet of ours.
        """
        while True:
            packet = self._whole()
            if packet is not None:
                return packet
            try:
                chunk = self._socket.recv(_CHUNK, 0 if wait else socket.MSG_DONTWAIT)
            except BlockingIOError:
                return None
            except ConnectionResetError:
                continue
            if not chunk:
                raise EOFError
            self._got += chunk

    def _whole(self) -> Packet | None:
        start = _LENGTH.size + _HEADER.size
        if len(self._got) < start:
            return None
        (length,) = _LENGTH.unpack_from(self._got)
        kind, id = _HEADER.unpack_from(self._got, _LENGTH.size)
        if not _HEADER.size <= length <= _MOST or kind & ~_IN_PARTS not in KINDS:
            raise ValueError(f"a length of {length} bytes and the kind {kind} begin no packet")
        end = _LENGTH.size + length
        if len(self._got) < end:
            return None
        data = bytes(memoryview(self._got)[start:end])
        del self._got[:end]
        if kind & _IN_PARTS:
            found = layout.find(memoryview(data))
            return Packet(kind & ~_IN_PARTS, id, Parts(found.heads, [bytearray(view) for view in found.buffers]))
        return Packet(kind, id, data)

    def give_memory_away(self) -> None:
        """There is none."""

    def close(self) -> None:
        """Let go of it."""
        self._socket.close()


def _laid_out(parts: Parts) -> bytes:
    memory = bytearray(layout.size_of(parts))
    layout.fill(memoryview(memory), parts)
    return bytes(memory)


class _Parents(Stream):
    def __init__(self) -> None:
        near, self._far = socket.socketpair()
        super().__init__(near)

    def far_fileno(self) -> int:
        """The descriptor that the worker is to get."""
        return self._far.fileno()

    def given(self) -> None:
        """The worker has its end; ours is closed."""
        self._far.close()

    def close(self) -> None:
        """Let go of it."""
        super().close()
        self._far.close()


class Calls(_Parents):
    """The parent's side of the calls pair."""

    def take_back(self) -> list[Packet]:
        """Nothing: what is sent is sent."""
        return []


class Replies(_Parents):
    """The parent's side of the replies pair."""


def worker_end(fd: int) -> Stream:
    """The end that a worker got."""
    return Stream(socket.socket(fileno=fd))
