"""Lanes with a thread of their own: giving one up, in every order, and what an exception leaves behind."""

from __future__ import annotations

import gc
import itertools
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from typing import Any

import pytest

from taskback import TaskHandle, TaskState, ThreadPoolTaskBackend
from taskback.backends._managed import MAX_ABANDONED
from taskback.pools import worker_thread

PATIENCE = 20.0  # seconds; the net under a hang


class Holds:
    """A handler that holds its thread, whatever is raised in it, until it is let go."""

    def __init__(self) -> None:
        self.began = threading.Semaphore(0)
        self.gates: list[threading.Event] = []  # one a call, in order

    def __call__(self, task: dict[str, Any]) -> Any:
        if "value" in task:
            return task["value"]
        gate = threading.Event()
        self.gates.append(gate)
        told = False
        while not gate.is_set():
            try:
                if not told:
                    told = True
                    self.began.release()
                gate.wait(PATIENCE)
            except BaseException:
                continue
        return "returned"

    def begin(self, backend: ThreadPoolTaskBackend) -> TaskHandle:
        """Submit a task and wait until it holds its thread."""
        handle = backend.submit_sync({"type": "holds"})
        assert self.began.acquire(timeout=PATIENCE), "the task never began"
        return handle


@pytest.fixture
def holds() -> Iterator[Holds]:
    """Lets go of all at the end of the test."""
    made = Holds()
    yield made
    for gate in made.gates:
        gate.set()


@pytest.fixture
def backend(holds) -> Iterator[ThreadPoolTaskBackend]:
    """One thread, and a short grace."""
    made = ThreadPoolTaskBackend(holds, max_workers=1, cancel_grace_seconds=0.02)
    made.initialize_sync()
    yield made
    for gate in holds.gates:
        gate.set()
    made.shutdown_sync(2)


@pytest.fixture
def switching() -> Iterator[None]:
    """Threads take turns so often that one may be struck anywhere."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def echo(backend: ThreadPoolTaskBackend, value: object) -> object:
    """What comes back of a task."""
    return backend.submit_sync({"type": "echo", "value": value}).result(PATIENCE)


def assert_whole(backend: ThreadPoolTaskBackend) -> None:
    """It has its one lane, counts none as given up, and its tasks run."""
    assert [echo(backend, n) for n in range(3)] == [0, 1, 2]
    assert len(backend._threads) == 1
    assert not backend._threads[0].retired
    assert backend._given_up == set()


def test_a_thread_that_was_given_up_is_replaced_and_ends_with_its_call(backend, holds):
    """Another takes its place at once; when the call returns after all, the first one ends."""
    handle = holds.begin(backend)
    thread = backend._threads[0].thread

    handle.cancel()
    wait([handle], PATIENCE)

    assert handle.state is TaskState.ABANDONED
    assert echo(backend, 5) == 5
    holds.gates[0].set()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    assert_whole(backend)


def test_force_between_the_end_of_a_run_and_its_lanes_being_idle(backend, holds, monkeypatch):
    """Race: (1) of thread_lane. The keeper saw the run in flight; when it acts, the run has ended: no lane is lost."""
    ended, go_on = threading.Event(), threading.Event()
    real_next = backend.next_after

    def next_late(lane: Any, run: Any) -> Any:
        ended.set()
        go_on.wait(PATIENCE)
        return real_next(lane, run)

    monkeypatch.setattr(backend, "next_after", next_late)
    handle = holds.begin(backend)
    lane = backend._threads[0]
    holds.gates[0].set()
    assert ended.wait(PATIENCE), "the run did not end"

    lane.force(handle._run)
    go_on.set()

    assert handle.result(PATIENCE) == "returned"
    assert_whole(backend)
    assert backend._threads == [lane]


def test_force_when_the_lane_has_another_run(backend, holds):
    """Race: (1) of thread_lane, later still. The other run is not hit, nor its lane given up."""
    first = holds.begin(backend)
    lane = backend._threads[0]
    holds.gates[0].set()
    first.result(PATIENCE)
    second = holds.begin(backend)

    lane.force(first._run)
    holds.gates[1].set()

    assert second.result(PATIENCE) == "returned"
    assert_whole(backend)
    assert backend._threads == [lane]


def test_a_call_that_returns_while_its_lane_is_given_up(backend, holds, monkeypatch):
    """Race: (2) of thread_lane. The thread tells the outcome first, and ends; nothing counts it as given up."""
    lane_of: dict[str, Any] = {}
    real_ended = backend.ended
    late = threading.Event()

    def ended(run: Any, outcome: Any, **options: Any) -> None:
        if outcome.state is TaskState.ABANDONED:  # on the keeper's thread: the lane is given up
            holds.gates[0].set()
            lane_of["run"].thread.join(PATIENCE)
            real_ended(run, outcome, **options)
            late.set()
        else:
            real_ended(run, outcome, **options)

    monkeypatch.setattr(backend, "ended", ended)
    handle = holds.begin(backend)
    lane = lane_of["run"] = backend._threads[0]

    handle.cancel()
    assert late.wait(PATIENCE), "the task was not given up"

    assert handle.state is TaskState.CANCELLED
    assert not lane.thread.is_alive()
    assert_whole(backend)
    stats = backend.stats()
    assert (stats.cancelled, stats.abandoned, stats.accepted) == (1, 0, 4)


def test_no_more_than_some_threads_are_replaced(backend, holds):
    """Beyond that tasks wait, until one of those threads comes back."""
    for _ in range(MAX_ABANDONED + 1):
        handle = holds.begin(backend)
        handle.cancel()
        wait([handle], PATIENCE)
        assert handle.state is TaskState.ABANDONED
    waits = backend.submit_sync({"type": "echo", "value": 7})
    assert backend._threads == backend._idle == []
    assert waits.state is TaskState.QUEUED

    holds.gates[2].set()

    assert waits.result(PATIENCE) == 7
    assert len(backend._given_up) == MAX_ABANDONED
    for gate in holds.gates:
        gate.set()


def test_the_exception_for_one_task_never_reaches_the_next(caplog, switching):
    """Struck at any moment, the end of its handler too, a task leaves nothing on its way to the thread."""
    steps = itertools.cycle([1, 10, 100, 300, 1_000, 10_000, sys.maxsize])  # the last one is struck for certain

    def handler(task: dict[str, Any]) -> Any:
        for _ in range(task.get("steps", 0)):
            pass
        return task.get("value")

    with ThreadPoolTaskBackend(handler, max_workers=1, cancel_grace_seconds=PATIENCE) as backend:
        backend.run_sync({})
        thread = backend._threads[0].thread
        for value in range(1_000):
            struck = backend.submit_sync({"steps": next(steps)})
            innocent = backend.submit_sync({"value": value})
            while struck.state is TaskState.QUEUED:
                pass
            struck.cancel()
            assert innocent.result(PATIENCE) == value
        stats = backend.stats()

        assert backend._threads[0].thread is thread
        assert thread is not None
        assert thread.is_alive()
    assert stats.cancelled + stats.succeeded == 2_001
    assert stats.cancelled >= 1_000 // 7, "no task was struck"
    assert caplog.records == []


def test_a_forgotten_backend_ends_its_idle_threads():
    """They hold nothing of it, so that it can be collected, and it tells them when it is."""
    backend = ThreadPoolTaskBackend(lambda task: task.get("n"), max_workers=2)
    backend.initialize_sync()
    assert backend.run_sync({"n": 1}) == 1
    threads = [lane.thread for lane in backend._threads if lane.thread is not None]

    del backend
    gc.collect()

    assert threads
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_a_thread_that_cannot_be_started_fails_its_task_alone(backend, monkeypatch):
    """The task says why, and the lane tries again with the next one."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(worker_thread.WorkerThread, "start", refuse)
        handle = backend.submit_sync({"type": "echo", "value": 1})
        with pytest.raises(RuntimeError, match="can't start"):
            handle.result(PATIENCE)

    assert_whole(backend)


def test_what_a_lane_says_of_itself_does_not_end_its_thread(backend, monkeypatch, caplog):
    """An error of ours between two tasks costs neither the thread nor the next task."""
    real_next: Callable[..., Any] = backend.next_after
    said = threading.Event()

    def fail_once(lane: Any, run: Any) -> Any:
        following = real_next(lane, run)
        if not said.is_set():
            said.set()
            raise OSError("odd")
        return following

    monkeypatch.setattr(backend, "next_after", fail_once)

    assert echo(backend, 1) == 1
    assert said.wait(PATIENCE)
    assert_whole(backend)
    assert "goes on" in caplog.text
