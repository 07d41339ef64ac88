"""Tasks that run on and report nothing are told, with their stacks; nobody else is."""

from __future__ import annotations

import logging
import queue
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from typing import Any

import pytest

from taskback import ProcessPoolTaskBackend, TaskStuck, ThreadPoolTaskBackend, current_task
from tests import gates
from tests.gates import PATIENCE, Gate

AFTER = 0.1

Make = Callable[..., Any]


def handler(task: dict[str, Any]) -> None:
    """Stand at the gates, in turn, and report in between."""
    for path in task.get("gates", ()):
        gates.hold(path)
        current_task().report(stage=path)


@pytest.fixture(params=[ThreadPoolTaskBackend, ProcessPoolTaskBackend])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    """Makes a running backend of one worker that tells of stuck tasks."""
    made: list[Any] = []

    def make(**options: Any) -> Any:
        backend = request.param(handler, **{"max_workers": 1, "stuck_after_seconds": AFTER, **options})
        made.append(backend)
        backend.initialize_sync()
        return backend

    yield make
    for backend in made:
        backend.shutdown_sync(0)


@pytest.fixture
def told() -> queue.SimpleQueue[TaskStuck]:
    """What a test lets a backend tell of stuck tasks."""
    return queue.SimpleQueue()


def listen(backend: Any, told: queue.SimpleQueue[TaskStuck]) -> None:
    """Have stuck tasks told."""
    backend.subscribe(lambda event: told.put(event) if isinstance(event, TaskStuck) else None)


def await_rest(backend: Any) -> None:
    """Wait until nobody looks after tasks any more."""
    deadline = time.monotonic() + PATIENCE
    while backend._watch._timer is not None or backend._watch._looks:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_each_silence_is_told_once(make, told, tmp_path, caplog):
    """In the log and to listeners, with the stack; a report ends a silence."""
    first, second = Gate(tmp_path, "first"), Gate(tmp_path, "second")
    backend = make()
    listen(backend, told)
    handle = backend.submit_sync({"type": "slow", "gates": [first.path, second.path]})
    first.wait_said()

    with caplog.at_level(logging.WARNING):
        one = told.get(timeout=PATIENCE)
    assert (one.task_id, one.type, one.attempt) == (handle.id, "slow", 1)
    assert one.seconds >= AFTER
    assert "in handler" in one.stack
    (record,) = (record for record in caplog.records if handle.id in record.getMessage())
    assert "without a report" in record.getMessage()
    assert "in handler" in record.getMessage()
    time.sleep(3 * AFTER)  # in which it would be told again
    assert told.empty()

    first.open()
    second.wait_said()
    two = told.get(timeout=PATIENCE)

    assert two.task_id == handle.id
    second.open()
    handle.result(PATIENCE)
    first.close()
    second.close()


def test_who_is_quick_or_only_waits_is_not_told_and_rest_follows(make, told, tmp_path):
    """A task behind a stuck one is not stuck itself, and a backend without tasks has no timer."""
    gate = Gate(tmp_path)
    backend = make()
    listen(backend, told)
    wait([backend.submit_sync({}) for _ in range(100)], PATIENCE)
    stuck = backend.submit_sync({"gates": [gate.path]})
    behind = backend.submit_sync({})

    assert told.get(timeout=PATIENCE).task_id == stuck.id
    time.sleep(2 * AFTER)
    gate.open()
    behind.result(PATIENCE)

    assert told.empty()
    await_rest(backend)
    again = backend.submit_sync({"gates": [gate.path]})  # the gate is open
    again.result(PATIENCE)
    await_rest(backend)
    gate.close()


def test_a_task_that_is_to_stop_is_not_told(make, told, tmp_path):
    """Its time limit or whoever cancelled it sees to it."""
    gate = Gate(tmp_path)
    backend = make(cancel_grace_seconds=0.6)
    listen(backend, told)
    handle = backend.submit_sync({"gates": [gate.path]}, timeout=AFTER / 2)

    wait([handle], PATIENCE)

    await_rest(backend)
    assert told.empty()
    gate.close()


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
@pytest.mark.parametrize("kind", [ThreadPoolTaskBackend, ProcessPoolTaskBackend])
def test_what_makes_no_sense_is_refused(kind, seconds):
    """As for every other number of seconds."""
    with pytest.raises(ValueError, match="stuck_after_seconds"):
        kind(handler, stuck_after_seconds=seconds)
