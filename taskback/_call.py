"""One call of a handler in this thread, and how it is stopped.

A handler is stopped by `TaskCancelled`, raised in its thread at the next bytecode
(`PyThreadState_SetAsyncExc`); an async one by `task.cancel()`, and by the exception if that did not help.

Threads: run() on the thread that runs the handler, interrupt() on any other.
Locks: _lock is a leaf. It is held for the marks, and while the exception is sent.
Holds: the exception reaches user code or nobody. It is sent only between the two marks, at most once a call, and
what was sent and not taken is taken back at the second mark. An async handler has two pairs of marks, around the
making of its coroutine and around the coroutine: between them asyncio makes its loop, and after them closes it.

Race: interrupt() and the handler's end. (1) The exception is sent before the second mark and strikes inside the
handler: it leaves by our `except`. (2) It is sent before the second mark and strikes in our own lines between
the handler and that mark: the outer `except` catches it and marks again; a second one cannot come. (3) It
comes after the second mark: nothing is sent, and the next pair of marks, if there is one, raises it when it is
entered. In (2) the handler had ended, and its result is dropped, as for any task that was told to stop before it
ended.

Waiting for a lock: an exception that comes while a thread waits in `lock.acquire()` is raised when it has the lock.
`with` and `try` know how to let go of it; who calls acquire() before a `try` does not. Up to CPython 3.12 `logging`
takes a handler's lock so for each record, and one that is never let go of stops all who log, and the program's end.
So a thread that is just there is spared for now. (What is left is a switch of threads between look and exception.)

asyncio is imported by what needs it: it takes a third of the time in which a worker starts that needs none of it.
"""

import contextvars
import ctypes
import logging
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from types import CoroutineType, GeneratorType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from taskback import _stacks
from taskback._context import Restore, restored
from taskback._errors import TaskCancelled
from taskback._loops import call_in
from taskback._state import TaskState
from taskback._task import CurrentTask, Task, running_task

if TYPE_CHECKING:
    import asyncio

Handler = Callable[[Task], Any]

LEFT_TASKS: Final = 0.5  # seconds that what a struck handler left in its loop gets to end

CO_ITERABLE_COROUTINE: Final = 0x100  # of a generator's code: `types.coroutine` has made it one that is awaited
SPARED: Final = 0.01  # seconds that an interruption waits for a thread to have the lock that it waits for
_LOCKING: Final = frozenset(
    function.__code__ for function in (logging.Handler.acquire, getattr(logging, "_acquireLock", None)) if function
)

_send = ctypes.pythonapi.PyThreadState_SetAsyncExc
_send.argtypes = (ctypes.c_ulong, ctypes.py_object)
_send.restype = ctypes.c_int


class Outcome(NamedTuple):
    """What came of a task: a final state, with the result or the error.

    `own` says that an attempt of the task has come to this by itself, so that it may be tried again: its handler
    raised, or it took its worker along.
    """

    state: TaskState
    value: Any = None
    error: BaseException | None = None
    stack: str | None = None  # where the handler was when it was stopped, where that is known without the error
    own: bool = False

    @classmethod
    def raised(cls, error: BaseException) -> "Outcome":
        """What a handler's exception makes of its task."""
        if isinstance(error, TaskCancelled) or _is_asyncios(error):
            return cls(TaskState.CANCELLED, error=error)
        return cls(TaskState.FAILED, error=error, own=True)


def _is_asyncios(error: BaseException) -> bool:
    """Whether it is asyncio's own `CancelledError`; of nobody who has not imported that."""
    exceptions = sys.modules.get("asyncio.exceptions")
    return exceptions is not None and isinstance(error, exceptions.CancelledError)


class _TakenBack(BaseException):
    """Takes the place of an exception that is on its way."""


def _take_back(thread: int) -> None:
    """Have nothing on its way to `thread`, which is the calling one.

    By something else in its place, which is caught here. NULL would clear it, too, and leave CPython 3.11 with a
    flag up under which all traced code (coverage, a debugger) hangs, in any thread.
    """
    try:
        _send(thread, _TakenBack)
        while True:  # until it comes, at the next bytecode
            pass
    except _TakenBack:
        return


def _is_locking(thread: int) -> bool:
    """Whether a thread is where it may get a lock that an exception would leave taken."""
    frame = sys._current_frames().get(thread)
    for _ in range(2):  # a lock may be written in Python, too
        if frame is None:
            return False
        if frame.f_code in _LOCKING:
            return True
        frame = frame.f_back
    return False


class Marks:
    """The two marks around user code in a thread; see the top of the file."""

    __slots__ = ("_in_loop", "_lock", "_sent", "_thread")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: int | None = None
        self._in_loop = False
        self._sent = False

    @property
    def thread(self) -> int | None:
        """The thread that is between them."""
        return self._thread

    def enter(self, in_loop: bool = False) -> None:
        """The first mark: from here on the exception may come, and one that was wanted before comes now."""
        with self._lock:
            if self._sent:
                raise TaskCancelled("the task is to stop")
            self._thread, self._in_loop = threading.get_ident(), in_loop

    def leave(self) -> None:
        """The second mark: from here on it does not, and one that is on its way is taken back."""
        with self._lock:
            thread, self._thread, self._in_loop = self._thread, None, False
            if thread is not None and self._sent:
                _take_back(thread)

    def strike(self, firmly: bool = True) -> bool:
        """Raise `TaskCancelled` between the marks, once; False if it spared the thread for now.

        That is one with an event loop, if this is not firm, and one that waits for a lock.
        """
        spared_until = time.monotonic() + SPARED
        while (thread := self._thread) is not None and _is_locking(thread) and time.monotonic() < spared_until:
            time.sleep(SPARED / 20)  # not under the lock: the second mark must not wait for this
        with self._lock:
            if self._in_loop and not firmly:
                return False
            if not self._sent:
                if self._thread is not None and _is_locking(self._thread):
                    return False
                self._sent = True
                if self._thread is not None:
                    _send(self._thread, TaskCancelled)
            return True


class SignalMarks:
    """The same marks where the stopping comes as a signal: `strike` runs in the marked thread, between two bytecodes.

    No lock, then, which that thread might hold: the handler's own raise is the exception, and it raises only while
    the flag says that user code runs. The flag is cleared before raising, so it comes once.

    Race: a signal within enter(). Before the flag is up it leaves `_struck` for enter() to see; after, it raises there.
    """

    __slots__ = ("_in_loop", "_inside", "_struck")

    def __init__(self) -> None:
        self._inside = False
        self._in_loop = False
        self._struck = False

    def enter(self, in_loop: bool = False) -> None:
        """The first mark; raises what was wanted before."""
        self._in_loop = in_loop
        self._inside = True
        if self._struck:
            self._inside = False
            raise TaskCancelled("the task is to stop")

    def leave(self) -> None:
        """The second mark: from here on the exception does not come."""
        self._inside = False
        self._in_loop = False

    def strike(self, firmly: bool = True) -> bool:
        """In the signal's handler: raise, between the marks, once; False if it spared an event loop."""
        if self._in_loop and not firmly:
            return False
        if not self._struck:
            self._struck = True
            if self._inside:
                self._inside = False
                raise TaskCancelled("the task is to stop")
        return True


NOT_AWAITABLE: Final = frozenset((type(None), bool, int, float, str, bytes, dict, list, tuple))  # seen at a glance


class RunAsync(Protocol):
    """Runs a coroutine to its end in the calling thread, as `asyncio.Runner.run` does."""

    def __call__(self, main: Any, /, *, context: contextvars.Context) -> Any: ...


def run_in_new_loop(main: Any, /, *, context: contextvars.Context) -> Any:
    """Run a coroutine in an event loop made for it."""
    import asyncio

    runner = asyncio.Runner()
    try:
        result = runner.run(main, context=context)
    except TaskCancelled:
        close_struck(runner)
        raise
    except BaseException:
        runner.close()
        raise
    runner.close()
    return result


def close_struck(runner: "asyncio.Runner") -> None:
    """Close a runner whose loop the exception may have struck anywhere.

    The step of a task may be lost, which then never ends; `runner.close` would wait for it for ever.
    """
    import asyncio

    loop = runner.get_loop()
    try:
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.wait(tasks, timeout=LEFT_TASKS))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def _close_unbegun(result: Any) -> None:
    """Close a coroutine that will never begin, of which Python would otherwise complain."""
    if not isinstance(result, CoroutineType):
        return
    import inspect

    if inspect.getcoroutinestate(result) == inspect.CORO_CREATED:
        result.close()


def is_awaitable(value: Any) -> bool:
    """As `inspect.isawaitable`, whose module takes as long to import as all that a worker has of ours."""
    if isinstance(value, GeneratorType):
        return bool(value.gi_code.co_flags & CO_ITERABLE_COROUTINE)
    return isinstance(value, Awaitable)


class Call:
    """One call of a handler, run to its end in the calling thread.

    Args:
        handler (Handler): Sync or async.
        task (Task): What it gets; nobody else's dict.
        current (CurrentTask): What `current_task()` gives in it.
        functions (tuple[Restore, ...]): Entered around it.
        context (Mapping[str, str]): What those restore.
        variables (contextvars.Context): The handler runs in these context variables.
        run_async (RunAsync): Runs what an async handler returns.
        marks (Marks | SignalMarks | None): How it is struck; None lets other threads do it.
    """

    __slots__ = (
        "_async_task",
        "_context",
        "_functions",
        "_handler",
        "_loop",
        "_marks",
        "_run_async",
        "_task",
        "current",
        "variables",
    )

    def __init__(
        self,
        handler: Handler,
        task: Task,
        current: CurrentTask,
        functions: tuple[Restore, ...],
        context: Mapping[str, str],
        variables: contextvars.Context,
        run_async: RunAsync = run_in_new_loop,
        marks: Marks | SignalMarks | None = None,
    ) -> None:
        self._handler = handler
        self._task = task
        self.current = current
        self._functions = functions
        self._context = context
        self.variables = variables
        self._run_async = run_async
        self._marks: Any = marks or Marks()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._async_task: asyncio.Task[Any] | None = None

    def run(self) -> Outcome:
        """Call the handler; whatever it raises is in the outcome."""
        try:
            try:
                self._marks.enter()
                outcome = Outcome(TaskState.SUCCEEDED, self.variables.run(self._invoke))
            except BaseException as error:
                outcome = Outcome.raised(error)
            self._marks.leave()
        except BaseException as error:  # Race: (2) of the top of the file; or Ctrl-C, in the main thread
            self._marks.leave()
            outcome = Outcome.raised(error)
        try:
            return outcome
        finally:
            # An error's traceback holds this frame. What that holds must not lead to the error, or the two would live
            # until the collector comes.
            del outcome
            self._async_task = self.current._announce = None

    def _invoke(self) -> Any:
        running_task.set(self.current)
        if not self._functions:
            return self._called()
        with restored(self._functions, self._context):
            return self._called()

    def _called(self) -> Any:
        result = None
        try:
            result = self._handler(self._task)
            if type(result) in NOT_AWAITABLE or not is_awaitable(result):
                return result
            self._marks.leave()
            return self._run_async(self._follow(result), context=contextvars.copy_context())
        except BaseException:
            _close_unbegun(result)
            raise

    async def _follow(self, result: Awaitable[Any]) -> Any:
        """The async half of a handler, where interrupt() finds it."""
        import asyncio

        self._async_task = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        try:
            self._marks.enter(in_loop=True)  # last: from here on interrupt() looks at the two
            return await result
        finally:
            self._marks.leave()

    def interrupt(self, firmly: bool = False) -> None:
        """Have the handler stop; `firmly` is for an async one that did not take its cancellation."""
        self.current._cancelled = True
        struck = self._marks.strike(firmly)
        loop, async_task = self._loop, self._async_task
        if loop is None or async_task is None:
            return
        # A loop that sleeps takes the exception when it wakes. If it has closed, the handler has ended.
        call_in(loop, _nothing if struck else async_task.cancel)

    def stack(self) -> str:
        """Where the handler is, as text; empty if it is not under way. Any thread."""
        thread = self._marks.thread
        return "" if thread is None else _stacks.of_thread(thread) + self.waits_at()

    def waits_at(self) -> str:
        """Of an async handler: where it waits, as text; empty if it does not. Any thread."""
        async_task = self._async_task
        return "" if async_task is None else _stacks.of_coroutine(async_task.get_coro())


def _nothing() -> None:
    return None


class AsyncCall:
    """One call of a handler as a task of a running loop.

    A sync handler runs between two steps of the loop, under marks of its own; an async one is cancelled as any
    asyncio task is. The loop belongs to the program, so nothing is raised into it by force.
    """

    def __init__(
        self,
        handler: Handler,
        task: Task,
        current: CurrentTask,
        functions: tuple[Restore, ...],
        context: Mapping[str, str],
    ) -> None:
        self._handler = handler
        self._task = task
        self.current = current
        self._functions = functions
        self._context = context
        self._marks = Marks()
        self._async_task: asyncio.Task[Any] | None = None

    def runs_as(self, async_task: "asyncio.Task[Any]") -> None:
        """Say which task of the loop it is, before that has begun."""
        self._async_task = async_task

    async def run(self) -> Outcome:
        """Call the handler; whatever it raises is in the outcome."""
        running_task.set(self.current)
        try:
            with restored(self._functions, self._context):
                result = self._invoke()
                if is_awaitable(result):
                    result = await result
            return Outcome(TaskState.SUCCEEDED, result)
        except BaseException as error:
            return Outcome.raised(error)
        finally:
            self._async_task = self.current._announce = None  # see Call.run

    def _invoke(self) -> Any:
        """The sync half: all of a sync handler, or the making of an async one's coroutine."""
        result = None
        try:
            try:
                self._marks.enter()
                result = self._handler(self._task)
            finally:
                self._marks.leave()
        except BaseException:  # Race: (2) of the top of the file
            self._marks.leave()
            _close_unbegun(result)
            raise
        return result

    def interrupt(self, firmly: bool = False) -> None:
        """Have the handler stop; asked again, it is cancelled again."""
        self.current._cancelled = True
        self._marks.strike()
        async_task = self._async_task
        if async_task is not None:  # if its loop has closed, nothing runs there any more
            call_in(async_task.get_loop(), async_task.cancel)

    def stack(self) -> str:
        """Where the handler is, as text; empty if it is not under way. Any thread."""
        thread, async_task = self._marks.thread, self._async_task
        if thread is not None:
            return _stacks.of_thread(thread)
        return "" if async_task is None else _stacks.of_coroutine(async_task.get_coro())
