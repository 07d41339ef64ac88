"""`max_tasks_per_child`: a new process after so many tasks, whose successor is ready when it is needed."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest

from taskback import ProcessPoolTaskBackend, TaskState, WorkerDiedError
from taskback.pools import ProcessPool
from taskback.pools.child import descendants
from taskback.pools.worker_process import WorkerProcess
from tests import faults
from tests.faults import LIMIT, await_gone
from tests.gates import Gate
from tests.gates import hold as hold_at
from tests.helpers import process_backends, until

Make = Callable[..., ProcessPoolTaskBackend]
MANY = 60


def hold(task: dict[str, Any]) -> int:
    """Stand at the gate, if there is one in the task; the pid."""
    if "gate" in task:
        hold_at(task["gate"], os.getpid())
    return os.getpid()


def end_slowly(marker: str) -> int:
    """Have this process wait at its own end until a file is there."""
    import atexit

    atexit.register(lambda: until(Path(marker).exists))
    return os.getpid()


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes backends whose workers have one task each."""
    with process_backends(hold, grace=0.3) as made:
        yield lambda *handler, **options: made(*handler, **{"max_tasks_per_child": 1, **options})


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path)
    yield gate
    gate.close()


def workers(backend: ProcessPoolTaskBackend) -> list[int]:
    """All that there are, ready or not."""
    assert backend._guardian is not None
    assert backend._guardian.pid is not None
    return descendants.children(backend._guardian.pid)


def test_each_task_has_a_process_of_its_own(make):
    """None is used twice, and all have ended with their tasks but for those that wait for the next ones."""
    backend = make(max_workers=2)
    tasks = [backend.submit_sync({}) for _ in range(MANY)]

    pids = [task.result(LIMIT) for task in tasks]

    assert len(set(pids)) == MANY
    until(lambda: not set(workers(backend)) & set(pids))
    assert len(workers(backend)) <= 2 * 2


@pytest.mark.parametrize("streams", [False, True], ids=["packets", "streams"])
def test_each_call_of_a_pool_has_a_process_of_its_own(streams):
    """Of one that speaks by streams, too."""

    class Pool(ProcessPool):
        _by_streams = streams

    with Pool(2, max_tasks_per_child=1) as pool:
        pids = list(pool.map(faults.handler, [{"do": "pid"}] * MANY))

    assert len(set(pids)) == MANY


def test_a_process_has_as_many_tasks_as_it_may_have(make):
    """Not one more, though tasks are sent ahead."""
    backend = make(max_tasks_per_child=7)
    tasks = [backend.submit_sync({}) for _ in range(MANY)]

    pids = [task.result(LIMIT) for task in tasks]

    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [7] * (MANY // 7) + [MANY % 7]


def test_a_crash_costs_its_own_task_alone(make):
    """Whatever was ready to come after it runs."""
    backend = make(faults.handler, max_workers=2)
    tasks = [backend.submit_sync({"do": "kill" if number % 4 == 1 else "pid"}) for number in range(MANY)]

    wait(tasks, LIMIT)

    assert [task.state is TaskState.LOST for task in tasks] == [number % 4 == 1 for number in range(MANY)]
    assert len({task.result(0) for task in tasks if task.state is TaskState.SUCCEEDED}) == MANY - MANY // 4


def test_a_time_limit_is_kept(make, channel):
    """By an exception, or by the death of the process; what comes after it runs."""
    backend = make(faults.handler)
    obeys = backend.submit_sync({"do": "sleep", "tell": channel.path}, timeout=0.1)
    deaf = backend.submit_sync({"do": "deaf", "tell": channel.path}, timeout=0.1)

    after = backend.submit_sync({"do": "pid"})

    pids = [*channel.numbers(), *channel.numbers()]
    assert after.result(LIMIT) not in pids
    assert (obeys.state, deaf.state) == (TaskState.TIMED_OUT, TaskState.TIMED_OUT)
    await_gone(*pids)


@pytest.mark.parametrize("queued", [True, False], ids=["taken by the lane", "sent by the submitter"])
def test_the_successor_is_there_while_the_last_task_runs(make, gate, queued):
    """One, and no more; it is what the next task runs in."""
    backend = make()
    if not queued:  # the lane is idle, and is not awake when its worker is given the task
        until(lambda: backend._idle)
    task = backend.submit_sync({"gate": gate.path})
    (runs,) = map(int, gate.wait_said())

    until(lambda: len(workers(backend)) == 2)
    (successor,) = set(workers(backend)) - {runs}
    gate.open()

    assert (task.result(LIMIT), backend.run_sync({}, wait=LIMIT)) == (runs, successor)


def test_a_successor_that_was_killed_costs_nothing(make, gate):
    """The next task runs in another one, once."""
    backend = make()
    task = backend.submit_sync({"gate": gate.path})
    (runs,) = map(int, gate.wait_said())
    until(lambda: len(workers(backend)) == 2)
    (successor,) = set(workers(backend)) - {runs}

    os.kill(successor, signal.SIGKILL)
    until(lambda: workers(backend) == [runs])
    gate.open()
    after = backend.submit_sync({})

    assert task.result(LIMIT) == runs
    assert after.result(LIMIT) not in (runs, successor)
    assert [attempt.number for attempt in after.attempts] == [1]


def test_a_guardian_that_dies_while_a_successor_waits_costs_nothing(make, gate):
    """The task goes on; the next one has a new guardian."""
    backend = make()
    task = backend.submit_sync({"gate": gate.path})
    (runs,) = map(int, gate.wait_said())
    until(lambda: len(workers(backend)) == 2)
    guardian = backend._guardian.pid

    os.kill(guardian, signal.SIGKILL)
    gate.open()

    assert task.result(LIMIT) == runs
    assert backend.run_sync({}, wait=LIMIT) != runs
    assert backend._guardian.pid != guardian


def test_a_shutdown_ends_the_successor(make, gate):
    """Whether the task ends by itself or not."""
    backend = make()
    backend.submit_sync({"gate": gate.path})
    gate.wait_said()
    until(lambda: len(workers(backend)) == 2)
    there = workers(backend)

    report = backend.shutdown_sync(0)

    assert (len(report.cancelled), report.dying, report.stuck) == (1, [], [])
    await_gone(*there)


def test_a_successor_that_could_not_be_started_is_started_later(make, gate, monkeypatch):
    """No descriptors, say: when the worker has ended it is tried again."""
    backend = make()
    started = WorkerProcess.__init__
    until(lambda: backend._idle)
    refused: list[int] = []

    def refuse(self: WorkerProcess, *facts: Any) -> None:
        if not refused:
            refused.append(1)
            raise OSError(24, "too many open files")
        started(self, *facts)

    monkeypatch.setattr(WorkerProcess, "__init__", refuse)
    first = backend.run_sync({}, wait=LIMIT)

    assert backend.run_sync({}, wait=LIMIT) != first
    assert refused


def test_a_worker_that_takes_long_to_end_holds_up_no_result(tmp_path):
    """It is waited for, for a second, before its successor is given a call; results are there before."""
    marker = tmp_path / "end"
    with ProcessPool(1, max_tasks_per_child=1) as pool:
        first, second = (pool.submit(end_slowly, str(marker)) for _ in range(2))
        pids = {first.result(LIMIT)}
        marker.touch()
        pids.add(second.result(LIMIT))

    assert len(pids) == 2


def test_an_initializer_that_fails_in_a_successor_breaks_the_pool(tmp_path):
    """As it does in a first worker; the call that runs is unharmed."""
    marker = tmp_path / "broken"
    with ProcessPool(1, initializer=_fail_where, initargs=(str(marker),), max_tasks_per_child=1) as pool:
        assert pool.submit(faults.handler, {"do": "pid"}).result(LIMIT)
        marker.touch()
        for _ in range(2):  # one successor may have been started before
            error = pool.submit(faults.handler, {"do": "pid"}).exception(LIMIT)
            if error is not None:
                break

    assert error is not None
    assert not isinstance(error, WorkerDiedError)


def _fail_where(marker: str) -> None:
    if Path(marker).exists():
        raise ValueError("no good any more")


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "1", True])
def test_a_number_that_makes_no_sense_is_refused(wrong):
    """When it is written down."""
    with pytest.raises((TypeError, ValueError), match="max_tasks_per_child"):
        ProcessPoolTaskBackend(hold, max_tasks_per_child=wrong)
