"""The contract, on every backend: what it tells. Events, figures, progress, and the context that travels beside."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
from typing import Any

import pytest

from taskback import (
    ExecutorTaskBackend,
    Progress,
    TaskEvent,
    TaskFinished,
    TaskProgress,
    TaskQueued,
    TaskStarted,
    TaskState,
    _events,
    add_context,
)
from tests import handlers
from tests.backends import begin, flavour, in_loop, on, until_running
from tests.gates import PATIENCE


class Ear:
    """A listener that passes on the events of one task type."""

    def __init__(self, kind: str) -> None:
        self.heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.threads: set[int] = set()
        self._kind = kind

    def __call__(self, event: Any) -> None:
        self.threads.add(threading.get_ident())
        if isinstance(event, TaskEvent) and event.type == self._kind:
            self.heard.put(event)

    def until(self, wanted: type[TaskEvent], count: int = 1) -> list[Any]:
        """Wait for `count` events of this class; gives all up to the last of them."""
        events: list[Any] = []
        while sum(isinstance(event, wanted) for event in events) < count:
            events.append(self.heard.get(timeout=PATIENCE))
        return events


# --- events ---


@on()
def test_events_tell_each_task_from_its_acceptance_to_its_end(backend, kind):
    """In order a task, with its facts, and their times never go backwards."""
    ear = Ear(kind)
    unsubscribe = backend.subscribe(ear)

    handles = [backend.submit_sync({"do": do, "type": kind}) for do in ("echo", "fail", "echo_async") * 3]
    events = ear.until(TaskFinished, len(handles))
    unsubscribe()

    for handle in handles:
        queued, started, finished = (event for event in events if event.task_id == handle.id)
        assert [type(queued), type(started), type(finished)] == [TaskQueued, TaskStarted, TaskFinished]
        assert {event.attempt for event in (queued, started, finished)} == {1}
        assert finished.state is handle.state
        assert finished.pid == handle.worker_pid
        assert started.pid == (handle.worker_pid if backend.promises.exact_start else None)
        assert finished.seconds == pytest.approx(handle.finished_at - handle.started_at, abs=0.001)
        failed = handle.state is TaskState.FAILED
        assert (finished.error_type, finished.error_text) == (("ValueError", "no good") if failed else (None, None))
    times = [event.time_ns for event in events]
    assert times == sorted(times)
    assert times[0] / 1e9 == pytest.approx(handles[0].queued_at, abs=1)


@on()
def test_listeners_are_called_on_one_thread_of_ours(backend, kind):
    """Never on the one that submits, runs, or waits."""
    ears = [Ear(kind), Ear(kind)]
    unsubscribe = [backend.subscribe(ear) for ear in ears]
    where: queue.SimpleQueue[int] = queue.SimpleQueue()

    for _ in range(3):
        handle = backend.submit_sync({"do": "echo", "type": kind})
        handle.add_done_callback(lambda handle: where.put(threading.get_ident()))
    callbacks = {where.get(timeout=PATIENCE) for _ in range(3)}
    for ear, leave in zip(ears, unsubscribe, strict=True):
        ear.until(TaskFinished, 3)
        leave()

    assert len(ears[0].threads) == 1
    assert ears[0].threads == ears[1].threads
    assert threading.get_ident() not in ears[0].threads
    assert not ears[0].threads & callbacks


@on()
def test_who_has_unsubscribed_hears_no_more(backend, kind):
    """From the call on; the others still hear, and leaving twice does no harm."""
    leaver, stayer = Ear(kind), Ear(kind)
    leave, leave_too = backend.subscribe(leaver), backend.subscribe(stayer)
    backend.submit_sync({"do": "echo", "type": kind})
    leaver.until(TaskFinished)

    leave()
    leave()
    backend.submit_sync({"do": "echo", "type": kind})
    stayer.until(TaskFinished, 2)
    leave_too()

    assert leaver.heard.empty()


@on()
def test_a_listener_that_raises_costs_itself_alone(backend, kind, caplog):
    """It is logged; the task and the other listeners do not notice."""
    ear = Ear(kind)

    def raise_something(event: Any) -> None:
        raise RuntimeError("the listener's own")

    leave, leave_too = backend.subscribe(raise_something), backend.subscribe(ear)
    result = backend.run_sync({"do": "echo", "type": kind, "value": 1})
    events = ear.until(TaskFinished)
    leave()
    leave_too()

    assert result == 1
    assert len(events) == 3
    assert any("raise_something" in record.getMessage() for record in caplog.records)


@on()
def test_a_slow_listener_loses_events_and_delays_no_task(entry, make, monkeypatch):
    """What does not fit into its queue is dropped, and counted."""
    monkeypatch.setattr(_events, "MAX_WAITING_EVENTS", 5)
    heard, released = [], threading.Event()

    def listen(event: Any) -> None:
        released.wait(PATIENCE)
        heard.append(event)

    with make(entry, handlers.echo) as backend:
        backend.subscribe(listen)
        backend.subscribe(listen)
        results = [backend.run_sync({"value": value}) for value in range(20)]
        dropped = backend.stats().events_dropped
        released.set()

    assert results == list(range(20))
    assert dropped > 0
    assert len(heard) % 2 == 0, "each event that was not dropped reached both"
    assert len(heard) / 2 + dropped >= 20 * 3


@on()
def test_only_what_can_be_called_may_listen(backend):
    """Anything else is a `TypeError` at once."""
    with pytest.raises(TypeError, match="callable"):
        backend.subscribe("print")


# --- figures ---


@on()
@in_loop
async def test_figures_tell_what_is_queued_and_what_runs(entry, make, gate, kind):
    """While they do, over all and by type; a task without a type counts under the empty one."""
    backend = make(entry)
    await backend.initialize()
    task = {"do": "hold_async", "gate": gate.path}
    running = await begin(backend, {**task, "type": kind})
    await gate.said()
    await until_running(running)
    waiting = await begin(backend, task)
    if entry.in_loop:
        await gate.said()

    figures = backend.stats()

    assert (figures.accepted, figures.queued + figures.running, backend.inflight_count) == (2, 2, 2)
    assert figures.running == (2 if entry.in_loop else 1)
    assert (figures.by_type[kind].accepted, figures.by_type[kind].running) == (1, 1)
    assert figures.by_type[""].accepted == figures.by_type[""].queued + figures.by_type[""].running == 1
    gate.open()
    await asyncio.gather(running, waiting)
    assert backend.stats().succeeded == 2
    assert backend.inflight_count == 0


@on(in_loop=False)
@in_loop
async def test_workers_tell_what_they_run(backend, gate, kind):
    """Pid, task, type, since when, and the memory of a process; a pool of somebody else does not tell."""
    handle = await backend.submit({"do": "hold", "gate": gate.path, "type": kind})
    await gate.said()
    await until_running(handle)

    busy = backend.stats().workers
    gate.open()
    await handle
    await backend.run({"do": "echo"})  # whoever takes it, the other one is idle by now

    if isinstance(backend, ExecutorTaskBackend):
        assert busy == ()
        return
    (worker,) = (worker for worker in busy if worker.task_id is not None)
    assert (worker.pid, worker.task_id, worker.task_type) == (handle.worker_pid, handle.id, kind)
    assert worker.since == handle.started_at
    assert (worker.rss_bytes is None) == backend.promises.live_objects
    assert all(each.pid == os.getpid() for each in busy) == backend.promises.live_objects
    assert handle.id not in {each.task_id for each in backend.stats().workers}


# --- progress ---


def said(progress: Progress | None) -> tuple[Any, ...]:
    """What a report says, all of it."""
    assert progress is not None
    return progress.done, progress.total, progress.stage, dict(progress.data)


@on(progress=True)
@in_loop
async def test_a_report_reaches_the_handle_and_the_listeners_while_the_task_runs(backend, gate, kind):
    """What one report leaves out stays as the last one said it."""
    ear = Ear(kind)
    unsubscribe = backend.subscribe(ear)
    handle = await begin(backend, {"do": flavour(backend, "report"), "gate": gate.path, "type": kind})
    await gate.said()

    *_, told = await asyncio.to_thread(ear.until, TaskProgress)
    half = handle.progress
    gate.open()
    await handle
    await asyncio.to_thread(ear.until, TaskFinished)
    unsubscribe()

    assert said(half) == (1, 4, "half", {"bank": "b1"})
    assert said(told.progress) == (1, 4, "half", {"bank": "b1"})
    assert (told.task_id, told.pid) == (handle.id, handle.worker_pid)


@on()
@in_loop
async def test_the_last_report_always_arrives(backend, gate):
    """However soon the handler returns after it, and where nothing arrives before that."""
    handle = await begin(backend, {"do": flavour(backend, "report"), "gate": gate.path})
    await gate.said()

    before = handle.progress
    gate.open()
    await handle

    assert backend.promises.progress or before is None
    assert said(handle.progress) == (4, 4, "half", {"bank": "b1"})


@on()
def test_without_a_report_there_is_no_progress(backend):
    """The handle says None."""
    handle = backend.submit_sync({"do": "echo"})
    handle.result(PATIENCE)

    assert handle.progress is None


# --- context ---


@pytest.fixture
def traced():
    """A trace id travels beside every task that is submitted."""
    remove = add_context(handlers.capture_trace, handlers.restore_trace)
    yield
    remove()


@on()
@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("do", ["see_trace", "see_trace_async"])
@in_loop
async def test_context_is_captured_where_a_task_is_submitted_and_restored_where_it_runs(backend, do):
    """Each task gets that of its own submitter, beside the task and not in it."""
    task = {"do": do}

    async def submit_within(trace):
        handlers.trace.set(trace)
        handle = await backend.submit(task)
        return handle, await handle

    (one, saw_one), (two, saw_two) = await asyncio.gather(submit_within("one"), submit_within("two"))

    assert (saw_one, saw_two) == ("one", "two")
    assert (one.context, two.context) == ({"trace": "one"}, {"trace": "two"})
    assert one.task == task
    assert handlers.trace.get() == "none"


@on()
@pytest.mark.usefixtures("traced")
def test_the_submissions_own_context_wins(backend):
    """The option `context` adds to what is captured, and replaces what has its name."""
    own = backend.submit_sync({"do": "see_trace"}, context={"trace": "own", "more": "x"})

    assert own.result(PATIENCE) == "own"
    assert own.context == {"trace": "own", "more": "x"}
    own.context["trace"] = "changed"
    assert own.context["trace"] == "own"
    assert backend.run_sync({"do": "see_trace"}) == "none"


@on()
def test_context_that_was_taken_out_travels_no_more(backend):
    """Neither half is called for tasks that are submitted from then on."""
    remove = add_context(handlers.capture_trace, handlers.restore_trace)
    token = handlers.trace.set("seen")
    try:
        with_it = backend.submit_sync({"do": "echo"})
        remove()
        remove()
        without = backend.submit_sync({"do": "echo"})
    finally:
        handlers.trace.reset(token)

    assert (with_it.context, without.context) == ({"trace": "seen"}, {})


@on()
def test_what_cannot_be_captured_is_not_submitted(backend, kind):
    """`capture` raises, or gives no strings: `submit` raises it, and nothing was accepted."""
    captures: list[tuple[Any, type[Exception]]] = [
        (lambda: {"number": 5}, TypeError),
        (lambda: 1 / 0, ZeroDivisionError),
    ]
    for capture, error in captures:
        remove = add_context(capture, handlers.restore_trace)
        try:
            with pytest.raises(error):
                backend.submit_sync({"do": "echo", "type": kind})
        finally:
            remove()

    assert kind not in backend.stats().by_type
