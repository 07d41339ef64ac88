"""Many no-op tasks, submitted from a thread at once and then waited for: tasks a second."""

import contextlib
import time
from collections.abc import Iterator
from typing import Final

from benchmarks.bars import PEERS, Bar, Line
from benchmarks.contenders import made
from benchmarks.rows._row import PROCESSES, Opened, Row, affordable, check, numbered, scaled, shortened
from benchmarks.work import nothing

BURST: Final = 20_000
WHOLE: Final = ("backend", "pool", "stock")
SECONDS: Final = 0.7  # for slow ones


@contextlib.contextmanager
def opened(name: str, scale: float) -> Iterator[Opened]:
    """Ready for a burst."""
    full = scaled(BURST, scale)
    with made(name, nothing, "submit") as contender:

        def seconds_for(count: int) -> float:
            tasks = numbered(count)
            began = time.perf_counter()
            results = [result() for result in [contender.submit(task) for task in tasks]]
            took = time.perf_counter() - began
            check(results, count)
            return took

        count = affordable(seconds_for, full, SECONDS)
        if name in WHOLE:
            count = full
        yield Opened(lambda: {"burst": count / seconds_for(count)}, shortened(count, full))


ROW: Final = Row(
    (
        Line(
            "burst",
            f"burst of {BURST:,} no-op dict tasks, sync",
            "/s",
            (Bar(7, "stock"), Bar(2.5, PEERS)),
            more_is_better=True,
        ),
    ),
    PROCESSES,
    opened,
)
