"""Whether a worker has died for want of memory, as far as the kernel tells: looked up by its guardian.

Holds: nothing is called likely without the count or the limit that makes it so, which is told beside it. A SIGKILL
that we have sent ourselves is no evidence.

The kernel counts whom it has killed for want of memory, in the control group and on the whole machine. What the counts
were is looked up when the guardian starts, when a worker does (once a second at most), and when one has died. So one
that has moved may have moved for somebody else, in the time since then: both are told.
"""

import os
import resource
import signal
import time
from contextlib import suppress
from typing import Final

from taskback import _cgroup
from taskback.pools.child.limits import mib

OFTEN: Final = 1.0  # seconds between two looks, if nobody dies
_COUNTED_BY: Final = {1: "memory.oom_control", 2: "memory.events"}
_CRASHES: Final = frozenset((signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGTRAP))


class Witness:
    """Remembers the kernel's counts."""

    def __init__(self) -> None:
        group = _cgroup.group("memory")
        self._places: list[tuple[str, str]] = []  # who counts, and where
        if group is not None:
            path = os.path.join(group.folders[0], _COUNTED_BY[group.version])
            self._places.append((f"in the control group {group.path}", path))
        self._places.append(("on this machine", os.path.join(_cgroup.ROOT, "proc/vmstat")))
        self._seen: list[int | None] = []
        self._seen_at = 0.0
        self.look()

    def look(self) -> "list[str]":
        """Look at the counts; what has changed since the last look, in words."""
        before, self._seen = self._seen, [_count(path) for _, path in self._places]
        self._seen_at = time.monotonic()
        return [
            f"the kernel's count of processes it has killed for want of memory {where} went from {old} to {new}"
            for (where, _), old, new in zip(self._places, before, self._seen, strict=False)
            if old is not None and new is not None and new > old
        ]

    def look_now_and_then(self) -> None:
        """A worker is about to be started."""
        if time.monotonic() - self._seen_at > OFTEN:
            self.look()

    def testify(self, exitcode: int, peak_rss: int, limits: "dict[str, int]") -> str:
        """What speaks for a lack of memory where a worker has died that we have not killed; empty if nothing does.

        Args:
            exitcode (int): How it ended, negative for a signal.
            peak_rss (int): The most bytes that it ever had resident.
            limits (dict[str, int]): See `limits_of`.
        """
        if -exitcode == signal.SIGKILL:
            found = self.look()
            if found and (most := _cgroup.memory_max()) is not None:
                found.append(f"the group may have {mib(most)}")
            return ", and ".join(found)
        if -exitcode in _CRASHES:
            for name, limit in limits.items():
                if peak_rss > limit // 2:
                    return f"it was limited to {mib(limit)} ({name}), and had {mib(peak_rss)} resident at its most"
        return ""


def _count(path: str) -> int | None:
    try:
        with open(path, "rb", buffering=0) as file:
            lines = file.read(65536).split(b"\n")
    except OSError:
        return None
    for line in lines:
        if line.startswith(b"oom_kill "):
            return int(line.split()[1])
    return None


def limits_of(pid: int) -> "dict[str, int]":
    """How many bytes a process may have, by the name of the limit; it may be dead, but must not be reaped.

    Code that does not expect to be refused memory crashes, or aborts.
    """
    found: dict[str, int] = {}
    if not hasattr(resource, "prlimit"):
        return found
    for name in ("RLIMIT_AS", "RLIMIT_DATA"):
        with suppress(OSError, ValueError):
            limit, _ = resource.prlimit(pid, getattr(resource, name))
            if limit != resource.RLIM_INFINITY:
                found[name] = limit
    return found
