"""An event loop on a thread of its own.

A backend has one for its duties (limits, shutdown, what workers say), where no user code runs, so that it keeps its
times. Async backends have another for the tasks of callers that have no loop.

Threads: start(), stop() and call() from any; what was called runs on the loop's thread.
Locks: _lock is a leaf; it guards the start alone. call() takes none and may be used in a signal handler.
Holds: no exception ends the loop, unless there is no end of them; then `start` makes another one.
"""

import asyncio
import logging
import threading
import weakref
from collections.abc import Callable
from typing import Any, Final

from taskback import _clock, _forks
from taskback._loops import call_in

logger = logging.getLogger(__name__)

MOST_FAILURES: Final = 100  # of one loop


class LoopThread:
    """A daemon thread with a running event loop, from the first `start` to `stop`; it can be started again."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self.loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> asyncio.AbstractEventLoop:
        """The loop, started if it does not run yet."""
        with self._lock:
            if self.loop is None or self.loop.is_closed():
                loop = asyncio.new_event_loop()
                thread = threading.Thread(target=_run, args=(loop,), name=self._name, daemon=True)
                try:
                    thread.start()
                except RuntimeError:  # the interpreter is going down and starts no more threads
                    loop.close()
                    raise
                self.loop, self._thread = loop, thread
                _loops.add(self)
                _forks.watch(_disown_all)
            return self.loop

    def call(self, function: Callable[..., Any], *args: Any) -> bool:
        """Have it called on the loop's thread; False if there is no loop any more."""
        loop = self.loop
        return loop is not None and call_in(loop, function, *args)

    def here(self) -> bool:
        """Whether the calling thread is the loop's own."""
        return self._thread is threading.current_thread()

    def stop(self) -> threading.Thread | None:
        """Ask the loop to end; gives the thread that ends with it, to be joined by another one."""
        with self._lock:
            loop, self.loop = self.loop, None
            if loop is not None and not call_in(loop, loop.stop):  # it has ended by itself
                return None
            return self._thread

    def disown(self) -> None:
        """In a fork: hold nothing of the loop, which does not run here, and take nothing out of what it sleeps on."""
        self._lock = threading.Lock()
        loop, self.loop, self._thread = self.loop, None, None
        if loop is None:
            return
        _inherited.append(loop)
        for name in ("_selector", "_ssock", "_csock"):  # of asyncio's own loops; its close() is for one that has ended
            part = getattr(loop, name, None)
            if part is not None:
                part.close()
        loop._closed = True  # type: ignore[attr-defined]  # or it would complain at its end


_loops: "weakref.WeakSet[LoopThread]" = weakref.WeakSet()
_inherited: list[object] = []  # a fork's: the parent's loops, kept so that nothing of them is finalized here


def _disown_all() -> None:
    for thread in list(_loops):
        thread.disown()


def join(thread: threading.Thread | None, deadline: float) -> bool:
    """Wait for a thread to end; False if it has not at the deadline."""
    if thread is None or thread is threading.current_thread():
        return True
    thread.join(max(0.0, min(deadline - _clock.monotonic(), threading.TIMEOUT_MAX)))
    return not thread.is_alive()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    pid = _forks.pid
    asyncio.set_event_loop(loop)
    try:
        for _ in range(MOST_FAILURES):
            try:
                loop.run_forever()
                break
            except BaseException:  # what asyncio lets through: SystemExit, say, or an error of its own
                if _forks.pid != pid:
                    _forks.leave()
                logger.error("%s goes on after an error", threading.current_thread().name, exc_info=True)
    finally:
        try:
            _finish_what_is_left(loop)
        finally:
            asyncio.set_event_loop(None)
            loop.close()


def _finish_what_is_left(loop: asyncio.AbstractEventLoop) -> None:
    """Cancel the tasks that are left, as `asyncio.run` does."""
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.run_until_complete(loop.shutdown_asyncgens())
