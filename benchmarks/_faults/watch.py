"""Which processes there are of this run, and when they are gone.

A process counts that carries the run's mark in its environment, so that one which has lost its parent is found, too.
"""

import json
import os
import select
import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

MARK: Final = "TASKBACK_BENCH_RUN"
LIMIT: Final = 20.0  # seconds; the net under every wait


def mark_run() -> None:
    """Have every program that is started from here on carry this run's mark."""
    os.environ[MARK] = f"{os.getpid()}-{time.time_ns()}"


def all_pids() -> set[int]:
    """Of the whole system."""
    return {int(name) for name in os.listdir("/proc") if name.isdecimal()}


def marked(but: Iterable[int] = ()) -> set[int]:
    """This run's processes that have not ended, without this one and `but`, which costs no look at those."""
    entry = f"{MARK}={os.environ[MARK]}".encode()
    found = set()
    for pid in all_pids() - {os.getpid(), *but}:
        with suppress(OSError):  # it has ended, or it is somebody else's
            if entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.add(pid)
    return found


def kill_all() -> None:
    """End what is left of this run."""
    deadline = time.monotonic() + LIMIT
    while (left := marked()) and time.monotonic() < deadline:
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


class DeathWatch:
    """Waits for the end of processes, by pidfds: a zombie has ended.

    Args:
        pids (Iterable[int]): The processes.
    """

    def __init__(self, pids: Iterable[int]) -> None:
        self._fds: dict[int, int] = {}  # descriptor, pid
        self._poll = select.poll()
        for pid in pids:
            with suppress(ProcessLookupError):
                fd = os.pidfd_open(pid)
                self._fds[fd] = pid
                self._poll.register(fd, select.POLLIN)

    def wait(self) -> float:
        """When the last of them ended, on the monotonic clock; infinity if one lives on."""
        last, deadline = 0.0, time.monotonic() + LIMIT
        while self._fds and time.monotonic() < deadline:
            for fd, _ in self._poll.poll(100):
                last = time.monotonic()
                self._poll.unregister(fd)
                os.close(fd)
                del self._fds[fd]
        left = list(self._fds)
        for fd in left:
            os.close(fd)
        self._fds.clear()
        return float("inf") if left else last


class Pipe:
    """A named pipe on which handlers tell facts.

    Args:
        path (Path): It is made there.
    """

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        os.mkfifo(path)
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)  # both ways: never at its end
        self._rest = b""

    def read(self) -> Any:
        """The next fact."""
        deadline = time.monotonic() + LIMIT
        while b"\n" not in self._rest:
            if not select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"nothing was told within {LIMIT:g} s")
            self._rest += os.read(self._fd, 65536)
        line, _, self._rest = self._rest.partition(b"\n")
        return json.loads(line)

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)
