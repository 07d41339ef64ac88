"""What probes look with: at calls, at processes, at pools."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from conformance import work
from conformance.contenders import Call, CannotError, Function
from conformance.keeper import ended
from conformance.row import PATIENCE, Site
from taskback.pools.child import descendants

NAMES_KILL: Final = re.compile(r"SIGKILL|\bKilled\b|-9\b", re.IGNORECASE)  # how pools say that a worker was killed
LINGERS: Final = 2.0  # seconds that what has ended may take to be gone


@dataclass(frozen=True, slots=True)
class Outcome:
    """What has come of a call.

    Attributes:
        hangs (bool): Nothing, in all the patience that there is.
        value (Any): Its result.
        error (BaseException | None): What it raised.
        seconds (float): How long that took from when it was asked.
    """

    hangs: bool
    value: Any
    error: BaseException | None
    seconds: float

    @property
    def text(self) -> str:
        """All that the error tells: its own text, its facts and its causes."""
        return " ".join(_told_by(self.error))

    def __str__(self) -> str:
        if self.hangs:
            return "caller hangs"
        return type(self.error).__name__ if self.error is not None else "a result"


def _told_by(error: BaseException | None, depth: int = 4) -> Iterable[str]:
    if error is None or not depth:
        return
    yield type(error).__name__
    with suppress(Exception):
        yield str(error)
    with suppress(Exception):
        yield repr(error)
    yield repr([each for each in vars(error).values() if isinstance(each, (int, str))])
    yield from _told_by(error.__cause__, depth - 1)


def attempt(site: Site, function: Function, *args: Any, timeout: float | None = None) -> Call:
    """Hand over a call; what that raises is what comes of it."""
    try:
        return site.pool.submit(function, *args, timeout=timeout)
    except CannotError:
        raise
    except BaseException as error:
        call = Call()
        call.set_exception(error)
        return call


def outcome(call: Call, seconds: float = PATIENCE) -> Outcome:
    """Wait for what comes of a call."""
    began = time.monotonic()
    error: BaseException | None
    try:
        error = call.exception(seconds)
    except CancelledError as cancelled:  # futures.wait would wait on, for some pools do not say that they know of it
        error = cancelled
    except TimeoutError:
        return Outcome(True, None, None, time.monotonic() - began)
    took = time.monotonic() - began
    return Outcome(False, None if error is not None else call.result(0), error, took)


def warm(site: Site) -> None:
    """Have both workers started, so that their start is no part of what comes."""
    site.stage("the first calls")
    for call in [attempt(site, work.pid) for _ in range(4)]:
        outcome(call, 20.0)


def milliseconds(seconds: float) -> str:
    """As a cell says it."""
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def wait_until(true: Callable[[], object], seconds: float = PATIENCE) -> bool:
    """Whether it is true in time."""
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


def told(path: str, seconds: float = PATIENCE) -> list[int]:
    """The numbers that a worker tells on that path: its process first."""
    if not wait_until(lambda: os.path.exists(path), seconds):
        raise TimeoutError(f"no worker has told {os.path.basename(path)} within {seconds:g} s")
    with open(path, encoding="ascii") as file:
        return [int(word) for word in file.read().split()]


def afterwards(site: Site) -> str:
    """What is wrong with the pool afterwards; nothing where each of four calls, then of two, has its result."""
    site.stage("a call afterwards")
    for number in (4, 2):
        calls = [attempt(site, work.give, n) for n in range(number)]
        for n, call in enumerate(calls):
            found = outcome(call)
            if found.hangs:
                return "pool hangs afterwards"
            if found.error is not None:
                return f"pool bricked ({type(found.error).__name__})"
            if found.value != n:
                return f"pool gives wrong results ({found.value!r})"
    return ""


def is_working(pid: int) -> bool:
    """Whether a process that had something to compute goes on with it: it would be running whenever one looks."""
    if pid != os.getpid():
        states = []
        for _ in range(20):
            states.append(_state(pid))
            time.sleep(0.01)
        return states.count(b"R") > len(states) / 2
    before = _cpu_seconds(pid)
    time.sleep(0.4)
    return _cpu_seconds(pid) - before > 0.05


def _state(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0]
    except OSError:
        return b"X"


def _cpu_seconds(pid: int) -> float:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def gone(pids: Iterable[int], seconds: float = LINGERS) -> bool:
    """Whether all of them have ended in time."""
    return wait_until(lambda: all(map(ended, pids)), seconds)


def below() -> list[int]:
    """The processes below this one that have not ended; those that have lost their parents are among them."""
    return [pid for pid in descendants.below(descendants.children(os.getpid())) if not ended(pid)]


def left(but: Iterable[int] = (), seconds: float = LINGERS, helpers: bool = True) -> list[int]:
    """Those that do not end in that time.

    Args:
        but (Iterable[int]): Do not count.
        seconds (float): The time.
        helpers (bool): Whether those count that multiprocessing and loky keep until the program ends, whatever becomes
            of their pools: trackers, and the server that workers are forked from.
    """

    def there() -> list[int]:
        found = [pid for pid in below() if pid not in but]
        return found if helpers else [pid for pid in found if not _helps(pid)]

    wait_until(lambda: not there(), seconds)
    return there()


def _helps(pid: int) -> bool:
    if not _is_named_so(pid):
        return False
    with suppress(OSError, IndexError), open(f"/proc/{pid}/stat", "rb") as file:
        return not _is_named_so(int(file.read().rpartition(b")")[2].split()[1]))  # else it was forked from the server
    return False


def _is_named_so(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            command = file.read()
    except OSError:
        return False
    return b"resource_tracker" in command or b"forkserver import main" in command


def started(site: Site, name: str, directory: str = "") -> "subprocess.Popen[bytes]":
    """One of `programs`, in a process group of its own, as a shell gives it; what it prints is in `output`."""
    place = site.directory / directory
    place.mkdir(exist_ok=True)
    site.stage("its program starts")
    with (place / "output").open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "benchmarks.program", "conformance.programs", name, site.contender, str(place)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            process_group=0,
        )


def ends(program: "subprocess.Popen[bytes]", seconds: float = PATIENCE) -> float | None:
    """After how many seconds it has ended; None if it has not in time."""
    began = time.monotonic()
    try:
        program.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    return time.monotonic() - began


def kill(pid: int) -> None:
    """From outside, without warning."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
