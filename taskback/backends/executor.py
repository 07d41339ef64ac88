"""`ExecutorTaskBackend`: runs tasks on any `concurrent.futures.Executor`."""

import dataclasses
import inspect
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextvars import ContextVar
from typing import Any

from taskback import _clock
from taskback._backend import tell_at_the_end
from taskback._call import Handler, Outcome
from taskback._errors import BackendClosedError
from taskback._handle import TaskHandle
from taskback._keeper import join
from taskback._options import checked_count
from taskback._promises import Promises
from taskback._propagate import propagated
from taskback._public import lives_in
from taskback._run import Run
from taskback._state import BackendState, TaskState
from taskback.backends._closing import Closing, until_user_code_ends
from taskback.backends._managed import ManagedBackend
from taskback.backends._warming import Warming
from taskback.pools import trees
from taskback.pools.foreign_lane import ForeignLane, processes_of
from taskback.pools.lane import Lane
from taskback.pools.thread_lane import ThreadLane

_IN_THREADS = Promises(
    returns_before_run=True,
    live_objects=True,
    delay=True,
    timeout=True,
    cancels_running=True,
    exact_start=True,
    progress=True,
    bounded_shutdown=True,
    no_orphans=True,
    no_orphans_in_c_code=True,
    no_main_guard=True,
    daemonic_parent=True,
    stacks=True,
    idle_costs_nothing=True,
)

_IN_PROCESSES = Promises(
    returns_before_run=True,
    frees_loop=True,
    uses_cores=True,
    delay=True,
    bounded_shutdown=True,
    exits_without_shutdown=True,
    kills_children=True,
    idle_costs_nothing=True,
)


@lives_in("taskback")
class ExecutorTaskBackend(ManagedBackend):
    """Runs tasks on a pool of somebody else's: the stock pools, loky's, any `concurrent.futures.Executor`.

    Calls are handed over by the pool's `submit` and their ends enter the loop by `call_soon_threadsafe`, which is what
    `loop.run_in_executor` does. The pool becomes the backend's: `shutdown` drains with its timeout, cancels, kills
    the pool's processes where it has some, and shuts the pool down.

    A foreign pool weakens promises; `promises` says which. In a pool of threads those of `ThreadPoolTaskBackend`
    hold, but a thread that was given up is not replaced. In a pool of processes, one that runs cannot be told to
    stop: `cancel()` is False once a task was handed over and has begun, a time limit of its type is not kept (and as
    an option of a submission refused), `current_task().cancelled` stays False, and progress arrives with the result
    alone. A worker that dies takes with it whatever the pool loses: those tasks end LOST.

    Args:
        handler (Callable[[dict], Any] | None): Sync or async; None leaves it to `set_handler`.
        pool (Executor | Callable[[], Executor]): The pool, or what makes one: then a broken pool is replaced, and the
            backend can be initialized again after its shutdown.
        in_process (bool | None): Whether its workers share this process, so that tasks need not be pickled; None
            takes that to be so for `ThreadPoolExecutor` and its subclasses alone, `taskback.pools.ThreadPool` for one.
        max_workers (int | None): How many tasks the pool is given at a time; others wait here, where they can be
            cancelled, and where priorities hold. None takes what the pool says (`_max_workers`); where it says
            nothing it is given all at once.
        timeout (float | None): Seconds that a task may run, where neither its type nor its submission says so.
        shutdown_timeout_seconds (float): How long `shutdown` drains if it is not told.
        cancel_grace_seconds (float): How long a task that is told to stop may take.
        exit_grace_seconds (float): How long all that may take at the end of a program that did not shut down.
        keep_ended (int): How many ended tasks `handle` still finds; their results stay in memory.
        max_queued (int | None): Tasks that may wait for a worker; None sets no limit.
        max_queued_bytes (int | None): Bytes that those may be pickled to; None sets no limit.
        when_full (str): What becomes of a submission beyond that: "wait" has it wait for room, "reject" raises
            `QueueFullError`, "shed" drops the oldest task of the lowest priority for it.
        propagate (Iterable[ContextVar | str]): In a pool of processes, context variables that a handler finds as they
            were where its task was submitted; see `ProcessPoolTaskBackend`. In threads it finds all of them anyway.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument makes no sense.
        HandlerNotSerializableError: The handler must travel to processes and cannot.
    """

    def __init__(
        self,
        handler: Handler | None = None,
        *,
        pool: Executor | Callable[[], Executor],
        in_process: bool | None = None,
        max_workers: int | None = None,
        timeout: float | None = None,
        shutdown_timeout_seconds: float = 20.0,
        cancel_grace_seconds: float = 2.0,
        exit_grace_seconds: float = 2.0,
        keep_ended: int = 0,
        max_queued: int | None = None,
        max_queued_bytes: int | None = None,
        when_full: str = "wait",
        propagate: Iterable[ContextVar[Any] | str] = (),
    ) -> None:
        self._make_pool = None if isinstance(pool, Executor) else _checked_maker(pool)
        self._pool: Executor | None = pool if isinstance(pool, Executor) else self._made()
        self._in_process = isinstance(self._pool, ThreadPoolExecutor) if in_process is None else bool(in_process)
        self.crosses = not self._in_process
        chosen = propagated(propagate)
        self._propagated = chosen if self.crosses else None
        if max_workers is None:
            says = getattr(self._pool, "_max_workers", None)
            max_workers = says if isinstance(says, int) else None
        self._max_workers = None if max_workers is None else checked_count("max_workers", max_workers, least=1)
        kept = _IN_THREADS if self._in_process else _IN_PROCESSES
        self.promises = dataclasses.replace(kept, priority=self._max_workers is not None)
        super().__init__(
            handler,
            timeout=timeout,
            shutdown_timeout_seconds=shutdown_timeout_seconds,
            cancel_grace_seconds=cancel_grace_seconds,
            exit_grace_seconds=exit_grace_seconds,
            keep_ended=keep_ended,
            max_queued=max_queued,
            max_queued_bytes=max_queued_bytes,
            when_full=when_full,
        )

    def _made(self) -> Executor:
        assert self._make_pool is not None
        pool = self._make_pool()
        if not isinstance(pool, Executor):
            raise TypeError(f"pool() must make a concurrent.futures.Executor, not a {type(pool).__name__}")
        return pool

    def _start_afresh(self) -> None:
        super()._start_afresh()
        self._under_way = 0  # tasks that the pool was given; under the ledger's lock
        self._retired: list[threading.Thread] = []  # each shuts down a pool that broke
        self._ends_before: type | None = None  # the kind of pool that our exit hook is known to come before

    def _open(self) -> None:
        if self._pool is None:
            if self._make_pool is None:
                gone = "in a fork, and its pool in the parent" if self._inherited else "closed with its pool"
                raise BackendClosedError(self._name, f"{gone} (give it what makes a pool instead)")
            self._pool = self._made()
        self._under_way = 0
        self._retired = []
        if not self._in_process:
            self.keeper.start()

    def _has_lane(self) -> bool:
        return self._max_workers is None or self._under_way < self._max_workers

    def _take_lane(self, run: Run) -> Lane:
        self._under_way += 1
        if self._in_process:
            assert self._pool is not None
            return ThreadLane(self, self._pool)
        return ForeignLane(self, self._find_pool)

    def _hand_over(self, run: Run) -> None:
        super()._hand_over(run)
        pool = self._pool
        if self.crosses and pool is not None and type(pool) is not self._ends_before:
            # loky registers an exit hook with a pool's first call, which waits for all calls.
            self._ends_before = type(pool)
            tell_at_the_end(self, type(pool))

    def _find_pool(self) -> Executor:
        """The pool, made anew if it broke."""
        with self._open_lock:
            if self._pool is not None:
                return self._pool
            made = self._made()
            with self._ledger.lock:
                if self._state in (BackendState.RUNNING, BackendState.DRAINING):
                    self._pool = made
                    return made
        _shut_down(made, False)
        raise BackendClosedError(self._name, self._state.value)

    def _lane_freed(self, lane: Lane) -> bool:
        # Of a thread that was given up, only when its call has ended: until then it is lost to the pool.
        self._under_way -= 1
        return False

    def pool_broke(self, pool: Executor) -> None:
        """The pool takes no more calls: replace it where we know how."""
        with self._ledger.lock:
            if self._make_pool is None or self._pool is not pool:
                return
            self._pool = None
        self._retire(pool)

    def _retire(self, pool: Executor) -> threading.Thread | None:
        """Shut a pool down on a thread of its own, for it may take its time; None if no thread can be started."""
        thread = threading.Thread(target=_shut_down, args=(pool, True), name=f"{self._name}-pool", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the program ends
            _shut_down(pool, False)
            return None
        self._retired = [*(other for other in self._retired if other.is_alive()), thread]
        return thread

    def release(self, handle: TaskHandle) -> bool:
        """A handle is cancelled; True if its task will not complete for it."""
        if super().release(handle):
            return True
        run = handle._run
        lane = run.lane
        if run.state.final or not isinstance(lane, ForeignLane) or not lane.take_back():
            return False
        self.ended(run, Outcome(TaskState.CANCELLED))
        return True

    def _can_stop(self, run: Run) -> bool:
        return self._in_process

    def _set_limit(self, run: Run) -> None:
        if self._in_process:
            super()._set_limit(run)

    def _begin_shutdown(self, timeout: float | None, failed: Warming | None = None) -> Closing | None:
        closing = super()._begin_shutdown(timeout, failed)
        if closing is None:
            with self._open_lock:
                unused = self._pool if self._state is BackendState.STOPPED else None
                if unused is not None:  # the backend never began
                    self._pool = None
            if unused is not None:
                _shut_down(unused, False)
        return closing

    async def _close_lanes(self, soft: float, hard: float) -> tuple[list[int], list[str]]:
        with self._ledger.lock:
            pool, self._pool = self._pool, None
        pids = [] if pool is None else processes_of(pool)
        thread = None if pool is None else self._retire(pool)
        if not join(thread, min(soft, hard - 0.3)):
            for pid in pids:
                trees.kill_tree(pid, lambda: True)
        limit = until_user_code_ends(soft, hard) if self._in_process else max(hard, _clock.monotonic() + 0.05)
        held = [each.name for each in self._retired if not join(each, limit)]
        return trees.alive(pids), [] if self._in_process else held

    def _close_at_exit(self) -> None:
        if self._pool is not None:
            _shut_down(self._pool, False)

    def forked(self) -> None:
        """This is a fork: the parent's pool is of no use here, unless it is one of ours, which starts afresh itself."""
        self._inherited.append(self._pool)
        if not hasattr(self._pool, "_forked"):
            self._pool = None
        super().forked()


def _shut_down(pool: Executor, wait: bool) -> None:
    """Shut a pool down with what it still has queued cancelled, where it knows how: loky's `shutdown` does not."""
    takes = inspect.signature(pool.shutdown).parameters
    if "cancel_futures" in takes or any(each.kind is each.VAR_KEYWORD for each in takes.values()):
        pool.shutdown(wait=wait, cancel_futures=True)
    else:
        pool.shutdown(wait=wait)


def _checked_maker(pool: Callable[[], Executor]) -> Callable[[], Executor]:
    if not callable(pool):
        raise TypeError(f"pool must be a concurrent.futures.Executor or make one, not a {type(pool).__name__}")
    return pool
