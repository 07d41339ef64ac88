"""What a no-op call costs in threads: the stock pool, `ThreadPool`, `ThreadPoolTaskBackend`, side by side.

The subjects take turns, so that what else the machine does hits them alike; the ratios to the first one count. A round
trip is one call submitted and waited for; its figure is the median. A burst is many calls submitted and then waited
for, by a thread or, awaited, by an event loop.

    python -m benchmarks.threads [--rounds 5] [--json]
"""

import argparse
import asyncio
import json
import platform
import sys
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import median
from typing import Any, Final

from taskback import ThreadPoolTaskBackend
from taskback.pools import ThreadPool

WORKERS: Final = 2
ROUND_TRIPS: Final = 1_000  # a round
BURST: Final = 5_000


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Args:
        name (str): Of its line.
        make (Callable): Makes one.
        submit (Callable): Submits a no-op to it; gives a future.
        awaitable (Callable): The same, to be awaited in a loop.
    """

    name: str
    make: Callable[[], AbstractContextManager[Any]]
    submit: Callable[[Any], Any]
    awaitable: Callable[[Any], Awaitable[Any]]


def nothing(*args: Any) -> None:
    """The call, and the handler."""


def executor(kind: Any) -> Subject:
    """A `concurrent.futures.Executor`."""
    return Subject(
        kind.__name__,
        lambda: kind(WORKERS),
        lambda pool: pool.submit(nothing),
        lambda pool: asyncio.get_running_loop().run_in_executor(pool, nothing),
    )


def backend(kind: Any) -> Subject:
    """A `TaskBackend`."""
    return Subject(
        kind.__name__,
        lambda: kind(nothing, max_workers=WORKERS),
        lambda made: made.submit_sync({"type": "nothing"}),
        lambda made: made.run({"type": "nothing"}),
    )


SUBJECTS: Final = (executor(ThreadPoolExecutor), executor(ThreadPool), backend(ThreadPoolTaskBackend))


def round_trip(subject: Subject, made: Any) -> float:
    """Microseconds, the median."""
    times = []
    for _ in range(ROUND_TRIPS):
        begun = time.perf_counter()
        subject.submit(made).result()
        times.append(time.perf_counter() - begun)
    return median(times) * 1e6


def burst(subject: Subject, made: Any) -> float:
    """Calls a second, waited for by a thread."""
    begun = time.perf_counter()
    for future in [subject.submit(made) for _ in range(BURST)]:
        future.result()
    return BURST / (time.perf_counter() - begun)


def awaited(subject: Subject, made: Any) -> float:
    """Calls a second, awaited by an event loop."""

    async def main() -> float:
        begun = time.perf_counter()
        await asyncio.gather(*(subject.awaitable(made) for _ in range(BURST)))
        return BURST / (time.perf_counter() - begun)

    return asyncio.run(main())


MEASURES: Final = {"round trip, µs": round_trip, "burst, /s": burst, "awaited, /s": awaited}


def measure(rounds: int) -> dict[str, dict[str, float]]:
    """The medians over the rounds: subject, measure, figure."""
    found: dict[str, dict[str, list[float]]] = {each.name: {name: [] for name in MEASURES} for each in SUBJECTS}
    for _ in range(rounds):
        for subject in SUBJECTS:
            with subject.make() as made:
                wait([subject.submit(made) for _ in range(100)])  # its threads run
                for name, function in MEASURES.items():
                    found[subject.name][name].append(function(subject, made))
    return {subject: {name: median(each) for name, each in figures.items()} for subject, figures in found.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    options = parser.parse_args()
    figures = measure(options.rounds)
    if options.json:
        json.dump(figures, sys.stdout, indent=2, ensure_ascii=False)
        print()
        return
    stock = figures[SUBJECTS[0].name]
    print(f"no-op calls, {WORKERS} threads, Python {platform.python_version()}; in brackets: times the first line's")
    for subject, each in figures.items():
        print(f"{subject:24}", *(f"{name} {each[name]:9,.0f} ({each[name] / stock[name]:.2f})" for name in MEASURES))


if __name__ == "__main__":
    main()
