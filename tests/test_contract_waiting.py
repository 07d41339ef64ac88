"""The contract, on every backend: handles in event loops, among asyncio's functions and among futures."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
from concurrent.futures import Future

import pytest

from taskback import TaskState, TaskTimeoutError
from tests.backends import begin, begin_sync, flavour, in_loop, on, until_running
from tests.gates import PATIENCE

# --- asyncio's functions take handles ---


@on()
@in_loop
async def test_a_handle_can_be_awaited_more_than_once(backend):
    """`await` gives the result, or raises what the handler raised, each time."""
    good = await begin(backend, {"do": "echo_async", "value": 1})
    bad = await begin(backend, {"do": "fail_async"})

    assert [await good, await good] == [1, 1]
    for _ in range(2):
        with pytest.raises(ValueError, match="no good"):
            await bad


@on()
@in_loop
async def test_gather_as_completed_and_wait_for_take_handles(backend):
    """They see results and exceptions as of any awaitable."""
    handles = [await begin(backend, {"do": "echo", "value": value}) for value in range(4)]

    gathered = await asyncio.gather(*handles, await begin(backend, {"do": "fail"}), return_exceptions=True)
    completed = [await each for each in asyncio.as_completed(handles)]
    waited_for = await asyncio.wait_for(handles[3], PATIENCE)
    async with asyncio.timeout(PATIENCE):
        timed = await handles[2]

    assert gathered[:4] == [0, 1, 2, 3]
    assert isinstance(gathered[4], ValueError)
    assert sorted(completed) == [0, 1, 2, 3]
    assert (waited_for, timed) == (3, 2)


@on()
@in_loop
async def test_asyncio_wait_on_an_idle_loop_returns(backend, gate):
    """`asyncio.wait` takes handles as they are, and wakes a loop that has nothing else to do."""
    handle = await begin(backend, {"do": "hold_async", "gate": gate.path, "value": "over"})
    await gate.said()

    nothing, pending = await asyncio.wait([handle], timeout=0.01)
    threading.Timer(0.05, gate.open).start()
    done, none = await asyncio.wait([handle])
    again, _ = await asyncio.wait([handle])

    assert (nothing, pending) == (set(), {handle})
    assert (done, none, again) == ({handle}, set(), {handle})
    assert handle.result() == "over"


@on()
@in_loop
async def test_create_task_and_task_groups_take_run(backend):
    """`backend.run(task)` is a coroutine, which becomes a task of the loop."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(backend.run({"do": "echo", "value": value})) for value in range(3)]
    alone = asyncio.create_task(backend.run({"do": "echo_async", "value": 3}))

    assert [task.result() for task in tasks] == [0, 1, 2]
    assert await alone == 3
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            group.create_task(backend.run({"do": "fail"}))
    assert isinstance(caught.value.exceptions[0], ValueError)


@on(delay=True)
@in_loop
async def test_a_cancelled_task_is_no_failure_to_its_task_group(backend):
    """`await` raises asyncio's CancelledError, so siblings go on."""
    cancelled = await backend.submit({"do": "echo"}, delay=3600)

    async def wait_for_it():
        await cancelled

    async with asyncio.TaskGroup() as group:
        sibling = group.create_task(backend.run({"do": "echo_async", "value": "went on"}))
        one = group.create_task(wait_for_it())
        cancelled.cancel()

    assert one.cancelled()
    assert sibling.result() == "went on"


@on()
@in_loop
async def test_wrap_future_gives_a_future_of_the_loop(backend):
    """`asyncio.wrap_future` takes a handle as any other concurrent future."""
    good = asyncio.wrap_future(await begin(backend, {"do": "echo_async", "value": 5}))
    bad = asyncio.wrap_future(await begin(backend, {"do": "fail_async"}))

    assert await good == 5
    with pytest.raises(ValueError, match="no good"):
        await bad


# --- cancelling who awaits ---


@on(returns_before_run=True)
@pytest.mark.parametrize("how", ["wait_for", "timeout", "cancel"])
@in_loop
async def test_cancelling_who_awaits_cancels_the_task(backend, gate, how):
    """As with an asyncio task; where a running task cannot be stopped, the awaiter is released all the same."""
    handle = await backend.submit({"do": "hold_async", "gate": gate.path})
    await gate.said()
    await until_running(handle)

    async def wait():
        return await handle

    if how == "wait_for":
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(wait(), 0.01)
    elif how == "timeout":
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await handle
    else:
        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)  # it waits
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    if backend.promises.cancels_running:
        await asyncio.wait([handle], timeout=PATIENCE)
        assert handle.state is TaskState.CANCELLED
    else:
        assert handle.state is TaskState.RUNNING
        gate.open()
        await handle
        assert handle.state is TaskState.SUCCEEDED


@on(returns_before_run=False, cancels_running=True)
@in_loop
async def test_cancelling_a_submit_that_runs_the_task_cancels_it(backend, gate, kind):
    """Where `submit` returns no sooner than the task has run, cancelling it stops the task."""
    submission = asyncio.create_task(backend.submit({"do": "hold_async", "gate": gate.path}, id=kind))
    await gate.said()
    handle = backend.handle(kind)

    submission.cancel()

    with pytest.raises(asyncio.CancelledError):
        await submission
    await asyncio.wait([handle], timeout=PATIENCE)
    assert handle.state is TaskState.CANCELLED


@on()
@in_loop
async def test_shield_is_the_way_around(backend, gate):
    """A shielded task goes on when its awaiter is cancelled."""
    handle = await begin(backend, {"do": "hold_async", "gate": gate.path, "value": "kept"})
    await gate.said()

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(handle), 0.01)

    assert not handle.done()
    gate.open()
    assert await handle == "kept"


@on(in_loop=False, stops_anything=True)
@in_loop
async def test_the_awaiter_is_released_before_the_work_has_stopped(entry, make, gate):
    """The stopping goes on behind it, and the handle ends no sooner than the work."""
    backend = make(entry)  # its own, for it loses a worker
    await backend.initialize()
    handle = await backend.submit({"do": "hold_in_c", "gate": gate.path})
    await gate.said()
    await until_running(handle)

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(handle, 0.01)
    released = handle.state
    await asyncio.wait([handle], timeout=PATIENCE)
    await backend.shutdown()

    assert released is TaskState.RUNNING
    assert handle.state is TaskState.CANCELLED


# --- among concurrent futures ---


@on()
def test_concurrent_futures_functions_take_handles_among_futures(backend):
    """`wait` and `as_completed` mix them with futures of other executors."""
    other: Future[str] = Future()
    good = backend.submit_sync({"do": "echo", "value": 1})
    bad = backend.submit_sync({"do": "fail"})

    first = concurrent.futures.wait([good, bad, other], PATIENCE, concurrent.futures.FIRST_EXCEPTION)
    other.set_result("other")
    done, not_done = concurrent.futures.wait([good, bad, other], PATIENCE)
    completed = set(concurrent.futures.as_completed([good, bad, other], PATIENCE))

    assert bad in first.done
    assert other in first.not_done
    assert (done, not_done) == ({good, bad, other}, set())
    assert completed == {good, bad, other}
    assert isinstance(good, Future)
    assert good.result() == 1


@on(delay=True)
def test_a_cancelled_handle_is_over_for_concurrent_futures_at_once(backend):
    """CANCELLED_AND_NOTIFIED from the first moment, for who waits already and for who comes later."""
    early = backend.submit_sync({"do": "echo"}, delay=3600)
    late = backend.submit_sync({"do": "echo"}, delay=3600)
    completed = []

    def take():
        completed.extend(concurrent.futures.as_completed([early], PATIENCE))

    waiter = threading.Thread(target=take)
    waiter.start()
    while not early._waiters:  # the subject's own sign that somebody waits
        time.sleep(0.001)

    assert early.cancel()
    assert late.cancel()
    waiter.join(PATIENCE)

    assert completed == [early]
    assert concurrent.futures.wait([early, late], 0).not_done == set()
    assert {early._state, late._state} == {"CANCELLED_AND_NOTIFIED"}
    assert early.cancelled()
    with pytest.raises(concurrent.futures.CancelledError):
        early.result()
    with pytest.raises(concurrent.futures.CancelledError):
        early.exception()


@on()
def test_done_callbacks_are_called_once_with_the_handle(backend, gate):
    """Before the end or after it; one that raises harms nobody."""
    called = []
    handle = begin_sync(backend, gate, {"do": flavour(backend, "hold"), "gate": gate.path})

    def raise_something(handle):
        raise RuntimeError("the callback's own")

    both = threading.Event()
    handle.add_done_callback(raise_something)
    handle.add_done_callback(called.append)
    handle.add_done_callback(lambda handle: both.set())
    gate.open()
    handle.result(PATIENCE)
    assert both.wait(PATIENCE)
    handle.add_done_callback(called.append)

    assert called == [handle, handle]


@on()
def test_a_callback_finds_the_figures_up_to_date(backend, kind):
    """Whoever is woken by a handle finds its task counted."""
    seen: Future[int] = Future()
    handle = backend.submit_sync({"do": "echo", "type": kind})
    handle.add_done_callback(lambda handle: seen.set_result(backend.stats().by_type[kind].succeeded))

    assert seen.result(PATIENCE) == 1


# --- blocking, with a limit ---


@on()
def test_a_wait_that_is_over_is_a_bare_timeout_error(backend, gate):
    """`result(timeout)` raises `TimeoutError`, not the task's own, and nothing happens to the task."""
    task = {"do": flavour(backend, "hold"), "gate": gate.path, "value": "later"}
    handle = begin_sync(backend, gate, task)

    for wait in (handle.result, handle.exception):
        with pytest.raises(TimeoutError) as caught:
            wait(0.01)
        assert not isinstance(caught.value, TaskTimeoutError)
        assert not handle.done()
    gate.open()

    assert handle.result(PATIENCE) == "later"


@on(returns_before_run=True)
def test_run_sync_bounds_its_wait_and_cancels_what_nobody_holds(backend, gate, kind):
    """When `wait` is over it raises, and the task is stopped, where one that runs can be."""
    with pytest.raises(TimeoutError):
        backend.run_sync({"do": "hold_async", "gate": gate.path, "type": kind}, wait=0.05, id=kind)

    if backend.promises.cancels_running:
        until_over(backend, kind)
        assert backend.stats().by_type[kind].cancelled == 1
    else:
        gate.open()
        until_over(backend, kind)
        figures = backend.stats().by_type[kind]
        assert figures.cancelled + figures.succeeded == 1


def until_over(backend, kind):
    """Wait for the one task of this id, or find it over."""
    handle = backend.handle(kind)  # among the last that ended, if it has
    concurrent.futures.wait([handle], PATIENCE)
    assert handle.done()


@on()
def test_the_sync_half_raises_what_the_async_half_does(backend):
    """`run_sync` gives the result or raises what the handler raised."""
    assert backend.run_sync({"do": "echo_async", "value": 3}, wait=PATIENCE) == 3
    with pytest.raises(ValueError, match="no good"):
        backend.run_sync({"do": "fail_async"})
    for negative in (-1, float("nan")):
        with pytest.raises(ValueError):
            backend.submit_sync({"do": "echo"}, wait=negative)


@on(in_loop=True)
@in_loop
async def test_blocking_on_a_handle_from_its_own_loop_is_refused(backend, gate):
    """A `RuntimeError` instead of a deadlock; awaiting it works, and so does asking once it is over."""
    handle = await begin(backend, {"do": "hold_async", "gate": gate.path, "value": 1})
    await gate.said()

    for block in (handle.result, handle.exception):
        with pytest.raises(RuntimeError, match="await it"):
            block()
    gate.open()
    await handle

    assert handle.result() == 1
    assert handle.exception() is None


@on(in_loop=False)
@in_loop
async def test_blocking_on_a_handle_from_another_loop_is_allowed(backend):
    """It holds up that loop and nothing else."""
    handle = await backend.submit({"do": "echo", "value": 1})

    assert handle.result(PATIENCE) == 1


@on(in_loop=True, returns_before_run=True)
@in_loop
async def test_run_sync_from_the_loop_that_must_run_the_task_is_refused(backend):
    """It would wait for itself."""
    with pytest.raises(RuntimeError, match="await it"):
        backend.run_sync({"do": "echo"})


# --- several loops ---


@on(returns_before_run=True)
def test_two_event_loops_may_use_one_backend_and_one_handle(backend, gate):
    """Each submits and awaits its own, and both await what one of them submitted."""
    shared: Future[object] = Future()

    async def first():
        handle = await backend.submit({"do": "hold_async", "gate": gate.path, "value": "shared"})
        shared.set_result(handle)
        own = await backend.run({"do": "echo", "value": 1})
        return own, await handle

    async def second():
        handle = await asyncio.wrap_future(shared)
        own = await backend.run({"do": "echo", "value": 2})
        waiting = asyncio.ensure_future(asyncio.wait([handle]))
        await gate.said()
        gate.open()
        await waiting
        return own, await handle

    with concurrent.futures.ThreadPoolExecutor(2) as loops:
        ran = [loops.submit(asyncio.run, main()) for main in (first, second)]
        results = [each.result(PATIENCE) for each in ran]

    assert results == [(1, "shared"), (2, "shared")]


@on()
@in_loop
async def test_wait_for_pending_tasks_waits_for_what_is_in_flight(entry, make, gate):
    """True once nothing is in flight, False when the time is over before."""
    backend = make(entry)
    async with backend:
        idle = await backend.wait_for_pending_tasks()
        handle = await begin(backend, {"do": "hold_async", "gate": gate.path})
        await gate.said()

        too_short = await backend.wait_for_pending_tasks(timeout=0.01)
        in_flight = backend.inflight_count
        gate.open()
        long_enough = await backend.wait_for_pending_tasks(timeout=PATIENCE)

        assert (idle, too_short, in_flight, long_enough) == (True, False, 1, True)
        assert handle.done()
        assert backend.inflight_count == 0
