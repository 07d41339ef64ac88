"""`initialize(warm=True)`: workers are started in parallel, have loaded the handler, and only then it returns."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from taskback import (
    BackendClosedError,
    ProcessPoolTaskBackend,
    RemoteTraceback,
    TaskRouter,
    WorkerDiedError,
)
from taskback.backends._packing import modules_of
from taskback.backends._warming import Warming
from taskback.pools.child import descendants
from tests import gates
from tests.backends import chosen, in_loop
from tests.faults import LIMIT, await_gone
from tests.helpers import few_descriptors, until

Make = Callable[..., ProcessPoolTaskBackend]


def pid(task: dict[str, Any]) -> int:
    return os.getpid()


class Loading:
    """A handler that tells when it is loaded, and is not before the gate is open."""

    def __init__(self, gate: str) -> None:
        self.gate = gate

    def __call__(self, task: dict[str, Any]) -> int:
        raise AssertionError("this is the parent's")

    def __reduce__(self) -> Any:
        return _load, (self.gate,)


def _load(gate: str) -> Callable[[dict[str, Any]], int]:
    gates.hold(gate, os.getpid())
    return pid


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes backends that are shut down whatever the test does."""
    made: list[ProcessPoolTaskBackend] = []

    def make(handler: Any = pid, **options: Any) -> ProcessPoolTaskBackend:
        made.append(ProcessPoolTaskBackend(handler, **{"max_workers": 2, "cancel_grace_seconds": 0.3, **options}))
        return made[-1]

    yield make
    for backend in made:
        backend.shutdown_sync(0)


@pytest.fixture
def elsewhere() -> Iterator[Callable[..., Future[Any]]]:
    """Calls something in another thread."""
    with ThreadPoolExecutor(4) as pool:
        yield pool.submit


@pytest.fixture
def fragile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A module that can be imported here, and by no other process."""
    (tmp_path / "fragile.py").write_text(
        f"import os\nif os.getpid() != {os.getpid()}:\n"
        '    raise ModuleNotFoundError("No module named \'gone\'", name="gone")\n'
        "def handle(task):\n    return os.getpid()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("fragile")
    del sys.modules["fragile"]


def is_down(backend: ProcessPoolTaskBackend) -> bool:
    """Whether it takes no tasks, and has nothing that could run them."""
    threads = [thread.name for thread in threading.enumerate() if "TaskBackend" in thread.name]
    return not (backend._initialized or backend._processes or threads)


# --- when it returns ---


def test_workers_have_loaded_the_handler(make, gate):
    """Each of them, at the same time; the tasks that come load it no more."""
    gate.open()
    backend = make(Loading(gate.path))

    backend.initialize_sync()

    loaded = sorted(map(int, gate.heard()))
    assert loaded == sorted(worker.pid for worker in backend.stats().workers)
    assert len(loaded) == 2
    assert {backend.run_sync({}, wait=LIMIT) for _ in range(20)} <= set(loaded)
    assert gate.heard() == []


def test_workers_are_started_in_parallel(make, gate, elsewhere):
    """Each is loading before one has."""
    backend = make(Loading(gate.path), max_workers=3)
    started = elsewhere(backend.initialize_sync)

    assert len(set(gate.wait_said(3))) == 3
    assert not started.done()
    gate.open()
    started.result(LIMIT)


def test_the_loop_is_free_meanwhile(make, gate):
    """It is the loop that opens the gate."""

    async def main() -> None:
        backend = make(Loading(gate.path))
        starting = asyncio.create_task(backend.initialize())
        await gate.said(2)
        gate.open()
        async with asyncio.timeout(LIMIT):
            await starting
        assert len(backend.stats().workers) == 2

    asyncio.run(main())


def test_cold_is_until_the_first_task(make):
    """No process is there before that."""
    backend = make()

    backend.initialize_sync(warm=False)

    assert backend._guardian.pid is None
    assert backend.run_sync({}, wait=LIMIT) != os.getpid()


def test_a_task_before_initialize_waits_for_no_worker(make, gate):
    """`submit` returns before the handler is loaded anywhere."""
    backend = make(Loading(gate.path))

    handle = backend.submit_sync({})

    gate.wait_said()
    assert not handle.done()
    gate.open()
    assert handle.result(LIMIT) != os.getpid()


def test_a_handler_that_is_set_later_is_loaded_by_the_first_task(make, gate):
    """So the workers are started without one, or with the one before."""
    backend = make(None)
    backend.initialize_sync()
    workers = {worker.pid for worker in backend.stats().workers}
    gate.open()

    backend.set_executor(Loading(gate.path))

    assert gate.heard() == []
    assert backend.run_sync({}, wait=LIMIT) in workers
    assert len(gate.wait_said()) == 1


@pytest.mark.parametrize("entry", chosen(), ids=lambda entry: entry.name)
@in_loop
async def test_every_backend_takes_the_option(entry, make_any):
    """Whether it has workers or not."""
    for warm in (True, False):
        backend = make_any(entry)
        await backend.initialize(warm=warm, timeout=LIMIT)
        assert backend._initialized
        await backend.initialize(warm=True)
        await backend.shutdown(0)
        backend.initialize_sync(warm=warm, timeout=LIMIT)
        assert backend._initialized
        await backend.shutdown(0)


@pytest.fixture
def make_any() -> Iterator[Callable[[Any], Any]]:
    made: list[Any] = []

    def make(entry: Any) -> Any:
        made.append(entry.make(pid))
        return made[-1]

    yield make
    for backend in made:
        backend.shutdown_sync(0)


# --- when it fails ---


def test_what_loading_the_handler_raises_it_raises(make, fragile):
    """With the worker's traceback; nothing is left, and it can be initialized again."""
    backend = make(fragile.handle)

    with pytest.raises(ModuleNotFoundError, match="No module named 'gone'") as failed:
        backend.initialize_sync()

    assert isinstance(failed.value.__cause__, RemoteTraceback)
    assert "fragile.py" in str(failed.value.__cause__)
    assert is_down(backend)
    with pytest.raises(BackendClosedError):
        backend.submit_sync({})
    backend.set_handler(pid)
    backend.initialize_sync()
    assert backend.run_sync({}, wait=LIMIT) != os.getpid()


def test_a_with_statement_raises_it(make, fragile):
    """Sync and async, before its body."""

    async def enter() -> None:
        async with make(fragile.handle):
            raise AssertionError("it was entered")

    with pytest.raises(ModuleNotFoundError), make(fragile.handle):
        raise AssertionError("it was entered")
    with pytest.raises(ModuleNotFoundError) as failed:
        asyncio.run(enter())

    assert isinstance(failed.value.__cause__, RemoteTraceback)


def test_cold_leaves_it_to_the_tasks(make, fragile):
    """Each fails by itself."""
    backend = make(fragile.handle)
    backend.initialize_sync(warm=False)

    error = backend.submit_sync({}).exception(LIMIT)

    assert isinstance(error, ModuleNotFoundError)
    assert backend._initialized


def test_a_worker_that_is_killed_while_it_starts_is_replaced(make, gate, elsewhere):
    """And waited for."""
    backend = make(Loading(gate.path), max_workers=1)
    started = elsewhere(backend.initialize_sync)
    (first,) = map(int, gate.wait_said())

    os.kill(first, signal.SIGKILL)
    (second,) = map(int, gate.wait_said())
    gate.open()
    started.result(LIMIT)

    assert backend.run_sync({}, wait=LIMIT) == second != first


def test_a_guardian_that_is_killed_while_workers_start_is_replaced(make, gate, elsewhere):
    """With them."""
    backend = make(Loading(gate.path))
    started = elsewhere(backend.initialize_sync)
    first = set(map(int, gate.wait_said(2)))
    guardian = backend._guardian.pid

    os.kill(guardian, signal.SIGKILL)
    gate.open()
    started.result(LIMIT)

    until(lambda: backend.run_sync({}, wait=LIMIT) not in first)  # which may take a task before this is heard of
    assert backend._guardian.pid != guardian


def test_workers_that_die_whenever_they_start_fail_it(make):
    """After some tries, with an error that says so."""
    backend = make(Dying())

    with pytest.raises(WorkerDiedError, match="could not be started"):
        backend.initialize_sync()

    assert is_down(backend)


class Dying:
    """A handler that ends the process that loads it."""

    def __call__(self, task: dict[str, Any]) -> None: ...

    def __reduce__(self) -> Any:
        return os._exit, (3,)


def test_where_no_worker_can_be_started_it_says_why(make):
    """No descriptors: the reason is in the error, and nothing is left."""
    backend = make()
    backend.keeper.start()

    with few_descriptors(3), pytest.raises(WorkerDiedError, match="Too many open files"):
        backend.initialize_sync()

    assert is_down(backend)
    backend.initialize_sync()
    assert len(backend.stats().workers) == 2


# --- when it is cut short ---


def test_its_time_limit_ends_the_start(make, gate):
    """Nothing of it is left, not even a worker that is just loading."""
    backend = make(Loading(gate.path))

    with pytest.raises(TimeoutError, match=r"not ready within 0\.5 s"):
        backend.initialize_sync(timeout=0.5)

    assert is_down(backend)
    await_gone(*map(int, gate.heard()))
    gate.open()
    backend.initialize_sync()
    assert len(backend.stats().workers) == 2


@pytest.mark.parametrize("timeout", [-1, float("nan"), "1"])
def test_a_time_limit_that_makes_no_sense_starts_nothing(make, timeout):
    """It is refused first."""
    backend = make()

    with pytest.raises((ValueError, TypeError)):
        backend.initialize_sync(timeout=timeout)

    assert is_down(backend)


def test_a_cancelled_start_is_none(make, gate):
    """Whoever cancels it gets a backend that is not initialized, of which nothing is left."""
    backend = make(Loading(gate.path))

    async def main() -> list[str]:
        starting = asyncio.create_task(backend.initialize())
        loading = await gate.said(2)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        return loading

    loading = asyncio.run(main())

    assert is_down(backend)
    await_gone(*map(int, loading))


def test_a_late_one_ends_the_start_by_its_time_limit_too(make, gate):
    """`asyncio.timeout` around it does the same."""
    backend = make(Loading(gate.path))

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await backend.initialize()

    asyncio.run(main())

    assert is_down(backend)


def test_a_shutdown_meanwhile_ends_it(make, gate, elsewhere):
    """It says that the backend is closed, and nothing is left."""
    backend = make(Loading(gate.path))
    started = elsewhere(backend.initialize_sync)
    loading = gate.wait_said(2)

    report = backend.shutdown_sync()

    with pytest.raises(BackendClosedError):
        started.result(LIMIT)
    assert (report.dying, report.stuck) == ([], [])
    assert is_down(backend)
    await_gone(*map(int, loading))


def test_a_shutdown_meanwhile_is_not_hurried_by_it(make, gate, elsewhere):
    """A task that came meanwhile is drained."""
    backend = make(Loading(gate.path))
    started = elsewhere(backend.initialize_sync)
    gate.wait_said(2)
    task = backend.submit_sync({})

    closed = elsewhere(backend.shutdown_sync)
    with pytest.raises(BackendClosedError):
        started.result(LIMIT)
    gate.open()

    assert closed.result(LIMIT).succeeded == [task]


# --- two at once ---


def test_two_wait_for_the_same_workers(make, gate, elsewhere):
    """From threads and from a loop; there are no more workers for that."""
    backend = make(Loading(gate.path))

    async def both() -> None:
        starting = [asyncio.create_task(backend.initialize()) for _ in range(2)]
        await gate.said(2)
        gate.open()
        await asyncio.gather(*starting)

    in_thread = elsewhere(backend.initialize_sync)
    asyncio.run(both())

    in_thread.result(LIMIT)
    assert gate.heard() == []
    assert len(descendants.children(backend._guardian.pid)) == 2


def test_one_that_is_cancelled_does_not_take_the_other_along(make, gate):
    """Only when the last one has left nobody wants the workers."""
    backend = make(Loading(gate.path))

    async def main() -> None:
        one, other = (asyncio.create_task(backend.initialize()) for _ in range(2))
        await gate.said(2)
        one.cancel()
        with pytest.raises(asyncio.CancelledError):
            await one
        gate.open()
        await other
        assert backend._initialized
        assert await backend.run({}) != os.getpid()

    asyncio.run(main())


def test_both_are_told_of_a_failure(make, fragile):
    """And both come back when nothing is left."""
    backend = make(fragile.handle)

    async def one() -> None:
        with pytest.raises(ModuleNotFoundError):
            await backend.initialize()
        assert is_down(backend)

    async def main() -> None:
        await asyncio.gather(one(), one())

    asyncio.run(main())


def test_a_start_that_failed_does_not_end_the_next_life(make, fragile):
    """Whoever hears late of the failure shuts nothing down that has begun since."""
    backend = make(fragile.handle)
    failed = []
    joined = Warming.joined

    def noting(self: Warming) -> Warming | None:
        failed.append(self)
        return joined(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Warming, "joined", noting)
        with pytest.raises(ModuleNotFoundError):
            backend.initialize_sync()
    backend.set_handler(pid)
    backend.initialize_sync()

    (late,) = failed
    assert backend._begin_shutdown(0, late) is late.closing

    assert backend._initialized
    assert backend.run_sync({}, wait=LIMIT) != os.getpid()


# --- what the guardian imports ---


def test_asyncio_is_imported_for_async_handlers_alone():
    """By the guardian, once for all workers."""

    async def waits(task: dict[str, Any]) -> None: ...

    router = TaskRouter()
    router.handler("waits", waits)

    assert "asyncio" in modules_of(waits)
    assert "asyncio" in modules_of(router)
    assert "asyncio" not in modules_of(pid)
