"""`ThreadPool`: an executor of its own, a queue and N threads.

Threads: submit(), map() and shutdown() on any; calls and their futures' callbacks on the pool's.
Locks: _lock guards the refusal and the threads, and is held while one starts; it is reentrant, so that a signal handler
may submit. `_states` is the lock of the pool's futures (see there), a leaf. No user code runs under either.
Holds: what was accepted is in the queue before END, so it is performed. A thread is started for a call whenever every
thread has one, as long as there may be more: calls that wait for each other are not held up by a thread saved.

The end of the program: as the stock pool's, which means that calls which were accepted are made, however long they
take, and the program ends after them. `ThreadPoolTaskBackend` is for who wants it to end in time.
"""

import itertools
import logging
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures.thread import BrokenThreadPool
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, ClassVar, ParamSpec, TypeVar

from taskback import _forks
from taskback._public import lives_in
from taskback.pools import _os, program_end
from taskback.pools.future import PoolFuture
from taskback.pools.mapping import map_in_order
from taskback.pools.worker_thread import END, WorkerThread

logger = logging.getLogger(__name__)
_stock_logger = logging.getLogger("concurrent.futures")  # where who watches the stock pool listens

P = ParamSpec("P")
T = TypeVar("T")
Initialize = Callable[[], object]


@lives_in("taskback.pools")
class ThreadPool(ThreadPoolExecutor):  # by its public side alone: asyncio takes no other as a loop's own executor
    """Runs calls in threads: a `concurrent.futures.Executor`, to be used like the standard library's.

    Threads are started as they are needed and then kept. Calls are begun in order of their submission. A pool that
    nobody refers to any more ends after the calls that it was given, and so does a program that forgets it. An event
    loop takes one with `set_default_executor`.

    Args:
        max_workers (int | None): Threads; None takes the CPUs that this process may use plus 4, at most 32.
        thread_name_prefix (str): What the threads' names begin with; one of the pool's own if empty.
        initializer (Callable[..., object] | None): Called first of all in each thread. If it raises, the pool is
            broken: all its calls fail with `concurrent.futures.thread.BrokenThreadPool`.
        initargs (tuple): Its arguments.

    Raises:
        TypeError: `initializer` cannot be called.
        ValueError: `max_workers` is not positive.

    Source:
        `concurrent.futures.ThreadPoolExecutor` (Python 3.13 documentation).
    """

    _numbers: ClassVar = itertools.count()

    def __init__(
        self,
        max_workers: int | None = None,
        thread_name_prefix: str = "",
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        self._start_afresh()
        if max_workers is None:
            max_workers = min(32, _os.available_cpus() + 4)
        if max_workers <= 0:
            raise ValueError("max_workers must be greater than 0")
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        self._max_workers = max_workers
        self._name = thread_name_prefix or f"{type(self).__name__}-{next(self._numbers)}"
        self._initialize: Initialize | None = None if initializer is None else partial(initializer, *initargs)
        self._refusal: RuntimeError | None = None  # why no call is accepted
        program_end.tell(self)

    def _start_afresh(self) -> None:
        self._calls: SimpleQueue[PoolFuture | None] = SimpleQueue()
        self._lock = threading.RLock()
        self._states = threading.RLock()
        self._threads: set[WorkerThread[PoolFuture]] = set()
        self._accepted = 0

    def __del__(self) -> None:
        self._calls.put(END)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have `fn(*args, **kwargs)` called in a thread.

        Args:
            fn (Callable): What to call.
            *args (Any): Its arguments.
            **kwargs (Any): Its keyword arguments.

        Returns:
            concurrent.futures.Future: Stands for the call. `cancel()` is False once the call is being made.

        Raises:
            BrokenThreadPool: An initializer has failed.
            RuntimeError: The pool has been shut down, or the program ends, or no thread can be started.
        """
        future = PoolFuture(self._states, (fn, args, kwargs))
        with self._lock:
            if self._refusal is not None:
                raise type(self._refusal)(*self._refusal.args)
            if len(self._threads) < self._max_workers and self._all_are_busy():
                self._start_thread()
            self._accepted += 1
            self._calls.put(future)
        return future

    def _all_are_busy(self) -> bool:
        """Whether each thread has a call, or one waits for it. Under _lock."""
        return self._accepted - sum(thread.performed for thread in self._threads) >= len(self._threads)

    def _start_thread(self) -> None:
        prepare = None if self._initialize is None else partial(_prepare, weakref.ref(self), self._initialize)
        thread = WorkerThread(f"{self._name}_{len(self._threads)}", self._calls, _perform, prepare)
        try:
            thread.start()
        except RuntimeError:
            if not self._threads:
                raise
            logger.warning("no thread could be started; %d go on", len(self._threads), exc_info=True)
            return
        self._threads.add(thread)
        program_end.wait_for(thread)

    def map(
        self,
        fn: Callable[..., T],
        /,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[T]:
        """Have `fn` called with each tuple of arguments, by `submit`, and get the results in order.

        Args:
            fn (Callable): What to call.
            *iterables (Iterable): Its arguments, as for the built-in `map`.
            timeout (float | None): Seconds from now, within which each result has to come; None waits.
            chunksize (int): Has no effect here; it is for pools of processes.
            buffersize (int | None): How many calls are submitted ahead of the results that were taken; None submits
                all of them at once.

        Returns:
            Iterator: The results. When it ends early, calls that were not begun are cancelled.

        Raises:
            TimeoutError: From the iterator: the result did not come in time.
            TypeError: `buffersize` is no integer.
            ValueError: `buffersize` is not positive.

        Source:
            `concurrent.futures.Executor.map` (Python 3.14 documentation).
        """
        return map_in_order(self, fn, iterables, timeout, buffersize)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more calls; the threads end after those that were accepted.

        Args:
            wait (bool): Whether to return only when they have.
            cancel_futures (bool): Whether to cancel what was not begun.
        """
        self._refuse(RuntimeError("cannot schedule new futures after shutdown"))
        if cancel_futures:
            for future in self._drained():
                future.cancel()
            self._calls.put(END)
        for thread in list(self._threads) if wait else ():
            if thread is not threading.current_thread():
                thread.join()

    def _refuse(self, why: RuntimeError) -> None:
        with self._lock:
            if self._refusal is None:
                self._refusal = why
            self._calls.put(END)

    def _program_ends(self) -> None:
        self._refuse(RuntimeError("cannot schedule new futures after interpreter shutdown"))

    def _forked(self) -> None:
        self._start_afresh()

    @property
    def _broken(self) -> bool:  # type: ignore[override]  # it is only ever looked at
        return isinstance(self._refusal, BrokenThreadPool)

    def _drained(self) -> Iterator[PoolFuture]:
        """What is in the queue, END left out."""
        while True:
            try:
                future = self._calls.get_nowait()
            except Empty:
                return
            if future is not END:
                yield future

    def _break(self) -> None:
        """An initializer has failed."""
        words = "a thread's initializer failed, the pool is of no use any more"
        self._refuse(BrokenThreadPool(words))
        for future in self._drained():
            future.fail(BrokenThreadPool(words))
        self._calls.put(END)


def _perform(future: PoolFuture) -> None:
    """Make a future's call. A thread must not hold its pool, which ends when nobody does."""
    work = future.begin()
    if work is None:
        return
    fn, args, kwargs = work
    pid = _forks.pid
    try:
        result = fn(*args, **kwargs)
    except BaseException as error:
        if _forks.pid != pid:
            _forks.leave()
        future.settle(None, error)
        del future  # the error's traceback holds this frame
    else:
        if _forks.pid != pid:
            _forks.leave()
        future.settle(result)
    if _forks.pid != pid:  # by a callback
        _forks.leave()


def _prepare(find_pool: "weakref.ref[ThreadPool]", initialize: Initialize) -> bool:
    """Call the initializer in a new thread; False if the thread is of no use."""
    try:
        initialize()
    except BaseException:
        _stock_logger.critical("Exception in initializer:", exc_info=True)
        pool = find_pool()
        if pool is not None:
            pool._break()
        return False
    return True
