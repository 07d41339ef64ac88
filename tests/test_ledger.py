"""A run ends once, its handles with it, and the figures are right for whoever is woken."""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from taskback import _clock
from taskback._call import Outcome
from taskback._errors import TaskTimeoutError, UnknownTaskError
from taskback._events import Listeners
from taskback._handle import TaskHandle
from taskback._router import NO_POLICY, Policy
from taskback._run import Run
from taskback._state import TaskState
from taskback.backends._ledger import Ledger
from taskback.backends._ticket import Ticket
from taskback.scheduler.pressure import Limits
from tests.gates import PATIENCE

DONE = Outcome(TaskState.SUCCEEDED, "done")
GAVE_UP = Outcome(TaskState.CANCELLED)


def make_run(task_id: str = "id") -> Run:
    """A run that nobody has accepted yet."""
    return Run(task_id, "type", {}, None, context={}, priority=0, ready_at=0.0, timeout=None, policy=NO_POLICY)


@pytest.fixture
def ledger() -> Ledger:
    """An open one that keeps the last two."""
    made = Ledger(Listeners("test"), 2)
    made.open = True
    return made


def admit(ledger: Ledger, run: Run) -> TaskHandle:
    """Accept it."""
    handle = ledger.admit(run, None, True)
    assert isinstance(handle, TaskHandle)
    return handle


@pytest.mark.parametrize(("first", "second"), [(DONE, GAVE_UP), (GAVE_UP, DONE)])
def test_of_two_ends_the_first_wins(ledger, first, second):
    """The second is told that it was late, and changes nothing."""
    run = make_run()
    handle = admit(ledger, run)

    assert ledger.end(run, first, 1, run.queued_ns) == []  # nobody waits
    assert ledger.end(run, second) is None

    assert run.state is first.state
    assert handle.done()
    assert len(run.attempts) == 1


def test_one_who_let_go_is_not_ended_again(ledger):
    """Let go, then end: each handle ends once, in its own way."""
    run = make_run()
    first, second = admit(ledger, run), ledger.join("id", None)

    assert ledger.let_go(first)
    for handle in (first, second):
        handle.add_done_callback(lambda _: None)
    ended = ledger.end(run, DONE, 1, run.queued_ns)

    assert ended == [second]
    assert first.cancelled()
    assert second.result(0) == "done"


def test_letting_go_after_the_end_changes_nothing(ledger):
    """End, then let go."""
    run = make_run()
    first, second = admit(ledger, run), ledger.join("id", None)
    ledger.end(run, DONE, 1, run.queued_ns)

    assert not ledger.let_go(first)

    assert [first.result(0), second.result(0)] == ["done", "done"]


def test_a_join_before_the_end_ends_with_it_and_one_after_finds_none(ledger):
    """A handle is never given on a run that has ended."""
    run = make_run()
    admit(ledger, run)
    before = ledger.join("id", None)

    ledger.end(run, DONE, 1, run.queued_ns)

    assert before.result(0) == "done"
    assert ledger.join("id", None) is None


def test_a_closed_ledger_takes_nothing(ledger):
    """Neither a new run nor one who joins."""
    admit(ledger, make_run())
    ledger.open = False

    assert ledger.admit(make_run("other"), None, True) is None
    assert ledger.join("id", None) is None
    assert list(ledger.runs) == ["id"]


def test_the_last_that_ended_are_found(ledger):
    """As many as are kept."""
    handles = []
    for name in "abc":
        run = make_run(name)
        handles.append(admit(ledger, run))
        ledger.end(run, GAVE_UP)

    assert [ledger.find("b"), ledger.find("c")] == handles[1:]
    with pytest.raises(UnknownTaskError):
        ledger.find("a")


def test_no_text_of_a_handlers_error_is_asked_for_under_the_lock(ledger):
    """Its `__str__` is user code, also where it is only the cause of what the task ends with."""
    asked: list[bool] = []

    class Curious(Exception):
        def __str__(self) -> str:
            asked.append(ledger.lock.locked())
            return "curious"

    run = make_run()
    run.timeout, run.stop = 1.0, TaskState.TIMED_OUT
    handle = admit(ledger, run)

    ledger.end(run, Outcome(TaskState.FAILED, error=Curious()), 1, run.queued_ns)

    assert asked
    assert not any(asked)
    assert isinstance(handle.exception(0), TaskTimeoutError)
    told = run.attempts[0]
    assert told.error_type == "taskback.TaskTimeoutError"
    assert told.traceback is not None
    assert "Curious: curious" in told.traceback
    assert told.traceback.endswith(f"{told.error_text}\n")


def test_what_a_run_was_told_to_stop_for_wins(ledger):
    """Whatever its handler made of that; but one that was given up is ABANDONED."""
    ends = [DONE, GAVE_UP, Outcome(TaskState.FAILED, error=ValueError())]
    for stop in (TaskState.CANCELLED, TaskState.TIMED_OUT):
        for outcome in [*ends, Outcome(TaskState.ABANDONED, error=ValueError())]:
            run = make_run()
            run.timeout, run.stop = 1.0, stop
            admit(ledger, run)
            assert ledger.scheduler.next(_clock.monotonic()) is run

            ledger.end(run, outcome, 1, run.queued_ns)

            assert run.state is (outcome.state if outcome.state is TaskState.ABANDONED else stop)


def test_what_is_looked_at_and_not_sent_ahead_makes_no_room():
    """Or each look would let one more submitter in, beyond the limit."""
    ledger = Ledger(Listeners("test"), 0, Limits(max_queued=1))
    ledger.open = True
    policy = Policy(max_running=3)
    first, second = [Ticket(make_run(name), {}, "test") for name in ("first", "second")]
    for ticket in (first, second):
        ticket.run.policy = policy
    assert isinstance(ledger.admit(first.run, None, True, first), TaskHandle)
    assert ledger.admit(second.run, None, True, second) is second

    assert ledger._next_ahead(_clock.monotonic()) is None

    assert ledger.pressure is not None
    assert (ledger.pressure.queued, ledger.pressure.waiting, second.admitted) == (1, 1, False)
    assert ledger.next(_clock.monotonic()) is first.run
    assert second.admitted


def test_times_of_a_run_are_in_order_whatever_the_worker_says(ledger):
    """A start that a worker's clock puts before the submission is moved there."""
    run = make_run()
    handle = admit(ledger, run)

    ledger.end(run, DONE, 1, run.queued_ns - 10**9)

    assert handle.queued_at == handle.started_at
    assert handle.finished_at is not None
    assert handle.finished_at >= handle.queued_at


def test_figures_are_right_when_a_waiter_is_woken(ledger):
    """A thread that blocks on a handle finds its task counted as ended."""
    run = make_run()
    handle = admit(ledger, run)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(lambda: (handle.result(10), ledger.figures()[0]))
        ledger.end(run, DONE, 1, run.queued_ns)
        _, figures = waiting.result()

    assert (figures["succeeded"], figures["queued"], figures["running"]) == (1, 0, 0)


def test_many_threads_leave_the_sums_right(ledger):
    """Threads that join, start, let go and end the same runs: each ends once, and the figures add up."""
    ends: list[Any] = []
    together = threading.Barrier(6)

    def work(number: int) -> None:
        together.wait(10)
        for turn in range(400):
            handle = admit(ledger, make_run(str(turn)))
            run = handle._run
            if turn == 0:  # once all join the same run for certain, whoever is how fast
                together.wait(10)
            ledger.start(run, 1, run.queued_ns)
            if number % 3 == 0:
                ledger.let_go(handle)
            ended = ledger.end(run, DONE if number % 2 else GAVE_UP)
            if ended is not None:
                ends.append(run)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(work, range(6)))
    finally:
        sys.setswitchinterval(before)

    figures, by_type = ledger.figures()
    assert figures["accepted"] == len(ends) == len(set(map(id, ends)))
    assert figures["accepted"] + figures["joined"] == 2400
    assert figures["succeeded"] + figures["cancelled"] == figures["accepted"]
    assert figures["queued"] == figures["running"] == 0
    assert by_type["type"].accepted == figures["accepted"]
    assert figures["joined"] >= 5
    assert not ledger.runs


@pytest.fixture
def unwatched() -> Ledger:
    """One that keeps none and whose type of runs is known to end well."""
    made = Ledger(Listeners("test"), 0)
    made.open = True
    for number in range(20):
        run = make_run(f"early {number}")
        admit(made, run)
        made.end(run, DONE, 1, run.queued_ns)
    return made


def test_a_plain_end_is_as_any_other(unwatched):
    """The figures, the handle and the run are as `end` leaves them; once."""
    runs = [make_run("plain"), make_run("general")]
    handles = [admit(unwatched, run) for run in runs]

    assert unwatched.end_plainly(runs[0], "done", 1, runs[0].queued_ns) == []
    assert unwatched.end(runs[1], DONE, 1, runs[1].queued_ns) == []

    assert [handle.result(0) for handle in handles] == ["done", "done"]
    for run in runs:
        assert (run.state, run.pid, run.started_ns, run.lane, run.call) == (
            *(TaskState.SUCCEEDED, 1, run.queued_ns, None, None),
        )
        assert run.finished_ns is not None
    assert unwatched.figures()[0]["succeeded"] == 22
    assert unwatched.end_plainly(runs[0], "again") is None
    assert not unwatched.runs


@pytest.mark.parametrize("why", ["stopped", "joined", "policy", "listener", "shutdown"])
def test_where_somebody_has_a_say_no_end_is_plain(unwatched, why):
    """Nothing is done, so that `end` can do it."""
    run = make_run()
    if why == "policy":
        run.policy = Policy(max_running=1)
    handle = admit(unwatched, run)
    if why == "stopped":
        run.stop = TaskState.CANCELLED
    elif why == "joined":
        unwatched.join("id", None)
    elif why == "listener":
        unwatched.listeners.subscribe(lambda event: None)
    elif why == "shutdown":
        unwatched.on_end = lambda run, handles: None

    assert unwatched.end_plainly(run, "done") is None

    assert not handle.done()
    assert unwatched.end(run, DONE, 1, run.queued_ns) is not None
    assert handle.done()
    assert unwatched.listeners.stop(_clock.monotonic() + PATIENCE)
