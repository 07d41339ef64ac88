"""The contract, on every backend that queues: what may run next, how often, for how long, and what waits for it."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError, wait
from pathlib import Path
from typing import Any

import pytest

from taskback import (
    Backoff,
    ProcessPoolTaskBackend,
    Retry,
    TaskHandle,
    TaskRetrying,
    TaskRouter,
    TaskState,
    TaskTimeoutError,
    WorkerDiedError,
)
from tests import handlers
from tests.backends import flavour, on
from tests.gates import PATIENCE, Gate
from tests.helpers import outcomes, until

SOON = Backoff(initial=0.01, jitter=0)
LATER = Backoff(initial=60.0, jitter=0)

Start = Callable[..., Any]


@pytest.fixture
def start(entry: Any, make: Any) -> Start:
    """Starts a backend of so many workers, whose router has the type "t" with these policies, and "u" with none."""

    def start(workers: int = 2, **policy: Any) -> Any:
        router = TaskRouter()
        router.handler("t", handlers.do, **policy)
        router.handler("u", handlers.do)
        backend = make(entry, router, workers=workers)
        backend.initialize_sync()
        return backend

    return start


class Log:
    """What handlers of `note` have written."""

    def __init__(self, directory: Path, entry: Any) -> None:
        self.path = directory / "log"
        self.path.touch()
        self._do = flavour(entry, "note")

    def task(self, n: object, type: str = "t", **fields: Any) -> dict[str, Any]:
        """A task that writes down that it begins, and that it ends."""
        return {"type": type, "do": self._do, "log": str(self.path), "n": n, **fields}

    def lines(self) -> list[str]:
        """All of it."""
        return self.path.read_text().splitlines()

    def begun(self) -> list[str]:
        """Which tasks have begun, in that order."""
        return [line.removeprefix("begin ") for line in self.lines() if line.startswith("begin")]


@pytest.fixture
def log(entry: Any, tmp_path: Path) -> Log:
    """One of the test's own."""
    return Log(tmp_path, entry)


def ended(*handles: TaskHandle) -> None:
    """Wait for them."""
    assert not wait(handles, PATIENCE).not_done, handles


# --- attempts ---


@on(returns_before_run=True)
def test_a_task_that_fails_is_tried_again(start):
    """Its handle waits on, and tells each attempt; the figures count one task."""
    backend = start(max_attempts=3, backoff=SOON)
    events: list[Any] = []
    backend.subscribe(events.append)

    handle = backend.submit_sync({"type": "t", "do": "fail_until", "attempt": 3})

    assert handle.result(PATIENCE) == 3
    assert handle.attempt == 3
    told = [(attempt.number, attempt.outcome, attempt.error_text) for attempt in handle.attempts]
    failed, succeeded = TaskState.FAILED, TaskState.SUCCEEDED
    assert told == [(1, failed, "attempt 1"), (2, failed, "attempt 2"), (3, succeeded, None)]
    assert all("ValueError: attempt" in (attempt.traceback or "") for attempt in handle.attempts[:2])
    stats = backend.stats()
    assert (stats.accepted, stats.succeeded, outcomes(stats)) == (1, 1, 1)
    until(lambda: len(events) >= 1 + 3 + 2 + 1)
    retries = [event for event in events if isinstance(event, TaskRetrying)]
    assert [(event.attempt, event.error_text) for event in retries] == [(1, "attempt 1"), (2, "attempt 2")]


@on(returns_before_run=True)
def test_the_last_attempt_that_fails_is_the_tasks_end(start):
    """With its error."""
    backend = start(max_attempts=2, backoff=SOON)

    handle = backend.submit_sync({"type": "t", "do": "fail_until", "attempt": 9})

    with pytest.raises(ValueError, match="attempt 2"):
        handle.result(PATIENCE)
    assert [attempt.number for attempt in handle.attempts] == [1, 2]


@on(returns_before_run=True)
def test_an_error_that_is_not_in_retry_on_ends_the_task(start):
    """With the first attempt."""
    backend = start(max_attempts=5, retry_on=OSError, backoff=SOON)

    handle = backend.submit_sync({"type": "t", "do": "fail_until", "attempt": 3})

    with pytest.raises(ValueError, match="attempt 1"):
        handle.result(PATIENCE)
    assert handle.attempt == 1


@on(returns_before_run=True)
def test_a_handler_asks_to_be_tried_again(start):
    """`Retry` says when, whatever `retry_on` says; without an attempt left it is the task's error."""
    backend = start(max_attempts=2, retry_on=OSError, backoff=LATER)
    task = {"type": "t", "do": "fail_until", "raises": Retry(after=0.01)}

    assert backend.submit_sync({**task, "attempt": 2}).result(PATIENCE) == 2
    with pytest.raises(Retry):
        backend.submit_sync({**task, "attempt": 3}).result(PATIENCE)


@on(returns_before_run=True)
def test_a_task_puts_itself_off(start, log):
    """As often as it likes, and no attempt is charged."""
    backend = start()
    task = {**log.task("x"), "do": "note_or_defer", "defers": 3, "seconds": 0.01}

    handle = backend.submit_sync(task)

    assert handle.result(PATIENCE) == 1
    assert log.begun() == ["x"] * 4
    assert len(handle.attempts) == 1


@on(returns_before_run=True)
def test_a_task_that_waits_for_an_attempt_is_queued_and_can_be_cancelled(start):
    """`explain` says so, `stats` counts it, and its handler is not called again."""
    backend = start(max_attempts=2, backoff=LATER)
    handle = backend.submit_sync({"type": "t", "do": "fail_until", "attempt": 2})
    until(lambda: handle.attempt == 2)

    assert (handle.state, handle.running(), handle.done()) == (TaskState.QUEUED, False, False)
    assert "next attempt" in backend.explain(handle)
    assert backend.stats().by_type["t"].waiting_for_retry == 1
    assert handle.cancel()

    assert handle.state is TaskState.CANCELLED
    assert backend.inflight_count == 0
    assert "cancelled" in backend.explain(handle)


@on(returns_before_run=True)
def test_a_shutdown_charges_no_attempt(start):
    """What waits for one is in the report: unfinished, with the attempt that it waits for."""
    backend = start(max_attempts=3, backoff=LATER)
    task = {"type": "t", "do": "fail_until", "attempt": 9}
    handle = backend.submit_sync(task)
    until(lambda: handle.attempt == 2)

    report = backend.shutdown_sync(0)

    assert report.cancelled == [handle]
    assert report.unfinished == [task]
    assert (handle.attempt, [attempt.number for attempt in handle.attempts]) == (2, [1, 2])
    assert handle.attempts[1].outcome is TaskState.CANCELLED


@on(uses_cores=True, survives_worker_death=True)
def test_a_task_that_kills_its_worker_may_be_tried_again(start):
    """Within a budget of its own."""
    backend = start(max_crashes=3, backoff=SOON)

    handle = backend.submit_sync({"type": "t", "do": "die_until", "attempt": 3})

    assert handle.result(PATIENCE) == 3
    assert [attempt.outcome for attempt in handle.attempts] == [TaskState.LOST, TaskState.LOST, TaskState.SUCCEEDED]


@on(uses_cores=True, survives_worker_death=True)
def test_a_task_that_has_used_up_its_crashes_is_quarantined(start):
    """It is LOST, with its history."""
    backend = start(max_crashes=2, max_attempts=9, backoff=SOON)

    handle = backend.submit_sync({"type": "t", "do": "die_until", "attempt": 9})

    with pytest.raises(WorkerDiedError, match="quarantined: it has taken 2 workers along"):
        handle.result(PATIENCE)
    assert handle.state is TaskState.LOST
    assert [attempt.outcome for attempt in handle.attempts] == [TaskState.LOST, TaskState.LOST]


# --- time ---


@on(returns_before_run=True)
def test_a_task_that_waits_too_long_times_out(start, log, gate):
    """Its error says which limit that was; its handler is never called."""
    backend = start(workers=1, queue_timeout=0.1, max_running=1)
    backend.run_sync({"type": "u", "do": "echo"}, wait=PATIENCE)  # its worker is there
    holder = backend.submit_sync(log.task("holder", gate=gate.path))
    gate.wait_said()

    late = backend.submit_sync(log.task("late"))

    with pytest.raises(TaskTimeoutError, match=r"queue_timeout of 0\.1 s") as caught:
        late.result(PATIENCE)
    assert (caught.value.limit, caught.value.timeout) == ("queue_timeout", 0.1)
    assert caught.value.ran >= 0.1
    assert (late.state, late.started_at) == (TaskState.TIMED_OUT, None)
    gate.open()
    ended(holder)
    assert log.begun() == ["holder"]
    assert backend.stats().by_type["t"].timed_out == 1


@on(returns_before_run=True, timeout=True)
def test_a_task_that_reports_nothing_any_more_is_stopped(entry, start, gate):
    """Each report moves the limit; the error says which it was, and in which stage."""
    backend = start(idle_timeout=0.4)
    task = {"type": "t", "do": flavour(entry, "report_and_hold"), "times": 5, "every": 0.15, "gate": gate.path}

    handle = backend.submit_sync(task)

    with pytest.raises(TaskTimeoutError, match="idle_timeout") as caught:
        handle.result(PATIENCE)
    assert (caught.value.limit, caught.value.timeout, caught.value.stage) == ("idle_timeout", 0.4, "step 4")
    assert caught.value.ran >= 4 * 0.15 + 0.4
    assert handle.state is TaskState.TIMED_OUT


@on(returns_before_run=True, timeout=True)
def test_a_time_limit_holds_for_each_attempt(entry, start, gate):
    """The first one's does not strike the second one."""
    backend = start(max_attempts=2, backoff=Backoff(initial=0.4, jitter=0), timeout=0.6)
    handle = backend.submit_sync({"type": "t", "do": "fail_until", "attempt": 2})

    assert handle.result(PATIENCE) == 2

    held = backend.submit_sync({"type": "t", "do": flavour(entry, "hold"), "gate": gate.path})
    with pytest.raises(TaskTimeoutError) as caught:
        held.result(PATIENCE)
    assert (caught.value.limit, held.attempt) == ("timeout", 1)


# --- keys ---


@on(returns_before_run=True)
def test_of_one_key_one_runs_at_a_time_in_order(start, log, gate):
    """Others pass them; why they wait can be asked."""
    backend = start(key="bank")
    holder = backend.submit_sync(log.task(0, bank="a", gate=gate.path))
    gate.wait_said()

    waiting = [backend.submit_sync(log.task(n, bank="a")) for n in (1, 2, 3)]
    other = backend.submit_sync(log.task("other", bank="b"))
    none = backend.submit_sync(log.task("none", bank=None))

    ended(other, none)
    assert {handle.state for handle in waiting} == {TaskState.QUEUED}
    why = backend.explain(waiting[1])
    assert "key 'a'" in why
    assert holder.id in why
    assert backend.stats().by_type["t"].waiting_for_key == 3
    gate.open()
    ended(*waiting)
    assert [line for line in log.lines() if line[-1].isdigit()] == [
        f"{what} {n}" for n in range(4) for what in ("begin", "end")
    ]


@on(returns_before_run=True)
def test_a_task_without_the_field_of_its_key_is_refused(start):
    """Where it is submitted; nothing was accepted."""
    backend = start(key="bank")

    with pytest.raises(ValueError, match="'bank'"):
        backend.submit_sync({"type": "t", "do": "echo"})

    assert backend.stats().accepted == 0


@on(returns_before_run=True, cancels_running=True)
@pytest.mark.parametrize("how", ["cancel", "timeout"])
def test_a_holder_that_is_stopped_frees_its_key(entry, start, log, gate, how):
    """The next one begins."""
    backend = start(key="bank")
    options = {"timeout": 0.2} if how == "timeout" else {}
    holder = backend.submit_sync(log.task(0, bank="a", gate=gate.path), **options)
    gate.wait_said()
    waiting = backend.submit_sync(log.task(1, bank="a"))

    if how == "cancel":
        assert holder.cancel()

    ended(waiting)
    assert waiting.state is TaskState.SUCCEEDED
    assert holder.state is (TaskState.CANCELLED if how == "cancel" else TaskState.TIMED_OUT)


@on(uses_cores=True, survives_worker_death=True)
def test_a_holder_that_dies_frees_its_key(start, log):
    """It is LOST, and the next one begins."""
    backend = start(key="bank")
    holder = backend.submit_sync({"type": "t", "do": "die", "bank": "a"})
    waiting = backend.submit_sync(log.task(1, bank="a"))

    ended(holder, waiting)
    assert (holder.state, waiting.state) == (TaskState.LOST, TaskState.SUCCEEDED)


@on(returns_before_run=True)
def test_a_queued_holder_that_is_cancelled_lets_the_next_one_pass(start, log, gate):
    """It never began, and what stood behind it stands in its place."""
    backend = start(workers=1, key="bank", max_running=1)
    holder = backend.submit_sync(log.task("holder", bank="b", gate=gate.path))
    gate.wait_said()
    first, second = [backend.submit_sync(log.task(n, bank="a")) for n in (1, 2)]

    assert first.cancel()
    gate.open()

    ended(holder, second)
    assert log.begun() == ["holder", "2"]


@on(returns_before_run=True)
def test_a_queued_task_that_is_cancelled_is_not_begun_meanwhile(start, log, gate, monkeypatch):
    """Race: a worker is free between the step in which it is told to stop and its end."""
    backend = start(workers=1, max_running=1)
    holder = backend.submit_sync(log.task("holder", gate=gate.path))
    gate.wait_said()
    chosen = backend.submit_sync(log.task("chosen"))
    end = backend.ended

    def late(run: Any, outcome: Any, **facts: Any) -> None:
        if run is chosen._run and chosen._run.lane is None:
            gate.open()
            other = backend.submit_sync(log.task("other"))
            ended(holder, other)
        end(run, outcome, **facts)

    monkeypatch.setattr(backend, "ended", late)

    assert chosen.cancel()

    assert chosen.state is TaskState.CANCELLED
    assert log.begun() == ["holder", "other"]


@on(returns_before_run=True)
def test_a_task_that_is_tried_again_keeps_its_key(start, log):
    """What came later does not overtake it."""
    backend = start(key="bank", max_attempts=2, backoff=Backoff(initial=0.1, jitter=0))
    failing = {"type": "t", "do": "fail_until", "attempt": 2, "bank": "a"}

    first = backend.submit_sync(failing)
    second = backend.submit_sync(log.task(2, bank="a"))

    ended(first, second)
    assert first.result() == 2
    assert second.started_at is None or second.started_at >= first.finished_at


# --- coalescing ---


@on(returns_before_run=True)
def test_a_burst_for_one_key_reruns_once_with_what_came_last(start, log, gate):
    """Each of a thousand submitters, on several threads, has a handle of its own on the one run."""
    backend = start(key="bank", coalesce="rerun")
    running = backend.submit_sync(log.task("first", bank="a", value=0, gate=gate.path))
    gate.wait_said()
    handles: list[TaskHandle] = []

    def submit() -> None:
        handles.extend(backend.submit_sync(log.task("again", bank="a", value=0)) for _ in range(250))

    threads = [threading.Thread(target=submit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    last = backend.submit_sync(log.task("last", bank="a", value="last"))
    gate.open()

    ended(running, last, *handles)
    assert log.begun() == ["first", "last"]
    assert {handle.result() for handle in handles} == {"last"}
    assert len({id(handle) for handle in handles}) == 1000
    stats = backend.stats().by_type["t"]
    assert (stats.accepted, stats.joined, outcomes(stats)) == (2, 1000, 2)


@on(returns_before_run=True)
def test_drop_joins_what_waits(start, log, gate):
    """The first one's contents stay; one who cancels lets go, the last one stops it."""
    backend = start(key="bank", coalesce="drop")
    running = backend.submit_sync(log.task("running", bank="a", gate=gate.path))
    gate.wait_said()
    first = backend.submit_sync(log.task("first", bank="a", value="first"))
    second = backend.submit_sync(log.task("second", bank="a", value="second"))
    third = backend.submit_sync(log.task("third", bank="a", value="third"))

    assert second.cancel()

    assert (first.done(), second.cancelled(), third.done()) == (False, True, False)
    gate.open()
    ended(running, first, third)
    assert first.result() == third.result() == "first"
    with pytest.raises(CancelledError):
        second.result()
    assert log.begun() == ["running", "first"]


def _add_up(waiting: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    if new["value"] is None:
        raise LookupError("nothing to add")
    return {**waiting, "value": waiting["value"] + new["value"]}


@on(returns_before_run=True)
def test_a_function_merges_what_waits_and_what_comes(start, log, gate):
    """One that raises fails the joining submit alone."""
    backend = start(key="bank", coalesce=_add_up)
    running = backend.submit_sync(log.task("running", bank="a", value=0, gate=gate.path))
    gate.wait_said()
    waiting = [backend.submit_sync(log.task("sum", bank="a", value=n)) for n in (1, 2, 3)]

    with pytest.raises(LookupError, match="nothing to add"):
        backend.submit_sync(log.task("sum", bank="a", value=None))

    gate.open()
    ended(running, *waiting)
    assert [handle.result() for handle in waiting] == [6, 6, 6]
    assert log.begun() == ["running", "sum"]


# --- order ---


@on(returns_before_run=True)
def test_no_more_run_than_the_cap_allows(start, log, gate):
    """Other types go on; why they wait can be asked."""
    backend = start(max_running=1)
    holder = backend.submit_sync(log.task("holder", gate=gate.path))
    gate.wait_said()
    waiting = [backend.submit_sync(log.task(n)) for n in range(3)]
    other = backend.submit_sync(log.task("other", type="u"))

    ended(other)
    assert {handle.state for handle in waiting} == {TaskState.QUEUED}
    assert "max_running=1" in backend.explain(waiting[0])
    assert backend.stats().by_type["t"].waiting_for_cap == 3
    gate.open()
    ended(holder, *waiting)
    assert log.begun() == ["holder", "other", "0", "1", "2"]


@on(returns_before_run=True, priority=True, in_loop=False)
def test_a_type_with_a_floor_gets_the_next_worker(start, log, gate, tmp_path):
    """However many of another type wait before it, and whatever those do once they have a worker."""
    second = Gate(tmp_path, "second")
    backend = start(workers=2, reserved=1)
    holders = [backend.submit_sync(log.task(f"holder {n}", type="u", gate=gate.path)) for n in range(2)]
    gate.wait_said(2)
    flood = [backend.submit_sync(log.task(n, type="u", gate=second.path)) for n in range(200)]

    small = backend.submit_sync(log.task("small"))
    gate.open()

    ended(small, *holders)
    assert not any(handle.done() for handle in flood)
    second.open()
    ended(*flood)
    second.close()


@on(returns_before_run=True, priority=True, in_loop=False)
def test_the_priority_of_a_type_and_of_a_submission(start, log, gate):
    """The submission's own wins."""
    backend = start(workers=1, priority=5)
    holder = backend.submit_sync(log.task("holder", type="u", gate=gate.path))
    gate.wait_said()

    handles = [
        backend.submit_sync(log.task("low", type="u")),
        backend.submit_sync(log.task("high")),
        backend.submit_sync(log.task("lowest"), priority=-1),
        backend.submit_sync(log.task("highest", type="u"), priority=6),
    ]
    gate.open()

    ended(holder, *handles)
    assert log.begun() == ["holder", "highest", "high", "low", "lowest"]


@on(returns_before_run=True, priority=True, in_loop=False)
def test_tenants_take_turns(start, log, gate):
    """One with a single task waits for at most one of each other."""
    backend = start(workers=1, fair_by="tenant")
    holder = backend.submit_sync(log.task("holder", type="u", gate=gate.path))
    gate.wait_said()
    many = [backend.submit_sync(log.task(f"{tenant}{n}", tenant=tenant)) for tenant in "ab" for n in range(20)]

    one = backend.submit_sync(log.task("c0", tenant="c"))
    gate.open()

    ended(holder, one, *many)
    begun = log.begun()[1:]
    assert begun.index("c0") <= 2
    assert [name for name in begun if name[0] == "a"] == [f"a{n}" for n in range(20)]


@on(returns_before_run=True)
@pytest.mark.parametrize(
    ("policy", "named"),
    [
        ({"max_running": 1, "reserved": 2}, "reserved"),
        ({"atempts": 3}, "atempts"),
        ({"coalesce": "drop"}, "coalesce"),
        ({"idle_timeout": -1}, "idle_timeout"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused_where_it_is_written(start, policy, named):
    """Not when the first task comes."""
    with pytest.raises(ValueError, match=named):
        start(**policy)


@on(returns_before_run=True, priority=True, in_loop=False)
def test_floors_that_exceed_the_workers_are_refused(entry, make):
    """Where the router meets them."""
    router = TaskRouter()
    router.handler("t", handlers.do, reserved=2)
    router.handler("u", handlers.do, reserved=1)

    with pytest.raises(ValueError, match="reserved adds up to 3 of 2 workers"):
        make(entry, router, workers=2)


@on(returns_before_run=True)
def test_only_a_backends_own_tasks_are_explained(entry, start, make):
    """Another one's handle is an error."""
    one, other = start(), make(entry)
    other.initialize_sync()
    handle = other.submit_sync({"do": "echo"})

    with pytest.raises(ValueError, match=handle.id):
        one.explain(handle)


# --- at large ---


def locked(task: dict[str, Any]) -> None:
    """Fail if another of the same key runs; crash by chance."""
    import fcntl
    import os
    import signal

    with open(task["lock"], "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with open(f"{task['lock']}.order", "a") as order:
            order.write(f"{task['n']}\n")
        if task["crashes"]:
            os.kill(os.getpid(), signal.SIGKILL)


def test_ten_thousand_tasks_over_a_hundred_keys_with_workers_that_crash(tmp_path):
    """Never two of a key at once, each key in order, all accounted for."""
    chance = random.Random(4)
    router = TaskRouter()
    router.handler("t", locked, key="bank")
    tasks = [
        {"type": "t", "bank": n % 100, "n": n, "lock": str(tmp_path / str(n % 100)), "crashes": chance.random() < 0.01}
        for n in range(10_000)
    ]
    with ProcessPoolTaskBackend(router, max_workers=8, cancel_grace_seconds=1.0) as backend:
        handles = [backend.submit_sync(task) for task in tasks]
        assert not wait(handles, 3 * PATIENCE).not_done
        stats = backend.stats()

    assert Counter(handle.state for handle in handles) == Counter(
        TaskState.LOST if task["crashes"] else TaskState.SUCCEEDED for task in tasks
    )
    assert (stats.accepted, outcomes(stats)) == (10_000, 10_000)
    for bank in range(100):
        order = [int(line) for line in (tmp_path / f"{bank}.order").read_text().splitlines()]
        assert order == [task["n"] for task in tasks if task["bank"] == bank]


def test_a_flood_does_not_starve_a_type_with_a_floor(tmp_path):
    """Of 50,000 tasks of another type, no more come before it than are under way."""
    router = TaskRouter()
    router.handler("flood", handlers.echo)
    router.handler("small", handlers.echo, reserved=1)
    with ProcessPoolTaskBackend(router, max_workers=2) as backend:
        flood = [backend.submit_sync({"type": "flood"}) for _ in range(50_000)]
        small = backend.submit_sync({"type": "small", "value": 1})

        assert small.result(PATIENCE) == 1

        assert not flood[-1].done()
        for handle in flood:
            handle.cancel()


def test_asyncio_callers_await_what_is_tried_again():
    """The coroutine waits through all attempts."""

    async def main() -> Any:
        router = TaskRouter()
        router.handler("t", handlers.fail_until, max_attempts=3, backoff=SOON)
        async with ProcessPoolTaskBackend(router, max_workers=1) as backend:
            return await (await backend.submit({"type": "t", "attempt": 3}))

    assert asyncio.run(main()) == 3
