"""`scripts/matrix`: taskback passes its quick rows, who fails one is told by the exit status, and nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from conformance.keeper import ended
from conformance.rows import ROWS
from taskback.pools.child import descendants
from tests.helpers import ROOT, run_python

QUICK = "killed-innocents,raises-two-arguments,raises-unrebuildable,result-unpicklable,argument-deadly,closes-fds"
LIMIT = 50.0  # seconds; the net under every wait


def command(*arguments: str) -> list[str]:
    """The program."""
    return [sys.executable, "-m", "conformance", *arguments]


def run_matrix(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return run_python(*command(*arguments)[1:], timeout=LIMIT)


def test_taskback_passes_quick_rows_and_only_those_are_run(tmp_path):
    """Both its pools do, each cell is told, and no other row is run."""
    file = tmp_path / "cells.json"

    done = run_matrix("--without-peers", "--only", QUICK, "--json", str(file))

    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    assert {*rows} == set(QUICK.split(","))
    for name, row in rows.items():
        assert {"backend", "pool"} <= row["cells"].keys() <= set(ROWS[name].contenders)
        assert all(cell["passed"] for cell in row["cells"].values())


def test_a_row_that_is_failed_makes_the_exit_status_1():
    """The stock pool loses innocents when a worker is killed."""
    done = run_matrix("--ours", "stock", "--contenders", "stock", "--only", "killed-innocents")

    assert done.returncode == 1, done.stdout + done.stderr
    assert "9 innocents lost" in done.stdout
    assert "FAILED: killed-innocents (stock)" in done.stdout


def test_an_unknown_row_is_refused():
    """With the names of those that there are."""
    done = run_matrix("--only", "nonsense")

    assert done.returncode == 2
    assert "no row begins with 'nonsense'; there are killed-innocents," in done.stderr


@pytest.fixture
def keeper():
    """A keeper with much time and a probe below it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "conformance.keeper", "300", "cancel-awaiting", "backend"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    yield process
    process.kill()
    process.wait()
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.stdout.close()


def tree(pid: int, least: int) -> list[int]:
    """What is below a process, once there is so much."""
    deadline = time.monotonic() + LIMIT
    while len(below := descendants.below(descendants.children(pid))) < least:
        assert time.monotonic() < deadline, f"only {len(below)} processes"
        time.sleep(0.01)
    return below


def test_a_probe_that_hangs_is_killed_with_all_that_is_below_it(keeper):
    """A keeper whose input ends, as at Ctrl-C, leaves neither probe nor guardian nor worker, stopped as they may be."""
    below = tree(keeper.pid, 3)  # the probe, its pool's guardian, a worker
    for pid in below:
        os.kill(pid, signal.SIGSTOP)

    keeper.stdin.close()

    assert keeper.wait(LIMIT) == 0
    assert all(map(ended, below))


def test_a_probe_has_a_hard_limit():
    """What it was at is told, as a failure."""
    done = subprocess.run(
        [sys.executable, "-m", "conformance.keeper", "0.05", "killed-pool", "backend"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert "cell" not in json.loads(done.stdout)


def test_ctrl_c_leaves_nothing():
    """The program ends with 130, and with it every process below."""
    program = subprocess.Popen(
        command("--without-peers", "--only", "limit-gil"),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        below = tree(program.pid, 4)  # keepers and probes

        os.killpg(program.pid, signal.SIGINT)

        assert program.wait(LIMIT) == 130
        assert all(map(ended, below))
    finally:
        program.kill()
        program.wait()
