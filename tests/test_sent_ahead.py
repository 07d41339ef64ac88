"""Tasks that a worker of the process backend has before it is free for them, and how they come back."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from taskback import HandlerNotSerializableError, ProcessPoolTaskBackend, TaskHandle, TaskRouter, TaskState
from taskback._state import BackendState
from taskback.pools import process_lane, worker_lane, worker_process
from taskback.pools.guardian_client import GuardianClient
from tests.faults import LIMIT
from tests.gates import Gate
from tests.helpers import outcomes, process_backends, until

BEHIND = 40  # tasks that wait behind the one that holds the worker


def noting(log: Path) -> Callable[[dict[str, Any]], Any]:
    """A handler that writes down each task that it gets, and holds its worker for those with a gate."""
    path = str(log)

    def handler(task: dict[str, Any]) -> Any:
        import os

        from tests import handlers

        with open(path, "a") as file:
            file.write(f"{task['n']}\n")
        if "gate" in task:
            return handlers.hold(task)
        return os.getpid()

    return handler


class Noted:
    """A backend whose one worker is held by a task, with others sent ahead behind it."""

    def __init__(self, backend: ProcessPoolTaskBackend, gate: Gate, log: Path) -> None:
        self.backend = backend
        self.gate = gate
        self.log = log
        self.holder: TaskHandle
        self.behind: list[TaskHandle] = []

    def begin(self) -> Noted:
        """Have the worker held, and more sent behind; another one, if there is one, is idle after that."""
        backend, first = self.backend, [Gate(self.log.parent, name) for name in ("first", "other")]
        backend.initialize_sync()
        for n in range(10):  # after each of them it may have twice as many
            backend.run_sync({"n": f"early {n}"}, wait=LIMIT)
        early = [backend.submit_sync({"n": "early", "gate": gate.path}) for gate in first[: backend._max_workers]]
        self.holder = backend.submit_sync({"n": "holder", "gate": self.gate.path})
        self.behind = [backend.submit_sync({"n": n}) for n in range(BEHIND)]
        for gate, _ in zip(first, early, strict=False):
            gate.wait_said()
        first[0].open()
        self.gate.wait_said()
        while self.sent <= BEHIND:
            assert not self.holder.done()
        first[1].open()
        assert not wait(early, LIMIT).not_done
        for gate in first:
            gate.close()
        return self

    @property
    def sent(self) -> int:
        """How many tasks the fullest worker has."""
        return max(lane.ahead for lane in self.backend._processes)

    def order(self) -> list[str]:
        """The tasks that were run after the early ones, in that order."""
        return [line for line in self.log.read_text().splitlines() if not line.startswith("early")]

    def end(self, handles: list[TaskHandle]) -> None:
        """Let the holder go; wait for these, which all succeed, each having run once."""
        self.gate.open()
        assert not wait(handles, LIMIT).not_done
        assert {handle.state for handle in handles} == {TaskState.SUCCEEDED}
        assert max(Counter(self.order()).values()) == 1


Begin = Callable[..., Noted]


@pytest.fixture
def begin(gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Begin]:
    """Makes such backends. Nothing comes back because of time alone, and all that fits is sent ahead."""
    monkeypatch.setattr(worker_lane, "AHEAD", 100.0)
    monkeypatch.setattr(worker_lane, "PATIENCE", 100.0)
    log = tmp_path / "log"
    with process_backends(noting(log), 0.3) as make:
        yield lambda **options: Noted(make(**{"max_workers": 1, **options}), gate, log).begin()


def test_one_that_was_sent_ahead_is_cancelled_at_once(begin):
    """It never begins, and the others run in their order, each once."""
    noted = begin()
    cancelled = noted.behind.pop(1)

    assert cancelled.cancel()

    assert cancelled.done()
    assert (cancelled.state, cancelled.started_at) == (TaskState.CANCELLED, None)
    noted.end([noted.holder, *noted.behind])
    assert noted.order() == ["holder", *(str(n) for n in range(BEHIND) if n != 1)]


def test_cancelling_the_one_that_runs_costs_those_behind_it_nothing(begin):
    """They are known to be no part of it, however many there are."""
    noted = begin()

    assert noted.holder.cancel()

    noted.end(noted.behind)
    assert noted.holder.state is TaskState.CANCELLED


def test_a_worker_that_dies_costs_the_one_that_it_ran(begin):
    """The others, which it had not read, run in the next one, in their order."""
    noted = begin()
    pid = noted.holder.worker_pid
    assert pid is not None

    os.kill(pid, signal.SIGKILL)

    noted.end(noted.behind)
    assert noted.holder.state is TaskState.LOST
    assert noted.order() == ["holder", *map(str, range(BEHIND))]
    stats = noted.backend.stats()
    assert (stats.accepted, stats.lost) == (outcomes(stats), 1)


def test_a_higher_priority_overtakes_what_was_sent_ahead(begin):
    """It comes next, when the worker is free."""
    noted = begin()

    urgent = noted.backend.submit_sync({"n": "urgent"}, priority=1)

    noted.end([noted.holder, urgent, *noted.behind])
    assert noted.order() == ["holder", "urgent", *map(str, range(BEHIND))]


def test_the_same_priority_calls_nothing_back(begin):
    """Or each submit would undo what the last one did."""
    noted = begin()
    sent = noted.sent

    later = noted.backend.submit_sync({"n": "later"})

    assert noted.sent == sent
    noted.end([noted.holder, later, *noted.behind])
    assert noted.order() == ["holder", *map(str, range(BEHIND)), "later"]


def test_one_with_a_time_limit_is_not_sent_ahead(begin):
    """Nor is what comes after it; its limit counts from when its worker is free for it."""
    noted = begin()
    noted.gate.open()
    wait([noted.holder, *noted.behind], LIMIT)
    second = Gate(noted.log.parent, "second")

    holder = noted.backend.submit_sync({"n": "second", "gate": second.path})
    second.wait_said()
    limited = noted.backend.submit_sync({"n": "limited"}, timeout=LIMIT)
    after = noted.backend.submit_sync({"n": "after"})

    assert [limited._run.lane, after._run.lane] == [None, None]
    second.open()
    wait([holder, limited, after], LIMIT)
    second.close()
    assert noted.order()[-3:] == ["second", "limited", "after"]


def test_an_idle_worker_takes_what_another_one_was_sent(begin):
    """It need not wait until the first one comes to it."""
    noted = begin(max_workers=2)

    assert not wait(noted.behind, LIMIT).not_done

    assert not noted.holder.done()
    assert noted.holder.worker_pid not in {handle.result() for handle in noted.behind[-2:]}
    noted.end([noted.holder, *noted.behind])


def test_what_a_stopped_worker_was_sent_comes_back(begin, monkeypatch):
    """After the lane's patience; another worker does it."""
    noted = begin()
    monkeypatch.setattr(worker_lane, "PATIENCE", 0.002)
    pid = noted.holder.worker_pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        noted.backend._processes[0]._lane.wake()  # it waits with the patience that it had

        handle = noted.behind[-1]
        while handle._run.lane is not None:
            assert not handle.done()
        assert noted.sent == 1
    finally:
        os.kill(pid, signal.SIGCONT)
    noted.end([noted.holder, *noted.behind])
    assert noted.order() == ["holder", *map(str, range(BEHIND))]


def test_a_shutdown_cancels_what_was_sent_ahead(begin):
    """It never started, and the report says so of each."""
    noted = begin()

    report = noted.backend.shutdown_sync(0)

    assert report.cancelled + report.killed == [noted.holder]
    assert set(report.never_started) == set(noted.behind)
    assert noted.order() == ["holder"]


def test_a_drain_ends_what_was_sent_ahead(begin):
    """It is in flight like any other."""
    noted = begin()
    with ThreadPoolExecutor(1) as other:
        closing = other.submit(noted.backend.shutdown_sync, LIMIT)
        until(lambda: noted.backend._state is BackendState.DRAINING)
        noted.gate.open()
        report = closing.result(LIMIT)

    assert set(report.succeeded) >= set(noted.behind)
    assert noted.order() == ["holder", *map(str, range(BEHIND))]


def test_a_cancel_between_taking_and_sending(begin, monkeypatch):
    """Race: the lane has taken the task, and its call is not out yet. It is told to stop once it is."""
    noted = begin()
    chosen = noted.behind[-1]
    assert chosen._run.lane is not None
    message = process_lane.ProcessLane.message
    met = threading.Event()

    def late(self: process_lane.ProcessLane, run: Any) -> Any:
        made = message(self, run)
        if run is chosen._run and not met.is_set():
            met.set()
            assert chosen.cancel()
            assert not chosen.done()
        return made

    monkeypatch.setattr(process_lane.ProcessLane, "message", late)
    noted.behind[0].cancel()  # calls all back

    noted.end([noted.holder, *noted.behind[1:-1]])
    assert not wait([chosen], LIMIT).not_done
    assert met.is_set()
    assert chosen.state is TaskState.CANCELLED


def test_what_is_taken_back_of_a_worker_that_starts_is_not_its_hello(monkeypatch, tmp_path):
    """Race: a task of a higher priority comes while a worker is being started, which has read nothing yet."""
    start, met = GuardianClient.start_worker, threading.Event()

    def late(self: GuardianClient, descriptors: Any) -> Any:
        for worker in list(worker_process._workers):
            assert worker.take_back() == []
            met.set()
        return start(self, descriptors)

    monkeypatch.setattr(GuardianClient, "start_worker", late)
    with process_backends(noting(tmp_path / "log"), 0.3) as make:
        assert make().run_sync({"n": 1}, wait=LIMIT) != os.getpid()
    assert met.is_set()


def test_figures_while_a_lane_comes_to_its_end(begin, monkeypatch):
    """Race: a lane has a run when it is looked at, and none a moment later."""
    noted = begin()
    looks = iter([noted.holder._run, *[None] * 9])
    monkeypatch.setattr(process_lane.ProcessLane, "run", property(lambda lane: next(looks)))

    assert noted.backend.stats().accepted == 10 + 2 + BEHIND


def test_a_handler_that_cannot_travel_any_more_fails_what_was_queued(gate):
    """Each task by itself, also where the lane takes it of its own accord; the lane goes on."""
    router, path = TaskRouter(), gate.path

    def hold(task: dict[str, Any]) -> Any:
        from tests import gates

        return gates.hold(path)

    router.handler("hold", hold)
    router.handler("good", lambda task: task["n"])
    with process_backends(router, 0.3) as make:
        backend = make(max_workers=1)
        holder = backend.submit_sync({"type": "hold"})
        gate.wait_said()
        lock = threading.Lock()

        router.handler("bad", lambda task: lock)
        handles = [backend.submit_sync({"type": "good", "n": n}) for n in range(3)]
        gate.open()
        assert not wait([holder, *handles], LIMIT).not_done
        late = backend.submit_sync({"type": "good", "n": 3})

        assert holder.state is TaskState.SUCCEEDED
        assert {type(handle.exception(LIMIT)) for handle in [*handles, late]} == {HandlerNotSerializableError}
        assert backend.inflight_count == 0
