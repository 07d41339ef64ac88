"""The guardian: one small process a pool that starts workers, outlives trouble, and ends it.

Single-threaded, and asleep in poll() unless something is to be done. It needs nothing of the parent's interpreter, so
it keeps its times when the parent is busy.

- It forks workers from itself, imports done; where an import has started a thread, it starts fresh interpreters.
- It is a subreaper, as each worker is: what a handler starts becomes a child of its worker when its own parent is
  gone, and the guardian's when the worker is. So **a child of the guardian that is no worker was left by a dead one**,
  and is killed, setsid or double fork or not.
- A worker that has ended is looked at without being reaped; its group is killed while the zombie keeps the number;
  then it is reaped and its parent told how it ended.
- It keeps the time limits that the parent announces: at the limit it looks at the status page, and if that very call
  still runs, has it stopped; firmly at half the grace; has its stack written just before, and kills at, the grace.
- It kills a worker whose memory grows beyond the pool's limit while it has something to do (see `limits`).
- On end of file from the parent, however that died, it kills every descendant, round by round, and exits.

Holds: whatever goes wrong with one request, the others are served. Numbers of processes are used only while they
cannot be given away: of workers not yet reaped, of children not yet reaped.
"""

import logging
import os
import pickle
import select
import signal
import socket
import struct
import sys
import time
from contextlib import suppress
from typing import Any, Final

from taskback._leave import flush
from taskback.pools import _os
from taskback.pools.child import boot, descendants, evidence, loop
from taskback.pools.child.limits import Scale, WorkerLimits
from taskback.pools.child.status_page import IDLE, REPLYING, StatusPage

logger = logging.getLogger(__name__)

STACK_TIME: Final = 50_000_000  # ns that a worker has to write its stack before it is killed
LAST_ROUNDS: Final = 5.0  # seconds; what the kernel does not finish with by then is left to it
_MOST_FDS: Final = struct.calcsize("7i")  # bytes


class _Limit:
    """A time limit of one call, and how far it has been enforced."""

    __slots__ = ("announced_ns", "call", "due_ns", "grace_ns", "looked_over", "seconds_ns", "steps")

    def __init__(self, call: int, seconds_ns: int, grace_ns: int) -> None:
        self.call = call
        self.seconds_ns = seconds_ns
        self.grace_ns = grace_ns
        self.announced_ns = time.monotonic_ns()
        self.due_ns = self.announced_ns + seconds_ns
        self.looked_over = False
        self.steps: list[tuple[int, str]] = []  # those to come, once the time is up

    def is_up(self, end_ns: int) -> None:
        """Lay down when what is done."""
        kill_ns = end_ns + self.grace_ns
        self.steps = [
            (end_ns, "ask"),
            (end_ns + self.grace_ns // 2, "ask firmly"),
            (max(end_ns, kill_ns - STACK_TIME), "stack"),
            (kill_ns, "kill"),
        ]


class _Child:
    """A worker, as its guardian knows it."""

    __slots__ = ("fate", "limit", "number", "ours", "page", "pid", "scale", "stack")

    def __init__(self, number: int, pid: int, fate: socket.socket, page: StatusPage, stack: int) -> None:
        self.number = number
        self.pid = pid
        self.fate = fate
        self.page = page
        self.stack = stack
        self.limit: _Limit | None = None
        self.scale = Scale(page)
        self.ours = False  # we have killed it

    def tell(self, *message: Any, fd: int | None = None) -> None:
        """Tell the parent; if it does not listen, there is nothing to be done about it."""
        beside = [] if fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", fd))]
        with suppress(OSError):
            self.fate.sendmsg((pickle.dumps(message),), beside, socket.MSG_DONTWAIT)

    def close(self) -> None:
        self.fate.close()
        self.page.close()
        os.close(self.stack)


class Guardian:
    """See the top of the file.

    Args:
        control (socket.socket): On which the parent asks, and whose end of file is the parent's.
        described (dict[str, Any]): See `boot.description`.
        threads (list[str]): That imports have started; with any, workers are not forked.
    """

    def __init__(self, control: socket.socket, described: dict[str, Any], threads: list[str]) -> None:
        self._control = control
        self._described = described
        self._threads = threads
        self._workers: dict[int, _Child] = {}  # by pid
        self._limits = WorkerLimits(*described["limits"])
        self._kill_all_ns: int | None = None
        self._witness = evidence.Witness()
        _os.leave_the_terminal()
        _os.adopt_orphans()
        self._deaths, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._waker = waker
        signal.signal(signal.SIGCHLD, _os.do_nothing)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        control.setblocking(False)

    def run(self) -> None:
        """Serve until the parent is gone; then nothing below is left."""
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(self._deaths, select.POLLIN)
        while True:
            ready = [fd for fd, _ in poll.poll(self._patience())]
            try:
                if self._deaths in ready:
                    self._drain()
                    self._reap()
                if self._control.fileno() in ready and not self._listen():
                    break
                self._enforce()
            except Exception:
                logger.error("the guardian goes on", exc_info=True)
        self._kill_everything()

    # --- what the parent asks ---

    def _listen(self) -> bool:
        """Do what is asked; False at the end of file."""
        while True:
            try:
                message, beside, _, _ = self._control.recvmsg(4096, socket.CMSG_SPACE(_MOST_FDS))
            except BlockingIOError:
                return True
            except ConnectionResetError:
                return False
            if not message:
                return False
            what, *facts = pickle.loads(message)
            getattr(self, f"_do_{what}")(*facts, *(struct.unpack(f"{len(data) // 4}i", data) for _, _, data in beside))

    def _do_start(self, number: int, fds: tuple[int, ...]) -> None:
        self._witness.look_now_and_then()
        fate, *given = fds
        child = _Child(number, 0, socket.socket(fileno=fate), StatusPage(given[3]), given[4])
        try:
            start = self._spawn if self._threads else self._fork
            child.pid = start(child, given)
        except OSError as error:
            child.tell("failed", f"{type(error).__name__}: {error}")
            child.close()
            return
        finally:
            for fd in (*given[:4], *given[5:]):
                os.close(fd)
        self._workers[child.pid] = child
        watch = _os.open_death_watch(child.pid)  # before it can be reaped, so it is no stranger's
        child.tell("started", child.pid, self._threads, fd=watch)
        if watch is not None:
            os.close(watch)

    def _do_limit(self, number: int, call: int, seconds_ns: int, grace_ns: int) -> None:
        for child in self._workers.values():
            if child.number == number:
                child.limit = _Limit(call, seconds_ns, grace_ns)

    def _do_weigh(self, number: int) -> None:
        for child in self._workers.values():
            if child.number == number:
                child.scale.begin(time.monotonic_ns())

    def _do_kill(self, number: int) -> None:
        for child in self._workers.values():
            if child.number == number:
                self._kill(child)

    def _do_kill_all(self, at_ns: int) -> None:
        self._kill_all_ns = at_ns if self._kill_all_ns is None else min(at_ns, self._kill_all_ns)

    # --- starting ---

    def _fork(self, child: _Child, fds: list[int]) -> int:
        flush()
        pid = os.fork()
        if pid:
            return pid
        try:
            child.fate.close()
            child.page.close()
            self._let_go()
            loop.Worker(loop.Descriptors(*fds), self._described["streams"], self._limits).live()
        except BaseException:
            logger.error("a worker ends", exc_info=True)
        finally:
            os._exit(70)

    def _let_go(self) -> None:
        """In a new worker: hold nothing of the guardian's."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._control.close()
        os.close(self._described["lifeline"])
        os.close(self._deaths)
        os.close(self._waker)
        for child in self._workers.values():
            child.close()
        self._workers.clear()

    def _spawn(self, child: _Child, fds: list[int]) -> int:
        """A worker in a fresh interpreter, since a fork would lack the threads that an import has started."""
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            near.send(boot.packed({**self._described, "role": "worker", "fds": fds}))
            for fd in (*fds, far.fileno()):
                os.set_inheritable(fd, True)
            arguments = [sys.executable, *self._described["flags"], "-c", boot.BOOT, str(far.fileno())]
            return os.posix_spawn(sys.executable, arguments, os.environ)
        finally:
            near.close()
            far.close()

    # --- deaths ---

    def _drain(self) -> None:
        with suppress(BlockingIOError):
            while os.read(self._deaths, 4096):
                pass

    def _reap(self) -> None:
        """Reap what has ended, and kill what it leaves."""
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                break
            self._bury(found.si_pid)
        strays = [pid for pid in descendants.children(os.getpid()) if pid not in self._workers]
        descendants.kill(descendants.below(strays), signal.SIGKILL)  # what escapes this comes to us, and wakes us

    def _bury(self, pid: int) -> None:
        child = self._workers.get(pid)
        if child is not None:
            _os.kill_group(pid)  # while the zombie keeps the number
            limits = evidence.limits_of(pid) if not child.ours else {}
        _, status, usage = os.wait4(pid, 0)
        if child is not None:
            del self._workers[pid]
            exitcode, peak_rss = os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024
            found = "" if child.ours else self._witness.testify(exitcode, peak_rss, limits)
            child.tell("died", exitcode, peak_rss, found)
            child.close()

    def _kill(self, child: _Child) -> None:
        """Kill a worker and its group; what else is below it comes to us when it is dead."""
        child.ours = True
        _os.kill_group(child.pid)
        descendants.kill([child.pid], signal.SIGKILL)  # it may not lead a group yet

    # --- limits ---

    def _patience(self) -> float | None:
        """Milliseconds until something is due; None if nothing is."""
        due = [child.limit.steps[0][0] if child.limit.steps else child.limit.due_ns for child in self._limited()]
        due += [child.scale.due_ns for child in self._workers.values() if child.scale.due_ns is not None]
        if self._kill_all_ns is not None:
            due.append(self._kill_all_ns)
        return max(0.0, (min(due) - time.monotonic_ns()) / 1e6 + 0.5) if due else None

    def _limited(self) -> list[Any]:
        return [child for child in self._workers.values() if child.limit is not None]

    def _enforce(self) -> None:
        now = time.monotonic_ns()
        for child in self._limited():
            self._look_at(child, now)
        for child in self._workers.values():
            if child.scale.due_ns is not None and now >= child.scale.due_ns:
                self._weigh(child, now)
        if self._kill_all_ns is not None and now >= self._kill_all_ns:
            self._kill_all_ns = None
            for child in list(self._workers.values()):
                self._kill(child)

    def _look_at(self, child: Any, now: int) -> None:
        limit = child.limit
        seen = child.page.snapshot()
        if seen.call != limit.call:
            # Not read yet, or over: then another one has begun since.
            if seen.since_ns > limit.announced_ns:
                child.limit = None
            elif now >= limit.due_ns:
                limit.due_ns = now + limit.seconds_ns
        elif seen.phase in (IDLE, REPLYING):
            # Over; unless this is the moment in which it begins: so look once more.
            if limit.looked_over:
                child.limit = None
            limit.looked_over = True
            limit.due_ns, limit.steps = now + 1_000_000, []
        elif not limit.steps:
            limit.due_ns = seen.since_ns + limit.seconds_ns
            if now >= limit.due_ns:
                limit.is_up(limit.due_ns)
        while child.limit is not None and limit.steps and now >= limit.steps[0][0]:
            self._take_step(child, limit, limit.steps.pop(0)[1])

    def _weigh(self, child: _Child, now: int) -> None:
        """Kill it if it has grown too large."""
        most = self._limits.kill_rss
        assert most is not None
        rss = child.scale.look(child.pid, most, now)
        if rss is not None:
            child.tell("outgrown", rss, most)
            self._kill(child)

    def _take_step(self, child: Any, limit: _Limit, step: str) -> None:
        if step == "stack":
            os.ftruncate(child.stack, 0)
            os.lseek(child.stack, 0, os.SEEK_SET)
            _os.send_number(child.pid, _os.STACK_SIGNAL)
        elif step == "kill":
            child.tell("killed", limit.call)
            self._kill(child)
            child.limit = None
        else:
            if step == "ask":
                child.tell("limit", limit.call)
            child.page.ask_to_stop(limit.call, firmly=step == "ask firmly")
            _os.send_number(child.pid, _os.CANCEL_SIGNAL)

    # --- the end ---

    def _kill_everything(self) -> None:
        """Kill every descendant, and look again until there is none."""
        deadline = time.monotonic() + LAST_ROUNDS
        poll = select.poll()
        poll.register(self._deaths, select.POLLIN)
        for pid in list(self._workers):
            _os.kill_group(pid)
        while time.monotonic() < deadline:
            descendants.kill(descendants.below(descendants.children(os.getpid())), signal.SIGKILL)
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                return
            poll.poll(5)
            self._drain()
