"""How late an event loop's timers are while many tasks that it awaits run through processes.

A timer is due each millisecond. One that the loop comes to late counts with how late it is, and so does each that was
due meanwhile: the figure is what something that becomes due at any moment has to wait. The tasks are submitted 50 at a
time, with a turn of the loop after each 50, as a considerate program would; all are in flight at once.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Awaitable, Iterator
from typing import Any, Final

from benchmarks.bars import Bar, Line
from benchmarks.contenders import made
from benchmarks.rows._row import AWAITABLE, Opened, Row, affordable, check, numbered, scaled, shortened
from benchmarks.rows.burst import WHOLE
from benchmarks.work import nothing

TASKS: Final = 20_000
SLICE: Final = 50
BEAT: Final = 0.001  # seconds
SECONDS: Final = 0.7  # for slow ones


async def beats(lateness: list[float], stop: asyncio.Event) -> None:
    """Note how late each beat is, those that nobody came to included."""
    due = time.perf_counter() + BEAT
    while not stop.is_set():
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        now = time.perf_counter()
        while due <= now:
            lateness.append(now - due)
            due += BEAT


@contextlib.contextmanager
def opened(name: str, scale: float) -> Iterator[Opened]:
    """Ready to be looked at."""
    full = scaled(TASKS, scale)
    with made(name, nothing, "begin") as contender:

        async def main(count: int) -> tuple[float, list[float]]:
            await contender.gather(numbered(10))  # some start their workers in each loop
            tasks = numbered(count)
            lateness, stop = list[float](), asyncio.Event()
            beating = asyncio.ensure_future(beats(lateness, stop))
            began = time.perf_counter()
            begun: list[Awaitable[Any]] = []
            for number, task in enumerate(tasks):
                if number % SLICE == 0:
                    await asyncio.sleep(0)
                begun.append(await contender.begin(task))
            results = [await each for each in begun]
            took = time.perf_counter() - began
            stop.set()
            await beating
            check(results, count)
            return took, sorted(lateness)

        def measure() -> dict[str, float]:
            _, lateness = contender.run(lambda: main(count))
            return {"stall": lateness[math.ceil(0.99 * len(lateness)) - 1], "stall-worst": lateness[-1]}

        count = affordable(lambda some: contender.run(lambda: main(some))[0], full, SECONDS)
        if name in WHOLE:
            count = full
        yield Opened(measure, shortened(count, full))


ROW: Final = Row(
    (
        Line(
            "stall",
            f"loop stall p99 while {TASKS:,} awaited tasks run through processes",
            bars=(Bar(0.005), Bar(0.5, "stock")),
        ),
        Line("stall-worst", "... the worst"),
    ),
    tuple(name for name in AWAITABLE if name != "trio-parallel"),
    opened,
)
