"""A handle ends once, and whoever waits for it, in whatever way, is woken; what we lean on in Future is pinned."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

import pytest

from taskback._call import Outcome
from taskback._handle import TaskHandle
from taskback._run import Run
from taskback._state import TaskState


class Owner:
    """Lets a handle go at once, as a backend does for a queued task."""

    def release(self, handle: TaskHandle) -> bool:
        """End it CANCELLED."""
        end(handle, Outcome(TaskState.CANCELLED))
        return True


def make_handle() -> TaskHandle:
    """The handle of a queued run."""
    return TaskHandle(Run("id", "type", {}, None, context={}, priority=0, ready_at=0.0, timeout=None), Owner())


def end(handle: TaskHandle, outcome: Outcome) -> None:
    """The two steps, as a backend makes them."""
    handle._settle(outcome)
    handle._wake_loops()
    handle._invoke_callbacks()  # type: ignore[attr-defined]  # Future's own


DONE = Outcome(TaskState.SUCCEEDED, "done")


def test_asyncio_wait_takes_a_handle_on_an_idle_loop():
    """What asyncio adds as a callback is called in its loop, which it wakes."""
    handle = make_handle()

    async def main() -> Any:
        ending = asyncio.get_running_loop().run_in_executor(None, end, handle, DONE)
        done, pending = await asyncio.wait([handle], timeout=10)  # type: ignore[type-var]
        await ending
        return done, pending

    assert asyncio.run(main()) == ({handle}, set())
    assert handle._loop_waiters == []


def test_asyncio_wait_that_gives_up_leaves_nothing_on_the_handle():
    """Asyncio takes its callback out again."""
    handle = make_handle()

    async def main() -> Any:
        return await asyncio.wait([handle], timeout=0)  # type: ignore[type-var]

    assert asyncio.run(main()) == (set(), {handle})
    assert handle._loop_waiters == []


def test_a_callback_is_taken_out_as_often_as_it_was_added():
    """The count is given, and it is not called."""
    handle, called = make_handle(), list[Any]()
    handle.add_done_callback(called.append)
    handle.add_done_callback(called.append)

    assert handle.remove_done_callback(called.append) == 2
    assert handle.remove_done_callback(called.append) == 0
    end(handle, DONE)

    assert called == []


def test_a_loop_that_has_closed_keeps_no_one_else_from_being_woken():
    """Its waiter is passed over, and those of other loops are woken."""
    handle, closed, woken = make_handle(), asyncio.new_event_loop(), list[str]()
    handle._wake_in_loop(closed, lambda: woken.append("closed"), "a")
    closed.close()

    async def main() -> str:
        waiting = asyncio.ensure_future(handle)
        await asyncio.sleep(0)
        end(handle, DONE)
        return await waiting

    assert asyncio.run(main()) == "done"
    assert woken == []


def test_a_cancelled_awaiter_cancels_the_task():
    """As with an asyncio.Task; and `await` raises asyncio's CancelledError, `result` the stock one."""
    handle = make_handle()

    async def main() -> None:
        waiting = asyncio.ensure_future(handle)
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with pytest.raises(asyncio.CancelledError):
            await handle

    asyncio.run(main())

    assert handle.cancelled()
    with pytest.raises(concurrent.futures.CancelledError):
        handle.result(0)


@pytest.mark.parametrize("began", [False, True])
@pytest.mark.parametrize(
    "outcome",
    [DONE, Outcome(TaskState.FAILED, error=ValueError("no")), Outcome(TaskState.CANCELLED)],
    ids=lambda outcome: outcome.state.value,
)
def test_futures_wait_knows_each_end_from_its_first_moment(outcome, began):
    """A handle that has ended is done for concurrent.futures.wait, a running one that was cancelled too."""
    handle = make_handle()
    if began:
        handle._mark_running()
        assert handle.running()

    handle._settle(outcome)

    assert concurrent.futures.wait([handle], timeout=0).done == {handle}
    assert list(concurrent.futures.as_completed([handle], timeout=0)) == [handle]


def test_the_private_parts_of_future_that_we_lean_on_are_there():
    """A Python that renames one of them fails here first."""
    future: Any = Future()

    assert future._state == "PENDING"
    assert future._waiters == []
    assert future._done_callbacks == []
    assert hasattr(future._condition, "notify_all")
    assert list(inspect.signature(future._invoke_callbacks).parameters) == []
    with ProcessPoolExecutor(1) as pool:
        assert pool._executor_manager_thread is None  # type: ignore[attr-defined]
