"""The loop runs from start to stop, and whoever calls it is told whether there is one."""

from __future__ import annotations

import asyncio
import threading
import time

from taskback._keeper import LoopThread, join


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
