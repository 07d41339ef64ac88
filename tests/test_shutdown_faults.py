"""`shutdown` under fire: whatever handlers, callbacks, listeners and results do, it returns in time and tells."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from taskback import ProcessPoolTaskBackend, ShutdownReport, TaskState
from taskback._state import BackendState
from taskback.pools.process_lane import ProcessLane
from tests import faults
from tests.faults import LIMIT
from tests.helpers import is_running, process_backends

GRACE = 0.3  # seconds

Make = Callable[..., ProcessPoolTaskBackend]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes backends that are shut down whatever the test does."""
    with process_backends(faults.handler, GRACE) as make:
        yield make


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """Lets go what a test blocks in this process, at the latest when it ends."""
    event = threading.Event()
    yield event
    event.set()


def timed(backend: ProcessPoolTaskBackend, timeout: float) -> ShutdownReport:
    """Shut down within what the contract grants."""
    began = time.monotonic()

    report = backend.shutdown_sync(timeout)

    assert time.monotonic() - began < timeout + GRACE + 1, report
    return report


@pytest.mark.parametrize("how", ["swallow", "spin"])
def test_loops_that_never_end_and_a_thousand_queued_tasks(make, channel, how):
    """Back in time, the report names each of the 1,002, and nothing is left."""
    backend = make(max_workers=2)
    running = [backend.submit_sync({"do": how, "tell": channel.path, "n": n}) for n in (-2, -1)]
    pids = [pid for _ in running for pid in channel.numbers()]
    queued = [backend.submit_sync({"do": "echo", "n": n}) for n in range(1000)]

    report = timed(backend, 1)

    assert sorted(handle.id for handle in report.killed) == [handle.id for handle in running]
    assert report.never_started == queued
    assert [task["n"] for task in report.unfinished] == [-2, -1, *range(1000)]
    assert report.succeeded + report.failed + report.cancelled + report.abandoned == []
    assert report.dying + report.stuck == []
    assert all(handle.state is TaskState.CANCELLED for handle in (*running, *queued))
    assert not any(map(is_running, pids))
    stats = backend.stats()
    assert (stats.accepted, stats.cancelled, stats.workers) == (1002, 1002, ())


def test_a_call_that_holds_the_gil_and_a_stopped_worker(make, channel):
    """Neither can be told anything; both are killed."""
    backend = make(max_workers=2)
    held = backend.submit_sync({"do": "gil", "tell": channel.path})
    (one,) = channel.numbers()
    stopped = backend.submit_sync({"do": "sleep", "tell": channel.path})
    (two,) = channel.numbers()
    os.kill(two, signal.SIGSTOP)

    report = timed(backend, 0)

    assert set(report.killed) == {held, stopped}
    assert not report.dying
    assert not any(map(is_running, (one, two)))


def test_what_the_guardian_has_killed_is_reported_as_killed(make, channel, monkeypatch):
    """It does so if the keeper is late, here for ever."""
    backend = make()
    handle = backend.submit_sync({"do": "gil", "tell": channel.path})
    channel.line()
    monkeypatch.setattr(ProcessLane, "force", lambda lane, run: None)

    report = timed(backend, 0)

    assert report.killed == [handle], report
    assert handle.cancelled()


def test_no_descriptor_awaits_a_collection(make):
    """What a backend has opened is closed when its shutdown returns."""
    make().shutdown_sync(0)  # what is opened once a process is
    gc.collect()
    gc.disable()
    try:
        before = set(os.listdir("/proc/self/fd"))
        backend = make(max_workers=2)
        assert backend.run_sync({"do": "echo", "n": 1}, wait=LIMIT) == 1

        timed(backend, 1)

        assert set(os.listdir("/proc/self/fd")) == before
    finally:
        gc.enable()


def test_an_idle_worker_that_is_stopped(make):
    """It cannot end by itself, and is killed after the grace."""
    backend = make()
    pid = backend.run_sync({"do": "pid"}, wait=LIMIT)
    os.kill(pid, signal.SIGSTOP)

    report = timed(backend, 1)

    assert not report.dying
    assert not is_running(pid)


def test_a_task_that_lets_itself_be_stopped_costs_no_grace(make, channel):
    """It stands under `cancelled`, and its worker ends by itself."""
    backend = make(cancel_grace_seconds=20)
    handle = backend.submit_sync({"do": "sleep", "tell": channel.path})
    channel.line()

    report = backend.shutdown_sync(0)

    assert report.cancelled == [handle]
    assert report.seconds < 2
    assert not report.killed


@pytest.mark.parametrize("queued", [0, 50])
def test_while_workers_start(make, queued):
    """Half-started workers end too, however far they have come."""
    for pause in (0, 0.01, 0.05, 0.1, 0.2):
        backend = make(max_workers=2)
        handles = [backend.submit_sync({"do": "echo", "n": n}) for n in range(queued)]
        time.sleep(pause)  # nothing tells how far a worker's start has come: these are moments of it

        report = timed(backend, 0)

        assert len(report.succeeded + report.cancelled + report.never_started + report.killed) <= queued
        assert all(handle.done() for handle in handles)
        assert report.dying + report.stuck == []


def test_while_a_worker_that_died_is_replaced(make):
    """A death just before the shutdown, and one in the middle of it, hold nothing up."""
    backend = make(max_workers=2)
    os.kill(backend.run_sync({"do": "pid"}, wait=LIMIT), signal.SIGKILL)
    doomed = backend.submit_sync({"do": "kill"})

    report = timed(backend, 5)

    assert doomed.state is TaskState.LOST
    assert report.failed in ([doomed], [])
    assert not report.dying


def test_two_at_once_and_the_shorter_one_counts(make, channel):
    """Each returns the same report when the earlier deadline has passed."""
    backend = make()
    handle = backend.submit_sync({"do": "swallow", "tell": channel.path})
    channel.line()
    reports: list[ShutdownReport] = []
    patient = [threading.Thread(target=lambda: reports.append(backend.shutdown_sync(60))) for _ in range(3)]
    for thread in patient:
        thread.start()

    report = timed(backend, 0.1)

    for thread in patient:
        thread.join(LIMIT)
    assert report.killed == [handle], report
    assert all(each is report for each in reports)
    assert len(reports) == 3


def test_hurry_from_a_signal_handler(make, channel):
    """The main thread waits in shutdown_sync; a signal handler shortens it."""
    backend = make()
    handle = backend.submit_sync({"do": "swallow", "tell": channel.path})
    channel.line()
    before = signal.signal(signal.SIGALRM, lambda *_: backend.hurry())
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    began = time.monotonic()

    try:
        report = backend.shutdown_sync(60)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    assert time.monotonic() - began < 0.2 + GRACE + 1
    assert report.killed == [handle], report


def test_hurry_from_a_signal_that_comes_at_any_moment(make):
    """A storm of signals whose handler hurries, during submits, results and shutdowns: no deadlock."""
    backend = make(max_workers=2)
    before = signal.signal(signal.SIGALRM, lambda *_: backend.hurry(5))
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0007)

    try:
        handles = [backend.submit_sync({"do": "echo", "n": n}) for n in range(500)]
        results = [handle.result(LIMIT) for handle in handles[:250]]
        report = backend.shutdown_sync(20)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

    assert results == list(range(250))
    assert not report.never_started
    assert all(handle.state is TaskState.SUCCEEDED for handle in handles)


def test_a_callback_that_never_returns(make, channel, release, tmp_path):
    """`stuck` names the thread and the task; the call returns in time, and other tasks go on meanwhile."""
    backend = make(max_workers=2)
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    handle = backend.submit_sync({"do": "wait", "gate": str(gate), "tell": channel.path})
    entered = threading.Event()
    handle.add_done_callback(lambda _: (entered.set(), release.wait(60)))
    gate.write_bytes(b".")
    assert entered.wait(LIMIT)
    assert backend.run_sync({"do": "echo", "n": 2}, wait=LIMIT) == 2

    report = timed(backend, 0.1)

    assert len(report.stuck) == 1
    assert handle.id in report.stuck[0]
    assert "callback" in report.stuck[0]
    assert not report.dying


def test_a_callback_of_a_cancelled_task_that_never_returns(make, channel, release):
    """The same on the thread that serves the callbacks of what shutdown itself ends; listeners are not held by it."""
    backend = make()
    backend.subscribe(lambda event: None)
    running = backend.submit_sync({"do": "swallow", "tell": channel.path})
    channel.line()
    queued = backend.submit_sync({"do": "echo"})
    queued.add_done_callback(lambda _: release.wait(60))

    report = timed(backend, 0.1)

    assert report.killed == [running]
    assert report.never_started == [queued]
    assert [queued.id in name for name in report.stuck] == [True]


def test_a_listener_that_never_returns(make, release):
    """`stuck` names its thread."""
    backend = make()
    backend.subscribe(lambda event: release.wait(60))
    assert backend.run_sync({"do": "echo", "n": 2}, wait=LIMIT) == 2

    report = timed(backend, 0.1)

    assert report.stuck == ["ProcessPoolTaskBackend-listeners"]


def test_a_result_whose_unpickling_never_ends(make, tmp_path):
    """The task ends with the shutdown, and `stuck` names it."""
    backend = make()
    block = tmp_path / "block"
    block.touch()
    handle = backend.submit_sync({"do": "blocks", "path": str(block)})
    while not backend._in_user_code:  # the parent is at it
        time.sleep(0.001)

    try:
        report = timed(backend, 0.1)
    finally:
        block.unlink()

    assert handle.done()
    assert report.killed + report.failed + report.cancelled == [handle]
    assert len(report.stuck) == 1
    assert handle.id in report.stuck[0]
    stats = backend.stats()
    assert stats.accepted == stats.succeeded + stats.failed + stats.cancelled


def test_inside_a_cancelled_coroutine(make, channel):
    """`finally: await backend.shutdown(...)` works while the coroutine is being cancelled, and twice over."""
    backend = make()
    handle = backend.submit_sync({"do": "swallow", "tell": channel.path})
    channel.line()
    reports = []

    async def serve() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            try:
                await backend.shutdown(60)
            finally:  # cancelled once more
                reports.append(await backend.shutdown(0))

    async def main() -> None:
        server = asyncio.create_task(serve())
        await asyncio.sleep(0)
        server.cancel()
        while backend._state is BackendState.RUNNING:  # until its first shutdown is under way
            await asyncio.sleep(0)
        server.cancel()
        with pytest.raises(asyncio.CancelledError):
            await server

    began = time.monotonic()
    asyncio.run(main())

    assert time.monotonic() - began < GRACE + 1 + 0.5
    assert reports[0].killed == [handle]


def test_the_event_loop_stays_free_during_a_shutdown(make, channel):
    """Other coroutines run while it waits and kills."""
    backend = make(max_workers=2)
    for _ in range(2):
        backend.submit_sync({"do": "swallow", "tell": channel.path})
        channel.line()

    async def main() -> tuple[set[str], ShutdownReport]:
        shutdown = asyncio.create_task(backend.shutdown(0.1))
        states = set()
        while not shutdown.done():
            states.add(backend._state.value)
            await asyncio.sleep(0.01)
        return states, shutdown.result()

    states, report = asyncio.run(main())

    assert len(report.killed) == 2
    assert {"draining", "stopping"} <= states, "it ran while the shutdown waited and while it killed"


def test_a_backend_that_was_killed_through_serves_again(make, channel):
    """After the worst shutdown, initialize starts afresh."""
    backend = make()
    backend.submit_sync({"do": "gil", "tell": channel.path})
    channel.line()
    timed(backend, 0)

    backend.initialize_sync()

    assert backend.run_sync({"do": "echo", "n": 7}, wait=LIMIT) == 7
    assert not timed(backend, 5).stuck
