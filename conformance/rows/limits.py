"""A task has a time limit of a second, and does not stop by itself."""

import os
import signal
import time
from typing import Final

from conformance import look, work
from conformance.contenders import Function
from conformance.row import Cell, Site, Subject, judged

SUBJECT: Final = Subject("A time limit of 1 s on")

SECONDS: Final = 1.0
SLACK: Final = 3.5  # seconds: a grace of 2, and 1.5 for a busy machine


def limited(site: Site, function: Function, stopped: bool = False) -> Cell:
    """Have it run into its limit."""
    look.warm(site)
    path = site.path("victim")
    call = look.attempt(site, function, path, timeout=SECONDS)
    (pid,) = look.told(path)
    began = time.monotonic()
    if stopped:
        os.kill(pid, signal.SIGSTOP)
    found = look.outcome(call)
    if found.hangs:
        return Cell("never told", False)
    late = time.monotonic() - began > SECONDS + SLACK
    if found.error is None or not isinstance(found.error, TimeoutError):
        return Cell(f"told as {found}", False, found.text)
    if stopped:
        runs_on = not look.gone([pid])
    else:
        runs_on = look.is_working(pid)
    return judged(
        f"stopped after {found.seconds:.1f} s",
        [
            f"told after {found.seconds:.1f} s" if late else "",
            ("stays stopped" if stopped else "runs on") if runs_on else "",
            look.afterwards(site),
        ],
    )


@SUBJECT.row("limit-loop", "a loop in Python", but=["pool"], threads=["thread-backend"])
def loop(site: Site) -> Cell:
    """The caller gets a TimeoutError within limit, grace and 1.5 s; the work has stopped; the pool has both workers."""
    return limited(site, work.spin)


@SUBJECT.row("limit-swallow", "… with `except BaseException: pass` in it", but=["pool"])
def swallow(site: Site) -> Cell:
    """The caller gets a TimeoutError within limit, grace and 1.5 s; the work has stopped; the pool has both workers."""
    return limited(site, work.swallow)


@SUBJECT.row("limit-gil", "C code that holds the GIL", but=["pool"])
def gil(site: Site) -> Cell:
    """The caller gets a TimeoutError within limit, grace and 1.5 s; the work has stopped; the pool has both workers."""
    return limited(site, work.hold_the_gil)


@SUBJECT.row("limit-stopped", "a stopped process (SIGSTOP)", but=["pool"])
def stopped(site: Site) -> Cell:
    """The caller gets a TimeoutError within limit, grace and 1.5 s; the process is gone; the pool has both workers."""
    return limited(site, work.sleep, stopped=True)
