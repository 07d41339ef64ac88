"""Pools of somebody else: what becomes of them when they break, are not used, or cannot be made again."""

from __future__ import annotations

import threading
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from multiprocessing import get_context
from typing import Any

import pytest

from taskback import BackendClosedError, ExecutorTaskBackend, TaskState, WorkerDiedError, current_task
from taskback.pools import ThreadPool
from tests import handlers
from tests.gates import PATIENCE


def processes(workers: int = 1) -> ProcessPoolExecutor:
    """A stock pool whose workers are spawned."""
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"))


@pytest.mark.parametrize("given", [False, True], ids=["made", "given"])
@pytest.mark.parametrize("make", [ThreadPoolExecutor, processes])
def test_the_pool_of_a_backend_that_never_began_is_shut_down(make, given):
    """The pool is the backend's, so it ends with it."""
    pool = make()
    backend = ExecutorTaskBackend(handlers.do, pool=pool if given else lambda: pool)

    report = backend.shutdown_sync()

    assert report.seconds == 0
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(print)


def test_a_backend_that_was_given_its_pool_ends_with_it():
    """It cannot be initialized again: the error says what to give instead."""
    backend = ExecutorTaskBackend(handlers.do, pool=ThreadPoolExecutor(1))
    with backend:
        assert backend.run_sync({"do": "echo", "value": 1}) == 1

    with pytest.raises(BackendClosedError, match="what makes a pool"):
        backend.initialize_sync()


def test_a_pool_that_was_given_and_breaks_costs_all_that_follows():
    """Nobody can replace it: what waits behind the dead worker, and what comes later, is LOST, and nothing hangs."""
    backend = ExecutorTaskBackend(handlers.do, pool=processes(), cancel_grace_seconds=0.3)
    with backend:
        handles = [backend.submit_sync({"do": do}) for do in ("die", "echo", "echo")]
        wait(handles, PATIENCE)
        later = backend.submit_sync({"do": "echo"})
        wait([later], PATIENCE)

        assert [handle.state for handle in (*handles, later)] == [TaskState.LOST] * 4
        assert all(isinstance(handle.exception(), WorkerDiedError) for handle in handles)


def test_a_pool_that_breaks_costs_what_it_had_and_is_replaced(gate):
    """Its other workers' tasks are lost with it; those that waited here run in the next one."""
    made: list[Executor] = []

    def make() -> Executor:
        made.append(processes(2))
        return made[-1]

    with ExecutorTaskBackend(handlers.do, pool=make) as backend:
        held = backend.submit_sync({"do": "hold", "gate": gate.path})
        gate.wait_said()
        died = backend.submit_sync({"do": "die"})
        waiting = [backend.submit_sync({"do": "echo", "value": value}) for value in range(5)]
        wait([held, died, *waiting], PATIENCE)

        assert (held.state, died.state) == (TaskState.LOST, TaskState.LOST)
        assert [handle.result(0) for handle in waiting] == list(range(5))
        assert len(made) == 2


def test_a_pool_that_cannot_be_made_again_fails_each_task_with_the_reason():
    """Until it can be: every task asks once."""
    answers: list[Any] = [processes, OSError("no more processes"), OSError("none yet"), processes]

    def make() -> Executor:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        pool: Executor = answer()
        return pool

    with ExecutorTaskBackend(handlers.do, pool=make, max_workers=1) as backend:
        handles = [backend.submit_sync({"do": do}) for do in ("die", "echo", "echo", "pid")]
        wait(handles, PATIENCE)

        assert [handle.state for handle in handles[:3]] == [TaskState.LOST, TaskState.FAILED, TaskState.FAILED]
        assert [str(handle.exception(0)) for handle in handles[1:3]] == ["no more processes", "none yet"]
        assert isinstance(handles[3].result(0), int)
        assert backend.stats().accepted == 4


class Late(Executor):
    """A pool elsewhere: no processes to be killed, no cancelling, an answer when it is given one."""

    def __init__(self) -> None:
        self.calls: list[tuple[Future[Any], Any, tuple[Any, ...]]] = []

    def submit(self, fn: Any, /, *args: Any, **options: Any) -> Future[Any]:
        """Keep the call."""
        future: Future[Any] = Future()
        future.set_running_or_notify_cancel()
        self.calls.append((future, fn, args))
        return future

    def answer(self) -> None:
        """Do what was kept."""
        for future, fn, args in self.calls:
            future.set_result(fn(*args))


def test_a_pool_without_processes_is_given_up_at_shutdown():
    """What it still runs is ABANDONED; an answer that comes later is dropped."""
    pool = Late()
    backend = ExecutorTaskBackend(handlers.do, pool=pool, in_process=False, cancel_grace_seconds=0.1)
    backend.initialize_sync()
    first = backend.submit_sync({"do": "echo", "value": 1})
    pool.answer()
    pool.calls.clear()
    second = backend.submit_sync({"do": "echo", "value": 2})

    report = backend.shutdown_sync(0)
    pool.answer()

    assert first.result(PATIENCE) == 1
    assert report.abandoned == [second]
    assert second.state is TaskState.ABANDONED


@pytest.mark.parametrize("pool", [5, lambda: 5], ids=["no pool", "makes none"])
def test_what_is_no_pool_is_refused(pool):
    """At construction, by its type."""
    with pytest.raises(TypeError, match=r"concurrent\.futures\.Executor"):
        ExecutorTaskBackend(handlers.do, pool=pool)


def test_a_thread_pool_of_ours_is_known_to_share_the_process():
    """Tasks hold live objects, a running one is stopped, and one that waits is called in its turn."""
    began = threading.Event()

    def handler(task: dict[str, Any]) -> Any:
        if "value" in task:
            return task["value"]
        began.set()
        while True:
            current_task().raise_if_cancelled()

    value = object()
    with ExecutorTaskBackend(handler, pool=ThreadPool(1)) as backend:
        running = backend.submit_sync({})
        assert began.wait(PATIENCE), "the handler never began"
        waits = backend.submit_sync({"value": value})

        assert running.cancel()

        assert waits.result(PATIENCE) is value
        assert running.state is TaskState.CANCELLED
        assert backend.promises.live_objects
