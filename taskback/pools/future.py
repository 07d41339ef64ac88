"""The future of a pool's call: a stock future that is light until somebody waits for it.

A stock one makes a condition, a lock, a deque and two lists, most of which a burst of calls never needs, and which cost
more than the rest of a call. Here they are made when they are first asked for. It leans on the private fields of
`concurrent.futures.Future`, which `wait`, `as_completed` and what is not overridden here use; tests pin them on each
Python.

Threads: any.
Locks: `_states`, the pool's, is a leaf; it is reentrant, so that a signal handler may come in between. A future's own
condition, where there is one, is taken before it.
Holds: a state changes under _states, and once there is a condition, under that as well, but for the move to RUNNING,
which nobody waits for.

Race: settle() and the first who waits. Both ask, under _states, whether there is a condition. (1) settle() comes first:
the state is FINISHED before a condition exists, and whoever makes one finds it so. (2) The waiter comes first: settle()
finds the condition and changes the state under it. Were the state changed before, and the condition taken after,
`as_completed` could see it FINISHED and then be told so once more.

Race: begin() and cancel(). Both move PENDING under _states; the second one finds that it is not PENDING any more.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, FINISHED, PENDING, RUNNING
from contextlib import AbstractContextManager
from typing import Any, Final

Work = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]
Callback = Callable[[Future[Any]], object]

logger = logging.getLogger("concurrent.futures")  # where who watches the stock pools listens

_OVER: Final = (FINISHED, CANCELLED_AND_NOTIFIED)
_NOTHING: Final[Work] = (tuple, (), {})  # in the place of a call that is over, or never will be


class _Waiting:
    """What a stock future has from the beginning for those who wait."""

    __slots__ = ("condition", "waiters")

    def __init__(self) -> None:
        self.condition = threading.Condition()
        self.waiters: list[Any] = []  # of concurrent.futures.wait and as_completed


class PoolFuture(Future[Any]):
    """See the top of the file.

    Args:
        states (AbstractContextManager[object]): The pool's lock for the states of its futures.
        work (Work): Function, arguments and keyword arguments, where the pool keeps them here.
    """

    __slots__ = ("_callbacks", "_exception", "_result", "_state", "_states", "_waiting", "_work")

    def __init__(self, states: AbstractContextManager[object], work: Work = _NOTHING) -> None:
        # Not super().__init__(), which makes all that.
        self._states = states
        self._state = PENDING
        self._work = work
        self._result: Any = None
        self._exception: BaseException | None = None
        self._callbacks: list[Callback] | None = None
        self._waiting: _Waiting | None = None

    # --- what a stock future has as fields ---

    def _waited_for(self) -> _Waiting:
        if self._waiting is None:
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

    # --- for the pool ---

    def begin(self) -> Work | None:
        """Take the call, which counts as running from now on; None if it was cancelled."""
        with self._states:
            if self._state != PENDING:
                return None
            self._state = RUNNING
        work, self._work = self._work, _NOTHING
        return work

    def settle(self, result: Any, error: BaseException | None = None) -> bool:
        """The call is over: tell those who wait, and call the callbacks; False if the future was over before."""
        with self._states:
            waiting = self._waiting
            if waiting is None and not self._finish(result, error):
                return False
        if waiting is not None:
            with waiting.condition:
                with self._states:
                    if not self._finish(result, error):
                        return False
                for waiter in waiting.waiters:
                    if error is None:
                        waiter.add_result(self)
                    else:
                        waiter.add_exception(self)
                waiting.condition.notify_all()
        if self._callbacks is not None:
            self._invoke_callbacks()  # type: ignore[attr-defined]  # Future's own; pinned by a test
        return True

    def _finish(self, result: Any, error: BaseException | None) -> bool:
        """Under _states."""
        if self._state in _OVER:
            return False
        self._result, self._exception, self._state = result, error, FINISHED
        return True

    def fail(self, error: BaseException) -> None:
        """The call will not be made, for this reason; nothing if it was cancelled."""
        if self.begin() is not None:
            self.settle(None, error)

    # --- for everybody; see concurrent.futures.Future ---

    def result(self, timeout: float | None = None) -> Any:  # as inherited
        if self._state == FINISHED and self._exception is None:
            return self._result
        return super().result(timeout)

    def done(self) -> bool:  # as inherited
        return self._state in _OVER

    def running(self) -> bool:  # as inherited
        return self._state == RUNNING

    def cancelled(self) -> bool:  # as inherited
        return self._state == CANCELLED_AND_NOTIFIED

    def cancel(self) -> bool:
        """Keep the call from being made.

        Returns:
            bool: False if it runs or is over.

        Source:
            `concurrent.futures.Future.cancel` (Python 3.13 documentation). Here `wait` and `as_completed` are told at
            once, not when a worker comes to the call.
        """
        waiting = self._waited_for()
        with waiting.condition:
            with self._states:
                if self._state != PENDING:
                    return self._state == CANCELLED_AND_NOTIFIED
                self._state, self._work = CANCELLED_AND_NOTIFIED, _NOTHING
            for waiter in waiting.waiters:
                waiter.add_cancelled(self)
            waiting.condition.notify_all()
        self._invoke_callbacks()  # type: ignore[attr-defined]  # Future's own; pinned by a test
        return True

    def add_done_callback(self, fn: Callback) -> None:  # as inherited
        with self._states:
            if self._state not in _OVER:
                if self._callbacks is None:
                    self._callbacks = []
                self._callbacks.append(fn)
                return
        try:
            fn(self)
        except Exception:
            logger.exception("exception calling callback for %r", self)

    def set_running_or_notify_cancel(self) -> bool:  # as inherited
        return self.begin() is not None

    def set_result(self, result: Any) -> None:  # as inherited
        if not self.settle(result):
            raise InvalidStateError(f"{self._state}: {self!r}")

    def set_exception(self, exception: BaseException | None) -> None:  # as inherited
        if not self.settle(None, exception):
            raise InvalidStateError(f"{self._state}: {self!r}")
