"""Who is probed: one adapter for each kind of pool, so that a probe need not know which it has.

Each has two workers and its own defaults otherwise, and is used as its documentation says; where there are two ways to
do a thing, the one that does more. A call is a `concurrent.futures.Future`, whatever the kind. The body of a probe is
sync: pools for asyncio and trio have their loop in the main thread, as programs have, and the body beside it.

What a pool cannot do at all raises `CannotError`: that is no failure, it was never offered.
"""

import asyncio
import contextlib
import importlib
import importlib.metadata
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from typing import Any, ClassVar, Final, TypeVar

from conformance import work
from taskback import ProcessPoolTaskBackend, TaskBackend, ThreadPoolTaskBackend
from taskback.pools import ProcessPool, ThreadPool

WORKERS: Final = 2

T = TypeVar("T")
Call = Future[Any]
Function = Callable[..., Any]


class CannotError(Exception):
    """The contender does not offer what the probe is about, as its text says."""


class Contender:
    """A kind of pool, not open yet."""

    package: ClassVar[str | None] = None  # the distribution; None for what is there anyway
    module: ClassVar[str] = ""  # what is imported of it

    @classmethod
    def load(cls) -> Any:
        """Import it.

        Raises:
            ImportError: It is not installed.
        """
        return importlib.import_module(cls.module)

    def drive(self, body: Callable[[], T], *, closes: bool = False) -> T:
        """Open it and run the body.

        Args:
            body (Callable): Is run while it is open.
            closes (bool): Whether it is left afterwards as a `with` statement does; else it is forgotten.
        """
        raise NotImplementedError

    def submit(self, function: Function, *args: Any, timeout: float | None = None) -> Call:
        """Hand over a call, with a time limit in seconds where there is one."""
        raise NotImplementedError

    def cancel(self, call: Call) -> bool:
        """Stop a call that runs; what the pool says of it."""
        return call.cancel()

    async def awaited(self, function: Function, *args: Any) -> Any:
        """A call as a coroutine of asyncio."""
        raise NotImplementedError

    def cancel_awaiting(self, function: Function, args: tuple[Any, ...], begun: Callable[[], object]) -> None:
        """Await a call in a coroutine, and cancel that once `begun` has returned."""

        async def main() -> None:
            task = asyncio.ensure_future(self.awaited(function, *args))
            await asyncio.to_thread(begun)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

        asyncio.run(main())

    def shutdown(self, seconds: float) -> None:
        """Shut it down, in bounded time if it can."""
        raise NotImplementedError


class _Entered(Contender):
    """One that is opened by making it, and closed by a `with` statement."""

    def make(self) -> Any:
        """It, before it is entered."""
        raise NotImplementedError

    def drive(self, body: Callable[[], T], *, closes: bool = False) -> T:
        self.opened = self.make()
        if not closes:
            return body()
        with self.opened:
            return body()


# --- ours ---


class _Backend(_Entered):
    kind: ClassVar[type[TaskBackend]]

    def make(self) -> Any:
        make: Callable[..., Any] = self.kind
        return make(work.handle, max_workers=WORKERS)

    def submit(self, function: Function, *args: Any, timeout: float | None = None) -> Call:
        options = {} if timeout is None else {"timeout": timeout}
        call: Call = self.opened.submit_sync({"do": function, "args": args}, **options)
        return call

    async def awaited(self, function: Function, *args: Any) -> Any:
        return await self.opened.run({"do": function, "args": args})

    def shutdown(self, seconds: float) -> None:
        self.opened.shutdown_sync(seconds)


class Backend(_Backend):
    """`taskback.ProcessPoolTaskBackend`."""

    kind = ProcessPoolTaskBackend


class ThreadBackend(_Backend):
    """`taskback.ThreadPoolTaskBackend`."""

    kind = ThreadPoolTaskBackend


class _Executor(_Entered):
    """Whatever is a `concurrent.futures.Executor`."""

    def make(self) -> Executor:
        raise NotImplementedError

    def submit(self, function: Function, *args: Any, timeout: float | None = None) -> Call:
        if timeout is not None:
            raise CannotError("has no time limit")
        call: Call = self.opened.submit(function, *args)
        return call

    async def awaited(self, function: Function, *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.opened, function, *args)

    def shutdown(self, seconds: float) -> None:
        self.opened.shutdown(wait=False, cancel_futures=True)


class Pool(_Executor):
    """`taskback.pools.ProcessPool`."""

    def make(self) -> Executor:
        return ProcessPool(WORKERS)

    def shutdown(self, seconds: float) -> None:
        self.opened.terminate_workers()
        self.opened.shutdown()


class OurThreads(_Executor):
    """`taskback.pools.ThreadPool`."""

    def make(self) -> Executor:
        return ThreadPool(WORKERS)


# --- the others ---


class Stock(_Executor):
    """`concurrent.futures.ProcessPoolExecutor`, as it comes."""

    def make(self) -> Executor:
        return ProcessPoolExecutor(WORKERS)

    def shutdown(self, seconds: float) -> None:
        if sys.version_info >= (3, 14):
            self.opened.kill_workers()
        super().shutdown(seconds)


class Loky(_Executor):
    """`loky.ProcessPoolExecutor`."""

    package = "loky"
    module = "loky"

    def make(self) -> Executor:
        executor: Executor = self.load().ProcessPoolExecutor(WORKERS)
        return executor

    def shutdown(self, seconds: float) -> None:
        self.opened.shutdown(kill_workers=True)


class Pebble(_Entered):
    """`pebble.ProcessPool`."""

    package = "Pebble"
    module = "pebble"

    def make(self) -> Any:
        return self.load().ProcessPool(WORKERS)

    def submit(self, function: Function, *args: Any, timeout: float | None = None) -> Call:
        call: Call = self.opened.schedule(function, args, timeout=timeout)
        return call

    async def awaited(self, function: Function, *args: Any) -> Any:
        return await asyncio.wrap_future(self.submit(function, *args))

    def shutdown(self, seconds: float) -> None:
        self.opened.stop()
        self.opened.join(seconds)


class Deadpool(_Executor):
    """`deadpool.Deadpool`; a running call is stopped by a method of its own."""

    package = "deadpool-executor"
    module = "deadpool"

    def make(self) -> Executor:
        executor: Executor = self.load().Deadpool(WORKERS)
        return executor

    def submit(self, function: Function, *args: Any, timeout: float | None = None) -> Call:
        call: Call = self.opened.submit(function, *args, deadpool_timeout=timeout)
        return call

    def cancel(self, call: Call) -> bool:
        call.cancel_and_kill_if_running()  # type: ignore[attr-defined] # of its own futures
        return True


class Mpire(_Entered):
    """`mpire.WorkerPool`, kept alive between calls."""

    package = "mpire"
    module = "mpire"

    def make(self) -> Any:
        return self.load().WorkerPool(WORKERS, keep_alive=True)

    def submit(self, function: Function, *args: Any, timeout: float | None = None) -> Call:
        get = self.opened.apply_async(function, args, task_timeout=timeout).get
        call = Call()
        call.set_running_or_notify_cancel()

        def settle() -> None:
            try:
                call.set_result(get())
            except BaseException as error:
                call.set_exception(error)

        threading.Thread(target=settle, daemon=True).start()
        return call

    def cancel(self, call: Call) -> bool:
        raise CannotError("has no cancel")

    def cancel_awaiting(self, function: Function, args: tuple[Any, ...], begun: Callable[[], object]) -> None:
        raise CannotError("is not for asyncio")

    def shutdown(self, seconds: float) -> None:
        self.opened.terminate()


class _Looped(Contender):
    """One that lives in an event loop: the loop has the main thread, the body one of its own."""

    def drive(self, body: Callable[[], T], *, closes: bool = False) -> T:
        self._ended = threading.Event()
        outcome = Future[T]()
        done = Future[None]()  # the loop may end

        def run() -> None:
            try:
                outcome.set_result(body())
            except BaseException as error:
                outcome.set_exception(error)
            done.cancel()

        self._thread = threading.Thread(target=run, daemon=True)
        self._done = done
        self.loop(done, closes)
        self._ended.set()
        return outcome.result()  # after a shutdown the body goes on without the loop

    def loop(self, done: "Future[None]", closes: bool) -> None:
        """Run the loop with the pool open, start the body's thread in it, and return when the future is done."""
        raise NotImplementedError

    def shutdown(self, seconds: float) -> None:
        self._done.cancel()
        self._ended.wait()


class _AsyncIO(_Looped):
    """One that lives in a loop of asyncio."""

    limits = True  # whether a call can have a time limit

    def loop(self, done: "Future[None]", closes: bool) -> None:
        async def main() -> None:
            self._loop = asyncio.get_running_loop()
            self._tasks = dict[Call, "asyncio.Task[None]"]()
            await self.opened(closes)
            self._thread.start()
            try:
                while not done.done():
                    await asyncio.wait({asyncio.wrap_future(done)})
            finally:
                await self.closed(closes)

        asyncio.run(main())

    async def opened(self, closes: bool) -> None:
        """Make the pool."""

    async def closed(self, closes: bool) -> None:
        """The loop is about to end."""

    def submit(self, function: Function, *args: Any, timeout: float | None = None) -> Call:
        if timeout is not None and not self.limits:
            raise CannotError("has no time limit")
        call = Call()
        call.set_running_or_notify_cancel()

        async def settle() -> None:
            try:
                result = await self.limited_call(timeout, function, *args)
            except BaseException as error:  # SystemExit and KeyboardInterrupt would end the loop
                call.set_exception(error)
                if isinstance(error, asyncio.CancelledError):
                    raise
            else:
                call.set_result(result)

        def begin() -> None:
            self._tasks[call] = self._loop.create_task(settle())

        self._loop.call_soon_threadsafe(begin)
        return call

    async def limited_call(self, timeout: float | None, function: Function, *args: Any) -> Any:
        """A call with a time limit."""
        raise NotImplementedError

    def cancel(self, call: Call) -> bool:
        raise CannotError("is for asyncio alone")

    def cancel_awaiting(self, function: Function, args: tuple[Any, ...], begun: Callable[[], object]) -> None:
        call = self.submit(function, *args)
        begun()
        self._loop.call_soon_threadsafe(lambda: self._tasks[call].cancel())
        with contextlib.suppress(asyncio.CancelledError):
            call.result()


class AioMultiprocess(_AsyncIO):
    """`aiomultiprocess.Pool`, whose workers run coroutine functions alone."""

    package = "aiomultiprocess"
    module = "aiomultiprocess"
    limits = False

    async def opened(self, closes: bool) -> None:
        self._pool = self.load().Pool(WORKERS)

    async def closed(self, closes: bool) -> None:
        if closes:
            await self._pool.__aexit__(None, None, None)

    async def limited_call(self, timeout: float | None, function: Function, *args: Any) -> Any:
        return await self._pool.apply(work.called, (function, *args))

    def shutdown(self, seconds: float) -> None:
        async def terminate() -> None:
            self._pool.terminate()
            await self._pool.join()

        asyncio.run_coroutine_threadsafe(terminate(), self._loop).result()
        super().shutdown(seconds)


class AnyIO(_AsyncIO):
    """`anyio.to_process.run_sync`, in asyncio, with calls that may be cancelled."""

    package = "anyio"
    module = "anyio.to_process"

    async def opened(self, closes: bool) -> None:
        self._anyio = importlib.import_module("anyio")
        self._run_sync = self.load().run_sync
        self._limiter = self._anyio.CapacityLimiter(WORKERS)

    async def limited_call(self, timeout: float | None, function: Function, *args: Any) -> Any:
        with self._anyio.fail_after(timeout):
            return await self._run_sync(function, *args, cancellable=True, limiter=self._limiter)


class TrioParallel(_Looped):
    """`trio_parallel`, in trio, in a context of its own, with calls that are killed when they are cancelled."""

    package = "trio-parallel"
    module = "trio_parallel"

    def loop(self, done: "Future[None]", closes: bool) -> None:
        self._trio = trio = importlib.import_module("trio")
        self._scopes = dict[Call, Any]()

        async def main() -> None:
            self._limiter = trio.CapacityLimiter(WORKERS)
            self._token = trio.lowlevel.current_trio_token()
            ended = trio.Event()
            done.add_done_callback(lambda _: self._token.run_sync_soon(ended.set))
            async with self.load().open_worker_context() as context, trio.open_nursery() as self._nursery:
                self._run_sync = context.run_sync
                self._thread.start()
                await ended.wait()
                self._nursery.cancel_scope.cancel()

        trio.run(main)

    def submit(self, function: Function, *args: Any, timeout: float | None = None) -> Call:
        call = Call()
        call.set_running_or_notify_cancel()
        trio = self._trio

        async def settle() -> None:
            with trio.CancelScope() as self._scopes[call]:
                try:
                    with trio.fail_after(float("inf") if timeout is None else timeout):
                        result = await self._run_sync(function, *args, kill_on_cancel=True, limiter=self._limiter)
                except trio.TooSlowError as error:
                    call.set_exception(TimeoutError(str(error)))
                except trio.Cancelled as error:
                    call.set_exception(error)
                    raise
                except BaseException as error:
                    call.set_exception(error)
                else:
                    call.set_result(result)

        self._token.run_sync_soon(self._nursery.start_soon, settle)
        return call

    def cancel(self, call: Call) -> bool:
        raise CannotError("is for trio alone")

    def cancel_awaiting(self, function: Function, args: tuple[Any, ...], begun: Callable[[], object]) -> None:
        call = self.submit(function, *args)
        begun()
        self._token.run_sync_soon(lambda: self._scopes[call].cancel())
        with contextlib.suppress(self._trio.Cancelled):
            call.result()


KINDS: Final[dict[str, type[Contender]]] = {
    "backend": Backend,
    "pool": Pool,
    "thread-backend": ThreadBackend,
    "thread-pool": OurThreads,
    "stock": Stock,
    "loky": Loky,
    "pebble": Pebble,
    "deadpool": Deadpool,
    "mpire": Mpire,
    "aiomultiprocess": AioMultiprocess,
    "anyio": AnyIO,
    "trio-parallel": TrioParallel,
}
OURS: Final = ("backend", "pool", "thread-backend", "thread-pool")
PROCESSES: Final = ("backend", "pool")
PEERS: Final = tuple(name for name in KINDS if name not in OURS)
