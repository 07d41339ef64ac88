"""What a task costs where many are queued: to submit it while both workers are busy, and to run it once they are free.

    python -m benchmarks.program benchmarks.rows.queued CONTENDER COUNT

prints the bytes of memory for each of so many queued tasks.
"""

import contextlib
import gc
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Final

import psutil

from benchmarks.bars import Bar, Line
from benchmarks.contenders import Contender, made
from benchmarks.gate import Gate
from benchmarks.rows._row import Opened, Row, scaled, told_by
from benchmarks.work import hold

SIZES: Final = (1_000, 10_000, 100_000, 1_000_000)
FLAT: Final = 1.3
SECONDS: Final = 45.0  # for the rounds of one size, which get fewer then
REPEATED: Final = 10_000  # tasks that a figure is of at least
MEMORY: Final = 100_000


def held(contender: Contender, gate: Gate) -> list[Any]:
    """Both workers are busy from here on, until the gate is opened for two."""
    results = []
    for _ in range(2):
        results.append(contender.submit({"type": "small", **gate.task}))
        gate.come()
    return results


def one_queue(contender: Contender, gate: Gate, count: int) -> tuple[float, float]:
    """Seconds a task to submit so many, and to run them."""
    holders = held(contender, gate)
    began = time.perf_counter()
    results = [contender.submit({"type": "small", "n": number}) for number in range(count)]
    submitted = time.perf_counter()
    gate.open(2)
    for result in results:
        result()
    ended = time.perf_counter()
    for holder in holders:
        holder()
    return (submitted - began) / count, (ended - submitted) / count


@contextlib.contextmanager
def opened(name: str, scale: float) -> Iterator[Opened]:
    """Ready; each size is left out of a round once it has had its time."""
    spent: dict[int, list[float]] = defaultdict(list)
    sizes = SIZES if name == "backend" else SIZES[:-1]
    with Gate() as gate, made(name, hold, "submit") as contender:

        def measure() -> dict[str, float]:
            found = dict[str, float]()
            for size in sizes:
                count = scaled(size, scale)
                began = time.perf_counter()
                if sum(spent[size]) + max(spent[size], default=0.0) > SECONDS:  # one more would be too much
                    continue
                repeated = max(1, scaled(REPEATED, scale) // count)
                costs = [one_queue(contender, gate, count) for _ in range(repeated)]
                gc.collect()
                spent[size].append(time.perf_counter() - began)
                for part, each in zip(("submit", "drain"), zip(*costs, strict=True), strict=True):
                    found[f"queued-{part}-{size}"] = sum(each) / repeated
            for part in ("submit", "drain"):
                costs_of = [cost for line, cost in found.items() if line.startswith(f"queued-{part}-")]
                if len(costs_of) == len(SIZES):
                    found[f"queued-{part}-flat"] = max(costs_of) / min(costs_of)
            return found

        one_queue(contender, gate, 200)
        yield Opened(measure)


@contextlib.contextmanager
def opened_memory(name: str, scale: float) -> Iterator[Opened]:
    """Each round is a new program: memory that was freed would be taken again, and not be seen."""
    made(name, hold, "submit")

    def measure() -> dict[str, float]:
        return {"queued-memory": told_by("benchmarks.rows.queued", name, str(scaled(MEMORY, scale)))}

    yield Opened(measure)


def main() -> None:
    """Print bytes of unique memory of this process for each queued task, its handle or future included."""
    name, count = sys.argv[1], int(sys.argv[2])
    this = psutil.Process()
    with Gate() as gate, made(name, hold) as contender:
        one_queue(contender, gate, 200)
        holders = held(contender, gate)
        gc.collect()
        before = this.memory_full_info().uss
        results = [contender.submit({"type": "small", "n": number}) for number in range(count)]
        gc.collect()
        print((this.memory_full_info().uss - before) / count, flush=True)
        gate.open(2)
        for result in (*holders, *results):
            result()


def _lines() -> Iterator[Line]:
    for part, words in (("submit", "submit a task"), ("drain", "run a task, once both workers are free")):
        for size in SIZES:
            yield Line(f"queued-{part}-{size}", f"to {words}, {size:,} queued")
        yield Line(f"queued-{part}-flat", "... the dearest of these to the cheapest", "times", (Bar(FLAT),))


COST: Final = Row(tuple(_lines()), ("backend", "pool"), opened, seconds=240.0)
MEMORY_ROW: Final = Row(
    (
        Line(
            "queued-memory",
            f"memory of the parent for each of {MEMORY:,} queued small tasks",
            "bytes",
            (Bar(2 * 1024),),
        ),
    ),
    ("backend", "pool", "stock"),
    opened_memory,
)
