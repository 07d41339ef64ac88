"""A task has started a child, one with a session of its own, and a daemon."""

from collections.abc import Callable
from typing import Final

from conformance import look, work
from conformance.contenders import Call
from conformance.keeper import ended
from conformance.row import Cell, Site, Subject

SUBJECT: Final = Subject("A task's own child, one with setsid and a daemon")

NAMES: Final = ("child", "setsid child", "daemon")


def after(site: Site, end: Callable[[Call, int], object], then: str = "stay", timeout: float | None = None) -> Cell:
    """Have a task start them, end it so, and see which of them are left."""
    look.warm(site)
    path = site.path("family")
    call = look.attempt(site, work.have_children, path, then, timeout=timeout)
    pid, *children = look.told(path)
    site.stage("ending it")
    end(call, pid)
    look.gone(children)
    alive = [name for name, each in zip(NAMES, children, strict=True) if not ended(each)]
    return Cell("none left" if not alive else f"left: {', '.join(alive)}", not alive)


@SUBJECT.row("children-timeout", "after its time limit", but=["pool"])
def timeout(site: Site) -> Cell:
    """Within 2 s after the caller has heard of it none of the three is left."""
    return after(site, lambda call, _: look.outcome(call), timeout=1.5)


@SUBJECT.row("children-cancel", "after `cancel()`", but=["pool"])
def cancel(site: Site) -> Cell:
    """Within 2 s after the caller has heard of it none of the three is left.

    Where cancel() refuses, the cell is neutral.
    """
    refused = list[bool]()

    def end(call: Call, _: int) -> None:
        refused.append(not site.pool.cancel(call))
        if not refused[0]:
            look.outcome(call)

    cell = after(site, end)
    return Cell("refused", None) if refused[0] else cell


@SUBJECT.row("children-crash", "after its worker is killed")
def crash(site: Site) -> Cell:
    """Within 2 s after the caller has heard of it none of the three is left."""

    def end(call: Call, pid: int) -> None:
        look.kill(pid)
        look.outcome(call)

    return after(site, end)


@SUBJECT.row("children-shutdown", "after it has returned, and the pool is shut down")
def shutdown(site: Site) -> Cell:
    """Within 2 s after the shutdown none of the three is left: what a worker started ends with it."""

    def end(call: Call, _: int) -> None:
        look.outcome(call)
        site.pool.shutdown(1.0)

    return after(site, end, then="return")
