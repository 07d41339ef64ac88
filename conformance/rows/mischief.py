"""A task does to its worker what it should not."""

import time
from typing import Final

from conformance import look, work
from conformance.row import Cell, Site, Subject, judged
from conformance.rows.ending import shut_down

SUBJECT: Final = Subject("A task")


@SUBJECT.row("closes-fds", "closes all descriptors of its worker")
def closes(site: Site) -> Cell:
    """Its caller hears of that, or gets the result; a neighbour is not lost; the pool goes on."""
    calls = [look.attempt(site, work.close_all), look.attempt(site, work.give, 1)]
    found, innocent = map(look.outcome, calls)
    cell = judged(
        f"{found}",
        [
            "caller hangs" if found.hangs else "",
            "" if innocent.value == 1 else f"innocent: {innocent}",
            look.afterwards(site),
        ],
    )
    return Cell(cell.said, cell.passed, found.text)


@SUBJECT.row("writes", "writes 8 MB to standard output and error")
def writes(site: Site) -> Cell:
    """It has its result, and the pool goes on."""
    found = look.outcome(look.attempt(site, work.write_at_length, 4000))
    return judged("ok", ["" if found.value == 4000 else str(found), look.afterwards(site)])


@SUBJECT.row("changes-directory", "goes to another directory, and removes that")
def changes(site: Site) -> Cell:
    """It has its result, and the pool goes on."""
    path = site.path("elsewhere")
    found = look.outcome(look.attempt(site, work.change_directory, path))
    if found.value != path:
        return Cell(str(found), False, found.text)
    return judged("ok", [look.afterwards(site)])


@SUBJECT.row("handles-signals", "installs handlers for all signals, and stays")
def handles(site: Site) -> Cell:
    """Others go on beside it; a shutdown returns within 4 s, and 2 s later no process is left."""
    look.attempt(site, work.handle_signals, site.path("victim"))
    look.told(site.path("victim"))
    beside = look.outcome(look.attempt(site, work.give, 1))
    took, problems = shut_down(site)
    return judged(
        f"ended after {look.milliseconds(took)}", ["" if beside.value == 1 else f"neighbour: {beside}", *problems]
    )


@SUBJECT.row("leaves-threads", "leaves threads that never end")
def leaves(site: Site) -> Cell:
    """It has its result; the pool goes on; a shutdown returns within 4 s, and 2 s later no process is left."""
    found = look.outcome(look.attempt(site, work.leave_threads, 3))
    after = look.afterwards(site)
    took, problems = shut_down(site)
    return judged(
        f"ended after {look.milliseconds(took)}",
        ["" if isinstance(found.value, int) else str(found), after, *problems],
    )


@SUBJECT.row("writes-garbage", "writes garbage to each socket and pipe of its worker")
def garbage(site: Site) -> Cell:
    """Its caller hears of it within 8 s, or gets the result; a neighbour is not lost; the pool goes on."""
    call = look.attempt(site, work.write_garbage, site.path("victim"))
    _, written = look.told(site.path("victim"))
    if not written:
        return Cell("it has none", None)
    time.sleep(0.1)
    innocent = look.outcome(look.attempt(site, work.give, 1))
    found = look.outcome(call)
    return judged(
        f"{found}",
        [
            "caller hangs" if found.hangs else "",
            "" if innocent.value == 1 else f"innocent: {innocent}",
            look.afterwards(site),
        ],
    )
