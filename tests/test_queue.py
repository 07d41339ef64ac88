"""A run that was pushed and not discarded is popped once, in the order in which runs may start."""

from __future__ import annotations

import random
import sys

import pytest

from taskback._run import Run
from taskback.scheduler.queue import TaskQueue


def make_run(sequence: int, priority: int = 0, ready_at: float = 0.0) -> Run:
    """A run with its place in the queue."""
    run = Run(str(sequence), None, {}, None, context={}, priority=priority, ready_at=ready_at, timeout=None)
    run.sequence = sequence
    return run


class Model:
    """The same, slow and obvious: a list that is searched at each pop."""

    def __init__(self) -> None:
        self.runs: list[Run] = []

    def pop(self, now: float) -> Run | None:
        """The ready run of the highest priority, and of those the one that was accepted first."""
        ready = [run for run in self.runs if run.ready_at <= now]
        if not ready:
            return None
        first = min(ready, key=lambda run: (-run.priority, run.sequence))
        self.runs.remove(first)
        return first


@pytest.mark.parametrize("seed", range(20))
def test_it_does_what_a_slow_obvious_one_does(seed):
    """Random pushes, pops, discards and returns, under a clock that moves on at random."""
    chance = random.Random(seed)
    queue, model, now, taken = TaskQueue(), Model(), 0.0, list[Run]()
    for sequence in range(1, 501):
        action = chance.choice(["push", "push", "pop", "discard", "come back", "wait"])
        if action == "push":
            run = make_run(sequence, chance.randint(-2, 2), chance.choice([0.0, now + chance.random() * 5]))
            queue.push(run, now)
            model.runs.append(run)
        elif action == "pop":
            popped = queue.pop(now)
            assert popped is model.pop(now)
            if popped is not None:
                taken.append(popped)
        elif action == "discard" and model.runs:
            gone = model.runs.pop(chance.randrange(len(model.runs)))
            queue.discard(gone)
        elif action == "come back" and taken:
            back = taken.pop()
            queue.push(back, now)
            model.runs.append(back)
        elif action == "wait":
            now += chance.random()
        assert len(queue) == len(model.runs)
        assert sorted(run.sequence for run in queue) == sorted(run.sequence for run in model.runs)

    while model.runs:
        now += 1.0
        assert queue.pop(now) is model.pop(now)


def test_a_run_that_is_pushed_again_after_its_discard_is_there_once():
    """What its first stay left behind is passed over, by iterating too."""
    queue, run = TaskQueue(), make_run(1)
    queue.push(run, 0.0)
    queue.discard(run)

    queue.push(run, 0.0)

    assert list(queue) == [run]
    assert [queue.pop(0.0), queue.pop(0.0)] == [run, None]


def test_a_discarded_run_is_let_go():
    """A task that was cancelled long before its time does not keep its payload until then."""
    queue, run = TaskQueue(), make_run(1, ready_at=1e9)
    queue.push(run, 0.0)
    held = sys.getrefcount(run)

    queue.discard(run)

    assert sys.getrefcount(run) < held
    assert len(queue) == 0


def test_a_run_is_ready_at_its_very_time():
    """Neither a moment before nor a moment after."""
    queue, run = TaskQueue(), make_run(1, ready_at=5.0)
    queue.push(run, 0.0)

    before, at = queue.pop(4.999), queue.pop(5.0)

    assert before is None
    assert at is run
    assert queue.pop(9.0) is None


def test_a_run_that_comes_back_gets_its_old_place():
    """It goes before those that were accepted after it."""
    queue, runs = TaskQueue(), [make_run(1), make_run(2)]
    for run in runs:
        queue.push(run, 0.0)
    first = queue.pop(0.0)
    assert first is runs[0]

    queue.push(first, 0.0)

    assert [queue.pop(0.0), queue.pop(0.0)] == runs
