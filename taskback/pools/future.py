"""The future of a pool's call: a light one that keeps its call until a worker takes it.

Threads: any.
Holds: the call is given out once, or never.

Race: begin() and cancel(). Both move PENDING under _states; the second one finds that it is not PENDING any more.
"""

from collections.abc import Callable
from concurrent.futures import InvalidStateError
from concurrent.futures._base import CANCELLED_AND_NOTIFIED, PENDING, RUNNING
from contextlib import AbstractContextManager
from typing import Any, Final

from taskback._future import OVER, LightFuture

Work = tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]

_NOTHING: Final[Work] = (tuple, (), {})  # in the place of a call that is over, or never will be


class PoolFuture(LightFuture):
    """See the top of the file.

    Args:
        states (AbstractContextManager[object]): The pool's lock for the states of its futures.
        work (Work): Function, arguments and keyword arguments, where the pool keeps them here.
    """

    __slots__ = ("_work",)

    def __init__(self, states: AbstractContextManager[object], work: Work = _NOTHING) -> None:
        super().__init__(states)
        self._work = work

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
        if not self._end(result, error):
            return False
        if self._callbacks is not None:
            self._invoke_callbacks()  # type: ignore[attr-defined]  # Future's own; pinned by a test
        return True

    def fail(self, error: BaseException) -> None:
        """The call will not be made, for this reason; nothing if it was cancelled."""
        if self.begin() is not None:
            self.settle(None, error)

    # --- for everybody; see concurrent.futures.Future ---

    def cancel(self) -> bool:
        """Keep the call from being made.

        Returns:
            bool: False if it runs or is over.

        Raises:
            ForeignHandleError: In a fork of the process that submitted the call.

        Source:
            `concurrent.futures.Future.cancel` (Python 3.13 documentation). Here `wait` and `as_completed` are told at
            once, not when a worker comes to the call.
        """
        self._refuse_foreign()
        if self._state in OVER:
            return self.cancelled()
        if not self._end(None, None, CANCELLED_AND_NOTIFIED, unless=(RUNNING, *OVER)):
            return self.cancelled()
        self._work = _NOTHING
        self._invoke_callbacks()  # type: ignore[attr-defined]  # Future's own; pinned by a test
        return True

    def set_running_or_notify_cancel(self) -> bool:  # as inherited
        return self.begin() is not None

    def set_result(self, result: Any) -> None:  # as inherited
        if not self.settle(result):
            raise InvalidStateError(f"{self._state}: {self!r}")

    def set_exception(self, exception: BaseException | None) -> None:  # as inherited
        if not self.settle(None, exception):
            raise InvalidStateError(f"{self._state}: {self!r}")
