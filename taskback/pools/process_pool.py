"""`ProcessPool`: a `concurrent.futures.Executor` whose workers can die, hang or be killed without harm to it.

Threads: any. Locks: none of its own; see `call_queue`.
Holds: lanes refer to the queue, never to the pool, so that a pool that nobody refers to ends.
"""

import logging
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, thread
from typing import Any, Final, TypeVar

from taskback import _clock, _forks, _role
from taskback._public import lives_in
from taskback.pools import _os
from taskback.pools.call_queue import CallQueue
from taskback.pools.guardian_client import GuardianClient, checked_limits
from taskback.pools.mapping import map_in_order
from taskback.pools.worker_logs import LogReader

logger = logging.getLogger(__name__)

T = TypeVar("T")

TERMINATE_GRACE: Final = 2.0  # seconds that calls get to take the exception
LAST_WORD: Final = 2.0  # seconds that lanes get to bury what was killed, at the end of the program


@lives_in("taskback.pools")
class ProcessPool(Executor):
    """Runs functions in worker processes.

    It takes the place of `concurrent.futures.ProcessPoolExecutor`, and differs in this: a worker that dies costs the
    one call that it was at, whose future raises `WorkerDiedError` (a `BrokenProcessPool`) and says how it died; the
    pool goes on. The main script is never imported again, so it needs no `if __name__ == "__main__":`; what it defines
    travels by value. A function that travels by value is sent once a worker: what it finds in its globals is as it was
    then. Workers and all that they start are gone when the program is, however it ends. A daemonic process may have
    one. In a fork of the program it starts afresh at its next use; futures of before raise `ForeignHandleError` there
    unless they had ended.

    Workers are forked, when the first call needs them, from a small process of the pool's own that has imported
    `preload`. They start with the parent's directory, `sys.path`, environment, flags and warning filters, with standard
    input at its end, and with one thread for each numerical library where the environment does not say otherwise.
    What a `multiprocessing.Manager` gives can be an argument; a Queue, Lock or Value of `multiprocessing` itself, which
    only a child of one's own can inherit, cannot, not even of the initializer.

    Args:
        max_workers (int | None): Processes; None takes the CPUs that this process may use (affinity and cgroup quota).
        initializer (Callable[..., object] | None): Called in each worker before its first call. If it fails, the pool
            is broken, and says so from then on.
        initargs (tuple): With these arguments.
        max_tasks_per_child (int | None): After so many calls a worker is replaced; None never does. Its successor is
            started when it has its last one, so up to twice `max_workers` processes are there at a time.
        max_worker_seconds (float | None): A worker that is older than that is replaced when its call is over; None
            never does.
        max_worker_rss_bytes (int | None): So is one that has more than so many bytes of memory resident by then, with
            what it shares and without what it has started.
        kill_worker_rss_bytes (int | None): A worker that has more than that while it has something to do is killed;
            its call fails with a `WorkerDiedError` that says so. It is looked at 50 times a second.
        preload (Iterable[str]): Modules that workers find imported.
        exit_grace_seconds (float): How long the end of a program that has not shut the pool down waits for its calls;
            after it, those that have not begun are cancelled, and workers are killed.
        forward_logs (bool): Whether what workers log or warn of is handled by this process's loggers and filters, with
            the attribute `worker_pid` on each record (and `task_id` and `task_type`, which are None); if not, by the
            worker's own.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument makes no sense.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: "tuple[Any, ...]" = (),
        *,
        max_tasks_per_child: int | None = None,
        max_worker_seconds: float | None = None,
        max_worker_rss_bytes: int | None = None,
        kill_worker_rss_bytes: int | None = None,
        preload: Iterable[str] = (),
        exit_grace_seconds: float = 2.0,
        forward_logs: bool = True,
    ) -> None:
        if max_workers is None:
            max_workers = _os.available_cpus()
        if not isinstance(max_workers, int):
            raise TypeError(f"max_workers must be a whole number, not {type(max_workers).__name__}")
        if max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        if max_tasks_per_child is not None:
            if not isinstance(max_tasks_per_child, int):
                raise TypeError("max_tasks_per_child must be an integer")
            if max_tasks_per_child <= 0:
                raise ValueError("max_tasks_per_child must be >= 1")
        self._max_workers = max_workers
        self._initializer = initializer
        self._initargs = initargs
        self._worker_limits = checked_limits(
            max_tasks_per_child, max_worker_seconds, max_worker_rss_bytes, kill_worker_rss_bytes
        )
        self._preload = tuple(preload)
        self._exit_grace = _clock.checked_seconds("exit_grace_seconds", exit_grace_seconds)
        self._forward_logs = bool(forward_logs)
        self._inherited: list[object] = []  # a fork's: the parent's, kept so that nothing of it is finalized here
        self._start_afresh()

    def _start_afresh(self) -> None:
        name = f"{type(self).__name__}-{id(self):x}"
        logs = LogReader(f"{name}-logs") if self._forward_logs else None
        self._guardian = GuardianClient(self._preload, self._by_streams, self._worker_limits, logs)
        self._queue = CallQueue(
            name,
            self._max_workers,
            self._guardian,
            self._initializer,
            self._initargs,
        )
        self._finalizer = weakref.finalize(self, self._queue.abandon)
        self._finalizer.atexit = False
        self._used = False

    _by_streams = not _os.HAS_PACKETS

    @property
    def _broken(self) -> str | bool:
        # What drivers of the stock pool look at.
        return self._queue.broken or False

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> "Future[T]":
        """Have `fn(*args, **kwargs)` called in a worker.

        Returns:
            Future: What comes of it: the result, what the function raised (with the worker's traceback as its cause),
                or a `WorkerDiedError`. What cannot be pickled fails it. As with the stock pools, `cancel()` is False
                once it is running.

        Raises:
            BrokenProcessPool: The initializer has failed.
            RuntimeError: The pool was shut down, or the program is ending.
        """
        if not self._used:
            _role.refuse_to_start("a ProcessPool")
            _tell_at_the_end(self)
            self._used = True
        return self._queue.submit(fn, args, kwargs)

    def map(  # buffersize is Python 3.14's
        self,
        fn: Callable[..., T],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Call `fn` with the items of the iterables, and give the results in order.

        Args:
            fn (Callable): As for `submit`.
            *iterables (Iterable): As for the built-in `map`.
            timeout (float | None): Seconds from now until the last result.
            chunksize (int): So many calls travel as one.
            buffersize (int | None): So many results at most are made ahead; None takes all arguments at once.

        Returns:
            Iterator: The results; it raises what a call raised when that one's turn comes.

        Raises:
            TypeError: `buffersize` is no whole number.
            ValueError: `chunksize` or `buffersize` is less than 1.
        """
        return map_in_order(self, fn, iterables, timeout, buffersize, chunksize)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, and end the workers when those that there are have been made.

        Args:
            wait (bool): Whether to wait for that; nothing of the pool is left afterwards.
            cancel_futures (bool): Whether those that have not begun are cancelled.
        """
        self._queue.close(cancel_futures)
        lanes = self._queue.lanes()
        if not lanes:
            self._guardian.close()
        if wait:
            for lane in lanes:
                if lane.thread is not threading.current_thread():  # a callback shuts it down
                    lane.thread.join()
            logs = self._guardian.logs
            if logs is not None and threading.current_thread() not in (logs.thread, *(lane.thread for lane in lanes)):
                logs.join()

    def terminate_workers(self) -> None:
        """Shut down at once: calls that run are told to stop by an exception, and killed after 2 seconds.

        Their futures raise `WorkerDiedError`; what has not begun is cancelled.
        """
        self._queue.close(cancel=True)
        self._queue.terminate("terminate_workers() was called", TERMINATE_GRACE)

    def kill_workers(self) -> None:
        """Shut down at once: workers are killed. Futures of calls that run raise `WorkerDiedError`."""
        self._queue.close(cancel=True)
        self._queue.kill("kill_workers() was called")

    def __repr__(self) -> str:
        state = "broken" if self._queue.broken else "closed" if self._queue.closed else "open"
        return f"<{type(self).__name__} {state} max_workers={self._max_workers}>"

    # --- forks and the end of the program ---

    def _forked(self) -> None:
        """This is a fork: start afresh, and leave the parent's alone."""
        self._finalizer.detach()
        self._inherited.append((self._queue, self._guardian))
        closed, broken = self._queue.closed, self._queue.broken
        self._start_afresh()
        self._queue.closed, self._queue.broken = closed, broken


_pools: "weakref.WeakSet[ProcessPool]" = weakref.WeakSet()
_watching = False
_watch_lock = threading.Lock()


def _tell_at_the_end(pool: ProcessPool) -> None:
    """Have a pool told when the program ends, and when it has been forked."""
    global _watching
    with _watch_lock:
        _pools.add(pool)
        if _watching:
            return
        _watching = True
    # After the stock pools' own hook, which the import of their module registers: the last one runs first. Not atexit,
    # which runs after all threads have been joined, so never while one of the program's waits for a future.
    assert thread is not None
    try:
        threading._register_atexit(_end_all)  # type: ignore[attr-defined]
    except RuntimeError as error:
        raise RuntimeError("cannot schedule new futures after interpreter shutdown") from error
    _forks.watch(_forked)


def _end_all() -> None:
    """The program ends: wait for what is under way, each pool for its grace, then kill. Starts nothing."""
    now = _clock.monotonic()
    pools = [(pool, now + pool._exit_grace) for pool in list(_pools)]
    for pool, _ in pools:
        pool._queue.abandon()
    for pool, deadline in pools:
        _join(pool, deadline)
    for pool, _ in pools:
        if pool._queue.lanes():
            logger.warning("%r: the program ends, and its workers are killed", pool)
            pool.kill_workers()
    for pool, _ in pools:
        _join(pool, _clock.monotonic() + LAST_WORD)
        if not pool._queue.lanes():
            pool._guardian.close()


def _join(pool: ProcessPool, deadline: float) -> None:
    for lane in pool._queue.lanes():
        lane.thread.join(max(0.0, deadline - _clock.monotonic()))
    if pool._guardian.logs is not None and not pool._queue.lanes():
        pool._guardian.logs.join(deadline)


def _forked() -> None:
    global _watch_lock
    _watch_lock = threading.Lock()
    for pool in list(_pools):
        pool._forked()
