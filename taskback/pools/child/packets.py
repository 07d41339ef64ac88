"""What parent and worker say to each other: packets, whole or not at all.

A packet has a kind, the id of the call that it is about, and bytes. It travels as one message of a SOCK_SEQPACKET
socket, so there is no half of one, and nothing that a stopped or dying peer can leave unfinished. Above INLINE bytes,
and in parts, those travel in shared memory beside it (see memory).

Holds: no message is empty, so an empty read is the end. Sending never waits in the parent. Each end is used as it is
documented here and takes no lock: a message is atomic, several threads may send.

Two pairs a worker. On the calls pair the parent keeps *both* ends: what the worker has not read it can read back, and
the kernel decides which of the two gets a message. The worker reads on meanwhile, so what comes back may have holes
and may be all; therefore calls are known by their ids, never by their order. The replies pair is one way, and the
worker alone holds its far end.
"""

import errno
import os
import socket
import struct
from typing import Any, Final, NamedTuple

from taskback._packed import LARGE, Packed, Parts
from taskback.pools.child import memory

INLINE: Final = LARGE  # bytes; what is larger goes beside the packet
_HEADER: Final = struct.Struct("<BQ")
_BESIDE: Final = 0x80  # a flag on the kind: the bytes are in memory beside it
_pack, _unpack = _HEADER.pack, _HEADER.unpack_from
_ROOM: Final = _HEADER.size + INLINE
_FDS: Final = socket.CMSG_SPACE(struct.calcsize("i")) if hasattr(socket, "CMSG_SPACE") else 0
_NOW: Final = int(getattr(socket, "MSG_DONTWAIT", 0))  # plain numbers: flags that are enums cost microseconds
_HEAR: Final = int(getattr(socket, "MSG_CMSG_CLOEXEC", 0))  # or what a handler starts would inherit what is kept
_HEAR_NOW: Final = _HEAR | _NOW
_CUT: Final = int(getattr(socket, "MSG_TRUNC", 0))
_NO_ROOM: Final = frozenset(
    (
        errno.EAGAIN,
        errno.ENOBUFS,
        errno.ENOMEM,
        errno.EMFILE,
        errno.ENFILE,
        getattr(errno, "ETOOMANYREFS", errno.EAGAIN),
    )
)

# To the worker
HELLO: Final = 1  # what it is to do before its first call
CALL: Final = 2  # call a function
TASK: Final = 3  # call a backend's handler with a task
BYE: Final = 4  # end, once this is read
BRIEF: Final = 5  # a TASK of which there is little to say; see `calls.brief`
CHUNK: Final = 6  # several tasks; see `chunks`
LEVELS: Final = 7  # what is to be logged from here on; bytes: the levels, see `worker_logs`
WITH_FUNCTION: Final = 8  # added to HELLO, CALL, TASK, BRIEF and CHUNK: it brings a function, which is to be kept
# From the worker
READY: Final = 16  # HELLO is done; bytes: of the function it brought, the packed error if it cannot be unpickled
UNFIT: Final = 17  # HELLO failed; bytes: the packed error
RESULT: Final = 18  # bytes: the pickled result
ERROR: Final = 19  # bytes: the packed error
DONE: Final = 20  # of a TASK; bytes: the packed reply
PROGRESS: Final = 21  # the status page has news of the call's progress
BEGUN: Final = 22  # of a TASK that asked for it: its handler is about to be called
VALUE: Final = 23  # of a TASK that went well and reported nothing; bytes: when it began, and the pickled result

CHUNKED: Final = 24  # of a CHUNK that is over; bytes: what came of it
PART: Final = 25  # of a CHUNK under way; bytes: the results so far
LEAVING: Final = 26  # it reads no more calls, and ends; bytes: why
# From the worker, on a pair of their own
LOG: Final = 27  # bytes: a log record; see `records`
WARNING: Final = 28  # bytes: a warning

_CALLS: Final = (CALL, TASK, BRIEF, CHUNK)
TO_WORKER: Final = (HELLO, HELLO | WITH_FUNCTION, *_CALLS, *(kind | WITH_FUNCTION for kind in _CALLS), BYE, LEVELS)
NO_CALLS: Final = frozenset((BYE, LEVELS))
REPLIES: Final = frozenset((RESULT, ERROR, DONE, VALUE, CHUNKED))
KINDS: Final = frozenset((*TO_WORKER, *REPLIES, READY, UNFIT, PROGRESS, BEGUN, PART, LEAVING, LOG, WARNING))


class Packet(NamedTuple):
    """One message.

    Attributes:
        kind (int): One of the constants above.
        id (int): The call's; 0 for what is about none.
        data (bytes | Parts): Its bytes; parts, where they came beside it.
        problem (str): Why `data` could not be had; empty if it could.
    """

    kind: int
    id: int
    data: Any = b""
    problem: str = ""


class NoRoomError(OSError):
    """A packet could not be sent now: the socket is full, or descriptors have run out. Nothing of it was sent."""


class Socket:
    """One end of a pair."""

    unsent = False  # a packet is sent whole or not at all

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer = bytearray(_ROOM)
        self._buffers = (self._buffer,)
        self._view = memoryview(self._buffer)
        self._sender = memory.Sender()
        self._receiver = memory.Receiver()

    def fileno(self) -> int:
        """The descriptor, to be waited on; -1 once it is closed."""
        return self._socket.fileno()

    def send(self, kind: int, id: int, data: Packed = b"", wait: bool = False) -> None:
        """Send a packet.

        Raises:
            NoRoomError: There is no room for it now. With `wait` only for want of descriptors.
            OSError: The other end is closed.
        """
        try:
            if type(data) is Parts or len(data) > INLINE:
                self._send_beside(kind, id, data, wait)
                return
            try:
                self._socket.send(b"".join((_pack(kind, id), data)), 0 if wait else _NOW)
            except OSError as error:
                if error.errno != errno.EMSGSIZE:  # a system whose sockets have less room than most
                    raise
                self._send_beside(kind, id, data, wait)
        except OSError as error:
            if error.errno in _NO_ROOM:
                raise NoRoomError(error.errno, error.strerror) from error
            raise

    def _send_beside(self, kind: int, id: int, data: Packed, wait: bool) -> None:
        parts = data if type(data) is Parts else Parts((data,))
        try:
            slab = self._sender.put(parts)
        except memory.AllTakenError:
            if not wait:
                raise
            self.give_memory_away()  # or whoever reads nothing for a while would stop us
            slab = self._sender.put(parts)
        try:
            fds = () if slab.fd < 0 else ((socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", slab.fd)),)
            message = _pack(kind | _BESIDE, id), slab.what_is_there()
            self._socket.sendmsg(message, fds, 0 if wait else _NOW)
        except BaseException:
            self._sender.unsent(slab)
            raise
        self._sender.sent(slab)

    def give_memory_away(self) -> None:
        """Have new memory for what is large: what the other end has of it, it has for good."""
        self._sender.give_all_away()

    def receive(self, wait: bool = False) -> Packet | None:
        """The next packet; None if there is none now.

        Raises:
            EOFError: The other end is closed, and all it said has been given.
            ValueError: This is no packet of ours.
        """
        try:
            size, beside, flags, _ = self._socket.recvmsg_into(self._buffers, _FDS, _HEAR if wait else _HEAR_NOW)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            # Told once, where the other end died with words of ours unread. Its own last words come after that.
            return self.receive(wait)
        if beside or flags & _CUT or size < _HEADER.size:
            return self._unusual(size, _descriptors(beside), flags)
        kind, id = _unpack(self._buffer)
        if kind in KINDS:
            return Packet(kind, id, self._view[_HEADER.size : size].tobytes())
        return self._unusual(size, [], flags)

    def _unusual(self, size: int, fds: list[int], flags: int) -> Packet:
        """The end, a packet with something beside it, or garbage."""
        if not size:
            raise EOFError
        try:
            if size < _HEADER.size or flags & _CUT:
                raise ValueError(f"a message of {size} bytes is no packet")
            kind, id = _unpack(self._buffer)
            if not kind & _BESIDE or kind & ~_BESIDE not in KINDS:
                raise ValueError(f"a packet of the unknown kind {kind}")
            return self._with_payload(kind & ~_BESIDE, id, self._view[_HEADER.size : size].tobytes(), fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _with_payload(self, kind: int, id: int, place: bytes, fds: list[int]) -> Packet:
        try:
            return Packet(kind, id, self._receiver.get(place, fds))
        except memory.LostPayloadError as error:
            return Packet(kind, id, problem=f"its payload did not arrive: {error.strerror}")
        except OSError as error:
            return Packet(kind, id, problem=f"its payload cannot be read: {error}")

    def close(self) -> None:
        """Let go of it."""
        self._socket.close()
        self._sender.close()
        self._receiver.close()


def _descriptors(beside: list[tuple[int, int, bytes]]) -> list[int]:
    size = struct.calcsize("i")
    return [
        struct.unpack_from("i", data, at)[0]
        for level, kind, data in beside
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
        for at in range(0, len(data) - len(data) % size, size)
    ]


class _Far(Socket):
    """The worker's end, in the hands of the parent, who knows what it has sent: payloads are not read."""

    def __init__(self, sock: socket.socket, sender: memory.Sender) -> None:
        super().__init__(sock)
        self._its_sender = sender

    def _with_payload(self, kind: int, id: int, place: bytes, fds: list[int]) -> Packet:
        self._its_sender.taken_back(place)
        return Packet(kind, id)


class Calls(Socket):
    """The parent's side of the calls pair.

    Attributes:
        far (Socket): The other end, which the worker has too.
    """

    def __init__(self) -> None:
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        super().__init__(near)
        self._far = _Far(far, self._sender)

    def far_fileno(self) -> int:
        """The descriptor that the worker is to get."""
        return self._far.fileno()

    def given(self) -> None:
        """The worker has its end; ours is kept, to take back by."""

    def take_back(self) -> list[Packet]:
        """What the worker has not read, and will not read now."""
        taken: list[Packet] = []
        while True:
            try:
                packet = self._far.receive()
            except EOFError:
                return taken
            if packet is None:
                return taken
            taken.append(packet)

    def flush(self) -> None:
        """Nothing is ever left to be sent."""

    def close(self) -> None:
        """Let go of both ends."""
        super().close()
        self._far.close()


class Replies(Socket):
    """The parent's side of the replies pair."""

    def __init__(self) -> None:
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        super().__init__(near)
        self._far = far

    def far_fileno(self) -> int:
        """The descriptor that the worker is to get."""
        return self._far.fileno()

    def given(self) -> None:
        """The worker has its end; ours is closed, so that its death is the end of file."""
        self._far.close()

    def close(self) -> None:
        """Let go of it."""
        super().close()
        self._far.close()


def worker_end(fd: int) -> Socket:
    """The end that a worker got."""
    return Socket(socket.socket(fileno=fd))
