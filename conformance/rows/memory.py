"""A task takes more than there is: of the stack, of memory."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from conformance import look, work
from conformance.row import Cell, NotHereError, Site, Subject, judged

SUBJECT: Final = Subject("A task takes too much")

MEBIBYTE: Final = 2**20


@SUBJECT.row("stack-overflow", "recursion until the stack overflows")
def stack(site: Site) -> Cell:
    """The caller hears of it, by RecursionError or by the worker's death with its signal; the pool goes on."""
    found = look.outcome(look.attempt(site, work.overflow))
    named = any(word in found.text for word in ("RecursionError", "SIGSEGV", "-11", "Segmentation", "SIGABRT"))
    wrong = str(found) if found.error is None else "" if named else f"{found}, no cause"
    cell = judged(f"told as {found}", [wrong, look.afterwards(site)])
    return Cell(cell.said, cell.passed, found.text)


@SUBJECT.row("rlimit", "the task sets RLIMIT_AS and takes more than that")
def rlimit(site: Site) -> Cell:
    """The caller gets MemoryError, or hears of the worker's death; the pool goes on, with that worker or another."""
    found = look.outcome(look.attempt(site, work.take_within_a_limit, 64 * MEBIBYTE))
    wrong = "" if found.error is not None else str(found)
    cell = judged(f"told as {found}", [wrong, look.afterwards(site)])
    return Cell(cell.said, cell.passed, found.text)


@SUBJECT.row("cgroup", "the program's cgroup has no memory left", alone=True, opens=False)
def cgroup(site: Site) -> Cell:
    """The kernel kills the worker that took it, not the program.

    The caller hears of SIGKILL; no other task is lost; the pool goes on.
    """
    join_group(site, 512 * MEBIBYTE)  # before the pool is there, which may start its workers at once
    return site.pool.drive(lambda: _overdraw(site))


def _overdraw(site: Site) -> Cell:
    greedy = look.attempt(site, work.take, 1024 * MEBIBYTE)
    innocent = look.attempt(site, work.give, 1)
    found = look.outcome(greedy, 20.0)
    named = look.NAMES_KILL.search(found.text)
    wrong = str(found) if found.error is None else "" if named else f"{found}, no cause"
    other = look.outcome(innocent)
    cell = judged("told: SIGKILL", [wrong, "" if other.value == 1 else f"innocent: {other}", look.afterwards(site)])
    return Cell(cell.said, cell.passed, found.text)


def join_group(site: Site, limit_bytes: int) -> None:
    """Put this program, and what it starts from here on, into a cgroup of its own with so much memory.

    Its path is written down for the keeper, which removes it when all in it have ended.

    Raises:
        NotHereError: None can be made.
    """
    for parent, limits in _hierarchies():
        group = parent / f"taskback-matrix-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        with (site.directory / "cgroups").open("a", encoding="utf-8") as file:
            print(group, file=file)
        try:
            for name, value in limits:
                with suppress(FileNotFoundError):  # where the kernel does not count swap
                    (group / name).write_text(str(limit_bytes if value is None else value))
            (group / "cgroup.procs").write_text(str(os.getpid()))
        except OSError:
            continue
        return
    raise NotHereError("no cgroup can be made")


def _hierarchies() -> list[tuple[Path, list[tuple[str, int | None]]]]:
    """Where this process's cgroup with a memory controller is, and which of its files are limits."""
    found: list[tuple[Path, list[tuple[str, int | None]]]] = []
    with open("/proc/self/cgroup", encoding="ascii") as file:
        entries = [line.rstrip("\n").split(":", 2) for line in file]
    for _, controllers, path in entries:
        if "memory" in controllers.split(","):  # version 1
            limits: list[tuple[str, int | None]] = [
                ("memory.limit_in_bytes", None),
                ("memory.memsw.limit_in_bytes", None),
            ]
            found.append((Path("/sys/fs/cgroup/memory" + path), limits))
        elif not controllers:  # version 2; a group's limits are for it to have where its parent passes them on
            place = Path("/sys/fs/cgroup" + path)
            with suppress(OSError):
                for parent in (place, place.parent):
                    if "memory" in (parent / "cgroup.subtree_control").read_text().split():
                        found.append((parent, [("memory.max", None), ("memory.swap.max", 0)]))
    return found
