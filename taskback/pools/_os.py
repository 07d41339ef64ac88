"""What differs between operating systems, and nothing else asks for the platform.

Each name below means the same everywhere; where a system cannot give it, the docstring says what comes instead.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

SIGKILL: Final[int] = getattr(signal, "SIGKILL", signal.SIGTERM)


def available_cpus() -> int:
    """How many CPUs this process may use: affinity and, on Linux, the cgroup's quota. At least 1."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    try:
        with open("/sys/fs/cgroup/cpu.max", encoding="ascii") as file:
            quota, period = file.read().split()
        if quota != "max":
            count = min(count, -(-int(quota) // int(period)))
    except (OSError, ValueError):  # no cgroup v2 here
        pass
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
            signal.signal(number, _nothing)


def _nothing(*_: Any) -> None:
    return None


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
