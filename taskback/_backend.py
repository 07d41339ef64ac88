"""`TaskBackend`: what callers see of every backend, and what a host's own subclass gets for free.

A subclass need define `initialize`, `submit` and `shutdown` alone. `_executor` is its handler, `_initialized` whether
it takes tasks, and `await self._run(task)` runs the handler, logs and swallows what it raises.

Threads: any. Locks: _once_lock is a leaf; it guards the making of what is made once.
_alive is guarded by the GIL's atomic set operations and read by copies.
Holds: importing starts nothing; the exit hook is registered when the first backend starts.
"""

import asyncio
import atexit
import inspect
import itertools
import logging
import multiprocessing.process
import multiprocessing.util
import os
import signal
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from taskback import _clock, _forks
from taskback._call import Handler
from taskback._errors import UnknownTaskError, UnsupportedOptionError
from taskback._handle import TaskHandle
from taskback._keeper import LoopThread
from taskback._mapped import Mapped
from taskback._promises import Promises
from taskback._public import lives_in
from taskback._report import BackendStats
from taskback._task import Task
from taskback.pools import program_end

logger = logging.getLogger(__name__)

T = TypeVar("T")


@lives_in("taskback")
class TaskBackend(ABC):
    """Takes tasks, plain dicts, and has one handler run them.

    Where it runs them is the subclass's business; callers do not change. `async with` and `with` initialize on entry
    and shut down on exit, and give the backend.

    Attributes:
        promises (Promises): What this backend keeps of the contract, as data.
    """

    promises: Promises = Promises()

    _executor: Handler | None = None
    _initialized: bool = False
    _running_here: int = 0
    _sync_loop: LoopThread | None = None

    def set_handler(self, handler: Handler) -> None:
        """Say what runs the tasks.

        Args:
            handler (Callable[[dict], Any]): Sync or async; takes the task.

        Raises:
            TypeError: `handler` is not callable.
            HandlerNotSerializableError: It must travel to processes and cannot.
        """
        if not callable(handler):
            raise TypeError(f"a handler must be callable, not a {type(handler).__name__}")
        self._executor = handler

    def set_executor(self, executor: Handler) -> None:
        """The older name of `set_handler`.

        Args:
            executor (Callable[[dict], Any]): Sync or async; takes the task.

        Raises:
            TypeError: `executor` is not callable.
        """
        self.set_handler(executor)

    @abstractmethod
    async def initialize(self) -> None:
        """Get ready to take tasks. A second call does nothing; after `shutdown` it starts afresh."""

    @abstractmethod
    async def submit(self, task: Task, **options: Any) -> Any:
        """Hand over a task; returns promptly, before the task has run.

        Args:
            task (dict[str, Any]): What to do. It is copied: what becomes of the caller's dict changes nothing.
            **options (Any): For this task alone. `id` (str, 1 to 64 characters; a live one is joined), `delay`
                (seconds) or `not_before` (aware datetime or seconds since the epoch), `priority` (int, higher first),
                `timeout` (seconds of running, None for no limit), `context` (dict[str, str]).

        Returns:
            TaskHandle: What to wait for the task with. Nothing need be read from it.

        Raises:
            TypeError: The task is no dict, or an option has the wrong type.
            ValueError: An option makes no sense; `UnsupportedOptionError`, this backend cannot keep it.
            UnknownTaskTypeError: The handler is a router that lacks the task's type.
            TaskNotSerializableError: The task must travel to a process and cannot.
            BackendClosedError: After `shutdown`.
        """

    @abstractmethod
    async def shutdown(self) -> Any:
        """Take no more tasks, and bring those in flight to an end."""

    async def submit_task(self, task: Task, **options: Any) -> Any:
        """The same as `submit`, under the name that one of the known hosts of this interface uses.

        Args:
            task (dict[str, Any]): What to do.
            **options (Any): As for `submit`.

        Returns:
            TaskHandle: As from `submit`.

        Raises:
            Exception: As `submit` does.
        """
        return await self.submit(task, **options)

    async def run(self, task: Task, **options: Any) -> Any:
        """Hand over a task and wait for its result; a coroutine, so `create_task` and task groups take it.

        Args:
            task (dict[str, Any]): What to do.
            **options (Any): As for `submit`.

        Returns:
            Any: What the handler returned.

        Raises:
            asyncio.CancelledError: The task was cancelled.
            BaseException: What `submit` or the handler raised.
        """
        submitted = await self.submit(task, **options)
        try:
            return await submitted if inspect.isawaitable(submitted) else submitted
        finally:
            del submitted  # an error's traceback holds this frame, and the handle the error

    async def submit_many(self, tasks: Iterable[Task], **options: Any) -> list[Any]:
        """Hand over several tasks at once, which costs less than one after the other.

        All are checked, and pickled where they are to be, before any of them is accepted.

        Args:
            tasks (Iterable[dict[str, Any]]): What to do.
            **options (Any): As for `submit`, for each of them; `id` makes no sense here.

        Returns:
            list[TaskHandle]: In the order of the tasks.

        Raises:
            ValueError: `id` is given.
            Exception: As `submit` does; nothing was accepted. Where the queue has limits (`max_queued`) they are
                submitted one by one, and those that came before one which is refused stay accepted.
        """
        _refuse_id(options)
        return [await self.submit(task, **options) for task in tasks]

    def map(
        self,
        tasks: Iterable[Task],
        *,
        chunksize: int | None = None,
        buffersize: int | None = None,
        return_exceptions: bool = False,
    ) -> Mapped:
        """Run many tasks; their results come in order, by `for` or by `async for`.

        Tasks are taken as they are wanted, so there may be any number of them. Where no policy, time limit, listener,
        context or limit of the queue needs each of them by itself, a process backend has them travel in chunks: such a
        task has its own result or error, context variables and `current_task()`, but no handle, and what it reports
        nobody sees. A task that takes its worker along ends LOST alone; the others of its chunk are not run twice.

        Args:
            tasks (Iterable[dict[str, Any]]): What to do.
            chunksize (int | None): Tasks of a chunk, at most 4,096; None has some 5 ms of work in one, by what the last
                ones took.
            buffersize (int | None): How many tasks may be under way, or have results that were not taken; None takes
                what keeps the workers busy.
            return_exceptions (bool): Whether errors are given as results. Else a task that failed raises its error
                in its place; who takes the next result after that gets the next task's.

        Returns:
            Mapped: An iterator, and an async one. Its `close()`, and nobody referring to it any more, cancels what is
                under way.

        Raises:
            TypeError: `chunksize` or `buffersize` is no whole number.
            ValueError: `chunksize` or `buffersize` is less than 1.
        """
        mapped = Mapped(self, tasks, chunksize, buffersize, return_exceptions)
        self._get_ready_to_drop()
        return mapped

    def _chunkable(self, task: Task) -> bool:
        """Whether a task may travel in a chunk of `map`; a backend that says so has `_submit_chunk`."""
        return False

    def _submit_chunk(self, tasks: list[Task]) -> TaskHandle:
        """Submit a chunk of `map`."""
        raise NotImplementedError

    def _worker_count(self) -> int:
        """How many tasks it may run at a time, as far as `map` needs to know."""
        return 1

    def _get_ready_to_drop(self) -> None:  # noqa: B027  # most need nothing
        """Tasks of a `map` may have to be dropped from now on."""

    def _drop(self, handles: list[TaskHandle]) -> None:
        """Cancel these, of which nobody wants the results. Where a garbage collection strikes it must take no lock."""
        for handle in handles:
            handle.cancel()

    # --- the same for callers without a loop ---

    def initialize_sync(self) -> None:
        """`initialize`, for callers without an event loop; from any thread.

        Raises:
            RuntimeError: Called while a worker imports its handler.
        """
        self._from_sync(self.initialize())

    def submit_sync(self, task: Task, *, wait: float | None = None, **options: Any) -> Any:
        """`submit`, for callers without an event loop; from any thread.

        Args:
            task (dict[str, Any]): What to do.
            wait (float | None): Seconds that the call may block; None sets no bound.
            **options (Any): As for `submit`.

        Returns:
            TaskHandle: As from `submit`.

        Raises:
            TimeoutError: `wait` was over; nothing was submitted.
            Exception: As `submit` does.
        """
        return self._from_sync(self.submit(task, **options), wait)

    def submit_many_sync(self, tasks: Iterable[Task], *, wait: float | None = None, **options: Any) -> list[Any]:
        """`submit_many`, for callers without an event loop; from any thread.

        Args:
            tasks (Iterable[dict[str, Any]]): What to do.
            wait (float | None): Seconds that the call may block; None sets no bound.
            **options (Any): As for `submit_many`.

        Returns:
            list[TaskHandle]: In the order of the tasks.

        Raises:
            TimeoutError: `wait` was over; tasks that came before stay accepted.
            Exception: As `submit_many` does.
        """
        _refuse_id(options)
        deadline = _clock.deadline_after(wait)
        left = (None if wait is None else max(0.0, deadline - _clock.monotonic()) for _ in itertools.repeat(None))
        return [self.submit_sync(task, wait=seconds, **options) for task, seconds in zip(tasks, left, strict=False)]

    def run_sync(self, task: Task, *, wait: float | None = None, **options: Any) -> Any:
        """`run`, for callers without an event loop; from any thread.

        Args:
            task (dict[str, Any]): What to do.
            wait (float | None): Seconds that the call may block; the task is cancelled when they have passed.
            **options (Any): As for `submit`.

        Returns:
            Any: What the handler returned.

        Raises:
            TimeoutError: `wait` was over before the task.
            RuntimeError: Called in the event loop that is to run the task, which would wait for itself.
            BaseException: What `submit` or the handler raised.
        """
        deadline = _clock.deadline_after(wait)
        submitted = self.submit_sync(task, wait=wait, **options)
        if not isinstance(submitted, TaskHandle):
            return submitted
        left = None if wait is None else max(0.0, deadline - _clock.monotonic())
        try:
            return submitted.result(left)
        except BaseException:
            if not submitted.done():  # the wait is over, or it was interrupted: nobody else holds the handle
                submitted.cancel()
            raise

    def shutdown_sync(self, timeout: float | None = None) -> Any:
        """`shutdown`, for callers without an event loop; from any thread.

        Args:
            timeout (float | None): As for `shutdown`, where it takes one.

        Returns:
            ShutdownReport: As from `shutdown`.

        Raises:
            RuntimeError: Called in the event loop that runs the tasks, which would wait for itself.
        """
        shutdown: Callable[..., Coroutine[Any, Any, Any]] = self.shutdown
        report = self._from_sync(shutdown() if timeout is None else shutdown(timeout))
        loop, self._sync_loop = self._sync_loop, None
        if loop is not None:
            loop.stop()
        return report

    def _from_sync(self, main: Coroutine[Any, Any, T], wait: float | None = None) -> T:
        """Run a coroutine of a host's own subclass for a caller without a loop, in a loop thread of ours."""
        with _once_lock:
            if self._sync_loop is None:
                self._sync_loop = LoopThread(f"{type(self).__name__}-sync")
            loop = self._sync_loop
        future = asyncio.run_coroutine_threadsafe(main, loop.start())
        try:
            return future.result(wait)
        except BaseException:
            future.cancel()
            raise

    # --- answers, as far as a subclass that knows of none can give them ---

    def handle(self, task_id: str) -> TaskHandle:
        """The handle of a task in flight, or of one among the last `keep_ended` that ended.

        Args:
            task_id (str): The task's id.

        Returns:
            TaskHandle: Its first submitter's; cancelling it is that submitter's cancelling.

        Raises:
            UnknownTaskError: There is no such task.
        """
        raise UnknownTaskError(task_id, 0)

    def stacks(self) -> dict[str, str]:
        """Where the handlers that run just now are: what to look at when something seems to hang.

        A process answers by a signal, also while a C call holds its GIL; one that is stopped does not.

        Returns:
            dict[str, str]: By task id, the stack as text, the innermost call last (of a process: its threads, the
                innermost call first). Tasks whose worker does not tell are not in it.
        """
        return {}

    def explain(self, handle: TaskHandle) -> str:
        """Why a task is still waiting, as a sentence.

        Args:
            handle (TaskHandle): A handle of this backend.

        Returns:
            str: What it waits for.

        Raises:
            ValueError: The handle is of another backend.
        """
        raise ValueError(f"task {handle.id} is not of this backend")

    def hurry(self, timeout: float = 0) -> None:
        """Shorten a shutdown under way. Takes no lock and does not wait: what a signal handler may call.

        Args:
            timeout (float): Seconds that it may go on draining. Without a shutdown under way nothing happens.

        Raises:
            ValueError: `timeout` is negative or NaN.
        """
        _clock.checked_seconds("timeout", timeout)

    @property
    def inflight_count(self) -> int:
        """How many tasks are in flight, read without a lock.

        Returns:
            int: Queued and running ones.
        """
        return self._running_here

    def stats(self) -> BackendStats:
        """The figures of the backend.

        Returns:
            BackendStats: As of now.
        """
        return BackendStats(running=self._running_here)

    def subscribe(self, listener: Callable[[Any], Any]) -> Callable[[], None]:
        """Have a listener called with every event, in order a task, on one thread of the backend's.

        Args:
            listener (Callable[[Event], Any]): Takes an event. A slow one loses events and delays no task.

        Returns:
            Callable[[], None]: Takes the listener out again.

        Raises:
            TypeError: `listener` is not callable.
        """
        raise UnsupportedOptionError(type(self).__name__, "subscribe", "it tells no events")

    async def _run(self, task: Task) -> None:
        """Run the handler; what it raises is logged and swallowed."""
        if self._executor is None:
            logger.warning("%s has no handler; dropping a task of type %r", type(self).__name__, task.get("type"))
            return
        self._running_here += 1
        try:
            result = self._executor(task)
            if inspect.isawaitable(result):
                await result
        except Exception as error:
            logger.warning("handler failed on a task of type %r: %s", task.get("type"), error, exc_info=True)
        finally:
            self._running_here -= 1

    # --- context managers ---

    async def __aenter__(self) -> Self:
        await self.initialize()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.shutdown()

    def __enter__(self) -> Self:
        self.initialize_sync()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown_sync()

    def __reduce__(self) -> tuple[Any, ...]:
        # A handler's globals may hold its backend. It travels to workers as something that says so when used.
        return BackendElsewhere, (type(self).__name__,)


def _refuse_id(options: dict[str, Any]) -> None:
    if options.get("id") is not None:
        raise ValueError("an id is one task's: submit_many takes none")


class BackendElsewhere:
    """Stands in a worker for a backend of its parent; using it raises a `RuntimeError`."""

    def __init__(self, name: str) -> None:
        self.__dict__["_name"] = name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what pickle and friends ask for in passing
            raise AttributeError(name)
        raise RuntimeError(f"this {self.__dict__['_name']} lives in the parent process and cannot be used in a worker")

    def __reduce__(self) -> tuple[Any, ...]:
        return BackendElsewhere, (self.__dict__["_name"],)


# --- the end of the program, and forks ---

_once_lock = threading.Lock()


class Mortal(Protocol):
    """A backend that must be told when the program ends, and when it has been forked."""

    def at_exit(self) -> "Future[Any] | None":
        """Begin to end everything; what comes back is waited for, for `exit_seconds` at most."""
        ...

    def exit_seconds(self) -> float:
        """How long that may take."""
        ...

    def forked(self) -> None:
        """This is a fork: start afresh, and touch nothing of the parent's."""
        ...


_alive: "weakref.WeakSet[Mortal]" = weakref.WeakSet()
_hooked_after: "set[type | None]" = set()
_finalized_in = 0  # the multiprocessing child that has our finalizer


def tell_at_the_end(backend: Mortal, after: type | None = None) -> None:
    """Have a backend told when the program ends, and when it has been forked.

    Args:
        backend (Mortal): The backend.
        after (type | None): Somebody else's class whose own exit hook is in place by now. The hook that came last runs
            first, and that one would wait for work that only ours ends.
    """
    program_end.hook_up()  # first: what comes last runs first, and that one waits for calls that may wait for tasks
    with _once_lock:
        _alive.add(backend)
        _finalize_in_child()
        if after in _hooked_after:
            return
        first = not _hooked_after
        _hooked_after.add(after)
        turn = len(_hooked_after)
    # Not atexit where that can be helped: it runs after all threads have been joined, so never while one of the
    # program's waits on a handle.
    register = getattr(threading, "_register_atexit", atexit.register)
    try:
        register(_end_all, turn)
    except RuntimeError:  # the program is ending already
        logger.debug("no exit hook for %r", backend)
    if first:
        _forks.watch(_forked)


def _finalize_in_child() -> None:
    """In a process of `multiprocessing`: be told before it waits for its own children, our workers among them.

    Up to CPython 3.12 it does that first, and the exit hooks of `threading` would have their turn afterwards: never.
    """
    global _finalized_in
    if multiprocessing.process.parent_process() is not None and _finalized_in != os.getpid():
        _finalized_in = os.getpid()
        multiprocessing.util.Finalize(None, lambda: _end_all(len(_hooked_after)), exitpriority=100)


def _end_all(turn: int) -> None:
    """The program ends: cancel what is queued, kill the workers. Starts nothing.

    Ctrl-C does not cut it short, nor the hooks that come after it: it takes no longer than the grace.
    """
    if turn != len(_hooked_after):  # this hook has a younger twin, which ran before it
        return
    interruptible = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if interruptible and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, _shrug)
    try:
        _end_each()
    finally:
        if signal.getsignal(signal.SIGINT) is _shrug:
            signal.signal(signal.SIGINT, signal.default_int_handler)


def _shrug(*_: Any) -> None:
    return None


def _end_each() -> None:
    waits = [(backend.at_exit(), _clock.monotonic() + backend.exit_seconds()) for backend in list(_alive)]
    for future, deadline in waits:
        if future is None:
            continue
        try:
            future.result(max(0.0, deadline - _clock.monotonic()))
        except Exception:
            logger.error("a backend did not end with the program", exc_info=True)


def _forked() -> None:
    global _once_lock
    _once_lock = threading.Lock()
    for backend in list(_alive):
        backend.forked()
