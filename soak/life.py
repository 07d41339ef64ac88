"""One life of a backend or a pool: it is made, has tasks handed over, and is shut down in one way or another.

What must hold at its end: every task has ended once, and as it may; the figures add up; the shutdown took no longer
than it may, and says nothing that is not so.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import sys
import threading
import time
import traceback
from collections import Counter
from typing import Any, Final

from soak import effects, kinds, places
from soak.book import Book
from soak.load import Load, from_loop, from_thread
from soak.places import GRACE, Place
from taskback import TaskState

DRAIN: Final = 30.0  # seconds that a shutdown may drain where it is to end everything
ALLOWANCE: Final = 2.0  # seconds beyond timeout + grace + 1 for a machine whose processors are all taken
ENDED: Final = tuple(state for state in TaskState if state.final)


class Life:
    """See the top of the file.

    Args:
        place (Place): Where tasks run.
        subject (Any): What was made there; it may have lived before.
        rng (random.Random): Seeded.
        directory (str): For files, which are gone when it is over.
        numbers (Iterator[int]): The run's.
        most_bytes (int): Of one payload.
        submitters (tuple[int, int]): Threads, and event loops, that submit.
    """

    def __init__(
        self,
        place: Place,
        subject: Any,
        rng: random.Random,
        directory: str,
        numbers: itertools.count[int],
        most_bytes: int,
        submitters: tuple[int, int] = (1, 1),
    ) -> None:
        self.place = place
        self.subject = subject
        self.rng = rng
        directory = os.path.join(directory, str(next(numbers)))
        os.mkdir(directory)
        path = os.path.join(directory, "effects")
        self.book = Book(path, numbers, place.where in kinds.IN_PROCESSES, place.where == kinds.FOREIGN)
        self.load = Load(place, subject, self.book, rng, directory, most_bytes)
        self.stuck = 0  # threads that shutdowns have named
        self.shutdowns: list[tuple[str, float, float]] = []  # how, seconds beyond the timeout, and what was allowed
        self._threads: list[threading.Thread] = []
        self._submitters = submitters
        self._before = self._figures()

    def __str__(self) -> str:
        """Where it is, and what it has in flight."""
        return f"{self.place.name}: {len(self.book.open)} open of {self.book.submitted}, {self.subject!r}"

    # --- its time ---

    def begin(self) -> None:
        """Start the submitters."""
        if not self.place.is_pool:
            self.subject.initialize_sync()
        threads, loops = self._submitters
        loops = 0 if self.place.is_pool or (self.place.where == kinds.FOREIGN) else loops
        for run, count in ((from_thread, threads), (from_loop, loops)):
            for number in range(count):
                arguments = (self.load, random.Random(self.rng.random()))
                name = f"soak-{self.place.name}-{run.__name__}-{number}"
                self._threads.append(threading.Thread(target=run, args=arguments, name=name, daemon=True))
        for thread in self._threads:
            thread.start()

    def settle(self) -> None:
        """Hand over no more, and wait until nothing is in flight: of a backend that goes on living."""
        self.load.enough.set()
        self._join(running=True)
        if not self.book.wait(DRAIN):
            for ticket in list(self.book.open.values())[:5]:
                self.book.violation(ticket, f"it has not ended {DRAIN:g} s after the last one was handed over")
        self._finish([])

    def end(self) -> None:
        """Shut it down, in one of the ways."""
        if self.place.is_pool:
            self._end_pool()
            return
        how = self.rng.choice(("drain", "drain", "zero", "short", "hurry", "twice", "cancelled"))
        timeout = {"drain": DRAIN, "zero": 0.0, "short": self.rng.uniform(0, 0.3)}.get(how, DRAIN)
        late = self.rng.random() < 0.5
        if how == "drain" or late:
            self.load.enough.set()  # else it is shut down while they submit
        if how == "drain":
            self._join(running=True)
        else:
            self.book.closing = True
        began = time.monotonic()
        if how == "hurry":
            hurry = threading.Timer(0.05, self.subject.hurry)
            hurry.start()
            report = self.subject.shutdown_sync(timeout)
            hurry.join()
            timeout = min(timeout, 0.05)
        elif how == "twice":
            first = threading.Thread(target=self.subject.shutdown_sync, args=(timeout,), name="soak-shutdown")
            first.start()
            report = self.subject.shutdown_sync(0.1)
            first.join()
            timeout = 0.1
        elif how == "cancelled":
            report = asyncio.run(self._cancelled_shutdown())
            timeout = 0.05
        else:
            report = self.subject.shutdown_sync(timeout)
        seconds = time.monotonic() - began
        allowed = GRACE + 1.0 + ALLOWANCE
        # A drain ends when all is done; only what it takes beyond its timeout is bounded.
        self.shutdowns.append((how, max(0.0, seconds - timeout), seconds))
        if seconds > timeout + allowed:
            self.book.violation(None, f"a shutdown ({how}) took {seconds:.2f} s, with {timeout:g} s to drain; {report}")
        self.stuck += len(report.stuck)  # they are looked for when the round is over: what waits for a processor ends
        self._join(running=False)
        self._finish(report.never_started)

    async def _cancelled_shutdown(self) -> Any:
        """Whoever awaits it is cancelled; it goes on, and is hurried by another."""
        first = asyncio.ensure_future(self.subject.shutdown(DRAIN))
        await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.wait([first])
        return await self.subject.shutdown(0.04)

    def _end_pool(self) -> None:
        how = self.rng.choice(("wait", "wait", "cancel", "kill", "terminate"))
        if how in ("kill", "terminate") and self.place.where != kinds.POOL:
            how = "cancel"
        if self.rng.random() < 0.5:
            self.load.enough.set()
        self.book.closing = how != "wait"
        began = time.monotonic()
        if how == "kill":
            self.book.forgives = True
            self.subject.kill_workers()
        elif how == "terminate":
            self.book.forgives = True
            self.subject.terminate_workers()
        self.subject.shutdown(wait=True, cancel_futures=how == "cancel")
        seconds = time.monotonic() - began
        self.shutdowns.append((f"pool {how}", 0.0, seconds))
        if seconds > DRAIN:
            self.book.violation(None, f"a pool's shutdown ({how}) took {seconds:.2f} s")
        self._join(running=False)
        self._finish([])

    def _join(self, running: bool) -> None:
        """Wait for the submitters; those whose loop runs the tasks end when these have."""
        self.load.enough.set()
        if not running or self.place.where == kinds.LOOP:
            if running:
                self.book.wait(DRAIN)
            self.load.over.set()
        for thread in self._threads:
            thread.join(DRAIN)
            if thread.is_alive():
                frame = sys._current_frames().get(thread.ident or 0)
                self.book.violation(None, f"{thread.name} does not end:\n{''.join(traceback.format_stack(frame))}")
        self._threads = []

    # --- what must hold ---

    def _finish(self, never_started: list[Any]) -> None:
        # What ends a task tells its handle first and calls back after that, on another thread perhaps.
        self.book.wait(2.0)
        if not self.place.is_pool:
            self._add_up()
        self.book.close(never_started)
        effects.forget(self.book.path)
        if os.path.exists(self.book.path):
            os.unlink(self.book.path)

    def _figures(self) -> Counter[str]:
        if self.place.is_pool:
            return Counter()
        stats = self.subject.stats()
        names = ("accepted", "joined", "queued", "running", *(state.value for state in ENDED))
        return Counter({name: getattr(stats, name) for name in names})

    def _add_up(self) -> None:
        now = self._figures()
        ended = sum(now[state.value] for state in ENDED)
        if now["accepted"] != ended or now["queued"] or now["running"]:
            self.book.violation(None, f"the figures do not add up: {dict(now)}")


def workers_of(life: Life) -> list[int]:
    """The worker processes of a life."""
    return places.workers_of(life.subject)
