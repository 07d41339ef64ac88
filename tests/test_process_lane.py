"""A process lane where its parties meet in an unlucky order, or where a worker cannot be had at all."""

from __future__ import annotations

import os
import resource
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from typing import Any

import pytest

from taskback import ProcessPoolTaskBackend, TaskState, WorkerDied, WorkerDiedError
from taskback.pools.worker_process import WorkerProcess
from tests.faults import LIMIT, Channel
from tests.helpers import is_running

Make = Callable[..., ProcessPoolTaskBackend]


class Evaluated:
    """Is pickled as code, which runs where it is unpickled."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> Any:
        return eval, (self.code,)


def by_value() -> Callable[[dict[str, Any]], Any]:
    """A handler that workers need not import this file for."""

    def handler(task: dict[str, Any]) -> Any:
        class Code:
            def __reduce__(self) -> Any:
                return eval, (task["here"],)

        return Code() if "here" in task else os.getpid()

    return handler


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes backends that are shut down whatever the test does."""
    made: list[ProcessPoolTaskBackend] = []

    def make(handler: Any = None, **options: Any) -> ProcessPoolTaskBackend:
        options = {"max_workers": 1, "cancel_grace_seconds": 0.3, **options}
        backend = ProcessPoolTaskBackend(handler or by_value(), **options)
        made.append(backend)
        backend.keeper.start()
        return backend

    yield make
    for backend in made:
        backend.shutdown_sync(0)


@pytest.fixture
def deaths() -> list[WorkerDied]:
    """What a test lets a backend tell of its workers' ends."""
    return []


@pytest.fixture
def replies_overtake(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lane has each reply before whoever sends a call has returned from that."""
    send = WorkerProcess.send

    def slow(self: WorkerProcess, kind: int, call: int, data: bytes, item: Any, *function: Any) -> bool:
        sent = send(self, kind, call, data, item, *function)
        deadline = time.monotonic() + LIMIT
        while "TaskBackend-" not in threading.current_thread().name and call in self.out:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        return sent

    monkeypatch.setattr(WorkerProcess, "send", slow)


@pytest.mark.usefixtures("replies_overtake")
def test_a_reply_that_overtakes_its_sender_is_not_rebuilt_by_the_sender(make):
    """Neither the submitter, an event loop perhaps, nor the keeper, which hands over what waited for a worker."""
    backend = make()
    backend.initialize_sync()
    task = {"here": "__import__('threading').get_ident()"}

    by_keeper = backend.run_sync(task, wait=LIMIT)
    by_submitter = backend.run_sync(task, wait=LIMIT)

    assert backend.keeper._thread is not None
    assert not {by_keeper, by_submitter} & {threading.get_ident(), backend.keeper._thread.ident}


@pytest.mark.usefixtures("replies_overtake")
def test_a_reply_that_overtakes_its_sender_and_blocks_is_no_obstacle_to_a_shutdown(make, tmp_path):
    """It is `stuck`, by name, and the call is back in time."""
    block = tmp_path / "block"
    block.touch()
    backend = make()
    backend.initialize_sync()
    handle = backend.submit_sync({"here": f"__import__('tests.faults').faults._block_while_there({str(block)!r})"})
    while not backend._in_user_code:
        time.sleep(0.002)

    report = backend.shutdown_sync(0.1)
    block.unlink()

    assert report.seconds < 0.1 + 0.3 + 1
    assert [handle.id in name for name in report.stuck] == [True]
    assert handle.done()


def test_a_task_whose_unpickling_kills_workers_is_lost_after_the_third(make, deaths):
    """It cannot have started, so it is tried again, but not for ever; the next task runs."""
    backend = make()
    backend.initialize_sync()
    backend.subscribe(lambda event: deaths.append(event) if isinstance(event, WorkerDied) else None)

    handle = backend.submit_sync({"poison": Evaluated("__import__('os')._exit(3)")})
    behind = backend.submit_sync({})
    error = handle.exception(LIMIT)

    assert handle.state is TaskState.LOST
    assert isinstance(error, WorkerDiedError)
    assert (error.exitcode, error.ran) == (3, None)
    assert "before its handler was called" in str(error)
    assert handle.started_at is None
    assert is_running(behind.result(LIMIT))
    backend.shutdown_sync(5)
    assert [event.exitcode for event in deaths if event.exitcode] == [3, 3, 3]


def test_a_worker_that_is_killed_between_reading_and_starting_costs_nobody_anything(make, tmp_path):
    """The task goes back to its place in the queue, and runs once, in the next worker."""
    channel = Channel(tmp_path)
    told = f"__import__('tests.faults').faults.tell({channel.path!r}, __import__('os').getpid())"
    gate = f"__import__('tests.faults').faults._block_while_there({str(tmp_path / 'gate')!r})"
    (tmp_path / "gate").touch()
    backend = make()
    backend.initialize_sync()
    handle = backend.submit_sync({"n": Evaluated(f"({told}, {gate})[0]")})
    (first,) = channel.numbers()

    os.kill(first, signal.SIGKILL)
    (second,) = channel.numbers()
    (tmp_path / "gate").unlink()

    assert handle.result(LIMIT) == second != first
    assert [attempt.outcome for attempt in handle.attempts] == [TaskState.SUCCEEDED]
    channel.close()


def test_a_task_that_was_handed_to_a_stopped_worker_can_be_called_off(make):
    """The worker has not even read it; it is killed after the grace, and replaced."""
    backend = make()
    backend.initialize_sync()
    stopped = backend.run_sync({}, wait=LIMIT)
    os.kill(stopped, signal.SIGSTOP)
    handle = backend.submit_sync({})

    assert handle.cancel()
    wait([handle], LIMIT)

    assert handle.state is TaskState.CANCELLED
    assert not is_running(stopped)
    assert backend.run_sync({}, wait=LIMIT) != stopped


@pytest.fixture
def descriptors() -> Iterator[Callable[[int], None]]:
    """Leaves this process so many more descriptors, until the test ends."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def leave(count: int) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))  # looking takes one itself
        used = {int(name) for name in os.listdir("/proc/self/fd")}
        free = [number for number in range(soft) if number not in used]
        resource.setrlimit(resource.RLIMIT_NOFILE, (free[count], hard))  # what is open above it stays open

    yield leave
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_where_only_some_workers_can_be_started_these_do_all_the_work(make, descriptors):
    """Those that have no descriptors left do not take the tasks with them, while the first is on its way."""
    backend = make(max_workers=6)
    descriptors(30)  # six bells, the guardian's, and a worker's or two
    backend.initialize_sync()

    handles = [backend.submit_sync({}) for _ in range(20)]
    wait(handles, LIMIT)

    assert [handle.state for handle in handles] == [TaskState.SUCCEEDED] * 20


def test_where_no_worker_can_be_started_the_tasks_are_told_why(make, descriptors):
    """LOST, with a telling error, and once there is room again the backend serves."""
    backend = make(max_workers=2)
    descriptors(3)
    backend.initialize_sync(warm=False)

    handle = backend.submit_sync({})
    error = handle.exception(LIMIT)

    assert handle.state is TaskState.LOST
    assert isinstance(error, WorkerDiedError)
    assert "could not be started" in str(error)
    assert "Too many open files" in str(error)
    descriptors(60)
    assert backend.run_sync({}, wait=LIMIT) != os.getpid()


def test_a_handler_that_runs_out_of_memory_fails_alone(make):
    """MemoryError is an exception as others are; the worker goes on."""
    backend = make(lambda task: len(bytes(task["size"])))
    backend.initialize_sync()

    error = backend.submit_sync({"size": 2**62}).exception(LIMIT)

    assert isinstance(error, MemoryError)
    assert backend.run_sync({"size": 5}, wait=LIMIT) == 5
    assert backend.stats().lost == 0
