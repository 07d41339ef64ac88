"""A chunk of tasks in a worker: the handler is called with one after the other, and each result is written down.

What one task does not get here, compared with a call of its own, is a handle, a limit, a listener, or progress that
anybody sees; `map` gives such tasks calls of their own. It has its own context variables, its own id, and its own
error.

Holds: results are in the journal, in order, before the next task begins. A chunk that is to stop does so between two
tasks, or within one, which then has no result.
"""

import contextvars
import marshal
import pickle
import struct
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from taskback import _clock, _codec
from taskback._call import NOT_AWAITABLE, Call, Handler, SignalMarks, is_awaitable
from taskback._chunk import BRIEF, FAILED, PLAIN, unpack_tasks
from taskback._errors import ResultNotSerializableError, TaskCancelled
from taskback._task import CurrentTask, checked_type, running_task
from taskback.pools.child import calls, journal
from taskback.pools.child.functions import packed_error
from taskback.pools.child.journal import Journal

_FACTS: Final = struct.Struct("<QQBB")


class Facts(NamedTuple):
    """What is said of a chunk beside its results: begin and end on the monotonic clock, and what they are."""

    started_ns: int
    ended_ns: int
    stopped: bool  # before it was done
    whole: bool  # the results are a pickled list of plain values, not records


class _Current(CurrentTask):
    """The task of a chunk that its handler is at."""

    __slots__ = ("_chunk", "number")

    def __init__(self, chunk: str, type: str | None) -> None:
        super().__init__(type=type)
        self._chunk = chunk
        self.number = 0

    @property
    def id(self) -> str:  # a field there
        return f"{self._chunk}.{self.number}"

    @id.setter
    def id(self, value: str) -> None:
        """It is made when somebody asks."""


class ChunkCall:
    """The calls of a chunk's handler, as the signal's handler sees them."""

    def __init__(
        self, handler: Handler, packed: list[Any], id: str, kept: Journal, send: Callable[[bytes], None]
    ) -> None:
        self._handler = handler
        self._tasks = unpack_tasks(packed)
        self._kept = kept
        self._send = send
        self.results: list[Any] = []  # as long as all are plain
        self.all_plain = True
        self._marks = SignalMarks()
        self._waiting: Call | None = None  # for an async handler's result
        self.current = _Current(id, _type_of(packed))

    def run(self) -> bool:
        """Call the handler with each task; True if it was stopped."""
        stopped = False
        try:
            try:
                self._marks.enter()
                self._run()
            except BaseException:  # the exception that stops it; what handlers raise is written down
                stopped = True
            self._marks.leave()
        except BaseException:  # that came between the last task's end and the mark
            self._marks.leave()
            stopped = True
        return stopped or self.current._cancelled

    def _run(self) -> None:
        handler, current, add, note = self._handler, self.current, self._kept.add, self.results.append
        clean = contextvars.Context()
        clean.run(running_task.set, current)
        variables = clean.copy
        brief = marshal.dumps
        for task in self._tasks:
            try:
                result = variables().run(handler, task)
                kind = type(result)
                if kind in PLAIN:
                    data, flag = brief(result), BRIEF
                    note(result)
                else:
                    self.all_plain = False
                    if kind not in NOT_AWAITABLE and is_awaitable(result):
                        result = self._awaited(result)
                    data, flag = _codec.dumps_or_refuse(result, "result", ResultNotSerializableError), 0
            except BaseException as error:
                if current._cancelled:
                    raise
                self.all_plain = False
                data, flag = packed_error(error), FAILED
            if not add(data, flag):
                self._make_room(data, flag)
            if current._cancelled:
                raise TaskCancelled("the task is to stop")
            current.number += 1

    def _make_room(self, data: bytes, flag: int) -> None:
        """Send what is written down, and begin anew with this."""
        self.all_plain = False
        kept = self._kept
        self._send(kept.packed())
        kept.sent()
        if not kept.add(data, flag):
            self._send(journal.large(kept.number, data, flag))
            kept.skip()

    def _awaited(self, result: Any) -> Any:
        """Run an async handler to its end, under marks of its own."""
        self._marks.leave()
        variables = contextvars.Context()
        call = self._waiting = Call(
            lambda _: result, {}, self.current, (), {}, variables, calls.run_async, SignalMarks()
        )
        try:
            outcome = call.run()
        finally:
            self._waiting = None
        self._marks.enter()
        if outcome.error is not None:
            raise outcome.error
        return outcome.value

    def interrupt(self, firmly: bool) -> None:
        """In the signal's handler: stop it."""
        self.current._cancelled = True
        waiting = self._waiting
        if waiting is not None:
            waiting.interrupt(firmly)
        else:
            self._marks.strike(firmly)

    def waits_at(self) -> str:
        """Of an async handler: where it waits, as text."""
        waiting = self._waiting
        return "" if waiting is None else waiting.waits_at()


def pack(facts: Facts, records: bytes) -> bytes:
    """A reply."""
    return _FACTS.pack(*facts) + records


def unpack(data: Any) -> tuple[Facts, memoryview]:
    """What was packed.

    Raises:
        ValueError: No chunk was answered by this.
    """
    if len(data) < _FACTS.size:
        raise ValueError(f"{len(data)} bytes are no answer of a chunk")
    return Facts(*_FACTS.unpack_from(data)), memoryview(data)[_FACTS.size :]


def carry_out(
    request: calls.Request,
    kept: Journal,
    begin: Callable[[calls.Request, Any], bool],
    send: Callable[[bytes], None],
    handler: Handler,
) -> bytes:
    """Run a chunk.

    Args:
        request (Request): Its `task` is a pickled list of tasks.
        kept (Journal): Where results are written down.
        begin (Callable[[Request, ChunkCall], bool]): Told that the first handler is about to be called; False calls it
            off.
        send (Callable[[bytes], None]): Sends what the journal has no room for.
        handler (Handler): What is called.

    Returns:
        bytes: The reply.
    """
    started_ns = _clock.monotonic_ns()
    kept.begin(request.number)
    call = ChunkCall(handler, _codec.loads(request.task), request.id, kept, send)
    stopped = not begin(request, call) or call.run()
    whole = call.all_plain and not stopped
    results = pickle.dumps(call.results, _codec.PROTOCOL) if whole else kept.packed()
    return pack(Facts(started_ns, _clock.monotonic_ns(), stopped, whole), results)


def _type_of(packed: list[Any]) -> str | None:
    return checked_type(next(unpack_tasks(packed[:1])))
