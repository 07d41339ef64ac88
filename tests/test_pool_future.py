"""The pools' light future: that it is light, and the races told on top of its file."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError, as_completed, wait
from concurrent.futures._base import PENDING, RUNNING
from typing import Any

import pytest

from taskback.pools.future import PoolFuture


def make() -> PoolFuture:
    """One whose call has not begun."""
    return PoolFuture(threading.RLock(), (abs, (-1,), {}))


class HookedLock:
    """A lock that calls something just before it is taken, or just after it was let go, the first time."""

    def __init__(self, before: Callable[[], object] | None = None, after: Callable[[], object] | None = None) -> None:
        self._lock = threading.RLock()
        self._before = before
        self._after = after

    def __enter__(self) -> None:
        before, self._before = self._before, None
        if before is not None:
            before()
        self._lock.acquire()

    def __exit__(self, *exc_info: object) -> None:
        self._lock.release()
        if self._before is None:
            after, self._after = self._after, None
            if after is not None:
                after()


def test_the_private_fields_of_futures_are_those_that_we_stand_in_for():
    """A Python with others needs a look at `taskback.pools.future`."""
    assert set(vars(Future())) == {
        *("_condition", "_state", "_result", "_exception", "_waiters", "_done_callbacks"),
    }
    assert callable(vars(Future)["_invoke_callbacks"])


def test_it_is_light():
    """From its making to its result nothing is made for those who wait, if nobody does."""
    future = make()

    assert future.begin() == (abs, (-1,), {})
    assert future.running()
    assert future.settle(1)

    assert future.done()
    assert future.result() == 1
    assert future._waiting is future._callbacks is None
    assert vars(future) == {}


@pytest.mark.parametrize("error", [None, ValueError("odd")])
@pytest.mark.parametrize("when", ["before", "after"])
def test_who_comes_to_wait_during_the_end_is_told_once(when, error):
    """Race: settle() and the first who waits, in both orders; by `as_completed`, which fails if it is told twice."""
    future, over = make(), make()
    over.settle(0)
    waiting = as_completed([future, over], timeout=10)
    first: list[Any] = []
    # The first step of it looks at the states, puts its waiters on both futures, and gives the one that is over.
    future._states = HookedLock(**{when: lambda: first.append(next(waiting))})  # type: ignore[assignment]
    future._state = RUNNING

    future.settle(1, error)

    assert len(first) == 1
    assert {*first, *waiting} == {future, over}
    assert when == "after" or first == [over]
    assert future.exception(0) is error
    assert wait([future], 0).done == {future}


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_callback_that_comes_during_the_end_is_called_once(when):
    """In both orders."""
    future, calls = make(), list[Any]()
    future._states = HookedLock(**{when: lambda: future.add_done_callback(calls.append)})  # type: ignore[assignment]
    future._state = RUNNING

    future.settle(1)

    assert calls == [future]


def test_the_first_of_begin_and_cancel_wins():
    """Race: the other finds that the future does not wait any more."""
    begun, cancelled = make(), make()
    begun._states = HookedLock(before=begun.cancel)  # type: ignore[assignment]
    cancelled._states = HookedLock(before=cancelled.begin)  # type: ignore[assignment]

    assert begun.begin() is None
    assert begun.cancelled()
    assert not cancelled.cancel()
    assert cancelled.running()


def test_a_signal_handler_may_come_in_between():
    """It runs on a thread that holds the lock of the states, which is reentrant."""
    future = make()

    with future._states:
        assert future.cancel()

    assert future.cancelled()


def test_what_has_ended_ends_no_other_way():
    """As with a stock future; the pool's own late result is dropped."""
    future = make()
    assert future._state == PENDING
    future.set_running_or_notify_cancel()
    future.set_result(1)

    with pytest.raises(InvalidStateError):
        future.set_result(2)
    with pytest.raises(InvalidStateError):
        future.set_exception(ValueError())

    assert not future.settle(3)
    assert not future.cancel()
    assert future.result(0) == 1


def test_a_callback_that_raises_is_logged_and_the_others_are_called(caplog):
    """Where who watches the stock futures listens."""
    future, calls = make(), list[Any]()
    future.add_done_callback(lambda _: 1 / 0)
    future.add_done_callback(calls.append)
    future.begin()

    future.settle(1)
    future.add_done_callback(lambda _: 1 / 0)

    assert calls == [future]
    assert [record.name for record in caplog.records] == ["concurrent.futures"] * 2
