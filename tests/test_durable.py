"""`DurableTaskBackend`: what was accepted is done, in this life of the program or a later one."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from taskback import (
    BackendClosedError,
    DurableTaskBackend,
    ProcessPoolTaskBackend,
    QueueFullError,
    TaskBackend,
    TaskNotSerializableError,
    TaskRouter,
    TaskState,
    ThreadPoolTaskBackend,
    UnknownTaskTypeError,
    current_task,
)
from tests import handlers
from tests.backends import in_loop
from tests.durable_kills import INNER, kill_at_random
from tests.gates import PATIENCE, Gate
from tests.helpers import ROOT, until

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


# --- when a row leaves ---


@pytest.mark.parametrize(
    ("task", "options", "state"),
    [
        ({"do": "fail"}, {}, TaskState.FAILED),
        ({"do": "hold", "gate": None}, {"timeout": 0.05}, TaskState.TIMED_OUT),
        ({"do": "die"}, {}, TaskState.LOST),
    ],
    ids=["failed", "timed_out", "lost"],
)
def test_an_outcome_that_is_known_ends_a_row(durable, path, gate, task, options, state):
    """A bad one, too: its submitter was told."""
    backend = durable(ProcessPoolTaskBackend(handlers.do, max_workers=1, cancel_grace_seconds=0.1))
    backend.initialize_sync()

    handle = backend.submit_sync({**task, "gate": gate.path}, **options)

    handle.exception(PATIENCE)
    assert handle.state is state
    until(lambda: rows(path) == [])


def test_a_caller_who_cancels_ends_a_row_during_a_shutdown_too(durable, path, gate):
    """What the shutdown itself cancels stays."""
    backend = durable()
    backend.initialize_sync()
    backend.submit_sync({"do": "hold", "gate": gate.path}, id="runs")
    gate.wait_said()
    callers = backend.submit_sync({"do": "echo"}, id="callers")
    backend.submit_sync({"do": "echo"}, id="shutdowns")
    reports: list[Any] = []
    closer = threading.Thread(target=lambda: reports.append(backend.shutdown_sync(PATIENCE)))
    closer.start()
    until(lambda: not backend._initialized)

    assert callers.cancel()

    backend.hurry()
    closer.join()
    assert rows(path) == ["runs", "shutdowns"]


def test_a_row_stays_until_the_last_who_shares_its_task_has_let_go(durable, path, gate):
    """The first submitter's cancelling is its own; the second's task is still kept."""
    backend = durable()
    backend.initialize_sync()
    backend.submit_sync({"do": "hold", "gate": gate.path}, id="before")
    first = backend.submit_sync({"do": "echo", "value": 1}, id="shared")
    second = backend.submit_sync({"do": "echo", "value": 2}, id="shared")

    assert first.cancel()
    backend.submit_sync({"do": "echo"}, id="after")  # its commit has the removal of the first, if there was one

    assert rows(path) == ["before", "shared", "after"]
    assert second.cancel()
    gate.open()
    until(lambda: rows(path) == [])


# --- the next life ---


def left_behind(make: Make, gate: Gate, *tasks: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Leave these tasks in the journal, which never began."""
    backend = make()
    backend.initialize_sync()
    held = backend.submit_sync({"do": "hold", "gate": gate.path}, id="holder")
    gate.wait_said()
    for task, options in tasks:
        backend.submit_sync(task, **options)
    report = backend.shutdown_sync(0)
    assert len(report.unfinished) == len(tasks) + 1
    with closing(sqlite3.connect(backend._path, isolation_level=None)) as db:
        db.execute("DELETE FROM tasks WHERE id = ?", (b"holder",))
    assert held.cancelled()


def test_options_and_context_are_kept(durable, gate):
    """Priority, time limit, context; a time that is still to come is waited for, one that is past is not."""
    left_behind(
        durable,
        gate,
        ({"n": 1}, {"id": "later", "delay": 3600}),
        ({"n": 2}, {"id": "timed", "timeout": 77.0, "priority": 5, "context": {"trace": "t1"}}),
        ({"n": 3}, {"id": "unlimited", "timeout": None}),
    )
    seen: dict[str, Any] = {}

    def look(task: dict[str, Any]) -> None:
        seen[current_task().id] = current_task().deadline

    again = durable(ThreadPoolTaskBackend(look, max_workers=1, timeout=5, keep_ended=5))
    again.initialize_sync()
    until(lambda: len(seen) == 2)

    assert seen["unlimited"] is None
    assert seen["timed"] is not None
    timed = again.handle("timed")
    assert (timed.context, timed._run.priority, timed._run.timeout) == ({"trace": "t1"}, 5, 77.0)
    assert "its time" in again.explain(again.handle("later")) or again.handle("later").state is TaskState.QUEUED
    assert again.handle("later").cancel()


def test_a_submission_joins_a_task_that_an_earlier_life_left(durable, path, gate):
    """By its id, also before its turn has come; it runs once."""
    left_behind(durable, gate, *(({"n": number}, {"id": f"left-{number}"}) for number in range(3)))
    seen: list[int] = []
    entered = threading.Event()
    go = threading.Event()

    def look(task: dict[str, Any]) -> int:
        entered.set()
        assert go.wait(PATIENCE)
        seen.append(task["n"])
        return int(task["n"])

    again = durable(ThreadPoolTaskBackend(look, max_workers=1, max_queued=1))  # so that the last one is not fed yet
    again.initialize_sync()
    assert entered.wait(PATIENCE)
    results: list[Any] = []
    joiner = threading.Thread(target=lambda: results.append(again.submit_sync({"n": 99}, id="left-2").result(PATIENCE)))
    joiner.start()

    go.set()
    joiner.join()

    assert results == [2]
    until(lambda: not again.inflight_count)
    assert sorted(seen) == [0, 1, 2]


@pytest.mark.parametrize("when_full", ["wait", "reject"])
def test_initialize_does_not_wait_for_room_in_the_queue(durable, path, gate, when_full):
    """What does not fit follows as there is room; none is refused."""
    left_behind(durable, gate, *(({"do": "hold", "gate": gate.path}, {"id": f"left-{n}"}) for n in range(5)))
    again = durable(ThreadPoolTaskBackend(handlers.do, max_workers=1, max_queued=1, when_full=when_full))

    again.initialize_sync()

    gate.wait_said()
    assert again.inflight_count == 5 or again.stats().queued <= 1
    if when_full == "reject":
        until(lambda: again.stats().queued == 1)
        with pytest.raises(QueueFullError):
            again.submit_sync({"do": "echo"})
    gate.open()
    until(lambda: not again.inflight_count)
    until(lambda: rows(path) == [])
    assert again.stats().succeeded == 5


def test_what_cannot_be_submitted_again_stays(durable, path, gate, caplog):
    """A type that this version of the program lacks, say: logged, and back when a later one knows it."""
    left_behind(durable, gate, ({"type": "old"}, {"id": "old"}), ({"type": "new"}, {"id": "new"}))
    seen: list[str] = []
    tasks = TaskRouter()
    tasks.handler("new", lambda task: seen.append(task["type"]))
    first = durable(handler=tasks)
    first.initialize_sync()
    until(lambda: seen == ["new"])
    first.shutdown_sync()
    assert rows(path) == ["old"]
    assert any("old" in record.getMessage() and record.levelname == "ERROR" for record in caplog.records)

    tasks.handler("old", lambda task: seen.append(task["type"]))
    durable(handler=tasks).initialize_sync()

    until(lambda: seen == ["new", "old"])


# --- who is charged ---


def life(path: Path, body: str) -> subprocess.CompletedProcess[str]:
    """A program with a durable backend `backend`, whose handler does `task["do"]`, to its end."""
    code = f"""
import os, signal, sys, threading, time
from pathlib import Path
from taskback import *
from tests.durable_program import note

HOST = int(os.environ.setdefault("DURABLE_HOST", str(os.getpid())))

def handle(task):
    if task["what"] == "poison":
        os.kill(int(os.environ["DURABLE_HOST"]), signal.SIGKILL)
        time.sleep(20)
    note(task["folder"], "done", task["what"])

path = {os.fspath(path)!r}
folder = os.path.dirname(path)
{body}
"""
    environment = {key: value for key, value in os.environ.items() if key != "DURABLE_HOST"}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )


@pytest.mark.parametrize("inner", ["ThreadPoolTaskBackend", "ProcessPoolTaskBackend"])
def test_a_task_that_kills_its_program_is_quarantined(path, inner):
    """At once when its handler is called, in each life; who waited behind it is run, and is charged nothing."""
    submit = """
backend.submit_sync({"what": "poison", "folder": folder}, id="poison")
backend.submit_sync({"what": "innocent", "folder": folder}, id="innocent")
time.sleep(20)
"""
    start = f"""
backend = DurableTaskBackend({inner}(handle, max_workers=1), path, max_crashes=2)
backend.initialize_sync()
"""
    assert life(path, start + submit).returncode == -signal.SIGKILL
    if "innocent" not in rows(path):  # the kill came before it was submitted
        assert rows(path) == ["poison"]
    assert life(path, start + "time.sleep(20)").returncode == -signal.SIGKILL

    last = life(
        path,
        start
        + """
while backend.inflight_count: time.sleep(0.01)
print([(task.id, task.crashes, task.task["what"]) for task in backend.quarantined()])
print(backend.discard("innocent"), backend.discard("poison"), backend.quarantined())
backend.shutdown_sync()
""",
    )

    assert (last.returncode, last.stdout) == (0, "[('poison', 2, 'poison')]\nFalse True []\n"), last.stderr
    assert rows(path) == []


def test_a_quarantined_task_is_run_when_it_is_submitted_again(durable, path, gate):
    """With its id; its row takes the place of the old one."""
    left_behind(durable, gate, ({"do": "echo", "value": 7}, {"id": "mine"}))
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE tasks SET quarantined = 1, crashes = 3")
    backend = durable()
    backend.initialize_sync()
    (kept,) = backend.quarantined()
    assert not backend.inflight_count

    assert backend.submit_sync(kept.task, id=kept.id).result(PATIENCE) == 7

    assert backend.quarantined() == []
    until(lambda: rows(path) == [])


def test_a_task_that_a_shutdown_stopped_is_not_charged(durable, path, gate):
    """The journal was closed in order; nobody was running at its end."""
    backend = durable()
    backend.initialize_sync()
    backend.submit_sync({"do": "hold", "gate": gate.path}, id="runs")
    gate.wait_said()
    backend.shutdown_sync(0)

    again = durable(max_crashes=1)
    again.initialize_sync()

    gate.wait_said()
    assert again.quarantined() == []


# --- refused, and nothing left of it ---


def test_what_cannot_be_pickled_is_refused_by_path(durable, path):
    """On threads too, where the task could have run in this life."""
    backend = durable()
    backend.initialize_sync()

    with pytest.raises(TaskNotSerializableError) as caught:
        backend.submit_sync({"do": "echo", "value": {"lock": threading.Lock()}})

    assert caught.value.path == 'task["value"]["lock"]'
    assert backend.stats().accepted == 0
    assert rows(path) == []


def test_what_the_inner_backend_refuses_leaves_no_row(durable, path, gate):
    """A type without a handler, a full queue, an option, a closed backend."""
    tasks = TaskRouter()
    tasks.handler("hold", handlers.hold)
    backend = durable(ThreadPoolTaskBackend(tasks, max_workers=1, max_queued=1, when_full="reject"))
    backend.initialize_sync()
    for task_id in ("runs", "waits"):
        backend.submit_sync({"type": "hold", "gate": gate.path}, id=task_id)
        if task_id == "runs":
            gate.wait_said()

    with pytest.raises(UnknownTaskTypeError):
        backend.submit_sync({"type": "odd"})
    with pytest.raises(QueueFullError):
        backend.submit_sync({"type": "hold"})
    with pytest.raises(TypeError, match="unknown option"):
        backend.submit_sync({"type": "hold"}, colour="red")
    with pytest.raises(UnknownTaskTypeError):
        backend.submit_many_sync([{"type": "hold"}, {"type": "odd"}])

    until(lambda: rows(path) == ["runs", "waits"])
    gate.open()
    backend.shutdown_sync()
    with pytest.raises(BackendClosedError):
        backend.submit_sync({"type": "hold"})
    assert rows(path) == []


@in_loop
async def test_a_submission_that_is_cancelled_while_it_is_written_leaves_no_row(durable, path):
    """Its caller learned of no task."""
    backend = durable()
    await backend.initialize()
    journal = backend._journal
    assert journal is not None
    with journal._writing:  # the disk is busy
        submission = asyncio.create_task(backend.submit({"do": "echo"}))
        await asyncio.sleep(0)
        submission.cancel()
        with pytest.raises(asyncio.CancelledError):
            await submission

    until(lambda: not journal._unsettled)
    report = await backend.shutdown()
    assert (report.succeeded, backend.stats().accepted, rows(path)) == ([], 0, [])


@in_loop
async def test_what_comes_while_the_disk_is_busy_is_written_at_once(durable):
    """Group commit: fifty who wait are told by one transaction."""
    backend = durable()
    await backend.initialize()
    journal = backend._journal
    assert journal is not None
    commits: list[int] = []
    commit = journal._commit

    def counted(insertions: Any, removals: Any) -> None:
        commits.append(len(insertions))
        commit(insertions, removals)

    journal._commit = counted  # type: ignore[method-assign]  # counts, and does it
    with journal._writing:
        first = asyncio.create_task(backend.submit({"do": "echo"}))
        while not commits:
            await asyncio.sleep(0.001)
        rest = [asyncio.create_task(backend.submit({"do": "echo"})) for _ in range(50)]
        await asyncio.sleep(0)

    handles = await asyncio.gather(first, *rest)
    await asyncio.gather(*handles)

    assert [count for count in commits if count] == [1, 50]
