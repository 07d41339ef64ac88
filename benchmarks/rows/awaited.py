"""Many no-op tasks, submitted and awaited in one event loop: tasks a second."""

import contextlib
import time
from collections.abc import Iterator
from typing import Final

from benchmarks.bars import PEERS, Bar, Line
from benchmarks.contenders import made
from benchmarks.rows._row import AWAITABLE, Opened, Row, affordable, check, numbered, scaled, shortened
from benchmarks.rows.burst import BURST, SECONDS, WHOLE
from benchmarks.work import nothing


@contextlib.contextmanager
def opened(name: str, scale: float) -> Iterator[Opened]:
    """Ready for a burst."""
    full = scaled(BURST, scale)
    with made(name, nothing, "gather") as contender:

        def seconds_for(count: int) -> float:
            async def main() -> float:
                await contender.gather(numbered(10))  # some start their workers in each loop
                tasks = numbered(count)
                began = time.perf_counter()
                results = await contender.gather(tasks)
                took = time.perf_counter() - began
                check(results, count)
                return took

            return contender.run(main)

        count = affordable(seconds_for, full, SECONDS)
        if name in WHOLE:
            count = full
        yield Opened(lambda: {"awaited": count / seconds_for(count)}, shortened(count, full))


ROW: Final = Row(
    (
        Line(
            "awaited",
            f"burst of {BURST:,} no-op dict tasks, awaited in one loop",
            "/s",
            (Bar(4, "stock"), Bar(3, PEERS)),
            more_is_better=True,
        ),
    ),
    AWAITABLE,
    opened,
)
