"""The contract, on every backend: cancel and time limits."""

from __future__ import annotations

import asyncio
import concurrent.futures
import time

import pytest

from taskback import (
    TaskAbandonedError,
    TaskRouter,
    TaskState,
    TaskTimeoutError,
)
from tests import handlers
from tests.backends import begin, chosen, flavour, in_loop, on, until_running
from tests.gates import PATIENCE

# --- cancel ---


@on(delay=True)
def test_a_queued_task_is_cancelled_there_and_then(backend, kind):
    """It never starts, and its handle is over when `cancel` returns."""
    handle = backend.submit_sync({"do": "echo", "type": kind}, delay=3600)

    assert handle.cancel()

    assert handle.done()
    assert handle.cancelled()
    assert handle.state is TaskState.CANCELLED
    assert (handle.started_at, handle.attempts[0].started_at) == (None, None)
    assert handle.cancel(), "it still is cancelled"
    assert backend.stats().by_type[kind].cancelled == 1


@on(in_loop=False)
def test_a_task_behind_a_busy_worker_is_cancelled_there_and_then(entry, make, gate):
    """It is queued in our queue, or taken back from the pool's, and is not run."""
    with make(entry, workers=1) as backend:
        busy = backend.submit_sync({"do": "hold", "gate": gate.path})
        gate.wait_said()
        behind = [backend.submit_sync({"do": "hold", "gate": gate.path}) for _ in range(2)]

        assert [handle.cancel() for handle in behind] == [True, True]

        assert [handle.state for handle in behind] == [TaskState.CANCELLED] * 2
        gate.open()
        busy.result(PATIENCE)
        backend.run_sync({"do": "echo"})
        assert gate.heard() == []


RUNNING = [
    pytest.param(entry, do, id=f"{entry.name}-{do}")
    for entry in chosen(cancels_running=True)
    for do in ("hold", "hold_async")
    if do == "hold_async" or not entry.in_loop
]


@pytest.mark.parametrize(("backend", "do"), RUNNING, indirect=["backend"], scope="session")
@in_loop
async def test_a_running_task_is_stopped(backend, gate, kind, do):
    """`cancel` is True, and the handle ends CANCELLED when the handler has really stopped."""
    handle = await begin(backend, {"do": do, "gate": gate.path, "type": kind})
    await gate.said()
    await until_running(handle)

    assert handle.cancel()
    assert handle.cancel(), "asked again it still is to stop"
    await asyncio.wait([handle], timeout=PATIENCE)

    assert handle.state is TaskState.CANCELLED
    with pytest.raises(concurrent.futures.CancelledError):
        handle.result()
    with pytest.raises(asyncio.CancelledError):
        await handle
    assert backend.stats().by_type[kind].cancelled == 1


COOPERATIVE = [
    pytest.param(entry, f"look_at_the_flag{suffix}", id=f"{entry.name}{suffix}")
    for entry in chosen(cancels_running=True)
    for suffix in ("", "_async")
    if suffix or not entry.in_loop
]


@pytest.mark.parametrize(("backend", "do"), COOPERATIVE, indirect=["backend"], scope="session")
@in_loop
async def test_a_handler_sees_that_it_is_to_stop(backend, gate, do):
    """`cancelled` turns True before the exception comes, and `raise_if_cancelled` leaves the handler."""
    handle = await begin(backend, {"do": do, "gate": gate.path})
    before = await gate.said()

    handle.cancel()
    after = await gate.said(2)
    await asyncio.wait([handle], timeout=PATIENCE)

    assert before == ["False"]
    assert after == ["True", "left"]
    assert handle.state is TaskState.CANCELLED


@on(cancels_running=True)
@in_loop
async def test_what_a_cancelled_handler_returns_is_dropped(backend, gate):
    """It took the exception for nothing: the handle ends CANCELLED all the same."""
    handle = await begin(backend, {"do": flavour(backend, "hold_and_swallow"), "gate": gate.path})
    await gate.said()

    assert handle.cancel()
    await asyncio.wait([handle], timeout=PATIENCE)

    assert handle.state is TaskState.CANCELLED


@on(cancels_running=False)
@in_loop
async def test_cancel_is_false_where_a_running_task_cannot_be_stopped(backend, gate):
    """The task goes on to its end as if nobody had asked."""
    handle = await begin(backend, {"do": "hold", "gate": gate.path, "value": "went on"})
    await gate.said()

    assert not handle.cancel()

    assert handle.state is TaskState.RUNNING
    gate.open()
    assert await handle == "went on"


@on()
def test_cancel_of_what_is_over_is_false(backend):
    """Nothing happens to it."""
    handle = backend.submit_sync({"do": "echo", "value": 1})
    handle.result(PATIENCE)

    assert not handle.cancel()

    assert handle.state is TaskState.SUCCEEDED
    assert handle.result() == 1


@on(cancels_running=True, stops_anything=True)
def test_what_does_not_stop_is_killed_after_the_grace(entry, make, gate):
    """One call of C code that never returns: the worker dies, another takes its place."""
    with make(entry, cancel_grace_seconds=0.2) as backend:
        handle = backend.submit_sync({"do": "hold_in_c", "gate": gate.path})
        gate.wait_said()

        assert handle.cancel()
        concurrent.futures.wait([handle], PATIENCE)

        assert handle.state is TaskState.CANCELLED
        assert backend.run_sync({"do": "pid"}) != handle.worker_pid


@on(cancels_running=True, stops_anything=False)
@in_loop
async def test_what_does_not_stop_and_cannot_be_killed_is_abandoned(entry, make, gate):
    """A thread in C code, or an async handler that swallows its cancellation: ABANDONED, and the backend goes on."""
    backend = make(entry, workers=2, cancel_grace_seconds=0.2)
    await backend.initialize()
    do = "hold_stubbornly" if entry.in_loop else "hold_in_c"
    handle = await begin(backend, {"do": do, "gate": gate.path})
    await gate.said()

    assert handle.cancel()
    await asyncio.wait([handle], timeout=PATIENCE)

    assert handle.state is TaskState.ABANDONED
    assert isinstance(handle.exception(), TaskAbandonedError)
    assert backend.stats().abandoned == 1
    assert await backend.run({"do": "echo", "value": 1}) == 1
    gate.open()
    await backend.shutdown(PATIENCE)


# --- time limits ---


@on(timeout=True)
def test_the_submissions_limit_beats_the_types_and_that_the_backends(entry, make):
    """Each is found in the handler's `deadline`; None in a submission lifts them all."""
    router = TaskRouter(fallback=handlers.seconds_left)
    router.handler("limited", handlers.seconds_left, timeout=1000)

    with make(entry, router, timeout=2000) as backend:
        of_backend = backend.run_sync({"type": "any"})
        of_type = backend.run_sync({"type": "limited"})
        of_submission = backend.run_sync({"type": "limited"}, timeout=3000)
        lifted = backend.run_sync({"type": "limited"}, timeout=None)

    assert 1900 < of_backend <= 2000
    assert 900 < of_type <= 1000
    assert 2900 < of_submission <= 3000
    assert lifted is None


LIMITED = [
    pytest.param(entry, do, id=f"{entry.name}-{do}")
    for entry in chosen(timeout=True)
    for do in ("hold", "hold_async")
    if do == "hold_async" or not entry.in_loop
]


@pytest.mark.parametrize(("backend", "do"), LIMITED, indirect=["backend"], scope="session")
@in_loop
async def test_a_task_whose_time_is_up_is_stopped(backend, gate, kind, do):
    """TIMED_OUT, with an error that is a `TimeoutError`, tells the limit, and is told from a wait's by its type."""
    handle = await begin(backend, {"do": do, "gate": gate.path, "type": kind}, timeout=0.1)

    with pytest.raises(TaskTimeoutError) as caught:
        await handle

    assert handle.done()
    assert handle.state is TaskState.TIMED_OUT
    assert (caught.value.task_id, caught.value.timeout) == (handle.id, 0.1)
    assert caught.value.ran >= 0.1
    assert isinstance(caught.value, TimeoutError)
    assert handle.finished_at - handle.started_at >= 0.1
    assert backend.stats().by_type[kind].timed_out == 1


STACKS = [
    pytest.param(entry, do, id=f"{entry.name}-{do}")
    for entry in chosen(timeout=True, stacks=True)
    for do in ("hold", "hold_async")
    if do == "hold_async" or not entry.in_loop
]


@pytest.mark.parametrize(("backend", "do"), STACKS, indirect=["backend"], scope="session")
@in_loop
async def test_a_task_whose_time_is_up_tells_where_it_was(backend, gate, do):
    """The error has the stack of the handler."""
    handle = await begin(backend, {"do": do, "gate": gate.path}, timeout=0.2)

    with pytest.raises(TaskTimeoutError) as caught:
        await handle

    assert f"in {do}" in (caught.value.stack or "")


@pytest.mark.parametrize(("backend", "do"), STACKS, indirect=["backend"], scope="session")
@in_loop
async def test_stacks_tell_where_running_tasks_are(backend, gate, do):
    """By id, while they run; the tasks are none the worse for it."""
    handle = await begin(backend, {"do": do, "gate": gate.path, "value": 7})
    await gate.said()

    stacks = backend.stacks()

    assert f"in {do}" in stacks[handle.id]
    gate.open()
    assert await handle == 7
    assert handle.id not in backend.stacks()


@on(timeout=True, delay=True)
@in_loop
async def test_waiting_counts_against_no_limit(backend):
    """`timeout` is seconds of running."""
    assert await backend.run({"do": "echo", "value": 1}, delay=0.3, timeout=0.2) == 1


@on(timeout=True, in_loop=False)
def test_a_limit_is_kept_while_somebody_blocks_on_the_handle(backend, gate):
    """The thread that waits is not the one that keeps the limit."""
    begun = time.monotonic()
    handle = backend.submit_sync({"do": "hold", "gate": gate.path}, timeout=0.1)

    with pytest.raises(TaskTimeoutError):
        handle.result(PATIENCE)

    assert time.monotonic() - begun < PATIENCE


@on(timeout=True, stops_anything=False)
@in_loop
async def test_what_ignores_its_limit_and_cannot_be_killed_is_abandoned(entry, make, gate):
    """The error says why it was told to stop."""
    backend = make(entry, workers=2, cancel_grace_seconds=0.1)
    await backend.initialize()
    do = "hold_stubbornly" if entry.in_loop else "hold_in_c"
    handle = await begin(backend, {"do": do, "gate": gate.path}, timeout=0.05)
    await gate.said()

    await asyncio.wait([handle], timeout=PATIENCE)

    assert handle.state is TaskState.ABANDONED
    assert "time limit" in str(handle.exception())
    gate.open()
    await backend.shutdown(PATIENCE)
