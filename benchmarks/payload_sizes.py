"""From which size on memory that is used again beats a packet, and what large payloads cost beside the stock pools.

The first table is the transport alone: a packet there and back, through the socket or through memory, between two
processes on one CPU, so that it is their work that is measured, and not where they are woken. It is there to find
`packets.INLINE`. The second is whole calls, `bytes` in and out. The third is an array of 128 MB. Rounds take turns, so
that all meet the same machine; of the rounds the median counts.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Final

from taskback import ProcessPoolTaskBackend
from taskback.pools import ProcessPool
from taskback.pools.child import packets

ROUNDS: Final = 5
TRIPS: Final = 40
KIB: Final = 1024
PACKETS: Final = (4, 16, 32, 64, 96, 128, 160, 192)  # KiB; a message of Linux has at most 207
CALLS: Final = (4, 16, 32, 64, 256, 1024, 4096, 16384, 65536)  # KiB
MOST_ARRAY: Final = 0.25  # of the stock pool's time


def echo(value: Any) -> Any:
    """What came in."""
    return value


def total(array: Any) -> float:
    """A number, of which each page of the array has a say."""
    return float(array[::512].sum())


def handler(task: dict[str, Any]) -> Any:
    """What came in with a task."""
    return task["value"]


def median_us(call: Callable[[], Any], trips: int) -> float:
    """Microseconds that a call takes."""
    times = []
    for _ in range(trips):
        began = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - began)
        del result
    return statistics.median(times) * 1e6


def in_turn(calls: list[Callable[[], Any]], trips: int, rounds: int = ROUNDS) -> list[float]:
    """The median of the rounds of each."""
    for call in calls:
        call()
        call()
    figures = [[median_us(call, trips) for call in calls] for _ in range(rounds)]
    return [statistics.median(side) for side in zip(*figures, strict=True)]


class Echo:
    """A process that sends each packet back, small ones through the socket up to so many bytes."""

    def __init__(self, inline: int) -> None:
        packets.INLINE, packets._ROOM = inline, 256 * KIB  # type: ignore[misc]  # of the child as well
        self._inline = inline
        self._calls, self._replies = packets.Calls(), packets.Replies()
        self.pid = os.fork()
        if not self.pid:
            calls = packets.worker_end(os.dup(self._calls.far_fileno()))
            replies = packets.worker_end(os.dup(self._replies.far_fileno()))
            while (packet := calls.receive(wait=True)) and packet.kind != packets.BYE:
                data = packet.data if type(packet.data) is bytes else bytes(packet.data.heads[0])
                packet = None
                replies.send(packets.RESULT, 1, data, wait=True)
            os._exit(0)
        self._replies.given()

    def trip(self, data: bytes) -> bytes:
        """There and back."""
        packets.INLINE = self._inline  # type: ignore[misc]
        self._calls.send(packets.CALL, 1, data)
        packet = self._replies.receive(wait=True)
        assert packet is not None
        return packet.data if type(packet.data) is bytes else bytes(packet.data.heads[0])

    def close(self) -> None:
        """End it."""
        self._calls.send(packets.BYE, 0)
        os.waitpid(self.pid, 0)
        self._calls.close()
        self._replies.close()


def transport() -> None:
    """Packet against memory."""
    inline, cpus = packets.INLINE, os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    by_packet, by_memory = Echo(200 * KIB), Echo(0)
    try:
        for size in PACKETS:
            data = os.urandom(size * KIB)
            packet, memory = in_turn([lambda: by_packet.trip(data), lambda: by_memory.trip(data)], TRIPS * 5)  # noqa: B023
            print(f"{size:6d} KiB   packet {packet:7.0f} us   memory {memory:7.0f} us   {memory / packet:5.2f}")
    finally:
        by_packet.close()
        by_memory.close()
        os.sched_setaffinity(0, cpus)
        packets.INLINE = inline  # type: ignore[misc]


def calls(stock: Any, multi: Any, pool: Any, backend: Any) -> None:
    """Bytes in and out."""
    for size in CALLS:
        data = os.urandom(size * KIB)
        sides: list[Callable[[], Any]] = [
            lambda: stock.submit(echo, data).result(),  # noqa: B023
            lambda: multi.apply(echo, (data,)),  # noqa: B023
            lambda: pool.submit(echo, data).result(),  # noqa: B023
            lambda: backend.submit_sync({"value": data}).result(),  # noqa: B023
        ]
        figures = in_turn(sides, TRIPS if size < 4096 else 3, ROUNDS if size < 4096 else 3)
        told = zip(("stock", "multiprocessing.Pool", "pool", "backend"), figures, strict=True)
        print(f"{size:6d} KiB   " + "   ".join(f"{who} {figure:8.0f} us" for who, figure in told))


def array(stock: Any, pool: Any) -> int:
    """128 MB of float64, in, and in and out; 1 where a bar is missed."""
    import numpy

    values, missed = numpy.random.default_rng(1).random(16_000_000), 0
    for name, function in (("in", total), ("in and out", echo)):
        theirs, ours = in_turn(
            [lambda: stock.submit(function, values).result(), lambda: pool.submit(function, values).result()],  # noqa: B023
            3,
            3,
        )
        print(f"128 MB {name}: stock {theirs / 1000:.0f} ms, pool {ours / 1000:.0f} ms, {ours / theirs:.2f} of stock")
        missed |= ours > MOST_ARRAY * theirs
    return missed


def main() -> int:
    """Print the figures; 1 where a bar is missed."""
    transport()
    with (
        ProcessPoolExecutor(2) as stock,
        multiprocessing.Pool(2) as multi,
        ProcessPool(2) as pool,
        ProcessPoolTaskBackend(handler, max_workers=2) as backend,
    ):
        calls(stock, multi, pool, backend)
        return array(stock, pool)


if __name__ == "__main__":
    sys.exit(main())
