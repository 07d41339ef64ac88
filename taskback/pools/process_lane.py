"""A backend's lane with a worker process: its runs become the calls of a `WorkerLane`, what comes of them its outcomes.

Threads: send() and interrupt() on any; start(), force(), close() and the rest of the end on the keeper's; what
`Source` lists on the thread of the worker lane, which rebuilds results and calls callbacks, so a stuck one holds up
this lane alone.
Locks: none; the worker lane has its own, and the ledger's decides who has the lane.
Holds: a run that was sent is ended once, or goes back to the queue; it goes back only if it cannot have started, and
not for ever.

Nothing is sent when a handler begins, unless somebody listens: that stands on the status page, and is looked up when
somebody asks (`started`).

Runs without a time limit are sent ahead. The backend is told of none of that: such a run is the lane's, and queued,
until it is found to have begun, has ended, or comes back. It comes back when it is told to stop, too, and ends then.

Race: cancel and send. cancel() sets `run.stop` and then interrupts; who sends has the call out and then looks at
`run.stop`. Whichever comes second sees the other. In the worker a call that is to stop, and has not begun, never does.

Race: two worker lanes. One that gives up after workers that could not be started is on its way out when a task has a
new one started. So what an old one says of the lane as a whole is not heard.
"""

import asyncio
import itertools
import logging
import math
import pickle
import signal
from typing import Final

from taskback import _clock, _codec
from taskback._call import Outcome
from taskback._keeper import join
from taskback._packed import as_bytes
from taskback._run import End, Run
from taskback._state import TaskState
from taskback._worker_died import WorkerDiedError
from taskback.pools import trees
from taskback.pools.child import calls, chunks, journal, packets, status_page
from taskback.pools.child.packets import Packet
from taskback.pools.guardian_client import GuardianClient
from taskback.pools.lane import LaneOwner
from taskback.pools.source import Message
from taskback.pools.worker_lane import WorkerLane
from taskback.pools.worker_process import Ending

logger = logging.getLogger(__name__)

FAST_TRIES: Final = 3  # workers that may die before they are ready, until tasks are told
RETRY: Final = 0.05  # seconds until it is tried again where not even a lane can be had
FALSE_STARTS: Final = 3  # workers that a task may cost before its handler is called
_HELLO: Final = pickle.dumps((None, (), {}))


class ProcessLane:
    """See the top of the file.

    Args:
        owner (LaneOwner): The backend.
        guardian (GuardianClient): Starts the workers.
        name (str): The thread's, and for log lines.
    """

    def __init__(self, owner: LaneOwner, guardian: GuardianClient, name: str) -> None:
        self.gone = asyncio.Event()  # closed, and its worker has ended
        self.dormant = True
        self.name = name
        self._owner = owner
        self._guardian = guardian
        self._lane: WorkerLane | None = None
        self._numbers = itertools.count(1)
        self.lowest = math.inf  # nothing that it has and can give back is of a lower priority
        self._closing = False

    # --- for the backend ---

    @property
    def run(self) -> Run | None:
        """What its worker is at; the first one of those that it has."""
        lane = self._lane
        return None if lane is None else lane.first

    def took(self, run: Run) -> None:
        """It is about to be sent."""
        self.lowest = min(self.lowest, run.priority)

    def left(self, run: Run) -> None:
        """Its worker knows what it has."""

    @property
    def pid(self) -> int | None:
        """The worker, once it is ready."""
        lane = self._lane
        return None if lane is None else lane.pid

    @property
    def hopeful(self) -> bool:
        """Whether its worker is ready, or on its way and has not failed yet."""
        lane = self._lane
        return lane is not None and not self.dormant and lane.hopeful

    @property
    def starting(self) -> int | None:
        """The worker from its fork on, ready or not."""
        lane = self._lane
        return None if lane is None else lane.any_pid

    def start(self) -> None:
        """Have a worker started, unless there is one."""
        if self._closing or not self.dormant:
            return
        self.dormant = False
        tried_ns = _clock.monotonic_ns()
        try:
            lane = self._lane = WorkerLane(self, self._guardian, self.name)
            lane.start()
        except (OSError, RuntimeError) as error:  # no descriptors, no threads, or the program ends
            self._lane, self.dormant = None, True
            logger.debug("%s cannot start: %s", self.name, str(error))
            told = WorkerDiedError(None, None, why=f"a worker could not be started: {error}")
            if self._owner.cannot_start(self, told, tried_ns):
                asyncio.get_running_loop().call_later(RETRY, self._owner.look_again)

    def send(self, run: Run) -> bool:
        """Hand a run to the worker; False if it went back to the queue, since the worker is just ending."""
        lane = self._lane
        if lane is None or not lane.send(run):
            self._owner.come_back(run)
            return False
        if run.stop is not None:
            self.interrupt(run, firmly=False)
        return True

    @property
    def ahead(self) -> int:
        """How many runs its worker has."""
        lane = self._lane
        return 0 if lane is None else lane.ahead

    def give_back(self, priority: float = math.inf) -> None:
        """Take back what was sent ahead, if something of a lower priority than this one is among it. Any thread."""
        lane = self._lane
        if lane is not None and self.lowest < priority:
            self.lowest = math.inf  # first: what is taken from now on was the first in the queue
            lane.give_back()

    def interrupt(self, run: Run, firmly: bool) -> None:
        """Tell the worker to stop the run's handler."""
        lane = self._lane
        if lane is not None and run.lane is self:
            lane.interrupt(run.number, firmly)

    def force(self, run: Run) -> None:
        """Kill the worker and everything below it."""
        lane = self._lane
        if lane is not None and run.lane is self:
            run.killed = lane.kill("it was killed, for its task did not stop", run.number) or run.killed

    def started(self, run: Run) -> tuple[int, int] | None:
        """The worker's pid, and since when it has been in the run's handler; None if it is not."""
        lane, number = self._lane, run.number
        seen = None if lane is None else lane.snapshot()
        if lane is None or seen is None or run.lane is not self:
            return None
        if seen.call != number or seen.phase not in (status_page.IN_USER_CODE, status_page.REPLYING):
            return None
        pid = lane.pid
        return None if pid is None else (pid, seen.since_ns)

    def stack(self, run: Run) -> str:
        """The stacks of the worker's threads; waits for some milliseconds."""
        lane = self._lane
        stack = "" if lane is None or self.started(run) is None else lane.stack()
        return "" if self.started(run) is None else stack  # it may have been another's by then

    # --- the end ---

    def close(self) -> None:
        """Let the worker end once it is idle; `gone` tells when it has."""
        self._closing = True
        lane = self._lane
        if lane is None or self.dormant:
            self.gone.set()
        else:
            lane.wake()

    def kill(self) -> None:
        """End the worker now."""
        lane = self._lane
        if lane is not None:
            lane.kill("it was killed, for the backend was shut down")

    def join(self, deadline: float) -> bool:
        """Wait for the lane's thread; False if something holds it at the deadline."""
        lane = self._lane
        if lane is not None and not join(lane.thread, deadline):
            return False
        self._lane = None  # they refer to each other, so the descriptor it sleeps on would await a collection
        return True

    def dying(self) -> list[int]:
        """The worker, if the kernel has not finished with it."""
        pid = self.pid
        return [] if pid is None else trees.alive([pid])

    # --- for the worker lane: a source of calls ---

    def hello(self) -> "tuple[bytes, tuple[int, bytes] | None]":
        try:
            key, handler = self._owner.handler_bytes()
        except Exception as error:  # it cannot travel any more, which each task is told
            logger.debug("%s: workers start without the handler: %s", self.name, str(error))
            return _HELLO, None
        return _HELLO, None if handler is None else (key[1], handler)

    def take(self, lane: WorkerLane) -> Run | None:
        self.lowest = math.inf  # it has nothing
        return self._owner.next_run(self)

    def take_ahead(self, most: int) -> list[Run]:
        return self._owner.more_runs(self, most)

    def sent(self, lane: WorkerLane, runs: list[Run]) -> None:
        for run in runs:
            if run.stop is not None:
                self.interrupt(run, firmly=False)
            self._owner.handed_over(run)

    def withdraw(self, lane: WorkerLane) -> None:
        if lane is self._lane:
            self._owner.withdraw(self)

    def put_back(self, items: list[Run]) -> None:
        for run in items:
            self._owner.come_back(run)
        self._owner.look_again()

    def message(self, run: Run) -> Message:
        key, handler = self._owner.handler_bytes()
        assert run.data is not None
        number = run.number = next(self._numbers)
        function = None if handler is None else (key[1], handler)
        if run.chunk is not None:
            return Message(packets.CHUNK, number, calls.brief(key[1], run.id, run.data), function)
        brief = run.attempt == 1 and run.timeout is None and not run.context and run.variables is None
        if brief and run.id.isascii() and not self._owner.listened_to:
            return Message(packets.BRIEF, number, calls.brief(key[1], run.id, run.data), function)
        request = calls.Request(
            number,
            run.id,
            run.type,
            run.attempt,
            run.timeout,
            run.context,
            run.data,
            key,
            None,
            self._owner.listened_to,
            run.variables,
        )
        return Message(packets.TASK, number, request.in_parts(), function, run.timeout, self._owner.grace)

    def begun(self, lane: WorkerLane, run: Run) -> None:
        found = self.started(run)
        if found is not None:
            self._owner.has_started(run, *found)

    def time_is_up(self, lane: WorkerLane, run: Run) -> None:
        self._owner.time_was_up(run)

    def unguarded(self, lane: WorkerLane, run: Run) -> None:
        if run.timeout is not None:
            found = self.started(run)
            ran = 0.0 if found is None else (_clock.monotonic_ns() - found[1]) / 1e9
            self._owner.keep_limit(run, max(0.0, run.timeout - ran))

    def finished(self, lane: WorkerLane, replies: list[tuple[Run, Packet]]) -> None:
        """Results that need no user code to be rebuilt end together, the others one by one, for they may take long."""
        ends: list[End] = []
        pid = lane.any_pid
        for run, packet in replies:
            if packet.kind == packets.VALUE and _codec.is_data(packet.data):
                started_ns, value = calls.plain_value(packet.data)
                ends.append(End(run, Outcome(TaskState.SUCCEEDED, value), pid, started_ns))
                continue
            if ends:
                self._owner.ended_all(ends)
                ends = []
            end = self._end if run.chunk is None else self._end_of_chunk
            self._owner.ended_all([end(lane, run, packet)])
        if ends:
            self._owner.ended_all(ends)

    def _end(self, lane: WorkerLane, run: Run, packet: Packet) -> End:
        """What came of a run, rebuilt by user code."""
        try:
            if packet.problem:
                raise OSError(f"the handler has returned, but {packet.problem}")
            with self._owner.user_code("rebuilding the result", run.id):
                reply = calls.read_reply(packet.kind, packet.data, lane.any_pid or 0)
                outcome = reply.outcome()
            if reply.progress is not None:
                self._owner.progressed(run, calls.unpack_progress(reply.progress))
            return End(run, outcome, reply.pid, reply.started_ns)
        except BaseException as error:
            # As text, and without its frames, which would keep this lane for as long as somebody has the error.
            text = _codec.traceback_text(error)
            logger.error("%s failed on the reply of task %s\n%s", self.name, run.id, text)
            return End(run, Outcome(TaskState.FAILED, error=_codec.frameless(error)))

    def _end_of_chunk(self, lane: WorkerLane, run: Run, packet: Packet) -> End:
        """What came of a run that is a chunk; its results are rebuilt by whoever asked for them."""
        chunk = run.chunk
        assert chunk is not None
        if packet.problem or packet.kind != packets.CHUNKED:
            why = packet.problem or "it could not be read there"
            error = OSError(f"a chunk of {chunk.count} tasks came to nothing: {why}")
            return End(run, Outcome(TaskState.FAILED, error=error))
        facts, packed = chunks.unpack(as_bytes(packet.data))
        if facts.whole:
            chunk.add_all(_codec.loads(packed))
        else:
            chunk.add(*journal.unpack(packed))
        chunk.seconds = (facts.ended_ns - facts.started_ns) / 1e9
        state = TaskState.CANCELLED if facts.stopped else TaskState.SUCCEEDED
        return End(run, Outcome(state, chunk), lane.any_pid, facts.started_ns)

    def part(self, lane: WorkerLane, run: Run, packet: Packet) -> None:
        if run.chunk is not None and not packet.problem:
            run.chunk.add(*journal.unpack(as_bytes(packet.data)))

    def progressed(self, lane: WorkerLane, run: Run, progress: bytes | None) -> None:
        if progress is not None:
            self._owner.progressed(run, calls.unpack_progress(pickle.loads(progress)))

    def failed(self, lane: WorkerLane, run: Run, error: BaseException) -> None:
        self._owner.ended(run, Outcome(TaskState.FAILED, error=_codec.frameless(error)))

    def lost(self, lane: WorkerLane, run: Run, ending: Ending) -> None:
        error = ending.error(run.number)
        if run.stop is not None and ending.exitcode == -signal.SIGKILL:  # by its guardian, if the keeper was late
            run.killed = True
        if error.ran is not None and run.chunk is not None:
            if ending.journal:
                try:
                    run.chunk.add(*journal.unpack(ending.journal))
                except ValueError as nonsense:  # a handler has written there
                    logger.error("%s cannot read what a chunk had finished: %s", self.name, str(nonsense))
            if run.stop is None and run.chunk.known < run.chunk.count:  # else it died after the last one
                run.chunk.lost = error
            outcome = Outcome(TaskState.SUCCEEDED, run.chunk)  # of the others; see there
            self._owner.ended(run, outcome, pid=ending.pid, started_ns=_clock.monotonic_ns() - int(error.ran * 1e9))
            return
        if error.ran is not None:
            started_ns = _clock.monotonic_ns() - int(error.ran * 1e9)
            outcome = Outcome(TaskState.LOST, error=error, stack=ending.stack or None, own=True)
            self._owner.ended(run, outcome, pid=ending.pid, started_ns=started_ns)
            return
        run.false_starts += 1
        if run.false_starts >= FALSE_STARTS:  # what kills them may be its own unpickling
            why = f"worker number {run.false_starts} to die with the task in hand, before its handler was called"
            self._owner.ended(run, Outcome(TaskState.LOST, error=error.because(why)))
        else:
            self._owner.come_back(run)
            self._owner.look_again()

    def worker_started(self, lane: WorkerLane, pid: int) -> None:
        self._owner.worker_started(pid)
        self._owner.lane_ready(self, self._trouble(lane))

    def _trouble(self, lane: WorkerLane) -> BaseException | None:
        """What its worker could not load the handler for."""
        if not lane.trouble:
            return None
        with self._owner.user_code("rebuilding the error of the handler's import", ""):
            return _codec.unpack_error(pickle.loads(lane.trouble))

    def worker_ended(self, lane: WorkerLane, ending: Ending, run: Run | None) -> None:
        assert ending.pid is not None
        self._owner.worker_died(ending.pid, ending.exitcode, None if ending.ran is None else run, ending.why)

    def cannot_start(self, lane: WorkerLane, error: BaseException, tries: int) -> bool:
        if lane is not self._lane:
            return False
        if tries < FAST_TRIES:
            return True
        self.dormant = True  # first: a task that comes now has another lane started, or is among those that are told
        if not self._owner.cannot_start(self, error, lane.tried_ns):
            return False
        if lane is not self._lane:
            return False
        self.dormant = False
        return True

    def is_over(self) -> bool:
        return self._closing

    def lane_ended(self, lane: WorkerLane) -> None:
        if lane is not self._lane:
            return
        self.dormant = True  # Race: close() looks at these two the other way round, so one of us sets `gone`
        if self._closing:
            self._owner.keeper.call(self.gone.set)
