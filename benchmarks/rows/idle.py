"""What an idle pool costs: unique memory of a worker, and what its processes do while there is nothing to do.

Each contender is a program of its own that has had both workers called once, and is looked at from outside.

    python -m benchmarks.program benchmarks.rows.idle CONTENDER

prints the pids of its workers, and waits for the end of its input.
"""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from statistics import median
from typing import Final

import psutil

from benchmarks.bars import Bar, Line
from benchmarks.contenders import made
from benchmarks.rows._row import Opened, Row, together
from benchmarks.work import whose

WINDOW: Final = 2.0  # seconds a round; five of them are ten seconds
SETTLING: Final = 1.0  # seconds after the last task
CALL: Final = 0.1  # seconds that a task stays, so that the next one goes to the other worker


def doings(pids: list[int]) -> tuple[int, float]:
    """Context switches and seconds of processor time of these processes so far, all threads."""
    switches, seconds = 0, 0.0
    for pid in pids:
        process = psutil.Process(pid)
        for thread in process.threads():
            with (
                contextlib.suppress(FileNotFoundError),
                open(f"/proc/{pid}/task/{thread.id}/status", encoding="utf-8") as status,
            ):
                switches += sum(int(line.split()[1]) for line in status if "ctxt_switches" in line)
        times = process.cpu_times()
        seconds += times.user + times.system
    return switches, seconds


@contextlib.contextmanager
def opened(name: str, scale: float) -> Iterator[Opened]:
    """The program runs, and has had nothing to do for a while."""
    made(name, whose)
    command = [sys.executable, "-m", "benchmarks.program", "benchmarks.rows.idle", name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        told = program.stdout.readline()
        if not told:
            raise RuntimeError("its program failed")
        workers: list[int] = json.loads(told)
        time.sleep(SETTLING)
        everything = [program.pid, *(child.pid for child in psutil.Process(program.pid).children(recursive=True))]
        seen_at, seen = time.monotonic(), doings(everything)

        def measure() -> dict[str, float]:
            # Other contenders' rounds lie between two of these, but this one's program is idle meanwhile.
            nonlocal seen_at, seen
            time.sleep(max(0.0, seen_at + WINDOW * min(1.0, scale) - time.monotonic()))
            switches, seconds = doings(everything)
            found = {
                "idle-memory": median(psutil.Process(pid).memory_full_info().uss for pid in workers),
                "idle-switches": float(switches - seen[0]),
                "idle-cpu": seconds - seen[1],
            }
            seen_at, seen = time.monotonic(), (switches, seconds)
            return found

        yield Opened(measure)
        assert program.stdin is not None
        program.stdin.close()


def main() -> None:
    """Have both workers called once, then be idle."""
    with made(sys.argv[1], whose) as contender:
        pids = set[int]()
        while len(pids) < 2:
            pids.update(together(contender, [{"type": "whose", "seconds": CALL}] * 2))
        print(json.dumps(sorted(pids)), flush=True)
        sys.stdin.read()


ROW: Final = Row(
    (
        Line(
            "idle-memory",
            "an idle worker's unique memory",
            "bytes",
            (Bar(3 * 1024 * 1024, "stock-forkserver", more=True),),
        ),
        Line(
            "idle-switches",
            f"context switches of an idle parent and its workers in {WINDOW:g} s, five times",
            "",
            (Bar(0, each=True),),
        ),
        Line("idle-cpu", "... their processor time", bars=(Bar(0, each=True),)),
    ),
    ("backend", "pool", "stock", "stock-forkserver", "mp.Pool", "loky", "pebble", "deadpool", "mpire", "joblib"),
    opened,
    pauses=False,
)
