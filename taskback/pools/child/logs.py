"""What a worker logs and warns of goes to its parent, which has the loggers and handlers for it.

A record passes the worker's loggers, whose levels are the parent's, and is sent on a socket of its own, so that no
reply waits behind it. Where that socket is full, whoever logs waits: a flood slows the one that makes it.

A worker's own handlers were made by the configuration that the parent has run, too, so a record that they got as well
would come twice. Of them those alone are called that were attached since the first call, by a task then, and that do
not write to the worker's standard streams.

Threads: any that logs.
Locks: _lock is a leaf, which its holder may take again. It is held while a message is sent, never while room is waited
for.
Holds: what is sent is sent whole. The exception that stops a call strikes no sending, but it does strike the waiting.

Race: what is logged in the midst of sending, by a finalizer that a garbage collection has run there. It is the thread
that sends which finds itself at it; so it keeps that message, and sends it when it has sent its own.
"""

import logging
import select
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from taskback import _codec
from taskback._packed import Packed
from taskback._task import CurrentTask, running_task
from taskback.pools.child import packets, records
from taskback.pools.child.memory import AllTakenError
from taskback.pools.child.packets import NoRoomError

RETRY: Final = 0.01  # seconds between two tries where descriptors or memory have run out


class Logs:
    """See the top of the file.

    Args:
        socket (Any): An end as `packets.worker_end` gives it.
        pid (int): The worker.
        shielded (Callable[..., Any]): Calls a function in which no exception of ours strikes.
        at_work (Callable[[], CurrentTask | None]): The task that the worker is at, for threads that have no context.
    """

    def __init__(
        self,
        socket: Any,
        pid: int,
        shielded: Callable[..., Any],
        at_work: Callable[[], CurrentTask | None],
    ) -> None:
        self._socket = socket
        self._pid = pid
        self._shielded = shielded
        self._at_work = at_work
        self._lock = threading.RLock()
        self._sending = False
        self._late: deque[tuple[int, bytes]] = deque()
        self._levels: dict[str, int] = {}  # those that the parent has told
        self._configured: set[logging.Handler] | None = None
        self._streams = frozenset(map(id, (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__)))

    # --- on and off ---

    def begin(self) -> None:
        """From here on records and warnings go to the parent."""
        logs = self

        def call_handlers(logger: logging.Logger, record: logging.LogRecord) -> None:
            logs.tell(record)
            if logs._configured is not None:
                logs._call_a_tasks_own(logger, record)

        self._usual = (logging.Logger.callHandlers, warnings.showwarning)
        logging.Logger.callHandlers = call_handlers  # type: ignore[assignment, method-assign]  # so that no logger can be missed
        warnings.showwarning = self._show_warning

    def settle(self) -> None:
        """The first call comes: what handlers there are now are the configuration's."""
        loggers = [logging.root, *logging.root.manager.loggerDict.values()]
        self._configured = {
            each for logger in loggers if isinstance(logger, logging.Logger) for each in logger.handlers
        }

    def end(self) -> None:
        """In a fork that a handler made, which has no connection: log as configured."""
        logging.Logger.callHandlers, warnings.showwarning = self._usual  # type: ignore[method-assign]

    def set_levels(self, data: Packed) -> None:
        """Take the parent's levels; those that it has told before, and does not now, are not set any more."""
        disabled, levels = _codec.loads(data)
        for name in self._levels.keys() - levels.keys():
            logging.getLogger(name).level = logging.NOTSET
        for name, level in levels.items():
            logging.getLogger(name).level = level
        self._levels = levels
        logging.disable(disabled)  # which clears what loggers have remembered, too

    # --- records ---

    def tell(self, record: logging.LogRecord) -> None:
        """Send a record."""
        task = running_task.get() or self._at_work()
        id, type = (None, None) if task is None else (task.id, task.type)
        self._send(packets.LOG, records.pack_record(record, id, type, self._pid))

    def _call_a_tasks_own(self, logger: logging.Logger, record: logging.LogRecord) -> None:
        """Call the handlers that a task has attached."""
        configured = self._configured
        assert configured is not None
        each: logging.Logger | None = logger
        while each is not None:
            for handler in each.handlers:
                if record.levelno >= handler.level and handler not in configured and not self._is_shown(handler):
                    handler.handle(record)
            each = each.parent if each.propagate else None

    def _is_shown(self, handler: logging.Handler) -> bool:
        return isinstance(handler, logging.StreamHandler) and id(handler.stream) in self._streams

    def _show_warning(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: Any = None,
        line: str | None = None,
    ) -> None:
        if file is not None:
            self._usual[1](message, category, filename, lineno, file, line)
            return
        self._send(packets.WARNING, records.pack_warning(message, category, filename, lineno, _module_of(filename)))

    # --- sending ---

    def _send(self, kind: int, data: bytes) -> None:
        try:
            while True:
                self._send_one(kind, data)
                if not self._late:
                    return
                kind, data = self._late.popleft()
        except IndexError:  # another thread has taken it
            return
        except OSError:  # the parent is gone, or a handler has closed what it did not know
            return

    def _send_one(self, kind: int, data: bytes) -> None:
        while (trouble := self._shielded(self._tried, kind, data)) is not None:
            self._await_room(trouble)
        while self._socket.unsent:
            self._await_room(None)
            self._shielded(self._flush)

    def _tried(self, kind: int, data: bytes) -> NoRoomError | None:
        """Send it if there is room; else what is missing."""
        with self._lock:
            if self._sending:
                self._late.append((kind, data))
                return None
            self._sending = True
            try:
                return self._put(kind, data)
            finally:
                self._sending = False

    def _put(self, kind: int, data: bytes) -> NoRoomError | None:
        try:
            self._socket.send(kind, 0, data)
        except NoRoomError as error:
            if isinstance(error.__cause__, AllTakenError):  # by large ones that are on their way
                self._socket.give_memory_away()
                return self._put(kind, data)
            return error
        return None

    def _flush(self) -> None:
        with self._lock:
            if not self._sending:
                self._socket.flush()

    def _await_room(self, trouble: NoRoomError | None) -> None:
        """Wait; here the exception that stops the call may come."""
        if isinstance(getattr(trouble, "__cause__", None), BlockingIOError) or trouble is None or self._socket.unsent:
            poll = select.poll()
            poll.register(self._socket.fileno(), select.POLLOUT)
            poll.poll()
        else:
            time.sleep(RETRY)


def _module_of(filename: str) -> str | None:
    """The module that warns: that of the innermost frame of that file."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == filename:
            name = frame.f_globals.get("__name__")
            return name if type(name) is str else None
        frame = frame.f_back  # type: ignore[assignment]
    return None
