"""What a task has started, and is there when the task is stopped and takes the exception."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from taskback import ProcessPoolTaskBackend, TaskState, WorkerDied
from tests.faults import LIMIT
from tests.helpers import is_running, process_backends, until

Make = Callable[..., ProcessPoolTaskBackend]
SLEEP = (sys.executable, "-c", "import time; time.sleep(600)")
DAEMON = """
import os, subprocess, sys
os.setsid()
if not os.fork():
    open(sys.argv[1] + ".new", "w").write(str(os.getpid()))
    os.rename(sys.argv[1] + ".new", sys.argv[1])
    import time; time.sleep(600)
"""


def work(task: dict[str, Any]) -> int:
    """Start what it says, write down who that is, and wait; or return at once. The pid."""
    if "family" in task:
        path = Path(task["family"])
        daemon = path.with_suffix(".daemon")
        subprocess.run([sys.executable, "-c", DAEMON, str(daemon)], check=True)
        until(daemon.exists)
        started = [subprocess.Popen(SLEEP), subprocess.Popen(SLEEP, start_new_session=True)]
        pids = [os.getpid(), *(each.pid for each in started), int(daemon.read_text())]
        path.with_suffix(".new").write_text(" ".join(map(str, pids)))
        path.with_suffix(".new").rename(path)
    if task.get("waits"):
        time.sleep(600)
    return os.getpid()


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes backends with time enough for a handler to take the exception."""
    with process_backends(work, grace=20) as made:
        yield made


def family(path: Path) -> list[int]:
    """The worker, and what the task has started."""
    until(path.exists)
    return [int(pid) for pid in path.read_text().split()]


@pytest.mark.parametrize("how", ["cancel", "timeout"])
def test_nothing_of_a_stopped_task_is_left_when_its_handle_ends(make, tmp_path, how):
    """A child, one with a session of its own, a daemon; the worker, which took the exception, is replaced."""
    backend = make(max_workers=1)
    died: list[WorkerDied] = []
    backend.subscribe(lambda event: died.append(event) if isinstance(event, WorkerDied) else None)
    limit = {"timeout": 2.0} if how == "timeout" else {}
    task = backend.submit_sync({"family": str(tmp_path / "family"), "waits": True}, **limit)
    worker, *started = family(tmp_path / "family")
    assert all(map(is_running, started))

    if how == "cancel":
        assert task.cancel()
    until(lambda: backend.inflight_count == 0)

    assert task.state is (TaskState.CANCELLED if how == "cancel" else TaskState.TIMED_OUT)
    assert not any(map(is_running, started))
    assert backend.run_sync({}) != worker
    until(lambda: bool(died))
    assert (died[0].pid, died[0].exitcode) == (worker, 0)
    assert "what it had started was killed" in died[0].why


def test_a_stopped_task_that_has_started_nothing_costs_no_worker(make):
    """Neither does one that was told to stop before its handler was called."""
    backend = make(max_workers=1)
    pid = backend.run_sync({})
    task = backend.submit_sync({"waits": True})
    until(lambda: task.state is TaskState.RUNNING)

    task.cancel()

    assert backend.run_sync({}) == pid


def test_what_a_task_leaves_that_was_not_stopped_lives_as_long_as_its_worker(make, tmp_path):
    """A task that is stopped after it, and has started nothing itself, takes it along: nobody knows whose it is."""
    backend = make(max_workers=1)
    backend.run_sync({"family": str(tmp_path / "family")})
    worker, *started = family(tmp_path / "family")
    assert backend.run_sync({}) == worker
    assert all(map(is_running, started))
    task = backend.submit_sync({"waits": True})
    until(lambda: task.state is TaskState.RUNNING)

    task.cancel()
    until(lambda: backend.inflight_count == 0)

    assert not any(map(is_running, started))
    assert backend.run_sync({}, wait=LIMIT) != worker
