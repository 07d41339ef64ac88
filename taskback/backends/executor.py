"""`ExecutorTaskBackend`: runs tasks on any `concurrent.futures.Executor`."""

import dataclasses
import inspect
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor

from taskback import _clock
from taskback._call import Handler, Outcome
from taskback._errors import BackendClosedError
from taskback._handle import TaskHandle
from taskback._keeper import join
from taskback._promises import Promises
from taskback._run import Run
from taskback._state import TaskState
from taskback.backends._managed import ManagedBackend, checked_count
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
    idle_costs_nothing=True,
)

_IN_PROCESSES = Promises(
    returns_before_run=True,
    frees_loop=True,
    uses_cores=True,
    delay=True,
    bounded_shutdown=True,
    kills_children=True,
    idle_costs_nothing=True,
)


class ExecutorTaskBackend(ManagedBackend):
    """Runs tasks on a pool of somebody else's: the stock pools, loky's, any `concurrent.futures.Executor`.

    Calls are handed over by the pool's `submit` and their ends enter the loop by `call_soon_threadsafe`, which is what
    `loop.run_in_executor` does. The pool becomes the backend's: `shutdown` drains with its timeout, cancels, kills
    the pool's processes where it has some, and shuts the pool down.

    A foreign pool weakens promises; `promises` says which. In a pool of threads those of `ThreadPoolTaskBackend`
    hold, but a thread that was given up is not replaced. In a pool of processes, one that runs cannot be told to
    stop: `cancel()` is False once a task was handed over and has begun, a time limit of its type is not kept (and as
    an option of a submission refused), `current_task().cancelled` stays False, and progress arrives with the result
    alone. A worker that dies takes with it whatever the pool loses: those tasks end LOST. A program whose pool of
    processes is busy at its end may hang there, after `shutdown` too: the pool's own exit hook waits for it.

    Args:
        handler (Callable[[dict], Any] | None): Sync or async; None leaves it to `set_handler`.
        pool (Executor | Callable[[], Executor]): The pool, or what makes one: then a broken pool is replaced, and the
            backend can be initialized again after its shutdown.
        in_process (bool | None): Whether its workers share this process, so that tasks need not be pickled; None
            takes that to be so for `ThreadPoolExecutor` and its subclasses alone.
        max_workers (int | None): How many tasks the pool is given at a time; others wait here, where they can be
            cancelled, and where priorities hold. None takes what the pool says (`_max_workers`); where it says
            nothing it is given all at once.
        timeout (float | None): Seconds that a task may run, where neither its type nor its submission says so.
        shutdown_timeout_seconds (float): How long `shutdown` drains if it is not told.
        cancel_grace_seconds (float): How long a task that is told to stop may take.
        exit_grace_seconds (float): How long all that may take at the end of a program that did not shut down.
        keep_ended (int): How many ended tasks `handle` still finds; their results stay in memory.

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
    ) -> None:
        self._make_pool = None if isinstance(pool, Executor) else _checked_maker(pool)
        self._pool: Executor | None = pool if isinstance(pool, Executor) else self._made()
        self._in_process = isinstance(self._pool, ThreadPoolExecutor) if in_process is None else bool(in_process)
        self.crosses = not self._in_process
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

    def _open(self) -> None:
        if self._pool is None:
            if self._make_pool is None:
                raise BackendClosedError(self._name, "closed with its pool (give it what makes a pool instead)")
            self._pool = self._made()
        self._under_way = 0

    def _has_lane(self) -> bool:
        return self._max_workers is None or self._under_way < self._max_workers

    def _take_lane(self, run: Run) -> Lane:
        if self._pool is None:  # it broke, and is replaced
            self._pool = self._made()
        self._under_way += 1
        return ThreadLane(self, self._pool) if self._in_process else ForeignLane(self, self._pool)

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
        pool.shutdown(wait=False)

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

    async def _close_lanes(self, soft: float, hard: float) -> tuple[list[int], list[str]]:
        pool = self._pool
        if pool is None:
            return [], []
        self._pool = None
        pids = processes_of(pool)
        thread = threading.Thread(
            target=_shut_down,
            args=(pool, True),
            name=f"{self._name}-pool",
            daemon=True,
        )
        try:
            thread.start()
        except RuntimeError:  # the program ends and starts no more threads
            _shut_down(pool, False)
            return [], []
        if not join(thread, min(soft, hard - 0.3)):
            for pid in pids:
                trees.kill_tree(pid, lambda: True)
        held = [] if join(thread, max(hard, _clock.monotonic() + 0.05)) or self._in_process else [thread.name]
        return trees.alive(pids), held

    def _close_at_exit(self) -> None:
        if self._pool is not None:
            _shut_down(self._pool, False)

    def forked(self) -> None:
        """This is a fork: the parent's pool is of no use here."""
        self._inherited.append(self._pool)
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
