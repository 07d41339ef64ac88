"""The end of a process backend: by a shutdown that meets what will not stop, by forgetting it, by SIGKILL."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from taskback import ProcessPoolTaskBackend, TaskState
from tests import handlers
from tests.gates import Gate
from tests.helpers import ROOT, is_running

PROGRAM = """\
import os, sys
from taskback import ProcessPoolTaskBackend

def endless(task):
    os.write(1, b"%d\\n" % os.getpid())  # at once: print may write the end of the line by itself
    while True:
        pass

if __name__ == "__main__":
    backend = ProcessPoolTaskBackend(endless, max_workers=2, exit_grace_seconds=0.5)
    backend.initialize_sync()
    handles = [backend.submit_sync({"n": n}) for n in range(50)]
    sys.stdin.readline()
"""


def start(folder: Path) -> tuple[subprocess.Popen[str], list[int]]:
    """A program with two busy workers, and their pids."""
    (folder / "program.py").write_text(PROGRAM, encoding="utf-8")
    program = subprocess.Popen(
        [sys.executable, "program.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    return program, [int(program.stdout.readline()) for _ in range(2)]


def all_gone(pids: list[int], within: float) -> bool:
    """Whether they end in time; there is no event for the end of another's child."""
    deadline = time.monotonic() + within
    while any(map(is_running, pids)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def test_a_program_that_forgets_shutdown_exits_and_leaves_no_worker(tmp_path):
    """Queued work is cancelled, busy workers are killed, and nothing is said about it but by our own log."""
    program, workers = start(tmp_path)

    _, errors = program.communicate("go on\n", timeout=20)

    assert program.returncode == 0
    assert "Traceback" not in errors
    assert all_gone(workers, 5)


def test_no_busy_worker_outlives_a_killed_parent(tmp_path):
    """However the parent goes, its workers go with it."""
    program, workers = start(tmp_path)

    program.send_signal(signal.SIGKILL)
    program.communicate(timeout=20)

    assert all_gone(workers, 10)


def test_shutdown_names_all_that_two_endless_tasks_held_up(tmp_path):
    """Two handlers that never end and a thousand queued tasks: back within timeout + grace + 1 s, each named."""
    gate = Gate(tmp_path)
    backend = ProcessPoolTaskBackend(handlers.do, max_workers=2, cancel_grace_seconds=0.5)
    backend.initialize_sync()
    held = [backend.submit_sync({"do": "hold_in_c", "gate": gate.path}) for _ in range(2)]
    queued = [backend.submit_sync({"do": "echo", "value": n}) for n in range(1000)]
    gate.wait_said(2)
    while any(handle.state is TaskState.QUEUED for handle in held):  # what the workers said is on its way here
        time.sleep(0.001)
    workers = [worker.pid for worker in backend.stats().workers]

    report = backend.shutdown_sync(timeout=1)
    gate.close()

    assert report.seconds <= 1 + 0.5 + 1
    assert sorted(report.killed, key=lambda handle: handle.id) == held
    assert report.never_started == queued
    assert len(report.unfinished) == 1002
    assert not report.dying
    assert not report.stuck
    assert all_gone(workers, 5)
