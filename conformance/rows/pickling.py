"""Something cannot travel, or not easily."""

from collections.abc import Callable
from typing import Any, Final

import psutil

from conformance import look, work
from conformance.contenders import Call
from conformance.row import Cell, NotHereError, Site, Subject, judged

SUBJECT: Final = Subject("Something cannot travel")

GIGABYTE: Final = 2**30


def refused(site: Site, call: Callable[[], Call]) -> Cell:
    """Make a call that must fail for its own caller alone."""
    found = look.outcome(call())
    wrong = "" if found.error is not None else str(found)
    after = look.afterwards(site)
    return Cell(
        "; ".join(filter(None, (wrong or f"told as {type(found.error).__name__}", after))),
        not wrong and not after,
        found.text,
    )


@SUBJECT.row("result-unpicklable", "a result that cannot be pickled")
def result_unpicklable(site: Site) -> Cell:
    """Its caller gets an error; the pool goes on."""
    return refused(site, lambda: look.attempt(site, work.make, "lock"))


@SUBJECT.row("result-pickling-raises", "a result whose pickling raises")
def result_pickling_raises(site: Site) -> Cell:
    """Its caller gets an error; the pool goes on."""
    return refused(site, lambda: look.attempt(site, work.make, "unpicklable"))


@SUBJECT.row("result-unrebuildable", "a result whose unpickling raises")
def result_unrebuildable(site: Site) -> Cell:
    """Its caller gets an error; the pool goes on."""
    return refused(site, lambda: look.attempt(site, work.make, "unrebuildable"))


def argument(site: Site, value: Any) -> Cell:
    """Give it to a worker."""
    return refused(site, lambda: look.attempt(site, work.give, value))


@SUBJECT.row("argument-unpicklable", "an argument that cannot be pickled")
def argument_unpicklable(site: Site) -> Cell:
    """Its caller gets an error, at once or by the call; the pool goes on."""
    return argument(site, work.make("lock"))


@SUBJECT.row("argument-pickling-raises", "an argument whose pickling raises")
def argument_pickling_raises(site: Site) -> Cell:
    """Its caller gets an error, at once or by the call; the pool goes on."""
    return argument(site, work.Unpicklable())


@SUBJECT.row("argument-unrebuildable", "an argument whose unpickling raises")
def argument_unrebuildable(site: Site) -> Cell:
    """Its caller gets an error; the pool goes on."""
    return argument(site, work.Unrebuildable())


@SUBJECT.row("argument-deadly", "an argument that kills its worker while it is unpickled")
def argument_deadly(site: Site) -> Cell:
    """It is not tried for ever: its caller gets an error; no other task is lost; the pool goes on."""
    innocents = [look.attempt(site, work.give, n) for n in range(4)]
    deadly = look.attempt(site, work.give, work.Deadly())
    innocents += [look.attempt(site, work.give, n) for n in range(4, 8)]
    found = look.outcome(deadly)
    lost = sum(look.outcome(call, 4.0).value != n for n, call in enumerate(innocents))
    wrong = "" if found.error is not None else str(found)
    cell = judged(
        f"told as {type(found.error).__name__}",
        [wrong, f"{lost} innocents lost" if lost else "", look.afterwards(site)],
    )
    return Cell(cell.said, cell.passed, found.text)


@SUBJECT.row("result-1-gb", "a result of 1 GB", seconds=90, alone=True)
def result_large(site: Site) -> Cell:
    """It arrives, whole."""
    if psutil.virtual_memory().available < 5 * GIGABYTE:
        raise NotHereError("less than 5 GB of memory are free")
    found = look.outcome(look.attempt(site, work.large, GIGABYTE), 60.0)
    if found.hangs or found.error is not None:
        return Cell(str(found), False, found.text)
    whole = len(found.value) == GIGABYTE and found.value[-1:] == b"x"
    return judged(f"arrives in {found.seconds:.1f} s", ["" if whole else "arrives damaged", look.afterwards(site)])
