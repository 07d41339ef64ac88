"""A large payload in anonymous memory whose descriptor travels on a packet.

The memory is written once, sealed, and sent; nobody can change it or cut it short after that, so its reader can map it
without fear (a file that shrinks under a mapping ends the process that reads it).

Holds: it has no name, so nothing of it outlives the processes that hold it. The sender closes its descriptor as soon
as it is sent; the reader when it has read.
"""

import mmap
import os
from typing import Final

from taskback.pools._os import fcntl

_SEALS: Final[int] = (
    getattr(fcntl, "F_SEAL_WRITE", 0)
    | getattr(fcntl, "F_SEAL_SHRINK", 0)
    | getattr(fcntl, "F_SEAL_GROW", 0)
    | getattr(fcntl, "F_SEAL_SEAL", 0)
)


def write(data: "bytes | memoryview") -> int:
    """Put bytes into sealed memory; the descriptor is the caller's to close."""
    fd = os.memfd_create("taskback-payload", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read(fd: int) -> "bytes | mmap.mmap":
    """What was written: mapped privately where it is sealed, copied where it is not. The descriptor stays open."""
    size = os.fstat(fd).st_size
    if size == 0:
        return b""
    if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _SEALS == _SEALS:
        return mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
    return os.pread(fd, size, 0)
