"""What a worker says, read without ever waiting for the rest of it.

A handler can write on any descriptor of its worker, ours too. A read that waits for the bytes which a length
announces would then wait for ever, and with it the parent's keeper, its time limits and its shutdown.

Holds: reading takes what is there and returns; a whole message is given once, in order.
"""

import os
import struct
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any, Final

MAX_BYTES: Final = 2**20  # far above what a worker has to say
_LENGTH: Final = struct.Struct("!i")  # as multiprocessing.connection writes it, up to 2 GiB


class Inbox:
    """The parent's reading end of a control connection.

    Args:
        connection (Connection): Made non-blocking here. Sending still works as long as the other end's buffer has
            room, and raises an `OSError` where it has none.
    """

    def __init__(self, connection: "Connection[Any, Any]") -> None:
        self._fd = connection.fileno()
        self._bytes = bytearray()
        os.set_blocking(self._fd, False)

    def messages(self) -> Iterator[bytes]:
        """The messages that are whole by now.

        Raises:
            EOFError: The other end is closed, and all it said has been given.
            ValueError: What was written there is no message.
            OSError: The connection is closed here.
        """
        more: bool | None = True
        while more:
            more = self._read()
            yield from self._whole()
        if more is False:
            raise EOFError

    def _read(self) -> bool | None:
        """Take what is there: False at the end, None if there was nothing (more)."""
        try:
            chunk = os.read(self._fd, 65536)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            # Told once, where it died with words of ours unread. Its own last words come after that.
            return True
        self._bytes += chunk
        return bool(chunk)

    def _whole(self) -> Iterator[bytes]:
        while len(self._bytes) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._bytes)
            if not 0 < length <= MAX_BYTES:
                raise ValueError(f"a message of {length} bytes")
            end = _LENGTH.size + length
            if len(self._bytes) < end:
                return
            message = bytes(self._bytes[_LENGTH.size : end])
            del self._bytes[:end]
            yield message
