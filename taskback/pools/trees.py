"""Processes below a worker: found by psutil, and ended with it."""

from collections.abc import Callable, Iterable

import psutil  # not when it is needed: that may be in an exit hook, where an import makes CPython forget Ctrl-C

from taskback import _clock
from taskback.pools import _os


def kill_tree(pid: int, still_mine: Callable[[], bool]) -> None:
    """Kill a child process and everything below it.

    The child is stopped first: what it starts cannot outrun us, and while it lives its number is its own.
    Not reached: what has left the tree (a daemon whose father has ended).

    Args:
        pid (int): The child, a session leader where the system has sessions.
        still_mine (Callable[[], bool]): Whether it is still ours to wait for, and the number therefore its own.
    """
    if still_mine():
        _os.send_signal(pid, "SIGSTOP")
        _kill_below(pid)
        _os.send_signal(pid, "SIGKILL")
        _os.kill_group(pid)
    else:
        kill_rest(pid)


def kill_rest(pid: int) -> list[psutil.Process]:
    """Kill what is left of the process group that a child led which has ended; gives those that are about to end.

    While one of the group is left its number is not given away: a process that has it is a stranger, and so are those
    it leads.
    """
    if alive([pid]) or not _os.has_group(pid):
        return []
    group = [process for process in psutil.process_iter() if _os.group_of(process.pid) == pid]
    _os.kill_group(pid)
    return group


def wait_gone(processes: list[psutil.Process], until: float) -> list[int]:
    """Wait for processes that were killed; gives the pids of those that the kernel has not finished with by then."""
    _, left = psutil.wait_procs([each for each in processes if is_alive(each)], max(0.0, until - _clock.monotonic()))
    return alive(each.pid for each in left)


def _kill_below(pid: int) -> None:
    for _ in range(100):  # what is killed may have forked a moment before
        try:
            below = [child for child in psutil.Process(pid).children(recursive=True) if is_alive(child)]
        except psutil.Error:
            return
        if not below:
            return
        for child in below:
            try:
                child.kill()
            except psutil.Error:
                continue
        psutil.wait_procs(below, timeout=0.01)  # a zombie of the stopped child stays one


def is_alive(process: psutil.Process) -> bool:
    """Whether the kernel has not finished with it."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def alive(pids: Iterable[int]) -> list[int]:
    """Those of `pids` that the kernel has not finished with."""
    found = []
    for pid in pids:
        try:
            if is_alive(psutil.Process(pid)):
                found.append(pid)
        except psutil.Error:
            continue
    return found
