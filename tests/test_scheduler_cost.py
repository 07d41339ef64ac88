"""A decision costs about as much with many tasks as with few: it never looks at all of them.

Counted, not timed: the instructions that Python performs in the scheduler's files, and each comparison of two sequence
numbers, for those are made in C where a heap is kept.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any, Final

import pytest

from taskback import scheduler as package
from taskback._again import Defer, Retry
from taskback.scheduler.rules import Rules
from taskback.scheduler.scheduler import Scheduler
from tests.scheduler_model import FakeTask

FOLDER: Final = str(Path(package.__file__).parent)
ROUNDS: Final = 60
RULES: Final = Rules(
    fair_by="tenant", max_running=50, reserved=1, key="key", coalesce="rerun", queue_timeout=1e6, max_attempts=9
)


class Counter:
    """What a call costs."""

    def __init__(self) -> None:
        self.spent = 0

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            return function(*arguments)
        finally:
            sys.settrace(before)

    def _enter(self, frame: FrameType, event: str, argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(FOLDER):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return self._count

    def _count(self, frame: FrameType, event: str, argument: object) -> Any:
        self.spent += event == "opcode"
        return self._count


COUNTER: Final = Counter()


class Number(int):
    """A sequence number that counts how often it is compared."""

    def __lt__(self, other: int) -> bool:
        COUNTER.spent += 1
        return int.__lt__(self, other)

    def __eq__(self, other: object) -> bool:
        COUNTER.spent += 1
        return int.__eq__(self, other)

    __hash__ = int.__hash__

    def __neg__(self) -> Number:
        return Number(int.__neg__(self))


def costs(size: int) -> dict[str, list[int]]:
    """What each kind of decision costs, again and again, where so many tasks wait."""
    chance, scheduler, found = random.Random(3), Scheduler[FakeTask](random.Random(3)), dict[str, list[int]]()

    def make(sequence: int) -> FakeTask:
        key, value = chance.randrange(size // 10), chance.randrange(size // 100)
        delay = chance.choice([0.0, 0.0, 1e5 + sequence])
        return FakeTask(Number(sequence), f"type {sequence % 3}", chance.randrange(3), delay, key, value)

    def count(name: str, *arguments: Any) -> Any:
        COUNTER.spent = 0
        result = COUNTER(getattr(scheduler, name), *arguments)
        found.setdefault(name, []).append(COUNTER.spent)
        return result

    waiting = [make(sequence) for sequence in range(size)]
    for task in waiting:
        scheduler.add(task, RULES, 0.0)
    chance.shuffle(waiting)
    for turn in range(ROUNDS):
        new = make(size + turn)
        count("add", new, RULES, 1.0)
        first, second, third = (count("next", 1.0) for _ in range(3))
        count("wake_at")
        decision = count("joining", new.type, new.key, 1.0)
        if decision is not None:
            count("join", decision, 5, 0.0, 1.0)
        count("put_back", first)
        count("failed", second, Retry() if turn % 2 else Defer(1e9), 1.0, 0.0)
        count("ended", third)
        count("ended", waiting.pop())
        count("expired", 1.0)
    return found


@pytest.mark.timeout(300)
def test_a_decision_never_scans():
    """With thirty times as many tasks the dearest call of each kind costs hardly more, for each is O(log n)."""
    few, many = costs(1_000), costs(30_000)

    assert set(few) == set(many)
    for name, spent in many.items():
        assert sum(spent) / len(spent) < 1.5 * sum(few[name]) / len(few[name]) + 30, name
        assert max(spent) < 2 * max(few[name]) + 100, name
