"""A worker process, as its parent knows it: what is said to it, what it says, and how it ended.

Threads: send(), interrupt(), kill(), stack() on any; all else on the one thread that owns the worker, its lane's.
Locks: _lock is a leaf. It is held while a call is sent, so that a call is out if and only if it was handed over, and
for what closes the worker.

Holds: a call is out from the moment it is sent until its reply is received, it is taken back, or the worker is buried;
it is one of these exactly once. Nothing is sent to a retired worker.

How it ends is told on its *fate*, a socket whose far end its guardian holds: that it was started (with a pidfd), that
a time limit struck, that it died and how. If that closes without a word, the guardian has died; then the pidfd tells of
the worker's end, and nobody of how it was.

Race: the worker's death and its last replies. It sent them before it died, so they lie in the socket: they are read to
the end first, then what it has not read is taken back, and what is missing then is what it was at (at most one, for
it sends each reply before it reads the next call), or had in hand without having begun, which its page tells.
"""

import logging
import os
import pickle
import select
import signal
import socket
import struct
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from typing import Any, Final

from taskback import _clock, _codec, _forks
from taskback._clock import monotonic
from taskback._packed import Packed, in_envelope
from taskback._worker_died import FATAL, WorkerDiedError
from taskback.pools import _os, trees, worker_logs
from taskback.pools.child import calls, packets, status_page, streams
from taskback.pools.child.limits import mib
from taskback.pools.child.memory import AllTakenError
from taskback.pools.child.packets import NoRoomError, Packet
from taskback.pools.child.status_page import Snapshot, StatusPage
from taskback.pools.guardian_client import GuardianClient

logger = logging.getLogger(__name__)

START_LIMIT: Final = 60.0  # seconds that a guardian may import
MOST_FUNCTIONS: Final = 64  # kept by a worker
NO_ROOM_LIMIT: Final = 2.0  # seconds that a call waits for room in its worker's socket, or for descriptors
RETRY: Final = 0.01  # seconds between two looks whether there is room
END_LIMIT: Final = 1.0  # seconds from a goodbye, or from a kill, to the worker's end
STACK_LIMIT: Final = 0.05  # seconds that a worker gets to write its stacks
SILENCE: Final = 0.1  # seconds from the end of a worker's connection to the news of its death; then it is killed
PROD: Final = 1.0  # seconds that a guardian may be late with what it does; then it is told to go on, or is killed


class WorkerStartError(Exception):
    """A worker could not be started; the text says why."""


class InitializerError(WorkerStartError):
    """What a worker was to do before its first call has failed there; `__cause__` is the error."""


_ToSend = tuple[int, int, Packed, "tuple[int, bytes] | None"]  # kind, call, data, function: see `WorkerProcess.send`


@dataclass(slots=True)
class _Limited:
    """A call whose time limit its guardian keeps, and when to look whether it does."""

    call: int
    seconds: float  # within which it is stopped, by force at last
    look_at: float
    prodded: bool = False


@dataclass(frozen=True, slots=True)
class Ending:
    """How a worker ended.

    Attributes:
        pid (int): Its number.
        exitcode (int | None): Its exit status, negative for a signal; None if nobody could tell.
        peak_rss_bytes (int | None): The most memory it ever had.
        why (str): What of ours had to do with it; empty if nothing.
        call (int): The call it was at, 0 for none.
        ran (float | None): How many seconds before its end user code had begun in that; None if it had not.
        stack (str): Where it was, if that was asked for before it was killed.
        journal (bytes): Of a chunk: what it had finished and not sent, as if it had been sent.
        out_of_memory (str): What speaks for that.
        progress (bytes | None): What its call had last reported, packed.
        stderr (str): What it wrote last.
    """

    pid: int | None
    exitcode: int | None
    peak_rss_bytes: int | None = None
    why: str = ""
    call: int = 0
    ran: float | None = None
    stack: str = ""
    journal: bytes = b""
    out_of_memory: str = ""
    progress: bytes | None = None
    stderr: str = ""

    def error(self, call: int) -> WorkerDiedError:
        """What the call gets that it was at."""
        ran = self.ran if call == self.call else None
        progress = None if self.progress is None or ran is None else calls.unpack_progress(pickle.loads(self.progress))
        facts = (self.why, self.out_of_memory if not self.why else "", progress, self.stderr)
        return WorkerDiedError(self.pid, self.exitcode, ran, self.peak_rss_bytes, *facts)


class WorkerProcess:
    """See the top of the file. Making one has it started; `await_ready` waits until it is.

    Args:
        guardian (GuardianClient): Starts it.
        hello (bytes | Parts): What it is to do before its first call, packed as a call is.
        function (tuple[int, bytes] | None): By number, what it is to have unpickled by then.
        bell (Bell): Ends `wait` when it is rung.

    Attributes:
        pid (int): Its number; 0 until the guardian has told.
        out (dict[int, Any]): What it was sent and has not answered, by id.
        ready (bool): Whether it takes calls.
        trouble (bytes): What unpickling that function has raised, packed; empty if nothing.
        guarded (bool): Whether its guardian lives.
        recalls (int): How many times calls were taken back from it.
        struck (list[int]): Calls whose time limit the guardian has found to be up, until the lane has told.
    """

    def __init__(
        self,
        guardian: GuardianClient,
        hello: Packed,
        bell: _os.Bell,
        function: "tuple[int, bytes] | None" = None,
    ) -> None:
        self.pid = 0
        self.out: dict[int, Any] = {}
        self.ready = False
        self.trouble = b""
        self.guarded = True
        self.recalls = 0
        self.struck: list[int] = []
        self._guardian = guardian
        self._weighed = guardian.limits.kill_rss is not None
        self._lock = threading.Lock()
        self.busy_since = 0.0  # when it was last sent something, having had nothing
        self._known: dict[int, None] = {}  # the functions that it keeps, the oldest first
        self._bring: dict[int, int] = {}  # calls that bring it a function, and that function's number
        self._waiting: deque[tuple[float, _ToSend]] = deque()  # for room
        self._no_room = NoRoomError()
        self._retired = False
        self._closed = False
        self._limited: _Limited | None = None  # the call whose time limit its guardian keeps
        self._why = ""
        self._ended: tuple[int | None, int | None, str] | None = None  # exit status, memory, evidence; once it has
        self._silent = False  # its connection has ended
        self._watch: int | None = None
        self._bell = bell
        self._levels: bytes | None = None  # what it has been told is to be logged; None if it logs by itself
        self._ours = ExitStack()  # closes what is open
        _workers.add(self)
        try:
            with _forks.held_back(), ExitStack() as theirs:
                self._open(theirs)
                self._greet(hello, function)
                self._guard, self._number = guardian.start_worker(self._descriptors)
                self._calls.given()
                self._replies.given()
                if self._logs is not None:
                    self._logs.given()
        except BaseException:
            self.close()
            raise

    def _open(self, theirs: ExitStack) -> None:
        """Make all that lies between the two; `theirs` is open until the worker has it."""
        transport: Any = streams if self._guardian.streams else packets
        ours = self._ours
        self._calls = ours.enter_context(closing(transport.Calls()))
        self._replies = ours.enter_context(closing(transport.Replies()))
        self._fate, fate = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.enter_context(self._fate)
        theirs.enter_context(fate)
        reading, lifeline = os.pipe()
        ours.callback(os.close, lifeline)
        theirs.callback(os.close, reading)
        page = status_page.create()
        theirs.callback(os.close, page)
        self._page = ours.enter_context(closing(StatusPage(page)))
        self._stack = _os.unnamed_file("taskback-stack")
        ours.callback(os.close, self._stack)
        self._descriptors: tuple[int, ...] = (
            fate.fileno(),
            *(self._calls.far_fileno(), self._replies.far_fileno(), reading, page, self._stack),
        )
        self._logs = None if self._guardian.logs is None else self._guardian.logs.open(transport)
        if self._logs is not None:
            ours.enter_context(closing(self._logs))
            self._descriptors = (*self._descriptors, self._logs.far_fileno())
        self._replies_fd = self._replies.fileno()
        self._poll = select.poll()
        for fd in (self._replies.fileno(), self._fate.fileno(), self._bell.fileno()):
            self._poll.register(fd, select.POLLIN)

    def _greet(self, hello: Packed, function: "tuple[int, bytes] | None") -> None:
        if self._logs is not None:
            self._levels = worker_logs.levels_now()
            self._calls.send(packets.LEVELS, 0, self._levels)
        if function is None:
            self._calls.send(packets.HELLO, 0, hello)
        else:
            bundle = in_envelope(pickle.dumps((*function, 0, None)), hello)
            self._calls.send(packets.HELLO | packets.WITH_FUNCTION, 0, bundle)
            self._known[function[0]] = None  # for it is never taken back

    def __repr__(self) -> str:
        return f"<WorkerProcess pid={self.pid} out={list(self.out)}>"

    # --- its start ---

    def await_ready(self, called_off: Callable[[], bool]) -> bool:
        """Wait until it takes calls; False if that was called off meanwhile.

        Raises:
            WorkerStartError: It will not.
        """
        deadline = _clock.monotonic() + START_LIMIT
        prod_at: float | None = _clock.monotonic() + PROD  # it may be importing, and not stopped
        greeted = False
        while not self.ready:
            if called_off():
                return False
            if self.over:
                raise WorkerStartError(self._why or "it died before it was ready")
            if not self.pid and _clock.monotonic() > deadline:
                raise WorkerStartError(
                    f"its guardian has not started it within {START_LIMIT:g} s; is an import hanging?"
                )
            if prod_at is not None and _clock.monotonic() >= prod_at:
                prod_at = None
                self._guard.prod()
            self.wait(None if self.pid else (prod_at or deadline) - _clock.monotonic())
            packet = self.receive()
            greeted = greeted or (packet is not None and self._greeted(packet))
            # Race: on a busy machine it greets before its guardian, which forked it, has told its number. Without that
            # nothing can be sent to it, or goes to process 0: the parent's own group.
            self.ready = greeted and self.pid > 0
        return True

    def _greeted(self, packet: Packet) -> bool:
        if packet.kind == packets.UNFIT:
            error = InitializerError("the initializer of a worker failed")
            raise error from _codec.unpack_error(_codec.loads(packet.data))
        if packet.kind != packets.READY:
            return False
        self.trouble = packet.data
        return True

    # --- what is said to it ---

    def send(
        self,
        kind: int,
        call: int,
        data: Packed,
        item: Any,
        function: "tuple[int, bytes] | None" = None,
        recalls: int | None = None,
    ) -> bool:
        """Hand a call over, and `item` with it, which is given back with the reply; False if it takes none any more.

        Where there is no room for it now, `push` sends it.

        Args:
            kind (int): `packets.CALL` or `packets.TASK`.
            call (int): Its id, unlike any other of this worker's.
            data (bytes | Parts): What the worker is to do.
            item (Any): Whatever stands for the call here.
            function (tuple[int, bytes] | None): What the call refers to by number; sent once.
            recalls (int | None): Of a call that is sent ahead: nothing is sent if calls were taken back since then.
        """
        return self.send_all([(item, (kind, call, data, function))], recalls)

    def send_all(self, calls: "list[tuple[Any, _ToSend]]", recalls: int | None = None) -> bool:
        """The same for several, each as its item and what `send` takes beside that: all of them, or none."""
        levels = None if self._levels is None else worker_logs.levels_now()
        with self._lock:
            if self._retired or not (recalls is None or recalls == self.recalls):
                return False
            if levels is not None and levels is not self._levels and not self._waiting:
                self._tell_levels(levels)
            if not self.out:
                self.busy_since = monotonic()
                if self._weighed:
                    self._have_weighed()
            for item, message in calls:
                self.out[message[1]] = item
                if self._waiting or not self._sent(*message):
                    self._waiting.append((_clock.monotonic() + NO_ROOM_LIMIT, message))
        if self._waiting or self._calls.unsent:
            self._bell.ring()
        return True

    def _have_weighed(self) -> None:
        """It is about to have something to do; under the lock. The guardian is asked unless it watches it already."""
        self._page.set_calls(True)
        if not self._page.is_weighed():
            self._guard.ask("weigh", self._number)

    def _has_less(self) -> None:
        """Calls are out no more; under the lock."""
        if self._weighed and not self.out and not self._closed:
            self._page.set_calls(False)

    def _tell_levels(self, levels: bytes) -> None:
        with suppress(OSError):  # no room, so it is told with a later call; or it has died
            self._calls.send(packets.LEVELS, 0, levels)
            self._levels = levels

    def _sent(self, kind: int, call: int, data: Packed, function: "tuple[int, bytes] | None") -> bool:
        try:
            if function is None or function[0] in self._known:
                self._calls.send(kind, call, data)
            else:
                self._send_with_function(kind, call, data, *function)
        except NoRoomError as error:
            if isinstance(error.__cause__, AllTakenError) and len(self.out) == 1:  # by calls that are over
                self._calls.give_memory_away()
                return self._sent(kind, call, data, function)
            self._no_room = error
            return False
        except OSError as error:  # it has died, which settles this call with the others
            logger.debug("worker pid=%d: %s", self.pid, str(error))
        return True

    @property
    def waits_for_room(self) -> bool:
        """Whether `push` has something to send."""
        return bool(self._waiting)

    def push(self) -> list[tuple[Any, OSError]]:
        """Send what there was no room for; what has waited too long is given back, with the reason."""
        failed: list[tuple[Any, OSError]] = []
        with self._lock:
            while self._waiting:
                deadline, message = self._waiting[0]
                if not self._sent(*message):
                    if _clock.monotonic() < deadline:
                        break
                    failed.append((self.out.pop(message[1]), self._no_room))
                    self._has_less()
                self._waiting.popleft()
        return failed

    def _send_with_function(self, kind: int, call: int, data: Packed, number: int, function: bytes) -> None:
        # Until this call is answered, others bring the function too: this one may be taken back, and they not.
        forget = next(iter(self._known)) if len(self._known) >= MOST_FUNCTIONS else 0
        if type(data) is bytes:
            bundle: Packed = pickle.dumps((number, function, forget, data))
        else:
            bundle = in_envelope(pickle.dumps((number, function, forget, None)), data)
        self._calls.send(kind | packets.WITH_FUNCTION, call, bundle)
        self._known.pop(forget, None)
        self._bring[call] = number

    def limit(self, call: int, seconds: float, grace: float) -> None:
        """Have the guardian stop a call that is about to be sent when its time is up, and kill after the grace."""
        self._guard.ask("limit", self._number, call, int(seconds * 1e9), int(grace * 1e9))
        self._limited = _Limited(call, seconds + grace, monotonic() + seconds + grace + PROD)

    @property
    def look_at(self) -> float | None:
        """When to look whether its guardian keeps the time limit of its call."""
        limited = self._limited
        return None if limited is None else limited.look_at

    def look_after_guardian(self) -> None:
        """A call should have been stopped or killed by now: see whether its guardian has failed to do so."""
        limited, now = self._limited, monotonic()
        if limited is None or now < limited.look_at:
            return
        seen = self.snapshot()
        if limited.call not in self.out or not self.guarded:
            self._limited = None
        elif seen.call != limited.call or seen.phase != status_page.IN_USER_CODE:
            limited.look_at = now + limited.seconds + PROD  # it has not begun, or is just replying
        elif (due := seen.since_ns / 1e9 + limited.seconds + PROD) > now:
            limited.look_at = due
        elif not limited.prodded:
            logger.warning("the guardian pid=%d is late to stop a call, and is told to go on", self._guard.pid)
            limited.prodded, limited.look_at = True, now + PROD
            self._guard.prod()
        else:
            self._limited = None
            self._give_up_guardian()

    def _give_up_guardian(self) -> None:
        """It does nothing: those who wait for it find that its end is closed, and its workers' limits are ours."""
        if self.guarded:
            logger.warning("the guardian pid=%d does not do what it should, and is killed", self._guard.pid)
            self._guard.send_kill()
            self._lost_its_guardian()

    def interrupt(self, call: int, firmly: bool) -> list[Any]:
        """Have a call stop by itself: an exception in its handler. What is not read is given back.

        After that only the last call that is out can be under way: those before it have their reply in the socket.
        """
        with self._lock:
            if self._closed:
                return []
            taken = self._taken_back() if len(self.out) > 1 else []
            if self.out and call == next(reversed(self.out)):
                self._page.ask_to_stop(call, firmly)
                self._signal(_os.CANCEL_SIGNAL)
            return taken

    def first(self) -> Any | None:
        """Of what is out, what was sent first."""
        with self._lock:
            return next(iter(self.out.values()), None)

    def kill(self, why: str) -> None:
        """End it now, and what it has started.

        The guardian sees to what is below it. `why` is told to the call it is at; the first to say counts.
        """
        with self._lock:
            if self._closed or self._ended is not None:
                return
            self._why = self._why or why
            logger.debug("killing worker pid=%d: %s", self.pid, why)
            if not self.guarded and self.pid:
                _os.kill_group(self.pid)
            self._signal(_os.SIGKILL)
            self._guard.ask("kill", self._number)

    def _signal(self, number: int | None) -> None:
        # By its pidfd, for its number may be a stranger's by now.
        if number is not None and self._watch is not None:
            with suppress(OSError):
                signal.pidfd_send_signal(self._watch, number)

    def stack(self) -> str:
        """The stacks of its threads, as they are now; empty if it does not write them within 50 ms."""
        with self._lock:
            if self._closed:
                return ""
            stack = os.dup(self._stack)
            os.ftruncate(stack, 0)
            os.lseek(stack, 0, os.SEEK_SET)
            self._signal(_os.STACK_SIGNAL)
        try:
            _await_written(stack)
            return _read(stack)
        finally:
            os.close(stack)

    def snapshot(self) -> Snapshot:
        """What it is doing."""
        with self._lock:
            return Snapshot(0, status_page.IDLE, 0, 0) if self._closed else self._page.snapshot()

    def progress(self) -> bytes | None:
        """The latest progress of its call, packed."""
        with self._lock:
            return None if self._closed else self._page.progress()

    def retire(self) -> bool:
        """Send it nothing any more; False if a call is out."""
        with self._lock:
            if not self.out:
                self._retired = True
            return self._retired

    def say_goodbye(self) -> None:
        """Have it end by itself; it is retired."""
        with self._lock, suppress(OSError):
            self._calls.send(packets.BYE, 0)

    # --- what it says ---

    @property
    def over(self) -> bool:
        """Whether it has ended, or can be spoken to no more."""
        return self._silent or self._ended is not None

    def wait(self, seconds: float | None = None) -> None:
        """Sleep until there is something to receive, its fate has changed, or the bell rings."""
        if self._calls.unsent:
            self._poll.register(self._calls.fileno(), select.POLLOUT)
        if self._waiting:
            seconds = RETRY if seconds is None else min(RETRY, seconds)
        for fd, _ in self._poll.poll(None if seconds is None else max(0.0, seconds * 1000)):
            if fd == self._replies_fd:  # what follows it is `receive`
                continue
            if fd == self._bell.fileno():
                self._bell.silence()
            elif fd == self._watch:
                self._ended = self._ended or (None, None, "")
            elif fd == self._fate.fileno():
                self._hear_fate()
            elif fd == self._calls.fileno():
                self._flush()

    def _flush(self) -> None:
        self._poll.unregister(self._calls.fileno())
        with self._lock, suppress(OSError):  # it has died, and its fate tells
            self._calls.flush()

    def _hear_fate(self) -> None:
        while self.guarded:
            try:
                message, beside, _, _ = self._fate.recvmsg(65536, socket.CMSG_SPACE(4), socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError:
                message, beside = b"", []
            if not message:
                self._lost_its_guardian()
                return
            what, *facts = pickle.loads(message)
            getattr(self, f"_was_{what}")(*facts, *(struct.unpack("i", data)[0] for _, _, data in beside))

    def _lost_its_guardian(self) -> None:
        self.guarded = False
        self._poll.unregister(self._fate.fileno())
        if self._watch is None and self._ended is None:
            self._why = self._why or "its guardian died before it was started"
            self._ended = (None, None, "")
        elif self._watch is not None:
            self._poll.register(self._watch, select.POLLIN)

    def _was_started(self, pid: int, threads: list[str], watch: int | None = None) -> None:
        self.pid, self._watch = pid, watch
        self._guardian.warn_of_threads(threads)
        if watch is not None:
            self._ours.callback(os.close, watch)

    def _was_failed(self, why: str) -> None:
        self._why = why
        self._ended = (None, None, "")

    def _was_limit(self, call: int) -> None:
        self.struck.append(call)

    def _was_killed(self, call: int) -> None:
        self._why = self._why or "it was killed, for its call did not stop within the grace after its time limit"

    def _was_outgrown(self, rss: int, most: int) -> None:
        self._why = self._why or f"it was killed, for it had {mib(rss)} resident (kill_worker_rss_bytes is {mib(most)})"

    def _was_died(self, exitcode: int, peak_rss_bytes: int, out_of_memory: str) -> None:
        self._ended = (exitcode, peak_rss_bytes, out_of_memory)

    def receive(self) -> Packet | None:
        """What it says next, None if nothing now."""
        if self._silent:
            return None
        try:
            found: Packet | None = self._replies.receive()
            return found
        except (EOFError, OSError):
            self._be_silent()
        except ValueError as error:
            logger.error("worker pid=%d talks nonsense and is killed: %s", self.pid, str(error))
            self._be_silent()
            self.kill("it was killed, for something wrote what is no packet on its connection")
        return None

    def _be_silent(self) -> None:
        self._silent = True
        with suppress(KeyError):
            self._poll.unregister(self._replies.fileno())

    def hear(self, most: int) -> list[Packet]:
        """What it says, as long as it says something: at most so many, and no reply that cannot be there."""
        heard: list[Packet] = []
        awaited = len(self.out)
        while len(heard) < most and (packet := self.receive()) is not None:
            heard.append(packet)
            if packet.kind in packets.REPLIES:
                awaited -= 1
                if not awaited:
                    break
        return heard

    def answered(self, calls: list[int]) -> list[Any]:
        """Calls have their replies: what stands for them here; None for those that are not out."""
        with self._lock:
            if self._bring:
                for call in calls:
                    number = self._bring.pop(call, None)
                    if number is not None:
                        self._known[number] = None
            limited = self._limited
            if limited is not None and limited.call in calls:
                self._limited = None
            items = [self.out.pop(call, None) for call in calls]
            if self._weighed:
                self._has_less()
            return items

    def leaves(self, why: str) -> None:
        """It has said that it reads no more calls and ends."""
        self._why = self._why or why

    def take_back(self) -> list[Any]:
        """The calls that it has not read, and will not see now. On any thread.

        While they are taken the worker reads on, so any of them may be missing, and all may be there.
        """
        with self._lock:
            return [] if self._closed else self._taken_back()

    def _taken_back(self) -> list[Any]:
        self.recalls += 1
        if not self.out:  # what lies there is no call: its hello, without which it would never be ready
            return []
        taken = [self.out.pop(message[1]) for _, message in self._waiting]
        self._waiting.clear()
        for packet in self._calls.take_back():
            if packet.kind == packets.LEVELS:
                self._levels = b""  # which it is told again
            self._bring.pop(packet.id, None)
            if packet.id in self.out:
                taken.append(self.out.pop(packet.id))
        self._has_less()
        return taken

    def not_begun(self) -> list[Any]:
        """Of a dead worker: the calls that it had read, or the kernel for it, and not begun.

        Its first step with a call is to write down that it begins.
        """
        with self._lock:
            begun = self._page.snapshot().call
            return [self.out.pop(call) for call in list(self.out) if call != begun]

    # --- its end ---

    def await_end(self) -> None:
        """Wait until it has ended; it is killed if that takes longer."""
        with self._lock:
            self._retired = True
        if not self._silent:
            self._poll.unregister(self._replies.fileno())  # read later; it may be at its end, and would wake us
        for patience in (SILENCE if self._silent else END_LIMIT, END_LIMIT):
            deadline = _clock.monotonic() + patience
            while self._ended is None and _clock.monotonic() < deadline:
                self.wait(deadline - _clock.monotonic())
            if self._ended is None:
                self.kill("it was killed, for it had closed its connection, or did not end when told to")
                self._guard.prod()  # which may have to tell of it
        if self._ended is None and self._watch is not None and _is_readable(self._watch):
            self._give_up_guardian()
            self.wait(END_LIMIT)

    def ending(self) -> Ending:
        """How it ended, for whoever lost a call by that."""
        exitcode, rss, out_of_memory = self._ended or (None, None, "")
        seen = self._page.snapshot()
        has_run = seen.phase in (status_page.IN_USER_CODE, status_page.REPLYING)
        ran = (_clock.monotonic_ns() - seen.since_ns) / 1e9 if has_run else None
        left = self._page.journal.left(seen.call)
        stack, stderr, progress = _read(self._stack), self._page.stderr(), self._page.progress()
        stack, fatal, where = stack.partition(FATAL)  # from there on by Python's handler of a fatal signal
        stderr += fatal + where
        facts = (seen.call, ran, stack, left, out_of_memory, progress, stderr)
        return Ending(self.pid or None, exitcode, rss, self._why, *facts)

    def close(self) -> None:
        """Let go of all that is open; the worker has ended, or has this as its sign to end."""
        with self._lock:
            self._retired = self._closed = True
            self._ours.close()
        if self.pid and not self.guarded:
            trees.kill_rest(self.pid)  # no guardian does

    def disown(self) -> None:
        """In a fork of the parent: hold nothing of it."""
        self._retired = self._closed = True
        self._lock = threading.Lock()
        self._ours.close()


def _is_readable(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def _await_written(stack: int) -> None:
    """Wait until a stack is there and grows no more; nothing tells, so it is looked at."""
    deadline, size = _clock.monotonic() + STACK_LIMIT, 0
    while _clock.monotonic() < deadline:
        time.sleep(0.002)
        before, size = size, os.fstat(stack).st_size
        if size and size == before:
            return


def _read(stack: int) -> str:
    return os.pread(stack, 1 << 20, 0).decode("utf-8", "replace")


_workers: "weakref.WeakSet[WorkerProcess]" = weakref.WeakSet()


def disown_all() -> None:
    """In a fork of the parent: hold nothing by which workers know that their parent lives."""
    worker_logs.disown_all()
    for worker in list(_workers):
        with suppress(OSError):
            worker.disown()
