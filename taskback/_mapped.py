"""`map` of a backend: tasks go in as they are wanted, results come out in order.

Where the backend says that nothing needs each task by itself (`_chunkable`), several travel as one chunk, whose size
follows what the last ones took: so the cost of handing over is shared, and no chunk keeps a worker, or those that wait
behind it, for long. What a chunk leaves undone, since its worker died, or since it could not be read there, is
submitted again, task by task where it is not known which one did it.

Threads: one at a time takes results. close() also where a garbage collection strikes, so it takes no lock there.
Holds: each task has one result, in its place. What was begun is cancelled once nobody takes results any more.
"""

import itertools
import marshal
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent.futures import CancelledError
from typing import Any, Final, Protocol

from taskback import _codec
from taskback._again import Defer, Retry
from taskback._chunk import BRIEF, FAILED, MOST, Chunk
from taskback._handle import TaskHandle
from taskback._options import checked_count
from taskback._task import Task

CHUNK_SECONDS: Final = 0.005  # that a chunk is to take
CHUNK_BYTES: Final = 49_152  # that it is to have at most
CHUNKS_AHEAD: Final = 2  # a worker
AHEAD: Final = 64  # tasks that go by themselves, a worker


class Source(Protocol):
    """A backend, as far as its `map` needs it."""

    def _chunkable(self, task: Task) -> bool:
        """Whether a task may travel in a chunk; raises what `submit` would raise of its type."""
        ...

    def _submit_chunk(self, tasks: list[Task]) -> TaskHandle:
        """Submit a chunk of tasks of one type, each of which is chunkable."""
        ...

    def _worker_count(self) -> int:
        """How many tasks it may run at a time."""
        ...

    def _drop(self, handles: list[TaskHandle]) -> None:
        """Cancel these, soon and on another thread. Takes no lock."""
        ...

    async def submit(self, task: Task) -> Any: ...

    def submit_sync(self, task: Task) -> Any: ...


class _Piece:
    """A part of the row: a chunk or a task that was submitted, tasks that are to be, or results."""

    __slots__ = ("handle", "results", "tasks")

    def __init__(self, tasks: list[Task], handle: Any = None, results: list[Any] | None = None) -> None:
        self.tasks = tasks
        self.handle = handle
        self.results = results

    @property
    def is_unsent(self) -> bool:
        """Whether its tasks are to be submitted, each by itself."""
        return self.handle is None and self.results is None


class _Failed:
    """An error in the place of a result."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class Mapped(Iterator[Any], AsyncIterator[Any]):
    """The results of `TaskBackend.map`, in the order of the tasks; an iterator, and an async one.

    A task that failed raises its error in its place; whoever goes on after that gets the results of the others.
    """

    def __init__(
        self, backend: Source, tasks: Iterable[Task], chunksize: int | None, buffersize: int | None, as_results: bool
    ) -> None:
        self._chunksize = None if chunksize is None else min(MOST, checked_count("chunksize", chunksize, least=1))
        self._buffersize = None if buffersize is None else checked_count("buffersize", buffersize, least=1)
        self._backend = backend
        self._tasks = iter(tasks)
        self._next: list[Task] = []  # taken from there, and not submitted yet
        self._as_results = as_results
        self._size = 1  # of the next chunk
        self._bytes = 1.0  # that a task has been pickled to, lately
        self._flying: deque[_Piece] = deque()
        self._in_flight = 0  # tasks in there
        self._ready: deque[Any] = deque()

    # --- taking ---

    def __iter__(self) -> "Mapped":
        return self

    def __next__(self) -> Any:
        ready = self._ready
        while not ready:
            self._fill()
            if not self._flying:
                raise StopIteration
            piece = self._flying[0]  # taken out once it is known: a wait may be interrupted
            if piece.is_unsent:
                self._put_in_its_place([self._submitted(task) for task in piece.tasks])
            else:
                self._open(piece, self._waited_for(piece))
        result = ready.popleft()
        return self._give(result) if type(result) is _Failed else result

    def __aiter__(self) -> "Mapped":
        return self

    async def __anext__(self) -> Any:
        ready = self._ready
        while not ready:
            await self._fill_async()
            if not self._flying:
                raise StopAsyncIteration
            piece = self._flying[0]
            if piece.is_unsent:
                self._put_in_its_place([await self._submitted_async(task) for task in piece.tasks])
                continue
            if isinstance(piece.handle, TaskHandle):
                await piece.handle._until_done(cancels=False)
            self._open(piece, self._waited_for(piece))
        return self._give(ready.popleft())

    def _give(self, result: Any) -> Any:
        if type(result) is not _Failed:
            return result
        if self._as_results:
            return result.error
        try:
            raise result.error
        finally:
            del result  # an error's traceback holds this frame

    def close(self) -> None:
        """Take no more tasks, and cancel those that were begun; done by itself when nobody refers to this any more."""
        self._tasks = iter(())
        self._next = []
        self._ready.clear()
        handles = [piece.handle for piece in self._flying if isinstance(piece.handle, TaskHandle)]
        self._flying.clear()
        self._in_flight = 0
        if handles:
            self._backend._drop(handles)

    def __del__(self) -> None:
        if "_ready" in self.__dict__:  # its arguments were good
            self.close()

    # --- submitting ---

    def _fill(self) -> None:
        while (tasks := self._more()) is not None:
            if not self._add_chunk(tasks):
                for task in tasks:
                    self._add(self._submitted(task))

    async def _fill_async(self) -> None:
        while (tasks := self._more()) is not None:
            if not self._add_chunk(tasks):
                for task in tasks:
                    self._add(await self._submitted_async(task))

    def _submitted(self, task: Task) -> _Piece:
        try:
            return _Piece([task], self._backend.submit_sync(task))
        except Exception as error:
            return _Piece([task], results=[_Failed(error)])

    async def _submitted_async(self, task: Task) -> _Piece:
        try:
            return _Piece([task], await self._backend.submit(task))
        except Exception as error:
            return _Piece([task], results=[_Failed(error)])

    def _add(self, piece: _Piece) -> None:
        self._flying.append(piece)
        self._in_flight += len(piece.tasks)

    def _more(self) -> list[Task] | None:
        """The tasks that are to be submitted next, together if they can be; None if there are none, or not now."""
        size = self._chunksize or self._size
        if self._buffersize is not None:
            share = max(1, self._buffersize // self._backend._worker_count())
            size = min(size, share, self._buffersize - self._in_flight)
            if size < 1:
                return None
        elif self._in_flight >= self._most_in_flight(size):
            return None
        if len(self._next) < size:
            self._next += itertools.islice(self._tasks, size - len(self._next))
        if not self._next:
            return None
        tasks, self._next = self._next[:size], self._next[size:]
        return tasks

    def _most_in_flight(self, size: int) -> int:
        return self._backend._worker_count() * max(AHEAD if size == 1 else 0, CHUNKS_AHEAD * size)

    def _add_chunk(self, tasks: list[Task]) -> bool:
        """Submit the first of these that can travel together as a chunk; the others are next. False if none can."""
        try:
            if set(map(type, tasks)) != {dict}:
                return False
            kind = tasks[0].get("type")
            if any(task.get("type") != kind for task in tasks):
                same = list(itertools.takewhile(lambda task: task.get("type") == kind, tasks))
                tasks, self._next = same, tasks[len(same) :] + self._next
            piece = self._chunk(tasks)
        except Exception:  # whatever it was of, that task has it when it is submitted by itself
            return False
        if piece is not None:
            self._add(piece)
        return piece is not None

    def _chunk(self, tasks: list[Task]) -> _Piece | None:
        if not self._backend._chunkable(tasks[0]):
            return None
        handle = self._backend._submit_chunk(tasks)
        self._bytes = max(1.0, handle._run.size / len(tasks))
        return _Piece(tasks, handle)

    # --- what came of it ---

    @staticmethod
    def _waited_for(piece: _Piece) -> Any:
        """Results of its tasks, a chunk, or the error of all of it."""
        if piece.results is not None:
            return piece.results
        handle = piece.handle
        if not isinstance(handle, TaskHandle):  # a host's own backend gives what it likes
            return [handle]
        try:
            result = handle.result()
            return [result] if handle._run.chunk is None else handle._run.chunk
        except BaseException as error:
            if not handle.done():
                raise
            return [_Failed(error)] if handle._run.chunk is None else _Failed(error)

    def _open(self, piece: _Piece, outcome: Any) -> None:
        """The first piece has come to this."""
        if not self._flying or self._flying[0] is not piece:  # closed meanwhile
            return
        if type(outcome) is list:
            self._flying.popleft()
            self._in_flight -= len(piece.tasks)
            self._ready.extend(outcome)
            return
        chunk: Chunk = piece.handle._run.chunk
        left = piece.tasks[chunk.ended :]
        pieces = _pieces_of(chunk, piece.tasks)
        if type(outcome) is not _Failed:
            self._learn(chunk)
            if left:
                pieces.append(self._again(left))
        elif isinstance(outcome.error, CancelledError):
            pieces.append(_Piece(left, results=[outcome] * len(left)))
        else:  # which of its tasks it was that did this is not known
            pieces.append(_Piece(left))
        self._put_in_its_place(pieces)

    def _put_in_its_place(self, pieces: list[_Piece]) -> None:
        """In the place of the first piece come these."""
        self._flying.popleft()
        self._flying.extendleft(reversed(pieces))

    def _again(self, tasks: list[Task]) -> _Piece:
        """Those of a chunk whose worker has died before them."""
        try:
            return self._chunk(tasks) or _Piece(tasks)
        except Exception:
            return _Piece(tasks)

    def _learn(self, chunk: Chunk) -> None:
        """Have the next chunk take what it is to take."""
        if chunk.seconds:
            fitting = int(CHUNK_SECONDS * chunk.count / chunk.seconds)
            self._size = max(1, min(4 * self._size, fitting, int(CHUNK_BYTES / self._bytes), MOST))


def _pieces_of(chunk: Chunk, tasks: list[Task]) -> list[_Piece]:
    """What is known of a chunk's tasks, in order; one that asked to be called again is to be submitted."""
    if chunk.whole is not None:
        return [_Piece(tasks, results=chunk.whole)]
    results: list[Any] = []
    for flag, data in chunk.records():
        try:
            value = marshal.loads(data) if flag == BRIEF else _codec.loads(data)
            results.append(_Failed(_codec.unpack_error(value)) if flag == FAILED else value)
        except BaseException as error:  # rebuilding it is user code
            results.append(_Failed(_codec.not_rebuilt(error)))
    if chunk.lost is not None:
        results.append(_Failed(chunk.lost))
    again = [at for at, result in enumerate(results) if type(result) is _Failed and _asks_again(result.error)]
    pieces: list[_Piece] = []
    begin = 0
    for at in again:
        pieces += (_Piece(tasks[begin:at], results=results[begin:at]), _Piece([tasks[at]]))
        begin = at + 1
    return [*pieces, _Piece(tasks[begin : len(results)], results=results[begin:])]


def _asks_again(error: BaseException) -> bool:
    return isinstance(error, (Retry, Defer))
