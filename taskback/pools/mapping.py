"""`map` of the pools: calls by the pool's own `submit`, results in order."""

import itertools
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import closing
from typing import Any

from taskback import _codec
from taskback.pools.by_value import Unchanging


def map_in_order(
    pool: Executor,
    fn: Callable[..., Any],
    iterables: tuple[Iterable[Any], ...],
    timeout: float | None,
    buffersize: int | None,
    chunksize: int = 1,
) -> Iterator[Any]:
    """Submit a call for each tuple of arguments, here and now, or at most `buffersize` ahead of what was taken.

    So many as `chunksize` travel as one call; of those before one that fails the results come first. The pool is held
    weakly: one that nobody else knows ends after the calls that it was given.

    Source:
        `concurrent.futures.Executor.map` (Python 3.14 documentation).
    """
    if chunksize < 1:
        raise ValueError("chunksize must be >= 1.")
    if buffersize is not None and (isinstance(buffersize, bool) or not isinstance(buffersize, int)):
        raise TypeError("buffersize must be an integer or None")
    if buffersize is not None and buffersize < 1:
        raise ValueError("buffersize must be None or > 0")
    deadline = None if timeout is None else time.monotonic() + timeout
    arguments: Iterator[tuple[Any, ...]] = zip(*iterables)  # noqa: B905  # the shortest ends it, as in the built-in map
    if chunksize > 1:
        if len(iterables) == 1:
            arguments, fn = _chunks(iter(iterables[0]), chunksize), Unchanging(_call_each, map, fn)
        else:
            arguments, fn = _chunks(arguments, chunksize), Unchanging(_call_each, itertools.starmap, fn)
        if buffersize is not None:
            buffersize = max(1, buffersize // chunksize)
    futures = deque(pool.submit(fn, *each) for each in itertools.islice(arguments, buffersize))
    results = _results(weakref.ref(pool), fn, arguments, futures, deadline)
    return results if chunksize == 1 else itertools.chain.from_iterable(_opened(results))


def _chunks(arguments: Iterator[Any], size: int) -> Iterator[tuple[list[Any]]]:
    while chunk := list(itertools.islice(arguments, size)):
        yield (chunk,)


def _call_each(how: Callable[..., Iterator[Any]], fn: Callable[..., Any], chunk: list[Any]) -> tuple[bytes, Any]:
    """Several calls as one, in a worker: the results, and of the call that ended the row early its error."""
    results: list[Any] = []
    error: Any = None
    try:
        results.extend(how(fn, chunk))  # keeps what came before an exception
    except BaseException as raised:
        error = _codec.pack_error(raised)
    try:
        return _codec.dumps(results), error
    except Exception:
        return _as_far_as_it_goes(results)


def _as_far_as_it_goes(results: list[Any]) -> tuple[bytes, Any]:
    """The same where a result cannot be pickled: that call is the one that ends the row."""
    for number, result in enumerate(results):
        try:
            _codec.dumps(result)
        except Exception as error:
            return _codec.dumps(results[:number]), _codec.pack_error(error)
    raise AssertionError("each result can be pickled, and all together cannot")


def _opened(chunks: Iterator[tuple[bytes, Any]]) -> Iterator[list[Any]]:
    with closing(chunks):  # type: ignore[type-var]  # a generator: what is left of it is cancelled now, not some day
        for data, error in chunks:
            yield _codec.loads(data)
            if error is not None:
                raise _codec.unpack_error(error)


def _results(
    find_pool: "weakref.ref[Executor]",
    fn: Callable[..., Any],
    arguments: Iterator[tuple[Any, ...]],
    futures: "deque[Future[Any]]",
    deadline: float | None,
) -> Iterator[Any]:
    try:
        while futures:
            pool = find_pool()
            if pool is not None:
                futures.extend(pool.submit(fn, *each) for each in itertools.islice(arguments, 1))
            del pool  # while this waits for its consumer, others may let go of it
            yield _taken(futures.popleft(), deadline)
    finally:
        for future in futures:
            future.cancel()


def _taken(future: "Future[Any]", deadline: float | None) -> Any:
    """Its result, to which no reference is kept; cancelled if it does not come."""
    try:
        try:
            return future.result(None if deadline is None else deadline - time.monotonic())
        finally:
            future.cancel()
    finally:
        del future  # an exception's traceback holds this frame
