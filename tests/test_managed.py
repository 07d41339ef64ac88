"""What all backends share: a run that was handed over and never began ends as what it is, and types are plain text."""

from __future__ import annotations

import enum
import threading
from concurrent.futures import Executor, Future
from typing import Any

import pytest

from taskback import AsyncFireAndTrackBackend, ExecutorTaskBackend, SyncTaskBackend, TaskState, ThreadPoolTaskBackend
from taskback.backends import _closing
from tests import handlers


class Kind(str, enum.Enum):  # noqa: UP042  # the older form, whose members do not print as their text
    """Task types as a program writes them down."""

    NOTE = "note"


class SlowPool(Executor):
    """Takes calls, and makes them only when it is told to."""

    def __init__(self) -> None:
        self.waiting: list[Any] = []

    def submit(self, fn: Any, /, *args: Any, **options: Any) -> Future[Any]:
        """Put it by."""
        self.waiting.append((fn, args, options))
        return Future()


def test_a_loop_that_is_held_up_does_not_stop_a_shutdown():
    """The task that holds it is ABANDONED; one that it never came to is CANCELLED, and never runs."""
    began, gate, ran = threading.Event(), threading.Event(), list[str]()

    def handler(task: dict[str, Any]) -> None:
        ran.append(task["type"])
        if task["type"] == "holds":
            began.set()
            hold_until(gate)

    backend = AsyncFireAndTrackBackend(handler, cancel_grace_seconds=0.2)
    backend.initialize_sync()
    holds = backend.submit_sync({"type": "holds"})
    assert began.wait(5), "the handler never began"
    waits = backend.submit_sync({"type": "waits"})

    report = backend.shutdown_sync(0)
    gate.set()

    assert report.abandoned == [holds]
    assert report.never_started == [waits]
    assert (holds.state, waits.state) == (TaskState.ABANDONED, TaskState.CANCELLED)
    assert ran == ["holds"]


def test_a_pool_that_makes_no_call_does_not_stop_a_shutdown():
    """What it was given and never began is CANCELLED, and refused when the pool comes to it after all."""
    pool, ran = SlowPool(), list[Any]()
    backend = ExecutorTaskBackend(ran.append, pool=pool, in_process=True, cancel_grace_seconds=0.1)
    backend.initialize_sync()
    handles = [backend.submit_sync({"type": "note"}) for _ in range(3)]

    never_started = list(backend.shutdown_sync(0).never_started)
    states = {handle.state for handle in handles}
    for function, args, options in pool.waiting:
        function(*args, **options)

    assert never_started == handles
    assert states == {TaskState.CANCELLED}
    assert ran == []


def test_a_worker_is_not_said_to_run_what_has_ended(gate):
    """Its callback is called on the worker's thread, and already finds the worker without a task."""
    found: list[Any] = []
    with ThreadPoolTaskBackend(handlers.do, max_workers=1) as backend:
        handle = backend.submit_sync({"do": "hold", "gate": gate.path})
        handle.add_done_callback(lambda _: found.append((threading.current_thread().name, backend.stats().workers)))
        gate.wait_said()
        busy = backend.stats().workers

        gate.open()
        handle.result(5)

    assert [worker.task_id for worker in busy] == [handle.id]
    ((thread, idle),) = found
    assert thread != threading.current_thread().name
    assert [(worker.task_id, worker.since) for worker in idle] == [(None, None)]


def test_a_thread_that_user_code_holds_is_waited_for_a_part_of_the_time(monkeypatch):
    """Until some time after the grace; a moment in any case, and no longer than all may take."""
    monkeypatch.setattr("taskback._clock.monotonic", lambda: 100.0)

    assert _closing.until_user_code_ends(101.0, 101.9) == 101.0 + _closing.USER_CODE
    assert _closing.until_user_code_ends(101.0, 101.1) == 101.1
    assert _closing.until_user_code_ends(99.0, 99.9) == 100.0 + _closing.TURN


@pytest.mark.parametrize("type_", [Kind.NOTE, "note"])
def test_a_member_of_an_enum_of_strings_is_its_text(type_):
    """A type is counted and told as plain text, whatever form the program has it in."""
    with SyncTaskBackend(lambda task: task["type"]) as backend:
        handle = backend.submit_sync({"type": type_}, id=type_)

        assert type(handle.type) is type(handle.id) is str
        assert handle.type == handle.id == "note"
        assert handle.result(0) is type_  # the task itself is the caller's own
        assert {type(name) for name in backend.stats().by_type} == {str}


def hold_until(gate: threading.Event) -> None:
    """Hold the thread, whatever is raised in it."""
    while not gate.is_set():
        try:
            gate.wait(10)
        except BaseException:
            continue
