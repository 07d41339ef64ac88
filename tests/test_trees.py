"""kill_tree ends a child and all below it, whatever state they are in, and nobody else."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator

import psutil
import pytest

from taskback.pools import trees
from taskback.pools.child.limits import resident_bytes
from tests.helpers import is_running, session_leaders

pytestmark = pytest.mark.skipif(not hasattr(os, "setsid"), reason="the system has no sessions")

FORKS = """
import os, sys, time
def say(): os.write(1, f"{os.getpid()}\\n".encode())
if os.fork() == 0:
    if SETSID: os.setsid()
    if os.fork() == 0: say()
    else: say()
else: say()
time.sleep(600)
"""


Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts children that lead a session of their own, which is gone after the test."""
    with session_leaders() as start:
        yield start


def pids_of(child: subprocess.Popen[str], count: int) -> list[int]:
    """What the processes say of themselves."""
    assert child.stdout is not None
    return [int(child.stdout.readline()) for _ in range(count)]


def gone(pid: int) -> bool:
    """Whether it has ended, once it had the time to."""
    try:
        psutil.wait_procs([psutil.Process(pid)], timeout=0.5)
    except psutil.NoSuchProcess:
        return True
    return not is_running(pid)


@pytest.mark.parametrize("setsid", [False, True])
def test_what_a_child_has_forked_goes_with_it(start, setsid):
    """Grandchildren too, and those with a session of their own."""
    child = start(FORKS.replace("SETSID", str(setsid)))
    pids = pids_of(child, 3)

    trees.kill_tree(child.pid, lambda: child.poll() is None)

    assert child.wait(5) == -signal.SIGKILL
    assert all(gone(pid) for pid in pids)


def test_a_stopped_child_is_killed(start):
    """SIGSTOP does not save it."""
    child = start(FORKS.replace("SETSID", "False"))
    pids = pids_of(child, 3)
    os.kill(child.pid, signal.SIGSTOP)

    trees.kill_tree(child.pid, lambda: child.poll() is None)

    assert child.wait(5) == -signal.SIGKILL
    assert all(gone(pid) for pid in pids)


def test_a_number_that_was_given_away_is_left_alone(start):
    """Where the child was waited for and a process has its number, that one is a stranger, with all that it leads."""
    stranger = start(FORKS.replace("SETSID", "False"))
    pids = pids_of(stranger, 3)

    trees.kill_tree(stranger.pid, lambda: False)

    assert stranger.poll() is None
    assert all(is_running(pid) for pid in pids)
    assert psutil.Process(stranger.pid).status() != psutil.STATUS_STOPPED


def test_what_an_ended_child_left_in_its_group_is_killed(start):
    """While one of them is there, the number is not given away."""
    child = start(FORKS.replace("SETSID", "False").replace("else: say()\ntime", "else: say(); sys.exit()\ntime"))
    pids = pids_of(child, 3)
    assert child.wait(5) == 0
    left = [pid for pid in pids if pid != child.pid]

    trees.kill_tree(child.pid, lambda: child.poll() is None)

    assert all(gone(pid) for pid in left)


def test_a_child_that_leads_no_group_is_killed_alone(start):
    """Its group is that of its parent, which lives on."""
    parent = start(FORKS.replace("SETSID", "False"))
    pids = pids_of(parent, 3)
    followers = [pid for pid in pids if psutil.Process(pid).ppid() == parent.pid]

    trees.kill_tree(followers[0], lambda: True)

    assert gone(followers[0])
    assert parent.poll() is None


def test_a_stranger_lives_on(start):
    """Another child of ours, in a session of its own."""
    stranger, child = (start("import time; print(1, flush=True); time.sleep(600)") for _ in range(2))
    pids_of(stranger, 1)
    pids_of(child, 1)

    trees.kill_tree(child.pid, lambda: child.poll() is None)

    assert child.wait(5) == -signal.SIGKILL
    assert stranger.poll() is None
    assert trees.alive([stranger.pid, child.pid]) == [stranger.pid]
    assert resident_bytes(child.pid) is None
