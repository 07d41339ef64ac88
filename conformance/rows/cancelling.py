"""A task that runs is cancelled."""

import time
from typing import Final

from conformance import look, work
from conformance.contenders import Function
from conformance.row import Cell, Site, Subject, judged

SUBJECT: Final = Subject("A running task is cancelled")

STOPS: Final = 3.5  # seconds: a grace of 2, and 1.5 for a busy machine


def cancelled(site: Site, function: Function) -> Cell:
    """Cancel it from a thread."""
    look.warm(site)
    call = look.attempt(site, function, site.path("victim"))
    (pid,) = look.told(site.path("victim"))
    site.stage("cancel")
    began = time.monotonic()
    if not site.pool.cancel(call):
        runs_on = look.is_working(pid)
        return Cell("refused, runs on" if runs_on else "refused", None if runs_on else False)
    found = look.outcome(call)
    if found.hangs:
        return Cell("caller hangs", False)
    took = time.monotonic() - began
    return judged(
        f"stopped after {look.milliseconds(took)}",
        [
            f"after {took:.1f} s" if took > STOPS else "",
            "ends with a result" if found.error is None else "",
            "runs on" if look.is_working(pid) else "",
            look.afterwards(site),
        ],
    )


@SUBJECT.row("cancel", "by `cancel()`: a loop in Python", but=["pool"], threads=["thread-backend"])
def loop(site: Site) -> Cell:
    """It says True; the caller hears within the grace and 1.5 s, and then the work has stopped; the pool goes on.

    Where cancel() refuses, as that of a stock future does, nothing is promised and the cell is neutral.
    """
    return cancelled(site, work.spin)


@SUBJECT.row("cancel-gil", "… C code that holds the GIL", but=["pool"])
def gil(site: Site) -> Cell:
    """As for a loop."""
    return cancelled(site, work.hold_the_gil)


@SUBJECT.row("cancel-awaiting", "by cancelling the coroutine that awaits it", but=["pool"], threads=["thread-backend"])
def awaiting(site: Site) -> Cell:
    """The coroutine ends at once, and the work stops within the grace and 1.5 s; the pool goes on.

    An executor that runs on below a cancelled `run_in_executor` keeps to the stock rule: the cell is neutral.
    """
    look.warm(site)
    path = site.path("victim")
    pids = list[int]()
    began = list[float]()

    def begun() -> None:
        pids.extend(look.told(path))
        began.append(time.monotonic())
        site.stage("cancelling the coroutine")

    site.pool.cancel_awaiting(work.spin, (path,), begun)
    took = time.monotonic() - began[0]
    stops = look.wait_until(lambda: not look.is_working(pids[0]), STOPS)
    if not stops:
        return Cell("runs on", None)
    return judged(
        f"released after {look.milliseconds(took)}, stops",
        [f"released after {took:.1f} s" if took > STOPS else "", look.afterwards(site)],
    )
