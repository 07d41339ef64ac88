"""`taskback.pools.ProcessPool` against the stock `ProcessPoolExecutor`: no-op calls, two workers, ratios of one run.

Rounds of the two take turns, so that both meet the same machine; of the rounds the median counts.
"""

from __future__ import annotations

import statistics
import sys
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from typing import Final

from taskback.pools import ProcessPool

ROUNDS: Final = 7
TRIPS: Final = 300
BURST: Final = 5000
MOST_TRIP: Final = 0.6  # of the stock pool's round trip
LEAST_BURST: Final = 2.0  # times the stock pool's rate


def nothing(value: int) -> int:
    """A call that does nothing."""
    return value


def round_trip(pool: Executor) -> float:
    """Seconds from submit to result, one at a time: the median."""
    times = []
    for number in range(TRIPS):
        began = time.perf_counter()
        pool.submit(nothing, number).result()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def burst(pool: Executor) -> float:
    """Calls a second, when all are submitted at once."""
    began = time.perf_counter()
    futures = [pool.submit(nothing, number) for number in range(BURST)]
    for number, future in enumerate(futures):
        assert future.result() == number
    return BURST / (time.perf_counter() - began)


def replacement(pool: ProcessPool) -> float:
    """Seconds from the death of the worker to the next result."""
    pool.submit(nothing, 0).result()
    began = time.perf_counter()
    pool.submit(sys.exit, 0).exception()
    return time.perf_counter() - began


def main() -> int:
    """Print the figures; 1 where a bar is missed."""
    with ProcessPoolExecutor(2) as stock, ProcessPool(2) as ours:
        for pool in (stock, ours):
            burst(pool)  # both have their workers, and are warm
        trips = [(round_trip(stock), round_trip(ours)) for _ in range(ROUNDS)]
        bursts = [(burst(stock), burst(ours)) for _ in range(ROUNDS)]
    trip = statistics.median(mine / theirs for theirs, mine in trips)
    rate = statistics.median(mine / theirs for theirs, mine in bursts)
    for name, pairs, unit, factor in (("round trip p50", trips, "us", 1e6), (f"burst of {BURST}", bursts, "/s", 1.0)):
        theirs, mine = (statistics.median(side) * factor for side in zip(*pairs, strict=True))
        print(f"{name:16s} stock {theirs:9.0f} {unit}   ours {mine:9.0f} {unit}")
    print(f"round trip: {trip:.2f} of stock (at most {MOST_TRIP})   burst: {rate:.2f} x stock (at least {LEAST_BURST})")
    return 0 if trip <= MOST_TRIP and rate >= LEAST_BURST else 1


if __name__ == "__main__":
    sys.exit(main())
