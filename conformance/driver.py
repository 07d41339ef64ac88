"""Runs the cells of the matrix: each below a keeper of its own, some at a time.

Threads: one. A keeper answers with a line and ends; it also ends, with all that is below it, as soon as its standard
input does. So Ctrl-C, or the end of this process however it comes, leaves nothing.
"""

import contextlib
import json
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from conformance.row import Cell, Row

ANSWERING: Final = 20.0  # seconds that a keeper has beyond its probe's limit, to kill and to answer


@dataclass(frozen=True, slots=True)
class Found:
    """A cell, and where it belongs."""

    row: Row
    contender: str
    cell: Cell
    seconds: float


class Keeper:
    """This side of a keeper's process."""

    def __init__(self, row: Row, contender: str) -> None:
        self.row = row
        self.contender = contender
        self.deadline = time.monotonic() + row.seconds + ANSWERING
        self._process = subprocess.Popen(
            [sys.executable, "-m", "conformance.keeper", str(row.seconds), row.name, contender],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self.stdout = self._process.stdout

    def found(self) -> Found:
        """What it answers; its output has ended."""
        if time.monotonic() >= self.deadline:
            self._process.kill()  # what was below it falls to this process
        line = self.stdout.read()
        self.close()
        if not line:
            return Found(self.row, self.contender, Cell("the keeper failed", False), 0.0)
        outcome: dict[str, Any] = json.loads(line)
        return Found(self.row, self.contender, read(outcome), outcome["seconds"])

    def close(self) -> None:
        """Have it end with all that is below it, and wait for that."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(ANSWERING)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.stdout.close()


def read(outcome: dict[str, Any]) -> Cell:
    """The cell of an outcome."""
    if "cell" in outcome:
        return Cell(**outcome["cell"])
    if not outcome["in_time"]:
        return Cell(f"hangs: {outcome.get('stage', 'starting')}", False, outcome["errors"])
    lines = outcome["errors"].strip().splitlines()
    return Cell(f"its program ended with {outcome['status']}", False, "\n".join(lines[-20:]))


def run(rows: Sequence[Row], contenders: Sequence[str], jobs: int) -> Iterator[Found]:
    """Probe, and give the cells as they come.

    Args:
        rows (Sequence[Row]): Of the matrix.
        contenders (Sequence[str]): Whom to probe, where a row makes sense for them.
        jobs (int): How many probes at a time.
    """
    cells = [(row, each) for row in rows for each in row.contenders if each in contenders]
    waiting = [pair for pair in cells if not pair[0].alone]
    alone = [pair for pair in cells if pair[0].alone]
    with _keepers() as keepers:
        yield from _some_at_a_time(waiting, jobs, keepers)
        yield from _some_at_a_time(alone, 1, keepers)


def _some_at_a_time(waiting: list[tuple[Row, str]], jobs: int, keepers: set[Keeper]) -> Iterator[Found]:
    waiting = waiting[::-1]
    with selectors.DefaultSelector() as selector:
        while waiting or keepers:
            while waiting and len(keepers) < jobs:
                keeper = Keeper(*waiting.pop())
                keepers.add(keeper)
                selector.register(keeper.stdout, selectors.EVENT_READ, keeper)
            due = min(keeper.deadline for keeper in keepers) - time.monotonic()
            ready = [key.data for key, _ in selector.select(max(0.0, due))]
            for keeper in ready or [each for each in keepers if each.deadline <= time.monotonic()]:
                selector.unregister(keeper.stdout)
                keepers.discard(keeper)
                yield keeper.found()


@contextlib.contextmanager
def _keepers() -> Iterator[set[Keeper]]:
    """Those in the set at the end are closed, and nothing keeps us from that."""
    keepers = set[Keeper]()
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield keepers
    finally:
        held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        for keeper in keepers:
            keeper._process.stdin.close()  # type: ignore[union-attr] # all of them at once
        for keeper in keepers:
            keeper.close()
        signal.signal(signal.SIGTERM, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
