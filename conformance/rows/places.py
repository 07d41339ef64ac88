"""The pool is used from an odd place."""

import os
from typing import Final

from conformance import look
from conformance.keeper import ended as has_ended
from conformance.row import Cell, Site, Subject, judged
from conformance.rows.ending import clear

SUBJECT: Final = Subject("The program")


@SUBJECT.row("fork", "forks while tasks run; one fork ends, one lives on", opens=False)
def fork(site: Site) -> Cell:
    """The fork that ends does so within 8 s with status 0.

    The tasks of the program have their results; its shutdown returns within 8 s though the other fork lives; no
    process but that fork is left.
    """
    program = look.started(site, "forks:")
    try:
        _, lives, ends = look.told(site.path("ready"), 20.0)
        site.stage("a fork ends")
        ended = look.wait_until(lambda: has_ended(ends))
        open(site.path("gate"), "wb").close()
        site.stage("its tasks")
        done = look.wait_until(lambda: os.path.exists(site.path("results")) or program.poll() is not None)
        whole = os.path.exists(site.path("results"))
        site.stage("shutdown")
        closed = look.wait_until(lambda: os.path.exists(site.path("done")) or program.poll() is not None)
        status = look.told(site.path("done"))[1] if os.path.exists(site.path("done")) else None
        left = look.left([program.pid, lives], helpers=False) if status is not None else []
        return judged(
            "both well",
            [
                "" if ended else "the fork never ends",
                "" if not ended or status in (0, None) else f"the fork ends with status {status}",
                "" if whole else "its tasks are lost" if done else "its tasks hang",
                "" if not whole or status is not None else "shutdown fails" if closed else "shutdown hangs",
                f"{len(left)} processes left" if left else "",
            ],
        )
    finally:
        clear(program)


@SUBJECT.row("daemonic", "uses the pool in a daemonic process of multiprocessing", opens=False)
def daemonic(site: Site) -> Cell:
    """A call has its result there, and that process ends."""
    program = look.started(site, "daemonic:")
    try:
        if look.ends(program, 15.0) is None:
            return Cell("hangs", False)
        with open(site.path("result"), encoding="utf-8") as file:
            said = file.read()
        return Cell("works", True) if said == "works" else Cell(said.partition(":")[0], False, said)
    finally:
        clear(program)
