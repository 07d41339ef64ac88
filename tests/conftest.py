"""Fixtures of all tests: above all the one that finds what a test left behind."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests import leftovers
from tests.backends import backend, gate, kind, make  # noqa: F401  # fixtures of the contract tests
from tests.faults import Channel


@pytest.fixture
def channel(tmp_path: Path) -> Iterator[Channel]:
    """What handlers write lines on."""
    with closing(Channel(tmp_path)) as channel:
        yield channel


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """Fail a test that leaves a thread, a process or a file descriptor, and kill the processes.

    What a fixture of a wider scope starts is not the test's: it was there before.
    """
    before = leftovers.look()
    yield
    left = leftovers.left_since(before, leftovers.GRACE)
    if left:
        lines = left.lines()  # while the processes can still be asked for their names
        leftovers.kill(left.processes)
        pytest.fail("left behind:\n  " + "\n  ".join(lines), pytrace=False)


class _Run:
    """The run as a whole: nothing outlives it, whatever the tests did."""

    def __init__(self) -> None:
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's `&` has its jobs ignore Ctrl-C, and theirs
            signal.signal(signal.SIGINT, signal.default_int_handler)
        leftovers.mark_run()
        self.processes = leftovers.processes()
        self.exit_status = 0

    def pytest_collection_finish(self) -> None:
        """Take what importing made out of the collector's sight: every test collects, and quickly."""
        gc.collect()
        gc.freeze()

    @pytest.hookimpl(trylast=True)  # after the teardown of the wider fixtures
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Kill the processes that wider fixtures left, and fail the run for them."""
        lines = leftovers.kill_late(self.processes)
        if lines:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
            reporter = session.config.pluginmanager.get_plugin("terminalreporter")
            if reporter is not None:
                reporter.write_line("\nleft behind by the run as a whole:\n  " + "\n  ".join(lines))
        self.exit_status = int(session.exitstatus)

    @pytest.hookimpl(trylast=True)
    def pytest_unconfigure(self) -> None:
        """End the process where a thread that a test left would keep it from ending."""
        others = set(threading.enumerate()) - {threading.main_thread()}
        if any(not thread.daemon for thread in others):
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(self.exit_status)


def pytest_configure(config: pytest.Config) -> None:
    """Begin the run."""
    config.pluginmanager.register(_Run())
