"""What the scheduler costs: a task's submission, start and end together, where few and where many others wait.

All policies are in use: priorities, turns, a cap, a floor, keys, joining, limits for waiting, attempts. Ten tasks wait
for each key. The rounds take turns, so that what else the machine does hits both sizes alike; the median counts, in
processor time of this thread. What a submission that joins another costs is part of it.

The last row is a task without any policy, against the plain queue that backends had before.

    scripts/bench scheduler [--rounds 7]
"""

import argparse
import random
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Final

from benchmarks.plain_queue import TaskQueue
from taskback._run import Run
from taskback.scheduler.rules import PLAIN, Rules
from taskback.scheduler.scheduler import Scheduler

FEW: Final = 1_000
MANY: Final = 200_000
STEPS: Final = 5_000  # submissions a round
MAX_MICROSECONDS: Final = 25.0
MAX_RATIO: Final = 1.5  # many to few
NOW: Final = 1_000.0

RULES: Final = {
    "small": Rules(priority=1, reserved=1, fair_by="tenant", key="bank", queue_timeout=3600.0),
    "merged": Rules(fair_by="tenant", key="bank", coalesce="rerun", queue_timeout=3600.0, max_attempts=3),
    "heavy": Rules(max_running=2, fair_by="tenant", key="bank", queue_timeout=3600.0, max_crashes=2),
    "other": Rules(fair_by="tenant", key="bank", queue_timeout=3600.0, max_attempts=3, retry_on=OSError),
}
TYPES: Final = tuple(RULES)
TENANTS: Final = 100


def make_run(sequence: int, type: str, priority: int, key: int | None, value: int | None) -> Run:
    """As `Ledger.admit` takes it."""
    run = Run(
        *(str(sequence), type, {}, None),
        context={},
        priority=priority,
        ready_at=0.0,
        timeout=None,
        key=key,
        fair_value=value,
    )
    run.sequence = sequence
    return run


class Load:
    """A scheduler in which so many tasks wait, and go on waiting: for each that ends another one comes."""

    def __init__(self, queued: int) -> None:
        self._chance = random.Random(7)
        self._keys = queued // 10
        self._scheduler: Scheduler[Run] = Scheduler(random.Random(7))
        self._made = 0
        while len(self._scheduler) < queued:
            self._submit(self._make())

    def _make(self) -> Run:
        self._made += 1
        type, chance = TYPES[self._made % len(TYPES)], self._chance
        priority = RULES[type].priority + (chance.random() < 0.1)
        return make_run(self._made, type, priority, chance.randrange(self._keys), chance.randrange(TENANTS))

    def _submit(self, run: Run) -> bool:
        rules, scheduler = RULES[run.type or ""], self._scheduler
        joining = None if rules.coalesce is None else scheduler.joining(run.type, run.key, NOW)
        if joining is not None and scheduler.join(joining, run.priority, run.ready_at, NOW):
            return False
        scheduler.add(run, rules, NOW)
        return True

    def round(self) -> float:
        """Microseconds for each task that came, started and ended."""
        runs, over, scheduler = [self._make() for _ in range(STEPS)], [], self._scheduler
        begun = time.thread_time()
        for run in runs:
            if self._submit(run):
                started = scheduler.next(NOW)
                assert started is not None
                scheduler.ended(started)
                scheduler.wake_at()
                over.append(started)  # its handles own it: what it costs to free it is not the scheduler's
        return (time.thread_time() - begun) / len(over) * 1e6


class PlainLoad:
    """The same for tasks without a policy, in a scheduler and in the plain queue."""

    def __init__(self) -> None:
        self._scheduler: Scheduler[Run] = Scheduler()
        self._queue = TaskQueue()
        self._made = 0
        for run in self._make(FEW):
            self._scheduler.add(run, PLAIN, NOW)
            self._queue.push(run, NOW)

    def _make(self, number: int) -> list[Run]:
        self._made += number
        return [make_run(made, "plain", 0, None, None) for made in range(self._made - number, self._made)]

    def scheduler_round(self) -> float:
        """Microseconds a task."""
        runs, scheduler = self._make(STEPS), self._scheduler
        begun = time.thread_time()
        for run in runs:
            scheduler.add(run, PLAIN, NOW)
            started = scheduler.next(NOW)
            assert started is not None
            scheduler.ended(started)
        return (time.thread_time() - begun) / STEPS * 1e6

    def queue_round(self) -> float:
        """Microseconds a task."""
        runs, queue = self._make(STEPS), self._queue
        begun = time.thread_time()
        for run in runs:
            queue.push(run, NOW)
            started = queue.pop(NOW)
            assert started is not None
            queue.discard(started)
        return (time.thread_time() - begun) / STEPS * 1e6


def measure(rounds: int, *subjects: Callable[[], float]) -> list[float]:
    """The median of each; they take turns."""
    found = [[subject() for subject in subjects] for _ in range(rounds + 1)][1:]  # the first round warms up
    return [median(times) for times in zip(*found, strict=True)]


def main() -> int:
    """Measure, print, and say whether the bars are kept."""
    parser = argparse.ArgumentParser(description="What a task costs the scheduler.")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--check", action="store_true", help="exit with 1 where a bar is missed")
    options = parser.parse_args()

    few, many = measure(options.rounds, Load(FEW).round, Load(MANY).round)
    plain = PlainLoad()
    scheduler, queue = measure(options.rounds, plain.scheduler_round, plain.queue_round)

    print(f"submit + start + end, all policies, {FEW:>7,} queued: {few:5.1f} µs (at most {MAX_MICROSECONDS:g})")
    print(f"submit + start + end, all policies, {MANY:>7,} queued: {many:5.1f} µs (at most {MAX_MICROSECONDS:g})")
    print(f"many / few: {many / few:.2f} (at most {MAX_RATIO:g})")
    print(f"no policy: scheduler / plain queue: {scheduler:.2f} µs / {queue:.2f} µs = {scheduler / queue:.2f}")
    kept = max(few, many) <= MAX_MICROSECONDS and many / few <= MAX_RATIO
    return 0 if kept or not options.check else 1


if __name__ == "__main__":
    sys.exit(main())
