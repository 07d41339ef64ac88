"""Each name of _os means the same everywhere, on what is left of a process too."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator

import pytest

from taskback import _cgroup
from taskback.pools import _os
from tests.helpers import is_running, run_python, session_leaders, write_files

unix = pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")

SLEEPER = "import time; print(1, flush=True); time.sleep(600)"

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts children that lead a session of their own, which is gone after the test."""
    with session_leaders() as start:
        yield start


def line_of(child: subprocess.Popen[str]) -> str:
    """The next line that it says."""
    assert child.stdout is not None
    return child.stdout.readline().strip()


def test_cpus_are_at_least_one_and_at_most_what_there_are():
    """Never nothing, whatever the quota."""
    assert 1 <= _os.available_cpus() <= (os.cpu_count() or 1)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system has no affinity")
def test_cpus_honour_affinity():
    """A process that is bound to one CPU has one."""
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); \
from taskback.pools import _os; print(_os.available_cpus())"

    assert run_python("-c", code).stdout == "1\n"


@pytest.mark.parametrize(
    ("quota", "cpus"), [("max 100000", 8), ("150000 100000", 2), ("1000 100000", 1), ("900000 100000", 8), ("junk", 8)]
)
def test_cpus_honour_the_quota(monkeypatch, tmp_path, quota, cpus):
    """Rounded up, never above what there are; what cannot be read is no quota."""
    write_files(
        tmp_path,
        {
            "proc/self/cgroup": "0::/app/inner\n",
            "proc/self/mountinfo": "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw\n",
            "sys/fs/cgroup/app/cpu.max": f"{quota}\n",
        },
    )
    monkeypatch.setattr(_cgroup, "ROOT", str(tmp_path))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)

    assert _os.available_cpus() == cpus


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="the system has no pidfd")
def test_a_death_watch_is_readable_when_the_child_has_ended(start):
    """Not before, and whatever the child has left running with what it had open."""
    child = start(
        "import signal, subprocess, sys; "
        f"print(subprocess.Popen([sys.executable, '-c', {SLEEPER!r}], stdout=subprocess.DEVNULL).pid, flush=True); "
        "signal.pause()"
    )
    grandchild = int(line_of(child))
    watch = _os.open_death_watch(child.pid)
    assert watch is not None
    try:
        before = select.select([watch], [], [], 0)[0]

        child.kill()
        after = select.select([watch], [], [], 5)[0]
    finally:
        os.close(watch)

    assert before == []
    assert after == [watch]
    assert is_running(grandchild)


@unix
def test_no_watch_is_kept_of_what_is_not_there(start):
    """None, and no error."""
    child = start("print(1)")
    child.wait()

    assert _os.open_death_watch(child.pid) is None


@unix
def test_leaving_the_terminal_makes_a_session():
    """Its number is the process's, and asking again changes nothing."""
    code = """
import os
from taskback.pools import _os
before = os.getsid(0) == os.getpid()
_os.leave_the_terminal()
_os.leave_the_terminal()
print(before, os.getsid(0) == os.getpid() == os.getpgrp())
"""

    assert run_python("-c", code).stdout == "False True\n"


@unix
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals_are_shrugged_off_and_what_is_started_has_them(name):
    """The process goes on; a program that it starts takes the signal the default way, for it is not ignored there."""
    code = f"""
import os, signal, subprocess, sys
from taskback.pools import _os
_os.shrug_off_signals()
os.kill(os.getpid(), signal.{name})
child = subprocess.run([sys.executable, "-c", "import os, signal; signal.signal(signal.{name}, signal.SIG_DFL) \
if signal.getsignal(signal.{name}) is not signal.SIG_IGN else None; os.kill(os.getpid(), signal.{name})"])
print("lives", child.returncode == -signal.{name})
"""

    assert run_python("-c", code).stdout == "lives True\n"


@unix
def test_killing_ones_own_group_ends_what_was_started_too(start):
    """At once, and the starter is not of the group."""
    child = start(
        "import subprocess, sys\n"
        "from taskback.pools import _os\n"
        f"print(subprocess.Popen([sys.executable, '-c', {SLEEPER!r}], stdout=subprocess.DEVNULL).pid, flush=True)\n"
        "_os.kill_own_group()\n"
    )
    grandchild = int(line_of(child))

    assert child.wait(5) == -signal.SIGKILL

    watch = _os.open_death_watch(grandchild)
    if watch is not None:
        select.select([watch], [], [], 5)
        os.close(watch)
    assert not is_running(grandchild)


@unix
def test_a_signal_goes_to_what_is_there_and_no_name_is_an_error(start):
    """What has ended, or what the system does not know, is passed over."""
    child = start(SLEEPER)
    line_of(child)

    _os.send_signal(child.pid, "SIGNONE")
    assert child.poll() is None
    _os.send_signal(child.pid, "SIGTERM")
    assert child.wait(5) == -signal.SIGTERM
    _os.send_signal(child.pid, "SIGTERM")


@unix
def test_a_group_is_killed_after_its_leader(start):
    """What the leader has left; a group of nobody is no error."""
    child = start(
        "import subprocess, sys; "
        f"print(subprocess.Popen([sys.executable, '-c', {SLEEPER!r}], stdout=subprocess.DEVNULL).pid, flush=True)"
    )
    grandchild = int(line_of(child))
    assert child.wait(5) == 0
    watch = _os.open_death_watch(grandchild)

    _os.kill_group(child.pid)

    if watch is not None:
        select.select([watch], [], [], 5)
        os.close(watch)
    assert not is_running(grandchild)
    _os.kill_group(child.pid)
