"""A guardian that is killed, stopped, or does nothing any more: it is noticed and replaced, and nobody waits for ever.

What is stopped is not dead: it closes nothing, and takes what it is sent. Whoever waits too long for it has it go on.
That can be in vain; then it is killed. `helpless` has every guardian be like that.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from typing import Any

import psutil
import pytest

from taskback import ProcessPoolTaskBackend, TaskCancelled, TaskHandle, TaskState, TaskTimeoutError, WorkerDiedError
from taskback.pools import ProcessPool
from taskback.pools.guardian_client import Guard, GuardianClient
from tests import faults
from tests.faults import LIMIT, Channel, await_gone
from tests.helpers import process_backends, until

Make = Callable[..., ProcessPoolTaskBackend]

GRACE = 0.3  # seconds


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes backends that are shut down whatever the test does."""
    with process_backends(faults.handler, GRACE) as make:
        yield make


@pytest.fixture
def channel(tmp_path) -> Iterator[Channel]:
    """What handlers tell comes here."""
    made = Channel(tmp_path)
    yield made
    made.close()


@pytest.fixture(params=["stopped", "helpless"])
def how(request, monkeypatch) -> str:
    """Whether a guardian that is stopped goes on when it is told to."""
    if request.param == "helpless":
        monkeypatch.setattr(Guard, "prod", lambda self: None)
    return str(request.param)


def guardian_of(backend: ProcessPoolTaskBackend) -> int:
    """The process."""
    assert backend._guardian is not None
    pid = backend._guardian.pid
    assert pid is not None
    return pid


def stop_guardian(backend: ProcessPoolTaskBackend) -> int:
    """Stop it, and wait until it stands; its number."""
    pid = guardian_of(backend)
    os.kill(pid, signal.SIGSTOP)
    until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    return pid


def await_end(handle: TaskHandle) -> BaseException | None:
    """Wait for a handle, whatever it ends as; what it ended with."""
    assert not wait([handle], LIMIT).not_done, f"{handle} did not end"
    return None if handle.cancelled() else handle.exception(0)


def assert_serves(backend: ProcessPoolTaskBackend) -> None:
    """It does, and ends in time with nothing left."""
    assert backend.run_sync({"do": "echo", "n": 3}, wait=LIMIT) == 3
    report = backend.shutdown_sync(1)
    assert report.stuck == []
    assert report.dying == []
    assert report.seconds < 1 + GRACE + 1


def test_a_time_limit_is_kept_though_the_guardian_is_stopped(make, channel, how):
    """Later than usual, but it is; by a guardian that goes on, or without it, by its parent."""
    backend = make()
    handle = backend.submit_sync({"do": "swallow", "tell": channel.path}, timeout=0.2)
    (worker,) = channel.numbers()
    guardian = stop_guardian(backend)

    error = await_end(handle)

    assert isinstance(error, TaskTimeoutError)
    assert handle.state is TaskState.TIMED_OUT
    await_gone(worker)
    assert_serves(backend)
    await_gone(guardian)


def test_a_task_that_ends_by_itself_is_no_reason_to_look_after_the_guardian(make, monkeypatch):
    """Nobody is woken for a limit that has been kept, nor is a guardian told to go on that is just idle."""
    prodded = []
    monkeypatch.setattr(Guard, "prod", lambda self: prodded.append(self))
    backend = make()
    (lane,) = backend._processes

    assert backend.run_sync({"do": "echo", "n": 1}, timeout=60, wait=LIMIT) == 1

    assert lane._lane is not None
    worker = lane._lane._worker
    assert worker is not None
    until(lambda: not worker.out)
    assert worker.look_at is None
    assert prodded == []


@pytest.mark.parametrize("by", ["kill", "cancel"])
def test_the_death_of_a_worker_is_told_though_the_guardian_is_stopped(make, channel, how, by):
    """Its caller knows; the next task has another worker; what it had started is gone, if the guardian goes on."""
    backend = make()
    handle = backend.submit_sync({"do": "children", "then": "swallow", "tell": channel.path})
    worker, *children = channel.numbers()
    assert channel.numbers() == [worker]
    guardian = stop_guardian(backend)

    os.kill(worker, signal.SIGKILL) if by == "kill" else handle.cancel()
    error = await_end(handle)

    assert isinstance(error, WorkerDiedError) if by == "kill" else handle.cancelled()
    await_gone(worker, *children)
    assert_serves(backend)
    await_gone(guardian)


def test_a_shutdown_is_bounded_though_the_guardian_is_stopped(make, channel, how):
    """One worker at work, one idle: nothing is left, and no thread is stuck."""
    backend = make(max_workers=2)
    handle = backend.submit_sync({"do": "swallow", "tell": channel.path})
    (worker,) = channel.numbers()
    guardian = stop_guardian(backend)

    report = backend.shutdown_sync(0.2)

    assert report.seconds < 0.2 + GRACE + 1 + 0.5  # one that is helpless takes all of it, and the machine may be busy
    assert (report.killed, report.cancelled, report.never_started, report.failed) == ([handle], [], [], [])
    assert report.dying == []
    await_gone(worker, guardian)


def test_a_worker_is_started_though_the_guardian_was_stopped(make):
    """Who asks it for one has it go on, after a while."""
    backend = make()
    first = backend.run_sync({"do": "pid"}, wait=LIMIT)
    stop_guardian(backend)

    os.kill(first, signal.SIGKILL)

    assert backend.run_sync({"do": "pid"}, wait=LIMIT) != first
    assert_serves(backend)


def test_a_guardian_may_die_while_it_is_to_start_a_worker(make, monkeypatch):
    """With the request in hand that it has not come to: another one is asked."""
    backend = make()
    first = backend.run_sync({"do": "pid"}, wait=LIMIT)
    guardian = guardian_of(backend)
    plainly = GuardianClient.start_worker

    def ask_one_that_dies(self: GuardianClient, fds: tuple[int, ...]) -> Any:
        os.kill(guardian, signal.SIGSTOP)
        try:
            return plainly(self, fds)
        finally:
            monkeypatch.setattr(GuardianClient, "start_worker", plainly)
            os.kill(guardian, signal.SIGKILL)

    monkeypatch.setattr(GuardianClient, "start_worker", ask_one_that_dies)

    os.kill(first, signal.SIGKILL)

    assert backend.run_sync({"do": "pid"}, wait=LIMIT) != first
    assert guardian_of(backend) != guardian
    assert_serves(backend)


def test_guardians_may_die_one_after_the_other(make, monkeypatch):
    """As soon as they are there, as often as workers are tried before tasks are told, less one."""
    backend = make()
    first = backend.run_sync({"do": "pid"}, wait=LIMIT)
    killed: list[int] = []
    plainly = GuardianClient._living

    def living(self: GuardianClient) -> Guard:
        guard = plainly(self)
        if len(killed) < 2:
            killed.append(guard.pid)
            os.kill(guard.pid, signal.SIGKILL)
        return guard

    monkeypatch.setattr(GuardianClient, "_living", living)

    os.kill(first, signal.SIGKILL)

    assert backend.run_sync({"do": "pid"}, wait=LIMIT) != first
    assert len(set(killed)) == 2
    assert_serves(backend)


def test_a_guardian_may_die_while_it_is_to_kill(make, channel):
    """Its worker dies all the same, with what it has started in its group; the handle ends."""
    backend = make()
    handle = backend.submit_sync({"do": "children", "then": "swallow", "tell": channel.path})
    worker, *children = channel.numbers()
    assert channel.numbers() == [worker]
    guardian = stop_guardian(backend)

    assert handle.cancel()
    await_gone(worker)  # by its parent, which has asked the guardian for the rest
    os.kill(guardian, signal.SIGKILL)

    assert await_end(handle) is None
    await_gone(*children)
    assert_serves(backend)


class Odd:
    """Raises when it is unpickled in the parent."""

    def __init__(self, kind: type[BaseException]) -> None:
        self.kind = kind

    def __reduce__(self) -> tuple[Any, ...]:
        return _raise_in, (os.getpid(), self.kind)


def _raise_in(pid: int, kind: type[BaseException]) -> Any:
    if os.getpid() != pid:
        if kind is RecursionError:
            return _raise_in(pid, kind) if pid else None
        raise kind("while it was unpickled")
    return None


def odd(task: Any) -> Any:
    """A result that raises in the parent."""
    return Odd(task["kind"])


KINDS = (SystemExit, KeyboardInterrupt, GeneratorExit, MemoryError, RecursionError, TaskCancelled, StopIteration)


@pytest.mark.parametrize("kind", KINDS)
def test_no_exception_of_an_unpickler_ends_a_lane(kind):
    """It fails its own task, with the reason, and the next one is served by the same worker."""
    with ProcessPoolTaskBackend(odd, max_workers=1) as backend:
        before = [lane._lane.thread for lane in backend._processes if lane._lane is not None]
        handle = backend.submit_sync({"kind": kind})
        error = await_end(handle)
        handles = [backend.submit_sync({"kind": kind}) for _ in range(20)]
        assert all(await_end(each) is not None for each in handles)

        assert handle.state is TaskState.FAILED
        assert kind.__name__ in str(error)
        assert [lane._lane.thread for lane in backend._processes if lane._lane is not None] == before
        assert all(thread.is_alive() for thread in before)

    with ProcessPool(1) as pool:
        future = pool.submit(odd, {"kind": kind})
        assert kind.__name__ in str(future.exception(LIMIT))
        assert pool.submit(int, "3").result(LIMIT) == 3


REFUSES = """
import errno, os
plainly = os.fork
def fork():
    if os.path.exists({path!r}):
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return plainly()
if {inside}:
    os.fork = fork
def work(task):
    return task["n"]
"""


def test_no_process_can_be_forked(tmp_path, monkeypatch):
    """What waits is told, with the reason, and not left waiting; when there is room again, tasks are done again."""
    refusing = tmp_path / "refusing"
    refusing.touch()
    inside = f"os.getpid() != {os.getpid()}"
    (tmp_path / "refusing_jobs.py").write_text(REFUSES.format(path=str(refusing), inside=inside), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module("refusing_jobs")
    monkeypatch.setitem(sys.modules, "refusing_jobs", module)
    pool, backend = ProcessPool(1, preload=["refusing_jobs"]), ProcessPoolTaskBackend(module.work, max_workers=2)
    backend.initialize_sync(warm=False)
    try:
        handles = [backend.submit_sync({"n": n}) for n in range(3)]
        futures = [pool.submit(int, "3") for _ in range(3)]
        errors = [await_end(handle) for handle in handles] + [future.exception(LIMIT) for future in futures]

        refusing.unlink()

        assert [backend.run_sync({"n": n}, wait=LIMIT) for n in range(3)] == [0, 1, 2]
        assert pool.submit(int, "3").result(LIMIT) == 3
    finally:
        backend.shutdown_sync(1)
        pool.shutdown()
    assert all(isinstance(error, WorkerDiedError) for error in errors)
    assert all("Resource temporarily unavailable" in str(error) for error in errors)


def test_no_thread_can_be_started(monkeypatch):
    """The keeper is there; lanes are not, and what waits for them is told."""
    plainly = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if threading.current_thread().name.endswith("-keeper") or thread.name.startswith("ProcessPool-"):
            raise RuntimeError("can't start new thread")
        plainly(thread)

    with ProcessPoolTaskBackend(faults.handler, max_workers=2) as backend:
        pids = {backend.run_sync({"do": "pid"}, wait=LIMIT)}
        pids |= {worker.pid for worker in backend.stats().workers}
        backend.shutdown_sync(1)
        backend.initialize_sync(warm=False)
        monkeypatch.setattr(threading.Thread, "start", refuse)
        handle = backend.submit_sync({"do": "pid"})
        error = await_end(handle)
        pool = ProcessPool(1)
        with pytest.raises(RuntimeError):
            pool.submit(int, "3")
        monkeypatch.setattr(threading.Thread, "start", plainly)

        assert backend.run_sync({"do": "pid"}, wait=LIMIT) not in pids
        assert pool.submit(int, "3").result(LIMIT) == 3
        pool.shutdown()
    assert isinstance(error, WorkerDiedError)
    assert "can't start new thread" in str(error)
