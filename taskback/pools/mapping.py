"""`map` of the pools: calls by the pool's own `submit`, results in order."""

import itertools
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any


def map_in_order(
    pool: Executor,
    fn: Callable[..., Any],
    iterables: tuple[Iterable[Any], ...],
    timeout: float | None,
    buffersize: int | None,
    chunksize: int = 1,
) -> Iterator[Any]:
    """Submit a call for each tuple of arguments, here and now, or at most `buffersize` ahead of what was taken.

    So many as `chunksize` travel as one call. The pool is held weakly: one that nobody else knows ends after the calls
    that it was given.

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
        arguments, fn = _chunks(arguments, chunksize), partial(_call_each, fn)
    futures = deque(pool.submit(fn, *each) for each in itertools.islice(arguments, buffersize))
    results = _results(weakref.ref(pool), fn, arguments, futures, deadline)
    return results if chunksize == 1 else itertools.chain.from_iterable(results)


def _chunks(arguments: Iterator[tuple[Any, ...]], size: int) -> Iterator[tuple[list[Any]]]:
    while chunk := list(itertools.islice(arguments, size)):
        yield (chunk,)


def _call_each(fn: Callable[..., Any], chunk: list[tuple[Any, ...]]) -> list[Any]:
    """Several calls as one, in a worker."""
    return [fn(*each) for each in chunk]


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
