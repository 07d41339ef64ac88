"""How long a worker is kept: what its pool sets, and who sees to it.

- After `max_calls`, the worker ends; it counts, and so does its parent, which sends it no more.
- When a call is over and the worker is older than `max_seconds`, or has more than `max_rss` bytes resident, it says so
  (LEAVING), reads no other call, and ends. What was sent to it meanwhile goes to another one.
- While it has calls and has more than `kill_rss` bytes resident, the guardian kills it: beside the worker, so that
  neither a loop in C code nor a worker that is stopped can hold that up.

Resident is what the kernel says of the worker itself: the libraries and the imports that it shares with other workers
count, and what it has started does not.

Holds: no worker is looked at while it has nothing to do. The guardian looks every `PERIOD` from when the parent has
given the worker something, until it finds twice in a row that it has nothing (see `status_page`).
"""

import mmap
import os
import time
from typing import Final, NamedTuple

from taskback.pools.child.status_page import StatusPage

PERIOD: Final = 20_000_000  # ns; new memory comes at some 1.5 GB/s, so 30 MB more than allowed. A look takes 20 us


class WorkerLimits(NamedTuple):
    """What a pool sets; None sets no limit.

    Attributes:
        max_calls (int | None): After so many a worker ends.
        max_seconds (float | None): A worker that is older ends when its call is over.
        max_rss (int | None): So does one with more bytes resident.
        kill_rss (int | None): One with more bytes resident is killed.
    """

    max_calls: int | None = None
    max_seconds: float | None = None
    max_rss: int | None = None
    kill_rss: int | None = None


NO_LIMITS: Final = WorkerLimits()


class Age:
    """A worker's own view of what it may still do.

    Args:
        limits (WorkerLimits): Its pool's.
    """

    def __init__(self, limits: WorkerLimits) -> None:
        self._limits = limits
        self._born = time.monotonic()
        self.calls_left = -1 if limits.max_calls is None else limits.max_calls
        self.is_watched = not (limits.max_seconds is None and limits.max_rss is None)

    def why_leave(self) -> str:
        """Between two calls: why it is to end now; empty if it may go on."""
        limits = self._limits
        if limits.max_seconds is not None and (age := time.monotonic() - self._born) > limits.max_seconds:
            return f"it was replaced, for it was {age:.1f} s old (max_worker_seconds is {limits.max_seconds:g})"
        if limits.max_rss is not None and (rss := resident_bytes()) is not None and rss > limits.max_rss:
            return f"it was replaced, for it had {mib(rss)} resident (max_worker_rss_bytes is {mib(limits.max_rss)})"
        return ""


class Scale:
    """The guardian's view of one worker's memory.

    Args:
        page (StatusPage): The worker's.

    Attributes:
        due_ns (int | None): When to look next, on the monotonic clock; None while the worker has nothing to do.
    """

    def __init__(self, page: StatusPage) -> None:
        self._page = page
        self.due_ns: int | None = None

    def begin(self, now_ns: int) -> None:
        """The worker is given something to do."""
        self._page.set_weighed(True)
        self.due_ns = now_ns + PERIOD

    def look(self, pid: int, most: int, now_ns: int) -> int | None:
        """It is time to look: what the worker weighs, if that is more than it may; not to be called again then."""
        self.due_ns = now_ns + PERIOD
        if not self._page.has_calls():
            if not self._page.is_weighed():
                self.due_ns = None
            self._page.set_weighed(False)
            return None
        self._page.set_weighed(True)
        rss = resident_bytes(pid)
        if rss is None or rss <= most:
            return None
        self.due_ns = None
        return rss


def mib(count: int) -> str:
    """So many bytes, as text."""
    return f"{count / 2**20:.0f} MiB"


def resident_bytes(pid: int | None = None) -> int | None:
    """The memory of a process that is in the machine's, this one's if none is named; None if it is gone."""
    try:
        fd = os.open("/proc/self/statm" if pid is None else f"/proc/{pid}/statm", os.O_RDONLY)
    except FileNotFoundError:
        return None if os.path.exists("/proc/self/statm") else _asked_of_psutil(pid)
    except OSError:  # it is gone, or there is no descriptor left
        return None
    try:
        return int(os.read(fd, 200).split()[1]) * mmap.PAGESIZE
    except (OSError, IndexError):
        return None
    finally:
        os.close(fd)


def _asked_of_psutil(pid: int | None) -> int | None:
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None
