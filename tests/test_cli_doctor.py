"""`taskback doctor` tries what the machine grants, here and where something is taken away for real."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli_helpers import Desk, make_desk
from tests.helpers import ROOT, run_python


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """Where commands are started, and ended."""
    yield from make_desk(tmp_path)


MAIN = "from taskback.cli import main; sys.exit(main(['doctor', '--json']))"


def examined(before: str, *prefix: str) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Run it after some code; the exit status, all it says, and its checks by name."""
    done = subprocess.run(
        [*prefix, sys.executable, "-c", f"import os, resource, sys; {before}; {MAIN}"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=55,
        check=False,
    )
    assert done.stderr == ""
    said = json.loads(done.stdout)
    return done.returncode, said, {check["name"]: check for check in said["checks"]}


def test_where_all_is_granted_all_promises_stand(desk: Desk):
    """Each check says what it saw, and nothing of the examination is left."""
    command = desk.start_command("doctor", "--json")

    assert command.finish() == 0, command.out.text + command.err.text
    said = json.loads(command.out.text)
    assert said["stands"] is True
    assert {check["mark"] for check in said["checks"]} == {"ok"}
    assert all(check["seen"] for check in said["checks"])
    assert command.leaves_nothing()
    assert command.err.text == ""


def test_few_descriptors_are_named():
    """How many workers they are for, and which promises that weakens."""
    status, said, checks = examined("resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))")

    assert status == 1
    assert not said["stands"]
    assert checks["descriptors"]["mark"] == "limited"
    assert "RLIMIT_NOFILE 40 of 40" in checks["descriptors"]["seen"]
    assert "descriptors" in said["weakened"]["uses_cores"]
    assert checks["packets"]["mark"] == "ok"


@pytest.mark.skipif(os.name != "posix" or os.getuid() != 0 or not shutil.which("setpriv"), reason="takes root, setpriv")
def test_few_processes_are_named():
    """A user who may have no more than a few."""
    capabilities = "+dac_override,+dac_read_search"  # or it could not read a Python that lies in somebody's home
    status, said, checks = examined(
        "resource.setrlimit(resource.RLIMIT_NPROC, (6, 6))",
        *("setpriv", "--reuid=64123", "--clear-groups", f"--inh-caps={capabilities}", f"--ambient-caps={capabilities}"),
    )

    assert status == 1
    assert checks["process_count"]["mark"] == "limited"
    assert "RLIMIT_NPROC 6" in checks["process_count"]["seen"]
    assert "process_count" in said["weakened"]["uses_cores"]


def test_where_no_process_can_be_started_that_is_said():
    """Nothing can be tried; nothing is promised."""
    if os.getuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("takes root and setpriv")
    capabilities = "+dac_override,+dac_read_search"
    status, said, checks = examined(
        "resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))",
        *("setpriv", "--reuid=64124", "--clear-groups", f"--inh-caps={capabilities}", f"--ambient-caps={capabilities}"),
    )

    assert status == 1
    assert {check["mark"] for check in said["checks"]} == {"unknown"}
    assert "no process can be started" in checks["round_trip"]["seen"]
    assert len(said["weakened"]) == 23


def test_hidden_control_groups_are_named():
    """Which weakens no promise."""
    hide = ["unshare", "-m", "sh", "-c", 'umount -l /sys/fs/cgroup && exec "$0" "$@"']
    if not shutil.which("unshare") or subprocess.run([*hide, "true"], capture_output=True, check=False).returncode:
        pytest.skip("takes a mount namespace")

    status, _, checks = examined("pass", *hide)

    assert status == 0
    assert checks["memory_limits"]["mark"] == "limited"
    assert "no control group is mounted" in checks["memory_limits"]["seen"]


DENY = """ctypes = __import__('ctypes'); struct = __import__('struct'); libc = ctypes.CDLL(None)
steps = [(0x20, 0, 0, 0), (0x15, 0, 1, {number}), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *step) for step in steps))
told = ctypes.create_string_buffer(struct.pack('HxxxxxxP', len(steps), ctypes.addressof(code)))
libc.prctl(38, 1, 0, 0, 0); refused = libc.prctl(22, 2, told, 0, 0); refused and sys.exit(77)
""".replace("\n", "; ").rstrip("; ")  # a filter of system calls, which answers one of them with EPERM


@pytest.mark.skipif(platform.machine() != "x86_64", reason="system calls have other numbers here")
@pytest.mark.parametrize(
    ("number", "check", "promise", "works"),
    [(434, "pidfd", "survives_worker_death", True), (319, "memory", "no_main_guard", False)],
    ids=["pidfd_open", "memfd_create"],
)
def test_a_system_call_that_a_sandbox_refuses_is_named(number, check, promise, works):
    """And whether a backend runs without it."""
    status, said, checks = examined(DENY.format(number=number))

    assert status == 1
    assert checks[check]["mark"] == "missing"
    assert "not permitted" in checks[check]["seen"]
    assert check in said["weakened"][promise]
    assert (checks["round_trip"]["mark"] == "ok") is works


HANGS = """if True:
    import os, signal, sys, time
    from taskback.cli.doctor.finding import Check
    from taskback.cli.doctor.trial import tried

    def hang():
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.write(tell, str(os.getpid()).encode())
                time.sleep(600)
            os._exit(0)
        os.wait()
        while True:
            time.sleep(600)

    told, tell = os.pipe()
    found = tried(Check("hangs", hang, "what then", ("timeout",)), 1.0)
    daemon = int(os.read(told, 100))
    try:
        os.kill(daemon, 0)
        state = open(f"/proc/{daemon}/stat").read().split()[2]
    except (ProcessLookupError, FileNotFoundError):
        state = "gone"
    print(found.mark.value, found.seen, state in ("Z", "gone"))
    died = tried(Check("dies", lambda: os._exit(3), "what then"), 20.0)
    failed = tried(Check("fails", lambda: 1 / 0, "what then"), 20.0)
    print(died.mark.value, died.seen, failed.mark.value, failed.seen, sep=", ")
"""


def test_a_check_that_hangs_is_ended_with_all_it_has_started():
    """And said to hang; one that dies or fails is told, too."""
    done = run_python("-c", HANGS)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "unknown did not end within 1 s True\nunknown, its process died, missing, division by zero\n"
    )


def test_the_text_names_what_is_weakened():
    """With what follows from it, and the promise in words."""
    code = """if True:
        from taskback.cli.doctor import report
        from taskback.cli.doctor.finding import Check, Finding, Mark, limited, ok
        good = Check("good", None, "not said")
        bad = Check("bad", None, "daemons live on", ("kills_detached",))
        found = [("part", [(good, ok("seen")), (bad, Finding(Mark.MISSING, "refused"))])]
        print(report.as_text(found), report.exit_status(found), report.exit_status([("part", [(good, ok("seen"))])]))
    """

    lines = run_python("-c", code).stdout.splitlines()

    assert lines[:4] == [
        "part",
        "  ok       good  seen",
        "  missing  bad   refused",
        "                 -> daemons live on",
    ]
    assert lines[5] == "22 of the 23 promises of ProcessPoolTaskBackend stand. Weakened:"
    assert lines[6].startswith("  kills_detached: ... daemons")
    assert lines[-1] == " 1 0"


def test_a_worker_costs_as_many_descriptors_as_doctor_takes_it_to():
    """Or its advice would be wrong."""
    code = """if True:
        import os
        from taskback import ProcessPoolTaskBackend
        from taskback.cli.doctor.handlers import act
        counts = []
        for workers in (1, 3):
            with ProcessPoolTaskBackend(act, max_workers=workers) as backend:
                counts.append(len(os.listdir("/proc/self/fd")))
        print((counts[1] - counts[0]) / 2)
        from taskback.cli.doctor.limits import FDS_A_WORKER
        print(FDS_A_WORKER)
    """

    measured, taken = run_python("-c", code).stdout.split()

    assert float(measured) == float(taken)


@pytest.mark.parametrize("options", [["--timeout", "0"], ["--timeout", "soon"], ["more"]])
def test_wrong_usage_is_2(desk: Desk, options):
    """As of every command."""
    command = desk.start_command("doctor", *options)

    assert command.finish() == 2
    assert "usage: taskback doctor" in command.err.text or "usage: taskback" in command.err.text
