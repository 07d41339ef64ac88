"""A worker dies: killed from outside, as by the kernel where memory is short."""

import math
import os
import statistics
import time
from collections import Counter
from contextlib import suppress
from typing import Final

from conformance import look, work
from conformance.row import Cell, Site, Subject, judged

SUBJECT: Final = Subject("A worker is killed")

QUEUED: Final = 8
DEATHS: Final = 200
BAR: Final = 0.02  # seconds


@SUBJECT.row("killed-innocents", "the other tasks, one running and eight queued")
def innocents(site: Site) -> Cell:
    """Each of them has its own result, and none has run twice: a death costs one task."""
    victim = look.attempt(site, work.sleep, site.path("victim"))
    (pid,) = look.told(site.path("victim"))
    notes, gate = site.path("notes"), site.path("gate")
    calls = [look.attempt(site, work.noted, notes, n, gate) for n in range(1 + QUEUED)]
    if not look.wait_until(lambda: os.path.exists(notes)):
        return Cell("no second worker", False)

    look.kill(pid)
    look.outcome(victim)
    open(gate, "wb").close()

    found = [look.outcome(call, 4.0) for call in calls]
    hang = sum(each.hangs for each in found)
    lost = sum(each.error is not None for each in found)
    wrong = sum(not each.hangs and each.error is None and each.value != n for n, each in enumerate(found))
    with open(notes, encoding="ascii") as file:
        twice = sum(count > 1 for count in Counter(file.read().split()).values())
    return judged(
        "none lost",
        [
            f"{lost} innocents lost" if lost else "",
            f"{hang} innocents hang" if hang else "",
            f"{wrong} wrong results" if wrong else "",
            f"{twice} run twice" if twice else "",
        ],
    )


@SUBJECT.row("killed-pool", "the pool afterwards")
def pool(site: Site) -> Cell:
    """It takes tasks as before, without being made anew."""
    victim = look.attempt(site, work.sleep, site.path("victim"))
    look.kill(look.told(site.path("victim"))[0])
    look.outcome(victim)
    return judged("ok", [look.afterwards(site)])


@SUBJECT.row("killed-idle", "an idle worker is killed")
def idle(site: Site) -> Cell:
    """That costs no task; the next ones have their results."""
    found = look.outcome(look.attempt(site, work.pid))
    if found.value is None:
        return Cell(f"no first result: {found}", False, found.text)
    look.kill(found.value)
    look.gone([found.value])
    return judged("ok", [look.afterwards(site)])


@SUBJECT.row("killed-caller", "what the victim's caller hears")
def caller(site: Site) -> Cell:
    """It gets an error within the patience, and that names the cause: the signal."""
    victim = look.attempt(site, work.sleep, site.path("victim"))
    look.kill(look.told(site.path("victim"))[0])
    found = look.outcome(victim)
    if found.hangs:
        return Cell("caller hangs", False)
    after = f"told after {look.milliseconds(found.seconds)}"
    if found.error is None:
        return Cell(f"{after}: a result", False)
    if not look.NAMES_KILL.search(found.text):
        return Cell(f"{after}: {type(found.error).__name__}, no cause", False, found.text)
    return Cell(f"{after}: SIGKILL", True, found.text)


@SUBJECT.row("killed-p99", f"time from the death to the caller's error, {DEATHS} deaths", seconds=90, alone=True)
def p99(site: Site) -> Cell:
    """The 99th percentile is below 20 ms."""
    seconds = list[float]()
    for number in range(DEATHS):
        path = site.path(f"victim-{number}")
        victim = look.attempt(site, work.sleep, path)
        try:
            (pid,) = look.told(path)
        except TimeoutError:
            return Cell(f"pool dead after {number} death{'s' * (number != 1)}", False)
        began = time.monotonic()
        look.kill(pid)
        with suppress(BaseException):
            victim.result(8)
        seconds.append(time.monotonic() - began)
        if not victim.done():
            return Cell("caller hangs", False)
    worst = sorted(seconds)[math.ceil(0.99 * DEATHS) - 1]
    said = f"p50 {1000 * statistics.median(seconds):.1f}, p99 {1000 * worst:.1f} ms"
    return Cell(said, worst < BAR, f"greatest {1000 * max(seconds):.1f} ms")
