"""The program that has the pool is killed, and cannot clear up."""

import os
import signal
import time
from typing import Final

from conformance import look
from conformance.row import Cell, Site, Subject

SUBJECT: Final = Subject("The program is killed (SIGKILL)")

PATIENCE: Final = 5.0  # seconds
MOMENTS: Final = (0.0, 0.01, 0.03, 0.06, 0.1, 0.2)  # seconds after a pool has its first call


def killed(site: Site, state: str) -> Cell:
    """Kill one whose pool is in that state."""
    program = look.started(site, f"waits:{state}")
    site.stage("its program starts")
    look.told(site.path("ready"), 20.0)
    if state == "stopped":
        os.kill(look.told(site.path("victim"))[0], signal.SIGSTOP)
    number = len(look.below()) - 1
    began = time.monotonic()
    program.kill()
    program.wait()
    left = look.left(seconds=PATIENCE)
    took = time.monotonic() - began
    if left:
        return Cell(f"{len(left)} of {number} live on", False, " ".join(map(str, left)))
    return Cell(f"all gone after {look.milliseconds(took)}", True)


@SUBJECT.row("orphans-busy", "with a busy worker", opens=False)
def busy(site: Site) -> Cell:
    """Within 5 s no process of it is left, helpers included."""
    return killed(site, "busy")


@SUBJECT.row("orphans-idle", "with idle workers", opens=False)
def idle(site: Site) -> Cell:
    """Within 5 s no process of it is left, helpers included."""
    return killed(site, "idle")


@SUBJECT.row("orphans-gil", "with a worker in C code that holds the GIL", opens=False)
def gil(site: Site) -> Cell:
    """Within 5 s no process of it is left, helpers included."""
    return killed(site, "gil")


@SUBJECT.row("orphans-stopped", "with a stopped worker", opens=False)
def stopped(site: Site) -> Cell:
    """Within 5 s no process of it is left, helpers included."""
    return killed(site, "stopped")


@SUBJECT.row("orphans-starting", "while workers start", opens=False, seconds=60)
def starting(site: Site) -> Cell:
    """Killed at six moments after the first call: within 5 s no process of it is left, helpers included."""
    slowest, live = 0.0, 0
    for number, moment in enumerate(MOMENTS):
        program = look.started(site, "waits:starting", f"program-{number}")
        look.told(site.path(f"program-{number}/ready"), 20.0)
        time.sleep(moment)
        began = time.monotonic()
        program.kill()
        program.wait()
        if left := look.left(seconds=PATIENCE):
            live += 1
            for pid in left:
                look.kill(pid)
            look.left()
        slowest = max(slowest, time.monotonic() - began)
    if live:
        return Cell(f"some live on, {live} times of {len(MOMENTS)}", False)
    return Cell(f"all gone after {look.milliseconds(slowest)}", True)
