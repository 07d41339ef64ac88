"""Large arguments and results: arrays of 128 MB, and bytes from 1 KB to 1 MB, there and back one at a time."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any, Final

from benchmarks.bars import PEERS, Bar, Line
from benchmarks.contenders import CannotError, made
from benchmarks.rows._row import PROCESSES, Opened, Row, scaled, trips
from benchmarks.work import echo

ARRAY: Final = 16 * 1024 * 1024  # float64s, which are 128 MB
SIZES: Final = {"1 KB": 1024, "32 KB": 32 * 1024, "256 KB": 256 * 1024, "1 MB": 1024 * 1024}
TRIPS: Final = 60
SECONDS: Final = 0.1  # for slow ones


@contextlib.contextmanager
def opened_arrays(line: str, name: str, scale: float) -> Iterator[Opened]:
    """An array is made, the workers have seen one."""
    try:
        import numpy

        from benchmarks import work_numpy
    except ImportError as error:
        raise CannotError(f"numpy is not installed: {error}") from error

    random = numpy.random.default_rng(7)
    small = {"type": "array", "data": random.random(work_numpy.PAGE)}
    function: Callable[[dict[str, Any]], Any] = work_numpy.total if line == "array-in" else work_numpy.negative
    with made(name, function, "call", "gather") as contender:

        def measure() -> dict[str, float]:
            # Another one each time: joblib keeps what it wrote for an array, and sends that again.
            task = {"type": "array", "data": random.random(scaled(ARRAY, scale))}
            return {line: trips(contender, task, 1, 60.0, small)[0]}

        measure()
        measure()  # each worker may have had one
        yield Opened(measure)


@contextlib.contextmanager
def opened_bytes(name: str, scale: float) -> Iterator[Opened]:
    """Ready for all sizes."""
    with made(name, echo, "call", "gather") as contender:

        def measure() -> dict[str, float]:
            return {
                f"bytes-{size.replace(' ', '')}": median(
                    trips(contender, {"type": "bytes", "data": bytes(count)}, scaled(TRIPS, scale), SECONDS)
                )
                for size, count in SIZES.items()
            }

        measure()
        yield Opened(measure)


ARRAY_IN: Final = Row(
    (Line("array-in", "128 MB float64 array in, a number back", bars=(Bar(0.25, "stock"),)),),
    PROCESSES,
    partial(opened_arrays, "array-in"),
)
ARRAY_IN_OUT: Final = Row(
    (Line("array-in-out", "128 MB float64 array in, a new one of that size back", bars=(Bar(0.25, "stock"),)),),
    PROCESSES,
    partial(opened_arrays, "array-in-out"),
)
BYTES: Final = Row(
    tuple(
        Line(f"bytes-{size.replace(' ', '')}", f"{size} of bytes in and out, round trip p50", bars=(Bar(1.0, PEERS),))
        for size in SIZES
    ),
    PROCESSES,
    opened_bytes,
)
