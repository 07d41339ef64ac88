"""Large payloads against real workers: what each side may do with them, and what is left of them."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy
import pytest

from taskback import ExecutorTaskBackend, ProcessPoolTaskBackend, TaskRouter, WorkerDiedError, _codec, _packed
from taskback.pools import ProcessPool
from tests import payload_work
from tests.faults import LIMIT
from tests.gates import Gate
from tests.helpers import few_descriptors, run_python

SMALL = 25_000  # numbers in an array that is copied out, of 200 KB
LARGE = 200_000  # in one that is mapped, of 1.6 MB
Do = Callable[..., "Future[Any]"]


@pytest.fixture(autouse=True)
def _no_memory_is_left() -> Iterator[None]:
    """Whatever a test did, this process has no descriptor and no mapping of a payload afterwards."""
    yield
    gc.collect()  # an error that a test has caught has that test's frame, which has the error
    assert payload_work.memory_left() == (0, 0)


@pytest.fixture(params=["pool", "backend"])
def do(request) -> Iterator[Do]:
    """Has the one worker of a pool, or of a backend, do something."""
    if request.param == "pool":
        with ProcessPool(1) as pool:
            yield lambda what, *values: pool.submit(getattr(payload_work, what), *values)
    else:
        with ProcessPoolTaskBackend(payload_work.handler, max_workers=1) as backend:
            yield lambda what, *values: backend.submit_sync({"do": what, "with": values})


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """Where a call stands."""
    gate = Gate(tmp_path)
    yield gate
    gate.close()


def numbers(count: int, seed: int = 1) -> Any:
    """An array like no other."""
    return numpy.random.default_rng(seed).random(count)


VALUES: dict[str, Callable[[], Any]] = {
    "small array": lambda: numbers(100),
    "copied array": lambda: numbers(SMALL),
    "mapped array": lambda: numbers(LARGE),
    "bytes": lambda: os.urandom(300_000),
    "bytearray": lambda: bytearray(os.urandom(300_000)),
    "text": lambda: "a text with ümläuts, " * 20_000,
    "many of them": lambda: {str(n): numbers(SMALL, n) for n in range(30)},
    "the same twice": lambda: [VALUES["copied array"]()] * 2,
    "by columns": lambda: numpy.asfortranarray(numbers(LARGE).reshape(400, 500)),
    "every second": lambda: numbers(2 * LARGE)[::2],
    "whole numbers": lambda: numpy.arange(LARGE, dtype=numpy.int16),
    "empty": lambda: [numpy.empty(0), b"", numbers(LARGE)],
    "a large pickle": lambda: [{"n": n, "text": str(n)} for n in range(20_000)],
    "mixed": lambda: (numbers(LARGE), os.urandom(200_000), "x" * 200_000, {"array": numbers(SMALL)}, [1, 2]),
}


@pytest.mark.parametrize("by_streams", [False, True], ids=["packets", "streams"])
@pytest.mark.parametrize("value", VALUES)
def test_what_is_large_arrives_as_it_was_both_ways(value, by_streams, monkeypatch):
    """Kinds, contents and orders, several times in a row through the same memory."""
    monkeypatch.setattr(ProcessPool, "_by_streams", by_streams)
    with ProcessPool(1) as pool:
        for _ in range(3):
            sent = VALUES[value]()
            assert_same(pool.submit(payload_work.echo, sent).result(LIMIT), sent)


@pytest.mark.parametrize("value", VALUES)
def test_what_is_large_arrives_as_it_was_in_a_task(value):
    """The same through a backend, whose handles give the task back, too."""
    with ProcessPoolTaskBackend(payload_work.handler, max_workers=1) as backend:
        for _ in range(3):
            sent = VALUES[value]()
            handle = backend.submit_sync({"do": "echo", "with": (sent,)})
            assert_same(handle.result(LIMIT), sent)
            assert_same(handle.task["with"][0], sent)


def assert_same(got: Any, sent: Any) -> None:
    """Of one type, with one content."""
    assert type(got) is type(sent)
    if isinstance(sent, numpy.ndarray):
        assert (got.dtype, got.shape, got.flags.writeable) == (sent.dtype, sent.shape, sent.flags.writeable)
        assert got.flags.f_contiguous == (sent.flags.f_contiguous or not sent.flags.forc)
        assert numpy.array_equal(got, sent)
    elif isinstance(sent, dict):
        assert got.keys() == sent.keys()
        for key in sent:
            assert_same(got[key], sent[key])
    elif isinstance(sent, (list, tuple)):
        assert len(got) == len(sent)
        for one, other in zip(got, sent, strict=True):
            assert_same(one, other)
    else:
        assert got == sent


def test_an_array_that_cannot_be_written_stays_so(do):
    """Either way of travelling keeps that."""
    for count in (100, SMALL, LARGE):
        sent = numbers(count)
        sent.flags.writeable = False

        assert not do("echo", sent).result(LIMIT).flags.writeable


@pytest.mark.parametrize("count", [SMALL, LARGE])
def test_a_handler_writes_into_its_array_and_nobody_else_sees_it(do, count):
    """Neither the caller nor the next call, which finds what it was sent."""
    for seed in range(6):
        array = numbers(count, seed)
        before = array.copy()

        assert do("overwrite", array).result(LIMIT) == (float(before.sum()), True)
        assert numpy.array_equal(array, before)


@pytest.mark.parametrize("count", [SMALL, LARGE])
def test_what_a_caller_writes_after_submit_is_not_seen(do, gate, count):
    """Contents are as of submit, however long a call waits; the worker is busy until all is overwritten."""
    first = do("stand", gate.path)
    gate.wait_said()
    arrays = [numbers(count, seed) for seed in range(8)]
    sums = [float(array.sum()) for array in arrays]
    text = bytearray(b"x" * 300_000)
    futures = [do("total", array) for array in arrays]
    echoed = do("echo", text)
    for array in arrays:
        array[:] = -1
    text[:] = b"y" * 300_000

    gate.open()

    assert first.result(LIMIT) == ()
    assert [future.result(LIMIT) for future in futures] == sums
    assert echoed.result(LIMIT) == b"x" * 300_000


@pytest.mark.parametrize("count", [SMALL, 2 * LARGE])
def test_a_result_may_be_a_part_of_the_argument(do, count):
    """It is read from the very memory that its argument came in, and is whole when it arrives."""
    for seed in range(6):
        array = numbers(count, seed)

        assert numpy.array_equal(do("a_slice", array).result(LIMIT), array[: count // 2])


@pytest.mark.parametrize("count", [SMALL, LARGE])
def test_a_handler_may_keep_its_argument(do, count):
    """It stays as it was while other calls come, more of them than there are slabs."""
    sums = []
    for seed in range(8):
        array = numbers(count, seed)
        sums.append(float(array.sum()))
        assert do("keep", array).result(LIMIT) == sums[-1]
        assert do("overwrite", numbers(count, 100 + seed)).result(LIMIT)[1]

    assert do("of_kept").result(LIMIT) == sums


@pytest.mark.parametrize("count", [SMALL, LARGE])
def test_results_that_are_kept_stay_as_they_were(do, count):
    """While others come, and whatever the caller writes into one of them."""
    results = [do("filled", number, count).result(LIMIT) for number in range(12)]
    results[3][:] = -1

    expected = [float(number) for number in range(12)]
    expected[3] = -1
    assert [float(result[0]) for result in results] == expected
    assert all((result == result[0]).all() for result in results)


def test_memory_is_used_again(do):
    """Whatever comes one at a time, and is not kept, costs a worker and its parent a few slabs."""
    for seed in range(20):
        do("echo", numbers(LARGE, seed)).result(LIMIT)

    mappings, descriptors = do("memory_left").result(LIMIT)
    ours, our_descriptors = payload_work.memory_left()
    assert 0 < mappings <= 8
    assert 0 < ours <= 8
    assert descriptors + our_descriptors <= 8


def test_a_fork_of_the_worker_has_no_say_in_its_memory(do):
    """Neither what it writes nor what it lets go of is seen."""
    kept = numbers(LARGE)
    do("keep", kept).result(LIMIT)
    for seed in range(6):
        array = numbers(LARGE, seed)
        assert do("fork_and_drop", array).result(LIMIT) == float(array.sum()) + float(kept.sum())


def test_a_fork_of_the_program_leaves_results_alone(do):
    """It lets go of its copy of a result, and the parent's stays as it was while others come."""
    result = do("filled", 7, LARGE).result(LIMIT)
    pid = os.fork()
    if not pid:
        result[:] = -1
        del result
        os._exit(0)
    os.waitpid(pid, 0)

    for number in range(6):
        do("filled", number, LARGE).result(LIMIT)
    assert (result == 7).all()


@pytest.mark.parametrize("where", ["die_reading", "die_writing"])
def test_a_worker_killed_in_the_middle_costs_one_call_and_leaves_nothing(do, where):
    """Half read or half written: other payloads are whole, and all the memory goes."""
    kept = do("filled", 5, LARGE).result(LIMIT)
    do(where).result(LIMIT)
    struck = do("echo", numbers(LARGE)) if where == "die_reading" else do("filled", 1, LARGE)
    arrays = [numbers(LARGE, seed) for seed in range(4)]
    others = [do("echo", array) for array in arrays]

    if where == "die_writing":
        with pytest.raises(WorkerDiedError):
            struck.result(LIMIT)
    else:  # a backend tries again what had not begun
        assert isinstance(struck.exception(LIMIT), (WorkerDiedError, type(None)))
    for array, other in zip(arrays, others, strict=True):
        assert numpy.array_equal(other.result(LIMIT), array)
    assert (kept == 5).all()


def test_a_call_that_its_worker_never_began_still_has_its_bytes(do, gate):
    """The worker is killed with calls waiting, whose arrays their caller has changed; another makes them."""
    worker = do("pid").result(LIMIT)
    first = do("stand", gate.path)
    gate.wait_said()
    arrays = [numbers(LARGE, seed) for seed in range(6)]
    sums = [float(array.sum()) for array in arrays]
    futures = [do("total", array) for array in arrays]
    for array in arrays:
        array[:] = -1

    os.kill(worker, signal.SIGKILL)

    with pytest.raises(WorkerDiedError):
        first.result(LIMIT)
    assert [future.result(LIMIT) for future in futures] == sums
    assert do("pid").result(LIMIT) != worker


def test_a_second_attempt_finds_what_the_first_one_spoiled(tmp_path):
    """An attempt gets the task as it was submitted."""
    router = TaskRouter()
    router.handler("spoil", payload_work.handler, max_attempts=2)
    array = numbers(LARGE)
    with ProcessPoolTaskBackend(router, max_workers=1) as backend:
        task = {"type": "spoil", "do": "fails_once", "with": (str(tmp_path / "tried"), array)}
        handle = backend.submit_sync(task)

        assert handle.result(LIMIT) == float(array.sum())
        assert handle.attempt == 2


def test_a_worker_without_descriptors_fails_the_call_and_goes_on():
    """The call says why; memory that it knows already needs none; once it has some again all is well."""
    with ProcessPool(1) as pool:
        soft = pool.submit(payload_work.open_no_more).result(LIMIT)
        with pytest.raises(OSError, match="its payload did not arrive: this process has no file descriptor left"):
            pool.submit(payload_work.total, numbers(LARGE)).result(LIMIT)
        assert pool.submit(payload_work.echo, 5).result(LIMIT) == 5
        pool.submit(payload_work.open_again, soft).result(LIMIT)
        for seed in range(6):
            array = numbers(LARGE, seed)
            assert pool.submit(payload_work.total, array).result(LIMIT) == float(array.sum())


def test_known_memory_needs_no_descriptor():
    """A program at its limit sends and gets what is large, once it has some memory that both know."""
    array = numbers(SMALL)
    with ProcessPool(1) as pool:
        for _ in range(6):
            pool.submit(payload_work.echo, array).result(LIMIT)
        with few_descriptors(0):
            for _ in range(10):
                assert numpy.array_equal(pool.submit(payload_work.echo, array).result(LIMIT), array)


def test_a_pool_of_somebody_elses_carries_them_as_bytes():
    """The same task, the same result."""
    array = numbers(LARGE)
    with (
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool,
        ExecutorTaskBackend(payload_work.handler, pool=pool) as backend,
    ):
        got = backend.run_sync({"do": "echo", "with": (array,)}, wait=LIMIT)
        assert numpy.array_equal(got, array)
        assert backend.run_sync({"do": "overwrite", "with": (array,)}, wait=LIMIT) == (float(array.sum()), True)


def test_two_thousand_results_are_kept_with_256_descriptors():
    """They are mapped, not copied, and hold none."""
    code = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
import numpy
from taskback.pools import ProcessPool
from taskback.pools.child import memory
from tests import payload_work
memory.MAPPED_FROM = 150_000  # or it would take gigabytes
with ProcessPool(2) as pool:
    futures = [pool.submit(payload_work.filled, number, 20_000) for number in range(2000)]
    results = [future.result() for future in futures]
    del futures
    mappings, descriptors = payload_work.memory_left()
    assert mappings >= 2000, mappings
    assert descriptors <= 16, descriptors
    assert all((result == number).all() for number, result in enumerate(results))
assert payload_work.memory_left()[1] == 0
del results
assert payload_work.memory_left() == (0, 0), payload_work.memory_left()
"""
    ended = run_python("-c", code, timeout=60)

    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("count", [SMALL, LARGE])
def test_many_large_calls_at_once_are_all_made(count):
    """More than the slabs and the sockets of both workers take, quick ones, some of which are sent ahead."""
    arrays = [numbers(count, seed) for seed in range(20)]
    with ProcessPool(2) as pool:
        futures = [pool.submit(payload_work.echo, arrays[number % 20], number) for number in range(200)]
        for number, future in enumerate(futures):
            array, got = future.result(LIMIT)
            assert got == number
            assert numpy.array_equal(array, arrays[number % 20])


def address_of(packed: Any) -> int:
    """Where the buffer lies."""
    where: int = numpy.frombuffer(packed.buffers[0], numpy.uint8).ctypes.data
    return where


def test_memory_of_a_huge_task_that_is_over_is_used_again():
    """And not before: what is still kept, and what was rebuilt from it, stays as it is."""
    count = _packed._HUGE // 8 + 1000
    first, kept = (_codec.dumps_task({"a": numpy.full(count, value)}) for value in (1.0, 2.0))
    rebuilt = _codec.loads_a_copy(first)["a"]
    where = address_of(first)

    del first
    again = _codec.dumps_task({"a": numpy.full(count - 500, 3.0)})

    assert address_of(again) == where != address_of(kept)
    arrays = [rebuilt, *(_codec.loads_a_copy(each)["a"] for each in (kept, again))]
    values = [array[[0, -1]].tolist() for array in arrays]
    assert values == [[1.0] * 2, [2.0] * 2, [3.0] * 2]
    assert len(_codec.loads_a_copy(again)["a"]) == count - 500
    del kept, again
    assert len(_packed._spare) <= 2
