"""What becomes of `ProcessPoolTaskBackend` when something dies, hangs or is killed: figures, and the bars they keep.

The faults are real ones: SIGKILL, SIGSTOP, C code that holds the GIL. Times are taken on the monotonic clock, of the
end of processes by pidfds; a row tells the median, the 99th percentile and the worst of its rounds, which for the idle
backend are its threads. Notes stand below their row.

    python -m benchmarks.faults [--check] [ROW ...]
"""

import argparse
import contextlib
import math
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from benchmarks._faults import handlers
from benchmarks._faults.watch import LIMIT, DeathWatch, Pipe, all_pids, kill_all, mark_run, marked
from taskback import (
    Event,
    ProcessPoolTaskBackend,
    TaskHandle,
    TaskState,
    WorkerDied,
    WorkerDiedError,
    WorkerStarted,
    _clock,
)
from taskback.pools.child import descendants

TASKS: Final = 1000
KILLERS: Final = 50
TIME_LIMIT: Final = 1.0  # seconds
GRACE: Final = 0.5  # seconds
IDLE: Final = 10.0  # seconds


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table.

    Attributes:
        what (str): Was measured.
        bar (str): As text.
        figures (list[float]): What was measured, one a round: in seconds, or in `unit`.
        ok (bool): Whether the bar is kept.
        notes (str): Said below the line; empty for nothing.
        unit (str): "ms" and "s" for seconds; else, what the figures are.
    """

    what: str
    bar: str
    figures: list[float]
    ok: bool
    notes: str = ""
    unit: str = "ms"

    def __str__(self) -> str:
        scale = 1e3 if self.unit == "ms" else 1.0
        shown = (statistics.median(self.figures), p99(self.figures), max(self.figures))
        figures = " ".join(f"{scale * each:8.{1 if self.unit == 'ms' else 3}f}" for each in shown)
        line = f"{self.what:{WHAT}} {self.bar:{BAR}} {figures} {self.unit:3} {len(self.figures):6}  "
        return line + ("ok" if self.ok else "MISSED") + (f"\n    {self.notes}" if self.notes else "")


WHAT: Final = 80  # characters of that column; likewise
BAR: Final = 15
HEAD: Final = f"{'':{WHAT}} {'bar':{BAR}} {'median':>8} {'p99':>8} {'worst':>8} {'':3} rounds"


def p99(values: list[float]) -> float:
    """The least value that 99 in a hundred do not exceed."""
    return sorted(values)[math.ceil(0.99 * len(values)) - 1]


@contextlib.contextmanager
def program(name: str, *arguments: object) -> "Iterator[subprocess.Popen[str]]":
    """One of `parents`; killed at last, if it has not been."""
    command = [sys.executable, "-m", "benchmarks._faults.parents", name, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def say(process: "subprocess.Popen[str]") -> None:
    """Give it a line."""
    stream = process.stdin
    assert stream is not None
    stream.write("\n")
    stream.flush()


def answer(process: "subprocess.Popen[str]") -> str:
    """Its next line."""
    stream: IO[str] | None = process.stdout
    assert stream is not None
    return stream.readline().strip()


def await_worker(handle: TaskHandle) -> int:
    """The worker that is in the task's handler, once one is."""
    deadline = time.monotonic() + LIMIT
    while not handle.running() or handle.worker_pid is None:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{handle} does not begin")
        time.sleep(0.0002)
    return handle.worker_pid


# --- the rows ---


def crashes(directory: Path) -> Iterator[Row]:
    """Tasks that kill their worker cost themselves alone."""
    seconds, complaints = list[float](), list[str]()
    for number in range(3):
        notes = directory / f"notes-{number}"
        began = time.monotonic()
        with ProcessPoolTaskBackend(handlers.handle, max_workers=2) as backend:
            submitted = [
                backend.submit_sync({"do": "note", "notes": str(notes), "n": n, "dies": n % (TASKS // KILLERS) == 7})
                for n in range(TASKS)
            ]
            wait(submitted, 60)
            seconds.append(time.monotonic() - began)
            states = Counter(handle.state.name for handle in submitted)
        if states != {"LOST": KILLERS, "SUCCEEDED": TASKS - KILLERS}:
            complaints.append(f"states {dict(states)}")
        if wrong := sum(not ended_well(handle) for handle in submitted):
            complaints.append(f"{wrong} ended otherwise than they should")
        if Counter(map(int, notes.read_text().split())) != Counter(range(TASKS)):
            complaints.append("not each ran exactly once")
    yield Row(
        f"of {TASKS:,} tasks {KILLERS} kill one of 2 workers: those LOST with pid and signal",
        "each ran once",
        seconds,
        not complaints,
        "; ".join(complaints),
        "s",
    )


def ended_well(handle: TaskHandle) -> bool:
    """Whether a task that kills its worker is told with pid and signal, and another one has its result."""
    error = handle.exception(0)
    if not handle.task["dies"]:
        return error is None and handle.result(0) == handle.task["n"]
    return isinstance(error, WorkerDiedError) and error.signal_name == "SIGKILL" and error.pid == handle.worker_pid


def killed_parent(directory: Path) -> Iterator[Row]:
    """Nothing outlives a parent that is killed."""
    seconds, found = list[float](), list[int]()
    for number in range(20):
        pipe = Pipe(directory / f"doomed-{number}")
        strangers = all_pids()
        with program("doomed", pipe.path) as parent:
            told = {fact["do"]: fact["pids"] for fact in (pipe.read() for _ in range(4))}
            os.kill(told["sleep"][0], signal.SIGSTOP)
            say(parent)
            answer(parent)
            time.sleep(number * 0.02)  # so that those that start have come this far or that
            # Those that told may not have come through exec, where they have no environment for a moment.
            there = {parent.pid, *(pid for pids in told.values() for pid in pids)} | marked(strangers)
            watch = DeathWatch(there)
            began = time.monotonic()
            parent.kill()
            gone = watch.wait()
            while late := marked(strangers | there):  # forked since
                there |= late
                gone = max(gone, DeathWatch(late).wait())
            seconds.append(gone - began)
            found.append(len(there))
        pipe.close()
    left = marked()
    yield Row(
        "SIGKILL of the parent until its workers and all their children are gone",
        "worst <= 100 ms",
        seconds,
        max(seconds) <= 0.1 and not left,
        f"{min(found)} to {max(found)} processes: workers busy, idle, stopped, starting, in C code; daemons, sessions"
        + (f"; left: {left}" if left else ""),
    )


def time_limit(directory: Path) -> Iterator[Row]:
    """A limit is kept beside a busy loop."""
    seconds, states = list[float](), set[str]()
    pipe = Pipe(directory / "busy")
    with program("busy", pipe.path, TIME_LIMIT, GRACE) as parent:
        for _ in range(10):
            say(parent)
            fact = pipe.read()
            gone = DeathWatch(fact["pids"]).wait()
            seconds.append(gone - fact["began"] - TIME_LIMIT - GRACE)
            say(parent)
            states.add(answer(parent))
    pipe.close()
    yield Row(
        f"C code beside a busy loop: limit {TIME_LIMIT:g} s + grace {GRACE:g} s until its tree is dead",
        "worst <= 100 ms",
        seconds,
        max(seconds) <= 0.1 and states == {"TIMED_OUT"},
        "" if states == {"TIMED_OUT"} else f"ended as {states}",
    )


def shutdown(directory: Path) -> Iterator[Row]:
    """A shutdown is bounded, tells, and leaves nothing."""
    seconds, complaints = list[float](), list[str]()
    pipe = Pipe(directory / "shutdown")
    for _ in range(10):
        before = holdings()
        took, wrong = one_shutdown(pipe)
        seconds.append(took)
        complaints += wrong
        if sys.version_info < (3, 13):
            time.sleep(0.01)  # there join() returns some microseconds before the kernel has done with a thread
        if (after := holdings()) != before:
            complaints.append(f"left: {[*after[0] - before[0]]} {[*after[1] - before[1]]} {before[2:]} -> {after[2:]}")
        if left := marked():
            complaints.append(f"left: {len(left)} processes")
    pipe.close()
    yield Row(
        f"shutdown(1), grace {GRACE:g} s: C code, stopped, swallows, {TASKS:,} queued; none left",
        f"worst <= {2 + GRACE:g} s",
        seconds,
        max(seconds) <= 2 + GRACE and not complaints,
        complaints[0] if complaints else "",
        "s",
    )


def one_shutdown(pipe: Pipe) -> tuple[float, list[str]]:
    """How long one takes, and what is wrong with its report."""
    with ProcessPoolTaskBackend(handlers.handle, max_workers=4, cancel_grace_seconds=GRACE) as backend:
        running = {what: backend.submit_sync({"do": what, "tell": pipe.path}) for what in ("hold the GIL", "swallow")}
        stopped = backend.submit_sync({"do": "sleep", "tell": pipe.path, "stopped": True})
        obeys = backend.submit_sync({"do": "sleep", "tell": pipe.path})
        for _ in range(4):
            pipe.read()
        os.kill(await_worker(stopped), signal.SIGSTOP)
        queued = [backend.submit_sync({"do": "return", "n": n}) for n in range(TASKS)]
        began = time.monotonic()
        report = backend.shutdown_sync(timeout=1)
        took = time.monotonic() - began
    expected = [*running.values(), stopped, obeys, *queued]
    wrong = []
    if {handle.id for handle in report.killed} != {handle.id for handle in (*running.values(), stopped)}:
        wrong.append(f"killed: {report.killed}")
    if report.cancelled != [obeys] or report.never_started != queued:
        wrong.append(f"the report: {report}")
    if report.unfinished != [handle.task for handle in expected]:
        wrong.append(f"{len(report.unfinished)} unfinished")
    if report.dying or report.stuck or report.abandoned:
        wrong.append(f"dying {report.dying}, stuck {report.stuck}, abandoned {report.abandoned}")
    return took, wrong


def holdings() -> tuple[set[threading.Thread], set[int], int, int]:
    """This process's threads, its children, and how many threads and descriptors the kernel knows of."""
    return (
        set(threading.enumerate()),
        set(descendants.children(os.getpid())),
        len(os.listdir("/proc/self/task")),
        len(os.listdir("/proc/self/fd")),
    )


def death_told(directory: Path) -> Iterator[Row]:
    """A worker's death is heard at once."""
    seconds = list[float]()
    with ProcessPoolTaskBackend(handlers.handle, max_workers=1) as backend:
        for _ in range(200):
            handle = backend.submit_sync({"do": "sleep"})
            pid = await_worker(handle)
            began = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(WorkerDiedError):
                handle.result(LIMIT)
            seconds.append(time.monotonic() - began)
            assert handle.state is TaskState.LOST, handle
    yield Row("SIGKILL of a busy worker until result() raises", "p99 < 20 ms", seconds, p99(seconds) < 0.02)


def replacement(directory: Path) -> Iterator[Row]:
    """Another worker is there at once, with what its handler imports."""
    from benchmarks._faults import with_numpy

    events: list[Event] = []
    called, started, whole = list[float](), list[float](), list[float]()
    with ProcessPoolTaskBackend(with_numpy.handle, max_workers=1) as backend:
        backend.subscribe(events.append)
        for number in range(50):
            doomed = backend.submit_sync({"do": "sleep"})
            after = backend.submit_sync({"do": "sum"})
            pid = await_worker(doomed)
            killed_ns = time.monotonic_ns()
            os.kill(pid, signal.SIGKILL)
            called_ns, total = after.result(LIMIT)
            assert total == 45
            died, ready = await_pair(events, number)
            called.append((_clock.epoch_ns(called_ns) - died) / 1e9)
            started.append((ready - died) / 1e9)
            whole.append((called_ns - killed_ns) / 1e9)
    for what, seconds in (
        ("numpy preloaded: WorkerDied event to WorkerStarted event", started),
        ("... WorkerDied event to the call of the next handler", called),
    ):
        yield Row(what, "median < 10 ms", seconds, statistics.median(seconds) < 0.01)
    yield Row("... SIGKILL to the call of the next handler", "none", whole, True)


def await_pair(events: list[Event], number: int) -> tuple[int, int]:
    """When the worker of that number died, and when the next one was ready; listeners hear it on another thread."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        died = [event.time_ns for event in events if isinstance(event, WorkerDied)]
        ready = [event.time_ns for event in events if isinstance(event, WorkerStarted)]
        if len(died) > number:
            after = [each for each in ready if each > died[number]]
            if after:
                return died[number], after[0]
        time.sleep(0.0005)
    raise TimeoutError("no event tells of the replacement")


def idle(directory: Path) -> Iterator[Row]:
    """A backend without tasks sleeps."""
    with ProcessPoolTaskBackend(handlers.handle, max_workers=2) as backend:
        wait([backend.submit_sync({"do": "return"}) for _ in range(100)])
        time.sleep(1)  # what comes after the last task is over
        threads = set(threading.enumerate()) - {threading.main_thread()}
        tasks = {f"/proc/self/task/{thread.native_id}": thread.name for thread in threads}
        for pid in marked():
            tasks |= {f"/proc/{pid}/task/{thread}": f"process {pid}" for thread in os.listdir(f"/proc/{pid}/task")}
        before = {task: switches(task) for task in tasks}
        time.sleep(IDLE)
        rates = {task: (switches(task) - before[task]) / IDLE for task in tasks}
    busy = ", ".join(f"{tasks[task]} {rate:g}/s" for task, rate in rates.items() if rate)
    yield Row(
        f"idle for {IDLE:g} s: context switches of the lanes, our other threads, 2 workers",
        "0/s in each",
        list(rates.values()),
        not busy,
        busy,
        "/s",
    )


def switches(task: str) -> int:
    """A thread's context switches so far."""
    lines = Path(f"{task}/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)


ROWS: Final[dict[str, Callable[[Path], Iterator[Row]]]] = {
    "crashes": crashes,
    "killed-parent": killed_parent,
    "time-limit": time_limit,
    "shutdown": shutdown,
    "death-told": death_told,
    "replacement": replacement,
    "idle": idle,
}


def measure(names: list[str]) -> Iterator[Row]:
    """The rows of these names, in order, as they are known."""
    mark_run()
    try:
        for name in names:
            with tempfile.TemporaryDirectory() as directory:
                yield from ROWS[name](Path(directory))
    finally:
        kill_all()


def main() -> int:
    """Measure and print; 1 with --check where a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "rows", nargs="*", metavar="ROW", help=f"which ones: {', '.join(ROWS)}; all where none is named"
    )
    parser.add_argument("--check", action="store_true", help="exit with status 1 where a bar is missed")
    options: Any = parser.parse_args()
    if unknown := [name for name in options.rows if name not in ROWS]:
        parser.error(f"unknown row {unknown[0]!r}; there are {', '.join(ROWS)}")
    print(
        f"ProcessPoolTaskBackend, Python {platform.python_version()}, a load of {os.getloadavg()[0]:.1f} before it",
        end="",
    )
    print(f" on {os.cpu_count()} CPUs\n{HEAD}", flush=True)
    missed = False
    for row in measure(options.rows or list(ROWS)):
        missed |= not row.ok
        print(row, flush=True)
    return 1 if options.check and missed else 0


if __name__ == "__main__":
    sys.exit(main())
