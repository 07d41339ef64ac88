"""One call of a handler in this thread, and how it is stopped.

A handler is stopped by `TaskCancelled`, raised in its thread at the next bytecode
(`PyThreadState_SetAsyncExc`); an async one by `task.cancel()`, and by the exception if that did not help.

Threads: run() on the thread that runs the handler, interrupt() on any other.
Locks: _lock is a leaf. It is held for the marks, and while the exception is sent.
Holds: the exception reaches user code or nobody. It is sent only between the two marks, at most once a call, and
what was sent and not taken is taken back at the second mark.

Race: interrupt() and the handler's end. (1) The exception is sent before the second mark and strikes inside the
handler: it leaves by our `except`. (2) It is sent before the second mark and strikes in our own lines between
the handler and that mark: the outer `except` catches it and marks again; a second one cannot come. (3) It
comes after the second mark: nothing is sent. In (2) the handler had ended, and its result is dropped, as
for any task that was told to stop before it ended.
"""

import asyncio
import contextvars
import ctypes
import inspect
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from taskback._context import Restore, restored
from taskback._errors import TaskCancelled
from taskback._state import TaskState
from taskback._task import CurrentTask, Task, running_task

Handler = Callable[[Task], Any]

_send = ctypes.pythonapi.PyThreadState_SetAsyncExc
_send.argtypes = (ctypes.c_ulong, ctypes.py_object)
_send.restype = ctypes.c_int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a task: a final state, with the result or the error."""

    state: TaskState
    value: Any = None
    error: BaseException | None = None

    @classmethod
    def raised(cls, error: BaseException) -> "Outcome":
        """What a handler's exception makes of its task."""
        gave_up = isinstance(error, (TaskCancelled, asyncio.CancelledError))
        return cls(TaskState.CANCELLED if gave_up else TaskState.FAILED, error=error)


class Marks:
    """The two marks around user code in a thread; see the top of the file."""

    __slots__ = ("_lock", "_over", "_sent", "_thread")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread: int | None = None
        self._sent = False
        self._over = False

    def enter(self) -> None:
        """The first mark: from here on the exception may come, and one that was wanted before comes now."""
        with self._lock:
            if self._sent:
                raise TaskCancelled("the task is to stop")
            self._thread = threading.get_ident()

    def leave(self) -> None:
        """The second mark: from here on it does not, and one that is on its way is taken back."""
        with self._lock:
            self._over = True
            self._thread = None
            if self._sent:
                _send(threading.get_ident(), ctypes.py_object())  # NULL clears; None would be raised

    def strike(self) -> None:
        """Raise `TaskCancelled` between the marks, once."""
        with self._lock:
            if self._sent or self._over:
                return
            self._sent = True
            if self._thread is not None:
                _send(self._thread, TaskCancelled)


class RunAsync(Protocol):
    """Runs a coroutine to its end in the calling thread, as `asyncio.Runner.run` does."""

    def __call__(self, main: Any, /, *, context: contextvars.Context) -> Any: ...


def run_in_new_loop(main: Any, /, *, context: contextvars.Context) -> Any:
    """Run a coroutine in an event loop made for it."""
    with asyncio.Runner() as runner:
        return runner.run(main, context=context)


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
    ) -> None:
        self._handler = handler
        self._task = task
        self.current = current
        self._functions = functions
        self._context = context
        self.variables = variables
        self._run_async = run_async
        self._marks = Marks()
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
        except TaskCancelled as error:  # Race: (2) of the top of the file
            self._marks.leave()
            outcome = Outcome.raised(error)
        return outcome

    def _invoke(self) -> Any:
        running_task.set(self.current)
        with restored(self._functions, self._context):
            result = self._handler(self._task)
            if inspect.isawaitable(result):
                return self._run_async(self._follow(result), context=contextvars.copy_context())
            return result

    async def _follow(self, result: Awaitable[Any]) -> Any:
        """The async half of a handler, where interrupt() finds it."""
        self._async_task = asyncio.current_task()
        self._loop = asyncio.get_running_loop()  # set last: interrupt() looks at it first
        if self.current.cancelled:  # Race: interrupt() came before _loop was there
            raise asyncio.CancelledError
        return await result

    def interrupt(self, firmly: bool = False) -> None:
        """Have the handler stop; `firmly` is for an async one that did not take its cancellation."""
        self.current._cancelled = True
        loop, async_task = self._loop, self._async_task
        if loop is None or async_task is None or firmly:
            self._marks.strike()
            return
        try:
            loop.call_soon_threadsafe(async_task.cancel)
        except RuntimeError:  # the loop has closed, so the handler has ended
            return


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
                if inspect.isawaitable(result):
                    result = await result
            return Outcome(TaskState.SUCCEEDED, result)
        except BaseException as error:
            return Outcome.raised(error)

    def _invoke(self) -> Any:
        """The sync half: all of a sync handler, or the making of an async one's coroutine."""
        try:
            try:
                self._marks.enter()
                return self._handler(self._task)
            finally:
                self._marks.leave()
        except TaskCancelled:  # Race: (2) of the top of the file
            self._marks.leave()
            raise

    def interrupt(self, firmly: bool = False) -> None:
        """Have the handler stop; asked again, it is cancelled again."""
        self.current._cancelled = True
        self._marks.strike()
        if self._async_task is None:
            return
        try:
            self._async_task.get_loop().call_soon_threadsafe(self._async_task.cancel)
        except RuntimeError:  # the loop has closed: nothing runs there any more
            return
