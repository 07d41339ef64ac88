"""Each rule of the scheduler, by itself."""

from __future__ import annotations

import random
import sys
from datetime import UTC, datetime, timedelta

import pytest

from taskback._again import Defer, Retry
from taskback.scheduler.backoff import Backoff
from taskback.scheduler.entry import Place
from taskback.scheduler.explaining import Cause
from taskback.scheduler.rules import PLAIN, Rules
from taskback.scheduler.scheduler import Scheduler
from tests.scheduler_model import FakeTask

STEADY = Backoff(initial=1.0, factor=2.0, maximum=5.0, jitter=0.0)


@pytest.fixture
def scheduler():
    """An empty one."""
    return Scheduler(random.Random(1))


def add(scheduler, sequence, rules=PLAIN, now=0.0, **facts):
    """A task comes."""
    task = FakeTask(sequence, **facts)
    scheduler.add(task, rules, now)
    return task


def start(scheduler, now=0.0):
    """The numbers of all tasks that may start now."""
    return [task.sequence for task in iter(lambda: scheduler.next(now), None)]


# --- order ---


def test_a_higher_priority_goes_first_and_the_older_within_one(scheduler):
    """Whatever their types."""
    for sequence, type, priority in [(1, "a", 0), (2, "b", 1), (3, "a", 1), (4, "b", 0), (5, "c", -1)]:
        add(scheduler, sequence, type=type, priority=priority)

    assert start(scheduler) == [2, 3, 1, 4, 5]


def test_a_task_waits_for_its_time(scheduler):
    """To the very moment, and then it is in its old place."""
    add(scheduler, 1, ready_at=5.0)
    add(scheduler, 2, now=6.0 - 2.0)

    assert scheduler.wake_at() == 5.0
    assert scheduler.next(4.999).sequence == 2
    assert scheduler.next(4.999) is None
    add(scheduler, 3, now=4.999)
    assert start(scheduler, 5.0) == [1, 3]
    assert scheduler.wake_at() is None


def test_values_of_a_field_take_turns(scheduler):
    """Who has one task waits for at most one task of each other."""
    rules = Rules(fair_by="tenant")
    for sequence in range(1, 8):
        add(scheduler, sequence, rules, fair_value="big")
    for sequence, value in [(8, "b"), (9, "c"), (10, "b")]:
        add(scheduler, sequence, rules, fair_value=value)

    assert start(scheduler) == [1, 8, 9, 2, 10, 3, 4, 5, 6, 7]


def test_taking_turns_costs_a_type_nothing(scheduler):
    """The turn of a new task is that of the type's oldest one."""
    rules = Rules(fair_by="tenant")
    for sequence in (1, 2, 3):
        add(scheduler, sequence, rules, type="fair", fair_value="big")
    add(scheduler, 4, type="plain")
    add(scheduler, 5, rules, type="fair", fair_value="small")

    assert start(scheduler) == [1, 5, 2, 3, 4]


def test_a_turn_that_was_not_used_comes_back(scheduler):
    """With the task that was put back."""
    rules = Rules(fair_by="tenant")
    for sequence, value in [(1, "x"), (2, "x"), (3, "y"), (4, "z")]:
        add(scheduler, sequence, rules, fair_value=value)
    first = scheduler.next(0.0)

    scheduler.put_back(first)

    assert start(scheduler) == [1, 3, 4, 2]


def test_a_value_keeps_its_turn_where_one_task_takes_the_place_of_another(scheduler):
    """Of the same key: neither its end nor an earlier one that is ready now costs the value its turn."""
    rules = Rules(fair_by="tenant", key="key")
    early = add(scheduler, 1, rules, key="k", fair_value="x", ready_at=1.0)
    add(scheduler, 2, rules, key="k", fair_value="x")
    add(scheduler, 3, rules, key="k", fair_value="x")
    add(scheduler, 4, rules, fair_value="y")

    scheduler.expired(1.0)
    scheduler.ended(early)

    assert scheduler.next(1.0).sequence == 2


# --- caps and floors ---


def test_no_more_run_than_the_cap_of_a_type(scheduler):
    """The rest of it waits, and does not hold up others."""
    rules = Rules(max_running=2)
    tasks = [add(scheduler, sequence, rules, type="heavy") for sequence in (1, 2, 3)]
    add(scheduler, 4, type="light")

    assert start(scheduler) == [1, 2, 4]
    scheduler.ended(tasks[0])
    assert start(scheduler) == [3]


def test_what_is_reserved_is_lent_and_given_back_first(scheduler):
    """A flood of another type takes all workers, and the next free one goes to the type with a floor."""
    flood = [add(scheduler, sequence, type="flood", priority=9) for sequence in range(1, 5)]
    assert start(scheduler) == [1, 2, 3, 4]
    add(scheduler, 5, type="flood", priority=9)
    rules = Rules(reserved=1)
    add(scheduler, 6, rules, type="small")
    add(scheduler, 7, rules, type="small")

    scheduler.ended(flood[0])

    assert scheduler.next(0.0).sequence == 6
    assert scheduler.next(0.0).sequence == 5


def test_a_task_whose_thread_was_given_up_counts_for_the_cap_and_not_for_the_floor(scheduler):
    """Its work goes on, and takes none of the workers."""
    rules = Rules(max_running=2, reserved=1)
    first = add(scheduler, 1, rules, type="a")
    add(scheduler, 2, type="b", priority=1)
    add(scheduler, 3, rules, type="a")
    add(scheduler, 4, rules, type="a")
    assert scheduler.next(0.0) is first

    scheduler.abandoned(first)

    assert start(scheduler) == [3, 2]
    scheduler.ended(first)
    assert start(scheduler) == [4]


# --- keys ---


def test_one_runs_of_each_key_in_order_of_submission(scheduler):
    """Whatever the priorities; other keys, other types and tasks without a key go on."""
    rules = Rules(key="key")
    first = add(scheduler, 1, rules, type="a", key="k")
    second = add(scheduler, 2, rules, type="a", key="k", priority=5)
    add(scheduler, 3, rules, type="a", key="l")
    add(scheduler, 4, rules, type="b", key="k")
    add(scheduler, 5, rules, type="a")
    third = add(scheduler, 6, rules, type="a", key="k")

    assert start(scheduler) == [1, 3, 4, 5]
    scheduler.ended(first)
    assert scheduler.next(0.0) is second
    scheduler.ended(second)
    assert scheduler.next(0.0) is third


def test_a_task_that_is_delayed_does_not_hold_up_its_key(scheduler):
    """It takes its place when its time comes: before those that were submitted later and have not begun."""
    rules = Rules(key="key")
    add(scheduler, 1, rules, key="k", ready_at=10.0)
    second, third = (add(scheduler, sequence, rules, key="k") for sequence in (2, 3))

    assert start(scheduler) == [2]
    assert start(scheduler, 10.0) == []
    scheduler.ended(second)
    assert start(scheduler, 10.0) == [1]
    assert scheduler.explain(third, 10.0).holder.sequence == 1


@pytest.mark.parametrize("again", [Retry(after=5.0), Defer(5.0)])
def test_a_task_that_runs_again_keeps_its_key(scheduler, again):
    """Or one that was submitted later would overtake it."""
    rules = Rules(key="key", max_attempts=2)
    first, second = (add(scheduler, sequence, rules, key="k") for sequence in (1, 2))
    scheduler.next(0.0)

    scheduler.failed(first, again, 0.0, 0.0)

    assert scheduler.next(1.0) is None
    assert scheduler.next(5.0) is first
    scheduler.ended(first)
    assert scheduler.next(5.0) is second


def test_a_task_that_is_cancelled_while_it_waits_for_a_retry_frees_its_key(scheduler):
    """As whatever ends it does."""
    rules = Rules(key="key", max_attempts=2)
    first, second = (add(scheduler, sequence, rules, key="k") for sequence in (1, 2))
    scheduler.next(0.0)
    scheduler.failed(first, ValueError(), 0.0, 0.0)

    assert scheduler.ended(first)

    assert scheduler.next(0.0) is second
    assert scheduler.wake_at() is None


# --- joining ---


@pytest.mark.parametrize(("coalesce", "replaces"), [("drop", False), ("rerun", True)])
def test_a_burst_for_a_key_that_runs_becomes_one_more_run(scheduler, coalesce, replaces):
    """A thousand submissions while it runs: the first is queued, all others join it."""
    rules = Rules(key="key", coalesce=coalesce)
    first = add(scheduler, 1, rules, key="k")
    scheduler.next(0.0)

    added = 0
    for sequence in range(2, 1002):
        joining = scheduler.joining(None, "k", 0.0)
        if joining is None:
            added += 1
            add(scheduler, sequence, rules, key="k")
        else:
            assert joining.item.sequence == 2
            assert joining.replaces is replaces
            assert scheduler.join(joining, 0, 0.0, 0.0)

    scheduler.ended(first)
    assert added == 1
    assert start(scheduler) == [2]


def test_of_two_merges_at_once_one_is_done_anew(scheduler):
    """Each was made of the same contents, and would undo the other."""

    def merge(waiting, new):
        return waiting | new

    add(scheduler, 1, Rules(key="key", coalesce=merge), key="k")
    one, other = scheduler.joining(None, "k", 0.0), scheduler.joining(None, "k", 0.0)
    assert one.merge is merge

    assert scheduler.join(other, 0, 0.0, 0.0)
    assert not scheduler.join(one, 0, 0.0, 0.0)
    assert scheduler.join(scheduler.joining(None, "k", 0.0), 0, 0.0, 0.0)


def test_no_task_is_joined_that_has_begun(scheduler):
    """Not while it runs, nor while it waits for its retry; but one that was put back."""
    rules = Rules(key="key", coalesce="rerun", max_attempts=2)
    task = add(scheduler, 1, rules, key="k")
    joining = scheduler.joining(None, "k", 0.0)
    scheduler.next(0.0)

    assert scheduler.joining(None, "k", 0.0) is None
    assert not scheduler.join(joining, 0, 0.0, 0.0)
    scheduler.put_back(task)
    assert scheduler.joining(None, "k", 0.0).item is task
    scheduler.next(0.0)
    scheduler.failed(task, ValueError(), 0.0, 0.0)
    assert scheduler.joining(None, "k", 0.0) is None


def test_who_joins_does_not_wait_longer_than_alone(scheduler):
    """The task takes the higher priority and the earlier time."""
    rules = Rules(key="key", coalesce="drop")
    add(scheduler, 1, rules, key="k", ready_at=50.0)
    add(scheduler, 2, priority=1)

    scheduler.join(scheduler.joining(None, "k", 0.0), 3, 0.0, 0.0)

    assert start(scheduler) == [1, 2]


# --- time limits for waiting ---


def test_a_task_that_waits_too_long_is_told_once_and_never_started(scheduler):
    """Its time counts from its submission, or from the time that it was delayed to."""
    rules = Rules(queue_timeout=2.0)
    late = add(scheduler, 1, rules)
    delayed = add(scheduler, 2, rules, ready_at=10.0)
    assert scheduler.wake_at() == 2.0

    assert scheduler.next(2.0) is None
    assert scheduler.wake_at() == float("-inf")
    assert scheduler.expired(2.0) == [late]
    assert scheduler.expired(2.0) == []
    assert scheduler.wake_at() == 10.0
    assert scheduler.expired(11.0) == []
    assert scheduler.wake_at() == 12.0
    assert scheduler.next(11.9) is delayed
    assert scheduler.expired(20.0) == []


def test_the_limit_does_not_count_between_attempts(scheduler):
    """A task that has begun does not run out of time for waiting; one that was put back does."""
    rules = Rules(queue_timeout=2.0, max_attempts=2)
    task = add(scheduler, 1, rules)
    scheduler.next(1.0)
    scheduler.put_back(task)
    assert scheduler.wake_at() == 2.0
    scheduler.next(1.0)

    scheduler.failed(task, Retry(after=10.0), 1.0, 0.0)

    assert scheduler.expired(50.0) == []
    assert scheduler.next(50.0) is task


# --- attempts ---


def test_failures_are_tried_again_after_waits_that_grow(scheduler):
    """Until no attempt is left; the verdict says so."""
    task = add(scheduler, 1, Rules(max_attempts=5, backoff=STEADY))

    waits, now = [], 0.0
    while scheduler.next(now) is task:
        verdict = scheduler.failed(task, ValueError(), now, 0.0)
        if verdict.again is None:
            break
        assert verdict.again is Place.RETRY
        assert scheduler.wake_at() == verdict.at
        assert scheduler.next(verdict.at - 0.001) is None
        waits.append(verdict.at - now)
        now = verdict.at

    assert waits == [1.0, 2.0, 4.0, 5.0]
    assert verdict.why == "that was attempt 5 of 5"
    assert scheduler.spent(task) == (5, 0)


def test_only_named_errors_are_tried_again(scheduler):
    """And those derived from them; `Retry` always, at the time that it says."""
    rules = Rules(max_attempts=9, retry_on=(OSError,), backoff=STEADY)
    task = add(scheduler, 1, rules)

    verdicts, now = [], 0.0
    for error in (FileNotFoundError(), Retry(after=7.0), KeyError()):
        assert scheduler.next(now) is task
        verdicts.append(scheduler.failed(task, error, now, 0.0))
        now = verdicts[-1].at

    assert [(verdict.again, verdict.at) for verdict in verdicts] == [
        (Place.RETRY, 1.0),
        (Place.RETRY, 8.0),
        (None, 0.0),
    ]
    assert verdicts[-1].why == "KeyError is not in retry_on"


def test_a_retry_that_is_asked_for_needs_an_attempt(scheduler):
    """Or it could go on for ever; the verdict says what is wanting."""
    task = add(scheduler, 1)
    scheduler.next(0.0)

    verdict = scheduler.failed(task, Retry(), 0.0, 0.0)

    assert verdict.again is None
    assert verdict.why == "that was attempt 1 of 1"


def test_crashes_and_deferrals_have_budgets_of_their_own(scheduler):
    """A crash charges no attempt, a deferral nothing at all."""
    task = add(scheduler, 1, Rules(max_attempts=2, max_crashes=2, backoff=STEADY))

    scheduler.next(0.0)
    assert scheduler.crashed(task, 0.0).again is Place.RETRY
    for now in range(10, 60, 10):
        assert scheduler.next(now) is task
        assert scheduler.failed(task, Defer(3.0), now, 0.0).at == now + 3.0
    scheduler.next(100.0)
    assert scheduler.failed(task, ValueError(), 100.0, 0.0).again is Place.RETRY
    scheduler.next(200.0)
    verdict = scheduler.crashed(task, 200.0)

    assert verdict.again is None
    assert verdict.why == "quarantined: it has taken 2 workers along"


def test_who_always_defers_for_no_time_lets_others_go_on(scheduler):
    """Its worker is free for a moment at least."""
    task = add(scheduler, 1)
    other = add(scheduler, 2)
    scheduler.next(0.0)

    verdict = scheduler.failed(task, Defer(until=datetime.now(UTC) - timedelta(hours=1)), 0.0, 2e9)

    assert verdict.at > 0.0
    assert scheduler.next(0.0) is other


def test_a_deferral_until_a_moment_is_turned_into_seconds(scheduler):
    """By the time of day that is passed in."""
    task = add(scheduler, 1)
    scheduler.next(50.0)
    until = datetime(2026, 1, 1, tzinfo=UTC)

    verdict = scheduler.failed(task, Defer(until=until), 50.0, until.timestamp() - 30.0)

    assert verdict.again is Place.DEFER
    assert verdict.at == pytest.approx(80.0)


def test_the_jitter_comes_from_a_source_that_can_be_seeded():
    """Seeded alike, waits are alike; they are shorter, never longer."""
    backoff = Backoff(initial=10.0, factor=2.0, maximum=30.0, jitter=0.5)

    one, other = (
        [backoff.seconds(number, chance) for number in range(1, 2000)] for chance in map(random.Random, (7, 7))
    )

    assert one == other
    assert 5.0 <= one[0] <= 10.0
    assert all(15.0 <= wait <= 30.0 for wait in one[1:] if wait > 20.0)
    assert len(set(one)) == len(one)


# --- answers ---


def test_it_says_why_each_task_waits(scheduler):
    """In a sentence, with what would let it go on."""
    keyed, capped, floor = Rules(key="key", max_attempts=3), Rules(max_running=1), Rules(reserved=1)
    holder = add(scheduler, 1, keyed, type="bank", key="b1")
    add(scheduler, 2, capped, type="heavy")
    start(scheduler)
    behind = add(scheduler, 3, keyed, type="bank", key="b1")
    second = add(scheduler, 4, capped, type="heavy")
    later = add(scheduler, 5, ready_at=12.0)
    last = add(scheduler, 6)

    def says(task, now=0.0):
        return str(scheduler.explain(task, now))

    assert says(holder) == "it does not wait: a worker has it"
    assert says(behind) == "waits for its key 'b1': task #1 has it and runs"
    assert (
        says(second)
        == "waits for one of its type to end: max_running=1 of type 'heavy' are running; 0 others before it"
    )
    assert says(later) == "waits for its time, in 12.0 s"
    assert says(last) == "waits for a worker, 1 other before it"
    add(scheduler, 7, floor, type="small")
    goes = "the next one goes to type 'small', which runs 0 of the 1 reserved for it"
    assert says(last) == f"waits for a worker; {goes}; 1 other before it"
    scheduler.abandoned(holder)
    assert says(behind) == "waits for its key 'b1': task #1 has it, in a thread that was given up and has not ended"
    scheduler.failed(holder, Retry(after=4.0), 0.0, 0.0)
    assert says(holder, 1.0) == "waits for its next attempt, in 3.0 s, after 1 of 3 attempts failed"
    assert says(behind, 1.0) == "waits for its key 'b1': task #1 has it and waits for its next attempt, in 3.0 s"
    assert start(scheduler, 4.0) == [7, 1, 6]
    scheduler.failed(holder, Defer(9.0), 4.0, 0.0)
    assert says(holder, 4.0) == "has put itself off for another 9.0 s"
    assert scheduler.explain(FakeTask(99), 0.0) is None
    assert scheduler.explain(later, 0.0).cause is Cause.DELAY


def test_it_counts_by_type_what_is_waited_for(scheduler):
    """And says how long the oldest waits; one whose time has not come does not wait yet."""
    rules = Rules(key="key", max_running=1, max_attempts=2)
    for sequence, key in [(1, "k"), (2, "k"), (3, "l"), (4, "m")]:
        add(scheduler, sequence, rules, now=float(sequence), type="a", key=key)
    add(scheduler, 5, rules, type="a", ready_at=90.0)
    first = scheduler.next(10.0)
    found = scheduler.figures(10.0)["a"]
    assert (found.running, found.key, found.cap, found.delay, found.oldest) == (1, 1, 2, 1, 8.0)

    scheduler.failed(first, ValueError(), 10.0, 0.0)

    found = scheduler.figures(11.0)["a"]
    assert (found.running, found.key, found.worker, found.cap, found.retry, found.oldest) == (0, 1, 2, 0, 1, 10.0)


def test_only_tasks_without_rules_go_ahead(scheduler):
    """What a key, a cap, a floor or turns have a say in is released one at a time."""
    constrained = [Rules(max_running=9), Rules(reserved=1), Rules(fair_by="tenant"), Rules(key="key")]
    free = add(scheduler, 1, Rules(max_attempts=3, priority=2))
    others = [add(scheduler, 2 + number, rules, type=str(number)) for number, rules in enumerate(constrained[:3])]
    keyed = add(scheduler, 9, constrained[3], key="k")

    assert scheduler.may_go_ahead(free)
    assert not any(scheduler.may_go_ahead(task) for task in [*others, keyed])


def test_nothing_is_kept_of_a_task_that_is_over(scheduler):
    """Whatever its rules, and however long before its time it ended."""
    rules = Rules(key="key", coalesce="rerun", fair_by="tenant", queue_timeout=1e9, max_running=1)
    tasks = [
        add(scheduler, number, rules, key=number % 2, ready_at=1e9 * (number % 3), type="t") for number in range(9)
    ]
    scheduler.next(0.0)
    held = [sys.getrefcount(task) for task in tasks]

    for task in tasks:
        scheduler.ended(task)
    del task

    left = [sys.getrefcount(task) for task in tasks]
    assert [before - after for before, after in zip(held, left, strict=True)] == [1] * 9
    assert len(scheduler) == 0
    assert list(scheduler) == []
    assert scheduler.figures(0.0) == {}


def test_the_rules_that_came_last_are_the_cap_of_a_type(scheduler):
    """As where a backend gets a new handler: what waits already is let go on as well."""
    for sequence in (1, 2):
        add(scheduler, sequence, Rules(max_running=1), type="t")
    assert start(scheduler) == [1]

    add(scheduler, 3, Rules(max_running=3), type="t")

    assert start(scheduler) == [2, 3]
