"""Whatever happens in whatever order, the scheduler says what a slow and obvious one says."""

from __future__ import annotations

import random
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from taskback._again import Defer, Retry
from taskback.scheduler.attempts import Verdict
from taskback.scheduler.backoff import Backoff
from taskback.scheduler.coalescing import Joining
from taskback.scheduler.entry import Place
from taskback.scheduler.rules import PLAIN, Rules
from taskback.scheduler.scheduler import Scheduler
from tests.scheduler_model import FakeTask, Model

TYPES: Final = ("a", None)
BACKOFF: Final = Backoff(initial=1.0, factor=2.0, maximum=3.0, jitter=0.5)
ERRORS: Final = (ValueError(), KeyError(), Retry(), Retry(after=1.5), Defer(2.0))

type_rules = st.builds(
    lambda capacity, attempts, **rest: Rules(
        max_running=capacity[0], reserved=capacity[1], backoff=BACKOFF, **attempts, **rest
    ),
    capacity=st.sampled_from([(None, 0), (None, 0), (None, 1), (1, 0), (2, 1), (2, 2)]),
    attempts=st.sampled_from([{"max_attempts": 1}, {"max_attempts": 3}, {"max_attempts": 2, "retry_on": ValueError}]),
    fair_by=st.sampled_from([None, "tenant"]),
    key=st.just("key"),
    coalesce=st.sampled_from([None, None, None, "drop", "rerun", lambda waiting, new: waiting | new]),
    queue_timeout=st.sampled_from([None, None, 4.0]),
    max_crashes=st.sampled_from([1, 2]),
)

plain_rules = st.sampled_from([PLAIN, Rules(max_attempts=3, max_crashes=2, backoff=BACKOFF)])

Arrival = tuple[int, str | None, str, float]  # priority, key, value, delay
arrivals = st.tuples(
    st.sampled_from([0, 0, 0, 1, -1]),
    st.sampled_from([None, "k", "k", "l"]),
    st.sampled_from("xyz"),
    st.sampled_from([0.0, 0.0, 1.0, 2.0]),
)


class SchedulerMachine(RuleBasedStateMachine):
    """The scheduler and its model, told the same. What a task ends as is counted: once for each."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.scheduler: Scheduler[FakeTask] = Scheduler(random.Random(1))
        self.model = Model()
        self.running: list[FakeTask] = []
        self.submitted = self.over = 0
        self.decisions: list[Joining[FakeTask]] = []

    @initialize(
        rules=st.tuples(st.one_of(type_rules, type_rules, plain_rules), st.one_of(type_rules, plain_rules)),
        workers=st.integers(1, 4),
        first=st.lists(arrivals, min_size=3, max_size=8),
    )
    def it_begins(self, rules: tuple[Rules, ...], workers: int, first: list[Arrival]) -> None:
        """Each type has its rules, and some tasks are there."""
        self.rules_of = dict(zip(TYPES, rules, strict=True))
        self.workers = workers
        self.submit_all(TYPES[0], first, later=False)

    # --- tasks come ---

    @rule(type=st.sampled_from(TYPES), arrivals=st.lists(arrivals, min_size=1, max_size=4), later=st.booleans())
    def submit(self, type: str | None, arrivals: list[Arrival], later: bool) -> None:
        """Tasks come."""
        self.submit_all(type, arrivals, later)

    def submit_all(self, type: str | None, arrivals: list[Arrival], later: bool) -> None:
        """One after the other."""
        for priority, key, value, delay in arrivals:
            self._submit(type, priority, key, value, delay, later)

    def _submit(self, type: str | None, priority: int, key: str | None, value: str, delay: float, later: bool) -> None:
        ready_at, rules = self.now + delay if delay else 0.0, self.rules_of[type]
        key = None if rules.key is None else key
        self.model.see_to_times(self.now)
        decision, expected = self.scheduler.joining(type, key, self.now), self.model.joinable(type, key)
        assert (decision and decision.item) is (expected and expected.item)
        if decision is None:
            self.submitted += 1
            task = FakeTask(self.submitted, type, priority, ready_at, key, value)
            self.scheduler.add(task, rules, self.now)
            self.model.add(task, rules, self.now)
        elif later:  # its merge function takes a while
            self.decisions.append(decision)
        else:
            assert expected is not None
            assert self.scheduler.join(decision, priority, ready_at, self.now)
            self.model.join(expected, priority, ready_at, self.now)

    @precondition(lambda self: self.decisions)
    @rule(priority=st.sampled_from([0, 2]))
    def join_after_a_while(self, priority: int) -> None:
        """A merge function has returned: what it was about may be over, or changed."""
        decision = self.decisions.pop(0)
        self.model.see_to_times(self.now)
        found = [task for task in self.model.tasks if task.item is decision.item]
        holds = any(
            task.stage != "running" and task.untouched and (decision.merge is None or task.joins == decision.joins)
            for task in found
        )
        assert self.scheduler.join(decision, priority, self.now, self.now) is holds
        if holds:
            self.model.join(found[0], priority, self.now, self.now)

    # --- they start ---

    @rule(most=st.integers(1, 3))
    def workers_are_free(self, most: int) -> None:
        """Each free worker asks for a task."""
        for _ in range(most):
            if sum(not self.model.find(task).abandoned for task in self.running) >= self.workers:
                return
            self.model.see_to_times(self.now)
            task = self.scheduler.next(self.now)
            assert task is self.model.next()
            if task is None:
                return
            assert task not in self.running
            self.running.append(task)

    # --- they end ---

    @precondition(lambda self: self.running)
    @rule(pick=st.integers(0, 9))
    def a_task_ends(self, pick: int) -> None:
        """One that runs."""
        self._end(self.running.pop(pick % len(self.running)))

    @precondition(lambda self: self.running)
    @rule(pick=st.integers(0, 9), error=st.sampled_from(ERRORS))
    def a_task_fails(self, pick: int, error: Exception) -> None:
        """Its handler raises."""
        task = self.running.pop(pick % len(self.running))
        verdict = self.scheduler.failed(task, error, self.now, 0.0)
        self._judge(task, verdict, self.model.failed(task, error))

    @precondition(lambda self: self.running)
    @rule(pick=st.integers(0, 9))
    def a_worker_dies(self, pick: int) -> None:
        """With the task that it had."""
        task = self.running.pop(pick % len(self.running))
        self._judge(task, self.scheduler.crashed(task, self.now), self.model.crashed(task))

    @precondition(lambda self: self.running)
    @rule(pick=st.integers(0, 9))
    def a_task_comes_back(self, pick: int) -> None:
        """It has not begun."""
        task = self.running.pop(pick % len(self.running))
        self.scheduler.put_back(task)
        self.model.put_back(task)

    @precondition(lambda self: self.running)
    @rule(pick=st.integers(0, 9))
    def a_thread_is_given_up(self, pick: int) -> None:
        """Its task goes on."""
        task = self.running[pick % len(self.running)]
        self.scheduler.abandoned(task)
        self.model.find(task).abandoned = True

    @precondition(lambda self: self.model.tasks)
    @rule(pick=st.integers(0, 99))
    def a_task_is_cancelled(self, pick: int) -> None:
        """Wherever it is."""
        task = self.model.tasks[pick % len(self.model.tasks)].item
        if task in self.running:
            self.running.remove(task)
        self._end(task)

    # --- time goes by ---

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.0, 5.0]))
    def time_goes_by(self, seconds: float) -> None:
        """Without anybody who looks."""
        self.now += seconds

    @rule()
    def the_timer_fires(self) -> None:
        """At the time that it was set to."""
        when = self.scheduler.wake_at()
        if when is not None:
            self.now = max(self.now, when)
        self._collect_expired()

    def _collect_expired(self) -> None:
        self.model.see_to_times(self.now)
        expired = self.scheduler.expired(self.now)
        assert expired == self.model.out_of_time
        self.model.out_of_time = []
        self.over += len(expired)

    def _judge(self, task: FakeTask, verdict: Verdict, expected: str | None) -> None:
        assert (verdict.again and verdict.again.value) == expected
        if verdict.again is None:
            self._end(task)
            return
        least, most = (2.0, 2.0) if verdict.again is Place.DEFER else (0.5, 3.0)
        assert self.now + least <= verdict.at <= self.now + most
        self.model.wait(task, verdict.again.value, verdict.at)

    def _end(self, task: FakeTask) -> None:
        assert self.scheduler.ended(task)
        self.model.ended(task)
        assert not self.scheduler.ended(task)
        self.over += 1

    # --- somebody asks ---

    @precondition(lambda self: self.model.tasks)
    @rule(picks=st.lists(st.integers(0, 99), min_size=3, max_size=3))
    def its_answers_are_right(self, picks: list[int]) -> None:
        """Why tasks wait, and how many for what."""
        figures = self.scheduler.figures(self.now)
        assert set(figures) == {task.type for task in self.model.tasks}
        for type, found in figures.items():
            names = ("running", "worker", "cap", "key", "delay", "retry", "defer")
            expected = self.model.figures(type)
            assert {name: getattr(found, name) for name in names} == {name: expected[name] for name in names}
            assert found.oldest == self.model.oldest(type, self.now)
        for pick in picks:
            task = self.model.tasks[pick % len(self.model.tasks)]
            reason: Any = self.scheduler.explain(task.item, self.now)
            assert reason.cause is self.model.cause(task)
            assert reason.holder is (self.model.front(task).item if reason.cause.value == "key" else None)
            assert reason.before == (self.model.before(task) if task in self.model.ready() else None)

    # --- what holds at all times ---

    @invariant()
    def nothing_is_lost(self) -> None:
        """Each task is over, out of time, or here."""
        assert self.submitted == self.over + len(self.model.out_of_time) + len(self.model.tasks)
        waiting = {task.item for task in self.model.tasks if task.stage != "running"}
        assert set(self.scheduler) == waiting
        assert len(self.scheduler) == len(waiting)

    @invariant()
    def no_rule_is_broken(self) -> None:
        """No two of a key run, and no more of a type than its cap."""
        keys = [(task.type, task.key) for task in self.running if task.key is not None]
        assert len(keys) == len(set(keys))
        for type in TYPES if self.running else ():
            cap = self.rules_of[type].max_running
            assert cap is None or sum(task.type == type for task in self.running) <= cap

    @invariant()
    def it_wakes_in_time(self) -> None:
        """Not a moment before or after something is to happen."""
        assert self.scheduler.wake_at() == self.model.wake_at()

    def teardown(self) -> None:
        """Whatever is left starts and ends, for nothing waits for ever."""
        for task in self.running:
            self._end(task)
        self.running = []
        while self.model.tasks or self.model.out_of_time:
            self._collect_expired()
            following = self.scheduler.next(self.now)
            assert following is self.model.next()
            if following is not None:
                self._end(following)
            elif self.model.tasks:
                when = self.scheduler.wake_at()
                assert when is not None, "nothing runs, and nothing is ever to happen"
                self.now = max(self.now, when)
        assert self.over == self.submitted
        assert self.scheduler.wake_at() is None
        assert self.scheduler.figures(self.now) == {}


SchedulerMachine.TestCase.settings = settings(
    max_examples=500, stateful_step_count=50, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
TestScheduler = pytest.mark.timeout(300)(SchedulerMachine.TestCase)
