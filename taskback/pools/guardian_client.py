"""The parent's side of the guardian: it is started when the first worker is, and replaced when it has died.

Threads: any. Locks: _lock is held while a guardian is started (some milliseconds) and while one is closed; below it
comes the lock that holds forks back, and nothing else. Asking takes no lock, for a packet is atomic, and never waits.

Holds: no request is lost for want of a guardian without its asker being told: start_worker() starts another one, the
rest gives False. A worker belongs to the guardian that started it (its `Guard`), dead or not.

A guardian can be stopped instead of dead, or hang: then it tells of no death and keeps no limit. Nobody polls it, but
whoever has waited too long for something of it has it go on (`prod`), and kills it when that does not help.

Race: the guardian dies while it is asked to start a worker. Either the send fails, and the request goes to the next
one; or the far end of the worker's fate, which was in the message, closes with it, and the asker reads that end.
"""

import itertools
import logging
import multiprocessing.spawn
import os
import pickle
import signal
import socket
import struct
import subprocess
import threading
import weakref
from contextlib import suppress
from typing import Any, Final

from taskback import _clock, _forks
from taskback._options import checked_count
from taskback.pools import _os
from taskback.pools.child import boot, lifeline
from taskback.pools.child.limits import NO_LIMITS, WorkerLimits
from taskback.pools.worker_logs import LogReader

logger = logging.getLogger(__name__)

LAST_WORD: Final = 1.0  # seconds that a guardian gets to end everything below it, and itself


def checked_limits(
    max_calls: int | None, max_seconds: float | None, max_rss: int | None, kill_rss: int | None
) -> WorkerLimits:
    """What a pool or a backend was given, by the names that it has there.

    Raises:
        TypeError: One has the wrong type.
        ValueError: One makes no sense, or one makes the other pointless.
    """
    seconds = _clock.checked_limit("max_worker_seconds", max_seconds)
    for name, value in (("max_worker_rss_bytes", max_rss), ("kill_worker_rss_bytes", kill_rss)):
        if value is not None:
            checked_count(name, value, least=1)
    if max_rss is not None and kill_rss is not None and kill_rss <= max_rss:
        raise ValueError(
            f"kill_worker_rss_bytes must be more than max_worker_rss_bytes ({max_rss}), not {kill_rss}: no worker "
            "would live to be replaced"
        )
    return WorkerLimits(max_calls, seconds, max_rss, kill_rss)


class Guard:
    """One guardian process.

    Attributes:
        pid (int): Its number.
    """

    def __init__(self, described: dict[str, Any]) -> None:
        _guards.add(self)  # a fork may come before it is complete
        reading, self._lifeline = os.pipe()
        try:
            self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:
            os.close(reading)
            self._cut()
            raise
        try:
            executable = os.fsdecode(multiprocessing.spawn.get_executable() or b"")
            if not executable:
                raise RuntimeError("there is no Python interpreter in sys.executable that could start workers")
            arguments = [executable, *described["flags"], "-c", boot.BOOT, str(theirs.fileno())]
            with _os.signals_held():  # inherited, so that none ends it before it has its handlers
                self._process = subprocess.Popen(
                    arguments,
                    stdin=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(), reading),
                    env={**dict.fromkeys(boot.THREAD_CAPS, "1"), **os.environ},
                    start_new_session=True,
                )
            # Here, for a fresh interpreter takes a tenth of a second until it has imported what it takes to do so.
            lifeline.arm(reading, self._process.pid)
            self._control.sendmsg((boot.packed({**described, "lifeline": reading}),), (), socket.MSG_DONTWAIT)
        except BaseException:
            self._control.close()
            self._cut()
            if hasattr(self, "_process"):
                self.kill()
            raise
        finally:
            theirs.close()
            os.close(reading)
        self.pid = self._process.pid

    def _cut(self) -> None:
        lifeline, self._lifeline = self._lifeline, -1
        if lifeline >= 0:
            os.close(lifeline)

    def ask(self, what: str, *facts: Any, fds: "tuple[int, ...]" = ()) -> bool:
        """Ask for something; False if nobody is there to hear it."""
        beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(fds)}i", *fds))] if fds else []
        try:
            self._control.sendmsg((pickle.dumps((what, *facts)),), beside, socket.MSG_DONTWAIT)
        except (BrokenPipeError, ConnectionResetError, BlockingIOError):  # dead, or stopped and full
            return False
        except OSError as error:
            if fds and self._control.fileno() >= 0:  # there is no room for descriptors
                raise
            logger.debug("the guardian pid=%d was not asked to %s: %s", self.pid, what, error)
            return False
        return True

    def close(self, deadline: float) -> None:
        """Have it end everything below it, and itself; by force at the deadline."""
        self._control.close()  # the end of file that it waits for
        self.prod()  # or one that somebody has stopped would have to be killed, and what is below it would go on
        self._cut()
        try:
            self._process.wait(max(0.0, deadline - _clock.monotonic()))
        except subprocess.TimeoutExpired:
            logger.warning("killing the guardian pid=%d, which does not end", self.pid)
            self._process.kill()
            self._process.wait()

    def alive(self) -> bool:
        """Whether it has not ended; reaps it if it has."""
        return self._process.poll() is None

    def prod(self) -> None:
        """Have it go on, if somebody has stopped it: it has not done what it should have."""
        with suppress(OSError):
            self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """End it now, and wait for it."""
        self.send_kill()
        self._process.wait()

    def send_kill(self) -> None:
        """End it now, as soon as the kernel has done with it."""
        self._process.send_signal(signal.SIGKILL)

    def disown(self) -> None:
        """In a fork of the parent: hold nothing of it."""
        control, process = getattr(self, "_control", None), getattr(self, "_process", None)
        if control is not None:
            control.close()
        if getattr(self, "_lifeline", -1) >= 0:
            self._cut()
        if process is not None:
            process.returncode = 0  # or it would be waited for, which is not for a fork to do


_guards: "weakref.WeakSet[Guard]" = weakref.WeakSet()


class GuardianClient:
    """The guardian of a pool, whichever process that is now.

    Args:
        modules (tuple[str, ...]): It imports them, so that workers need not.
        streams (bool): Whether workers are spoken to by streams, not by packets.
        limits (WorkerLimits): How long workers are kept.
        logs (LogReader | None): Handles what workers log; None leaves that to them.
    """

    def __init__(
        self,
        modules: "tuple[str, ...]" = (),
        streams: bool = False,
        limits: WorkerLimits = NO_LIMITS,
        logs: LogReader | None = None,
    ) -> None:
        self.streams = streams
        self.limits = limits
        self.logs = logs
        self._modules = modules
        self._lock = threading.Lock()
        self._guard: Guard | None = None
        self._numbers = itertools.count(1)
        self._warned = False

    @property
    def pid(self) -> int | None:
        """The process, if there is one."""
        guard = self._guard
        return None if guard is None else guard.pid

    def start_worker(self, fds: "tuple[int, ...]") -> "tuple[Guard, int]":
        """Have a worker started with these descriptors; its guard, and its number there.

        Raises:
            OSError: No guardian can be started.
        """
        number = next(self._numbers)
        for _ in range(3):
            guard = self._living()
            if guard.ask("start", number, fds=fds):
                return guard, number
            self._replace(guard)
        raise OSError("no guardian stays alive that could start a worker")

    def _living(self) -> Guard:
        with self._lock:
            if self._guard is None or not self._guard.alive():
                if self._guard is not None:
                    logger.warning("the guardian pid=%d has died and is replaced", self._guard.pid)
                    self._guard.close(_clock.monotonic())
                with _forks.held_back():
                    self._guard = Guard(self._description())
            return self._guard

    def _description(self) -> dict[str, Any]:
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # as multiprocessing does
        return {**boot.description(self._modules, self.streams, self.limits), "flags": ["-P", *flags]}

    def _replace(self, guard: Guard) -> None:
        """One that takes no requests is no guardian; what is below it dies with it."""
        with self._lock:
            if self._guard is guard:
                self._guard = None
                guard.kill()
                guard.close(_clock.monotonic())

    def kill_all_at(self, at: float) -> bool:
        """Have every worker that is left killed at a point on the monotonic clock, whatever this process does then."""
        guard = self._guard
        return guard is not None and guard.ask("kill_all", int(at * 1e9))

    def warn_of_threads(self, names: "list[str]") -> None:
        """Say once that workers are not forked, and why."""
        if names and not self._warned:
            self._warned = True
            logger.warning(
                "an import has started a thread (%s), which a forked worker would lack: workers are started as fresh "
                "interpreters, which takes longer",
                ", ".join(names),
            )

    def close(self, deadline: float | None = None) -> None:
        """End the guardian, and with it all that is left below it."""
        with self._lock:
            guard, self._guard = self._guard, None
            if guard is not None:
                guard.close(_clock.monotonic() + LAST_WORD if deadline is None else deadline)
        if self.logs is not None:
            self.logs.close()


def disown_all() -> None:
    """In a fork of the parent: no guardian must take the fork for its parent."""
    for guard in list(_guards):
        guard.disown()
