"""The loop runs from start to stop, and whoever calls it is told whether there is one."""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from taskback import AsyncFireAndTrackBackend
from taskback._keeper import MOST_FAILURES, LoopThread, join


def test_it_runs_what_it_is_told_on_its_own_thread_and_can_start_again():
    """Before start and after stop call() says False."""
    keeper = LoopThread("test-keeper")
    assert not keeper.call(list)
    for _ in range(2):
        loop, here, ran = keeper.start(), list[bool](), threading.Event()
        assert keeper.start() is loop

        assert keeper.call(lambda here=here, ran=ran: (here.append(keeper.here()), ran.set()))
        assert ran.wait(5)

        assert join(keeper.stop(), time.monotonic() + 10)
        assert here == [True]
        assert loop.is_closed()
        assert not keeper.call(list)


def test_what_is_left_in_the_loop_is_cancelled_at_its_end():
    """A task that waits for ever does not keep the thread."""
    keeper, began, cancelled = LoopThread("test-keeper"), threading.Event(), threading.Event()

    async def wait() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    task = asyncio.run_coroutine_threadsafe(wait(), keeper.start())
    assert began.wait(5)

    assert join(keeper.stop(), time.monotonic() + 10)

    assert cancelled.is_set()
    assert task.cancelled()


def test_threads_that_start_it_together_get_one_loop():
    """It is started once."""
    keeper, together = LoopThread("test-keeper"), threading.Barrier(8)

    def start() -> asyncio.AbstractEventLoop:
        together.wait(10)
        return keeper.start()

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            loops = set(pool.map(lambda _: start(), range(8)))
    finally:
        sys.setswitchinterval(before)

    assert len(loops) == 1
    assert [thread.name for thread in threading.enumerate()].count("test-keeper") == 1
    assert join(keeper.stop(), time.monotonic() + 10)


def test_a_program_that_ends_starts_no_loop(monkeypatch):
    """The error is passed on, the loop that was made is closed, and the keeper can start later."""
    keeper, made = LoopThread("test-keeper"), list[asyncio.AbstractEventLoop]()
    new_loop = asyncio.new_event_loop

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread at interpreter shutdown")

    monkeypatch.setattr(asyncio, "new_event_loop", lambda: made.append(new_loop()) or made[-1])
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="interpreter shutdown"):
            keeper.start()

    assert [loop.is_closed() for loop in made] == [True]
    assert not keeper.call(list)
    keeper.start()
    assert join(keeper.stop(), time.monotonic() + 10)


def test_what_was_called_before_the_stop_is_called():
    """In order, though the loop had no time yet."""
    keeper, ran = LoopThread("test-keeper"), list[int]()
    keeper.start()
    for number in range(100):
        assert keeper.call(ran.append, number)

    assert join(keeper.stop(), time.monotonic() + 10)

    assert ran == list(range(100))


def test_a_loop_that_ended_by_itself_is_no_loop():
    """call() says False, and stop() does no harm, as often as it is called."""
    keeper = LoopThread("test-keeper")
    loop = keeper.start()
    thread = keeper._thread
    loop.call_soon_threadsafe(loop.stop)
    assert join(thread, time.monotonic() + 10)

    assert not keeper.call(list)
    keeper.stop()
    keeper.stop()

    assert not keeper.call(list)


def test_no_exception_ends_a_loop(caplog):
    """Not what asyncio lets through; and one that has no end of them is replaced."""
    keeper, ran = LoopThread("test-keeper"), list[str]()
    loop, thread = keeper.start(), keeper._thread
    ended = threading.Event()

    def leave() -> None:
        raise SystemExit(3)

    keeper.call(leave)
    keeper.call(ran.append, "after")
    keeper.call(ended.set)
    assert ended.wait(10)
    assert ran == ["after"]
    assert keeper.start() is loop

    for _ in range(MOST_FAILURES - 1):
        keeper.call(leave)
    assert join(thread, time.monotonic() + 10)

    assert not keeper.call(list)
    assert keeper.start() is not loop
    assert keeper.call(list)
    assert join(keeper.stop(), time.monotonic() + 10)
    assert (
        len([record for record in caplog.records if "goes on after an error" in record.getMessage()]) == MOST_FAILURES
    )


def test_joining_waits_no_longer_than_the_deadline_and_never_for_oneself():
    """False where the thread has not ended."""
    keeper, gate, joined = LoopThread("test-keeper"), threading.Event(), list[bool]()
    keeper.start()
    keeper.call(lambda: (joined.append(join(keeper._thread, float("inf"))), gate.wait(10)))

    thread = keeper.stop()
    in_time = join(thread, time.monotonic())
    gate.set()

    assert not in_time
    assert join(thread, float("inf"))
    assert joined == [True]
    assert join(None, 0.0)


def test_an_async_generator_is_closed_with_its_loop():
    """What it has to clean up is cleaned up."""
    keeper, cleaned_up, held = LoopThread("test-keeper"), threading.Event(), list[AsyncIterator[int]]()

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            cleaned_up.set()

    async def take_one() -> int:
        held.append(numbers())
        return await anext(held[0])

    assert asyncio.run_coroutine_threadsafe(take_one(), keeper.start()).result(5) == 1

    assert join(keeper.stop(), time.monotonic() + 10)

    assert cleaned_up.is_set()


def test_a_handlers_keyboard_interrupt_costs_its_own_task_alone():
    """In the loop that a backend has for callers without one."""

    async def handler(task: dict[str, Any]) -> int:
        if task["n"] == 1:
            raise KeyboardInterrupt
        return int(task["n"])

    backend = AsyncFireAndTrackBackend(handler)
    try:
        first = backend.submit_sync({"n": 1})
        assert type(first.exception(10)) is KeyboardInterrupt
        assert [backend.run_sync({"n": n}, wait=10) for n in (2, 3)] == [2, 3]
    finally:
        backend.shutdown_sync(1)
