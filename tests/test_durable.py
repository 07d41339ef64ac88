"""`DurableTaskBackend`: what was accepted is done, in this life of the program or a later one."""

from __future__ import annotations

import asyncio
import itertools
import os
import pickle
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from taskback import (
    BackendClosedError,
    BackendState,
    DurableTaskBackend,
    JournalError,
    JournalHeldError,
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
from taskback.backends._marking import Marks, make_table
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


def test_a_submission_that_finds_the_first_on_its_way_in_joins_it(durable, gate, monkeypatch):
    """Race: the first is accepted after it was looked for among the runs in flight, and before anything else."""
    backend = durable(handler=handlers.do)
    backend.initialize_sync()
    journal = backend._journal
    assert journal is not None
    looked = threading.Event()
    join = backend._join

    def late(record: Any) -> Any:
        found = join(record)
        if not looked.is_set():
            assert found is None
            looked.set()
            record.entered.result(PATIENCE)
        return found

    monkeypatch.setattr(backend, "_join", late)
    handles: list[Any] = []

    def submit(value: str) -> None:
        task = {"do": "hold", "gate": gate.path, "value": value}
        handles.append(backend.submit_sync(task, id="shared"))

    threads = [threading.Thread(target=submit, args=(value,)) for value in ("first", "second")]
    journal._writing.acquire()  # so that the first one is on its way in
    threads[0].start()
    until(lambda: "shared" in backend._records)
    threads[1].start()
    assert looked.wait(PATIENCE)
    journal._writing.release()
    for thread in threads:
        thread.join(PATIENCE)
    gate.open()

    assert [handle.result(PATIENCE) for handle in handles] == ["first", "first"]
    assert (backend.stats().accepted, backend.stats().joined) == (1, 1)


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


# --- one at a time ---


def test_a_second_backend_on_one_path_is_told_who_has_it(durable, path):
    """In another process, and in this one; it changes nothing, and may try again when the first one has ended."""
    durable().initialize_sync()
    second = durable()
    body = """
try:
    DurableTaskBackend(SyncTaskBackend(handle), path).initialize_sync()
except JournalHeldError as error:
    print(error.path == path, error.pid, error)
"""

    with pytest.raises(JournalHeldError) as caught:
        second.initialize_sync()
    other = life(path, body)

    assert caught.value.pid == os.getpid()
    held, pid, *words = other.stdout.split()
    assert (held, pid) == ("True", str(os.getpid())), other.stderr
    assert os.fspath(path) in " ".join(words)
    assert str(os.getpid()) in " ".join(words)
    assert life(path, body).stdout == other.stdout, "who was refused has let go of the first one's lock"


def test_a_killed_program_leaves_no_lock_though_a_fork_of_it_lives_on(path):
    """The lock is not inherited; the journal can be opened at once."""
    killed = life(
        path,
        """
backend = DurableTaskBackend(ThreadPoolTaskBackend(handle), path)
backend.initialize_sync()
child = os.fork()
if child == 0:
    time.sleep(40)
    os._exit(0)
print(child, flush=True)
os.kill(HOST, signal.SIGKILL)
""".replace("time.sleep(40)", "os.close(1); os.close(2); time.sleep(40)"),
    )
    child = int(killed.stdout)
    try:
        os.kill(child, 0)  # it is there
        again = life(path, "with DurableTaskBackend(SyncTaskBackend(handle), path): print('open')")
    finally:
        os.kill(child, signal.SIGKILL)

    assert (again.returncode, again.stdout) == (0, "open\n"), again.stderr


def test_a_forks_copy_starts_afresh_and_does_not_touch_the_parents_journal(path):
    """It is told that the parent has it; the parent goes on; what the child's end clears up is not the parent's."""
    done = life(
        path,
        """
import warnings
warnings.simplefilter("ignore")
started, go = threading.Event(), threading.Event()
def handle(task):
    started.set()
    go.wait(20)
    return task["n"]
backend = DurableTaskBackend(ThreadPoolTaskBackend(handle), path)
backend.initialize_sync()
held = backend.submit_sync({"n": 1}, id="parents")
started.wait(20)
child = os.fork()
if child == 0:
    assert backend.inflight_count == 0
    try:
        backend.submit_sync({"n": 2})
    except JournalHeldError as error:
        assert error.pid == os.getppid(), error
        print("refused", flush=True)
    sys.exit(0)  # with all that an interpreter's end clears up
assert os.waitpid(child, 0)[1] == 0
other = backend.submit_sync({"n": 3}, id="later")
import sqlite3
print(*(each[0].decode() for each in sqlite3.connect(path).execute("SELECT id FROM tasks ORDER BY seq")))
try:
    DurableTaskBackend(SyncTaskBackend(handle), path).initialize_sync()
except JournalHeldError:
    print("still held")
go.set()
print(held.result(20), other.result(20))
backend.shutdown_sync()
""",
    )

    assert (done.returncode, done.stdout) == (0, "refused\nparents later\nstill held\n1 3\n"), done.stderr
    assert rows(path) == []


def test_a_forks_copy_of_its_own_path_works(path):
    """A child whose parent has not initialized yet is a program like any other."""
    done = life(
        path,
        """
backend = DurableTaskBackend(ThreadPoolTaskBackend(lambda task: task["n"]), path)
child = os.fork()
if child == 0:
    with backend: print(backend.run_sync({"n": 2}), flush=True)
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
with backend: print(backend.run_sync({"n": 3}))
""",
    )

    assert (done.returncode, done.stdout) == (0, "2\n3\n"), done.stderr


# --- files that are no journal, and disks that are none ---


def contents(path: Path) -> dict[str, bytes]:
    """Of the file, and of those beside it but for the lock's."""
    return {each.name: each.read_bytes() for each in path.parent.glob("tasks.db*") if not each.name.endswith("-lock")}


def make_foreign(path: Path) -> None:
    """A SQLite file of somebody else's."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("CREATE TABLE tasks (anything)")


def make_later(path: Path) -> None:
    """One that a later version has written."""
    make_journal(path)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = DELETE")
        db.execute("PRAGMA user_version = 99")


def make_journal(path: Path) -> None:
    """A good one, with tasks in it."""
    backend = DurableTaskBackend(ThreadPoolTaskBackend(lambda task: None), path)
    backend.initialize_sync()
    backend.shutdown_sync()
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.executemany(
            "INSERT INTO tasks (id, task, submitted_at) VALUES (?, ?, 0)",
            [(b"%d" % number, b"x" * 3000) for number in range(200)],
        )
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def make_garbage(path: Path) -> None:
    """No database at all."""
    path.write_bytes(b"this is no database" * 500)


def make_torn(path: Path) -> None:
    """One that was written over in the middle."""
    make_journal(path)
    with path.open("r+b") as file:
        for page in range(3, 60):  # trees and leaves; the header is whole
            file.seek(page * 4096)
            file.write(b"\xa5" * 1000)


def make_short(path: Path) -> None:
    """One that lacks its second half."""
    make_journal(path)
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (make_garbage, "damaged, or no journal"),
        (make_torn, "damaged"),
        (make_short, "damaged"),
        (make_foreign, "another program"),
        (make_later, "later version"),
    ],
)
def test_a_file_that_is_no_journal_is_told_and_left_as_it_is(durable, path, make, why):
    """By initialize, and by a submit that would initialize; nothing is thrown away, and nothing is left."""
    make(path)
    before = contents(path)
    backend = durable()

    with pytest.raises(JournalError, match=why) as caught:
        backend.initialize_sync()
    with pytest.raises(JournalError, match=why):
        backend.submit_sync({"do": "echo"})

    assert caught.value.path == os.fspath(path)
    assert contents(path) == before
    assert backend.inflight_count == 0


def test_a_folder_that_is_not_there_or_cannot_be_written_to_is_told(durable, tmp_path):
    """With the system's own reason."""
    with pytest.raises(JournalError, match="No such file"):
        durable(at=tmp_path / "no" / "tasks.db").initialize_sync()
    if os.path.isdir("/proc/self"):
        with pytest.raises(JournalError):
            durable(at="/proc/self/tasks.db").initialize_sync()


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="to become somebody else takes root")
def test_a_journal_that_is_for_reading_alone_is_told(tmp_path):
    """By whoever is not root, whom nothing is refused."""
    os.chmod(tmp_path, 0o755)
    for parent in tmp_path.parents[:3]:
        parent.chmod(parent.stat().st_mode | 0o755)
    path = tmp_path / "tasks.db"
    make_journal(path)
    before = contents(path)
    body = """
os.setuid(65534)
try:
    DurableTaskBackend(SyncTaskBackend(handle), path).initialize_sync()
except JournalError as error:
    print("Permission denied" in str(error))
"""
    assert life(path, body).stdout == "True\n"
    assert contents(path) == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 6 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "none", folder], check=False).returncode:
        pytest.skip("a small disk cannot be made here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def test_a_full_disk_refuses_tasks_and_loses_none(durable, small_disk, gate):
    """Submit says so and has submitted nothing; what was accepted is run; with room again all goes on."""
    path = small_disk / "tasks.db"
    backend = durable(at=path)
    backend.initialize_sync()
    held = backend.submit_sync({"do": "hold", "gate": gate.path}, id="held")
    gate.wait_said()
    accepted = [held]

    def fill_up() -> None:
        while len(accepted) < 100:
            accepted.append(backend.submit_sync({"do": "echo", "filler": os.urandom(200_000)}))

    with pytest.raises(JournalError, match="full") as caught:
        fill_up()

    assert caught.value.path == os.fspath(path)
    assert backend.stats().accepted == len(accepted) > 3
    assert len(rows(path)) == len(accepted)
    with pytest.raises(JournalError, match="full"):
        asyncio.run(backend.submit({"do": "echo", "filler": os.urandom(200_000)}))
    gate.open()
    for handle in accepted:
        handle.result(PATIENCE)
    subprocess.run(["mount", "-o", "remount,size=30m", small_disk], check=True)
    assert backend.submit_sync({"do": "echo", "value": 5}).result(PATIENCE) == 5
    report = backend.shutdown_sync()
    assert report.stuck == []
    assert rows(path) == []


def test_a_large_task_that_does_not_fit_costs_those_beside_it_nothing(durable, small_disk):
    """They wait for the same transaction, and are written without it."""
    backend = durable(at=small_disk / "tasks.db")
    backend.initialize_sync()

    async def main() -> list[Any]:
        journal = backend._journal
        assert journal is not None
        with journal._writing:
            small = asyncio.create_task(backend.run({"do": "echo", "value": 1}))
            large = asyncio.create_task(backend.run({"do": "echo", "filler": os.urandom(8_000_000)}))
            other = asyncio.create_task(backend.run({"do": "echo", "value": 2}))
            await asyncio.sleep(0)
        return list(await asyncio.gather(small, large, other, return_exceptions=True))

    first, error, last = asyncio.run(main())

    assert (first, last) == (1, 2)
    assert isinstance(error, JournalError)


def test_an_error_of_any_kind_is_told_and_ends_no_journal(durable, path, monkeypatch):
    """Memory that has run out, say: who waits is told, and the next one is written."""
    backend = durable()
    backend.initialize_sync()
    journal = backend._journal
    assert journal is not None
    commit = journal._commit

    def fail(insertions: Any, removals: Any) -> None:
        if insertions:
            raise MemoryError
        commit(insertions, removals)

    with monkeypatch.context() as patched:
        patched.setattr(journal, "_commit", fail)
        with pytest.raises(JournalError, match="MemoryError"):
            backend.submit_sync({"do": "echo"})

    assert backend.run_sync({"do": "echo", "value": 2}) == 2
    until(lambda: rows(path) == [])


def test_a_limit_of_the_size_of_files_is_told_like_a_full_disk(path):
    """Where the program's own limit ends the journal, tasks are refused, and those before it are safe."""
    body = """
import resource
backend = DurableTaskBackend(ThreadPoolTaskBackend(lambda task: started.set() or go.wait(20)), path)
started, go = threading.Event(), threading.Event()
backend.initialize_sync()
resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, resource.RLIM_INFINITY))
accepted = 0
try:
    while accepted < 200:
        backend.submit_sync({"what": os.urandom(100_000)})
        accepted += 1
except JournalError as error:
    print("refused", accepted == backend.stats().accepted > 3)
os.kill(HOST, signal.SIGKILL)
"""

    assert life(path, body).stdout == "refused True\n"

    again = life(
        path,
        """
done = []
with DurableTaskBackend(ThreadPoolTaskBackend(done.append), path) as backend:
    while backend.inflight_count: time.sleep(0.01)
print(len(done) > 3)
""",
    )
    assert (again.returncode, again.stdout) == (0, "True\n"), again.stderr
    assert rows(path) == []


def test_a_shutdown_is_bounded_though_the_disk_does_not_answer(durable, path, gate):
    """Another connection has the file locked for writing; the report tells which thread waits, and no task is lost."""
    backend = durable()
    backend.initialize_sync()
    held = backend.submit_sync({"do": "hold", "gate": gate.path}, id="held")
    gate.wait_said()
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("BEGIN IMMEDIATE")
        gate.open()
        held.result(PATIENCE)

        report = backend.shutdown_sync(0)  # SQLite itself would wait for five seconds, and then be done

        assert report.stuck == ["DurableTaskBackend-journal"]
        db.execute("ROLLBACK")
    until(lambda: not any(thread.name == report.stuck[0] for thread in threading.enumerate()))
    assert rows(path) == []
    durable().initialize_sync()


# --- a host's own backend ---


class HostsInline(TaskBackend):
    """Defines three methods, and knows of no ids."""

    async def initialize(self) -> None:
        self._initialized = True

    async def submit(self, task: dict[str, Any]) -> None:  # type: ignore[override]  # as hosts wrote it
        await self._run(task)

    async def shutdown(self) -> None:
        self._initialized = False


class HostsTracking(HostsInline):
    """Gives its asyncio tasks, or nothing."""

    def __init__(self, gives: bool) -> None:
        self.gives = gives
        self.tasks: list[asyncio.Task[None]] = []

    async def submit(self, task: dict[str, Any]) -> Any:  # type: ignore[override]  # as hosts wrote it
        self.tasks.append(asyncio.create_task(self._run(task)))
        return self.tasks[-1] if self.gives else None

    async def shutdown(self) -> None:
        for each in self.tasks:
            each.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@in_loop
async def test_a_hosts_own_backend_is_made_durable_too(durable, path):
    """What its handler gets is the task, and its row leaves with the end of that."""
    seen: list[Any] = []
    host = HostsInline()
    host.set_handler(lambda task: seen.append((task, rows(path))))
    backend = durable(host)

    async with backend:
        await backend.submit({"n": 1}, id="mine")
        await backend.run({"n": 2})

    assert seen[0] == ({"n": 1}, ["mine"])
    assert seen[1][0] == {"n": 2}
    assert rows(path) == []


def test_a_hosts_own_backend_is_made_durable_for_callers_without_a_loop(durable, path):
    """Their coroutines run in one loop, as without it."""
    seen: list[int] = []
    host = HostsTracking(gives=False)
    host.set_handler(lambda task: seen.append(task["n"]))

    with durable(host) as backend:
        backend.submit_sync({"n": 1})
        backend.submit_many_sync([{"n": 2}, {"n": 3}])
        until(lambda: seen == [1, 2, 3])
        until(lambda: rows(path) == [])


@pytest.mark.parametrize("gives", [True, False])
@in_loop
async def test_what_a_hosts_own_backend_did_not_finish_is_submitted_again(durable, path, gives):
    """Its shutdown cancels what runs; that is for the next life."""
    began = asyncio.Event()

    async def hang(task: dict[str, Any]) -> None:
        began.set()
        await asyncio.sleep(3600)

    first = HostsTracking(gives)
    first.set_handler(hang)
    backend = durable(first)
    await backend.initialize()
    await backend.submit({"n": 5}, id="mine")
    await began.wait()
    await backend.shutdown()
    assert rows(path) == ["mine"]
    seen = asyncio.Queue[int]()
    second = HostsTracking(gives)
    second.set_handler(lambda task: seen.put_nowait(task["n"]))

    async with durable(second):
        assert await asyncio.wait_for(seen.get(), PATIENCE) == 5
        while rows(path):
            await asyncio.sleep(0.005)


# --- what is wrong from the start ---


def test_arguments_that_make_no_sense_are_refused(path):
    """When it is made."""
    inner = ThreadPoolTaskBackend(handlers.do)
    for arguments, options, error in (
        (("thread", path), {}, TypeError),
        ((DurableTaskBackend(inner, path), path), {}, TypeError),
        ((inner, 5), {}, TypeError),
        ((inner, ""), {}, ValueError),
        ((inner, path), {"fsync": 1}, TypeError),
        ((inner, path), {"max_crashes": 0}, ValueError),
    ):
        with pytest.raises(error):
            DurableTaskBackend(*arguments, **options)


def test_questions_to_a_journal_that_is_not_open_are_refused(durable):
    """Before initialize, and after shutdown."""
    backend = durable()
    with pytest.raises(BackendClosedError):
        backend.quarantined()
    backend.initialize_sync()
    backend.shutdown_sync()
    with pytest.raises(BackendClosedError):
        backend.discard("any")


# --- marks ---


def test_marks_tell_who_was_running(tmp_path):
    """From the call of the handler to its end, in whatever process; of this life alone."""
    path = os.fspath(tmp_path / "running")
    make_table(path)
    marks = Marks(path, b"life")
    end = marks.begin("one")
    pickle.loads(pickle.dumps(marks)).begin("elsewhere")
    marks.begin("two")()

    after = Marks(path, b"life")
    after.open()

    assert [after.is_marked(each) for each in ("one", "elsewhere", "two", "three")] == [True, True, False, False]
    another = Marks(path, b"another life")
    another.open()
    assert not another.is_marked("one")
    end()
    assert not after.is_marked("one")


def test_two_with_one_place_cost_the_first_its_mark_and_charge_nobody_in_error(tmp_path):
    """The place is the second one's until it ends."""
    path = os.fspath(tmp_path / "running")
    make_table(path)
    marks = Marks(path, b"life")
    places: dict[int, str] = {}
    for number in itertools.count():
        place = marks._mark(str(number))[1]
        if place in places:
            break
        places[place] = str(number)
    first, second = places[place], str(number)

    marks.begin(first)
    end = marks.begin(second)

    assert (marks.is_marked(first), marks.is_marked(second)) == (False, True)
    end()
    assert (marks.is_marked(first), marks.is_marked(second)) == (False, False)


def test_marks_that_cannot_be_opened_cost_no_task(tmp_path):
    """A worker that has no descriptor left runs its task all the same."""
    marks = Marks(os.fspath(tmp_path / "none"), b"life")

    marks.begin("one")()


def test_a_handler_that_closes_all_descriptors_marks_on(durable, path):
    """The table is mapped; no descriptor of somebody else is written to."""
    backend = durable(ProcessPoolTaskBackend(close_all_and_open, max_workers=1))
    backend.initialize_sync()

    file = path.parent / "theirs"
    size = backend.run_sync({"file": os.fspath(file)}, timeout=PATIENCE)

    assert size == file.stat().st_size == 0


def close_all_and_open(task: dict[str, Any]) -> int:
    """Have its number, and all after it, be a file of its own."""
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "-running" in line}
    assert len(mapped) == 1
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            if "-running" in os.readlink(f"/proc/self/fd/{name}"):
                os.close(int(name))
    file = os.open(task["file"], os.O_WRONLY | os.O_CREAT)
    return os.fstat(file).st_size


# --- the end of the program ---


@pytest.mark.parametrize("inner", ["ThreadPoolTaskBackend", "ProcessPoolTaskBackend"])
def test_a_program_that_forgets_shutdown_keeps_its_tasks_and_charges_nobody(path, inner):
    """It ends in order, so the next life finds what was running and what waited."""
    ended = life(
        path,
        f"""
started = folder + "/started"
def handle(task):
    note(folder, "started", "it has")
    time.sleep(40)
backend = DurableTaskBackend({inner}(handle, max_workers=1, exit_grace_seconds=1), path)
backend.initialize_sync()
backend.submit_sync({{}}, id="runs")
backend.submit_sync({{}}, id="waits")
while not os.path.exists(started): time.sleep(0.01)
""",
    )

    assert ended.returncode == 0, ended.stderr
    assert rows(path) == ["runs", "waits"]
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("SELECT key FROM life").fetchone() == (None,)


def test_a_shutdown_that_nobody_awaits_any_more_closes_the_journal(durable, path, gate):
    """It goes on behind the coroutine that was cancelled, and the journal ends with it."""
    backend = durable()

    async def main() -> None:
        await backend.initialize()
        await backend.submit({"do": "hold", "gate": gate.path}, id="runs")
        closing = asyncio.create_task(backend.shutdown(PATIENCE))
        while backend._initialized:
            await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing

    asyncio.run(main())
    gate.open()

    until(lambda: backend._state is BackendState.STOPPED)
    assert rows(path) == []
    backend.initialize_sync()
    assert backend.run_sync({"do": "echo", "value": 3}) == 3
