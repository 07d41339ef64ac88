"""Programs that were written for others' executors and futures: they take ours as they are."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import multiprocessing
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import dask
import dask.array
import dask.bag
import joblib
import numpy as np
import pytest
import tqdm
import tqdm.contrib.concurrent
from dask.base import compute
from dask.delayed import delayed
from joblib.parallel import AutoBatchingMixin, ParallelBackendBase
from scipy import optimize

from taskback import (
    AsyncFireAndTrackBackend,
    ExecutorTaskBackend,
    ProcessPoolTaskBackend,
    SyncTaskBackend,
    TaskState,
    ThreadPoolTaskBackend,
    WorkerDiedError,
)
from taskback.pools import ProcessPool, ThreadPool
from tests import client_work as work
from tests.backends import in_loop
from tests.gates import PATIENCE
from tests.helpers import is_running

POOLS = [pytest.param(ProcessPool, id="processes"), pytest.param(ThreadPool, id="threads")]
BOUNDS = [(0, 2)] * 3


@pytest.fixture(params=POOLS)
def pool(request) -> Iterator[Executor]:
    """A pool of two workers, which is shut down."""
    with request.param(2) as pool:
        yield pool


def is_elsewhere(pool: Executor, where: tuple[int, str]) -> bool:
    """Whether this is one of the pool's workers."""
    pid, thread = where
    if isinstance(pool, ProcessPool):
        return pid != os.getpid()
    return pid == os.getpid() and thread.startswith("ThreadPool")


# --- scipy ---


def test_differential_evolution_finds_with_the_pool_what_it_finds_alone(pool):
    """`workers=pool.map`: the same population, so the same result to the last bit."""
    options: Any = {"seed": 1, "updating": "deferred", "maxiter": 10, "polish": False}
    alone = optimize.differential_evolution(work.rosenbrock, BOUNDS, **options)

    found = optimize.differential_evolution(work.rosenbrock, BOUNDS, workers=pool.map, **options)

    assert found.x.tolist() == alone.x.tolist()
    assert (found.fun, found.nfev) == (alone.fun, alone.nfev)


def test_brute_finds_with_the_pool_what_it_finds_alone(pool):
    """A grid, a call a point."""
    grid = (slice(0, 2, 0.5),) * 3

    found = optimize.brute(work.rosenbrock, grid, finish=None, workers=pool.map)

    assert found.tolist() == optimize.brute(work.rosenbrock, grid, finish=None).tolist() == [1, 1, 1]


def test_an_objective_that_fails_reaches_the_optimizers_caller(pool):
    """As what it is."""
    with pytest.raises(ZeroDivisionError):
        optimize.brute(lambda x: 1 // 0, (slice(0, 1, 0.5),), finish=None, workers=pool.map)


# --- dask ---


def test_dask_computes_on_the_pool(pool):
    """`scheduler=pool`: delayed calls, a bag of lambdas, an array of chunks."""
    places = [delayed(work.where)(number) for number in range(8)]
    bag = dask.bag.from_sequence(range(100), npartitions=5).map(lambda number: number * 2).filter(lambda n: n % 3 == 0)
    array = dask.array.arange(10_000, chunks=1_000)

    (found,) = compute(places, scheduler=pool)

    assert all(is_elsewhere(pool, where) for where in found)
    assert bag.sum().compute(scheduler=pool) == sum(n * 2 for n in range(100) if n * 2 % 3 == 0)
    assert (array**2).sum().compute(scheduler=pool) == sum(n * n for n in range(10_000))


def test_dask_takes_the_pool_from_its_configuration(pool):
    """`pool=` for the schedulers that dask has itself."""
    name = "processes" if isinstance(pool, ProcessPool) else "threads"
    with dask.config.set(pool=pool, scheduler=name):
        found = delayed(work.where)().compute()

    assert is_elsewhere(pool, found)


def test_dask_gives_its_pool_no_more_than_it_has_workers_for(pool):
    """It looks at `_max_workers`; what it has given it waits for in `as_completed`'s way."""
    given: list[int] = []
    under_way: set[Future[Any]] = set()
    submit = pool.submit

    def counted(*args: Any, **options: Any) -> Future[Any]:
        future = submit(*args, **options)
        under_way.add(future)
        future.add_done_callback(under_way.discard)
        given.append(len(under_way))
        return future

    pool.submit = counted  # type: ignore[method-assign]  # drivers do so, too
    compute([delayed(work.plus)(number, 1) for number in range(20)], scheduler=pool)

    assert len(given) > 1
    assert max(given) <= 2


def test_what_dask_computes_may_fail(pool):
    """The exception reaches who computes, and the pool goes on."""
    with pytest.raises(LookupError, match="no such"):
        delayed(work.fail)("no such").compute(scheduler=pool)

    assert delayed(work.plus)(1, 2).compute(scheduler=pool) == 3


def test_a_worker_that_dies_under_dask_is_told_and_replaced():
    """The stock pool would be broken from then on."""
    with ProcessPool(2) as pool:
        with pytest.raises(WorkerDiedError, match="SIGKILL"):
            delayed(work.die)().compute(scheduler=pool)

        assert delayed(work.plus)(1, 2).compute(scheduler=pool) == 3


# --- joblib ---


def left_of(pid: int, folder: Path) -> list[str]:
    """What a process, or joblib in it, has given a name, and what is in joblib's folder."""
    shared = Path("/dev/shm")
    named = [entry.name for entry in shared.iterdir() if f"-{pid}-" in entry.name or f"_{pid}_" in entry.name]
    return named + [entry.name for entry in folder.iterdir()]


@pytest.mark.parametrize("backend", ["loky", "multiprocessing", "threading"])
def test_joblib_in_a_handler_leaves_nothing_behind(backend, tmp_path, monkeypatch, capfd):
    """Its workers and its resource tracker; and where it ends them itself, what it has given a name."""
    monkeypatch.setenv("JOBLIB_TEMP_FOLDER", str(tmp_path))
    with ProcessPoolTaskBackend(work.in_parallel, max_workers=1) as ours:
        total, pid, below = ours.run_sync({"backend": backend, "size": 100_000})
        assert total == 400_000
        if backend == "loky":
            assert len(below) >= 3, "two workers and a tracker"
            assert left_of(pid, tmp_path), "loky keeps its workers, and what they share has names"

    assert [each for each in below if is_running(each)] == []
    if backend != "loky":  # which takes its time for that, and a worker that ends has no more than a second
        assert left_of(pid, tmp_path) == []
        assert capfd.readouterr().err == ""


class OnPool(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]  # joblib has no annotations
    """How joblib is told of an executor: what anybody would write who has one."""

    supports_retrieve_callback = True
    default_n_jobs = 2

    def __init__(self, pool: Executor, **options: Any) -> None:
        super().__init__(**options)
        self.pool = pool

    def effective_n_jobs(self, n_jobs: int) -> int:
        """As many as it has workers."""
        return self.pool._max_workers  # type: ignore[attr-defined]

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], None] | None = None) -> Future[Any]:
        """Have a batch of calls made."""
        future = self.pool.submit(func)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """What came of it."""
        return out.result()


@pytest.fixture
def joblib_on_pool(pool, monkeypatch) -> Iterator[Executor]:
    """The pool, which joblib uses."""
    monkeypatch.setattr(joblib.parallel, "BACKENDS", dict(joblib.parallel.BACKENDS))
    joblib.register_parallel_backend("ours", lambda **options: OnPool(pool, **options))
    with joblib.parallel_config("ours"):
        yield pool


def test_joblib_runs_on_the_pool(joblib_on_pool):
    """In batches that joblib makes, and with a generator that gives results as they come."""
    found = joblib.Parallel()(joblib.delayed(work.where)(number) for number in range(50))
    squares = joblib.Parallel(return_as="generator")(joblib.delayed(pow)(number, 2) for number in range(50))

    assert len(found) == 50
    assert all(is_elsewhere(joblib_on_pool, where) for where in found)
    assert list(squares) == [number**2 for number in range(50)]


def test_what_joblib_runs_on_the_pool_may_fail(joblib_on_pool):
    """The exception reaches who called joblib, and the pool goes on."""
    with pytest.raises(LookupError, match="no such"):
        joblib.Parallel()(joblib.delayed(work.fail)("no such") for _ in range(10))

    assert joblib.Parallel()(joblib.delayed(abs)(-number) for number in range(5)) == [0, 1, 2, 3, 4]


# --- tqdm ---


@pytest.fixture
def _no_monitor(monkeypatch) -> None:
    """Without the thread that tqdm keeps."""
    monkeypatch.setattr(tqdm.tqdm, "monitor_interval", 0)


@pytest.mark.usefixtures("_no_monitor")
def test_tqdm_shows_how_far_map_is(pool, capsys):
    """Around the pool's map."""
    assert list(tqdm.tqdm(pool.map(abs, range(-5, 0)), total=5)) == [5, 4, 3, 2, 1]

    assert "5/5" in capsys.readouterr().err


@pytest.mark.usefixtures("_no_monitor")
def test_tqdm_maps_on_a_pool_of_threads_of_ours(monkeypatch, capsys):
    """`thread_map` makes the pool itself, and has it share a lock by its initializer."""
    monkeypatch.setattr(concurrent.futures, "ThreadPoolExecutor", ThreadPool)

    found = tqdm.contrib.concurrent.thread_map(work.where, range(5), max_workers=2)

    assert all(thread.startswith("ThreadPool-") for _, thread in found)
    assert "5/5" in capsys.readouterr().err


# --- large arrays ---


def test_large_arrays_go_out_and_come_back(pool):
    """More than fits a packet; the caller's own are as they were where workers have a copy."""
    arrays = [np.full((512, 1024), number, dtype=np.float64) for number in range(4)]

    doubled = list(pool.map(work.double, arrays))

    assert [float(array.mean()) for array in doubled] == [0, 2, 4, 6]
    mine = [0, 1, 2, 3] if isinstance(pool, ProcessPool) else [0, 2, 4, 6]
    assert [float(array.mean()) for array in arrays] == mine


def test_large_arrays_in_chunks(pool):
    """Several a call."""
    arrays = [np.full(100_000, number) for number in range(10)]

    assert [int(array[0]) for array in pool.map(work.double, arrays, chunksize=4)] == [n * 2 for n in range(10)]


# --- concurrent.futures ---


def test_map_has_the_stock_arguments(pool):
    """And answers them as the stock does."""
    stock = inspect.signature(Executor.map).parameters

    assert list(stock) == [name for name in inspect.signature(type(pool).map).parameters if name in stock]
    assert list(pool.map(work.plus, range(5), range(5), timeout=PATIENCE, chunksize=2)) == [0, 2, 4, 6, 8]
    assert list(pool.map(abs, [], chunksize=3)) == []


def test_map_gives_up_waiting_in_time(pool, gate):
    """A bare TimeoutError from the iterator, as of the stock pools."""
    results = pool.map(work.hold_or_fail, [{"type": "holds", "gate": gate.path}], timeout=0)

    with pytest.raises(TimeoutError):
        next(results)
    gate.open()


@pytest.fixture
def mixed(gate) -> Iterator[list[Future[Any]]]:
    """Handles of four backends, futures of our pools and of the stock ones: each a result of its own."""
    context = multiprocessing.get_context("spawn")
    with (
        ThreadPoolTaskBackend(work.echo, max_workers=1) as threads,
        ProcessPoolTaskBackend(work.echo, max_workers=1) as processes,
        ExecutorTaskBackend(work.echo, pool=lambda: ThreadPoolExecutor(1)) as over,
        SyncTaskBackend(work.echo) as inline,
        ThreadPool(1) as our_threads,
        ProcessPool(1) as our_processes,
        ThreadPoolExecutor(1) as stock_threads,
        ProcessPoolExecutor(1, mp_context=context) as stock_processes,
    ):
        backends: list[Any] = [threads, processes, over, inline]
        handles = [each.submit_sync({"type": "t", "value": number}) for number, each in enumerate(backends)]
        executors: list[Executor] = [our_threads, our_processes, stock_threads, stock_processes]
        yield [*handles, *(each.submit(abs, -number) for number, each in enumerate(executors, start=4))]


def test_as_completed_takes_all_kinds_of_futures(mixed):
    """Each comes once."""
    assert sorted(each.result() for each in concurrent.futures.as_completed(mixed, PATIENCE)) == list(range(8))


def test_wait_takes_all_kinds_of_futures(mixed, gate):
    """`FIRST_COMPLETED` with one that does not end, then all."""
    with ThreadPoolTaskBackend(work.hold_or_fail, max_workers=1) as backend:
        held = backend.submit_sync({"type": "holds", "gate": gate.path})
        first = concurrent.futures.wait([held, *mixed], PATIENCE, concurrent.futures.FIRST_COMPLETED)
        assert first.done
        assert held in first.not_done

        gate.open()
        ended = concurrent.futures.wait([held, *mixed], PATIENCE)

    assert ended.done == {held, *mixed}
    assert not ended.not_done


def test_wait_ends_with_the_first_exception(pool, gate):
    """Among handles, futures of ours and stock ones."""
    with ThreadPoolTaskBackend(work.hold_or_fail, max_workers=1) as backend, ThreadPoolExecutor(1) as stock:
        held = backend.submit_sync({"type": "holds", "gate": gate.path})
        failed = pool.submit(work.fail, "no such")

        ended = concurrent.futures.wait(
            [held, failed, stock.submit(abs, 1)], PATIENCE, concurrent.futures.FIRST_EXCEPTION
        )

        assert failed in ended.done
        assert held in ended.not_done
        gate.open()


# --- asyncio ---


@in_loop
async def test_gather_and_wait_take_all_kinds_of_futures(mixed):
    """Handles as they are, futures of executors wrapped as asyncio wants them."""
    awaitables = [each if hasattr(each, "__await__") else asyncio.wrap_future(each) for each in mixed]

    done, pending = await asyncio.wait(awaitables, timeout=PATIENCE)

    assert not pending
    assert sorted(each.result() for each in done) == list(range(8))
    assert await asyncio.gather(*awaitables) == list(range(8))


@in_loop
async def test_as_completed_of_asyncio_takes_handles(mixed):
    """In the order in which they end."""
    awaitables = [each if hasattr(each, "__await__") else asyncio.wrap_future(each) for each in mixed]

    found = [await each for each in asyncio.as_completed(awaitables, timeout=PATIENCE)]

    assert sorted(found) == list(range(8))


STOPPABLE = [
    pytest.param(lambda: ProcessPoolTaskBackend(work.hold_or_fail, max_workers=2), id="process"),
    pytest.param(lambda: ThreadPoolTaskBackend(work.hold_or_fail, max_workers=2), id="thread"),
    pytest.param(lambda: AsyncFireAndTrackBackend(work.hold_or_fail_async), id="async"),
]


@pytest.mark.parametrize("make_backend", STOPPABLE)
@in_loop
async def test_a_failing_sibling_stops_the_others_of_its_group(make_backend, gate):
    """The group cancels those who wait; the work itself ends, too, though the gate stays closed."""
    async with make_backend() as backend:
        with pytest.raises(ExceptionGroup) as raised:  # noqa: PT012  # what raises is the end of the block
            async with asyncio.TaskGroup() as group:
                waiting = group.create_task(backend.run({"type": "holds", "gate": gate.path}))
                assert await gate.said() == ["begun"]
                group.create_task(backend.run({"type": "fails"}))

        assert [str(error) for error in raised.value.exceptions] == ["a sibling"]
        assert waiting.cancelled()
        assert await gate.said() == ["ended"]
        report = await backend.shutdown(PATIENCE)
        stats = backend.stats()

    assert (stats.cancelled, stats.failed, stats.running) == (1, 1, 0)
    assert not report.killed


@pytest.mark.parametrize("make_backend", STOPPABLE)
@in_loop
async def test_a_timeout_around_a_handle_stops_its_work(make_backend, gate):
    """`asyncio.timeout` cancels who awaits, and that the task."""
    async with make_backend() as backend:
        handle = await backend.submit({"type": "holds", "gate": gate.path})
        assert await gate.said() == ["begun"]

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await handle

        assert await gate.said() == ["ended"]
        await asyncio.wait([handle], timeout=PATIENCE)
        assert handle.state is TaskState.CANCELLED


@in_loop
async def test_a_shield_keeps_the_work_going(gate):
    """The wait ends, the task does not."""
    async with ThreadPoolTaskBackend(work.hold_or_fail, max_workers=1) as backend:
        handle = await backend.submit({"type": "holds", "gate": gate.path})
        await gate.said()

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.shield(handle)
        gate.open()

        assert await handle is None
        assert handle.state is TaskState.SUCCEEDED


@in_loop
async def test_a_loop_runs_calls_in_the_pools():
    """`run_in_executor` on both."""
    loop = asyncio.get_running_loop()
    with ProcessPool(1) as processes, ThreadPool(1) as threads:
        assert await loop.run_in_executor(processes, work.plus, 1, 2) == 3
        pid, thread = await loop.run_in_executor(threads, work.where)

    assert pid == os.getpid()
    assert thread.startswith("ThreadPool")


@in_loop
async def test_a_loop_takes_a_pool_of_threads_as_its_own():
    """`to_thread`, and `None` for an executor, go there; asyncio asks for a `ThreadPoolExecutor`."""
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPool(1))

    places = [await asyncio.to_thread(work.where), await loop.run_in_executor(None, work.where)]
    await loop.shutdown_default_executor()

    assert {thread.split("-")[0] for _, thread in places} == {"ThreadPool"}


# --- anyio ---


def test_handles_under_anyio(gate):
    """A task group and a deadline of anyio's, on its asyncio backend."""

    async def main() -> list[Any]:
        found: list[Any] = []
        async with ThreadPoolTaskBackend(work.hold_or_fail, max_workers=2) as backend:
            handle = await backend.submit({"type": "holds", "gate": gate.path})
            await gate.said()
            with anyio.move_on_after(0) as scope:
                await handle
            found += [scope.cancelled_caught, *await gate.said()]
            await asyncio.wait([handle], timeout=PATIENCE)
            found.append(handle.state)
        async with ThreadPoolTaskBackend(work.echo, max_workers=2) as backend:

            async def keep(value: int) -> None:
                found.append(await backend.run({"type": "t", "value": value}))

            async with anyio.create_task_group() as group:
                group.start_soon(keep, 1)
            found.append(await anyio.to_thread.run_sync(backend.run_sync, {"type": "t", "value": 2}))
        return found

    assert anyio.run(main, backend="asyncio") == [True, "ended", TaskState.CANCELLED, 1, 2]
