"""No-op tasks with one in a hundred among them that takes 20 ms: how long no-ops wait to begin, and how long all take.

Those are of a type of their own, or, so that nothing tells them beforehand, of the no-ops' type. All tasks come at
once, or at a steady rate that leaves the workers idle for most of the time. The slow ones sleep: it is the order that
is measured, not the processor.
"""

import contextlib
import math
import time
from collections.abc import Iterator
from typing import Any, Final

from benchmarks.bars import Bar, Line
from benchmarks.contenders import made
from benchmarks.rows._row import Opened, Row, scaled
from benchmarks.work import begun

BURST: Final = 3_000
STEADY: Final = 1_000
RATE: Final = 1_500.0  # tasks a second
SLOW: Final = 0.02  # seconds
KINDS: Final = {"own": "of a type of their own", "same": "of the same type"}


def tasks_of(kind: str, count: int) -> list[dict[str, Any]]:
    """So many tasks, the slow ones in even distances."""
    slow = {"type": "slow" if kind == "own" else "quick", "seconds": SLOW}
    return [slow if number % 100 == 50 else {"type": "quick"} for number in range(count)]


def p99(values: list[float]) -> float:
    """The least value that 99 in a hundred do not exceed."""
    return sorted(values)[math.ceil(0.99 * len(values)) - 1]


@contextlib.contextmanager
def opened(name: str, scale: float) -> Iterator[Opened]:
    """Ready for both kinds, in both ways."""
    with made(name, begun, "submit") as contender:

        def once(tasks: list[dict[str, Any]], gap: float) -> tuple[float, float]:
            """The 99th percentile of the no-ops' waits, and the total."""
            results, submitted = [], list[float]()
            first = time.monotonic()
            for number, task in enumerate(tasks):
                if gap and (ahead := first + number * gap - time.monotonic()) > 0:
                    time.sleep(ahead)
                submitted.append(time.monotonic())
                results.append(contender.submit(task))
            begins = [result() for result in results]
            total = time.monotonic() - first
            waits = [
                begin - at for begin, at, task in zip(begins, submitted, tasks, strict=True) if "seconds" not in task
            ]
            return p99(waits), total

        def measure() -> dict[str, float]:
            found = dict[str, float]()
            for kind in KINDS:
                wait, total = once(tasks_of(kind, scaled(BURST, scale)), 0)
                steady, _ = once(tasks_of(kind, scaled(STEADY, scale)), 1 / RATE)
                found |= {f"mixed-{kind}-wait": wait, f"mixed-{kind}-total": total, f"mixed-{kind}-steady": steady}
            return found

        once(tasks_of("own", 200), 0)
        yield Opened(measure)


def _lines() -> Iterator[Line]:
    for kind, words in KINDS.items():
        slow = f"1 % tasks of {SLOW * 1000:g} ms, {words}"
        bar = (Bar(1.0, "stock"),)
        yield Line(f"mixed-{kind}-wait", f"{slow}, among {BURST:,} no-ops at once: p99 wait of the no-ops", bars=bar)
        yield Line(f"mixed-{kind}-total", "... total time", bars=bar)
        yield Line(f"mixed-{kind}-steady", f"... p99 wait of the no-ops at a steady {RATE:,.0f}/s", bars=bar)


ROW: Final = Row(tuple(_lines()), ("backend", "pool", "stock", "mp.Pool", "loky"), opened)
