"""A no-op there and back, one at a time: how long the median takes.

Beside it, two processes and two bare pipes: each process on a CPU of its own, as workers are to be, which is what the
bar is about; and wherever the system puts them, which is on one CPU, for they never run at the same time.
"""

import contextlib
import os
from collections.abc import Iterator
from statistics import median
from typing import Any, Final

from benchmarks.bars import PEERS, Bar, Line
from benchmarks.contenders import CannotError, Contender, made
from benchmarks.rows._row import PROCESSES, Opened, Row, awaited_trips, scaled, trips
from benchmarks.work import nothing

TRIPS: Final = 300
SECONDS: Final = 0.3  # for slow ones
PIPE: Final = "pipe"
PIPE_ANYWHERE: Final = "pipe-anywhere"


class Pipe(Contender):
    """A fork that sends back what it reads.

    Args:
        apart (bool): On another CPU than this process, where there are two.
    """

    can = frozenset({"call"})

    def __init__(self, apart: bool) -> None:
        super().__init__(nothing)
        self.apart = apart

    def open(self) -> Any:
        theirs, ours = os.pipe()
        back, answers = os.pipe()
        here, *others = os.sched_getaffinity(0)
        if self.apart and not others:
            raise CannotError("there is one CPU")
        pid = os.fork()
        if self.apart:
            os.sched_setaffinity(0, {others[0] if pid == 0 else here})
        if pid == 0:
            os.close(ours)
            while data := os.read(theirs, 4096):
                os.write(answers, data)
            os._exit(0)
        os.close(theirs)
        os.close(answers)
        self._stack.callback(os.waitpid, pid, 0)
        self._stack.callback(os.close, ours)
        self._stack.callback(os.close, back)
        return ours, back

    def call(self, task: dict[str, Any]) -> Any:
        ours, back = self.opened
        os.write(ours, b"a task of some thirty-two bytes.")
        return os.read(back, 4096)


@contextlib.contextmanager
def opened(name: str, scale: float) -> Iterator[Opened]:
    """Ready to go there and back."""
    task, most = {"type": "nothing", "n": 1}, scaled(TRIPS, scale)
    with Pipe(name == PIPE) if name in (PIPE, PIPE_ANYWHERE) else made(name, nothing, "call", "gather") as contender:

        def measure() -> dict[str, float]:
            found = dict[str, float]()
            if "call" in contender.can:
                found["round-trip"] = median(trips(contender, task, most, SECONDS))
            if "gather" in contender.can:
                found["round-trip-awaited"] = median(awaited_trips(contender, task, most, SECONDS))
            return found

        measure()
        yield Opened(measure)


ROW: Final = Row(
    (
        Line(
            "round-trip",
            "round trip p50, sync, one at a time",
            bars=(Bar(0.5, "stock"), Bar(0.85, PEERS), Bar(3.5, PIPE)),
        ),
        Line("round-trip-awaited", "the same, awaited in a loop"),
    ),
    (*PROCESSES, PIPE, PIPE_ANYWHERE),
    opened,
)
