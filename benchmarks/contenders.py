"""Who is measured: one adapter for each kind of pool, so that a row need not know which it has.

A contender is opened with the function that its workers are to call with a task, and has two workers. What it `can` do
are the names of its methods that work:

- `submit`: hand over a task; gives what to call for its result. `call`: the same and wait.
- `begin`: hand over a task in asyncio; gives an awaitable that is under way. `gather`: await many, in its own loop.
- `map`: the results of many, in order.
- `recycle`: it can be opened with a fresh process for each task.

A package is imported when its contender is loaded, so that one which is missing is missed by nobody else.
"""

import asyncio
import contextlib
import importlib
import importlib.metadata
import multiprocessing
import multiprocessing.pool
from collections.abc import Awaitable, Callable, Iterable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any, ClassVar, Final, Self, TypeVar

from benchmarks import work
from taskback import ProcessPoolTaskBackend, TaskBackend, ThreadPoolTaskBackend
from taskback.pools import ProcessPool, ThreadPool

WORKERS: Final = 2

T = TypeVar("T")
Function = Callable[[dict[str, Any]], Any]
Tasks = Sequence[dict[str, Any]]


class CannotError(Exception):
    """A contender lacks what a row needs, as its text says."""


class Contender:
    """A kind of pool.

    Args:
        function (Callable[[dict], Any]): What its workers call; importable.
        recycle (bool): Each task in a fresh process.
    """

    can: frozenset[str] = frozenset()
    package: ClassVar[str | None] = None  # the distribution; None for what is there anyway
    chunks: ClassVar[tuple[int | None, ...]] = (None,)  # the sizes that `map` is tried with; None leaves it to the pool

    def __init__(self, function: Function, recycle: bool = False) -> None:
        self.function = function
        self.recycle = recycle
        self._stack = contextlib.ExitStack()
        self._runner: asyncio.Runner | None = None

    @classmethod
    def load(cls) -> Any:
        """Import what it needs."""
        return None

    @classmethod
    def version(cls) -> str | None:
        """Of its package."""
        return cls.package and importlib.metadata.version(cls.package)

    def __enter__(self) -> Self:
        self.opened = self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def open(self) -> Any:
        """Make the pool; what it needs to be closed goes on the stack."""
        raise NotImplementedError

    def submit(self, task: dict[str, Any]) -> Callable[[], Any]:
        """Hand over a task; what is given waits for its result."""
        raise CannotError("it takes no single tasks from a thread")

    def call(self, task: dict[str, Any]) -> Any:
        """Hand over a task and wait for its result."""
        return self.submit(task)()

    async def begin(self, task: dict[str, Any]) -> Awaitable[Any]:
        """Hand over a task in asyncio."""
        raise CannotError("it is not for asyncio")

    async def gather(self, tasks: Tasks) -> list[Any]:
        """Await the results of tasks, all under way at once."""
        begun = [await self.begin(task) for task in tasks]
        return [await each for each in begun]

    def map(self, tasks: Tasks, chunk: int | None) -> Iterable[Any]:
        """The results, in order."""
        raise CannotError("it has no map")

    def run(self, main: Callable[[], Awaitable[T]]) -> T:
        """Run a coroutine function in an event loop of the contender's kind."""
        if self._runner is None:
            self._runner = self._stack.enter_context(asyncio.Runner())

        async def entered() -> T:
            return await main()

        return self._runner.run(entered())


# --- ours ---


class _Backend(Contender):
    can = frozenset({"submit", "call", "begin", "gather", "map", "recycle"})
    kind: ClassVar[type[TaskBackend]]
    warm = True  # whether its workers are there when it is open

    def open(self) -> Any:
        make: Callable[..., Any] = self.kind
        options = {"max_tasks_per_child": 1} if self.recycle else {}
        backend = make(self.function, max_workers=WORKERS, **options)
        backend.initialize_sync(warm=self.warm)
        self._stack.callback(backend.shutdown_sync)
        return backend

    def submit(self, task: dict[str, Any]) -> Callable[[], Any]:
        result: Callable[[], Any] = self.opened.submit_sync(task).result
        return result

    async def begin(self, task: dict[str, Any]) -> Awaitable[Any]:
        handle: Awaitable[Any] = await self.opened.submit(task)
        return handle

    def map(self, tasks: Tasks, chunk: int | None) -> Iterable[Any]:
        results: Iterable[Any] = self.opened.map(tasks)
        return results


class Backend(_Backend):
    """`taskback.ProcessPoolTaskBackend`."""

    kind = ProcessPoolTaskBackend


class ThreadBackend(_Backend):
    """`taskback.ThreadPoolTaskBackend`."""

    kind = ThreadPoolTaskBackend


class _Executor(Contender):
    """Whatever is a `concurrent.futures.Executor`."""

    can = frozenset({"submit", "call", "begin", "gather", "map"})
    chunks: ClassVar[tuple[int | None, ...]] = (100, 1_000, 4_000, 20_000)

    def make(self) -> Executor:
        """The executor, before it is entered."""
        raise NotImplementedError

    def open(self) -> Any:
        return self._stack.enter_context(self.make())

    def submit(self, task: dict[str, Any]) -> Callable[[], Any]:
        result: Callable[[], Any] = self.opened.submit(self.function, task).result
        return result

    async def begin(self, task: dict[str, Any]) -> Awaitable[Any]:
        return asyncio.get_running_loop().run_in_executor(self.opened, self.function, task)

    def map(self, tasks: Tasks, chunk: int | None) -> Iterable[Any]:
        results: Iterable[Any] = self.opened.map(self.function, tasks, chunksize=chunk)
        return results


class Pool(_Executor):
    """`taskback.pools.ProcessPool`."""

    can = _Executor.can | {"recycle"}

    def make(self) -> Executor:
        """As it says."""
        return ProcessPool(WORKERS, max_tasks_per_child=1 if self.recycle else None)


class OurThreads(_Executor):
    """`taskback.pools.ThreadPool`."""

    def make(self) -> Executor:
        """As it says."""
        return ThreadPool(WORKERS)


# --- the standard library's ---


class Stock(_Executor):
    """`ProcessPoolExecutor` as it comes; with a fresh process for each task that is by spawn, up to 3.13."""

    can = _Executor.can | {"recycle"}
    method: ClassVar[str | None] = None

    def make(self) -> Executor:
        """As it says."""
        context = None if self.method is None else multiprocessing.get_context(self.method)
        return ProcessPoolExecutor(WORKERS, context, max_tasks_per_child=1 if self.recycle else None)


class StockForkserver(Stock):
    """The same, of the start method that Python 3.14 takes by itself."""

    method = "forkserver"


class StockThreads(_Executor):
    """`ThreadPoolExecutor`."""

    def make(self) -> Executor:
        """As it says."""
        return ThreadPoolExecutor(WORKERS)


class StockPool(Contender):
    """`multiprocessing.Pool`."""

    can = frozenset({"submit", "call", "map", "recycle"})
    chunks = _Executor.chunks

    def open(self) -> Any:
        return self._stack.enter_context(multiprocessing.Pool(WORKERS, maxtasksperchild=1 if self.recycle else None))

    def submit(self, task: dict[str, Any]) -> Callable[[], Any]:
        result: Callable[[], Any] = self.opened.apply_async(self.function, (task,)).get
        return result

    def map(self, tasks: Tasks, chunk: int | None) -> Iterable[Any]:
        # With maxtasksperchild a chunk counts as one task.
        results: Iterable[Any] = self.opened.map(self.function, tasks, chunk)
        return results


# --- other people's ---


class Loky(_Executor):
    """`loky.ProcessPoolExecutor`."""

    package = "loky"

    @classmethod
    def load(cls) -> Any:
        """Import it."""
        return importlib.import_module("loky")

    def make(self) -> Executor:
        """As it says."""
        executor: Executor = self.load().ProcessPoolExecutor(WORKERS)
        return executor

    async def begin(self, task: dict[str, Any]) -> Awaitable[Any]:
        return asyncio.wrap_future(self.opened.submit(self.function, task))


class Pebble(_Executor):
    """`pebble.ProcessPool`."""

    can = _Executor.can | {"recycle"}
    package = "Pebble"

    @classmethod
    def load(cls) -> Any:
        """Import it."""
        return importlib.import_module("pebble")

    def open(self) -> Any:
        pool = self.load().ProcessPool(WORKERS, max_tasks=int(self.recycle))
        self._stack.callback(pool.join)
        self._stack.callback(pool.close)
        return pool

    def submit(self, task: dict[str, Any]) -> Callable[[], Any]:
        result: Callable[[], Any] = self.opened.schedule(self.function, (task,)).result
        return result

    async def begin(self, task: dict[str, Any]) -> Awaitable[Any]:
        return asyncio.wrap_future(self.opened.schedule(self.function, (task,)))

    def map(self, tasks: Tasks, chunk: int | None) -> Iterable[Any]:
        results: Iterable[Any] = self.opened.map(self.function, tasks, chunksize=chunk).result()
        return results


class Deadpool(_Executor):
    """`deadpool.Deadpool`, with room for all that comes: where its queue is full, `submit` would block."""

    can = _Executor.can | {"recycle"}
    package = "deadpool-executor"
    chunks = (1_000,)

    @classmethod
    def load(cls) -> Any:
        """Import it."""
        return importlib.import_module("deadpool")

    def make(self) -> Executor:
        """As it says."""
        executor: Executor = self.load().Deadpool(
            WORKERS, max_tasks_per_child=1 if self.recycle else None, max_backlog=10_000_000
        )
        return executor


class Mpire(Contender):
    """`mpire.WorkerPool`, kept alive between calls."""

    can = frozenset({"submit", "call", "map", "recycle"})
    package = "mpire"
    chunks = _Executor.chunks

    @classmethod
    def load(cls) -> Any:
        """Import it."""
        return importlib.import_module("mpire")

    def open(self) -> Any:
        return self._stack.enter_context(self.load().WorkerPool(WORKERS, keep_alive=True))

    def __init__(self, function: Function, recycle: bool = False) -> None:
        super().__init__(function, recycle)
        if recycle:  # what its workers live for is said to map alone
            self.can = frozenset({"map"})

    def submit(self, task: dict[str, Any]) -> Callable[[], Any]:
        result: Callable[[], Any] = self.opened.apply_async(self.function, (task,)).get
        return result

    def map(self, tasks: Tasks, chunk: int | None) -> Iterable[Any]:
        options = {"worker_lifespan": 1, "chunk_size": 1} if self.recycle else {"chunk_size": chunk}
        arguments = ((task,) for task in tasks)  # a dict would be taken for keyword arguments
        results: Iterable[Any] = self.opened.map(self.function, arguments, iterable_len=len(tasks), **options)
        return results


class Joblib(Contender):
    """`joblib.Parallel`, kept open between calls; it takes lists, so a single call is a list of one."""

    can = frozenset({"call", "map"})
    package = "joblib"

    @classmethod
    def load(cls) -> Any:
        """Import it."""
        return importlib.import_module("joblib")

    def open(self) -> Any:
        self._delayed = self.load().delayed(self.function)
        return self._stack.enter_context(self.load().Parallel(WORKERS))

    def call(self, task: dict[str, Any]) -> Any:
        return self.opened([self._delayed(task)])[0]

    def map(self, tasks: Tasks, chunk: int | None) -> Iterable[Any]:
        results: Iterable[Any] = self.opened(map(self._delayed, tasks))
        return results


class AioMultiprocess(Contender):
    """`aiomultiprocess.Pool`, whose workers run coroutine functions alone."""

    can = frozenset({"begin", "gather", "map", "recycle"})
    package = "aiomultiprocess"

    @classmethod
    def load(cls) -> Any:
        """Import it."""
        return importlib.import_module("aiomultiprocess")

    def open(self) -> Any:
        pool = self.load().Pool

        async def enter() -> Any:
            return await pool(WORKERS, maxtasksperchild=int(self.recycle)).__aenter__()

        async def leave() -> None:
            await self.opened.__aexit__(None, None, None)

        opened = self.run(enter)
        self._stack.callback(self.run, leave)
        return opened

    async def begin(self, task: dict[str, Any]) -> Awaitable[Any]:
        result: Awaitable[Any] = asyncio.ensure_future(self.opened.apply(work.called, (self.function, task)))
        return result

    def map(self, tasks: Tasks, chunk: int | None) -> Iterable[Any]:
        async def main() -> Iterable[Any]:
            results: Iterable[Any] = await self.opened.map(partial(work.called, self.function), tasks)
            return results

        return self.run(main)


class AnyIO(Contender):
    """`anyio.to_process.run_sync`, in asyncio."""

    can = frozenset({"begin", "gather"})
    package = "anyio"

    @classmethod
    def load(cls) -> Any:
        """Import it."""
        return importlib.import_module("anyio"), importlib.import_module("anyio.to_process")

    def open(self) -> Any:
        return self.load()

    def run(self, main: Callable[[], Awaitable[T]]) -> T:
        """In a loop of its own: it ends its workers with the coroutine that the loop was started for."""
        anyio, self._to_process = self.opened

        async def limited() -> T:
            self._limiter = anyio.CapacityLimiter(WORKERS)
            return await main()

        with asyncio.Runner() as runner:
            return runner.run(limited())

    async def begin(self, task: dict[str, Any]) -> Awaitable[Any]:
        call = self._to_process.run_sync(self.function, task, limiter=self._limiter)
        result: Awaitable[Any] = asyncio.ensure_future(call)
        return result


class TrioParallel(Contender):
    """`trio_parallel.run_sync`, in trio; its workers outlive the loop."""

    can = frozenset({"gather"})
    package = "trio-parallel"

    @classmethod
    def load(cls) -> Any:
        """Import it."""
        return importlib.import_module("trio"), importlib.import_module("trio_parallel")

    def open(self) -> Any:
        return self.load()

    def run(self, main: Callable[[], Awaitable[T]]) -> T:
        """In trio."""
        trio, _ = self.opened
        result: T = trio.run(main)
        return result

    async def gather(self, tasks: Tasks) -> list[Any]:
        """Each in a task of a nursery."""
        trio, trio_parallel = self.opened
        limiter = trio.CapacityLimiter(WORKERS)
        results: list[Any] = [None] * len(tasks)

        async def one(number: int) -> None:
            results[number] = await trio_parallel.run_sync(self.function, tasks[number], limiter=limiter)

        async with trio.open_nursery() as nursery:
            for number in range(len(tasks)):
                nursery.start_soon(one, number)
        return results


KINDS: Final[dict[str, type[Contender]]] = {
    "backend": Backend,
    "pool": Pool,
    "stock": Stock,
    "stock-forkserver": StockForkserver,
    "mp.Pool": StockPool,
    "loky": Loky,
    "pebble": Pebble,
    "deadpool": Deadpool,
    "mpire": Mpire,
    "aiomultiprocess": AioMultiprocess,
    "anyio": AnyIO,
    "trio-parallel": TrioParallel,
    "joblib": Joblib,
    "thread-backend": ThreadBackend,
    "thread-pool": OurThreads,
    "stock-threads": StockThreads,
}
PACKAGED: Final = frozenset(name for name, kind in KINDS.items() if kind.package)


def made(name: str, function: Function, *needs: str, recycle: bool = False) -> Contender:
    """A contender, not yet opened.

    Args:
        name (str): One of `KINDS`.
        function (Callable[[dict], Any]): What its workers call.
        *needs (str): What it must be able to do; one of them is enough.
        recycle (bool): Each task in a fresh process.

    Raises:
        CannotError: It cannot do that, or it is not installed.
    """
    kind = KINDS[name]
    if recycle and "recycle" not in kind.can:
        raise CannotError("it cannot replace its workers after each task")
    if needs and kind.can.isdisjoint(needs):
        raise CannotError(f"it has no {' or '.join(needs)}")
    try:
        kind.version()
        kind.load()
    except ImportError as error:  # PackageNotFoundError is one, too
        raise CannotError(f"it is not installed: {error}") from error
    return kind(function, recycle)
