"""Both workers are busy and another task waits when one of them is killed: when that task begins, in a new worker.

The handler's module imports numpy, which the new worker needs, too.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from typing import Any, Final

from benchmarks.bars import Bar, Line
from benchmarks.contenders import CannotError, made
from benchmarks.gate import Gate
from benchmarks.rows._row import Opened, Row


@contextlib.contextmanager
def opened(name: str, scale: float) -> Iterator[Opened]:
    """Both workers are there."""
    try:
        from benchmarks import work_numpy
    except ImportError as error:
        raise CannotError(f"numpy is not installed: {error}") from error

    with Gate() as gate, made(name, work_numpy.hold, "submit") as contender:

        def measure() -> dict[str, float]:
            held: dict[int, Any] = {}
            for _ in range(2):
                result = contender.submit({"type": "hold", **gate.task})
                held[gate.come()] = result
            waiting = contender.submit({"type": "next"})
            doomed, *others = held
            killed = time.monotonic()
            os.kill(doomed, signal.SIGKILL)
            began = waiting()
            gate.open(len(others))
            for other in others:
                held[other]()
            return {"replaced": began - killed}

        measure()
        yield Opened(measure)


ROW: Final = Row(
    (Line("replaced", "replacement after a kill, handler importing numpy", bars=(Bar(0.010),)),),
    ("backend", "pool", "stock", "mp.Pool", "loky", "pebble", "deadpool", "mpire"),
    opened,
    seconds=15.0,
)
