"""A fresh process for each task: tasks a second.

The stock pool does that by spawn unless it is told otherwise, up to Python 3.13; so it is measured with its forkserver
as well, which is the quicker one, and the bar is held against both.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import Final

from benchmarks.bars import Bar, Line
from benchmarks.contenders import made
from benchmarks.rows._row import Opened, Row, check, numbered, scaled, together
from benchmarks.work import nothing

MOST: Final = 300
SECONDS: Final = 0.5


@contextlib.contextmanager
def opened(name: str, scale: float) -> Iterator[Opened]:
    """Its rate is known."""
    with made(name, nothing, recycle=True) as contender:

        def seconds_for(count: int) -> float:
            began = time.perf_counter()
            results = together(contender, numbered(count))
            took = time.perf_counter() - began
            check(results, count)
            return took

        seconds_for(4)
        count = min(scaled(MOST, scale), max(10, int(10 / seconds_for(10) * SECONDS)))
        yield Opened(lambda: {"recycled": count / seconds_for(count)}, f"{count} tasks a round")


ROW: Final = Row(
    (
        Line(
            "recycled",
            "a fresh process for each task (max_tasks_per_child=1)",
            "/s",
            (Bar(20, "stock"), Bar(20, "stock-forkserver")),
            more_is_better=True,
        ),
    ),
    ("backend", "pool", "stock", "stock-forkserver", "mp.Pool", "pebble", "deadpool", "mpire", "aiomultiprocess"),
    opened,
    seconds=20.0,
)
