"""What workers log and warn of, handled in their parent, on a thread that one pool has for it.

A record goes to the logger of its name here, by whose level, filters and handlers it is handled; a warning is warned of
again. All that is user code, slow perhaps, or one that raises or never returns; so it has a thread of its own, which
holds up no reply.

Each worker has a socket for it, and of each that has something one message is taken a turn. What is not taken yet
waits in the kernel, which has little room: then a worker that logs waits, and it alone. There is no other queue.

Order: what one worker says is handled in the order in which it said it. It is not ordered with replies, for else a slow
handler would hold up results.

Threads: open(), close(), join() on any; what `Source` lists on its worker's lane; the rest on the thread of its own.
Locks: _lock is a leaf. No user code runs under it.
Holds: what a worker sent whole is handled, also when the worker is dead, unless close() was called and the thread did
not come to it by the time that join() gave it. The thread ends when it is closed and no source is left.

Levels are read when a worker is started, and again when they have changed; see `levels_now`.
"""

import logging
import pickle
import select
import threading
import weakref
from contextlib import suppress
from typing import Any

from taskback import _codec
from taskback._keeper import join
from taskback.pools import _os
from taskback.pools.child import packets, records
from taskback.pools.child.packets import Packet

logger = logging.getLogger(__name__)


class Source:
    """What one worker says: our end of its socket.

    Args:
        replies (Any): The pair, one of a `packets.Replies` or `streams.Replies`.
        bell (Bell): Wakes the reader.
    """

    def __init__(self, replies: Any, bell: _os.Bell) -> None:
        self.replies = replies
        self.over = False
        self._bell: _os.Bell | None = bell

    def far_fileno(self) -> int:
        """The descriptor that the worker is to get."""
        fd: int = self.replies.far_fileno()
        return fd

    def given(self) -> None:
        """The worker has its end."""
        self.replies.given()

    def forget_bell(self) -> None:
        """It is not to be rung any more."""
        self._bell = None

    def close(self) -> None:
        """Its worker is over: what it has said is read, and no more is awaited."""
        self.over = True
        bell, self._bell = self._bell, None
        if bell is not None:
            bell.ring()


class LogReader:
    """See the top of the file. Its thread starts with the first worker.

    Args:
        name (str): The thread's.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._bell: _os.Bell | None = None  # while there is a thread
        self._new: list[Source] = []
        self._sources: dict[int, Source] = {}
        self._thread: threading.Thread | None = None
        self._closed = False
        self._given_up = False
        self._seen: dict[str, dict[Any, Any]] = {}  # warnings
        self._told = False
        _readers.add(self)

    def open(self, transport: Any) -> Source | None:
        """A source for a new worker; None where no thread can be started any more.

        Args:
            transport (Any): The module `packets` or `streams`.
        """
        with self._lock:
            bell = None if self._closed else self._started()
            if bell is None:
                return None
            source = Source(transport.Replies(), bell)
            self._new.append(source)
        bell.ring()
        return source

    def _started(self) -> _os.Bell | None:
        if self._thread is None:
            bell = _os.Bell()
            thread = threading.Thread(target=self._run, args=(bell,), name=self.name, daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the interpreter is going down and starts no more threads
                return None
            self._thread, self._bell = thread, bell
        return self._bell

    def close(self) -> None:
        """No worker will come any more: the thread ends when it has handled what the last one said."""
        with self._lock:
            self._closed = True
            bell = self._bell
        if bell is not None:
            bell.ring()

    @property
    def thread(self) -> threading.Thread | None:
        """Its thread, once there is one."""
        return self._thread

    def join(self, deadline: float | None = None) -> bool:
        """Wait for that; False if user code holds the thread at the deadline, and what is left is not handled."""
        if deadline is None:
            deadline = float("inf")
        if join(self._thread, deadline):
            return True
        self._given_up = True
        return False

    # --- its thread ---

    def _run(self, bell: _os.Bell) -> None:
        poll = select.poll()
        poll.register(bell.fileno(), select.POLLIN)
        while self._goes_on(poll, bell):
            ready = {fd for fd, _ in poll.poll()}
            if bell.fileno() in ready:
                bell.silence()
            for fd, source in list(self._sources.items()):
                if (fd in ready or source.over) and not self._took_one(source):
                    poll.unregister(fd)
                    del self._sources[fd]
                    source.replies.close()
        for source in self._sources.values():  # it was given up
            source.replies.close()
        self._sources.clear()

    def _goes_on(self, poll: Any, bell: _os.Bell) -> bool:
        with self._lock:
            new, self._new = self._new, []
            if self._given_up or (self._closed and not new and not self._sources):
                self._closed, self._bell = True, None
                for source in new:
                    source.replies.close()
                return False
        for source in new:
            fd = source.replies.fileno()
            self._sources[fd] = source
            poll.register(fd, select.POLLIN)
        if any(source.over for source in self._sources.values()):
            bell.ring()  # they are read to their end, a message a turn, whether or not there is one
        return True

    def _took_one(self, source: Source) -> bool:
        """Handle one message; False if there is none and will be none."""
        over = source.over  # first: what was said before that is there by now
        try:
            packet: Packet | None = source.replies.receive()
        except (EOFError, OSError):
            return False
        except ValueError as error:
            logger.error("a worker talks nonsense on the socket for its log: %s", str(error))
            return False
        if packet is None:
            return not over
        try:
            self._handle(packet)
        except BaseException as error:  # of a handler or filter of the program's
            self._complain(error)
        return not self._given_up

    def _handle(self, packet: Packet) -> None:
        if packet.problem:
            logger.error("what a worker logged was lost: %s", packet.problem)
        elif packet.kind == packets.LOG:
            record = records.rebuilt_record(packet.data)
            target = logging.getLogger(record.name)
            if target.isEnabledFor(record.levelno):
                target.handle(record)
        else:
            records.warn_again(packet.data, self._seen)

    def _complain(self, error: BaseException) -> None:
        """Say once that user code raises here: what it raises is told to nobody else, and may come with each record."""
        if not self._told:
            self._told = True
            with suppress(BaseException):
                text = _codec.traceback_text(error)
                logger.error("%s: handling what a worker has logged raised\n%s", self.name, text)

    def disown(self) -> None:
        """In a fork of the parent: hold nothing of it, and ring no bell of its."""
        for source in (*self._new, *self._sources.values()):
            source.forget_bell()
            source.replies.close()
        bell, self._bell = self._bell, None
        if bell is not None:
            bell.close()


_MARK = "taskback has read the levels"  # in what the root logger remembers, which each change of a level clears
_levels = b""
_reading = False  # what is marked as read is not there yet
_levels_lock = threading.Lock()  # a leaf
_readers: "weakref.WeakSet[LogReader]" = weakref.WeakSet()


def disown_all() -> None:
    """In a fork of the parent: workers' records are the parent's, and levels are read anew."""
    global _levels_lock, _reading
    _levels_lock, _reading = threading.Lock(), False  # another thread may have been reading them
    logging.root._cache.pop(_MARK, None)  # type: ignore[attr-defined]
    for reader in list(_readers):
        with suppress(OSError):
            reader.disown()


def levels_now() -> bytes:
    """The levels that are set in this process, packed; the same object until they change. Takes some 200 ns.

    A logger remembers what it is enabled for, and each `setLevel` and `logging.disable` has all loggers forget. So what
    has been put there is gone once a level has changed; it leans on a private attribute, which a test pins. What was
    read is marked before it is read, or a change meanwhile would be missed.
    """
    if _MARK in logging.root._cache and not _reading:  # type: ignore[attr-defined]  # in this order
        return _levels
    return _read_levels()


def _read_levels() -> bytes:
    global _levels, _reading
    with _levels_lock:
        if _MARK in logging.root._cache:  # type: ignore[attr-defined]  # another thread has read them
            return _levels
        _reading = True
        logging.root._cache[_MARK] = True  # type: ignore[attr-defined]  # first
        try:
            loggers = [("root", logging.root), *logging.root.manager.loggerDict.copy().items()]
            found = {
                name: each.level
                for name, each in loggers
                if isinstance(each, logging.Logger) and each.level != logging.NOTSET
            }
            packed = pickle.dumps((logging.root.manager.disable, found), _codec.PROTOCOL)
            if packed != _levels:
                _levels = packed
        except BaseException:  # Ctrl-C, or a logger of an odd class
            logging.root._cache.pop(_MARK, None)  # type: ignore[attr-defined]
            raise
        finally:
            _reading = False
        return _levels
