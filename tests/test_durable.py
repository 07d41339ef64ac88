"""`DurableTaskBackend`: what was accepted is done, in this life of the program or a later one."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from taskback import (
    DurableTaskBackend,
    TaskBackend,
    ThreadPoolTaskBackend,
    current_task,
)
from tests import handlers
from tests.durable_kills import INNER, kill_at_random
from tests.gates import PATIENCE, Gate
from tests.helpers import until

Make = Callable[..., DurableTaskBackend]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A journal's."""
    return tmp_path / "tasks.db"


@pytest.fixture
def durable(path: Path, gate: Gate) -> Iterator[Make]:
    """Makes durable backends over threads, or over another one; shuts them down."""
    made: list[DurableTaskBackend] = []

    def make(inner: TaskBackend | None = None, handler: Any = handlers.do, **options: Any) -> DurableTaskBackend:
        inner = inner or ThreadPoolTaskBackend(handler, max_workers=1, cancel_grace_seconds=1.0)
        made.append(DurableTaskBackend(inner, options.pop("at", path), **options))
        return made[-1]

    yield make
    gate.open()
    for backend in made:
        backend.shutdown_sync(2)


def rows(path: Path) -> list[str]:
    """The ids in a journal, in order."""
    with closing(sqlite3.connect(path)) as db:
        return [bytes(each[0]).decode() for each in db.execute("SELECT id FROM tasks ORDER BY seq")]


def test_a_task_is_in_the_journal_until_it_has_ended(durable, path, gate):
    """From before submit returns until its outcome is known."""
    backend = durable()
    backend.initialize_sync()

    handle = backend.submit_sync({"do": "hold", "gate": gate.path}, id="mine")
    gate.wait_said()

    assert rows(path) == ["mine"]
    gate.open()
    handle.result(PATIENCE)
    until(lambda: rows(path) == [])


def test_what_a_shutdown_leaves_is_run_in_the_next_life(durable, path, gate):
    """What it stopped, and what never began: in order, with ids and contents."""
    backend = durable()
    backend.initialize_sync()
    backend.submit_sync({"do": "hold", "gate": gate.path}, id="runs")
    gate.wait_said()
    for number in range(3):
        backend.submit_sync({"do": "note", "n": number}, id=f"waits-{number}")

    report = backend.shutdown_sync(0)

    assert len(report.unfinished) == 4
    assert rows(path) == ["runs", "waits-0", "waits-1", "waits-2"]
    seen = []
    again = durable(handler=lambda task: seen.append((current_task().id, task.get("n"))))
    again.initialize_sync()
    until(lambda: not again.inflight_count)
    assert seen == [("runs", None), ("waits-0", 0), ("waits-1", 1), ("waits-2", 2)]
    again.shutdown_sync()
    assert rows(path) == []


@pytest.mark.parametrize("inner", INNER)
def test_kill_9_at_random_moments_loses_nothing(tmp_path, inner):
    """Each task that was accepted has been done in the end; `scripts/durable-kills` does more of it."""
    found = kill_at_random(tmp_path, inner, 3, random.Random())

    assert found.accepted > 0
    assert found.lost == []
    assert found.left == 0
