"""A new pool until its first result, each time in a program of its own: what pools share is not there yet, either.

What the program imports does not count.

    python -m benchmarks.program benchmarks.rows.starting CONTENDER [warm]
"""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Final

from benchmarks.bars import Bar, Line
from benchmarks.contenders import WORKERS, Backend, made
from benchmarks.rows._row import PROCESSES, Opened, Row, together, told_by
from benchmarks.work import nothing
from taskback import ProcessPoolTaskBackend


@contextlib.contextmanager
def opened(name: str, scale: float) -> Iterator[Opened]:
    """It is there, and can do it."""
    made(name, nothing)

    def measure() -> dict[str, float]:
        found = {"first-result": told_by("benchmarks.rows.starting", name)}
        if name == "backend":
            found["warm"] = told_by("benchmarks.rows.starting", name, "warm")
        return found

    measure()  # what it imports is in the page cache
    yield Opened(measure)


def main() -> None:
    """Print the seconds."""
    name, *warm = sys.argv[1:]
    contender = made(name, nothing)
    began = time.perf_counter()
    if warm:
        backend = ProcessPoolTaskBackend(nothing, max_workers=WORKERS)
        backend.initialize_sync(warm=True)
        print(time.perf_counter() - began, flush=True)
        backend.shutdown_sync()
        return
    if isinstance(contender, Backend):
        contender.warm = False  # as of the others, one worker is enough
    with contender:
        assert together(contender, [{"type": "nothing", "n": 7}]) == [7]
        print(time.perf_counter() - began, flush=True)


ROW: Final = Row(
    (
        Line("first-result", "first result of a new pool, in a new program", bars=(Bar(1.2, "stock-forkserver"),)),
        Line("warm", "initialize(warm=True) of a new backend, in a new program"),
    ),
    (*PROCESSES[:3], "stock-forkserver", *PROCESSES[3:]),
    opened,
)
