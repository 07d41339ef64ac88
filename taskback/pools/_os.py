"""What differs between operating systems, and nothing else asks for the platform.

Each name below means the same everywhere; where a system cannot give it, the docstring says what comes instead.
"""

import math
import mmap
import os
import select
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.machinery import PathFinder
from typing import Any, Final

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

SIGKILL: Final[int] = getattr(signal, "SIGKILL", signal.SIGTERM)

# Real-time signals, far from those that libraries take: stop your call; write your stacks. None where there are none.
CANCEL_SIGNAL: Final[int | None] = signal.SIGRTMIN + 11 if hasattr(signal, "SIGRTMIN") else None
STACK_SIGNAL: Final[int | None] = signal.SIGRTMIN + 12 if hasattr(signal, "SIGRTMIN") else None
# Whether there are packet sockets, descriptors that travel, memory without a name, and what maps it.
HAS_PACKETS: Final = all(
    hasattr(module, name)
    for module, name in (
        (socket, "SOCK_SEQPACKET"),
        (socket, "CMSG_SPACE"),
        (os, "memfd_create"),
        (fcntl, "F_ADD_SEALS"),
    )
) and ("_ctypes" in sys.builtin_module_names or PathFinder.find_spec("_ctypes") is not None)
_PR_SET_CHILD_SUBREAPER: Final = 36  # Linux


def available_cpus() -> int:
    """How many CPUs this process may use: affinity and, on Linux, the quota of control groups. At least 1."""
    from taskback import _cgroup  # by those alone who ask

    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    quota = _cgroup.cpu_quota()
    if quota is not None:
        count = min(count, math.ceil(quota))
    return max(1, count)


def open_death_watch(pid: int) -> int | None:
    """A file descriptor that becomes readable when the child `pid` ends, or None where there is none.

    Unlike a pipe that the child holds, it does not wait for grandchildren which inherited the other end.
    """
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:  # an old kernel, or a sandbox
        return None


class Bell:
    """What one thread sleeps on until another rings it.

    It is closed when nobody refers to it any more, so that ringing can never hit a stranger's descriptor, and needs no
    lock to be sure of that.
    """

    def __init__(self) -> None:
        if hasattr(os, "eventfd"):
            self._near = self._far = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        else:
            self._near, self._far = os.pipe()
            os.set_blocking(self._near, False)
            os.set_blocking(self._far, False)

    def fileno(self) -> int:
        """Readable while it rings."""
        return self._near

    def ring(self) -> None:
        """Takes no lock and does not wait, so a signal handler may."""
        with suppress(BlockingIOError):  # it rings already
            os.write(self._far, b"\1\0\0\0\0\0\0\0")

    def silence(self) -> None:
        """Until it is rung again."""
        with suppress(BlockingIOError):
            os.read(self._near, 4096)

    def close(self) -> None:
        """Nobody rings it, or sleeps on it, any more."""
        fds = {getattr(self, "_near", -1), getattr(self, "_far", -1)} - {-1}
        self._near = self._far = -1
        for fd in fds:
            os.close(fd)

    __del__ = close


def wait_readable(fd: int, seconds: float) -> None:
    """Sleep until something can be read there, for so long at most."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    poll.poll(max(0.0, seconds * 1000))


def lock_file(fd: int) -> bool:
    """Have a file be this process's, until it closes any descriptor of it or ends; False if it is another process's.

    A fork has no part in it.
    """
    try:
        if fcntl is not None:
            fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            import msvcrt

            os.lseek(fd, 1 << 20, os.SEEK_SET)  # nobody reads there, which the lock would forbid
            getattr(msvcrt, "locking")(fd, getattr(msvcrt, "LK_NBLCK"), 1)  # noqa: B009  # unknown to mypy elsewhere
            os.lseek(fd, 0, os.SEEK_SET)
    except (BlockingIOError, PermissionError):
        return False
    return True


def unnamed_file(name: str) -> int:
    """A file in memory where there is such a thing, and one without a name where there is not."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def unnamed_memory(size: int) -> int:
    """The descriptor of memory without a name, of this size for ever; where `HAS_PACKETS`."""
    fd = os.memfd_create("taskback-payload", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    except BaseException:
        os.close(fd)
        raise
    return fd


def is_unshrinkable(fd: int, size: int) -> bool:
    """Whether it has so many bytes, and always will."""
    return bool(fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK) and os.fstat(fd).st_size >= size


class _Mapping:
    """Ends with whoever refers to it."""

    def __init__(self, size: int, flags: int, fd: int) -> None:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_long)
        libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
        self._munmap: Any = libc.munmap
        self._size = size
        self.address = 0
        address = libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, flags, fd, 0)
        if address == ctypes.c_void_p(-1).value:
            error = ctypes.get_errno()
            raise OSError(error, os.strerror(error))
        self.address = address

    def __del__(self) -> None:
        if self.address:
            self._munmap(self.address, self._size)


def map_memory(fd: int, size: int, private: bool) -> Any:
    """Map memory, where `HAS_PACKETS`; what is written to a private mapping nobody else sees.

    It is mapped until the last thing that refers to what this gives is gone, and keeps no descriptor, which Python's
    own mappings do before 3.13: a program that keeps many results would run out of them.

    Returns:
        Any: Has the buffer protocol, and takes attributes.
    """
    import ctypes  # by those alone who send or are sent something large

    mapping = _Mapping(size, mmap.MAP_PRIVATE if private else mmap.MAP_SHARED, fd)
    exporter: Any = (ctypes.c_char * size).from_address(mapping.address)
    exporter.mapping = mapping
    return exporter


def leave_the_terminal() -> None:
    """Make this process the leader of a session: Ctrl-C at the terminal does not reach it, killpg reaches all of it."""
    if hasattr(os, "setsid"):
        with suppress(OSError):  # it leads a group already
            os.setsid()


def shrug_off_signals() -> None:
    """SIGINT, SIGTERM and SIGHUP do nothing here: the parent decides when a worker ends.

    By a handler, since an ignored signal would stay ignored in what a handler starts by exec.
    """
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None:
            signal.signal(number, do_nothing)


def do_nothing(*_: Any) -> None:
    """The handler of a signal that is to do nothing, and yet not to be ignored in what is started by exec."""


def adopt_orphans() -> bool:
    """Have what loses its parent anywhere below this process become its child, until it ends; False where none does."""
    if not os.path.exists("/proc/self/status"):
        return False
    try:
        return bool(_libc().prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)
    except (ImportError, OSError, AttributeError):
        return False


@cache
def _libc() -> Any:
    """The C library, loaded once: forked workers have it from their guardian."""
    import ctypes

    return ctypes.CDLL(None)


def be_first_to_go() -> None:
    """Where memory runs out, let the kernel take this process rather than its parent."""
    with suppress(OSError):
        fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY)  # open() takes 0.9 ms for it in a new worker
        try:
            os.write(fd, b"300")
        finally:
            os.close(fd)


def send_number(pid: int, number: int | None) -> None:
    """Send a signal, where the system has it and the process is there."""
    if number is not None:
        with suppress(OSError):
            os.kill(pid, number)


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Around the start of a process: it begins with SIGINT held back, until it calls `let_interrupts_in`.

    Where signals cannot be held back, nothing happens.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def signals_held() -> Iterator[None]:
    """Around the start of a process: none of the signals that end processes reaches it, until it lets them in."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def let_interrupts_in() -> None:
    """What was held back comes now."""
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def kill_own_group() -> None:
    """End this process and what it has started, at once."""
    if hasattr(os, "killpg"):
        os.killpg(os.getpgrp(), SIGKILL)
    os._exit(1)


def send_signal(pid: int, name: str) -> None:
    """Send a signal by name, where the system has it and the process is there."""
    number = getattr(signal, name, None)
    if number is None:
        return
    try:
        os.kill(pid, number)
    except OSError:
        return


def has_group(pgid: int) -> bool:
    """Whether a process is left of the group; False where the system has no groups."""
    if not hasattr(os, "killpg"):
        return False
    try:
        os.killpg(pgid, 0)
    except PermissionError:  # there is one that is not ours
        return True
    except ProcessLookupError:
        return False
    return True


def group_of(pid: int) -> int | None:
    """The process group of a process, None if it is gone."""
    try:
        return os.getpgid(pid)
    except OSError:
        return None


def kill_group(pgid: int) -> None:
    """Kill what is left of the process group that a worker led; its number is not given away while one is left."""
    if hasattr(os, "killpg"):
        try:
            os.killpg(pgid, SIGKILL)
        except (ProcessLookupError, PermissionError):
            return
