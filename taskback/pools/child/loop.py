"""A worker: it reads a call, makes it, sends the reply, and reads the next one.

Threads: all on the main thread, where signals are handled; handlers may have threads of their own, which report.
Holds: a reply is sent before the next call is read, so that finished results survive whatever comes then. The signal
that stops a call raises between that call's marks and nowhere else; elsewhere it leaves a word that is looked at
before the handler is called. A process with another number than the worker's never comes back into the loop.

When a call that was stopped is answered, nothing is left of what it has started. Nobody knows which call has started
what, so all that is below the worker is killed, and the worker ends: a later call may have counted on it.

Race: the signal and the call's beginning. Whoever stops a call writes its id on the status page and then sends the
signal. The worker makes the call known to its signal handler, and then reads the page. So either the handler finds the
call, or the worker finds the word.
"""

import atexit
import faulthandler
import functools
import logging
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from taskback import _codec
from taskback._call import Call, SignalMarks
from taskback._leave import flush
from taskback._packed import Packed
from taskback._task import ANNOUNCE_EVERY_NS, CurrentTask
from taskback.pools import _os
from taskback.pools.child import calls, chunks, descendants, lifeline, packets, stderr, streams
from taskback.pools.child.functions import FunctionCall, Functions, packed_error, packed_reply
from taskback.pools.child.limits import Age, WorkerLimits
from taskback.pools.child.logs import Logs
from taskback.pools.child.packets import NoRoomError, Packet
from taskback.pools.child.status_page import StatusPage

if TYPE_CHECKING:
    from taskback._progress import Progress

NO_ROOM_LIMIT: Final = 2.0  # seconds that a reply waits for descriptors
LEFT_BEHIND: Final = "it was replaced, for what it had started was killed with a task that was stopped"
BROKEN: Final = 70  # the exit status of a worker that lost its connection


class Descriptors(NamedTuple):
    """What a worker is given."""

    calls: int
    replies: int
    lifeline: int
    page: int
    stack: int
    logs: int = -1  # where records go; none where they stay here


this: "Worker | None" = None  # what this process is, once it is one


class Interruptible(Protocol):
    """A call, as the signal's handler sees it."""

    def interrupt(self, firmly: bool) -> None:
        """Stop it; raises between its marks."""


class Worker:
    """See the top of the file.

    Args:
        fds (Descriptors): Its own from now on.
        by_streams (bool): Whether it is spoken to by streams, not by packets.
        limits (WorkerLimits): When it ends by itself.
    """

    def __init__(self, fds: Descriptors, by_streams: bool, limits: WorkerLimits) -> None:
        make: Callable[[int], Any] = streams.worker_end if by_streams else packets.worker_end
        self._pid = os.getpid()
        self._age = Age(limits)
        self._leaves_for = ""  # why it is to end once the reply is sent
        self._fds = fds
        self._ours = {
            fd: _identity(fd) for fd in (fds.calls, fds.replies, fds.lifeline, fds.stack, fds.logs) if fd >= 0
        }
        self._calls = make(fds.calls)
        self._replies = make(fds.replies)
        self._page = StatusPage(fds.page)
        self._functions = Functions()
        self._running: tuple[int, Interruptible] | None = None
        self._announced_ns = 0
        self._sending = threading.Lock()  # reports may come from threads of the handler's own
        self._shielded = False  # the main thread is sending: what would be raised there is raised after it
        self._deferred = False
        self._logs = Logs(make(fds.logs), self._pid, self._shield, self._at_work) if fds.logs >= 0 else None

    def live(self) -> None:
        """Be a worker; does not return."""
        global this
        this = self
        try:
            if self._prepare() and self._greet():
                self._serve()
                self._end()
        except (OSError, EOFError, ValueError):  # its connection is gone: closed by a handler, or with the parent
            os._exit(BROKEN)
        os._exit(0)

    # --- before the first call ---

    def _prepare(self) -> bool:
        """Be a process of its own; False if the parent is gone."""
        _os.leave_the_terminal()
        _os.adopt_orphans()
        _os.be_first_to_go()
        atexit._clear()  # what the guardian has registered is the guardian's
        if (util := _multiprocessing_util()) is not None:
            util._finalizer_registry.clear()  # so is this
        os.register_at_fork(after_in_child=self._forked)
        numpy_random = sys.modules.get("numpy.random")
        if numpy_random is not None:
            numpy_random.seed()
        stderr.keep(self._page.wrote)
        faulthandler.enable(self._fds.stack)  # where its parent finds it
        if _os.STACK_SIGNAL is not None and hasattr(faulthandler, "register"):
            # First from C, whatever holds the GIL; then from Python, which knows where an async handler waits.
            signal.signal(_os.STACK_SIGNAL, self._tell_where_it_waits)
            faulthandler.register(_os.STACK_SIGNAL, file=self._fds.stack, all_threads=True, chain=True)
        if _os.CANCEL_SIGNAL is not None:
            signal.signal(_os.CANCEL_SIGNAL, self._on_signal)
        os.close(self._fds.page)
        return lifeline.arm(self._fds.lifeline)

    def _greet(self) -> bool:
        """Do what is to be done before the first call; False if that failed."""
        packet: Packet = self._calls.receive(wait=True)
        if self._logs is not None:
            self._logs.set_levels(packet.data)
            self._logs.begin()
            packet = self._calls.receive(wait=True)
        brings = packet.kind & packets.WITH_FUNCTION
        try:
            hello = self._functions.keep(packet.data) if brings else packet.data
            initializer, arguments, _ = self._functions.unpack(hello)
            if initializer is not None:
                initializer(*arguments)
        except BaseException as error:
            logging.getLogger("concurrent.futures").critical("Exception in initializer:", exc_info=True)  # as stock
            self._replies.send(packets.UNFIT, 0, packed_error(error), wait=True)
            return False
        trouble = self._functions.trouble()
        calls.leave_if_forked(self._pid)
        if self._logs is not None:
            self._logs.settle()
        self._replies.send(packets.READY, 0, trouble, wait=True)
        return True

    # --- calls ---

    def _serve(self) -> None:
        age = self._age
        while age.calls_left:
            try:
                packet: Packet = self._calls.receive(wait=True)
            except EOFError:  # the parent is gone, and the lifeline has not seen to it
                return
            if packet.kind in packets.NO_CALLS:
                if packet.kind == packets.BYE:
                    return
                if self._logs is not None and not packet.problem:
                    self._logs.set_levels(packet.data)
                continue
            self._perform(packet)
            age.calls_left -= 1
            del packet  # the memory that its payload lies in is free again
            why = self._leaves_for or (age.why_leave() if age.is_watched else "")
            if why:
                self._replies.send(packets.LEAVING, 0, why.encode(), wait=True)
                return

    def _perform(self, packet: Packet) -> None:
        self._page.begin(packet.id, time.monotonic_ns())
        asked, request = packet.kind & ~packets.WITH_FUNCTION, packet.data
        data: Packed
        if packet.problem:
            kind, data = packets.ERROR, packed_error(OSError(packet.problem))
        else:
            if packet.kind & packets.WITH_FUNCTION:
                request = self._functions.keep(request)
            if asked == packets.BRIEF:
                kind, data = self._task(calls.unpack_brief(packet.id, request))
            elif asked == packets.CHUNK:
                kind, data = self._chunk(calls.unpack_brief(packet.id, request))
            elif asked == packets.TASK:
                kind, data = self._task(calls.unpack_request(request))
            else:
                kind, data = self._call(packet.id, request)
        stopped = self._page.stop_wanted(packet.id) and self._page.is_entered()
        self._page.leave()
        self._running = None
        calls.leave_if_forked(self._pid)
        if stopped and descendants.end_all():
            self._leaves_for = LEFT_BEHIND
        self._reply(kind, packet.id, data)
        self._page.end()

    def _call(self, number: int, request: Any) -> tuple[int, Packed]:
        try:
            call = FunctionCall(*self._functions.unpack(request))
        except BaseException as error:
            return packed_reply(packets.ERROR, error)
        if self._page_asks(number, call):
            call.interrupt(firmly=True)  # raised when it begins
        self._page.enter(time.monotonic_ns())
        kind, value = call.run()
        del call
        return packed_reply(kind, value)

    def _task(self, request: calls.Request) -> tuple[int, Packed]:
        self._announced_ns = 0
        done = calls.carry_out(request, self._begin, self._announce, SignalMarks(), self._load)
        return done.pack(self._pid)

    def _chunk(self, request: calls.Request) -> tuple[int, bytes]:
        send = functools.partial(self._reply, packets.PART, request.number)
        try:
            handler, _ = self._load(request)
            return packets.CHUNKED, chunks.carry_out(request, self._page.journal, self._begin, send, handler)
        except BaseException as error:  # of what there is before the first task
            return packets.ERROR, packed_error(error)

    def _load(self, request: calls.Request) -> Any:
        return self._functions.kept(request.handler_key[1])

    def _begin(self, request: calls.Request, call: Interruptible) -> bool:
        if self._page_asks(request.number, call):
            return False
        self._page.enter(time.monotonic_ns())
        if request.tells:
            with suppress(OSError):  # full, or closed: the page tells it all the same
                self._replies.send(packets.BEGUN, request.number)
        return True

    def _at_work(self) -> CurrentTask | None:
        running = self._running
        found: CurrentTask | None = None if running is None else getattr(running[1], "current", None)
        return found

    def _page_asks(self, number: int, call: Interruptible) -> bool:
        self._running = (number, call)  # first: see the race on the top
        return self._page.stop_wanted(number)

    def _reply(self, kind: int, number: int, data: Packed) -> None:
        deadline = time.monotonic() + NO_ROOM_LIMIT
        while True:
            try:
                with self._sending:
                    self._replies.send(kind, number, data, wait=True)
                return
            except NoRoomError as error:
                if time.monotonic() > deadline:
                    why = OSError(error.errno, f"the result of {len(data)} bytes cannot be sent: {error.strerror}")
                    kind, data = packets.ERROR, packed_error(why)
                time.sleep(0.01)

    def _announce(self, number: int, progress: "Progress") -> None:
        """Put progress on the page, and now and then say that there is news."""
        if os.getpid() != self._pid:  # a fork that the handler made has no say
            return
        data = pickle.dumps(calls.pack_progress(progress), _codec.PROTOCOL)
        self._shield(self._tell_progress, number, data)

    def _shield(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call it; what the signal would raise in it, in the middle of a message perhaps, is raised after it."""
        if threading.get_ident() != threading.main_thread().ident or self._shielded:
            return function(*args)
        self._shielded = True
        try:
            result = function(*args)
        finally:
            self._shielded = False
        if self._deferred:
            self._deferred = False
            self._on_signal()
        return result

    def _tell_progress(self, number: int, data: bytes) -> None:
        with self._sending:
            self._page.report(data)
            now = time.monotonic_ns()
            if now - self._announced_ns < ANNOUNCE_EVERY_NS:
                return
            self._announced_ns = now
            with suppress(OSError):  # full, or closed: the page tells it all the same
                self._replies.send(packets.PROGRESS, number)

    # --- signals and forks ---

    def _on_signal(self, *_: Any) -> None:
        running = self._running
        if self._shielded:
            self._deferred = True
            return
        if running is None or os.getpid() != self._pid:
            return
        number, call = running
        if self._page.stop_wanted(number):
            call.interrupt(self._page.firmly(number))

    def _tell_where_it_waits(self, *_: Any) -> None:
        call = self._running[1] if self._running is not None else None
        stack = self._fds.stack
        if (
            isinstance(call, (Call, chunks.ChunkCall)) and _identity(stack) == self._ours[stack]
        ):  # not what a handler opened in its place
            with suppress(OSError):
                os.write(stack, call.waits_at().encode("utf-8", "replace"))

    def _forked(self) -> None:
        """In a fork that a handler made: hold nothing by which the parent knows this worker."""
        for fd, identity in self._ours.items():
            if _identity(fd) != identity:  # what a handler has opened in its place
                continue
            if fd == self._fds.stack:  # faulthandler knows its number, so it must not become another file's
                with suppress(OSError):  # stderr is closed
                    os.dup2(2, fd, inheritable=False)
                    continue
            os.close(fd)
        if self._logs is not None:
            self._logs.end()

    # --- the end ---

    def _end(self) -> None:
        """Leave as a program leaves: threads, exit hooks, buffers. The parent limits how long that may take."""
        with suppress(BaseException):
            threading._shutdown()  # type: ignore[attr-defined]  # as multiprocessing's workers do
        with suppress(BaseException):
            atexit._run_exitfuncs()
        if (util := _multiprocessing_util()) is not None:
            # Its hook is among those that were cleared, where the guardian has imported it. Semaphores and shared
            # memory that a handler has made, or joblib for it, have names, and are unlinked by that. Harmless twice.
            with suppress(BaseException):
                util._exit_function()
        flush()


def _multiprocessing_util() -> Any:
    return sys.modules.get("multiprocessing.util")


def _identity(fd: int) -> tuple[int, int] | None:
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino
