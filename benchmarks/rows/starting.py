"""A new pool until its first result, each time in a program of its own: what pools share is not there yet, either.

What the program imports does not count.

    python -m benchmarks.program benchmarks.rows.starting CONTENDER [warm]
"""

import contextlib
import inspect
import sys
import time
from collections.abc import Iterator
from typing import Final

from benchmarks.bars import Bar, Line
from benchmarks.contenders import WORKERS, made
from benchmarks.rows._row import PROCESSES, Opened, Row, together, told_by
from benchmarks.work import nothing
from taskback import ProcessPoolTaskBackend

HAS_WARM: Final = "warm" in inspect.signature(ProcessPoolTaskBackend.initialize_sync).parameters


@contextlib.contextmanager
def opened(name: str, scale: float) -> Iterator[Opened]:
    """It is there, and can do it."""
    made(name, nothing)

    def measure() -> dict[str, float]:
        found = {"first-result": told_by("benchmarks.rows.starting", name)}
        if name == "backend" and HAS_WARM:
            found["warm"] = told_by("benchmarks.rows.starting", name, "warm")
        return found

    measure()  # what it imports is in the page cache
    lacks = {} if name != "backend" or HAS_WARM else {"warm": "not yet: initialize has no warm"}
    yield Opened(measure, lacks=lacks)


def main() -> None:
    """Print the seconds."""
    name, *warm = sys.argv[1:]
    contender = made(name, nothing)
    began = time.perf_counter()
    if warm:
        backend = ProcessPoolTaskBackend(nothing, max_workers=WORKERS)
        initialize = getattr(backend, "initialize_sync")  # noqa: B009 # so that it is typed wherever it has no warm
        initialize(warm=True)
        print(time.perf_counter() - began, flush=True)
        backend.shutdown_sync()
        return
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
