"""Wake-ups of an event loop from other threads ride along with the first."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import Any

import pytest

from taskback import ProcessPoolTaskBackend, ThreadPoolTaskBackend
from taskback._mailbox import MOST, Mailbox, mailbox_of


def in_thread(function: Any) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def test_a_burst_wakes_the_loop_once(monkeypatch):
    """What comes before the loop has its turn goes with the first."""

    async def main() -> tuple[list[int], int]:
        loop = asyncio.get_running_loop()
        woken = 0
        real = loop.call_soon_threadsafe

        def count(*args: Any, **options: Any) -> Any:
            nonlocal woken
            woken += 1
            return real(*args, **options)

        monkeypatch.setattr(loop, "call_soon_threadsafe", count)
        called: list[int] = []
        mailbox = Mailbox(loop)
        in_thread(lambda: [mailbox.post(lambda n=n: called.append(n)) for n in range(100)])
        assert called == []
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return called, woken

    called, woken = asyncio.run(main())

    assert called == list(range(100))
    assert woken == 1


def test_a_long_burst_lets_others_have_their_turn():
    """Some hundreds a turn."""

    async def main() -> list[int]:
        mailbox, seen, called = Mailbox(asyncio.get_running_loop()), [], [0]

        def one() -> None:
            called[0] += 1

        for _ in range(3 * MOST):
            mailbox.post(one)
        while called[0] < 3 * MOST:
            seen.append(called[0])
            await asyncio.sleep(0)
        return seen

    seen = asyncio.run(main())

    assert {MOST, 2 * MOST} <= set(seen)


def test_what_comes_in_the_turn_that_empties_is_not_forgotten():
    """Race: (1) and (2) of the mailbox: it is posted by what the turn calls, which is after it has cleared its flag."""

    async def main() -> None:
        mailbox, done = Mailbox(asyncio.get_running_loop()), asyncio.Event()
        mailbox.post(lambda: in_thread(lambda: mailbox.post(done.set)))
        async with asyncio.timeout(20):
            await done.wait()

    asyncio.run(main())


def test_one_that_raises_does_not_keep_the_others(caplog: pytest.LogCaptureFixture):
    """It is told where a loop tells such things."""

    async def main() -> None:
        mailbox, done = Mailbox(asyncio.get_running_loop()), asyncio.Event()
        mailbox.post(lambda: 1 / 0)
        mailbox.post(done.set)
        async with asyncio.timeout(20):
            await done.wait()

    asyncio.run(main())

    assert "a callback of a task handle raised" in caplog.text


def test_a_closed_loop_is_no_error_and_is_not_kept():
    """Nobody waits there any more."""
    loop = asyncio.new_event_loop()
    mailbox = mailbox_of(loop)
    assert mailbox_of(loop) is mailbox
    loop.close()
    mailbox.post(lambda: None)
    mailbox._scheduled = False
    gone = weakref.ref(loop)

    del loop
    gc.collect()

    assert gone() is None
    mailbox.post(lambda: None)
    assert not mailbox._waiting


def handler(task: dict[str, Any]) -> int:
    """Twice the number."""
    n: int = task["n"]
    return 2 * n


@pytest.mark.parametrize("make", [ThreadPoolTaskBackend, ProcessPoolTaskBackend])
def test_handles_are_awaited_in_two_loops_at_once(make):
    """Each loop's waiters are woken there, those of one handle too."""
    count = 500

    async def main(backend: Any, handles: list[Any], results: list[list[int]]) -> None:
        own = [await backend.submit({"n": n}) for n in range(count)]
        results.append(await asyncio.gather(*own, *handles))

    with make(handler, max_workers=2) as backend:
        shared = [backend.submit_sync({"n": n}) for n in range(count)]
        results: list[list[int]] = []
        threads = [threading.Thread(target=lambda: asyncio.run(main(backend, shared, results))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)

    expected = [2 * n for n in range(count)]
    assert results == [expected * 2] * 2
