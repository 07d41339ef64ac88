"""The contract, on every backend that queues: what becomes of a submission when the queue is full."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, wait
from typing import Any

import pytest

from taskback import BackendClosedError, QueueFullError, ShedError, TaskHandle, TaskRouter, TaskState
from tests import handlers
from tests.backends import flavour, in_loop, on
from tests.gates import PATIENCE, Gate
from tests.helpers import until

Start = Callable[..., tuple[Any, TaskHandle]]


@pytest.fixture
def start(entry: Any, make: Any, gate: Gate) -> Start:
    """Starts a backend whose one worker is held by a task, so that all others queue; gives that task's handle too."""

    def start(**options: Any) -> tuple[Any, TaskHandle]:
        router = TaskRouter()
        router.handler("t", handlers.do, max_running=1)
        router.handler("u", handlers.do)
        backend = make(entry, router, **options)
        backend.initialize_sync()
        holder = backend.submit_sync({"type": "t", "do": flavour(entry, "hold"), "gate": gate.path})
        gate.wait_said()
        return backend, holder

    return start


def echo(value: object) -> dict[str, Any]:
    return {"type": "t", "do": "echo", "value": value}


@on(returns_before_run=True)
def test_reject_refuses_what_is_too_much(start, gate):
    """With an error that the standard library's would be caught as; nothing was accepted."""
    backend, holder = start(max_queued=2, when_full="reject")
    taken = [backend.submit_sync(echo(n)) for n in range(2)]

    with pytest.raises(QueueFullError, match="2 tasks wait") as caught:
        backend.submit_sync(echo(2))

    assert isinstance(caught.value, queue.Full)
    gate.open()
    assert not wait([holder, *taken], PATIENCE).not_done
    assert backend.stats().accepted == 3
    assert backend.submit_sync(echo(3)).result(PATIENCE) == 3


@on(returns_before_run=True)
def test_shed_drops_the_oldest_of_the_lowest_priority(start, gate, entry):
    """It ends CANCELLED, with why as the cause. One that is of the lowest itself is refused."""
    backend, holder = start(max_queued=2, when_full="shed")
    first, second = backend.submit_sync(echo(1)), backend.submit_sync(echo(2))

    third = backend.submit_sync(echo(3))

    assert first.state is TaskState.CANCELLED
    with pytest.raises(CancelledError) as caught:
        first.result(PATIENCE)
    assert isinstance(caught.value.__cause__, ShedError)
    assert first.id in str(caught.value.__cause__)
    if entry.promises.priority:
        with pytest.raises(QueueFullError):
            backend.submit_sync(echo(4), priority=-1)
    gate.open()
    assert not wait([holder, second, third], PATIENCE).not_done
    assert (second.result(), third.result()) == (2, 3)
    stats = backend.stats()
    assert (stats.accepted, stats.succeeded, stats.cancelled) == (4, 3, 1)


@on(returns_before_run=True)
def test_a_task_that_is_shed_is_not_begun_meanwhile(start, gate, monkeypatch):
    """Race: a worker is free between the step in which a task is shed and its end."""
    backend, holder = start(max_queued=1, when_full="shed")
    shed = backend.submit_sync(echo("shed"))
    end, ran = backend.ended, threading.Event()

    def late(run: Any, outcome: Any, **facts: Any) -> None:
        if run is shed._run and isinstance(outcome.error, ShedError):
            gate.open()
            assert not wait([holder], PATIENCE).not_done
            other = backend.submit_sync({"type": "u", "do": "echo"})
            assert not wait([other], PATIENCE).not_done, "a worker was free"
            ran.set()
        end(run, outcome, **facts)

    monkeypatch.setattr(backend, "ended", late)
    new = backend.submit_sync(echo("new"))

    assert new.result(PATIENCE) == "new"
    assert ran.is_set()
    assert (shed.state, shed.started_at) == (TaskState.CANCELLED, None)


@on(returns_before_run=True)
def test_who_awaits_a_shed_task_learns_why(start, gate):
    """Its CancelledError has the cause."""
    backend, _ = start(max_queued=1, when_full="shed")

    async def main() -> BaseException | None:
        handle = await backend.submit(echo(1))
        await backend.submit(echo(2))
        try:
            await handle
        except asyncio.CancelledError as error:
            return error.__cause__
        return None

    assert isinstance(asyncio.run(main()), ShedError)


@on(returns_before_run=True)
def test_wait_blocks_a_sync_submitter_until_there_is_room(start, gate):
    """Those who wait are served in order."""
    backend, holder = start(max_queued=1)
    backend.submit_sync(echo("first"))
    handles: list[TaskHandle] = []

    def submit(value: int) -> None:
        handles.append(backend.submit_sync(echo(value)))

    threads = []
    for value in range(4):
        thread = threading.Thread(target=submit, args=(value,))
        thread.start()
        threads.append(thread)
        until(lambda: backend._ledger.pressure.waiting == len(threads))
    assert (handles, backend.stats().accepted) == ([], 2)

    gate.open()

    for thread in threads:
        thread.join(PATIENCE)
    assert not wait([holder, *handles], PATIENCE).not_done
    by_start = sorted(handles, key=lambda handle: handle._run.sequence)
    assert [handle.result() for handle in by_start] == [0, 1, 2, 3]


@on(returns_before_run=True)
def test_a_sync_wait_has_an_end(start, gate):
    """Nothing was submitted, and nothing of it is left."""
    backend, holder = start(max_queued=1)
    taken = backend.submit_sync(echo(1))

    with pytest.raises(TimeoutError, match="nothing was submitted"):
        backend.submit_sync(echo(2), wait=0.05)

    assert backend._ledger.pressure.waiting == 0
    gate.open()
    assert not wait([holder, taken], PATIENCE).not_done
    assert backend.stats().accepted == 2
    assert backend.run_sync(echo(3), wait=PATIENCE) == 3


@on(returns_before_run=True)
@in_loop
async def test_wait_holds_up_the_submitting_coroutine_alone(start, gate):
    """The loop goes on; a submitter that is cancelled has submitted nothing, and the next one has its place."""
    backend, _ = await asyncio.to_thread(start, max_queued=1)
    first = await backend.submit(echo("first"))
    waiting = [asyncio.create_task(backend.submit(echo(n))) for n in range(3)]
    while backend._ledger.pressure.waiting < 3:
        await asyncio.sleep(0.001)

    waiting[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting[0]
    with pytest.raises(QueueFullError, match="hold up the event loop"):
        backend.submit_sync(echo("sync"))

    assert backend._ledger.pressure.waiting == 2
    gate.open()
    handles = await asyncio.wait_for(asyncio.gather(*waiting[1:]), PATIENCE)
    assert [await handle for handle in handles] == [1, 2]
    assert await first == "first"
    assert backend.stats().accepted == 4


@on(returns_before_run=True)
def test_a_submitter_that_is_cancelled_when_it_has_room_gives_it_back(start, gate):
    """Race: it is woken, and cancelled before it runs on. The next one gets the room."""
    backend, _ = start(max_queued=1)
    first = backend.submit_sync(echo("first"))

    async def main() -> Any:
        waiting = [asyncio.create_task(backend.submit(echo(n))) for n in range(2)]
        while backend._ledger.pressure.waiting < 2:
            await asyncio.sleep(0.001)
        assert first.cancel()  # that makes room for the first of them: its event is set, which its task has not seen
        assert backend._ledger.pressure.waiting == 1
        waiting[0].cancel()
        handle = await asyncio.wait_for(waiting[1], PATIENCE)
        gate.open()
        return await handle, waiting[0].cancelled(), backend._ledger.pressure.queued

    assert asyncio.run(main()) == (1, True, 0)


@on(returns_before_run=True)
def test_a_shutdown_wakes_who_waits(start, gate):
    """With BackendClosedError; sync and async."""
    backend, _ = start(max_queued=1)
    backend.submit_sync(echo("first"))
    errors: list[BaseException] = []

    def submit() -> None:
        try:
            backend.submit_sync(echo(1))
        except BackendClosedError as error:
            errors.append(error)

    async def submit_async() -> None:
        with pytest.raises(BackendClosedError) as caught:
            await backend.submit(echo(2))
        errors.append(caught.value)

    threads = [threading.Thread(target=submit), threading.Thread(target=lambda: asyncio.run(submit_async()))]
    for thread in threads:
        thread.start()
    until(lambda: backend._ledger.pressure.waiting == 2)

    backend.shutdown_sync(0)

    for thread in threads:
        thread.join(PATIENCE)
    assert len(errors) == 2


@on(returns_before_run=True)
def test_who_joins_needs_no_room(start, gate):
    """By its id; the queue may be full."""
    backend, holder = start(max_queued=1, when_full="reject")
    first = backend.submit_sync(echo(1), id="one")

    again = backend.submit_sync(echo(1), id="one")

    gate.open()
    assert not wait([holder, first, again], PATIENCE).not_done
    assert again.result() == 1


@on(uses_cores=True)
def test_bytes_are_counted_where_tasks_are_pickled(start, gate):
    """A large one is refused while others wait."""
    backend, holder = start(max_queued_bytes=10_000, when_full="reject")
    taken = [backend.submit_sync(echo(b"x" * 4_000)) for _ in range(2)]

    with pytest.raises(QueueFullError):
        backend.submit_sync(echo(b"x" * 4_000))

    gate.open()
    assert not wait([holder, *taken], PATIENCE).not_done
    assert backend.submit_sync(echo(b"x" * 100_000)).result(PATIENCE) == b"x" * 100_000, "alone, any fits"


@on(returns_before_run=True)
def test_limits_that_make_no_sense_are_refused(entry, make):
    """Where the backend is made."""
    with pytest.raises(ValueError, match="max_queued"):
        make(entry, max_queued=0)
    with pytest.raises(ValueError, match="when_full"):
        make(entry, max_queued=1, when_full="explode")


@on(returns_before_run=True)
def test_thousands_of_submissions_from_many_threads(entry, make):
    """However small the queue, all run, each once."""
    backend = make(entry, workers=2, max_queued=3)
    backend.initialize_sync()
    results: list[int] = []

    def submit(start: int) -> None:
        handles = [backend.submit_sync({"do": "echo", "value": start + n}) for n in range(100)]
        results.extend(handle.result(PATIENCE) for handle in handles)

    threads = [threading.Thread(target=submit, args=(start,)) for start in range(0, 1000, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)

    assert sorted(results) == list(range(1000))
    assert backend._ledger.pressure.queued == 0
