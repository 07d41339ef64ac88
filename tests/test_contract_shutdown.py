"""The contract, on every backend: shutdown drains, then cancels, then kills, in time, and leaves nothing."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import signal
import threading
import time
from typing import Any

import pytest

from taskback import BackendClosedError, TaskAbandonedError, TaskState
from tests import handlers, leftovers
from tests.backends import await_submitters, begin, begin_sync, flavour, in_loop, on, until_running
from tests.gates import PATIENCE
from tests.helpers import outcomes

GRACE = 0.3  # seconds: `cancel_grace_seconds` of most backends here
SETTLE = 1.0  # seconds that a shutdown may take beside its timeout and the grace


def lists(report: Any) -> dict[str, Any]:
    """The lists of a report that have something in them."""
    names = ("succeeded", "failed", "cancelled", "killed", "abandoned", "never_started", "unfinished", "dying", "stuck")
    return {name: getattr(report, name) for name in names if getattr(report, name)}


# --- drain ---


@on()
@in_loop
async def test_shutdown_waits_for_what_is_in_flight_and_takes_no_more(entry, make, gate):
    """Running and queued tasks go on to their end; new ones are refused from the first moment on."""
    backend = make(entry)
    await backend.initialize()
    task = {"do": "hold_async", "gate": gate.path}
    good = [await begin(backend, task) for _ in range(2)]
    bad = await begin(backend, {**task, "do": "hold_and_fail_async"})
    await gate.said()

    closing = asyncio.create_task(backend.shutdown(PATIENCE))
    await asyncio.sleep(0)  # its first step
    with pytest.raises(BackendClosedError, match="draining"):
        await backend.submit(task)
    with pytest.raises(BackendClosedError, match="draining"):
        await asyncio.to_thread(backend.submit_sync, task)
    still_there = [handle.done() for handle in (*good, bad)]
    gate.open()
    report = await closing

    assert still_there == [False] * 3
    assert {name: set(handles) for name, handles in lists(report).items()} == {"succeeded": set(good), "failed": {bad}}
    assert str(report).startswith(f"shut down in {report.seconds:.2f} s: 2 succeeded, 1 failed")
    assert backend.stats().accepted == outcomes(backend.stats()) == 3


@on()
@in_loop
async def test_shutdown_of_an_idle_backend_waits_for_nothing(entry, make):
    """An empty report, with words for it; again it is empty, and so it is of one that never began."""
    backend, unused = make(entry), make(entry)
    await backend.run({"do": "echo"}, id="one")

    reports = [await backend.shutdown(PATIENCE), await backend.shutdown(), await unused.shutdown()]

    assert [lists(report) for report in reports] == [{}, {}, {}]
    assert reports[0].seconds < PATIENCE
    assert str(reports[0]).endswith("nothing was in flight")
    assert not backend._initialized


@on(returns_before_run=True)
@in_loop
async def test_the_report_has_the_handle_of_each_who_joined(entry, make, gate):
    """A task that several submitters share stands there once for each of them, and once among the unfinished."""
    backend = make(entry, cancel_grace_seconds=GRACE)
    await backend.initialize()
    task = {"do": "hold_async", "gate": gate.path}
    both = [await backend.submit(task, id="one"), await backend.submit(task, id="one")]
    await gate.said()

    report = await backend.shutdown(0)

    assert set(report.cancelled + report.killed) == set(both)
    assert report.unfinished == [task]


@on(live_objects=True)
@in_loop
async def test_a_running_task_can_submit_no_other_while_the_backend_drains(entry, make, gate):
    """It is refused as everybody is, and can still end well."""
    backend = make(entry)
    await backend.initialize()
    task = {"do": flavour(backend, "submit_more"), "gate": gate.path, "backend": backend}
    handle = await begin(backend, task)
    await gate.said()

    closing = asyncio.create_task(backend.shutdown(PATIENCE))
    await asyncio.sleep(0)
    gate.open()
    report = await closing

    assert await handle == "BackendClosedError"
    assert lists(report) == {"succeeded": [handle]}


@on(delay=True)
def test_shutdown_does_not_wait_for_a_delay_beyond_its_deadline(entry, make):
    """What would start later than that is never started, and is given back."""
    backend = make(entry)
    backend.run_sync({"do": "echo"})  # a worker is there
    handle = backend.submit_sync({"do": "echo", "value": 1}, delay=3600)
    soon = backend.submit_sync({"do": "echo", "value": 2}, delay=0.01)

    report = backend.shutdown_sync(0.5)

    assert lists(report) == {
        "succeeded": [soon],
        "never_started": [handle],
        "unfinished": [{"do": "echo", "value": 1}],
    }
    assert handle.state is TaskState.CANCELLED


# --- cancel, then kill ---


@on()
@in_loop
async def test_shutdown_stops_what_has_not_ended_in_time(entry, make, gate):
    """What runs is cancelled (killed, where it cannot be told), what is queued never starts; all come back as dicts."""
    backend = make(entry, cancel_grace_seconds=GRACE)
    await backend.initialize()
    tasks = [{"do": "hold_async", "gate": gate.path, "number": number} for number in range(4)]
    handles = [await begin(backend, task) for task in tasks]
    at_work = len(tasks) if entry.in_loop else 1
    await gate.said(at_work)
    begun = time.monotonic()

    report = await backend.shutdown(0.05)

    assert time.monotonic() - begun < 0.05 + GRACE + SETTLE
    assert lists(report) == {
        "cancelled" if entry.promises.cancels_running else "killed": handles[:at_work],
        **({} if entry.in_loop else {"never_started": handles[at_work:]}),
        "unfinished": tasks,
    }
    assert {handle.state for handle in handles} == {TaskState.CANCELLED}
    assert gate.heard() == [], "nothing began meanwhile"
    assert backend.inflight_count == 0
    assert backend.stats().accepted == outcomes(backend.stats()) == backend.stats().cancelled == 4


@on(bounded_shutdown=True)
def test_shutdown_returns_in_time_whatever_a_handler_does(entry, make, gate):
    """In C code that takes no exception: a worker process is killed, a thread is given up and said to be stuck."""
    backend = make(entry, cancel_grace_seconds=GRACE)
    backend.initialize_sync()
    task = {"do": "hold_in_c", "gate": gate.path}
    handle = begin_sync(backend, gate, task)
    begun = time.monotonic()

    report = backend.shutdown_sync(0.05)

    took = time.monotonic() - begun
    gate.open()
    assert took < 0.05 + GRACE + SETTLE
    if entry.promises.live_objects:
        assert report.abandoned == [handle]
        assert isinstance(handle.exception(), TaskAbandonedError)
    else:
        assert report.killed == [handle]
        assert handle.state is TaskState.CANCELLED
        assert lists(report).keys() == {"killed", "unfinished"}
    assert report.unfinished == [task]


@on(in_loop=True)
@in_loop
async def test_an_async_handler_that_will_not_stop_is_given_up(entry, make, gate):
    """The loop is the program's, so nothing there is killed: ABANDONED."""
    backend = make(entry, cancel_grace_seconds=GRACE)
    await backend.initialize()
    handle = await begin(backend, {"do": "hold_stubbornly", "gate": gate.path})
    await gate.said()
    begun = time.monotonic()

    report = await backend.shutdown(0.05)

    took = time.monotonic() - begun
    gate.open()
    assert took < 0.05 + GRACE + SETTLE
    assert report.abandoned == [handle]
    assert handle.state is TaskState.ABANDONED


@on(cancels_running=True)
@in_loop
async def test_shutdown_ends_what_somebody_cancelled_before(entry, make, gate):
    """A handler that is being stopped already is no reason to wait longer, and its task is not given back."""
    backend = make(entry, cancel_grace_seconds=GRACE)
    await backend.initialize()
    handle = await begin(backend, {"do": "hold_async", "gate": gate.path})
    await gate.said()
    await until_running(handle)

    assert handle.cancel()
    report = await backend.shutdown(PATIENCE)

    assert lists(report) in ({}, {"cancelled": [handle]})
    assert handle.state is TaskState.CANCELLED


# --- hurried, from anywhere ---


async def by_a_second_call(backend: Any) -> None:
    """With a shorter timeout, in the same loop."""
    await backend.shutdown(0)


async def by_a_cancelled_call(backend: Any) -> None:
    """In a task that is being cancelled: it cleans up."""

    async def wait_and_clean_up() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await backend.shutdown(0)

    cleaning = asyncio.create_task(wait_and_clean_up())
    await asyncio.sleep(0)
    cleaning.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await cleaning


async def from_a_thread(backend: Any) -> None:
    """By the other half."""
    await asyncio.to_thread(backend.shutdown_sync, 0)


async def from_a_callback(backend: Any) -> None:
    """By `hurry`, from the loop."""
    asyncio.get_running_loop().call_soon(backend.hurry)


async def from_a_signal_handler(backend: Any) -> None:
    """By `hurry`, which is all that a signal handler may call."""
    before = signal.signal(signal.SIGUSR1, lambda number, frame: backend.hurry())
    try:
        signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)


@on()
@pytest.mark.parametrize(
    "hurry",
    [by_a_second_call, by_a_cancelled_call, from_a_thread, from_a_callback, from_a_signal_handler],
    ids=lambda function: function.__name__,
)
@in_loop
async def test_a_shutdown_under_way_can_be_hurried(entry, make, gate, hurry):
    """The shorter timeout counts, and both calls give the same report."""
    backend = make(entry, cancel_grace_seconds=GRACE)
    await backend.initialize()
    handle = await begin(backend, {"do": "hold_async", "gate": gate.path})
    await gate.said()
    await until_running(handle)
    first = asyncio.create_task(backend.shutdown(PATIENCE * 3))
    await asyncio.sleep(0)
    begun = time.monotonic()

    await hurry(backend)
    report = await first

    assert time.monotonic() - begun < GRACE + SETTLE
    assert report.cancelled + report.killed == [handle]
    assert handle.state is TaskState.CANCELLED


@on()
@in_loop
async def test_a_longer_timeout_does_not_slow_a_shutdown_down(entry, make, gate):
    """The earliest deadline counts, in whatever order they come, and all are told the same, the late ones too."""
    backend = make(entry, cancel_grace_seconds=GRACE)
    await backend.initialize()
    handle = await begin(backend, {"do": "hold_async", "gate": gate.path})
    await gate.said()
    begun = time.monotonic()

    first, second = await asyncio.gather(backend.shutdown(0), backend.shutdown(PATIENCE * 3))

    assert time.monotonic() - begun < GRACE + SETTLE
    late = await backend.shutdown()
    assert lists(first) == lists(second) == lists(late)
    assert first.cancelled + first.killed == [handle]


@on()
@in_loop
async def test_a_cancelled_shutdown_goes_on_behind_it(entry, make, gate):
    """Who awaited it is released at once; asked again it gives the one report."""
    backend = make(entry)
    await backend.initialize()
    handle = await begin(backend, {"do": "hold_async", "gate": gate.path, "value": "kept"})
    await gate.said()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(backend.shutdown(PATIENCE), 0.01)

    with pytest.raises(BackendClosedError):
        await backend.submit({"do": "echo"})
    with pytest.raises(BackendClosedError):
        await backend.initialize()
    gate.open()
    report = await backend.shutdown(PATIENCE)

    assert await handle == "kept"
    assert report.succeeded == [handle]


@on()
def test_hurry_without_a_shutdown_does_nothing(entry, make):
    """Before the start, while it runs and after the end."""
    backend = make(entry)
    backend.hurry()
    with backend:
        backend.hurry(0)
        assert backend.run_sync({"do": "echo", "value": 1}) == 1
    backend.hurry(5)

    for negative in (-1, float("nan")):
        with pytest.raises(ValueError):
            backend.hurry(negative)


@on()
@pytest.mark.parametrize(("timeout", "error"), [(-1, ValueError), (float("nan"), ValueError), ("1", TypeError)])
@in_loop
async def test_a_timeout_that_makes_no_sense_shuts_nothing_down(backend, timeout, error):
    """Both halves raise, and the backend goes on."""
    with pytest.raises(error):
        await backend.shutdown(timeout)
    with pytest.raises(error):
        backend.shutdown_sync(timeout)

    assert await backend.run({"do": "echo", "value": 1}) == 1


@on(in_loop=True)
@in_loop
async def test_blocking_on_the_shutdown_from_the_loop_that_runs_the_tasks_is_refused(entry, make, gate):
    """A `RuntimeError` instead of a deadlock, and nothing is shut down."""
    backend = make(entry)
    await backend.initialize()
    handle = await begin(backend, {"do": "hold_async", "gate": gate.path, "value": 1})
    await gate.said()

    with pytest.raises(RuntimeError, match="await it"):
        backend.shutdown_sync(PATIENCE)
    gate.open()

    assert await handle == 1
    assert await backend.run({"do": "echo", "value": 2}) == 2
    await backend.shutdown()


@on(in_loop=False)
@in_loop
async def test_blocking_on_the_shutdown_from_another_loop_is_allowed(entry, make):
    """It holds up that loop and nothing else."""
    backend = make(entry)
    await backend.initialize()
    handle = await backend.submit({"do": "echo", "value": 1})

    backend.shutdown_sync(PATIENCE)

    assert await handle == 1


@on()
def test_many_threads_may_shut_down_at_once(entry, make, gate):
    """Each returns when it is over, with the one report."""
    backend = make(entry, cancel_grace_seconds=GRACE)
    backend.initialize_sync()
    handle = begin_sync(backend, gate, {"do": flavour(backend, "hold"), "gate": gate.path})

    with concurrent.futures.ThreadPoolExecutor(4) as callers:
        reports = list(callers.map(backend.shutdown_sync, [0.05, 0.5, PATIENCE, PATIENCE]))

    stopped = [report for report in reports if lists(report)]
    assert stopped, "those who came when it was over have an empty one"
    assert all(report.cancelled + report.killed == [handle] for report in stopped)
    assert handle.state is TaskState.CANCELLED


# --- nothing is left, but for two lists ---


@on()
def test_nothing_is_left_when_shutdown_returns(entry, make, gate):
    """No thread, process or descriptor of ours, at that very moment, after all kinds of use."""
    make(entry).run_sync({"do": "echo"})  # what the libraries below us keep for good is there from here on
    before = leftovers.look()
    backend = make(entry, workers=2, cancel_grace_seconds=GRACE)
    backend.initialize_sync()
    backend.subscribe(lambda event: None)
    handle = begin_sync(backend, gate, {"do": flavour(backend, "hold"), "gate": gate.path})
    handle.add_done_callback(lambda handle: None)

    async def use() -> None:
        await backend.run({"do": "echo_async"})

    asyncio.run(use())

    report = backend.shutdown_sync(0)
    await_submitters()
    left = leftovers.left_since(before, 0)

    assert not left, left.lines()
    assert (report.dying, report.stuck) == ([], [])


@on()
def test_a_callback_that_never_returns_is_told_and_not_waited_for(entry, make):
    """Shutdown returns in time, and `stuck` names the thread that user code holds."""
    backend = make(entry, cancel_grace_seconds=GRACE)
    backend.initialize_sync()
    reached, released = threading.Event(), threading.Event()

    def listen(event: Any) -> None:
        reached.set()
        released.wait(PATIENCE)

    backend.subscribe(listen)
    backend.submit_sync({"do": "echo"})
    assert reached.wait(PATIENCE), "the listener was never called"
    begun = time.monotonic()

    report = backend.shutdown_sync(0.05)

    took = time.monotonic() - begun
    released.set()
    assert took < 0.05 + GRACE + SETTLE
    assert len(report.stuck) == 1
    assert "listeners" in report.stuck[0]


# --- and afterwards ---


@on()
@in_loop
async def test_a_closed_backend_refuses_tasks_until_it_is_initialized_again(entry, make):
    """Both halves raise `BackendClosedError`; then it is as good as new, and its figures go on."""
    backend = make(entry, handlers.do)
    async with backend as entered:
        first = await backend.run({"do": "pid"})

    closed = backend._initialized
    with pytest.raises(BackendClosedError, match="stopped"):
        await backend.submit({"do": "echo"})
    with pytest.raises(BackendClosedError, match="stopped"):
        backend.submit_sync({"do": "echo"})
    async with backend:
        again = await backend.run({"do": "pid"})

    assert entered is backend
    assert closed is False
    assert (first == os.getpid()) == (again == os.getpid()) == entry.promises.live_objects
    assert backend.stats().accepted == backend.stats().succeeded == 2


@on()
def test_with_shuts_down_also_when_the_block_raises(entry, make):
    """The block's own exception is what comes out."""
    backend = make(entry)

    def use() -> None:
        with backend as entered:
            assert entered is backend
            entered.submit_sync({"do": "echo"})
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        use()

    assert not backend._initialized
    assert backend.stats().succeeded == 1
