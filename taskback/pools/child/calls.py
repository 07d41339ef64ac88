"""A call as bytes, and its run in whatever process they reach.

What crosses is bytes of ours, both ways, so that no exception, task or result can harm the pool that carries them.

Holds: `perform` returns bytes whatever the handler does, unless its process ends.
"""

import contextvars
import os
import pickle
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from taskback import _clock, _codec, _role
from taskback._call import Call, Handler, Outcome, SignalMarks, close_struck
from taskback._context import Restore
from taskback._errors import ProgressNotSerializableError, ResultNotSerializableError, TaskCancelled
from taskback._leave import leave
from taskback._packed import LARGE, Packed, in_envelope, opened
from taskback._propagate import context_with
from taskback._state import TaskState
from taskback._task import CurrentTask, checked_type
from taskback.pools.child import packets

if TYPE_CHECKING:
    import asyncio

    from taskback._progress import Progress

_STARTED: Final = struct.Struct("<Q")
_BRIEF: Final = struct.Struct("<QB")  # the handler's number, and how long the id is
_NO_CONTEXT: Final[dict[str, str]] = {}

MAX_PROGRESS_BYTES: Final = 8192
MAX_HANDLERS: Final = 8  # kept a process: a pool that several backends share has one for each


class Request(NamedTuple):
    """A call, as it is sent.

    `handler_key` names the handler's bytes, which a process loads once; they may be left out where it has.
    """

    number: int
    id: str
    type: str | None
    attempt: int
    timeout: float | None
    context: dict[str, str]
    task: Any  # Packed, or a view of a pickle
    handler_key: tuple[str, int]
    handler: bytes | None
    tells: bool = False  # whether the process is to say when the handler is about to be called
    variables: bytes | None = None  # context variables; see `_propagate`

    def pack(self) -> bytes:
        """As bytes, for any pool to carry."""
        return pickle.dumps(tuple(self), _codec.PROTOCOL)

    def in_parts(self) -> Packed:
        """For a worker of ours: a large task lies beside it."""
        if type(self.task) is bytes and len(self.task) <= LARGE:
            return pickle.dumps(tuple(self), _codec.PROTOCOL)
        return in_envelope(self._replace(task=b"").pack(), self.task)


def unpack_request(data: Packed) -> Request:
    """The request that `data` holds; built-in types, but for the task, so it can always be read."""
    envelope, inner = opened(data)
    request = Request(*pickle.loads(envelope))
    return request if inner is None else request._replace(task=inner)


PackedProgress = tuple[float | None, float | None, str | None, bytes | None]


def pack_progress(progress: "Progress") -> PackedProgress:
    """A progress as what can be read without running user code; its data stays packed until someone looks."""
    if not progress.data:
        return progress.done, progress.total, progress.stage, None
    data = _codec.dumps_or_refuse(dict(progress.data), "report", ProgressNotSerializableError)
    if len(data) > MAX_PROGRESS_BYTES:  # so that it has room on the status page
        raise ValueError(f"report() takes at most {MAX_PROGRESS_BYTES} bytes of data, not {len(data)}")
    return progress.done, progress.total, progress.stage, data


def unpack_progress(packed: PackedProgress) -> "Progress":
    """What `pack_progress` packed."""
    from taskback._progress import Progress

    done, total, stage, data = packed
    return Progress(done, total, stage, {} if data is None else _codec.PackedMapping(data))


class Reply(NamedTuple):
    """What came of it. `value` is a pickled result, or what `pack_error` gives."""

    state: TaskState
    value: Any
    pid: int
    started_ns: int
    progress: PackedProgress | None

    def pack(self) -> bytes:
        """As bytes, for any pool to carry."""
        return pickle.dumps((self.state.value, self.value, self.pid, self.started_ns, self.progress), _codec.PROTOCOL)

    def in_parts(self) -> Packed:
        """From a worker of ours: a large result lies beside it."""
        if self.state is not TaskState.SUCCEEDED or (type(self.value) is bytes and len(self.value) <= LARGE):
            return self.pack()
        return in_envelope(self._replace(value=None).pack(), self.value)

    def outcome(self) -> Outcome:
        """With the result or error rebuilt, which is user code; one that cannot be fails its own task."""
        if self.state is TaskState.CANCELLED:
            return Outcome(self.state, stack=self.value[2])
        if self.state is not TaskState.SUCCEEDED:
            return Outcome(self.state, error=_codec.unpack_error(self.value), own=True)
        try:
            return Outcome(TaskState.SUCCEEDED, _codec.loads(self.value))
        except BaseException as error:
            return Outcome(TaskState.FAILED, error=_codec.not_rebuilt(error))


def read_reply(kind: int, data: Any, pid: int) -> Reply:
    """The reply that a packet of the worker of that number holds."""
    if kind != packets.VALUE:
        return unpack_reply(data)
    started_ns, value = unpack_value(data)
    return Reply(TaskState.SUCCEEDED, value, pid, started_ns, None)


def unpack_reply(data: Packed) -> Reply:
    """The reply that `data` holds; built-in types, but for the result, so it can always be read."""
    envelope, inner = opened(data)
    state, value, pid, started_ns, progress = pickle.loads(envelope)
    return Reply(TaskState(state), value if inner is None else inner, pid, started_ns, progress)


_handlers: dict[tuple[str, int], tuple[Handler, tuple[Restore, ...]]] = {}
_runner: "asyncio.Runner | None" = None


def load_handler(key: tuple[str, int], data: bytes | None) -> tuple[Handler, tuple[Restore, ...]]:
    """The handler and what restores its context, unpickled once a process."""
    found = _handlers.get(key)
    if found is None:
        if data is None:
            raise RuntimeError("this worker was never sent its handler")
        with _role.importing(key[0]):
            found = _codec.loads(data)
        while len(_handlers) >= MAX_HANDLERS:
            _handlers.pop(next(iter(_handlers)))
        _handlers[key] = found
    return found


def _load(request: Request) -> tuple[Handler, tuple[Restore, ...]]:
    return load_handler(request.handler_key, request.handler)


def perform(
    data: bytes,
    begin: Callable[[Request, Call], bool] = lambda request, call: True,
    announce: "Callable[[int, Progress], None] | None" = None,
    marks: SignalMarks | None = None,
    load: Callable[[Request], "tuple[Handler, tuple[Restore, ...]]"] | None = None,
) -> bytes:
    """Run the call that `data` holds.

    Args:
        data (bytes): A packed `Request`.
        begin (Callable[[Request, Call], bool]): Told that the handler is about to be called; False calls it off.
        announce (Callable[[int, Progress], None] | None): Told of progress, with the call's number.
        marks (SignalMarks | None): Where a signal stops it; None where other threads do.
        load (Callable[[Request], tuple] | None): Gives the handler; None takes it from the request.

    Returns:
        bytes: A packed `Reply`.
    """
    pid = os.getpid()
    done = carry_out(Request(*pickle.loads(data)), begin, announce, marks, load or _load)
    leave_if_forked(pid)
    return Reply(done.state, done.value, pid, done.started_ns, done.progress).pack()


class Done(NamedTuple):
    """What came of a call, and when it began; see `Reply`."""

    state: TaskState
    value: Any
    started_ns: int
    progress: PackedProgress | None

    def pack(self, pid: int) -> tuple[int, Packed]:
        """As the kind and the contents of a packet."""
        if self.state is not TaskState.SUCCEEDED or self.progress is not None:
            return packets.DONE, Reply(self.state, self.value, pid, self.started_ns, self.progress).in_parts()
        if type(self.value) is bytes and len(self.value) <= LARGE:
            return packets.VALUE, b"%b%b" % (_STARTED.pack(self.started_ns), self.value)
        return packets.VALUE, in_envelope(_STARTED.pack(self.started_ns), self.value)


def unpack_value(data: Any) -> tuple[int, Any]:
    """Of a VALUE: when the call began, and the pickled result."""
    envelope, inner = opened(data)
    return _STARTED.unpack_from(envelope)[0], memoryview(envelope)[_STARTED.size :] if inner is None else inner


def plain_value(data: bytes) -> tuple[int, Any]:
    """The same of one that is data alone, and with the result."""
    return _STARTED.unpack_from(data)[0], pickle.loads(data[_STARTED.size :])


def brief(function: int, id: str, task: Packed) -> Packed:
    """A request whose handler a worker keeps, first attempt, without limit, context and listeners. An ASCII id."""
    if type(task) is bytes and len(task) <= LARGE:
        return b"%b%b%b" % (_BRIEF.pack(function, len(id)), id.encode("ascii"), task)
    return in_envelope(b"%b%b" % (_BRIEF.pack(function, len(id)), id.encode("ascii")), task)


def unpack_brief(number: int, data: Any) -> Request:
    """The same as a request; its type is the task's."""
    envelope, inner = opened(data)
    function, length = _BRIEF.unpack_from(envelope)
    end = _BRIEF.size + length
    id = str(envelope[_BRIEF.size : end], "ascii")
    task = memoryview(envelope)[end:] if inner is None else inner
    return Request(number, id, None, 1, None, _NO_CONTEXT, task, ("", function), None)


def carry_out(
    request: Request,
    begin: Callable[[Request, Call], bool],
    announce: "Callable[[int, Progress], None] | None",
    marks: SignalMarks | None,
    load: Callable[[Request], "tuple[Handler, tuple[Restore, ...]]"],
) -> Done:
    """Run a call; see `perform`."""
    started_ns = _clock.monotonic_ns()
    current = CurrentTask(
        request.id,
        request.type,
        request.attempt,
        None if request.timeout is None else started_ns / 1e9 + request.timeout,
        None if announce is None else lambda progress: announce(request.number, progress),
    )
    try:
        handler, functions = load(request)
        task = _codec.loads(request.task)
        current.type = checked_type(task)
        call = Call(
            handler,
            task,
            current,
            functions,
            request.context,
            contextvars.Context() if request.variables is None else context_with(request.variables),
            run_async,
            marks,
        )
    except BaseException as error:
        state, value = TaskState.FAILED, _codec.pack_error(error)
    else:
        if begin(request, call):
            state, value = _packed(call.run())
        else:
            state, value = TaskState.CANCELLED, _codec.pack_error(TaskCancelled("cancelled before it began"))
    return Done(state, value, started_ns, _last_progress(current))


def _last_progress(current: CurrentTask) -> PackedProgress | None:
    progress = current._progress
    if progress is None:
        return None
    try:
        return pack_progress(progress)
    except BaseException:  # reported between two announcements, so that nobody has refused it yet
        return progress.done, progress.total, progress.stage, None


def _packed(outcome: Outcome) -> tuple[TaskState, Any]:
    if outcome.error is not None:
        return outcome.state, _codec.pack_error(outcome.error)
    try:
        return TaskState.SUCCEEDED, _codec.pack_or_refuse(
            outcome.value, "result", ResultNotSerializableError, borrow=True
        )
    except BaseException as error:  # a __reduce__ may raise anything
        return TaskState.FAILED, _codec.pack_error(error)


def leave_if_forked(pid: int) -> None:
    """A handler that forked returns in both processes; the child must not answer too, nor read calls."""
    if os.getpid() != pid:
        leave()


def run_async(main: Any, /, *, context: contextvars.Context) -> Any:
    """Run a coroutine in the one event loop that the calling process keeps for handlers.

    Source: a kept runner costs 28 us a call where `asyncio.run` costs 177 us (measured on Python 3.11).
    """
    import asyncio

    global _runner
    runner, _runner = _runner or asyncio.Runner(), None  # kept only if the handler leaves it whole
    try:
        result = runner.run(main, context=context)
    except TaskCancelled:  # raised into the loop by force: it may be anywhere
        close_struck(runner)
        raise
    except BaseException:
        _runner = runner
        raise
    _runner = runner
    return result
