"""`taskback.pools.ProcessPool` against the stock `ProcessPoolExecutor`: no-op calls, two workers, ratios of one run.

The process backend, which keeps handles, figures and limits as well, is measured beside them with no-op tasks. Rounds
take turns, so that all meet the same machine; of the rounds the median counts.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any, Final

from taskback import ProcessPoolTaskBackend
from taskback.pools import ProcessPool

ROUNDS: Final = 7
TRIPS: Final = 300
BURST: Final = 5000
MOST_TRIP: Final = 0.6  # of the stock pool's round trip
LEAST_BURST: Final = 2.0  # times the stock pool's rate


def nothing(value: int) -> int:
    """A call that does nothing."""
    return value


def handler(task: dict[str, Any]) -> Any:
    """The same for a task."""
    return task["n"]


Submit = Callable[[int], "Future[Any]"]


def round_trip(submit: Submit) -> float:
    """Seconds from submit to result, one at a time: the median."""
    times = []
    for number in range(TRIPS):
        began = time.perf_counter()
        submit(number).result()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def burst(submit: Submit) -> float:
    """Calls a second, when all are submitted at once."""
    began = time.perf_counter()
    futures = [submit(number) for number in range(BURST)]
    for number, future in enumerate(futures):
        assert future.result() == number
    return BURST / (time.perf_counter() - began)


def main() -> int:
    """Print the figures; 1 where a bar is missed."""
    with (
        ProcessPoolExecutor(2) as stock,
        ProcessPool(2) as pool,
        ProcessPoolTaskBackend(handler, max_workers=2) as backend,
    ):
        submits: list[Submit] = [
            lambda number: stock.submit(nothing, number),
            lambda number: pool.submit(nothing, number),
            lambda number: backend.submit_sync({"n": number}),
        ]
        for submit in submits:
            burst(submit)  # it has its workers, and is warm
        trips = [[round_trip(submit) for submit in submits] for _ in range(ROUNDS)]
        bursts = [[burst(submit) for submit in submits] for _ in range(ROUNDS)]
    for name, rounds, unit, factor in (("round trip p50", trips, "us", 1e6), (f"burst of {BURST}", bursts, "/s", 1.0)):
        figures = [statistics.median(side) * factor for side in zip(*rounds, strict=True)]
        told = zip(("stock", "pool", "backend"), figures, strict=True)
        print(f"{name:16s} " + "   ".join(f"{who} {figure:7.0f} {unit}" for who, figure in told))
    trip, backend_trip = ratios(trips)
    rate, backend_rate = ratios(bursts)
    bars = f"at most {MOST_TRIP}, at least {LEAST_BURST}"
    print(f"pool:    round trip {trip:.2f} of stock, burst {rate:.2f} x stock ({bars})")
    print(f"backend: round trip {backend_trip:.2f} of stock, burst {backend_rate:.2f} x stock")
    return 0 if trip <= MOST_TRIP and rate >= LEAST_BURST else 1


def ratios(rounds: list[list[float]]) -> tuple[float, float]:
    """The medians of ours over stock, round by round."""
    return (
        statistics.median(pool / stock for stock, pool, _ in rounds),
        statistics.median(backend / stock for stock, _, backend in rounds),
    )


if __name__ == "__main__":
    sys.exit(main())
