"""The kernel kills a worker and its group when the other end of its lifeline closes."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest

from taskback.pools.child import boot, lifeline
from taskback.pools.guardian_client import GuardianClient
from tests.faults import await_gone
from tests.helpers import until
from tests.running import PRELUDE, programs


def start(*, busy: str, parent_lives: bool = True) -> tuple[int, int, int]:
    """A child that arms a lifeline, tells its own child's number, and does something; the pids and our end."""
    reading, writing = os.pipe()
    told, tell = os.pipe()
    if not parent_lives:
        os.close(writing)
    pid = os.fork()
    if pid == 0:
        try:
            if parent_lives:
                os.close(writing)
            os.setsid()
            armed = lifeline.arm(reading)
            child = subprocess.Popen(["sleep", "600"]).pid if armed else 0
            os.write(tell, f"{child}\n".encode())
            if busy == "gil":
                ctypes.PyDLL(None).sleep(600)
            while armed:
                time.sleep(600)
        finally:
            os._exit(3)
    os.close(reading)
    os.close(tell)
    with open(told) as file:
        child = int(file.readline())
    return pid, child, writing


@pytest.mark.parametrize("busy", ["sleep", "gil", "stopped"])
def test_worker_and_group_die_with_the_other_end(busy):
    """Whatever the worker does: hold the interpreter lock, or nothing at all."""
    pid, child, writing = start(busy=busy)
    watch = os.pidfd_open(pid)
    if busy == "stopped":
        os.kill(pid, signal.SIGSTOP)
    assert not select.select([watch], [], [], 0)[0]

    os.close(writing)

    assert select.select([watch], [], [], 5)[0], "the worker lives"
    os.close(watch)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    await_gone(child)


def test_a_line_that_is_cut_already_is_seen_when_it_is_armed():
    """Nothing fires any more; the worker is told instead, and ends."""
    pid, child, _ = start(busy="sleep", parent_lives=False)

    _, status = os.waitpid(pid, 0)

    assert child == 0
    assert os.waitstatus_to_exitcode(status) == 3


def test_a_guardian_that_only_begins_dies_with_its_parent():
    """It is bound before it has run a line of its own."""
    told, tell = os.pipe()
    parent = os.fork()
    if parent == 0:
        try:
            guard = GuardianClient()._living()
            os.kill(guard.pid, signal.SIGSTOP)  # so it comes no further
            os.write(tell, f"{guard.pid}\n".encode())
            time.sleep(600)
        finally:
            os._exit(3)
    os.close(tell)
    with open(told) as file:
        guardian = int(file.readline())

    os.kill(parent, signal.SIGKILL)

    os.waitpid(parent, 0)
    try:
        await_gone(guardian)
    finally:
        with suppress(ProcessLookupError):
            os.kill(guardian, signal.SIGKILL)


def test_a_guardian_whose_parent_is_gone_before_it_said_anything_ends_in_silence():
    """Nobody is to read a traceback of it."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    near.close()
    with far:
        begun = subprocess.run(
            [sys.executable, "-c", boot.BOOT, str(far.fileno())],
            pass_fds=(far.fileno(),),
            capture_output=True,
            timeout=30,
            check=False,
        )

    assert (begun.returncode, begun.stdout, begun.stderr) == (0, b"", b"")


def test_a_guardian_that_is_stopped_when_its_parent_dies_ends_all_the_same(tmp_path):
    """It is made to go on, and then sees that its parent is gone: what has left its worker's group is ended, too."""
    with programs(tmp_path) as start_program:
        program = start_program(
            PRELUDE
            + """
import subprocess
def leave(task):
    child = subprocess.Popen(["sleep", "600"], start_new_session=True)
    tell(f"{child.pid} {os.getpid()} {os.getppid()}")
    time.sleep(600)
backend = taskback.ProcessPoolTaskBackend(leave, max_workers=1)
backend.submit_sync({})
time.sleep(600)
"""
        )
        *others, guardian = map(int, program.line().split())
        os.kill(guardian, signal.SIGSTOP)
        until(lambda: psutil.Process(guardian).status() == psutil.STATUS_STOPPED)

        program.process.kill()

        await_gone(*others, guardian)
