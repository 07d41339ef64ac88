"""No-op tasks in threads, against the stock pool of threads."""

import contextlib
import time
from collections.abc import Iterator
from statistics import median
from typing import Final

from benchmarks.bars import Bar, Line
from benchmarks.contenders import made
from benchmarks.rows._row import Opened, Row, check, numbered, scaled, trips
from benchmarks.work import nothing

BURST: Final = 10_000
TRIPS: Final = 500
STOCK: Final = "stock-threads"


@contextlib.contextmanager
def opened(name: str, scale: float) -> Iterator[Opened]:
    """Its threads run."""
    tasks, most = numbered(scaled(BURST, scale)), scaled(TRIPS, scale)
    with made(name, nothing) as contender:

        async def main() -> float:
            began = time.perf_counter()
            results = await contender.gather(tasks)
            took = time.perf_counter() - began
            check(results, len(tasks))
            return took

        def burst() -> float:
            began = time.perf_counter()
            results = [result() for result in [contender.submit(task) for task in tasks]]
            took = time.perf_counter() - began
            check(results, len(tasks))
            return took

        def measure() -> dict[str, float]:
            return {
                "threads-awaited": len(tasks) / contender.run(main),
                "threads-burst": len(tasks) / burst(),
                "threads-round-trip": median(trips(contender, tasks[0], most, 1.0)),
            }

        measure()
        yield Opened(measure)


ROW: Final = Row(
    (
        Line(
            "threads-awaited",
            f"threads: burst of {BURST:,} no-ops, awaited in one loop",
            "/s",
            (Bar(2, STOCK),),
            more_is_better=True,
        ),
        Line("threads-burst", "... sync", "/s", (Bar(0.9, STOCK),), more_is_better=True),
        Line("threads-round-trip", "... round trip p50, one at a time"),
    ),
    ("thread-backend", "thread-pool", STOCK),
    opened,
)
