"""The processes below one, read from /proc in some microseconds; by psutil where that does not tell.

What is read is old as soon as it is read: whoever kills by it looks again until nothing is left.
"""

import os
import signal
import time
from contextlib import suppress
from typing import Final

PATIENCE: Final = 1.0  # seconds; what the kernel does not finish with by then is left to it
_TELLS: Final = os.path.exists(f"/proc/self/task/{os.getpid()}/children")


def children(pid: int) -> list[int]:
    """The children of a process, ended ones that nobody has waited for too."""
    if not _TELLS:
        return _children_by_table(pid)
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb", buffering=0) as file:
                found += map(int, file.read().split())
    except OSError:  # it has ended
        return found
    return found


def _children_by_table(pid: int) -> list[int]:
    import psutil

    try:
        return [child.pid for child in psutil.Process(pid).children()]
    except psutil.Error:
        return []


def below(pids: "list[int]") -> list[int]:
    """These and all processes below them."""
    found, todo = [], list(pids)
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo += children(pid)
    return found


def end_all() -> bool:
    """Kill and reap what is below this process, which adopts what loses its parent; whether there was anything."""
    found = children(os.getpid())
    there = bool(found)
    deadline = time.monotonic() + PATIENCE
    while found and time.monotonic() < deadline:
        kill(below(found), signal.SIGKILL)
        for pid in found:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        time.sleep(0.001)
        found = children(os.getpid())
    return there


def kill(pids: "list[int]", number: int) -> None:
    """Send a signal to each that is there."""
    for pid in pids:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
