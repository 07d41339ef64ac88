"""How tasks are handed over: from threads and from event loops, one by one and many at a time, and taken back.

A submitter goes on until its life's `enough` is set, or the backend is closed. It never has more in flight than a life
may have, so that the end of one is not all queue.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any, Final

from soak import kinds, work
from soak.book import Book, Ticket
from soak.kinds import Context, Kind
from soak.places import Place
from taskback import BackendClosedError, QueueFullError

MOST_OPEN: Final = 3000  # tasks of one life
MOST_IN_POOL: Final = 500  # of a pool, whose shutdown waits for all of them
PATIENCE: Final = 120.0  # seconds; beyond that the run's own deadline tells more than an error here would


class Load:
    """What a life's submitters share.

    Args:
        place (Place): Where.
        subject (Any): The backend or pool.
        book (Book): Of the life.
        rng (random.Random): Seeded.
        directory (str): For the effects' file and lock files.
        most_bytes (int): Of one payload.
    """

    def __init__(
        self, place: Place, subject: Any, book: Book, rng: random.Random, directory: str, most_bytes: int
    ) -> None:
        self.place = place
        self.subject = subject
        self.book = book
        self.enough = threading.Event()
        self.context = Context(rng, directory, place.where, most_bytes, {})
        # What a handler leaves behind is there for as long as its worker: of one that lives on it would be counted.
        self._kinds = [
            kind
            for kind in kinds.KINDS
            if place.where in kind.where and (place.weight or kind.make is not kinds.leave_a_child)
        ]
        self._weights = [kind.weight for kind in self._kinds]
        self.over = threading.Event()  # nothing of this life is in flight any more
        self.most_open = MOST_IN_POOL if place.is_pool else MOST_OPEN
        self.bursts = place.where != kinds.FOREIGN
        limits = getattr(subject, "_limits", None)
        self.one_by_one = limits is not None and limits.any  # or it is not known which ones of a burst were refused
        book.sheds = limits is not None and limits.any and limits.when_full == "shed"

    def any_kind(self, rng: random.Random, awaited: bool = False) -> Kind:
        """One of those that make sense there; `awaited`: none whose error would end the event loop that awaits it."""
        while True:
            found = rng.choices(self._kinds, self._weights)[0]
            if not (awaited and found.make is kinds.fail_oddly):
                return found

    def make(self, kind: Kind) -> tuple[Ticket, dict[str, Any]]:
        """A task of that kind, written down as handed over, and its ticket."""
        ticket = self.book.new(kind.name)
        task, expected = kind.make(self.context, ticket.number)
        task = {"type": "plain", **task, "n": ticket.number, "effects": self.book.path}
        self.book.hands_over(ticket, expected)
        return ticket, task

    def quick(self, count: int) -> list[tuple[Ticket, dict[str, Any]]]:
        """Several of the quickest kind."""
        return [self.make(_QUICK) for _ in range(count)]

    def makes_room(self) -> bool:
        """Wait until there may be more in flight; False once there is enough."""
        while len(self.book.open) > self.most_open and not self.enough.is_set():
            time.sleep(0.002)
        return not self.enough.is_set()


_QUICK: Final = next(kind for kind in kinds.KINDS if kind.make is kinds.quick)
_REFUSALS: Final = (BackendClosedError, QueueFullError)


class _Refused(Exception):
    """The backend takes nothing any more."""


def _refused(load: Load, tickets: list[Ticket], error: BaseException) -> None:
    """A submission raised; says whether that is the end, and whether it was right."""
    for ticket in tickets:
        load.book.refused(ticket)
    if isinstance(error, QueueFullError):
        return
    if isinstance(error, BackendClosedError):
        raise _Refused from error
    if load.place.is_pool and isinstance(error, RuntimeError) and "shutdown" in str(error):
        raise _Refused from error
    if load.book.starved and isinstance(error, (OSError, RuntimeError)):
        return
    load.book.violation(tickets[0], f"submitting it raised {error!r}")


# --- from a thread ---


def from_thread(load: Load, rng: random.Random) -> None:
    """Submit until it is enough."""
    cancels: deque[tuple[float, Ticket, Any]] = deque()
    ways = [_one, _burst, _one_to_cancel, _mapped, _run_sync, _joined_by_id]
    weights = [6.0, 2.5, 2.0, 0.8, 1.0, 0.5]
    if load.place.is_pool:
        ways, weights = [_one, _burst, _one_to_cancel, _mapped], [6.0, 2.5, 2.0, 0.5]
    elif load.place.where == kinds.INLINE:
        ways, weights = [_one, _burst, _mapped, _run_sync], [6.0, 1.0, 0.5, 1.0]
    elif not load.bursts:
        ways, weights = [_one, _one_to_cancel], [6.0, 1.0]
    try:
        while load.makes_room():
            rng.choices(ways, weights)[0](load, rng, cancels)
            while cancels and (cancels[0][0] < time.monotonic() or len(cancels) > 50):
                _cancel(*cancels.popleft()[1:])
            if not load.bursts:
                time.sleep(0.002)
    except _Refused:
        pass
    except BaseException as error:
        load.book.violation(None, f"a submitter ended: {error!r} {_where(error)}")


def _submit(load: Load, ticket: Ticket, task: dict[str, Any], **more: Any) -> Any:
    """Hand a task over; None where it was refused."""
    try:
        if load.place.is_pool:
            found = load.subject.submit(work.call, task)
        else:
            found = load.subject.submit_sync(task, **ticket.expected.options, **more)
    except BaseException as error:
        _refused(load, [ticket], error)
        return None
    return load.book.took(ticket, found)


def _one(load: Load, rng: random.Random, _: Any) -> None:
    ticket, task = load.make(load.any_kind(rng))
    _submit(load, ticket, task)


def _burst(load: Load, rng: random.Random, _: Any) -> None:
    count = rng.choice((1, 10, 100, 300))
    if load.place.is_pool or load.one_by_one:
        for _ in range(count):
            _submit(load, *load.make(_QUICK))
        return
    made = load.quick(count)
    try:
        handles = load.subject.submit_many_sync([task for _, task in made])
    except BaseException as error:
        _refused(load, [ticket for ticket, _ in made], error)
        return
    for (ticket, _), handle in zip(made, handles, strict=True):
        load.book.took(ticket, handle)


def _one_to_cancel(load: Load, rng: random.Random, cancels: deque[Any]) -> None:
    ticket, task = load.make(load.any_kind(rng))
    ticket.stopped = True
    handle = _submit(load, ticket, task)
    if handle is not None:
        cancels.append((time.monotonic() + rng.choice((0, 0, 0.001, 0.01, 0.05)), ticket, handle))


def _cancel(ticket: Ticket, handle: Any) -> None:
    handle.cancel()


def _joined_by_id(load: Load, rng: random.Random, _: Any) -> None:
    """The same task twice, under one id: the second handle joins the first, or runs it anew where that is over."""
    ticket, task = load.make(_SLEEP if load.place.where != kinds.LOOP else _QUICK)
    ticket.expected.again = True
    first = _submit(load, ticket, task, id=f"soak-{ticket.number}")
    if first is None:
        return
    with suppress(*_REFUSALS, OSError):
        load.subject.submit_sync(task, id=f"soak-{ticket.number}")
        load.book.submitted += 1


def _run_sync(load: Load, rng: random.Random, _: Any) -> None:
    ticket, task = load.make(_QUICK)
    try:
        result = load.subject.run_sync(task, wait=PATIENCE)
    except _REFUSALS as error:
        _refused(load, [ticket], error)
    except BaseException as error:
        load.book.gave(ticket, error)
    else:
        load.book.gave(ticket, result)


def _feed(load: Load, count: int, given: deque[Ticket]) -> Iterator[dict[str, Any]]:
    for _ in range(count):
        ticket, task = load.make(_QUICK)
        given.append(ticket)
        yield task


def _mapped(load: Load, rng: random.Random, _: Any) -> None:
    given: deque[Ticket] = deque()
    count = rng.choice((10, 300, 2000))
    sudden = rng.random() < 0.15  # is closed before its end
    most = rng.randrange(count) if sudden else count
    feed = _feed(load, count, given)
    if load.place.is_pool:
        _pool_mapped(load, rng, feed, given, most)
        return
    results = load.subject.map(feed, return_exceptions=True, chunksize=rng.choice((None, None, 1, 50)))
    try:
        for _, outcome in zip(range(most), results, strict=False):
            _give(load, given.popleft(), outcome)
            if load.enough.is_set():  # where workers are killed all the time the rest may take long
                break
    finally:
        results.close()
        while given:
            load.book.gave_none(given.popleft())


def _pool_mapped(load: Load, rng: random.Random, feed: Iterator[Any], given: deque[Ticket], most: int) -> None:
    """An executor's map ends with the first error; the rest of it is called off."""
    chunksize = rng.choice((1, 20))
    try:
        results = load.subject.map(work.call, feed, chunksize=chunksize)
        for _, outcome in zip(range(most), results, strict=False):
            load.book.gave(given.popleft(), outcome)
        if hasattr(results, "close"):
            results.close()
    except (RuntimeError, CancelledError) as error:  # closed, or a worker died
        if chunksize == 1 and load.place.where != kinds.POOL and "shutdown" not in str(error):
            load.book.violation(None, f"map of the pool raised {error!r}")
    finally:
        while given:
            load.book.gave_none(given.popleft())


def _give(load: Load, ticket: Ticket, outcome: Any) -> None:
    if isinstance(outcome, _REFUSALS):
        ticket.stopped = True
        load.book.gave(ticket, _cancelled())
    else:
        load.book.gave(ticket, outcome)


def _cancelled() -> BaseException:
    return asyncio.CancelledError()


_SLEEP: Final = next(kind for kind in kinds.KINDS if kind.make is kinds.sleep)


# --- from an event loop ---


def from_loop(load: Load, rng: random.Random) -> None:
    """The same from an event loop, with several coroutines that submit."""
    try:
        asyncio.run(_from_loop(load, rng))
    except BaseException as error:
        load.book.violation(None, f"a submitter's loop ended: {error!r} {_where(error)}")


async def _from_loop(load: Load, rng: random.Random) -> None:
    await asyncio.gather(*(_coroutine(load, random.Random(rng.random())) for _ in range(4)))
    load.enough.set()
    if load.place.where == kinds.LOOP:  # its tasks run here
        deadline = time.monotonic() + PATIENCE
        while not load.over.is_set() and time.monotonic() < deadline:
            await asyncio.sleep(0.005)


async def _coroutine(load: Load, rng: random.Random) -> None:
    ways = [_awaited, _awaited_and_cancelled, _gathered, _mapped_async, _timed, _run_and_cancelled]
    weights = [5.0, 2.0, 1.0, 0.4, 1.0, 1.0]
    try:
        while not load.enough.is_set():
            while len(load.book.open) > load.most_open and not load.enough.is_set():
                await asyncio.sleep(0.002)
            await rng.choices(ways, weights)[0](load, rng)
            await asyncio.sleep(0)
    except _Refused:
        pass


async def _submit_async(load: Load, ticket: Ticket, task: dict[str, Any]) -> Any:
    try:
        found = await load.subject.submit(task, **ticket.expected.options)
    except BaseException as error:
        if isinstance(error, asyncio.CancelledError):
            load.book.refused(ticket)
            raise
        _refused(load, [ticket], error)
        return None
    return load.book.took(ticket, found)


async def _awaited(load: Load, rng: random.Random) -> None:
    ticket, task = load.make(load.any_kind(rng, awaited=True))
    handle = await _submit_async(load, ticket, task)
    if handle is not None and rng.random() < 0.5:
        with suppress(Exception, asyncio.CancelledError):
            await handle


async def _awaited_and_cancelled(load: Load, rng: random.Random) -> None:
    """A coroutine that awaits a task is cancelled, which stops the task."""
    ticket, task = load.make(load.any_kind(rng, awaited=True))
    ticket.stopped = True
    handle = await _submit_async(load, ticket, task)
    if handle is None:
        return

    async def wait() -> None:
        await handle

    waits = asyncio.ensure_future(wait())
    await asyncio.sleep(rng.choice((0, 0.001, 0.01)))
    waits.cancel()
    await asyncio.wait([waits])
    if not waits.cancelled():
        waits.exception()  # it was quicker


async def _gathered(load: Load, rng: random.Random) -> None:
    handles = [await _submit_async(load, *load.make(_QUICK)) for _ in range(rng.choice((5, 50)))]
    await asyncio.gather(*(handle for handle in handles if handle is not None), return_exceptions=True)


async def _timed(load: Load, rng: random.Random) -> None:
    ticket, task = load.make(load.any_kind(rng, awaited=True))
    ticket.stopped = True
    handle = await _submit_async(load, ticket, task)
    if handle is not None:
        with suppress(Exception, asyncio.CancelledError):
            await asyncio.wait_for(asyncio.shield(handle) if rng.random() < 0.5 else handle, 0.005)


async def _run_and_cancelled(load: Load, rng: random.Random) -> None:
    """`run` in a task of the loop, which is cancelled at whatever it is at."""
    ticket, task = load.make(_QUICK)
    ticket.stopped = True
    runs = asyncio.ensure_future(load.subject.run(task))
    await asyncio.sleep(rng.choice((0, 0, 0.001)))
    runs.cancel()
    await asyncio.wait([runs])
    if runs.cancelled():
        load.book.gave_none(ticket)
    elif isinstance(runs.exception(), _REFUSALS):
        _refused(load, [ticket], runs.exception() or RuntimeError())
    else:
        load.book.gave(ticket, runs.exception() or runs.result())


async def _mapped_async(load: Load, rng: random.Random) -> None:
    given: deque[Ticket] = deque()
    results: AsyncIterator[Any] = load.subject.map(_feed(load, rng.choice((10, 300)), given), return_exceptions=True)
    try:
        async for outcome in results:
            _give(load, given.popleft(), outcome)
    finally:
        results.close()  # type: ignore[attr-defined]  # it is a Mapped
        while given:
            load.book.gave_none(given.popleft())


def _where(error: BaseException) -> str:
    import traceback

    return "".join(traceback.format_tb(error.__traceback__)[-3:])
