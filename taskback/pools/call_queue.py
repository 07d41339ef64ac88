"""The calls of a `ProcessPool`, from submit to future: the plain queue among the sources of calls.

Threads: submit() and close() on any, abandon() also where a garbage collection strikes; lanes call what `Source` lists.
Locks: _lock is a leaf, and so is _states, the futures'. Futures are touched, calls sent and lanes started outside it.
Holds: a call is in the queue, or a lane has it, or its future is done. A lane is in _idle if and only if it has asked
for a call and there was none; whoever takes it out gives it one, or puts it back. What comes back goes to its place by
number.

Race: submit() and a lane that is about to be idle. Both hold the lock for their one step: either the lane finds the
call, or submit() finds the lane.
"""

import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from typing import Any, Final

from taskback import _clock, _codec
from taskback._errors import TaskCancelled
from taskback._packed import Packed
from taskback._worker_died import WorkerDiedError
from taskback.pools.by_value import Packer
from taskback.pools.child import packets
from taskback.pools.child.packets import Packet
from taskback.pools.future import PoolFuture
from taskback.pools.guardian_client import GuardianClient
from taskback.pools.source import Message
from taskback.pools.worker_lane import WorkerLane, fullest
from taskback.pools.worker_process import Ending, InitializerError

logger = logging.getLogger(__name__)

TRIES: Final = 3  # workers in a row that may fail to start, until calls are told


class _Call:
    """A call that was submitted."""

    __slots__ = ("begun", "data", "function", "future", "number")

    def __init__(self, number: int, future: "Future[Any]", data: Packed, function: "tuple[int, bytes] | None") -> None:
        self.number = number
        self.future = future
        self.data = data
        self.function = function
        self.begun = False

    def begins(self) -> bool:
        """It is about to be sent; False if it was cancelled. Sent again after it came back, it stays running."""
        if not self.begun:
            self.begun = self.future.set_running_or_notify_cancel()
        return self.begun

    def fail(self, error: BaseException) -> None:
        """End it with an error."""
        if self.begins():
            try:
                self.future.set_exception(error)
            except InvalidStateError:  # somebody else has ended the future
                logger.warning("a future was ended by somebody else", exc_info=True)


class CallQueue:
    """See the top of the file.

    Args:
        name (str): For threads and log lines.
        max_workers (int): Lanes at most.
        guardian (GuardianClient): Starts the workers.
        initializer (Callable[..., object] | None): Called in each worker first.
        initargs (tuple[Any, ...]): With these.
    """

    def __init__(
        self,
        name: str,
        max_workers: int,
        guardian: GuardianClient,
        initializer: Callable[..., object] | None = None,
        initargs: "tuple[Any, ...]" = (),
    ) -> None:
        self._name = name
        self._max_workers = max_workers
        self._guardian = guardian
        self._hello = _codec.pack((initializer, initargs, {}))
        self._packer = Packer()
        self._lock = threading.Lock()
        self._states = threading.RLock()
        self._numbers = itertools.count(1)
        self._lane_numbers = itertools.count(1)
        self._queue: deque[_Call] = deque()
        self._idle: list[WorkerLane] = []
        self._lanes: tuple[WorkerLane, ...] = ()  # replaced, never changed, so that it can be read without the lock
        self.closed = False
        self.broken: str | None = None  # why no worker will ever start
        self._why_killed = ""

    # --- submitters ---

    def submit(self, function: Any, arguments: "tuple[Any, ...]", keywords: "dict[str, Any]") -> "Future[Any]":
        """Take a call; what cannot be pickled fails its future.

        Raises:
            BrokenProcessPool: The initializer has failed.
            RuntimeError: The pool is closed, or the program is ending.
        """
        self._check()
        future = PoolFuture(self._states)
        try:
            data, by_value = self._packer.pack(function, arguments, keywords)
        except Exception as error:
            future.set_running_or_notify_cancel()
            future.set_exception(error)
            return future
        call = _Call(next(self._numbers), future, data, by_value)
        with self._lock:
            self._check()
            lane = self._idle.pop() if self._idle else None
            waits = lane is None or bool(self._queue)
            if waits:
                self._queue.append(call)
        if lane is not None:
            self._give(lane, None if waits else call)
        elif len(self._lanes) < self._max_workers:
            self._add_lane(call)
        return future

    def _check(self) -> None:
        if self.broken is not None:
            raise BrokenProcessPool(self.broken)
        if self.closed:
            raise RuntimeError("cannot schedule new futures after shutdown")

    def _give(self, lane: WorkerLane, call: _Call | None = None) -> None:
        """Give a lane that was idle this call, or the next one."""
        if call is None or not call.begins():
            call = self.take(lane)
        if call is not None and not lane.send(call):
            self.put_back([call])

    def _add_lane(self, call: _Call) -> None:
        """Start another lane, for this call above all."""
        lane: WorkerLane | None = None
        try:
            with self._lock:
                if len(self._lanes) >= self._max_workers:
                    return
                lane = WorkerLane(self, self._guardian, f"{self._name}-{next(self._lane_numbers)}")
                self._lanes = (*self._lanes, lane)
            lane.start()
        except (OSError, RuntimeError) as error:  # no descriptors; or the program ends and starts no more threads
            if lane is not None:
                self._drop(lane)
            if self._lanes:
                return
            if call.begun:
                call.fail(WorkerDiedError(None, None, why=f"no worker can be started: {error}"))
                with self._lock, suppress(ValueError):  # unless it is not in the queue any more
                    self._queue.remove(call)
                return
            call.future.cancel()
            if isinstance(error, OSError):
                raise
            raise RuntimeError("cannot schedule new futures after interpreter shutdown") from error

    def _drop(self, lane: WorkerLane) -> None:
        with self._lock:
            self._lanes = tuple(other for other in self._lanes if other is not lane)

    # --- the end ---

    def close(self, cancel: bool = False) -> None:
        """Take no more calls; lanes end when none is left. `cancel`: those that have not begun are cancelled."""
        with self._lock:
            self.closed = True
            dropped: list[_Call] = list(self._queue) if cancel else []
            if cancel:
                self._queue.clear()
        for call in dropped:
            if not call.begun:
                call.future.cancel()
                call.future.set_running_or_notify_cancel()
            else:  # it had come back from a worker that died before reading it, and cannot be cancelled any more
                call.fail(WorkerDiedError(None, None, why="the pool was closed before another worker could take it"))
        self.wake()

    def abandon(self) -> None:
        """Nobody refers to the pool any more. Takes no lock: a garbage collection may call it anywhere."""
        self.closed = True
        self.wake()

    def wake(self) -> None:
        """Have each lane look whether it is to end."""
        for lane in self._lanes:
            lane.wake()

    def kill(self, why: str) -> None:
        """End every worker now; the calls they have are lost."""
        self._why_killed = why
        self._guardian.kill_all_at(0)
        for lane in self._lanes:
            lane.kill(why)

    def terminate(self, why: str, grace: float) -> None:
        """Stop every call that runs by an exception, and kill the workers of those that go on after the grace."""
        self._why_killed = why
        self._guardian.kill_all_at(_clock.monotonic() + grace)
        for lane in self._lanes:
            lane.interrupt_all()

    def lanes(self) -> "tuple[WorkerLane, ...]":
        """Those that there are."""
        return self._lanes

    # --- lanes; see `Source` ---

    def hello(self) -> "tuple[Packed, None]":
        return self._hello, None

    def take(self, lane: WorkerLane) -> _Call | None:
        asked = False
        while True:
            with self._lock:
                if lane in self._idle:
                    self._idle.remove(lane)
                call = self._queue.popleft() if self._queue else None
                fuller = None if asked or call is not None else fullest(self._lanes, lane)
                if call is None and fuller is None:
                    self._idle.append(lane)
                    return None
            if fuller is not None:
                asked = True  # once: what it has may all be answered, and not heard yet
                fuller.give_back()
            elif call is not None and call.begins():
                return call

    def take_ahead(self, most: int) -> "list[_Call]":
        with self._lock:
            taken = [self._queue.popleft() for _ in range(min(most, len(self._queue)))]
        return [call for call in taken if call.begins()]

    def sent(self, lane: WorkerLane, items: "list[_Call]") -> None:
        """A plain call cannot be stopped by its caller any more."""

    def withdraw(self, lane: WorkerLane) -> None:
        with self._lock:
            if lane in self._idle:
                self._idle.remove(lane)

    def put_back(self, items: "list[_Call]") -> None:
        if not items:
            return
        if self._why_killed:  # or each new worker would be sent them, be killed, and give them back
            for call in items:
                call.fail(WorkerDiedError(None, None, why=self._why_killed))
            return
        with self._lock:
            later = deque(sorted((*items, *itertools.takewhile(lambda call: call.begun, self._queue)), key=_number))
            while self._queue and self._queue[0].begun:
                self._queue.popleft()
            self._queue.extendleft(reversed(later))
            idle = [self._idle.pop() for _ in range(min(len(self._idle), len(items)))]
            stranded = not self._lanes  # a lane that has ended refused it
        for lane in idle:
            self._give(lane)
        if stranded:
            self._add_lane(items[0])

    def message(self, item: _Call) -> Message:
        return Message(packets.CALL, item.number, item.data, item.function)

    def begun(self, lane: WorkerLane, item: _Call) -> None:
        """A plain call asks for no such news."""

    def finished(self, lane: WorkerLane, replies: "list[tuple[_Call, Packet]]") -> None:
        for item, packet in replies:
            self._finished(lane, item, packet)

    def _finished(self, lane: WorkerLane, item: _Call, packet: Packet) -> None:
        failed, value = rebuilt(packet)
        if self._why_killed and isinstance(value, TaskCancelled):
            value = WorkerDiedError(lane.pid, None, why=self._why_killed)
        try:
            if failed:
                item.future.set_exception(value)
            else:
                item.future.set_result(value)
        except InvalidStateError:
            logger.warning("a future was ended by somebody else", exc_info=True)

    def part(self, lane: WorkerLane, item: _Call, packet: Packet) -> None:
        """A plain call comes at once."""

    def progressed(self, lane: WorkerLane, item: _Call, progress: bytes | None) -> None:
        """A plain call has nobody to tell."""

    def time_is_up(self, lane: WorkerLane, item: _Call) -> None:
        """A plain call has no limit."""

    def unguarded(self, lane: WorkerLane, item: _Call) -> None:
        """A plain call has no limit."""

    def failed(self, lane: WorkerLane, item: _Call, error: BaseException) -> None:
        item.fail(error)

    def lost(self, lane: WorkerLane, item: _Call, ending: Ending) -> None:
        item.fail(ending.error(item.number))

    def worker_started(self, lane: WorkerLane, pid: int) -> None:
        if self._why_killed:  # while it was being started
            lane.kill(self._why_killed)

    def worker_ended(self, lane: WorkerLane, ending: Ending, item: _Call | None) -> None:
        if ending.why or ending.exitcode:
            logger.debug("%s: %r", lane.name, ending)

    def cannot_start(self, lane: WorkerLane, error: BaseException, tries: int) -> bool:
        if isinstance(error, InitializerError):
            self.broken = "the initializer of a worker failed; the pool takes no more calls"
            self._fail_all(BrokenProcessPool(self.broken), error.__cause__)
            self.wake()
            return False
        if tries < TRIES or any(other.hopeful for other in self._lanes if other is not lane):
            return True
        logger.error("%s cannot start a worker: %s", lane.name, str(error))
        self._fail_all(error, error.__cause__)
        return False

    def _fail_all(self, error: BaseException, cause: BaseException | None) -> None:
        with self._lock:
            waiting = list(self._queue)
            self._queue.clear()
        for call in waiting:
            own = type(error)(*error.__reduce__()[1])  # whoever raises it adds a traceback
            own.__cause__ = cause
            call.fail(own)

    def is_over(self) -> bool:
        return self.broken is not None or (self.closed and not self._queue)

    def lane_ended(self, lane: WorkerLane) -> None:
        self.withdraw(lane)
        with self._lock:
            self._lanes = tuple(other for other in self._lanes if other is not lane)
            last = not self._lanes
            stranded = last and bool(self._queue)
        if last and (self.closed or self.broken is not None):
            self._guardian.close()
        elif stranded:  # it came while the lane was ending
            self._add_lane(self._queue[0])


def _number(call: _Call) -> int:
    return call.number


def rebuilt(packet: Packet) -> "tuple[bool, Any]":
    """What a reply holds: whether it is an error, and that or the result. User code rebuilds it."""
    if packet.problem:
        return True, OSError(f"the call was made, but {packet.problem}")
    try:
        value = _codec.loads(packet.data)
        return (True, _codec.unpack_error(value)) if packet.kind == packets.ERROR else (False, value)
    except BaseException as error:
        return True, _codec.not_rebuilt(error)
