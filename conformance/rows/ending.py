"""The end: a shutdown in bounded time, a program that forgets it, Ctrl-C."""

import os
import signal
import subprocess
import time
from typing import Final

from conformance import look, work
from conformance.row import Cell, Site, Subject, judged

SUBJECT: Final = Subject("The end")

SECONDS: Final = 1.0  # what a shutdown is given
BOUND: Final = SECONDS + 2.0 + 1.0  # and the grace, and a second
EXIT: Final = 5.0  # seconds for a program to end
MOMENTS: Final = (0.0, 0.01, 0.03, 0.06, 0.1)  # seconds after the first call


def shut_down(site: Site) -> tuple[float, list[str]]:
    """Shut it down; how long that took, and what is wrong with it."""
    site.stage("shutdown")
    began = time.monotonic()
    problems = []
    try:
        site.pool.shutdown(SECONDS)
    except Exception as error:
        problems.append(f"raises {type(error).__name__}")
    took = time.monotonic() - began
    left = look.left(helpers=False)
    return took, [
        *problems,
        f"takes {took:.1f} s" if took > BOUND else "",
        f"{len(left)} processes left" if left else "",
    ]


def with_a(site: Site, state: str) -> Cell:
    """Shut down a pool that has a task in that state."""
    if state != "idle":
        task = {"busy": work.spin, "stubborn": work.swallow, "gil": work.hold_the_gil, "stopped": work.sleep}[state]
        look.attempt(site, task, site.path("victim"))
        (pid,) = look.told(site.path("victim"))
        if state == "stopped":
            os.kill(pid, signal.SIGSTOP)
    else:
        for call in [look.attempt(site, work.pid) for _ in range(4)]:
            look.outcome(call)
    took, problems = shut_down(site)
    if state == "busy" and pid == os.getpid() and look.is_working(pid):
        problems.append("runs on")
    return judged(f"{look.milliseconds(took)}, none left", problems)


@SUBJECT.row("shutdown-idle", "shutdown of an idle pool", threads=["thread-backend"])
def idle(site: Site) -> Cell:
    """It returns within 4 s (timeout 1 s, grace 2 s, and 1 s), and 2 s later no process is left."""
    return with_a(site, "idle")


@SUBJECT.row("shutdown-busy", "… with a loop in Python", threads=["thread-backend"])
def busy(site: Site) -> Cell:
    """It returns within 4 s (timeout 1 s, grace 2 s, and 1 s), and 2 s later no process is left, no task runs on."""
    return with_a(site, "busy")


@SUBJECT.row("shutdown-stubborn", "… with `except BaseException: pass` in it")
def stubborn(site: Site) -> Cell:
    """It returns within 4 s (timeout 1 s, grace 2 s, and 1 s), and 2 s later no process is left."""
    return with_a(site, "stubborn")


@SUBJECT.row("shutdown-gil", "… with C code that holds the GIL")
def gil(site: Site) -> Cell:
    """It returns within 4 s (timeout 1 s, grace 2 s, and 1 s), and 2 s later no process is left."""
    return with_a(site, "gil")


@SUBJECT.row("shutdown-stopped", "… with a stopped worker")
def stopped(site: Site) -> Cell:
    """It returns within 4 s (timeout 1 s, grace 2 s, and 1 s), and 2 s later no process is left."""
    return with_a(site, "stopped")


@SUBJECT.row("shutdown-starting", "… while workers start", opens=False, seconds=60)
def starting(site: Site) -> Cell:
    """At five moments after a first call: it returns within 4 s, and 2 s later no process is left."""
    slowest, problems = 0.0, list[str]()
    for number, moment in enumerate(MOMENTS):
        place = f"program-{number}"
        program = look.started(site, f"shuts down:{moment}", place)
        try:
            look.told(site.path(f"{place}/ready"), 20.0)
            site.stage("shutdown")
            began = time.monotonic()
            if not look.wait_until(lambda: os.path.exists(site.path(f"{place}/done")) or program.poll() is not None):  # noqa: B023
                problems.append("hangs")
            elif program.poll():
                problems.append("raises")
            took = time.monotonic() - began - moment
            slowest = max(slowest, took)
            if took > BOUND:
                problems.append(f"takes {took:.1f} s")
            elif left := look.left([program.pid], helpers=False):
                problems.append(f"{len(left)} processes left")
        finally:
            clear(program)
    return judged(f"at most {look.milliseconds(slowest)}, none left", dict.fromkeys(problems))


def clear(program: "subprocess.Popen[bytes]") -> None:
    """End a program and all that it has left."""
    program.kill()
    program.wait()
    while left := look.left(seconds=0.0):
        for pid in left:
            look.kill(pid)


def exits(site: Site, state: str) -> Cell:
    """A program that returns from its main function with a task in that state."""
    program = look.started(site, f"forgets:{state}")
    look.told(site.path("ready"), 20.0)
    site.stage("the end of the program")
    return ended_well(site, program, [])


def ended_well(site: Site, program: "subprocess.Popen[bytes]", strangers: list[str]) -> Cell:
    """Whether it ends in time, and leaves nothing."""
    took = look.ends(program)
    if took is None:
        return Cell("hangs", False, output(site))
    left = look.left()
    return judged(
        f"ends after {look.milliseconds(took)}",
        [
            f"ends after {took:.1f} s" if took > EXIT else "",
            f"{len(left)} processes left" if left else "",
            *strangers,
        ],
    )


def output(site: Site) -> str:
    """What the program has printed."""
    with open(site.path("output"), encoding="utf-8", errors="replace") as file:
        return file.read()[-4000:]


@SUBJECT.row("exit-idle", "a program that forgets to shut down ends", opens=False)
def exit_idle(site: Site) -> Cell:
    """Within 5 s, and 2 s later no process of it is left."""
    return exits(site, "idle")


@SUBJECT.row("exit-busy", "… with a loop in Python", opens=False, threads=["thread-backend"])
def exit_busy(site: Site) -> Cell:
    """Within 5 s, and 2 s later no process of it is left."""
    return exits(site, "busy")


@SUBJECT.row("exit-gil", "… with C code that holds the GIL", opens=False)
def exit_gil(site: Site) -> Cell:
    """Within 5 s, and 2 s later no process of it is left."""
    return exits(site, "gil")


def interrupted(site: Site, name: str, times: int) -> Cell:
    """Press Ctrl-C: the whole process group hears it."""
    program = look.started(site, name)
    look.told(site.path("ready"), 20.0)
    time.sleep(0.3)  # it has gone on to wait for its task
    site.stage("Ctrl-C")
    for number in range(times):
        if number:
            time.sleep(0.5)
        if program.poll() is None:
            os.killpg(program.pid, signal.SIGINT)
    cell = ended_well(site, program, [])
    shown = output(site).count("Traceback (most recent call last)")
    if cell.passed and shown > 2:
        return Cell(f"{cell.said}, {shown} tracebacks", False, output(site))
    return Cell(cell.said, cell.passed, output(site))


@SUBJECT.row("interrupt-once", "Ctrl-C while it waits for a task", opens=False, threads=["thread-backend"])
def once(site: Site) -> Cell:
    """The program ends within 5 s by its own KeyboardInterrupt.

    Workers show no tracebacks of theirs (asyncio shows two for itself); 2 s later no process is left.
    """
    return interrupted(site, "waits:busy", 1)


@SUBJECT.row("interrupt-twice", "Ctrl-C twice, in a `with` block and in its end; the task swallows all", opens=False)
def twice(site: Site) -> Cell:
    """Within 5 s after the second one the program has ended, without more than two tracebacks.

    2 s later no process is left.
    """
    return interrupted(site, "closes:stubborn", 2)
