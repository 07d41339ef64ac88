"""A worker process: what it does before its first call, during a call, and when its parent is gone.

Threads: calls run on the main thread; one daemon thread of ours waits for what the parent says.
Locks: _lock is a leaf; it guards which call runs, and what the parent has called off before it began.
Holds: a call announces its start before its handler is called, so that a parent that has read everything knows
which calls cannot have started.
"""

import os
import pickle
import threading
from multiprocessing.connection import Connection
from typing import Any

from taskback import _clock, _codec
from taskback._call import Call
from taskback._task import ANNOUNCE_EVERY_NS, Progress
from taskback.pools import _os
from taskback.pools.child import calls


class Worker:
    """This process, as a worker."""

    def __init__(self, control: "Connection[Any, Any]") -> None:
        self._control = control
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._sending = threading.Lock()  # a leaf too: reports may come from threads of the handler's own
        self._number = 0
        self._call: Call | None = None
        self._called_off: set[int] = set()
        self._announced_ns = 0
        threading.Thread(target=self._listen, name="taskback-listen", daemon=True).start()

    def perform(self, data: bytes) -> bytes:
        """Run the call that `data` holds."""
        try:
            return calls.perform(data, self._begin, self._announce)
        finally:
            with self._lock:
                self._call = None

    def _begin(self, request: calls.Request, call: Call) -> bool:
        self._announced_ns = 0
        self._say(("started", request.number, _clock.monotonic_ns()))
        with self._lock:
            called_off, self._called_off = request.number in self._called_off, set()
            if not called_off:
                self._number, self._call = request.number, call
            return not called_off

    def _announce(self, number: int, progress: Progress) -> None:
        now = _clock.monotonic_ns()
        if now - self._announced_ns >= ANNOUNCE_EVERY_NS:
            self._announced_ns = now
            self._say(("progress", number, *calls.pack_progress(progress)))

    def _say(self, message: tuple[Any, ...]) -> None:
        if os.getpid() != self._pid:  # a fork that the handler made has no say
            return
        with self._sending:
            try:
                self._control.send_bytes(pickle.dumps(message, _codec.PROTOCOL))
            except OSError:  # the handler closed it, or the parent is gone
                return

    def _listen(self) -> None:
        while True:
            try:
                _, number, firmly = pickle.loads(self._control.recv_bytes())
            except (EOFError, OSError):
                # The parent is gone, however it went. (Or the handler closed all that is open: then nobody can
                # stop it any more, and the parent loses it as it loses a worker that dies.)
                _os.kill_own_group()
                return
            with self._lock:
                call = self._call if self._number == number else None
                if call is None:  # not begun yet, or over
                    self._called_off.add(number)
            if call is not None:
                call.interrupt(firmly)


_worker: Worker | None = None


def begin(control: "Connection[Any, Any]") -> None:
    """Make this process a worker; the pool's initializer."""
    global _worker
    _os.leave_the_terminal()
    _os.shrug_off_signals()
    _os.let_interrupts_in()
    _worker = Worker(control)


def hello(key: tuple[str, int], handler: bytes | None) -> bool:
    """The first call: the worker is up. Says whether it has its handler.

    A handler that cannot be imported is sent again with each task, and fails it with the import's own error.
    """
    if handler is None:
        return False
    try:
        calls.load_handler(key, handler)
    except BaseException:
        return False
    return True


def perform(data: bytes) -> bytes:
    """A call, in the worker."""
    assert _worker is not None
    return _worker.perform(data)
