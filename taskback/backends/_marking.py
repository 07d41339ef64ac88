"""Which tasks are running, written where it survives the program: a table of marks in a file that all map.

A mark must be there before the handler is called, or a task that kills the program at once would never be charged for
it; and it must cost little, for there are two a task. So it is no row of the journal, but 16 bytes of a mapped file:
no system call, and what is in the page cache outlives every process (not a power cut, for which no task is to blame).

A mark is a hash of the task's id under a key of this life of the program; where it lies follows from it. So nobody
assigns places, and worker processes mark as threads do.

Holds: who is found marked has been called and has not ended; nobody is charged in error. Who runs may be missed, if
another one with the same place began or ended meanwhile: 1 in 65,536 for each of those. The key is another one in each
life, so that chance does not strike the same task again, and what is left in the table from lives before means nothing.
"""

import hashlib
import mmap
import os
from collections.abc import Callable
from typing import Any, Final

from taskback._call import Handler, is_awaitable
from taskback._router import TaskRouter
from taskback._task import Task, running_task
from taskback.pools import _os

PLACES: Final = 1 << 16
WIDTH: Final = 16  # bytes of a mark
SIZE: Final = PLACES * WIDTH
NOTHING: Final = bytes(WIDTH)


def make_table(path: str) -> None:
    """Make the file, or have it be whole; its blocks are there then, so that no mark finds the disk full."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
    try:
        missing = SIZE - os.fstat(fd).st_size
        os.lseek(fd, SIZE - missing, os.SEEK_SET)
        while missing > 0:
            missing -= os.write(fd, bytes(missing))
    finally:
        os.close(fd)


def _mapped(path: str) -> memoryview:
    """The table, for as long as somebody refers to it; it keeps no descriptor, where that can be helped."""
    fd = os.open(path, os.O_RDWR | getattr(os, "O_CLOEXEC", 0))
    try:
        if os.fstat(fd).st_size < SIZE:
            raise ValueError(f"{path} is shorter than {SIZE} bytes")
        memory = _os.map_memory(fd, SIZE, private=False) if _os.HAS_PACKETS else mmap.mmap(fd, SIZE)
        return memoryview(memory).cast("B")
    finally:
        os.close(fd)


class Marks:
    """The table, as one life of the program sees it. Threads: any. It travels to processes as its path and key."""

    def __init__(self, path: str, life: bytes) -> None:
        self._path = path
        self._life = life
        self._table: memoryview | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._path, self._life)

    def open(self) -> None:
        """Map the table now, and tell of it if that cannot be done."""
        self._table = _mapped(self._path)

    def drop(self) -> None:
        """Let go of the table; calls that are under way keep it until they end."""
        self._table = None

    def begin(self, task_id: str) -> Callable[[], None]:
        """A handler is about to be called; gives what says that it has ended."""
        table = self._table
        if table is None:
            try:
                table = self._table = _mapped(self._path)
            except (OSError, ValueError):  # the journal is closed, or descriptors have run out: then it goes unmarked
                return _nothing
        mark, at = self._mark(task_id)
        table[at : at + WIDTH] = mark
        pid = os.getpid()

        def end() -> None:
            if os.getpid() == pid:  # a fork that a handler made has no say in it
                table[at : at + WIDTH] = NOTHING

        return end

    def is_marked(self, task_id: str) -> bool:
        """Whether it was running when this life ended."""
        assert self._table is not None
        mark, at = self._mark(task_id)
        return self._table[at : at + WIDTH] == mark

    def _mark(self, task_id: str) -> tuple[bytes, int]:
        text = task_id.encode("utf-8", "surrogatepass")
        mark = hashlib.blake2b(text, digest_size=WIDTH, key=self._life).digest()
        return mark, int.from_bytes(mark[:2], "little") * WIDTH


def _nothing() -> None:
    return None


def marking(handler: Handler, marks: Marks) -> Handler:
    """The handler, which marks each call; a router stays one, for its policies are asked for."""
    return MarkingRouter(handler, marks) if isinstance(handler, TaskRouter) else Marking(handler, marks)


def unmarked(handler: Handler) -> Handler:
    """The handler that such a one was made of."""
    return handler.__wrapped__ if isinstance(handler, (Marking, MarkingRouter)) else handler


class Marking:
    """A handler that marks its calls. `inspect.unwrap` finds what it was made of."""

    def __init__(self, handler: Handler, marks: Marks) -> None:
        self.__wrapped__ = handler
        self._marks = marks

    def __call__(self, task: Task) -> Any:
        return _called(self.__wrapped__, task, self._marks)


class MarkingRouter(TaskRouter):
    """The same of a router; it shares its tables, so what is written down there later is found here."""

    def __init__(self, router: TaskRouter, marks: Marks) -> None:
        self.__dict__.update(vars(router))
        self.__wrapped__ = router
        self._marks = marks

    def __call__(self, task: Task) -> Any:
        return _called(self.__wrapped__, task, self._marks)


def _called(handler: Handler, task: Task, marks: Marks) -> Any:
    current = running_task.get()
    if current is None:
        return handler(task)
    end = marks.begin(current.id)
    over = True
    try:
        result = handler(task)
        if is_awaitable(result):
            over = False
            return _followed(result, end)
        return result
    finally:
        if over:
            end()


async def _followed(result: Any, end: Callable[[], None]) -> Any:
    try:
        return await result
    finally:
        end()
