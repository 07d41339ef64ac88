"""The scheduler, slow and obvious: a list of tasks that is searched for each answer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

from taskback._again import Defer, Retry
from taskback.scheduler.explaining import Cause
from taskback.scheduler.rules import Rules


@dataclass(slots=True, eq=False)
class FakeTask:
    """What the scheduler needs to know of a task."""

    sequence: int
    type: str | None = None
    priority: int = 0
    ready_at: float = 0.0
    key: Hashable = None
    fair_value: Hashable = None
    since: float = 0.0

    @property
    def id(self) -> str:
        """Its number, as text."""
        return f"#{self.sequence}"


NEXT_CAUSE: Final = {"delayed": Cause.DELAY, "retry": Cause.RETRY, "defer": Cause.DEFER, "running": Cause.NOTHING}


class ModelTask:
    """A task and all that has befallen it."""

    def __init__(self, item: FakeTask, rules: Rules, now: float) -> None:
        self.item, self.rules = item, rules
        self.sequence, self.type, self.key, self.value = item.sequence, item.type, item.key, item.fair_value
        self.priority, self.due = item.priority, item.ready_at
        self.stage = "delayed"  # or waiting, running, retry, defer
        self.begun = self.abandoned = False
        self.failures = self.crashes = self.defers = self.joins = 0
        self.count_from(now)
        if self.due <= now:
            self.stage = "waiting"

    def count_from(self, now: float) -> None:
        """Its wait begins now, or when its time comes."""
        self.since = max(now, self.due)
        self.expires = self.since + (self.rules.queue_timeout or math.inf)

    @property
    def untouched(self) -> bool:
        """Whether no attempt at it has been made."""
        return not (self.failures or self.crashes or self.defers)

    def timer(self) -> float:
        """When something is to happen to it by itself."""
        if self.stage in ("delayed", "retry", "defer"):
            return self.due
        return self.expires if self.stage == "waiting" and self.untouched else math.inf


class Model:
    """See the top of the file. Each method does what the scheduler's of that name does."""

    def __init__(self) -> None:
        self.tasks: list[ModelTask] = []
        self.out_of_time: list[FakeTask] = []
        self.rings: dict[tuple[str | None, int], list[Hashable]] = {}

    # --- what is so now ---

    def find(self, item: FakeTask) -> ModelTask:
        """The task of an item."""
        return next(task for task in self.tasks if task.item is item)

    def front(self, task: ModelTask) -> ModelTask:
        """Which task of the same type and key may run."""
        if task.key is None:
            return task
        line = [each for each in self.tasks if (each.type, each.key) == (task.type, task.key)]
        began = [each for each in line if each.begun]
        waiting = [each for each in line if each.stage == "waiting"]
        assert len(began) <= 1
        return began[0] if began else min(waiting, key=lambda each: each.sequence)

    def ready(self) -> list[ModelTask]:
        """The tasks that no key keeps waiting."""
        waiting = [task for task in self.tasks if task.stage == "waiting"]
        fronts = {(task.type, task.key): self.front(task) for task in waiting if task.key is not None}
        return [task for task in waiting if task.key is None or fronts[task.type, task.key] is task]

    def running(self, type: str | None) -> list[ModelTask]:
        """The tasks of a type that are under way."""
        return [task for task in self.tasks if task.stage == "running" and task.type == type]

    def at_cap(self, task: ModelTask) -> bool:
        """Whether the cap of its type keeps a task waiting."""
        cap = task.rules.max_running
        return cap is not None and len(self.running(task.type)) >= cap

    def owed(self, task: ModelTask) -> bool:
        """Whether the type of a task runs less than is reserved for it."""
        return sum(not each.abandoned for each in self.running(task.type)) < task.rules.reserved

    def startable(self) -> list[ModelTask]:
        """The tasks of which a free worker gets one."""
        ready = self.ready()
        at_cap, owed = ({task.type for task in ready if test(task)} for test in (self.at_cap, self.owed))
        below_cap = [task for task in ready if task.type not in at_cap]
        return [task for task in below_cap if task.type in owed] or below_cap

    def turn_over(self) -> None:
        """Something has changed: who has no task that is ready loses its turn, who has one anew comes last."""
        ready = self.ready()
        for ring in {(task.type, task.priority) for task in ready} | set(self.rings):
            values = dict.fromkeys(task.value for task in ready if (task.type, task.priority) == ring)
            kept = [value for value in self.rings.get(ring, []) if value in values]
            self.rings[ring] = kept + [value for value in values if value not in kept]

    # --- what happens ---

    def add(self, item: FakeTask, rules: Rules, now: float) -> None:
        """A task comes."""
        self.tasks.append(ModelTask(item, rules, now))
        self.turn_over()

    def joinable(self, type: str | None, key: Hashable) -> ModelTask | None:
        """The last task of a type and key that nobody has begun."""
        found = [
            task
            for task in self.tasks
            if key is not None and (task.type, task.key) == (type, key) and task.rules.coalesce is not None
            if task.stage != "running" and task.untouched
        ]
        return max(found, key=lambda task: task.sequence, default=None)

    def join(self, task: ModelTask, priority: int, ready_at: float, now: float) -> None:
        """A submission joins it."""
        task.joins += 1
        task.priority = max(task.priority, priority)
        if task.stage == "delayed" and ready_at < task.due:
            task.due = ready_at
            task.count_from(now)
            if task.due <= now:
                task.stage = "waiting"
        self.turn_over()

    def next(self) -> FakeTask | None:
        """A worker is free."""
        startable = self.startable()
        if not startable:
            return None
        best = min(startable, key=lambda task: (-task.priority, task.sequence))
        rivals = [task for task in startable if (task.type, task.priority) == (best.type, best.priority)]
        if best.rules.fair_by is not None:
            ring = self.rings[best.type, best.priority]
            rivals = [task for task in rivals if task.value == ring[0]]
            ring.append(ring.pop(0))
        task = min(rivals, key=lambda each: each.sequence)
        task.stage, task.begun = "running", True
        self.turn_over()
        return task.item

    def put_back(self, item: FakeTask) -> None:
        """It has not begun."""
        task = self.find(item)
        task.stage, task.abandoned = "waiting", False
        ring = self.rings.setdefault((task.type, task.priority), [])
        self.rings[task.type, task.priority] = [task.value, *(value for value in ring if value != task.value)]
        self.turn_over()

    def failed(self, item: FakeTask, error: Exception) -> str | None:
        """It raised; where it waits, or None if it is over."""
        task = self.find(item)
        if isinstance(error, Defer):
            task.defers += 1
            return "defer"
        task.failures += 1
        again = isinstance(error, Retry) or task.rules.retry_on is None or isinstance(error, task.rules.retry_on)
        return "retry" if again and task.failures < task.rules.max_attempts else None

    def crashed(self, item: FakeTask) -> str | None:
        """Its worker died; where it waits, or None if it is over."""
        task = self.find(item)
        task.crashes += 1
        return "retry" if task.crashes < task.rules.max_crashes else None

    def wait(self, item: FakeTask, stage: str, until: float) -> None:
        """It is to run again."""
        task = self.find(item)
        task.stage, task.due, task.abandoned = stage, until, False
        self.turn_over()

    def ended(self, item: FakeTask) -> None:
        """It is over."""
        self.tasks.remove(self.find(item))
        self.turn_over()

    def see_to_times(self, now: float) -> None:
        """One after the other, what was to happen until now."""
        while True:
            due = [task for task in self.tasks if task.timer() <= now]
            if not due:
                return
            task = min(due, key=lambda each: (each.timer(), each.sequence))
            if task.stage == "waiting":
                self.out_of_time.append(task.item)
                self.tasks.remove(task)
            else:
                task.stage = "waiting"
            self.turn_over()

    # --- answers ---

    def wake_at(self) -> float | None:
        """When something happens by itself."""
        when = min((task.timer() for task in self.tasks), default=math.inf)
        return -math.inf if self.out_of_time else None if when == math.inf else when

    def cause(self, task: ModelTask) -> Cause:
        """What a task waits for."""
        if task.stage in NEXT_CAUSE:
            return NEXT_CAUSE[task.stage]
        if self.front(task) is not task:
            return Cause.KEY
        if self.at_cap(task):
            return Cause.CAP
        first = self.startable()
        return Cause.FLOOR if self.owed(first[0]) and not self.owed(task) else Cause.WORKER

    def before(self, task: ModelTask) -> int:
        """How many tasks that are ready go before one of them."""
        mine = (-task.priority, task.sequence)
        return sum((-each.priority, each.sequence) < mine for each in self.ready())

    def figures(self, type: str | None) -> Counter[str]:
        """How many tasks of a type wait for what."""
        names = {Cause.NOTHING: "running", Cause.FLOOR: "worker"}
        causes = [self.cause(task) for task in self.tasks if task.type == type]
        return Counter(names.get(cause, cause.value) for cause in causes)

    def oldest(self, type: str | None, now: float) -> float | None:
        """How long the oldest task of a type waits."""
        ages = [
            now - task.since for task in self.tasks if task.type == type and task.stage not in ("delayed", "running")
        ]
        return max(0.0, *ages) if ages else None
