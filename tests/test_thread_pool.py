"""`ThreadPool`: where it goes beyond the standard library's own tests, which test_stdlib_executors.py runs on it."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import textwrap
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, as_completed, wait
from concurrent.futures.thread import BrokenThreadPool
from pathlib import Path
from typing import Any

import pytest

from taskback.pools import ThreadPool
from tests.helpers import run_python
from tests.running import PRELUDE, Programs, programs

PATIENCE = 20.0  # seconds; the net under a hang


@pytest.fixture
def pool() -> Iterator[ThreadPool]:
    """A pool of two threads."""
    with ThreadPool(2) as made:
        yield made


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """What holds calls, and lets them go at the end of the test."""
    made = threading.Event()
    yield made
    made.set()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Programs]:
    """Starts programs and ends them."""
    with programs(tmp_path) as started:
        yield started


def fill(pool: ThreadPool, gate: threading.Event, count: int) -> list[Future[Any]]:
    """Have so many threads stand at the gate."""
    standing = threading.Semaphore(0)

    def stand() -> None:
        standing.release()
        gate.wait(PATIENCE)

    futures: list[Future[Any]] = [pool.submit(stand) for _ in range(count)]
    for _ in futures:
        assert standing.acquire(timeout=PATIENCE), "a call never began"
    return futures


# --- threads ---


def test_no_exception_ends_a_thread(pool, gate):
    """A callback that raises what nobody catches costs nobody else's call."""
    (held,) = fill(pool, gate, 1)

    def leave(future: Future[Any]) -> None:
        raise SystemExit(3)

    held.add_done_callback(leave)
    threads = set(pool._threads)
    gate.set()
    held.result(PATIENCE)

    assert [pool.submit(abs, -n).result(PATIENCE) for n in range(5)] == list(range(5))
    assert threads <= pool._threads
    assert all(thread.is_alive() for thread in threads)


def test_a_thread_is_started_for_a_call_when_all_have_one(pool):
    """Calls that wait for each other run, also in a pool that has had little to do, up to its size."""
    for _ in range(3):
        pool.submit(abs, -1).result(PATIENCE)
    together = threading.Barrier(2)

    met = [pool.submit(together.wait, PATIENCE) for _ in range(2)]

    assert sorted(future.result(PATIENCE) for future in met) == [0, 1]
    assert len(pool._threads) == 2


def test_a_callback_may_wait_for_a_call(pool, gate):
    """Its thread counts as busy as long as the callback runs."""
    (held,) = fill(pool, gate, 1)
    seen: list[Any] = []
    done = threading.Event()

    def follow(future: Future[Any]) -> None:
        seen.append(pool.submit(abs, -7).result(PATIENCE))
        done.set()

    held.add_done_callback(follow)
    gate.set()

    assert done.wait(PATIENCE), "the callback waits for ever"
    assert seen == [7]


def test_a_pool_that_nobody_knows_ends_after_its_calls(gate):
    """What it was given is done, then its threads end."""
    pool = ThreadPool(2)
    futures = [*fill(pool, gate, 2), *(pool.submit(abs, -n) for n in range(10))]
    threads = set(pool._threads)

    del pool
    gate.set()

    assert [future.result(PATIENCE) for future in futures[2:]] == list(range(10))
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_a_call_may_shut_its_pool_down():
    """It waits for the others alone, not for the thread that it is on."""
    pool = ThreadPool(2)

    assert pool.submit(pool.shutdown).result(PATIENCE) is None

    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(abs, -1)
    pool.shutdown()


def test_a_thread_that_cannot_be_started_costs_no_call(pool, gate, monkeypatch):
    """Those that run go on; where there is none, the submitter is told."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start"):
            pool.submit(abs, -1)
    fill(pool, gate, 1)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        waits = pool.submit(abs, -2)
    gate.set()

    assert waits.result(PATIENCE) == 2
    assert len(pool._threads) == 1


def test_an_initializer_that_fails_breaks_the_pool(caplog):
    """Calls that wait fail with the stock's error, new ones are refused, and the threads end."""
    begun, go = threading.Event(), threading.Event()

    def initialize(word: str) -> None:
        begun.set()
        go.wait(PATIENCE)
        raise ValueError(word)

    pool = ThreadPool(1, initializer=initialize, initargs=("no good",))
    futures = [pool.submit(abs, -n) for n in range(3)]
    assert begun.wait(PATIENCE), "the initializer was not called"
    assert futures[0].cancel()
    go.set()

    for future in futures[1:]:
        with pytest.raises(BrokenThreadPool):
            future.result(PATIENCE)
    assert futures[0].cancelled()
    pool.shutdown()
    with pytest.raises(BrokenThreadPool):
        pool.submit(abs, -1)
    assert "no good" in caplog.text
    assert caplog.records[0].name == "concurrent.futures"


def test_an_initializer_is_called_in_each_thread():
    """Once, before the first call there."""
    local, meet = threading.local(), threading.Barrier(2)

    def initialize(value: int) -> None:
        local.value = getattr(local, "value", 0) + value

    def look() -> int:
        meet.wait(PATIENCE)
        return local.value

    with ThreadPool(2, initializer=initialize, initargs=(5,)) as pool:
        found = [pool.submit(look) for _ in range(4)]
        assert [future.result(PATIENCE) for future in found] == [5] * 4


@pytest.mark.parametrize(
    ("options", "error"),
    [({"max_workers": 0}, ValueError), ({"max_workers": -1}, ValueError), ({"initializer": 5}, TypeError)],
)
def test_what_makes_no_sense_is_refused(options, error):
    """By the stock pool's errors."""
    with pytest.raises(error):
        ThreadPool(**options)


# --- futures ---


def test_those_who_wait_hear_of_a_cancellation_at_once(pool, gate):
    """Not when a thread comes to the call, which may never be."""
    fill(pool, gate, 2)
    first, second = pool.submit(abs, -1), pool.submit(abs, -2)
    waiting = as_completed([first, second], timeout=PATIENCE)

    assert first.cancel()
    assert first.cancel()  # as often as one likes

    assert next(waiting) is first
    assert wait([first, second], PATIENCE, FIRST_COMPLETED).done == {first}
    with pytest.raises(CancelledError):
        first.result(PATIENCE)


def test_a_running_call_cannot_be_cancelled(pool, gate):
    """The stock rule, that known drivers of executors rely on."""
    running, _ = fill(pool, gate, 2)

    assert running.running()
    assert not running.cancel()
    gate.set()
    assert running.result(PATIENCE) is None
    assert not running.cancel()


def test_a_shutdown_that_cancels_tells_those_who_wait(gate):
    """In the stock pool, `wait` for what it cancels never returns."""
    pool = ThreadPool(1)
    (held,) = fill(pool, gate, 1)
    queued = [pool.submit(abs, -n) for n in range(3)]

    pool.shutdown(wait=False, cancel_futures=True)

    assert wait(queued, PATIENCE).done == set(queued)
    assert all(future.cancelled() for future in queued)
    gate.set()
    assert held.result(PATIENCE) is None
    pool.shutdown()
    assert not any(thread.is_alive() for thread in pool._threads)


def test_a_cancelled_call_lets_go_of_its_arguments(pool, gate):
    """At once, though it lies in the queue until a thread comes to it."""
    fill(pool, gate, 2)
    argument = Argument()
    future = pool.submit(print, argument)
    alive = weakref.ref(argument)
    del argument

    future.cancel()

    assert alive() is None


class Argument:
    """Something that can be referred to weakly."""


def test_an_error_goes_with_its_future(pool):
    """It makes no cycle with the thread that raised it, which would keep it until the collector comes."""

    def fail() -> None:
        raise OddError

    future = pool.submit(fail)
    assert wait([future], PATIENCE).done
    pool.shutdown()
    error = future.exception(0)
    assert isinstance(error, OddError)
    alive = weakref.ref(error)
    del error
    gc.disable()
    try:
        del future
        assert alive() is None
    finally:
        gc.enable()


class OddError(Exception):
    """Can be referred to weakly."""


def test_a_loop_runs_its_calls(pool):
    """By `run_in_executor`: results, errors, and a cancelled wait."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(pool, abs, -3) == 3
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(pool, divmod, 1, 0)
        results = await asyncio.gather(*(loop.run_in_executor(pool, abs, -n) for n in range(200)))
        assert results == list(range(200))

    asyncio.run(main())


# --- map ---


def test_a_loop_has_it_as_its_own():
    """For `to_thread`, and for whoever names no executor; the loop shuts it down."""

    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPool(1, "ours"))
        found = [await asyncio.to_thread(threading.current_thread), await loop.run_in_executor(None, os.getpid)]
        await loop.shutdown_default_executor()
        return found

    thread, pid = asyncio.run(main())

    assert thread.name == "ours_0"
    assert pid == os.getpid()
    assert not thread.is_alive()


def test_map_takes_no_more_than_its_buffer_ahead(pool):
    """Of an endless iterable, say; each call goes through `submit`."""
    taken = itertools.count()

    results = pool.map(abs, (-next(taken) for _ in itertools.count()), buffersize=3)

    assert next(taken) == 3  # three of them, 0 to 2
    assert [next(results) for _ in range(5)] == [0, 1, 2, 4, 5]
    assert next(taken) == 9
    results.close()


def test_map_submits_all_at_once_without_a_buffer(gate):
    """Before its first result is asked for, by the `submit` of a subclass too."""

    class Counting(ThreadPool):
        calls = 0

        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return super().submit(fn, *args, **kwargs)

    with Counting(1) as pool:
        fill(pool, gate, 1)

        results = pool.map(pow, [1, 2, 3], itertools.count(2))

        assert pool.calls == 4
        gate.set()
        assert list(results) == [1, 8, 81]


def test_map_that_ends_early_cancels_the_rest(pool, gate):
    """Closed, or at an error, or at its timeout."""
    ran: list[int] = []
    fill(pool, gate, 2)
    results = pool.map(ran.append, range(5), timeout=0)

    with pytest.raises(TimeoutError):
        next(results)
    gate.set()
    pool.shutdown()

    assert ran == []


@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (-1, ValueError), ("3", TypeError), (True, TypeError)])
def test_a_buffer_that_makes_no_sense_is_refused(pool, size, error):
    """At the call, not at the first result."""
    with pytest.raises(error, match="buffersize"):
        pool.map(abs, [1], buffersize=size)


# --- the end of the program, and forks ---


def test_a_program_that_forgets_a_pool_ends_after_its_calls(start):
    """The stock rule: what was accepted is done. Nothing is accepted any more, in words that drivers know."""
    program = start(
        PRELUDE
        + textwrap.dedent(
            """
            import atexit
            from taskback.pools import ThreadPool
            @atexit.register
            def late():
                for pool in (used, ThreadPool(1)):
                    try:
                        pool.submit(say, "never")
                    except RuntimeError as error:
                        say(error)
            def say(words):
                os.write(1, f"{words}\\n".encode())  # at once and in one piece
            used, began, go = ThreadPool(1), threading.Event(), threading.Event()
            def first():
                began.set(); go.wait()
            used.submit(first)
            used.submit(say, "second")
            dropped = ThreadPool(1)
            dropped.submit(go.wait)
            dropped.submit(say, "of one that is gone")
            del dropped
            began.wait()
            threading._register_atexit(go.set)  # the last hook runs first
            """
        )
    )

    assert program.end() == 0, program.err

    lines = program.out.splitlines()
    assert sorted(lines[:2]) == ["of one that is gone", "second"]
    assert lines[2:] == ["cannot schedule new futures after interpreter shutdown"] * 2
    assert program.err == ""


def test_a_call_that_waits_for_a_task_does_not_hold_up_the_end(start):
    """The backend ends its tasks before the end of the program waits for calls, whichever of the two came first."""
    program = start(
        PRELUDE
        + textwrap.dedent(
            """
            import logging; logging.disable(logging.CRITICAL)
            from taskback.pools import ThreadPool
            first = ThreadPool(1)
            backend = threads(loop)
            handle = backend.submit_sync({})
            pools = [first, ThreadPool(1)]
            def call():
                tell("waits")
                try:
                    handle.result()
                except CancelledError:
                    os.write(1, b"cancelled\\n")
            for pool in pools: pool.submit(call)
            """
        )
    )
    assert {program.line() for _ in range(3)} == {"waits", str(program.process.pid)}

    assert program.end() == 0, program.err

    assert program.out == "cancelled\n" * 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_fork_has_a_pool_of_its_own():
    """The child's copy begins afresh, also where the parent's threads are all busy and its locks are held."""
    code = """if True:
        import os, threading, warnings
        warnings.simplefilter("ignore")  # of forks beside threads
        from taskback.pools import ThreadPool
        pool, gate = ThreadPool(1), threading.Event()
        held = pool.submit(gate.wait)
        waits = pool.submit(abs, -1)
        pool._lock.acquire(); pool._states.acquire()
        child = os.fork()
        if child == 0:
            print(pool.submit(abs, -5).result(20), flush=True)
            pool.shutdown()
            os._exit(0)
        pool._states.release(); pool._lock.release()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        gate.set()
        print(waits.result(20))
    """

    done = run_python("-c", code)

    assert (done.returncode, done.stdout, done.stderr) == (0, "5\n1\n", "")
