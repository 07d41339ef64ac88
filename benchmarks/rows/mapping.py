"""`map` over many no-op tasks: tasks a second, each contender at the chunk size at which it was fastest before."""

import contextlib
import time
from collections.abc import Iterator
from typing import Final

from benchmarks.bars import Bar, Line
from benchmarks.contenders import made
from benchmarks.rows._row import PROCESSES, Opened, Row, affordable, check, numbered, scaled, shortened
from benchmarks.work import nothing

TASKS: Final = 400_000
TRIED: Final = 40_000  # with each chunk size
SECONDS: Final = 1.0  # for slow ones


@contextlib.contextmanager
def opened(name: str, scale: float) -> Iterator[Opened]:
    """Ready to map, at its best."""
    full = scaled(TASKS, scale)
    with made(name, nothing, "map") as contender:
        tasks = numbered(full)

        def seconds_for(count: int, chunk: int | None) -> float:
            some = tasks[:count]
            began = time.perf_counter()
            results = list(contender.map(some, chunk))
            took = time.perf_counter() - began
            check(results, count)
            return took

        def at(chunk: int | None) -> float:
            """The rate with chunks of that size."""
            count = affordable(lambda some: seconds_for(some, chunk), scaled(TRIED, scale), SECONDS / 4)
            return count / seconds_for(count, chunk)

        chunk = max(contender.chunks, key=at) if len(contender.chunks) > 1 else contender.chunks[0]
        count = affordable(lambda some: seconds_for(some, chunk), full, SECONDS)
        if name in ("backend", "pool", "stock", "mp.Pool"):
            count = full
        notes = [f"chunks of {chunk:,}"] if chunk else []
        notes += filter(None, [shortened(count, full)])
        yield Opened(lambda: {"map": count / seconds_for(count, chunk)}, ", ".join(notes))


ROW: Final = Row(
    (
        Line(
            "map",
            f"map of {TASKS:,} no-op tasks, at its best chunk size",
            "/s",
            (Bar(1, "mp.Pool"), Bar(4, "stock")),
            more_is_better=True,
        ),
    ),
    PROCESSES,
    opened,
)
