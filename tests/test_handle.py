"""A handle ends once, and whoever waits for it, in whatever way, is woken; what we lean on in Future is pinned."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import multiprocessing
import os
import threading
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from typing import Any

import pytest

from taskback import ForeignHandleError, _clock
from taskback._call import Outcome
from taskback._events import Listeners
from taskback._handle import TaskHandle
from taskback._router import NO_POLICY
from taskback._run import Run
from taskback._state import TASK_MOVES, TaskState
from taskback.backends._ledger import Ledger


class Owner:
    """Lets a handle go at once, as a backend does for a queued task."""

    def release(self, handle: TaskHandle) -> bool:
        """End it CANCELLED, if it has not ended."""
        if handle.done():
            return handle.cancelled()
        end(handle, Outcome(TaskState.CANCELLED))
        return True


def make_handle() -> TaskHandle:
    """The handle of a queued run."""
    run = Run("id", "type", {}, None, context={}, priority=0, ready_at=0.0, timeout=None, policy=NO_POLICY)
    return TaskHandle(run, Owner(), threading.RLock())


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
    assert not handle._loop_waiters


def test_asyncio_wait_that_gives_up_leaves_nothing_on_the_handle():
    """Asyncio takes its callback out again."""
    handle = make_handle()

    async def main() -> Any:
        return await asyncio.wait([handle], timeout=0)  # type: ignore[type-var]

    assert asyncio.run(main()) == (set(), {handle})
    assert not handle._loop_waiters


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
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(int).result(30) == 0
        assert isinstance(pool._executor_manager_thread, threading.Thread)  # type: ignore[attr-defined]


def test_a_callback_of_asyncios_own_is_known_by_its_module():
    """What asyncio.wait adds is told from what a program adds; a Python that moves it fails here first."""
    added: list[Any] = []

    class Notes(TaskHandle):
        def add_done_callback(self, fn: Any) -> None:
            added.append(fn)
            super().add_done_callback(fn)

    handle = Notes(make_handle()._run, Owner(), threading.RLock())

    asyncio.run(asyncio.wait_for(asyncio.wait([handle], timeout=0), 5))  # type: ignore[type-var]

    assert [fn.__module__ for fn in added] == ["asyncio.tasks"]


def admitted() -> tuple[Ledger, Run, TaskHandle]:
    """A ledger with one run, and the handle of its submitter."""
    ledger = Ledger(Listeners("test"), 0)
    ledger.open = True
    run = make_handle()._run
    handle = ledger.admit(run, Owner(), True)
    assert isinstance(handle, TaskHandle)
    return ledger, run, handle


def begin(ledger: Ledger, run: Run) -> None:
    """A worker takes it and calls its handler."""
    assert ledger.scheduler.next(_clock.monotonic()) is run
    ledger.start(run, 1, run.queued_ns)


MOVES = [(old, new) for old in TaskState for new in TaskState if not old.final and new.final]


@pytest.mark.parametrize(("old", "new"), MOVES)
def test_a_handle_ends_as_the_table_says(old, new):
    """For every open state and every final one: the handle ends in it if the table has the move, else not at all."""
    ledger, run, handle = admitted()
    if old is TaskState.RUNNING:
        begin(ledger, run)
        assert handle.running()
    error = None if new in (TaskState.SUCCEEDED, TaskState.CANCELLED) else ValueError(new.value)

    if new not in TASK_MOVES[old]:
        with pytest.raises(AssertionError):
            ledger.end(run, Outcome(new, error=error))
        assert not handle.done()
        return
    ledger.end(run, Outcome(new, "value", error))

    assert handle.state is new
    assert handle.done()
    assert handle.cancelled() is (new is TaskState.CANCELLED)
    if new is TaskState.CANCELLED:
        with pytest.raises(concurrent.futures.CancelledError):
            handle.exception(0)
    else:
        assert handle.exception(0) is error


@pytest.mark.parametrize(("first", "second"), [(old, new) for old in TaskState for new in TaskState if old.final])
def test_a_handle_that_has_ended_stays_as_it_is(first, second):
    """For every final state and every other one: no second end, and no start."""
    ledger, run, handle = admitted()
    begin(ledger, run)
    ledger.end(run, Outcome(first))

    changed = ledger.start(run, 2, run.queued_ns) if not second.final else ledger.end(run, Outcome(second)) is not None

    assert not changed
    assert handle.state is first
    assert handle.worker_pid == 1


def test_blocking_in_the_loop_that_must_run_the_task_is_refused():
    """It would wait for itself; in another loop, or once the task has ended, it is allowed."""
    handle = make_handle()

    async def main() -> None:
        handle._run.home_loop = asyncio.get_running_loop()
        for wait in (handle.result, handle.exception):
            with pytest.raises(RuntimeError, match="blocking on it here would never end"):
                wait(5)
        with pytest.raises(TimeoutError):
            await asyncio.to_thread(handle.result, 0)
        end(handle, DONE)
        assert handle.result(5) == "done"

    asyncio.run(main())


def test_several_loops_may_await_one_handle():
    """Each is woken on its own thread."""
    handle, waiting = make_handle(), threading.Barrier(4)

    async def main() -> tuple[Any, bool]:
        loop = asyncio.get_running_loop()
        awaiting = asyncio.ensure_future(handle)
        await asyncio.sleep(0)
        waiting.wait(10)
        return await awaiting, asyncio.get_running_loop() is loop

    with ThreadPoolExecutor(3) as pool:
        results = [pool.submit(asyncio.run, main()) for _ in range(3)]
        waiting.wait(10)
        end(handle, DONE)

        assert [result.result(10) for result in results] == [("done", True)] * 3
    assert not handle._loop_waiters


def test_an_awaiter_that_is_cancelled_as_the_handle_ends_harms_nobody():
    """Race: the handle ends, and before its loop is woken the awaiting coroutine is cancelled."""
    handle = make_handle()

    async def main() -> None:
        failures: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: failures.append(context))
        awaiting = asyncio.ensure_future(handle)
        await asyncio.sleep(0)
        end(handle, DONE)
        awaiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await awaiting
        await asyncio.sleep(0)
        assert failures == []

    asyncio.run(main())

    assert handle.result(0) == "done"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_in_a_fork_a_handle_says_that_it_is_foreign():
    """One in flight refuses whatever would wait for it, or stop it; one that has ended answers."""
    live, ended = make_handle(), make_handle()
    end(ended, DONE)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        said = []
        for refuse in (live.result, live.exception, live.cancel, lambda: live.add_done_callback(print)):
            try:
                refuse()
            except ForeignHandleError as error:
                said.append(str(error.pid == os.getppid()))
        said += [ended.result(0), repr(live)]
        os.write(writing, "\n".join(said).encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)

    with os.fdopen(reading) as pipe:
        said = pipe.read().split("\n")

    assert said[:-1] == ["True"] * 4 + ["done"]
    assert said[-1].endswith(f"queued of process {os.getpid()}>")
    assert repr(live).endswith("queued>")
