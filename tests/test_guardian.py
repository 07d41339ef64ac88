"""The guardian and the workers it starts: time limits, being stopped, stacks, and the end of everything."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from random import Random
from typing import Any

import pytest

from taskback import TaskCancelled, _codec
from taskback.pools import _os
from taskback.pools.child import packets
from taskback.pools.child.packets import Packet
from taskback.pools.child.status_page import IN_USER_CODE
from taskback.pools.guardian_client import GuardianClient
from taskback.pools.worker_process import Ending, InitializerError, WorkerProcess, WorkerStartError
from tests import faults
from tests.faults import LIMIT, await_gone
from tests.helpers import few_descriptors

NOTHING = _codec.dumps((None, (), {}))


class Bench:
    """A guardian, and workers that the test drives itself."""

    def __init__(self) -> None:
        self.guardian = GuardianClient()
        self.bell = _os.Bell()
        self.workers: list[WorkerProcess] = []

    def worker(self, hello: bytes = NOTHING) -> WorkerProcess:
        """A worker that is ready."""
        worker = WorkerProcess(self.guardian, hello, self.bell)
        self.workers.append(worker)
        assert worker.await_ready(lambda: False)
        return worker

    def close(self) -> None:
        """End all."""
        for worker in self.workers:
            worker.kill("the test is over")
            worker.await_end()
            worker.close()
        self.guardian.close()
        self.workers.clear()
        del self.bell  # closes it


@pytest.fixture
def bench() -> Iterator[Bench]:
    """Closed whatever the test does."""
    bench = Bench()
    yield bench
    bench.close()


def send(worker: WorkerProcess, number: int, function: Callable[..., Any], *arguments: Any) -> None:
    """Send a call of a function."""
    assert worker.send(packets.CALL, number, _codec.dumps((function, arguments, {})), number)


def reply(worker: WorkerProcess) -> Packet:
    """The next packet."""
    deadline = time.monotonic() + LIMIT
    while not worker.over and time.monotonic() < deadline:
        worker.wait(deadline - time.monotonic())
        packet = worker.receive()
        if packet is not None:
            return packet
    raise AssertionError(f"{worker} says nothing")


def error_of(packet: Packet) -> BaseException:
    """The error that a reply holds."""
    assert packet.kind == packets.ERROR
    return _codec.unpack_error(pickle.loads(packet.data))


def ended(worker: WorkerProcess) -> Ending:
    """How a worker ended, once it has."""
    deadline = time.monotonic() + LIMIT
    while not worker.over and time.monotonic() < deadline:
        worker.wait(deadline - time.monotonic())
        worker.receive()
    worker.await_end()
    return worker.ending()


def test_a_call_that_is_told_to_stop_stops_at_its_next_bytecode(bench, channel):
    """Its reply says so, and the worker goes on."""
    worker = bench.worker()
    send(worker, 1, faults.handler, {"do": "sleep", "tell": channel.path})
    channel.numbers()

    worker.interrupt(1, firmly=False)

    assert isinstance(error_of(reply(worker)), TaskCancelled)
    send(worker, 2, pow, 2, 5)
    assert pickle.loads(reply(worker).data) == 32


def sleep_long(path: str) -> None:
    """One call of the standard library that takes long."""
    faults.tell(path, "begun")
    time.sleep(600)


def test_a_call_that_sleeps_is_woken(bench, channel):
    """A signal ends what an exception from another thread would wait for."""
    worker = bench.worker()
    send(worker, 1, sleep_long, channel.path)
    channel.line()

    worker.interrupt(1, firmly=False)

    assert isinstance(error_of(reply(worker)), TaskCancelled)


def test_only_the_call_that_is_meant_is_stopped(bench, channel, tmp_path):
    """One that is over, or another one, is not."""
    worker = bench.worker()
    gate = str(tmp_path / "gate")
    os.mkfifo(gate)
    send(worker, 1, pow, 2, 5)
    reply(worker)
    send(worker, 2, faults.handler, {"do": "wait", "tell": channel.path, "gate": gate, "n": 7})
    channel.numbers()

    worker.interrupt(1, firmly=True)
    with open(gate, "wb", buffering=0) as file:
        file.write(b"x")

    assert pickle.loads(reply(worker).data) == 7


def test_a_call_that_is_stopped_before_it_is_read_never_begins(bench, channel):
    """The word on the page waits for it."""
    worker = bench.worker()
    os.kill(worker.pid, signal.SIGSTOP)
    send(worker, 1, faults.tell, channel.path, "begun")

    worker.interrupt(1, firmly=False)
    os.kill(worker.pid, signal.SIGCONT)

    assert isinstance(error_of(reply(worker)), TaskCancelled)
    faults.tell(channel.path, "nothing before")
    assert channel.line() == "nothing before"


def count_up(number: int) -> int:
    """Some bytecodes."""
    total = 0
    for step in range(number):
        total += step
    return total


def test_a_signal_at_any_moment_harms_nothing_but_its_call(bench):
    """Thousands of calls, each told to stop at a random moment: every reply is its own call's."""
    worker = bench.worker()
    random = Random(5)
    interrupted = 0

    for number in range(1, 3001):
        send(worker, number, count_up, number % 200)
        until = time.perf_counter() + random.random() * 200e-6
        while time.perf_counter() < until:
            pass
        worker.interrupt(number, firmly=True)
        packet = reply(worker)
        assert packet.id == number
        assert worker.answered([number]) == [number]
        if packet.kind == packets.ERROR:
            assert isinstance(error_of(packet), TaskCancelled)
            interrupted += 1
        else:
            assert pickle.loads(packet.data) == sum(range(number % 200))

    assert 0 < interrupted < 3000


@pytest.mark.parametrize("do", ["swallow", "spin", "deaf", "stopped"])
def test_a_time_limit_ends_what_does_not_stop(bench, channel, do):
    """Asked, asked firmly, then killed with all below it; where it was is told, except of a stopped one."""
    worker = bench.worker()
    worker.limit(1, 0.2, 0.3)
    send(worker, 1, faults.handler, {"do": "sleep" if do == "stopped" else do, "tell": channel.path})
    (pid,) = channel.numbers()
    if do == "stopped":
        os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()

    ending = ended(worker)

    assert ending.exitcode == -signal.SIGKILL
    assert "did not stop within the grace" in ending.why
    assert worker.struck == [1]
    assert ending.call == 1
    assert time.monotonic() - began < 0.5 + 1.0
    await_gone(pid)
    if do != "stopped":
        assert f"in _{do}" in ending.stack or "in swallow" in ending.stack


def test_a_time_limit_lets_a_call_stop_by_itself(bench, channel):
    """The exception comes at the limit, and the worker lives on."""
    worker = bench.worker()
    worker.limit(1, 0.1, 10)
    send(worker, 1, faults.handler, {"do": "sleep", "tell": channel.path})

    assert isinstance(error_of(reply(worker)), TaskCancelled)
    assert worker.struck == [1]
    send(worker, 2, pow, 2, 5)
    assert pickle.loads(reply(worker).data) == 32


def test_a_time_limit_is_about_its_own_call(bench, channel, tmp_path):
    """One that ended in time leaves the next one alone."""
    worker = bench.worker()
    worker.limit(1, 0.1, 0)
    send(worker, 1, pow, 2, 5)
    reply(worker)
    gate = str(tmp_path / "gate")
    os.mkfifo(gate)
    send(worker, 2, faults.handler, {"do": "wait", "tell": channel.path, "gate": gate, "n": 7})
    channel.numbers()

    assert not select.select([worker._fate], [], [], 0.4)[0], "the limit of an ended call was enforced"
    with open(gate, "wb", buffering=0) as file:
        file.write(b"x")

    assert pickle.loads(reply(worker).data) == 7


def test_a_limit_counts_from_the_beginning_of_user_code(bench):
    """A call that lies unread uses up nothing of it."""
    worker = bench.worker()
    os.kill(worker.pid, signal.SIGSTOP)
    worker.limit(1, 0.3, 0)
    send(worker, 1, time.sleep, 0.05)
    threading.Event().wait(0.5)
    os.kill(worker.pid, signal.SIGCONT)

    assert reply(worker).kind == packets.RESULT


def test_limits_are_kept_beside_a_busy_event_loop(bench, channel):
    """The parent's loop runs callbacks without a pause; the tree is dead soon after limit and grace all the same."""
    worker = bench.worker()
    worker.limit(1, 0.5, 0.2)
    send(worker, 1, faults.handler, {"do": "deaf", "tell": channel.path})
    (pid,) = channel.numbers()
    watch = os.pidfd_open(pid)
    told, tell = os.pipe()
    if os.fork() == 0:  # a witness that needs nothing of this process
        try:
            began = time.monotonic()
            select.select([watch], [], [], 20)
            os.write(tell, f"{time.monotonic() - began}\n".encode())
        finally:
            os._exit(0)
    os.close(watch)
    os.close(tell)

    async def busy() -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + 1.5

        def spin() -> None:
            end = time.perf_counter() + 0.002
            while time.perf_counter() < end:
                pass
            if loop.time() < until:
                loop.call_soon(spin)

        loop.call_soon(spin)
        while loop.time() < until:
            await asyncio.sleep(0)

    asyncio.run(busy())
    with open(told) as file:
        took = float(file.readline())
    os.wait()

    assert took < 0.7 + 0.3
    assert ended(worker).exitcode == -signal.SIGKILL


def test_all_can_be_killed_at_a_time_that_is_told_before(bench, channel):
    """Whatever the parent does then."""
    workers = [bench.worker() for _ in range(2)]
    for number, worker in enumerate(workers, 1):
        send(worker, number, faults.handler, {"do": "deaf", "tell": channel.path})
        channel.numbers()

    assert bench.guardian.kill_all_at(time.monotonic() + 0.2)

    assert [ended(worker).exitcode for worker in workers] == [-signal.SIGKILL] * 2


@pytest.mark.parametrize("do", ["spin", "deaf"])
def test_the_stacks_of_a_worker_can_be_had(bench, channel, do):
    """Also where it holds its interpreter lock; it is not disturbed."""
    worker = bench.worker()
    send(worker, 1, faults.handler, {"do": do, "tell": channel.path})
    channel.numbers()
    while worker.snapshot().phase != IN_USER_CODE:
        os.sched_yield()

    stack = worker.stack()

    assert f"in _{do}" in stack
    assert "most recent call first" in stack


def test_a_stopped_worker_tells_no_stack_and_holds_nobody(bench):
    """It is waited for 50 ms."""
    worker = bench.worker()
    os.kill(worker.pid, signal.SIGSTOP)

    began = time.monotonic()

    assert worker.stack() == ""
    assert time.monotonic() - began < 2
    os.kill(worker.pid, signal.SIGCONT)


def fail() -> None:
    """An initializer that fails."""
    raise ValueError("cannot begin")


def test_a_worker_whose_beginning_fails_says_why(bench):
    """With the error as the cause."""
    with pytest.raises(InitializerError) as caught:
        bench.worker(_codec.dumps((fail, (), {})))

    assert isinstance(caught.value.__cause__, ValueError)


def test_a_worker_that_dies_before_it_is_ready_is_no_worker(bench):
    """Its start fails, whatever it says."""
    with pytest.raises(WorkerStartError):
        bench.worker(_codec.dumps((os._exit, (3,), {})))

    assert ended(bench.workers[0]).exitcode == 3


def test_a_start_can_be_called_off(bench):
    """Whoever waits for it is woken by the bell."""
    worker = WorkerProcess(bench.guardian, _codec.dumps((time.sleep, (600,), {})), bench.bell)
    bench.workers.append(worker)
    threading.Timer(0.2, bench.bell.ring).start()
    off: list[bool] = []

    def called_off() -> bool:
        off.append(True)
        return bool(len(off) > 1 and time.monotonic() > began + 0.15)

    began = time.monotonic()

    assert not worker.await_ready(called_off)


def test_a_worker_that_greets_before_its_guardian_tells_of_it_has_its_number(bench, monkeypatch):
    """It is not ready without: what would be sent to process 0 reaches the whole group of the sender."""
    greetings: list[Packet] = []
    greeted, hear_fate = WorkerProcess._greeted, WorkerProcess._hear_fate

    def greet(worker: WorkerProcess, packet: Packet) -> Any:
        greetings.append(packet)
        return greeted(worker, packet)

    monkeypatch.setattr(WorkerProcess, "_greeted", greet)
    monkeypatch.setattr(WorkerProcess, "_hear_fate", lambda worker: hear_fate(worker) if greetings else None)

    worker = bench.worker()

    send(worker, 1, os.getpid)
    assert worker.pid == pickle.loads(reply(worker).data)


def test_a_retired_worker_takes_nothing(bench):
    """And one that has a call out does not retire."""
    worker = bench.worker()
    send(worker, 1, pow, 2, 5)
    assert not worker.retire()
    assert reply(worker).id == 1
    assert worker.answered([1]) == [1]

    assert worker.retire()

    assert not worker.send(packets.CALL, 2, b"", 2)
    worker.say_goodbye()
    assert ended(worker).exitcode == 0


def test_a_replacement_is_there_at_once(bench):
    """It is forked from a process that has imported everything."""
    times = []
    for _ in range(20):
        began = time.perf_counter()
        worker = bench.worker()
        times.append(time.perf_counter() - began)
        worker.kill("")

    assert sorted(times[1:])[len(times) // 2] < 0.05, "it takes 2 ms where the machine is quiet"


def test_the_guardian_leaves_with_its_parent_s_end_of_the_line(bench):
    """However that closes; here by a parent that says nothing."""
    worker = bench.worker()
    guardian = bench.guardian.pid

    bench.guardian.close()

    assert ended(worker).exitcode in (None, -signal.SIGKILL)
    await_gone(worker.pid, guardian)


def test_requests_that_make_no_sense_harm_no_other(bench):
    """The guardian goes on."""
    worker = bench.worker()
    guard = bench.guardian._guard
    assert guard is not None
    guard.ask("nonsense")
    guard._control.send(b"no pickle")
    guard.ask("start", 99)
    guard.ask("limit", 99, 1, 1, 1)
    guard.ask("kill", 99)
    guard._control.sendmsg([pickle.dumps(("start", 98))], [], socket.MSG_DONTWAIT)

    again = bench.worker()

    assert again.pid != worker.pid
    assert bench.guardian._guard is guard


@pytest.mark.parametrize("free", range(8))
def test_a_guardian_that_cannot_be_started_leaves_nothing(free):
    """Wherever the descriptors end; a socket that is left open is an error of this suite."""
    guardian = GuardianClient()

    with few_descriptors(free), suppress(OSError):
        guardian._living()

    guardian.close()
    gc.collect()
