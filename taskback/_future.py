"""A future that is light until somebody waits for it: what handles and the futures of pools share.

A stock one makes a condition, a lock, a deque and two lists, most of which a burst of tasks never needs, and which cost
more than the rest of a submit. Here who blocks brings a plain lock, and the condition is made when `wait` or
`as_completed` ask for it. It leans on the private fields of `concurrent.futures.Future`, which those two and what is
not overridden here use; tests pin them on each Python.

Threads: any.
Locks: `_states`, its owner's, is a leaf; it is reentrant, so that a signal handler may come in between. A future's own
condition, where there is one, is taken before it.
Holds: a state changes under _states, and once there is a condition, under that as well, but for the move to RUNNING,
which nobody waits for. It ends once; callbacks and locks of those who block are added only before that.

In a fork of its process a future that had ended can be read, and any other refuses to be waited for. Neither takes a
lock of before: a thread may have had it that the fork does not have.

Race: the end and the first who waits. Both ask, under _states, whether there is a condition. (1) The end comes first:
the state is final before a condition exists, and whoever makes one finds it so. (2) The waiter comes first: the end
finds the condition and changes the state under it. Were the state changed before, and the condition taken after,
`as_completed` could see it final and then be told so once more.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED, PENDING, RUNNING
from contextlib import AbstractContextManager
from typing import Any, Final

from taskback import _forks
from taskback._errors import ForeignHandleError

Callback = Callable[[Future[Any]], object]

logger = logging.getLogger("concurrent.futures")  # where who watches the stock pools listens

OVER: Final = (FINISHED, CANCELLED_AND_NOTIFIED)  # the states in which a future is done


class _Waiting:
    """What a stock future has from the beginning for those who wait."""

    __slots__ = ("condition", "pid", "waiters")

    def __init__(self) -> None:
        self.pid = _forks.pid
        self.condition = threading.Condition()
        self.waiters: list[Any] = []  # of concurrent.futures.wait and as_completed


class LightFuture(Future[Any]):
    """See the top of the file.

    Args:
        states (AbstractContextManager[object]): The lock of its owner for the states of its futures.
    """

    __slots__ = ("_blocked", "_callbacks", "_exception", "_pid", "_result", "_state", "_states", "_waiting")

    def __init__(self, states: AbstractContextManager[object]) -> None:
        # Not super().__init__(), which makes all that.
        self._states = states
        self._pid = _forks.pid
        self._state = PENDING
        self._result: Any = None
        self._exception: BaseException | None = None
        self._callbacks: list[Callback] | None = None
        self._blocked: list[threading.Lock] | None = None  # held by those who block, until it is over
        self._waiting: _Waiting | None = None

    # --- what a stock future has as fields ---

    def _refuse_foreign(self) -> None:
        """Raise where this is a fork in which it will never end."""
        if self._pid != _forks.pid and self._state not in OVER:
            raise ForeignHandleError(self._task_id(), self._pid)

    def _task_id(self) -> str | None:
        return None

    def _waited_for(self) -> _Waiting:
        if self._pid != _forks.pid:
            self._refuse_foreign()
            if self._waiting is None or self._waiting.pid != _forks.pid:
                self._waiting = _Waiting()
        elif self._waiting is None:
            made = _Waiting()
            with self._states:
                if self._waiting is None:
                    self._waiting = made
        return self._waiting

    @property
    def _condition(self) -> threading.Condition:  # type: ignore[override]  # a field there
        return self._waited_for().condition

    @property
    def _waiters(self) -> list[Any]:  # type: ignore[override]  # a field there
        return self._waited_for().waiters

    @property
    def _done_callbacks(self) -> list[Callback]:
        return self._callbacks or []

    # --- for its owner ---

    def _end(
        self,
        result: Any,
        error: BaseException | None = None,
        state: str = FINISHED,
        unless: tuple[str, ...] = OVER,
    ) -> bool:
        """End it and wake those who wait; its callbacks are left. False if it is `unless` in one of these states."""
        with self._states:
            waiting = self._waiting
            if waiting is None:
                if self._state in unless:
                    return False
                self._result, self._exception, self._state = result, error, state
        if waiting is not None:
            with waiting.condition:
                with self._states:
                    if self._state in unless:
                        return False
                    self._result, self._exception, self._state = result, error, state
                for waiter in waiting.waiters:
                    if state != FINISHED:
                        waiter.add_cancelled(self)
                    elif error is None:
                        waiter.add_result(self)
                    else:
                        waiter.add_exception(self)
        if self._blocked is not None:
            for lock in self._blocked:
                lock.release()
            self._blocked = None
        return True

    # --- for everybody; see concurrent.futures.Future ---

    def result(self, timeout: float | None = None) -> Any:  # as inherited
        try:
            if self._state not in OVER:
                self._block(timeout)
            if self._state != FINISHED:
                raise CancelledError from self._exception
            if self._exception is not None:
                raise self._exception
            return self._result
        finally:
            del self  # an error's traceback holds this frame, and the future the error

    def exception(self, timeout: float | None = None) -> BaseException | None:  # as inherited
        if self._state not in OVER:
            self._block(timeout)
        if self._state != FINISHED:
            raise CancelledError from self._exception
        return self._exception

    def _block(self, timeout: float | None) -> None:
        """Wait until it is over, or raise `TimeoutError`."""
        self._refuse_foreign()
        lock = threading.Lock()
        lock.acquire()
        with self._states:
            if self._state in OVER:
                return
            if self._blocked is None:
                self._blocked = []
            self._blocked.append(lock)
        ended = False
        try:
            if timeout is None:
                ended = lock.acquire()
            else:
                ended = lock.acquire(True, timeout) if timeout > 0 else lock.acquire(False)
        finally:
            if not ended:
                self._unblock(lock)
        if self._state not in OVER:
            raise TimeoutError

    def _unblock(self, lock: threading.Lock) -> None:
        with self._states:
            if self._state not in OVER and self._blocked is not None:
                self._blocked.remove(lock)

    def done(self) -> bool:  # as inherited
        return self._state in OVER

    def running(self) -> bool:  # as inherited
        return self._state == RUNNING

    def cancelled(self) -> bool:  # as inherited
        return self._state == CANCELLED_AND_NOTIFIED

    def add_done_callback(self, fn: Callback) -> None:  # as inherited
        if self._state not in OVER:
            self._refuse_foreign()
            with self._states:
                if self._state not in OVER:
                    if self._callbacks is None:
                        self._callbacks = []
                    self._callbacks.append(fn)
                    return
        try:
            fn(self)
        except Exception:
            logger.exception("exception calling callback for %r", self)

    def __repr__(self) -> str:
        if self._pid == _forks.pid:
            return super().__repr__()
        return f"<{type(self).__name__} at {id(self):#x} state={self._state.lower()} of process {self._pid}>"
