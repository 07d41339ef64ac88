"""A lane: one thread that owns one worker process after another, and has it do what its source gives.

Linear code: start a worker, take a call, wait for the reply, hand it on, take the next; when the worker ends, settle
what it had, and start anew. A lane that is stuck (in a callback, in unpickling) blocks only itself.

Calls that the source gives for that are sent ahead: a window of a millisecond of work, by a running estimate of what
one takes here, so that a quick worker need not wait for its lane. When the call that runs takes longer than that, or
another lane has nothing to do, what the worker has not read is taken back, and the window is 1 again.

Where a worker is replaced after so many calls, its successor is started as soon as it has its last one, and is ready
when that is answered: so there is one worker more a lane at most, at its start, waiting, or at its end. A worker
that is too old or too large says so itself when its call is over, and takes no other.

Threads: send(), give_back(), interrupt(), kill(), stack(), wake() on any; all else on the lane's own.
Holds: no exception ends a lane: it fails the calls it holds, has its worker killed, and starts anew. Every item that
was sent comes to the source once: finished, failed, lost, or put back.

Race: a submitter gives a call to a lane that is idle, while the lane retires its worker. `WorkerProcess` decides, under
its lock: the call is out before, and the lane serves it first; or send() gives False, and the call goes back.
"""

import logging
import threading
import traceback
import weakref
from collections.abc import Iterable
from threading import get_ident
from typing import Any, Final, Protocol, TypeVar

from taskback import _clock, _codec, _forks
from taskback._worker_died import WorkerDiedError
from taskback.pools import _os, guardian_client, worker_process
from taskback.pools.child import packets
from taskback.pools.child.packets import Packet
from taskback.pools.child.status_page import Snapshot
from taskback.pools.guardian_client import GuardianClient
from taskback.pools.source import Source
from taskback.pools.worker_process import Ending, InitializerError, WorkerProcess, WorkerStartError

logger = logging.getLogger(__name__)

MOST_AHEAD: Final = 64  # calls that a worker may have
AHEAD: Final = 0.001  # seconds of work that it may have
PATIENCE: Final = 0.002  # seconds without a reply, until what it has not read is taken back


class WorkerLane:
    """See the top of the file.

    Args:
        source (Source): Where calls come from.
        guardian (GuardianClient): Starts the workers.
        name (str): The thread's, and for log lines.
    """

    def __init__(self, source: Source, guardian: GuardianClient, name: str) -> None:
        self.name = name
        self._source = source
        self._guardian = guardian
        self._max_calls = guardian.limits.max_calls
        self._leaving = False  # the worker has said that it takes no more
        self._bell = _os.Bell()
        self._worker: WorkerProcess | None = None
        self._successor: WorkerProcess | None = None  # of one that has its last call
        self._answered = 0  # calls, by the worker that there is
        self._window = 1  # calls that may be out
        self._most_ahead = 1 if guardian.streams else MOST_AHEAD
        self._estimate = 0.0  # seconds that a call takes
        self._heard = 0.0  # when the last reply came
        self._failures = 0  # starts that failed, in a row
        self.tried_ns = 0  # when the last one began, on the monotonic clock
        self.thread = threading.Thread(target=self._live, name=name, daemon=True)
        _lanes.add(self)
        _forks.watch(_disown_all)

    def start(self) -> None:
        """Begin; a RuntimeError where no thread can be started any more."""
        self.thread.start()

    @property
    def pid(self) -> int | None:
        """The worker, if there is one that takes calls."""
        worker = self._worker
        return worker.pid if worker is not None and worker.ready and not worker.over else None

    @property
    def trouble(self) -> bytes:
        """What its worker could not unpickle before its first call: the packed error; empty if there is none."""
        worker = self._worker
        return b"" if worker is None else worker.trouble

    @property
    def ahead(self) -> int:
        """How many calls its worker has."""
        worker = self._worker
        return 0 if worker is None else len(worker.out)

    @property
    def first(self) -> Any | None:
        """Of what its worker has, the one that was sent first."""
        worker = self._worker
        return None if worker is None else worker.first()

    @property
    def any_pid(self) -> int | None:
        """The worker, ready or not, if it has been started."""
        worker = self._worker
        return (worker.pid or None) if worker is not None else None

    @property
    def hopeful(self) -> bool:
        """Whether it has a worker, or one on its way that has not failed yet."""
        return self.pid is not None or self._failures == 0

    # --- on any thread ---

    def send(self, item: Any) -> bool:
        """Have the worker do it; False if it takes nothing just now."""
        worker = self._worker
        if worker is None:
            return False
        kind, call, data, function, seconds, grace = self._source.message(item)
        if seconds is not None:
            worker.limit(call, seconds, grace)
        sent = worker.send(kind, call, data, item, function)
        if sent and (self._max_calls is not None or (seconds is not None and self.thread.ident != get_ident())):
            self._bell.ring()  # it may be its last one; or the lane sleeps, and has to look whether its limit is kept
        return sent

    def interrupt(self, call: int, firmly: bool) -> None:
        """Tell a call to stop, without waiting; one that is not read goes back, and nothing happens if it is over."""
        worker = self._worker
        if worker is not None and call in worker.out:
            self._put_back(worker.interrupt(call, firmly))

    def interrupt_all(self) -> None:
        """Tell whatever it has to stop."""
        worker = self._worker
        for call in list(worker.out) if worker is not None else ():
            self.interrupt(call, firmly=True)

    def kill(self, why: str, call: int | None = None) -> bool:
        """End the worker now, if it has that call (None: whatever it has); whether it has."""
        worker = self._worker
        if worker is None or not (call is None or call in worker.out):
            return False
        worker.kill(why)
        return True

    def snapshot(self) -> Snapshot | None:
        """What the worker is doing; None if there is none."""
        worker = self._worker
        return None if worker is None else worker.snapshot()

    def stack(self) -> str:
        """The stacks of the worker's threads; empty if there is none, or it does not tell."""
        worker = self._worker
        return "" if worker is None else worker.stack()

    def wake(self) -> None:
        """Have it look whether its source is over. Takes no lock."""
        self._bell.ring()

    # --- on its own ---

    def _live(self) -> None:
        try:
            while not self._source.is_over() and self._one_worker():
                pass
        finally:
            self._end_successor()
            self._source.lane_ended(self)

    def _one_worker(self) -> bool:
        """A worker's life, from its start to its end; False if there is to be no other."""
        worker: WorkerProcess | None = None
        failure: BaseException | None = None
        not_started: BaseException | None = None
        self.tried_ns = _clock.monotonic_ns()
        pid = _forks.pid
        try:
            worker, self._successor = self._successor or self._started(), None
            self._worker = worker
            if worker.await_ready(self._source.is_over):
                self._serve(worker)
        except BaseException as error:
            if _forks.pid != pid:
                _forks.leave()
            if worker is None or not worker.ready:
                not_started = error
            else:
                failure = error
                # As text: whoever kept the traceback would keep the worker, and what is open with it.
                logger.error("%s failed, and starts anew\n%s", self.name, traceback.format_exc())
        if _forks.pid != pid:
            _forks.leave()
        ending = None
        if worker is not None:
            try:
                ending = self._bury(worker, failure)
            except BaseException as error:
                if _forks.pid != pid:
                    _forks.leave()
                logger.error("%s failed while it buried its worker\n%s", self.name, traceback.format_exc())
                self._bury_somehow(worker, error)
            if _forks.pid != pid:
                _forks.leave()
        return not_started is None or self._try_again(not_started, ending)

    def _started(self) -> WorkerProcess:
        hello, function = self._source.hello()
        return WorkerProcess(self._guardian, hello, self._bell, function)

    def _start_successor(self, worker: WorkerProcess) -> None:
        """If the worker has its last call, have the next one started meanwhile."""
        if self._successor is not None or self._source.is_over():
            return
        if self._leaving or self._has_its_last(worker):
            try:
                self._successor = self._started()
            except OSError as error:  # it is tried again, and told, when the worker has ended
                logger.debug("%s: no successor could be started yet: %s", self.name, str(error))

    def _has_its_last(self, worker: WorkerProcess) -> bool:
        out = len(worker.out)
        return self._max_calls is not None and out > 0 and self._answered + out >= self._max_calls

    def _end_successor(self) -> None:
        successor, self._successor = self._successor, None
        if successor is not None:
            successor.kill("it was killed, for it was not needed any more")
            successor.await_end()
            successor.close()

    def _serve(self, worker: WorkerProcess) -> None:
        """Have the worker do what there is, until it ends or is to."""
        self._answered = self._failures = 0
        self._leaving = False
        self._source.worker_started(self, worker.pid)
        self._window = 1
        self._estimate = 0.0
        self._fill(worker)
        guarded = True
        while not worker.over and not self._leaves(worker):
            if self._max_calls is not None or self._leaving:
                self._start_successor(worker)
            worker.wait(self._patience(worker))
            if worker.look_at is not None:
                worker.look_after_guardian()
            if guarded and not worker.guarded:
                guarded = False
                for item in list(worker.out.values()):
                    self._source.unguarded(self, item)
            if worker.waits_for_room:
                for item, error in worker.push():
                    self._source.failed(self, item, error)
            self._tell_struck(worker)
            replies = self._hear_all(worker)
            if worker.over:
                return
            if not replies and len(worker.out) > 1 and _clock.monotonic() - self._heard > PATIENCE:
                self.give_back()
            self._fill(worker, more=replies > 0)

    def _patience(self, worker: WorkerProcess) -> float | None:
        if len(worker.out) > 1:
            return PATIENCE
        look_at = worker.look_at
        return None if look_at is None else look_at - _clock.monotonic()

    def _fill(self, worker: WorkerProcess, more: bool = False) -> None:
        """See to it that the worker has something to do, or is known to have nothing; `more`: send ahead."""
        if not worker.guarded or self._used_up():
            return
        while not worker.out:
            item = self._source.take(self)
            if item is None:
                return
            if not self._hand_over(item):
                break
        if more:
            self._fill_ahead(worker)

    def _fill_ahead(self, worker: WorkerProcess) -> None:
        """Send as many as the window has room for, once half of it is free."""
        if not worker.guarded or self._used_up() or len(worker.out) > self._window // 2:
            return
        # Race: somebody takes back what was sent ahead, while we have more in hand. That goes back as well.
        recalls = worker.recalls
        items = self._source.take_ahead(self._room(worker))
        calls = []
        for item in items:
            try:
                message = self._source.message(item)
            except Exception as error:
                self._source.failed(self, item, error)
            else:
                calls.append((item, message[:4]))
        if not calls:
            return
        taken = [item for item, _ in calls]
        if worker.send_all(calls, recalls):
            self._source.sent(self, taken)
        else:
            self._source.put_back(taken)

    def _hand_over(self, item: Any) -> bool:
        """Send it; False if it went back, for the worker takes nothing any more."""
        try:
            sent = self.send(item)
        except Exception as error:
            self._source.failed(self, item, error)
            return True
        if sent:
            self._source.sent(self, [item])
        else:
            self._source.put_back([item])
        return sent

    def _room(self, worker: WorkerProcess) -> int:
        """How many calls may be sent now."""
        room = self._window - len(worker.out)
        return room if self._max_calls is None else min(room, self._max_calls - self._answered - len(worker.out))

    def _used_up(self) -> bool:
        return self._leaving or (self._max_calls is not None and self._answered >= self._max_calls)

    def give_back(self) -> None:
        """Take back what was sent ahead and is not read. On any thread."""
        worker = self._worker
        if worker is not None:
            self._put_back(worker.take_back())

    def _put_back(self, items: list[Any]) -> None:
        """They were taken back from the worker."""
        self._window = 1
        if items:
            self._source.put_back(items)
            self._bell.ring()  # it may be all that there was to do

    def _leaves(self, worker: WorkerProcess) -> bool:
        """Whether the worker is to end now, having nothing to do."""
        if worker.guarded and not self._used_up() and not self._source.is_over():
            return False
        self._source.withdraw(self)
        return worker.retire()

    def _hear_all(self, worker: WorkerProcess) -> int:
        """Hear what the worker has said, and how many replies; their calls share the time that they took."""
        heard = worker.hear(MOST_AHEAD)
        return self._take_in(worker, heard) if heard else 0

    def _tell_struck(self, worker: WorkerProcess) -> None:
        """Tell whose time is up. The guardian says so before it tells the call, so this comes before its reply."""
        while worker.struck:
            item = worker.out.get(worker.struck.pop())
            if item is not None:
                self._source.time_is_up(self, item)

    def _progressed(self, worker: WorkerProcess, packet: Packet) -> None:
        item = worker.out.get(packet.id)
        if item is not None:
            self._source.progressed(self, item, worker.progress())

    def _begun(self, worker: WorkerProcess, packet: Packet) -> None:
        item = worker.out.get(packet.id)
        if item is not None:
            self._source.begun(self, item)

    def _take_in(self, worker: WorkerProcess, heard: list[Packet]) -> int:
        """Hand on what the worker has said, in order; how many replies there were."""
        replies = 0
        bunch: list[Packet] = []
        for packet in heard:
            if packet.kind in packets.REPLIES:
                bunch.append(packet)
                continue
            replies += self._settle(worker, bunch)
            bunch = []
            if packet.kind == packets.PROGRESS:
                self._progressed(worker, packet)
            elif packet.kind == packets.BEGUN:
                self._begun(worker, packet)
            elif packet.kind == packets.PART and packet.id in worker.out:
                self._source.part(self, worker.out[packet.id], packet)
            elif packet.kind == packets.LEAVING:
                self._leaving = True
                worker.leaves(bytes(packet.data).decode("utf-8", "replace"))
                self._put_back(worker.take_back())
            else:
                self._not_awaited(worker, packet)
        return replies + self._settle(worker, bunch)

    def _not_awaited(self, worker: WorkerProcess, packet: Packet) -> None:
        logger.warning("worker pid=%d sent what nobody waits for: kind=%d id=%d", worker.pid, *packet[:2])

    def _settle(self, worker: WorkerProcess, bunch: list[Packet]) -> int:
        """Hand replies on; how many of them are ours.

        Before several are told, the worker gets more to do: it need not wait for that, nor for those who are woken. It
        is known to have nothing only after that: telling may be user code, which holds this thread.
        """
        began = max(self._heard, worker.busy_since)
        replies: list[tuple[Any, Packet]] = []
        for item, packet in zip(worker.answered([packet.id for packet in bunch]), bunch, strict=True):
            if item is None:
                self._not_awaited(worker, packet)
            else:
                replies.append((item, packet))
        if replies:
            self._answered += len(replies)
            self._heard = _clock.monotonic()
            self._estimate = 0.5 * self._estimate + 0.5 * (self._heard - began) / len(replies)
            self._window = max(1, min(self._most_ahead, 2 * self._window, int(AHEAD / self._estimate)))
            if len(replies) > 1 and not worker.over:
                self._fill_ahead(worker)
            pid = _forks.pid
            try:
                self._source.finished(self, replies)
            except BaseException as error:
                if _forks.pid != pid:
                    _forks.leave()
                for item, _ in replies:
                    self._source.failed(self, item, error)
                raise
            if _forks.pid != pid:  # by user code: a callback, or the rebuilding of a result
                _forks.leave()
        return len(replies)

    def _bury(self, worker: WorkerProcess, failure: BaseException | None) -> Ending:
        """End the worker, and settle what it had."""
        self._source.withdraw(self)
        if failure is None and worker.ready and not worker.over and worker.retire():
            worker.say_goodbye()
        elif not worker.over:
            worker.kill("it was killed, for it was not needed any more" if failure is None else "its lane failed")
        worker.await_end()
        self._tell_struck(worker)
        while (packet := worker.receive()) is not None:
            if packet.kind in packets.REPLIES or packet.kind in (packets.PART, packets.LEAVING):
                self._take_in(worker, [packet])
        back = worker.take_back() + worker.not_begun()
        ending = worker.ending()
        self._worker = None
        worker.close()
        if worker.ready:
            self._source.worker_ended(self, ending, worker.out.get(ending.call))
        self._source.put_back(back)
        while worker.out:
            _, item = worker.out.popitem()
            if failure is None:
                self._source.lost(self, item, ending)
            else:
                self._source.failed(self, item, failure)
        return ending

    def _bury_somehow(self, worker: WorkerProcess, error: BaseException) -> None:
        """What is left to do where an error of ours has cut it short."""
        self._worker = None
        worker.kill("its lane failed")
        worker.close()
        for item in worker.out.values():
            self._source.failed(self, item, error)
        worker.out.clear()

    def _try_again(self, error: BaseException, ending: Ending | None) -> bool:
        """A worker could not be started: whether to try once more, after a while."""
        self._failures += 1
        if not isinstance(error, (InitializerError, WorkerStartError, OSError)):
            logger.error("%s cannot start a worker: %s", self.name, _codec.traceback_text(error))
        if not self._source.cannot_start(self, as_told(error, ending), self._failures):
            return False
        self._sleep(min(0.05 * 2 ** min(self._failures, 7), 5.0))
        return True

    def _sleep(self, seconds: float) -> None:
        deadline = _clock.monotonic() + seconds
        while not self._source.is_over() and _clock.monotonic() < deadline:
            _os.wait_readable(self._bell.fileno(), deadline - _clock.monotonic())
            self._bell.silence()


class HasAhead(Protocol):
    """A lane, as far as it matters how many calls its worker has."""

    @property
    def ahead(self) -> int:
        """How many calls its worker has."""
        ...


L = TypeVar("L", bound=HasAhead)


def fullest(lanes: Iterable[L], asking: object) -> L | None:
    """Of the other lanes the one that has most that the asking one could do; None if none has."""
    found = max(lanes, key=lambda lane: lane.ahead, default=None)
    return found if found is not None and found is not asking and found.ahead > 1 else None


def as_told(error: BaseException, ending: Ending | None) -> BaseException:
    """Why a worker could not be started, as the calls are told that wait for it."""
    if isinstance(error, InitializerError):
        return error
    pid, exitcode = (None, None) if ending is None else (ending.pid, ending.exitcode)
    told = WorkerDiedError(pid, exitcode, why=f"a worker could not be started: {error}")
    told.__cause__ = error if isinstance(error, OSError) else None
    return told


_lanes: "weakref.WeakSet[WorkerLane]" = weakref.WeakSet()


def _disown_all() -> None:
    """In a fork of the parent: hold nothing by which workers and guardians know that their parent lives."""
    guardian_client.disown_all()
    worker_process.disown_all()
    for lane in list(_lanes):
        lane._bell.close()
