"""A thread that runs user code for us, so that no thread of ours that has a duty is held up by it.

Threads: post() from any, the rest of the work on the courier's own thread.
Locks: _lock is a leaf; user code never runs under it.
Holds: what was posted runs once, in order, or post() said False.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from taskback import _forks
from taskback._keeper import join

logger = logging.getLogger(__name__)


class Courier:
    """Runs what is posted, one after the other. Its thread starts with the first post and ends with `stop`.

    Args:
        name (str): The thread's name.
        limit (int | None): How many posts may wait; further ones are refused.
    """

    def __init__(self, name: str, limit: int | None = None) -> None:
        self._name = name
        self._limit = limit
        self._lock = threading.Lock()
        self._wake = threading.Condition(self._lock)
        self._waiting: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._thread: threading.Thread | None = None
        self._ending = False

    def post(self, function: Callable[..., Any], *args: Any) -> bool:
        """Have it called on the courier's thread; False if it was refused (too many wait, or the program ends)."""
        with self._lock:
            if self._limit is not None and len(self._waiting) >= self._limit:
                return False
            if self._thread is None and not self._start():
                return False
            self._waiting.append((function, args))
            self._wake.notify()
            return True

    def _start(self) -> bool:
        thread = threading.Thread(target=self._run, name=self._name, daemon=True)
        self._ending = False
        try:
            thread.start()
        except RuntimeError:  # the interpreter is going down and starts no more threads
            return False
        self._thread = thread
        return True

    def _run(self) -> None:
        while True:
            with self._lock:
                while not self._waiting:
                    if self._ending:
                        self._thread = None
                        return
                    self._wake.wait()
                function, args = self._waiting.popleft()
            pid = _forks.pid
            try:
                function(*args)
            except BaseException:
                logger.error("%s: %r raised", self._name, function, exc_info=True)
            if _forks.pid != pid:
                _forks.leave()
            del function, args  # what they refer to must not live until the next post

    def stop(self, deadline: float) -> bool:
        """Let it finish what waits and end; False if user code still holds it at the deadline."""
        with self._lock:
            thread = self._thread
            self._ending = True
            self._wake.notify()
        if join(thread, deadline):
            return True
        with self._lock:
            self._waiting.clear()  # nobody waits for it any more; it ends as soon as user code lets go
        return False
