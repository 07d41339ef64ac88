"""The finder of leftovers finds them, and a run leaves none."""

from __future__ import annotations

import _thread
import multiprocessing
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from tests import leftovers
from tests.helpers import is_running, run_python

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def before() -> leftovers.Seen:
    """What there was when the test began."""
    return leftovers.look()


@pytest.fixture
def release() -> Iterator[threading.Event]:
    """An event that a thread may wait for; it is set when the test is over."""
    event = threading.Event()
    yield event
    event.set()


def test_nothing_is_found_where_nothing_was_left(before):
    """A thread, a child and a descriptor that were seen to their end are not found."""
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()
    subprocess.run([sys.executable, "-c", ""], stdin=subprocess.DEVNULL, check=True)
    os.close(os.open(os.devnull, os.O_RDONLY))

    assert not leftovers.left_since(before)


def test_a_thread_is_found_by_name_and_place(before, release):
    """A thread that still runs is named, with the line that it is at."""
    threading.Thread(target=release.wait, name="forgotten").start()

    left = leftovers.left_since(before, grace=0)

    assert [thread.name for thread in left.threads] == ["forgotten"]
    assert re.fullmatch(r"thread 'forgotten', at .*threading\.py:\d+ in .*wait", left.lines()[0])


def test_a_thread_that_threading_does_not_know_is_found(before, release):
    """A thread started below `threading` has no name, but it is found."""
    started = threading.Event()

    def run() -> None:
        started.set()
        release.wait()

    ident = _thread.start_new_thread(run, ())
    assert started.wait(5), "the thread never began"

    left = leftovers.left_since(before, grace=0)

    assert left.bare_threads == {ident}
    assert re.fullmatch(rf"thread without a name, ident {ident}, at .* in .*", left.lines()[0])


def test_a_thread_on_its_way_out_is_waited_for(before):
    """What ends by itself within the grace is not left."""
    timer = threading.Timer(0.05, int)
    timer.start()

    assert not leftovers.left_since(before)


def test_what_awaits_collection_is_not_left(before):
    """A cycle that holds a descriptor is collected before anything is compared."""

    class Holder:
        def __init__(self) -> None:
            self.itself = self
            self.descriptor = os.open(os.devnull, os.O_RDONLY)

        def __del__(self) -> None:
            os.close(self.descriptor)

    Holder()

    assert not leftovers.left_since(before, grace=0)


def test_a_child_is_found_and_killed(before):
    """A child that still runs is named by its command, and kill() ends it."""
    child = subprocess.Popen(SLEEPER, stdin=subprocess.DEVNULL)

    left = leftovers.left_since(before, grace=0)
    lines = left.lines()
    leftovers.kill(left.processes)

    assert [process.pid for process in left.processes] == [child.pid]
    assert "time.sleep(600)" in lines[0]
    assert child.wait(5) is not None


def test_a_daemon_that_left_its_parent_and_session_is_found(before):
    """A process whose parent has ended is found by the mark in its environment."""
    script = f"""if True:
        import os, subprocess
        quiet = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        print(subprocess.Popen({SLEEPER}, start_new_session=True, **quiet).pid, flush=True)
        os._exit(0)"""
    orphan = int(run_python("-c", script).stdout)

    left = leftovers.left_since(before, grace=0)
    leftovers.kill(left.processes)

    assert [process.pid for process in left.processes] == [orphan]
    assert not is_running(orphan)


def test_a_child_that_nobody_waited_for_is_found(before):
    """A child that has ended still takes a place in the process table until it is waited for."""
    pid = os.posix_spawn(sys.executable, [sys.executable, "-c", ""], os.environ)

    left = leftovers.left_since(before)

    assert [process.pid for process in left.unwaited] == [pid]
    assert left.lines() == [f"process {pid} ended, but nobody waited for it"]


def test_a_descriptor_is_found_by_what_it_refers_to(before):
    """A descriptor is told with its number and its target."""
    descriptor = os.open(os.devnull, os.O_RDONLY)

    left = leftovers.left_since(before, grace=0)
    os.close(descriptor)

    assert left.lines() == [f"file descriptor {descriptor} -> {os.devnull}"]


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_what_multiprocessing_keeps_is_not_left(before, method):
    """The resource tracker and the fork server go on; a worker that was joined does not."""
    worker = multiprocessing.get_context(method).Process(target=int)
    worker.start()
    worker.join()
    worker.close()

    assert not leftovers.left_since(before)


def test_what_loky_keeps_is_not_left(before):
    """The resource tracker of loky goes on after the executor's end."""
    loky = pytest.importorskip("loky")
    with loky.ProcessPoolExecutor(1) as executor:
        assert executor.submit(int).result() == 0

    del executor
    assert not leftovers.left_since(before)


LEAKY = f"""
import os, subprocess, threading, pytest
from tests import leftovers

leftovers.GRACE = 0.2

def test_leaves_a_thread():
    threading.Thread(target=threading.Event().wait, name="forgotten").start()

def test_leaves_a_process():
    print("pid of the test's:", subprocess.Popen({SLEEPER}).pid)

def test_leaves_a_descriptor():
    os.open(os.devnull, os.O_RDONLY)

@pytest.fixture(scope="module")
def wider():
    print("pid of the fixture's:", subprocess.Popen({SLEEPER}).pid)

def test_uses_a_wider_fixture(wider):
    pass
"""


def test_a_run_fails_for_what_was_left_and_ends_it(tmp_path):
    """Each leftover fails its own test, by name; the stuck thread does not keep the run from ending."""
    file = tmp_path / "test_leaky.py"
    file.write_text(LEAKY)

    result = run_python(
        "-m", "pytest", "-p", "tests.conftest", "-s", "-c", os.devnull, "--rootdir", str(tmp_path), str(file)
    )  # fmt: skip

    assert result.returncode == pytest.ExitCode.TESTS_FAILED
    assert "4 passed, 3 errors" in result.stdout
    for name in ("thread 'forgotten'", "time.sleep(600)", f"-> {os.devnull}", "by the run as a whole"):
        assert name in result.stdout
    pids = [int(pid) for pid in re.findall(r"pid of the \w+'s: (\d+)", result.stdout)]
    assert len(pids) == 2
    assert not any(is_running(pid) for pid in pids)
