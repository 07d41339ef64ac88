"""What a test left behind: threads, processes and file descriptors.

`look()` before a test, `left_since()` after it. A process counts when it descends from this one or carries
this run's mark in its environment, so that one which has lost its parent is found too. (It is not found if
it was forked, never executed a program, and pytest was started without scripts/test.)

What the standard library and loky keep on purpose does not count; see KEEPERS.
As a program, `python -m tests.leftovers` ends what a whole run left.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import select
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import psutil

MARK: Final = "TASKBACK_TEST_RUN"  # the environment variable that all processes of a run have
GRACE: Final = 3.0  # seconds that what is on its way out gets to vanish

# Each keeps a process and a descriptor from its first use to our end: module, object, pid, descriptor.
KEEPERS: Final = (
    ("multiprocessing.resource_tracker", "_resource_tracker", "_pid", "_fd"),
    ("multiprocessing.forkserver", "_forkserver", "_forkserver_pid", "_forkserver_alive_fd"),
    ("loky.backend.resource_tracker", "_resource_tracker", "_pid", "_fd"),
)


@dataclass(frozen=True, slots=True)
class Seen:
    """What there is at one moment, or the part of it that was left."""

    threads: frozenset[threading.Thread] = frozenset()
    bare_threads: frozenset[int] = frozenset()  # idents of those that threading knows nothing of
    processes: frozenset[psutil.Process] = frozenset()
    unwaited: frozenset[psutil.Process] = frozenset()  # children that ended, and nobody waited for them
    descriptors: frozenset[tuple[int, str]] = frozenset()  # the number and what it refers to

    def __bool__(self) -> bool:
        """Whether there is anything."""
        return bool(self.threads or self.bare_threads or self.processes or self.unwaited or self.descriptors)

    def __sub__(self, other: Seen) -> Seen:
        """What is here and was not there."""
        return Seen(
            threads=self.threads - other.threads,
            bare_threads=self.bare_threads - other.bare_threads,
            processes=self.processes - other.processes,
            unwaited=self.unwaited - other.unwaited,
            descriptors=self.descriptors - other.descriptors,
        )

    def lines(self) -> list[str]:
        """One line for each thing, with its name and what tells it from others."""
        return [
            *(f"thread {thread.name!r}{_where(thread.ident)}" for thread in self.threads),
            *(f"thread without a name, ident {ident}{_where(ident)}" for ident in self.bare_threads),
            *(_process_line(process) for process in self.processes),
            *(f"process {process.pid} ended, but nobody waited for it" for process in self.unwaited),
            *(f"file descriptor {number} -> {target}" for number, target in sorted(self.descriptors)),
        ]


def look() -> Seen:
    """What this process has now: its threads, its processes, its descriptors."""
    _, kept_descriptors = _kept()
    threads = frozenset(thread for thread in threading.enumerate() if not isinstance(thread, threading._DummyThread))
    return Seen(
        threads=threads,
        bare_threads=frozenset(sys._current_frames()) - {thread.ident for thread in threads if thread.ident},
        processes=frozenset(processes()),
        descriptors=frozenset(pair for pair in _descriptors() if pair[0] not in kept_descriptors),
    )


def processes() -> set[psutil.Process]:
    """All that descend from this process or carry this run's mark, but for those that it descends from."""
    me = psutil.Process()
    found = {child for child in me.children(recursive=True) if not _waits_for_another(child)}
    lost = _marked() - {me.pid, *(child.pid for child in found)}
    if lost:  # each test asks: what costs time is left out where there is nothing to ask about
        above = {parent.pid for parent in me.parents()}
        for pid in lost - above:
            try:
                found.add(psutil.Process(pid))
            except psutil.NoSuchProcess:
                continue
    kept_pids, _ = _kept()
    return {process for process in found if process.pid not in kept_pids}


def left_since(before: Seen, grace: float = GRACE) -> Seen:
    """What there is now and was not there before, once what is on its way out has gone.

    A child that ended must have been waited for; a process that has lost its parent need only end.

    Args:
        before (Seen): What `look()` saw.
        grace (float): Seconds, for all of it together. Nothing is waited for where nothing is left.

    Returns:
        Seen: What was left.
    """
    deadline = time.monotonic() + grace
    unwaited: set[psutil.Process] = set()
    while True:
        gc.collect()  # what only awaits collection is not left
        multiprocessing.active_children()  # multiprocessing waits for its own no sooner than it is asked
        left = look() - before
        if not left or time.monotonic() >= deadline:
            break
        _join(left.threads, deadline)  # first, since they may be about to wait for the processes
        unwaited.update(process for process in left.processes if _await_end(process, deadline))
        if not left.threads and not left.processes:
            time.sleep(0.01)  # a bare thread or a descriptor: there is nothing to wait on
    return Seen(left.threads, left.bare_threads, left.processes, frozenset(unwaited), left.descriptors)


def kill(roots: Iterable[psutil.Process]) -> None:
    """Kill these and all that descend from them, and wait until they are gone."""
    doomed = set(roots)
    for process in list(doomed):
        try:
            doomed.update(process.children(recursive=True))
        except psutil.NoSuchProcess:
            continue
    for process in doomed:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    deadline = time.monotonic() + GRACE
    for process in doomed:
        _await_end(process, deadline)


def kill_late(before: set[psutil.Process]) -> list[str]:
    """Kill the processes that were not there before and do not end within the grace; a line for each."""
    deadline = time.monotonic() + GRACE
    for process in processes() - before:
        _await_end(process, deadline)
    left = processes() - before
    lines = [_process_line(process) for process in left]
    kill(left)
    return lines


def mark_run() -> None:
    """Have every program that is started from here on carry this run's mark: of a run in parts, its part's."""
    os.environ.setdefault(MARK, f"{os.getpid()}-{time.time_ns()}")
    part = os.environ.get("PYTEST_XDIST_WORKER")
    if part is not None:
        os.environ[MARK] += f".{part}."


def _marked() -> set[int]:
    """The processes that carry this run's mark. Read from /proc where there is one, in a third of psutil's time."""
    mark = os.environ.get(MARK)
    if mark is None:
        return set()
    if not os.path.isdir("/proc/self"):
        return {p.pid for p in psutil.process_iter() if _environment_of(p).get(MARK, "").startswith(mark)}
    entry = f"{MARK}={mark}".encode()
    found = set()
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/environ", "rb", buffering=0) as environment:
                if any(each.startswith(entry) for each in environment.read().split(b"\0")):
                    found.add(int(name))
        except OSError:  # it has ended, or it is somebody else's
            continue
    return found


def _environment_of(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:  # it has ended, or it is somebody else's
        return {}


def _kept() -> tuple[set[int | None], set[int | None]]:
    """The processes and the descriptors that libraries keep on purpose."""
    pids, descriptors = set(), set()
    for module, name, pid, descriptor in KEEPERS:
        keeper = getattr(sys.modules.get(module), name, None)
        pids.add(getattr(keeper, pid, None))
        descriptors.add(getattr(keeper, descriptor, None))
    return pids, descriptors


def _join(threads: Iterable[threading.Thread], deadline: float) -> None:
    # A function of its own: a name that stayed with a thread would keep what that holds, descriptors say.
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))


def _await_end(process: psutil.Process, deadline: float) -> bool:
    """Wait until it has ended; whether its exit status was there for us to take, since nobody had."""
    timeout = max(0.0, deadline - time.monotonic())
    try:
        if process.ppid() == os.getpid() or not hasattr(os, "pidfd_open"):
            return process.wait(timeout) is not None
        # psutil would also wait until whoever has adopted it takes its status, which may be seconds later.
        pidfd = os.pidfd_open(process.pid)
    except (psutil.Error, ProcessLookupError):
        return False
    try:
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        poll.poll(timeout * 1000)
    finally:
        os.close(pidfd)
    return False


def _waits_for_another(process: psutil.Process) -> bool:
    """Whether it has ended and it is not for us to wait for it."""
    try:
        return process.status() == psutil.STATUS_ZOMBIE and process.ppid() != os.getpid()
    except psutil.NoSuchProcess:
        return True


def _descriptors() -> set[tuple[int, str]]:
    """The open descriptors and what each refers to; none where the system does not tell."""
    directory = "/proc/self/fd"
    found = set()
    for name in os.listdir(directory) if os.path.isdir(directory) else ():
        try:
            found.add((int(name), os.readlink(f"{directory}/{name}")))
        except OSError:  # the one that listed the directory
            continue
    return found


def _where(ident: int | None) -> str:
    """The line that a thread is at."""
    frame = sys._current_frames().get(ident or 0)
    if frame is None:
        return ""
    return f", at {frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"


def _process_line(process: psutil.Process) -> str:
    """Its number, its state and its command, as far as it still tells."""
    try:
        return f"process {process.pid} ({process.status()}): {' '.join(process.cmdline()) or process.name()}"
    except psutil.Error:
        return f"process {process.pid}"


if __name__ == "__main__":
    for text in kill_late(set()):
        print(f"killed what the run left: {text}", file=sys.stderr)
