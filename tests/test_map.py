"""`map` and `submit_many` of backends: in order, lazily, each task for itself, whatever becomes of the others."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import itertools
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from taskback import (
    AsyncFireAndTrackBackend,
    BackendClosedError,
    ProcessPoolTaskBackend,
    QueueFullError,
    Retry,
    SyncTaskBackend,
    TaskNotSerializableError,
    TaskRouter,
    ThreadPoolTaskBackend,
    UnknownTaskTypeError,
    WorkerDiedError,
    add_context,
    current_task,
)
from taskback._chunk import FAILED, Chunk
from taskback._state import TaskState
from taskback.pools.child import journal
from taskback.pools.child.journal import Journal
from tests.gates import PATIENCE, Gate, hold
from tests.helpers import until

LIMIT = 60.0
KINDS = [SyncTaskBackend, AsyncFireAndTrackBackend, ThreadPoolTaskBackend, ProcessPoolTaskBackend]
seen: contextvars.ContextVar[int] = contextvars.ContextVar("seen", default=0)


class KillsWhereItIsRebuilt:
    """Cannot be a task: whoever rebuilds it dies."""

    def __reduce__(self) -> tuple[Any, ...]:
        return kill_worker, (os.getpid(),)


def kill_worker(parent: int) -> None:
    """End this process, unless it is the one that the task comes from."""
    if os.getpid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def handler(task: dict[str, Any]) -> Any:  # a word for each
    """Does as it is told."""
    if "log" in task:
        with open(task["log"], "a") as log:  # its name is text
            log.write(f"{task['n']}\n")
    match task.get("do"):
        case "fail":
            raise ValueError(task["n"])
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "hold":
            return hold(task["gate"], task["n"])
        case "id":
            return current_task().id
        case "type":
            return current_task().type
        case "await":
            return waits(task["n"])
        case "change":
            task["inner"].append(1)
            return len(task["inner"])
        case "variable":
            seen.set(seen.get() + 1)
            return seen.get()
        case "large":
            return bytes(task["bytes"])
        case "unpicklable":
            return threading.Lock()
        case "retry":
            if current_task().attempt < 2 and "." in current_task().id:
                raise Retry(0)
            return "again"
        case "loop":
            while True:
                pass
    return task["n"]


async def waits(n: int) -> int:
    """Asynchronously."""
    await asyncio.sleep(0.001)
    return n


@pytest.fixture
def backend() -> Iterator[ProcessPoolTaskBackend]:
    """Two workers."""
    with ProcessPoolTaskBackend(handler, max_workers=2, cancel_grace_seconds=0.5) as backend:
        yield backend
        backend.shutdown_sync(0)


def numbers(count: int, **more: Any) -> Iterator[dict[str, Any]]:
    return ({"n": n, **more} for n in range(count))


def counted(path: Path) -> Counter[str]:
    return Counter(path.read_text().split())


# --- on every backend ---


@pytest.mark.parametrize("kind", KINDS)
def test_results_come_in_order(kind):
    """By `for`, by `async for`, and by taking one after the other."""

    async def main() -> list[Any]:
        async with kind(handler) as backend:
            return [result async for result in backend.map(numbers(300))]

    assert asyncio.run(main()) == list(range(300))
    if kind is AsyncFireAndTrackBackend:
        return
    with kind(handler) as backend:
        assert list(backend.map(numbers(300))) == list(range(300))
        assert list(backend.map([])) == []
        results = backend.map(iter(list(numbers(3))))
        assert [next(results), next(results), next(results), next(results, "end")] == [0, 1, 2, "end"]


@pytest.mark.parametrize("kind", [ThreadPoolTaskBackend, ProcessPoolTaskBackend])
@pytest.mark.parametrize("chunksize", [None, 1, 7])
def test_one_that_fails_fails_alone(kind, chunksize):
    """It raises in its place, and whoever goes on gets the others' results; or they are all results."""
    tasks = list(numbers(50))
    tasks[20]["do"] = tasks[21]["do"] = "fail"
    with kind(handler, max_workers=2) as backend:
        given = list(backend.map(tasks, chunksize=chunksize, return_exceptions=True))
        results = backend.map(tasks, chunksize=chunksize)
        taken = list(itertools.islice(results, 20))
        for n in (20, 21):
            with pytest.raises(ValueError, match=str(n)):
                next(results)
        taken += list(results)

    assert taken == [n for n in range(50) if n not in (20, 21)]
    assert [repr(given[20]), repr(given[21])] == ["ValueError(20)", "ValueError(21)"]
    assert given[:20] + given[22:] == taken


@pytest.mark.parametrize("kind", [ThreadPoolTaskBackend, ProcessPoolTaskBackend])
def test_tasks_are_taken_as_they_are_wanted(kind):
    """So there may be any number of them; `buffersize` says how many may be under way."""
    taken = 0

    def endless() -> Iterator[dict[str, Any]]:
        nonlocal taken
        for n in itertools.count():
            taken += 1
            yield {"n": n}

    with kind(handler, max_workers=2) as backend:
        results = backend.map(endless(), buffersize=5)
        for n in range(100):
            assert next(results) == n
            assert taken <= n + 1 + 5
        results.close()
        assert next(results, "end") == "end"
        until(lambda: not backend.inflight_count)


@pytest.mark.parametrize(
    ("options", "error"),
    [({"chunksize": 0}, ValueError), ({"buffersize": 0}, ValueError), ({"chunksize": 1.5}, TypeError)],
)
def test_arguments_that_make_no_sense_are_refused(backend, options, error):
    """At once."""
    with pytest.raises(error, match=next(iter(options))):
        backend.map([], **options)


# --- in chunks ---


def test_a_crash_costs_the_task_that_crashed(backend, tmp_path):
    """Those before it in the chunk have their results, those after it run elsewhere; none runs twice."""
    log = tmp_path / "log"
    tasks = list(numbers(300, log=str(log)))
    tasks[130]["do"] = tasks[170]["do"] = "die"

    results = list(backend.map(tasks, chunksize=100, return_exceptions=True))

    assert [n for n, result in enumerate(results) if result != n] == [130, 170]
    for n in (130, 170):
        assert isinstance(results[n], WorkerDiedError)
        assert "SIGKILL" in str(results[n])
    assert counted(log) == Counter(map(str, range(300)))
    stats = backend.stats()
    assert (stats.accepted, stats.succeeded, stats.lost, backend.inflight_count) == (300, 298, 2, 0)


def test_one_that_kills_whoever_rebuilds_it_is_found(backend, tmp_path):
    """Nobody knows which task of the chunk did it, so they go one by one; the others run once."""
    log = tmp_path / "log"
    tasks = [*numbers(20, log=str(log))]
    tasks[7]["kills"] = KillsWhereItIsRebuilt()

    results = list(backend.map(tasks, chunksize=10, return_exceptions=True))

    assert [n for n, result in enumerate(results) if result != n] == [7]
    assert isinstance(results[7], WorkerDiedError)
    assert counted(log) == Counter(str(n) for n in range(20) if n != 7)
    assert backend.stats().accepted == 20


def test_one_that_cannot_be_pickled_is_told_in_its_place(backend):
    """And one whose result cannot be."""
    tasks: list[Any] = list(numbers(30))
    tasks[3]["generator"] = (n for n in range(3))
    tasks[4]["do"] = "unpicklable"
    tasks[5] = "no task"

    results = list(backend.map(tasks, chunksize=10, return_exceptions=True))

    assert [n for n, result in enumerate(results) if result != n] == [3, 4, 5]
    assert isinstance(results[3], TaskNotSerializableError)
    assert "cannot" in str(results[4])
    assert isinstance(results[5], TypeError)


def test_tasks_of_a_chunk_share_nothing(backend):
    """What was one object here is one for each task there; so are context variables, ids and types."""
    shared: list[int] = []
    one = {"do": "change", "inner": shared}

    assert list(backend.map([one] * 10 + [dict(one) for _ in range(10)], chunksize=20)) == [1] * 20
    assert list(backend.map([{"do": "variable"}] * 20, chunksize=20)) == [1] * 20
    ids = list(backend.map(numbers(20, do="id"), chunksize=10))
    assert len(set(ids)) == 20
    types: list[dict[str, Any]] = [{"do": "type", "type": kind} for kind in ("a", "a", "b", None, "a")]
    assert list(backend.map(types, chunksize=5)) == ["a", "a", "b", None, "a"]


def test_async_handlers_run_in_chunks(backend):
    """One after the other, each to its end."""
    assert list(backend.map(numbers(40, do="await"), chunksize=20)) == list(range(40))


def test_results_of_any_size_and_number_come_whole(backend):
    """More than the journal has room for, and one that is larger than all of it."""
    sizes = [10, journal.DATA + 1, 0, *[70_000] * 5, 3 * journal.DATA, 1]
    tasks = [{"do": "large", "bytes": size} for size in sizes]

    assert list(map(len, backend.map(tasks, chunksize=len(sizes)))) == sizes
    assert list(backend.map(numbers(10_000), chunksize=10_000)) == list(range(10_000))


def test_a_crash_after_some_results_were_sent(backend):
    """What was sent counts once, though it may stand in the journal still."""
    tasks = [{"do": "large", "bytes": 70_000} for _ in range(7)]
    tasks[6]["do"] = "die"

    results = list(backend.map(tasks, chunksize=7, return_exceptions=True))

    assert list(map(len, results[:6])) == [70_000] * 6
    assert isinstance(results[6], WorkerDiedError)


def test_what_was_sent_and_not_cleared_yet_counts_once():
    """Race: the worker dies between sending what is in its journal and noting that. All of it is there, twice."""
    memory = memoryview(bytearray(journal.SIZE))
    written = Journal(memory)
    written.begin(5)
    for n in range(4):
        assert written.add(b"x" * n, FAILED if n == 3 else 0)
    chunk = Chunk(6)
    chunk.add(*journal.unpack(written.packed()))

    chunk.add(*journal.unpack(Journal(memory).left(5)))
    assert chunk.known == 4
    written.sent()
    assert written.add(b"last", 0)
    chunk.add(*journal.unpack(Journal(memory).left(5)))

    assert [(flag == FAILED, bytes(data)) for flag, data in chunk.records()] == [
        *((False, b"x" * n) for n in range(3)),
        (True, b"xxx"),
        (False, b"last"),
    ]
    assert Journal(memory).left(6) == b""
    assert chunk.figures(TaskState.CANCELLED) == {
        TaskState.SUCCEEDED: 4,
        TaskState.FAILED: 1,
        TaskState.CANCELLED: 1,
    }


def test_one_that_asks_to_be_called_again_is(backend):
    """By itself, as if it had been submitted so."""
    tasks = list(numbers(9))
    tasks[4]["do"] = "retry"

    assert list(backend.map(tasks, chunksize=9)) == [0, 1, 2, 3, "again", 5, 6, 7, 8]


def test_what_nobody_takes_is_cancelled(backend, tmp_path):
    """When it is closed, and when nobody refers to it any more; also a handler that never ends."""
    for how in ("close", "drop"):
        results: Any = backend.map(numbers(1000, do="loop"), chunksize=10)
        with ThreadPoolExecutor(1) as other:
            begun = other.submit(next, results, None)
            until(lambda: backend.stats().running)
            if how == "close":
                results.close()
                assert begun.result(LIMIT) is None
            else:
                results._flying[0].handle.cancel()
                with pytest.raises(CancelledError):
                    begun.result(LIMIT)
        del results, begun
        gc.collect()
        until(lambda: not backend.inflight_count)

    stats = backend.stats()
    assert stats.accepted == stats.cancelled > 0


def test_a_loop_that_is_left_cancels_the_rest(backend):
    """As the standard library's `map` does."""
    for result in backend.map(itertools.chain(numbers(10), numbers(1000, do="loop")), chunksize=5):
        if result == 9:
            break

    until(lambda: not backend.inflight_count)


def test_a_shutdown_says_what_is_unfinished(backend, tmp_path):
    """Each task has a result or is in the report, those of a chunk under way one by one; none of them twice."""
    log = tmp_path / "log"
    gate = Gate(tmp_path)
    tasks = list(numbers(400, log=str(log)))
    tasks[53] |= {"do": "hold", "gate": gate.path}
    results = backend.map(tasks, chunksize=50, return_exceptions=True)
    with ThreadPoolExecutor(1) as other:
        taken = other.submit(list, results)
        gate.wait_said()
        report = backend.shutdown_sync(0)
        outcome = taken.result(LIMIT)
    gate.close()

    done = {n for n, result in enumerate(outcome) if result == n}
    unfinished = Counter(task["n"] for task in report.unfinished)
    refused = {n for n, result in enumerate(outcome) if isinstance(result, BackendClosedError)}
    assert {50, 51, 52} <= done
    assert 53 in unfinished
    assert done | set(unfinished) | refused == set(range(400))
    assert not done & set(unfinished)
    assert max(unfinished.values()) == 1
    assert max(counted(log).values()) == 1
    stats = backend.stats()
    assert stats.accepted == stats.succeeded + stats.cancelled


@pytest.mark.parametrize("why", ["policy", "timeout", "listener", "context", "limit", "kept", "fresh"])
def test_where_each_task_counts_they_go_one_by_one(why):
    """With all that a task of its own has."""
    router = TaskRouter()
    router.handler("t", handler, **({"max_running": 1} if why == "policy" else {}))
    by_name: dict[str, dict[str, Any]] = {
        "timeout": {"timeout": LIMIT},
        "limit": {"max_queued": 4},
        "kept": {"keep_ended": 100},
        "fresh": {"max_tasks_per_child": 1},
    }
    options = by_name.get(why, {})
    events: list[Any] = []
    with ProcessPoolTaskBackend(router, max_workers=2, **options) as backend:
        if why == "listener":
            backend.subscribe(events.append)
        remove = add_context(lambda: {"a": "b"}, no_restore) if why == "context" else lambda: None
        try:
            ids = list(backend.map(({"type": "t", "do": "id", "n": n} for n in range(20)), chunksize=5))
        finally:
            remove()
    assert len(set(ids)) == 20
    assert not any("." in each for each in ids)
    if why == "listener":
        assert Counter(type(event).__name__ for event in events)["TaskFinished"] == 20


def no_restore(context: Any) -> None:
    """Nothing."""


def test_a_type_without_a_handler_is_told_in_its_place():
    """The others run."""
    router = TaskRouter()
    router.handler("t", handler)
    with ProcessPoolTaskBackend(router, max_workers=1) as backend:
        tasks = [{"type": "t", "n": 0}, {"type": "unknown"}, {"type": "t", "n": 2}]
        results = list(backend.map(tasks, chunksize=3, return_exceptions=True))

    assert results[::2] == [0, 2]
    assert isinstance(results[1], UnknownTaskTypeError)


def test_chunks_grow_as_long_as_they_are_short(backend):
    """Many that do nothing share a chunk; those that take longer than one is to take have one each."""
    few = backend.map(numbers(20_000))
    assert sum(1 for _ in few) == 20_000
    assert few._size > 100
    slow = backend.map([{"do": "await", "n": 1, "x": 1}] * 100)
    assert sum(1 for _ in slow) == 100
    assert slow._size < 100


def test_workers_that_are_killed_at_random_lose_what_they_were_at_alone(backend, tmp_path):
    """Each task has a result or is lost, once each; whatever is lost was begun."""
    log = tmp_path / "log"
    stop = threading.Event()

    def kill() -> None:
        while not stop.wait(0.05):
            for worker in backend.stats().workers:
                if worker.task_id is not None:
                    os.kill(worker.pid, signal.SIGKILL)
                    break

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        results = list(backend.map(numbers(20_000, log=str(log)), return_exceptions=True))
    finally:
        stop.set()
        killer.join()

    lost = [n for n, result in enumerate(results) if result != n]
    assert {type(results[n]) for n in lost} <= {WorkerDiedError}
    assert max(counted(log).values()) == 1
    assert len(counted(log)) >= 20_000 - len(lost)
    stats = backend.stats()
    assert (stats.accepted, stats.succeeded, stats.lost) == (20_000, 20_000 - len(lost), len(lost))


# --- submit_many ---


@pytest.mark.parametrize("kind", KINDS)
def test_many_are_submitted_at_once(kind):
    """A handle each, in order."""

    async def main() -> list[Any]:
        async with kind(handler) as backend:
            return await asyncio.gather(*await backend.submit_many(numbers(100)))

    assert asyncio.run(main()) == list(range(100))
    with kind(handler) as backend:
        handles = backend.submit_many_sync(numbers(100))
        assert not wait(handles, LIMIT).not_done
        assert [handle.result() for handle in handles] == list(range(100))
        assert len({handle.id for handle in handles}) == 100
        assert backend.submit_many_sync([]) == []
        assert backend.stats().succeeded == 100


def test_of_many_none_is_accepted_if_one_is_bad(backend):
    """They are checked first, and pickled."""
    for bad, error in (("no task", TypeError), ({"x": threading.Lock()}, TaskNotSerializableError)):
        with pytest.raises(error):
            backend.submit_many_sync([{"n": 0}, bad])
    with pytest.raises(ValueError, match="an id is one task's"):
        backend.submit_many_sync([{"n": 0}], id="x")
    with pytest.raises(TypeError, match="unknown option"):
        backend.submit_many_sync([{"n": 0}], colour="red")

    assert backend.stats().accepted == 0
    backend.shutdown_sync()
    with pytest.raises(BackendClosedError):
        backend.submit_many_sync([{"n": 0}])


def test_many_keep_their_options_keys_and_limits(tmp_path):
    """A priority overtakes; one that joins by its key shares its handle's run; a full queue refuses."""
    router = TaskRouter()
    router.handler("keyed", handler, key="n", coalesce="drop")
    router.handler("t", handler)
    gate = Gate(tmp_path)
    log = tmp_path / "log"
    with ProcessPoolTaskBackend(router, max_workers=1) as backend:
        holder = backend.submit_sync({"type": "t", "do": "hold", "gate": gate.path, "n": "held"})
        gate.wait_said()
        low = backend.submit_many_sync([{"type": "t", "n": n, "log": str(log)} for n in range(3)])
        high = backend.submit_many_sync([{"type": "t", "n": n, "log": str(log)} for n in (7, 8)], priority=5)
        joined = backend.submit_many_sync([{"type": "keyed", "n": 1}, {"type": "keyed", "n": 1}])
        gate.open()
        assert not wait([holder, *low, *high, *joined], LIMIT).not_done
        assert joined[0].id == joined[1].id
    gate.close()
    assert log.read_text().split() == ["7", "8", "0", "1", "2"]

    gate = Gate(tmp_path, "other")
    with ProcessPoolTaskBackend(handler, max_workers=1, max_queued=2, when_full="reject") as limited:
        holder = limited.submit_sync({"do": "hold", "gate": gate.path, "n": "held"})
        gate.wait_said()
        with pytest.raises(QueueFullError):
            limited.submit_many_sync(numbers(5))
        gate.open()
        holder.result(PATIENCE)
        until(lambda: not limited.inflight_count)
        assert limited.stats().succeeded == 3
    gate.close()
