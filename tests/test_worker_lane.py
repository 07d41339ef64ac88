"""A lane whose source is not a plain queue: it sends a handler's tasks, and hears of their progress and limits."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest

from taskback import _codec, current_task
from taskback._call import Outcome
from taskback._state import TaskState
from taskback.pools.child import calls, packets
from taskback.pools.child.packets import Packet
from taskback.pools.guardian_client import GuardianClient
from taskback.pools.source import Message
from taskback.pools.worker_lane import WorkerLane
from taskback.pools.worker_process import Ending
from tests import faults
from tests.faults import LIMIT


class Task:
    """What this source's items are."""

    def __init__(self, number: int, task: dict[str, Any], seconds: float | None) -> None:
        self.number = number
        self.task = task
        self.seconds = seconds
        self.ended = threading.Event()
        self.outcome: Outcome | None = None
        self.ending: Ending | None = None
        self.time_was_up = False
        self.progress: list[Any] = []


class Scheduler:
    """A source that gives one task at a time, as a backend's would."""

    def __init__(self, handler: Any, grace: float) -> None:
        self._handler = _codec.dumps((handler, ()))
        self._grace = grace
        self._lock = threading.Lock()
        self._queue: deque[Task] = deque()
        self._idle: WorkerLane | None = None
        self._count = 0
        self.closed = False
        self.guardian = GuardianClient((__name__,))  # or the import of this file would count for a time limit
        self.lane = WorkerLane(self, self.guardian, "lane")
        self.lane.start()

    def submit(self, task: dict[str, Any], seconds: float | None = None) -> Task:
        with self._lock:
            self._count += 1
            item = Task(self._count, task, seconds)
            self._queue.append(item)
            lane, self._idle = self._idle, None
        if lane is not None:
            taken = self.take(lane)
            if taken is not None and not lane.send(taken):
                self.put_back([taken])
        return item

    def run(self, task: dict[str, Any], seconds: float | None = None) -> Task:
        item = self.submit(task, seconds)
        assert item.ended.wait(LIMIT)
        return item

    def close(self) -> None:
        self.closed = True
        self.lane.wake()
        self.lane.kill("the test is over")
        self.lane.thread.join(LIMIT)
        self.guardian.close()
        self._idle = None
        del self.lane  # closes its bell

    # --- what a source is asked and told ---

    def hello(self) -> tuple[bytes, None]:
        return _codec.dumps((None, (), {})), None

    def take(self, lane: WorkerLane) -> Task | None:
        with self._lock:
            if self._queue:
                return self._queue.popleft()
            self._idle = lane
            return None

    def take_ahead(self, most: int) -> list[Task]:
        return []

    def sent(self, lane: WorkerLane, items: list[Task]) -> None: ...

    def withdraw(self, lane: WorkerLane) -> None:
        with self._lock:
            self._idle = None

    def put_back(self, items: list[Task]) -> None:
        with self._lock:
            self._queue.extendleft(reversed(items))

    def message(self, item: Task) -> Message:
        request = calls.Request(
            *(item.number, f"task-{item.number}", None, 1, item.seconds, {}, _codec.dumps(item.task)),
            *(("handler", 1), None),
        )
        return Message(packets.TASK, item.number, request.pack(), (1, self._handler), item.seconds, self._grace)

    def finished(self, lane: WorkerLane, replies: list[tuple[Task, Packet]]) -> None:
        for item, packet in replies:
            item.outcome = calls.read_reply(packet.kind, packet.data, lane.any_pid or 0).outcome()
            item.ended.set()

    def part(self, lane: WorkerLane, item: Task, packet: Packet) -> None: ...

    def progressed(self, lane: WorkerLane, item: Task, progress: bytes | None) -> None:
        assert progress is not None
        item.progress.append(calls.unpack_progress(_codec.loads(progress)))

    def time_is_up(self, lane: WorkerLane, item: Task) -> None:
        assert item.outcome is None
        item.time_was_up = True

    def unguarded(self, lane: WorkerLane, item: Task) -> None: ...

    def failed(self, lane: WorkerLane, item: Task, error: BaseException) -> None:
        item.outcome = Outcome(TaskState.FAILED, error=error)
        item.ended.set()

    def lost(self, lane: WorkerLane, item: Task, ending: Ending) -> None:
        item.ending = ending
        item.outcome = Outcome(TaskState.LOST, error=ending.error(item.number))
        item.ended.set()

    def worker_started(self, lane: WorkerLane, pid: int) -> None: ...

    def worker_ended(self, lane: WorkerLane, ending: Ending, item: Task | None) -> None: ...

    def cannot_start(self, lane: WorkerLane, error: BaseException, tries: int) -> bool:
        return not self.closed

    def is_over(self) -> bool:
        return self.closed

    def lane_ended(self, lane: WorkerLane) -> None: ...


def handler(task: dict[str, Any]) -> Any:
    """Sync faults, and what else the task says."""
    if task["do"] == "report":
        for step in range(3):
            current_task().report(step, 3, part=step)
            time.sleep(0.06)
        return current_task().id
    if task["do"] == "async":
        return wait_async(task["tell"])
    if task["do"] == "stubborn":
        return spin_async(task["tell"])
    return faults.handler(task)


async def wait_async(path: str) -> None:
    """Wait as async code does; it takes its cancellation."""
    faults.tell(path, os.getpid())
    try:
        await asyncio.sleep(600)
    except asyncio.CancelledError:
        faults.tell(path, "cancelled")
        raise


async def spin_async(path: str) -> None:
    """Async code that never yields."""
    faults.tell(path, os.getpid())
    while True:
        pass


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    """Closed whatever the test does."""
    scheduler = Scheduler(handler, grace=0.4)
    scheduler.run({"do": "echo"})  # its worker has imported the handler, which limits of a test need not allow for
    yield scheduler
    scheduler.close()


def test_a_handler_runs_its_tasks(scheduler):
    """And says what came of each."""
    assert scheduler.run({"do": "echo", "n": 5}).outcome == Outcome(TaskState.SUCCEEDED, 5)
    assert scheduler.run({"do": "no such thing"}).outcome.state is TaskState.FAILED


def test_progress_arrives_as_it_is_made(scheduler):
    """From the status page, with what it reports beside."""
    item = scheduler.run({"do": "report"})

    assert item.outcome.value == f"task-{item.number}"
    assert [(progress.done, progress.total, dict(progress.data)) for progress in item.progress] == [
        (0, 3, {"part": 0}),
        (1, 3, {"part": 1}),
        (2, 3, {"part": 2}),
    ]


@pytest.mark.parametrize("do", ["sleep", "async", "stubborn"])
def test_a_time_limit_stops_a_task_by_itself(scheduler, channel, do):
    """By the exception; an async one is cancelled first, and struck at half the grace."""
    item = scheduler.submit({"do": do, "tell": channel.path}, seconds=0.2)
    (pid,) = channel.numbers()

    assert item.ended.wait(LIMIT)

    assert item.outcome.state is TaskState.CANCELLED
    assert item.time_was_up
    if do == "async":
        assert channel.line() == "cancelled"
    assert scheduler.run({"do": "pid"}).outcome.value == pid


def test_a_task_can_be_stopped_by_its_number(scheduler, channel):
    """An async one at once; another number is another task's."""
    item = scheduler.submit({"do": "async", "tell": channel.path})
    channel.numbers()

    scheduler.lane.interrupt(item.number + 1, firmly=True)
    scheduler.lane.interrupt(item.number, firmly=False)

    assert item.ended.wait(LIMIT)
    assert item.outcome.state is TaskState.CANCELLED


def test_a_task_that_does_not_stop_is_killed_and_known_as_limited(scheduler, channel):
    """With the stack that it was in; the next one runs in another worker."""
    item = scheduler.submit({"do": "swallow", "tell": channel.path}, seconds=0.2)
    (pid,) = channel.numbers()

    assert item.ended.wait(LIMIT)

    assert item.time_was_up
    assert item.time_was_up
    assert item.ending.call == item.number
    assert item.ending.exitcode == -signal.SIGKILL
    assert "in swallow" in item.ending.stack
    assert scheduler.run({"do": "pid"}).outcome.value != pid


def test_a_task_can_be_killed_by_its_number(scheduler, channel):
    """Unless the worker has another one."""
    item = scheduler.submit({"do": "deaf", "tell": channel.path})
    (pid,) = channel.numbers()

    scheduler.lane.kill("not this one", item.number + 1)
    scheduler.lane.kill("this one", item.number)

    assert item.ended.wait(LIMIT)
    assert (item.ending.pid, item.ending.why) == (pid, "this one")
    assert not item.time_was_up


def test_stacks_of_a_lane_s_worker(scheduler, channel):
    """Where its handler is."""
    scheduler.submit({"do": "sleep", "tell": channel.path})
    channel.numbers()

    assert "in _sleep" in scheduler.lane.stack()
