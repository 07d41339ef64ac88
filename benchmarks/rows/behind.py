"""One task of a second, then no-ops of the same type, with both workers idle before: the slowest of the no-ops."""

import contextlib
import time
from collections.abc import Iterator
from typing import Final

from benchmarks.bars import Bar, Line
from benchmarks.contenders import made
from benchmarks.rows._row import Opened, Row
from benchmarks.work import begun

QUICK: Final = 40
LONG: Final = 1.0  # seconds


@contextlib.contextmanager
def opened(name: str, scale: float) -> Iterator[Opened]:
    """Both workers are there, and idle."""
    with made(name, begun, "submit") as contender:

        def measure() -> dict[str, float]:
            for _ in range(100):  # the estimate of how long such tasks take is of no-ops
                contender.call({"type": "same"})
            long = contender.submit({"type": "same", "seconds": LONG})
            submitted, ended = [], []
            results = []
            for _ in range(QUICK):
                submitted.append(time.monotonic())
                results.append(contender.submit({"type": "same"}))
            for result in results:
                result()
                ended.append(time.monotonic())
            long()
            return {"behind": max(end - begin for end, begin in zip(ended, submitted, strict=True))}

        for result in [contender.submit({"type": "same", "seconds": 0.2}) for _ in range(2)]:
            result()
        yield Opened(measure)


ROW: Final = Row(
    (
        Line(
            "behind",
            f"one task of {LONG:g} s, then {QUICK} no-ops of its type, both workers idle before: the slowest no-op",
            bars=(Bar(0.010),),
        ),
    ),
    ("backend", "pool", "stock", "mp.Pool", "loky", "pebble", "deadpool", "mpire"),
    opened,
)
