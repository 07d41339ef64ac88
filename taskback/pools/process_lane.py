"""A lane with a process of its own: a stock process pool of one worker.

A worker that dies or is killed takes nobody with it.

Threads: send() and interrupt() on any; replies come on the stock pool's manager thread, or on one of their own if they
are quicker than send(); all else on the keeper's.
Locks: a worker's lock is held while a run is handed to it and while its death is settled, so that the settling knows
whether the run reached the stock pool. Below it comes the ledger's lock alone; no user code runs under it.
Holds: a run that was sent is ended once, or goes back to the queue; it goes back only if it cannot have started, and
not for ever.

Race: a reply and the worker's death. The worker sends its reply before it can die of anything later, but the death is
told by another road and may come first. So a death is settled only when the stock pool has said what came of the
call it held: with a reply, the reply counts; without one, what the worker has said of its start decides. The control
socket is read to its end first, and a call announces its start before its handler is called.
"""

import asyncio
import concurrent.futures.process
import logging
import multiprocessing.process
import os
import pickle
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, Final

import psutil

from taskback import _forks
from taskback._call import Outcome
from taskback._errors import WorkerDiedError
from taskback._keeper import join
from taskback._run import Run
from taskback._state import TaskState
from taskback.pools import _os, trees
from taskback.pools.child import calls, worker
from taskback.pools.inbox import Inbox
from taskback.pools.lane import LaneOwner

logger = logging.getLogger(__name__)

LAST_WORD: Final = 1.0  # seconds that the stock pool gets to say what came of a dead worker's call
FAST_TRIES: Final = 3  # workers that may die before they are ready, until tasks are told
FALSE_STARTS: Final = 3  # workers that a task may cost before its handler is called


class _Context(SpawnContext):
    """Starts the stock pool's workers and remembers them. Spawned: never forked from a parent with threads."""

    def __init__(self) -> None:
        super().__init__()
        self.processes: list[SpawnProcess] = []

    def Process(self, *args: Any, **options: Any) -> SpawnProcess:  # type: ignore[override]
        process = SpawnProcess(*args, **options)
        self.processes.append(process)
        return process


_main_lock = threading.Lock()  # a leaf


@contextmanager
def _nameless_main_hidden() -> Iterator[None]:
    """Around the start of a worker: a main script that came by standard input has no file to be imported from.

    Spawned processes look for a file of the name `<stdin>` all the same (CPython 3.11 to 3.13), and die of it. What
    such a script defines travels by value.
    """
    main = sys.modules["__main__"]
    with _main_lock:
        name = vars(main).get("__file__")
        if name != "<stdin>":
            name = None
        else:
            del main.__file__
        try:
            yield
        finally:
            if name is not None:
                main.__file__ = name


class _Worker:
    """One worker process, from its start to its end."""

    def __init__(self, hello: tuple[Any, ...]) -> None:
        context = self._context = _Context()
        _workers.add(self)  # a fork may come before it is complete
        self.control, theirs = context.Pipe()
        try:
            self.inbox = Inbox(self.control)
            self.pool = ProcessPoolExecutor(1, mp_context=context, initializer=worker.begin, initargs=(theirs,))
            answers: Any = self.pool._result_queue
            # Ctrl-C reaches the whole group, and the worker has not left it yet.
            with _os.interrupts_held(), _nameless_main_hidden():
                self.hello = self.pool.submit(worker.hello, *hello)
            # The worker has its own. With one open here, half an answer of a dead worker has no end, and the stock
            # pool's thread waits for the rest for ever. Private; pinned by a test.
            answers._writer.close()
        except BaseException:
            self.control.close()
            for process in context.processes:  # the program ends, and the stock pool could not start its thread
                if process.pid is not None:
                    process.kill()
            raise
        finally:
            theirs.close()
        self.process = context.processes[0]
        pid = self.process.pid
        assert pid is not None
        self.pid: int = pid
        # Private, and the only way to wait for the stock pool's own thread within a limit; pinned by a test.
        self.manager: Any = self.pool._executor_manager_thread
        self.watch = _os.open_death_watch(pid)
        self.lock = threading.Lock()
        self.ready = False
        self.killed = False
        self.why = ""  # it was killed, where that was not asked for
        self.dead = False
        self.settled = False
        self.known_key: tuple[str, int] | None = None
        self.number = 0  # of the call that it was sent last
        self.started = 0  # of the call that it has announced last
        self.future: Future[bytes] | None = None

    def disown(self) -> None:
        """In a fork of the parent: hold nothing of it, and leave it alone when the fork ends."""
        control, pool = getattr(self, "control", None), getattr(self, "pool", None)
        if control is not None:
            control.close()
        for process in self._context.processes:
            # multiprocessing would wait for it, and fail, for a fork is not the father. Private; pinned by a test.
            multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]
        if pool is not None and pool._executor_manager_thread is not None:
            _forget_thread(pool._executor_manager_thread)

    def exitcode(self) -> int | None:
        """The exit status, negative for a signal."""
        for _ in range(50):
            code = self.process.exitcode
            if code is not None:
                return code
            # The stock pool's thread may have reaped it and not yet written down how it ended.
            time.sleep(0.001)
        return None


_workers: "weakref.WeakSet[_Worker]" = weakref.WeakSet()


def disown_workers() -> None:
    """In a fork of the parent: hold nothing of any worker, so that each notices when the parent is gone."""
    global _main_lock
    _main_lock = threading.Lock()  # the parent's keeper may hold its own, for ever here
    for worker_ in list(_workers):
        worker_.disown()


def _forget_thread(thread: threading.Thread) -> None:
    """In a fork: the stock pools' exit hook would write to a thread of the parent, under a lock that may be held.

    Private names; pinned by a test.
    """
    concurrent.futures.process._threads_wakeups.pop(thread, None)


class ProcessLane:
    """See the top of the file.

    Args:
        owner (LaneOwner): The backend.
        name (str): For log lines.
    """

    def __init__(self, owner: LaneOwner, name: str) -> None:
        self.run: Run | None = None
        self.gone = asyncio.Event()  # closed, and its worker has ended
        self.dormant = True
        self.last = False  # no task is left that would need another worker
        self._owner = owner
        self.name = name
        self._worker: _Worker | None = None
        # Stock pools' threads that may not have ended; weakly, for with one that has, its pipes go.
        self._old: weakref.WeakSet[threading.Thread] = weakref.WeakSet()
        self._aside: list[threading.Thread] = []  # that rebuild a result; written by send(), one at a time
        self._left_behind: list[psutil.Process] = []  # by workers that ended by themselves; killed
        self._failures = 0
        self._closing = False

    @property
    def pid(self) -> int | None:
        """The worker, once it is ready."""
        worker_ = self._worker
        return worker_.pid if worker_ is not None and worker_.ready and not worker_.dead else None

    @property
    def hopeful(self) -> bool:
        """Whether its worker is ready, or on its way and not yet given up."""
        return self.pid is not None or (not self.dormant and self._failures < FAST_TRIES)

    # --- the worker's life, on the keeper's thread ---

    def start(self) -> None:
        """Start a worker, unless there is one."""
        if self._closing or self.last or self._worker is not None:
            return
        self.dormant = False
        try:
            key, handler = self._owner.handler_bytes()
        except Exception:  # what cannot travel is told to the first task that needs it
            key, handler = ("", 0), None
        try:
            with _forks.held_back():
                new = self._worker = _Worker((key, handler))
            new.manager.name = self.name  # what a shutdown's report calls it
        except BaseException as error:
            # As text, here and for the tasks that are told: whoever kept the traceback would keep the pipes of what was
            # half made, and there may be few.
            logger.error("%s cannot start a worker\n%s", self.name, traceback.format_exc())
            why = f"it could not be started: {type(error).__name__}: {error}"
            self._failed_to_start(WorkerDiedError(None, None, why=why))
            return
        loop = asyncio.get_running_loop()
        loop.add_reader(new.control.fileno(), self._hear, new)
        loop.add_reader(new.process.sentinel if new.watch is None else new.watch, self._died, new)
        new.hello.add_done_callback(lambda future: self._keep(self._greeted, new, key))

    def _keep(self, function: Any, *args: Any) -> None:
        self._owner.keeper.call(function, *args)

    def _greeted(self, mine: _Worker, key: tuple[str, int]) -> None:
        if mine.hello.exception() is not None:
            self._kill(mine)  # the stock pool gave it up: make sure that it ends; the watch then tells
            return
        mine.ready = True
        mine.known_key = key if mine.hello.result() else None
        self._failures = 0
        self._owner.worker_started(mine.pid)
        if not self._closing:
            self._owner.idle(self, None)

    def _hear(self, mine: _Worker) -> None:
        """Read what the worker says, all that is there."""
        if mine.why:
            return
        try:
            for message in mine.inbox.messages():
                kind, number, *rest = pickle.loads(message)
                self._heard(mine, kind, number, rest)
        except (EOFError, OSError):  # it has closed its end; its death is told by the watch
            asyncio.get_running_loop().remove_reader(mine.control.fileno())
        except Exception as error:  # as text: whoever kept its traceback would keep the pipes open
            logger.error("worker pid=%d of %s talks nonsense and is killed: %s", mine.pid, self.name, repr(error))
            asyncio.get_running_loop().remove_reader(mine.control.fileno())
            mine.why = "it was killed, for something wrote what is no message on its control connection"
            self._kill(mine)

    def _heard(self, mine: _Worker, kind: str, number: int, rest: list[Any]) -> None:
        run = self.run
        if kind == "started":
            mine.started = number
        if run is None or number != mine.number:
            return
        if kind == "started":
            if self._owner.has_started(run, mine.pid, rest[0]):
                self._tell(run, False)  # Race: it was cancelled before its number was known here
        elif kind == "progress":
            self._owner.progressed(run, calls.unpack_progress((rest[0], rest[1], rest[2], rest[3])))

    def _died(self, mine: _Worker) -> None:
        """The worker has ended."""
        loop = asyncio.get_running_loop()
        loop.remove_reader(mine.process.sentinel if mine.watch is None else mine.watch)
        mine.dead = True
        self._owner.withdraw(self, None)
        # What it leaves behind may also hold the pipe that the stock pool watches.
        self._left_behind = [*filter(trees.is_alive, self._left_behind), *trees.kill_rest(mine.pid)]
        pending = mine.future or mine.hello
        pending.add_done_callback(lambda future: self._keep(self._settle, mine))
        loop.call_later(LAST_WORD, self._settle, mine)

    def _settle(self, mine: _Worker) -> None:
        """Say what came of the run that the dead worker had, and replace it."""
        with mine.lock:
            if mine.settled:
                return
            mine.settled = True
        loop = asyncio.get_running_loop()
        self._hear(mine)
        loop.remove_reader(mine.control.fileno())
        exitcode = mine.exitcode()
        run = self.run
        answered = mine.future is not None and mine.future.done() and mine.future.exception() is None
        if answered:
            run = None  # the stock pool's thread is about to end it
        self._owner.worker_died(mine.pid, exitcode, run if mine.started == mine.number else None)
        self._retire(mine)
        if run is not None:
            self._lose(run, mine, exitcode)
        if self._closing:
            self.gone.set()
        elif mine.ready:
            self.start()
        else:
            self._failed_to_start(WorkerDiedError(mine.pid, exitcode, why="it died before it was ready"))

    def _lose(self, run: Run, mine: _Worker, exitcode: int | None) -> None:
        self._owner.withdraw(self, run)
        if mine.started == mine.number:
            error = WorkerDiedError(mine.pid, exitcode, run.seconds(), why=mine.why)
            self._owner.ended(run, Outcome(TaskState.LOST, error=error), pid=mine.pid)
            return
        run.false_starts += 1
        if run.false_starts >= FALSE_STARTS:  # what kills them may be its own unpickling
            why = f"worker number {run.false_starts} to die with the task in hand, before its handler was called"
            self._owner.ended(run, Outcome(TaskState.LOST, error=WorkerDiedError(mine.pid, exitcode, why=why)))
        else:
            self._owner.come_back(run)
            self._owner.look_again()

    def _retire(self, mine: _Worker) -> None:
        self._worker = None
        mine.control.close()
        if mine.watch is not None:
            os.close(mine.watch)
        mine.pool.shutdown(wait=False)
        if mine.manager is not None:
            self._old.add(mine.manager)
            mine.manager = None  # through it the stock pool's pipes would live as long as whoever looks at `mine`

    def _failed_to_start(self, error: BaseException) -> None:
        self._failures += 1
        if self._failures < FAST_TRIES or self._owner.cannot_start(self, error):
            asyncio.get_running_loop().call_later(min(0.05 * 2 ** min(self._failures, 7), 5.0), self.start)
        else:
            self.dormant = True  # until a task needs it

    # --- runs ---

    def send(self, run: Run) -> bool:
        """Hand a run to the worker; False if it went back to the queue, since the worker has just died."""
        mine = self._worker
        if mine is None:
            return self._give_back(run)
        with mine.lock:
            mine.number += 1
            if mine.settled:
                return self._give_back(run)
            request = self._request(run, mine)
            try:
                future = mine.future = mine.pool.submit(worker.perform, request)
            except (BrokenExecutor, RuntimeError):  # broken, or being closed: it has taken nothing
                return self._give_back(run)
        future.add_done_callback(partial(self._replied, mine, run))
        return True

    def _give_back(self, run: Run) -> bool:
        self._owner.withdraw(self, run)
        self._owner.come_back(run)
        return False

    def _request(self, run: Run, mine: _Worker) -> bytes:
        key, handler = self._owner.handler_bytes()
        assert run.data is not None
        return calls.Request(
            mine.number,
            run.id,
            run.type,
            run.attempt,
            run.timeout,
            run.context,
            run.data,
            key,
            None if key == mine.known_key else handler,
        ).pack()

    def _replied(self, mine: _Worker, run: Run, future: "Future[bytes]") -> None:
        try:
            data = future.result()
        except BaseException:  # the stock pool is broken, for our call itself raises nothing
            self._keep(self._kill, mine)
            return
        if threading.current_thread() is mine.manager:
            self._rebuild(run, data)
            return
        # Race: the reply was there before send() asked for it. So this is send()'s thread, the keeper's perhaps or an
        # event loop's, which the rebuilding of a result must not hold up.
        thread = threading.Thread(target=self._rebuild, args=(run, data), name=self.name, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the program ends and starts no more threads
            self._rebuild(run, data)
            return
        self._aside = [*(other for other in self._aside if other.is_alive()), thread]

    def _rebuild(self, run: Run, data: bytes) -> None:
        """End the run with what its worker sent."""
        try:
            with self._owner.user_code(f"rebuilding the result of task {run.id}"):
                reply = calls.unpack_reply(data)
                outcome = reply.outcome()
            if reply.progress is not None:
                self._owner.progressed(run, calls.unpack_progress(reply.progress))
            self._owner.ended(run, outcome, pid=reply.pid, started_ns=reply.started_ns)
        except BaseException as error:
            logger.error("%s failed on the reply of task %s", self.name, run.id, exc_info=True)
            self._owner.ended(run, Outcome(TaskState.FAILED, error=error))
        self._owner.idle(self, run)

    def interrupt(self, run: Run, firmly: bool) -> None:
        """Tell the worker to stop the run's handler."""
        self._keep(self._tell, run, firmly)

    def _tell(self, run: Run, firmly: bool) -> None:
        mine = self._worker
        if mine is None or mine.dead or self.run is not run:
            return
        try:
            mine.control.send_bytes(pickle.dumps(("cancel", mine.number, firmly)))
        except OSError:  # it is dying
            return

    def force(self, run: Run) -> None:
        """Kill the worker and everything below it."""
        if self._worker is not None and self.run is run:
            run.killed = True
            self._kill(self._worker)

    def _kill(self, mine: _Worker) -> None:
        if mine.dead or mine.killed:
            return
        mine.killed = True
        logger.warning("killing worker pid=%d and what it has started", mine.pid)
        trees.kill_tree(mine.pid, lambda: mine.process.exitcode is None)

    # --- the end ---

    def close(self) -> None:
        """Let the worker end once it is idle; `gone` tells when it has."""
        self._closing = True
        if self._worker is None:
            self.gone.set()
        else:
            self._worker.pool.shutdown(wait=False)

    def kill(self) -> None:
        """End the worker now."""
        if self._worker is not None:
            self._kill(self._worker)

    def join(self, deadline: float) -> bool:
        """Wait for the stock pools' threads; False if something holds one at the deadline."""
        held = [thread for thread in (*self._aside, *self._old) if not join(thread, deadline)]
        return not held

    def dying(self, until: float) -> list[int]:
        """The worker and what workers left behind, as far as the kernel has not finished with it at the deadline."""
        worker_ = [] if self._worker is None else trees.alive([self._worker.pid])
        return worker_ + trees.wait_gone(self._left_behind, until)

    def forked(self) -> None:
        """In a fork of the parent: leave alone what is left of workers that have ended."""
        for thread in list(self._old):
            _forget_thread(thread)
