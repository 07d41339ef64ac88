"""How long a worker is kept: its age, its memory after a task, and its memory within one."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from taskback import ProcessPoolTaskBackend, TaskState, WorkerDied, WorkerDiedError
from taskback.pools import ProcessPool
from taskback.pools.child import descendants, limits, status_page
from taskback.pools.child.limits import PERIOD, Scale
from tests.faults import LIMIT
from tests.helpers import is_running, process_backends, until

MB = 2**20
Make = Callable[..., ProcessPoolTaskBackend]
kept: list[bytearray] = []


def work(task: dict[str, Any]) -> int:
    """Keep so many bytes for good, or do what it says; the pid."""
    kept.append(bytearray(b"x") * task.get("keep", 0))
    time.sleep(task.get("sleep", 0))
    if "grow" in task:
        GROW[task["grow"]]()
    return os.getpid()


def grow() -> None:
    """And swallow whatever would stop it."""
    while True:
        try:
            while True:
                kept.append(bytearray(b"x") * MB)
                time.sleep(0.0005)
        except BaseException:
            continue


def grow_and_compute() -> None:
    """Then hold the interpreter's lock for a minute."""
    kept.append(bytearray(b"x") * (300 * MB))
    ctypes.PyDLL(None).sleep(60)


def grow_and_stop() -> None:
    """Then stop the process."""
    kept.append(bytearray(b"x") * (300 * MB))
    os.kill(os.getpid(), signal.SIGSTOP)


GROW = {"on": grow, "and hold the GIL": grow_and_compute, "and stop": grow_and_stop}


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes backends."""
    with process_backends(work, grace=0.3) as made:
        yield made


def listen(backend: ProcessPoolTaskBackend) -> list[WorkerDied]:
    """What it tells of workers that end, from now on."""
    died: list[WorkerDied] = []
    backend.subscribe(lambda event: died.append(event) if isinstance(event, WorkerDied) else None)
    return died


def test_a_worker_that_has_grown_is_replaced_after_its_task(make):
    """Not before; and it is told why."""
    backend = make(max_workers=1, max_worker_rss_bytes=120 * MB)
    died = listen(backend)

    small = [backend.run_sync({}) for _ in range(3)]
    large = backend.run_sync({"keep": 150 * MB})
    after = [backend.run_sync({}) for _ in range(3)]

    assert {large} == set(small)
    assert large not in after
    until(lambda: bool(died))
    assert (died[0].pid, died[0].exitcode, died[0].task_id) == (large, 0, None)
    assert "it was replaced, for it had" in died[0].why
    assert "max_worker_rss_bytes is 120 MiB" in died[0].why


@pytest.mark.parametrize("options", [{"max_worker_rss_bytes": 60 * MB}, {"max_worker_seconds": 0.005}])
def test_what_was_sent_ahead_to_a_worker_that_leaves_is_done_elsewhere(make, options):
    """By its successor, or another one: each task has one result."""
    backend = make(max_workers=2, **options)

    tasks = [backend.submit_sync({"keep": MB, "sleep": 0.0002, "n": n}) for n in range(300)]
    pids = [task.result(LIMIT) for task in tasks]

    assert len(set(pids)) > 3
    assert backend.stats().succeeded == 300
    assert all(task.attempt == 1 for task in tasks)


def test_a_worker_that_is_too_old_is_replaced_after_its_task(make):
    """One that is idle waits for its next one, and nobody looks at it meanwhile."""
    backend = make(max_workers=1, max_worker_seconds=1.5)
    died = listen(backend)
    first = backend.run_sync({})
    time.sleep(1.6)  # longer than it may live

    assert is_running(first)
    second, third = backend.run_sync({}), backend.run_sync({})

    assert first == second
    assert third != first
    until(lambda: bool(died))
    assert "s old (max_worker_seconds is 1.5)" in died[0].why


@pytest.mark.parametrize("how", GROW)
def test_a_worker_that_grows_beyond_all_limits_is_killed(make, how):
    """Whatever it does; its task says why, the others go on, and the next one has a new worker."""
    backend = make(max_workers=2, kill_worker_rss_bytes=200 * MB)
    died = listen(backend)
    task = backend.submit_sync({"grow": how})
    others = [backend.submit_sync({"n": n}) for n in range(20)]

    error = task.exception(LIMIT)

    assert task.state is TaskState.LOST
    assert isinstance(error, WorkerDiedError)
    assert error.signal_name == "SIGKILL"
    assert error.peak_rss_bytes is not None
    assert error.peak_rss_bytes > 200 * MB
    assert "it was killed, for it had" in str(error)
    assert "resident (kill_worker_rss_bytes is 200 MiB)" in str(error)
    assert all(is_running(other.result(LIMIT)) for other in others)
    assert backend.run_sync({}) != error.pid
    until(lambda: bool(died))
    assert (died[0].task_id, died[0].why) == (task.id, error.why)


def test_what_a_worker_keeps_between_tasks_counts_when_it_has_the_next_one(make):
    """It is not killed while it has nothing to do."""
    backend = make(max_workers=1, kill_worker_rss_bytes=200 * MB)
    pids = {backend.run_sync({"keep": 10 * MB}) for _ in range(12)}
    time.sleep(3 * PERIOD / 1e9)  # in which it would be looked at

    assert all(map(is_running, pids))
    assert len(pids) == 1
    for _ in range(3):
        backend.submit_sync({"keep": 60 * MB, "sleep": 3 * PERIOD / 1e9}).exception(LIMIT)
    assert not any(map(is_running, pids))


def test_an_idle_guardian_sleeps_though_there_is_a_limit(make):
    """It looks at a worker only while that has something to do."""
    backend = make(max_workers=1, kill_worker_rss_bytes=1000 * MB)
    backend.run_sync({"sleep": 3 * PERIOD / 1e9})
    guardian = backend._guardian.pid

    def sleeps() -> bool:
        before = switches(guardian)
        time.sleep(10 * PERIOD / 1e9)
        return switches(guardian) == before

    until(sleeps)  # it looks twice more first


def switches(pid: int) -> int:
    """How often a process has gone to sleep."""
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith("voluntary_ctxt_switches"))


@pytest.fixture
def pages() -> Iterator[tuple[status_page.StatusPage, status_page.StatusPage]]:
    """The parent's mapping and the guardian's."""
    fd = status_page.create()
    both = status_page.StatusPage(fd), status_page.StatusPage(fd)
    os.close(fd)
    yield both
    for page in both:
        page.close()


def test_work_that_comes_between_the_last_two_looks_is_seen(pages):
    """The order in which neither the parent asks, nor the guardian looks again, cannot come."""
    parent, guardian = pages
    scale = Scale(guardian)
    parent.set_calls(True)
    scale.begin(0)
    parent.set_calls(False)
    scale.look(os.getpid(), 1, PERIOD)
    still_weighed = scale.due_ns

    # The parent had read that it is watched before the guardian wrote that it is not: so it does not ask.
    parent.set_calls(True)

    assert still_weighed == 2 * PERIOD
    assert scale.look(os.getpid(), 1, still_weighed) == pytest.approx(limits.resident_bytes(), rel=0.2)

    parent.set_calls(False)
    scale.begin(0)
    for look in (1, 2):
        assert scale.look(os.getpid(), 1, look * PERIOD) is None
    assert scale.due_ns is None
    assert not parent.is_weighed()  # so it asks


@pytest.mark.parametrize("streams", [False, True], ids=["packets", "streams"])
def test_a_pool_has_the_same_limits(streams):
    """Of one that speaks by streams, too."""

    class Pool(ProcessPool):
        _by_streams = streams

    with Pool(1, max_worker_rss_bytes=120 * MB, kill_worker_rss_bytes=250 * MB) as pool:
        pids = [pool.submit(work, {"keep": size * MB}).result(LIMIT) for size in (1, 130, 1)]
        with pytest.raises(WorkerDiedError, match="kill_worker_rss_bytes is 250 MiB"):
            pool.submit(work, {"grow": "on"}).result(LIMIT)
        assert pool.submit(work, {}).result(LIMIT) not in pids

    assert pids[0] == pids[1] != pids[2]


def test_map_keeps_the_limits(make):
    """So its tasks go one by one."""
    backend = make(max_workers=1, max_worker_rss_bytes=100 * MB)

    pids = list(backend.map({"keep": 30 * MB} for _ in range(12)))

    assert len(set(pids)) >= 3
    assert len(pids) == 12


def test_a_backend_that_is_shut_down_while_a_worker_is_replaced_leaves_nothing(make):
    """The successor, too."""
    backend = make(max_workers=2, max_worker_seconds=0.001)
    tasks = [backend.submit_sync({"sleep": 0.002}) for _ in range(50)]
    tasks[0].result(LIMIT)
    guardian = backend._guardian.pid

    backend.shutdown_sync(0.05)

    assert all(task.done() for task in tasks)
    assert descendants.children(guardian) == []
    assert not is_running(guardian)


@pytest.mark.parametrize("kind", [ProcessPool, lambda **options: ProcessPoolTaskBackend(work, **options)])
@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"max_worker_seconds": 0}, ValueError, "max_worker_seconds"),
        ({"max_worker_seconds": "1"}, TypeError, "max_worker_seconds"),
        ({"max_worker_rss_bytes": 0}, ValueError, "max_worker_rss_bytes"),
        ({"max_worker_rss_bytes": 1e9}, TypeError, "max_worker_rss_bytes"),
        ({"kill_worker_rss_bytes": True}, TypeError, "kill_worker_rss_bytes"),
        ({"kill_worker_rss_bytes": 5, "max_worker_rss_bytes": 5}, ValueError, "no worker would live"),
    ],
)
def test_limits_that_make_no_sense_are_refused(kind, options, error, text):
    """When they are written down."""
    with pytest.raises(error, match=text):
        kind(**options)
