"""Where tasks run: the backends and pools that are made for one life each, with options drawn at random."""

from __future__ import annotations

import functools
import multiprocessing
import random
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from soak import kinds, work
from taskback import (
    AsyncFireAndTrackBackend,
    ExecutorTaskBackend,
    ProcessPoolTaskBackend,
    SyncTaskBackend,
    ThreadPoolTaskBackend,
)
from taskback.pools import ProcessPool, ThreadPool
from taskback.pools.child import descendants

GRACE: Final = 0.3  # seconds, of every backend


class ByStreams(ProcessPool):
    """The pool as it is where there are no packet sockets."""

    _by_streams = True


@dataclass(frozen=True, slots=True)
class Place:
    """A backend or a pool.

    Attributes:
        name (str): As it stands in the summary.
        where (str): What it is, to the kinds of tasks.
        weight (float): How often it comes, among the others.
        make (Callable): Makes it.
    """

    name: str
    where: str
    weight: float
    make: Callable[[random.Random], Any]

    @property
    def is_pool(self) -> bool:
        """Whether it is an Executor."""
        return self.where in (kinds.POOL, kinds.THREAD_POOL)

    @property
    def has_guardian(self) -> bool:
        """Whether its workers are processes of ours."""
        return self.where in (kinds.POOL, kinds.PROCESS)


def processes(rng: random.Random) -> Any:
    """A process backend."""
    return ProcessPoolTaskBackend(
        work.tasks,
        max_workers=rng.choice((1, 2, 2, 3)),
        max_tasks_per_child=rng.choice((None, None, None, 1, 7, 100)),
        stuck_after_seconds=rng.choice((None, None, 0.1)),
        keep_ended=rng.choice((0, 0, 50)),
        cancel_grace_seconds=GRACE,
        **_pressure(rng),
    )


def threads(rng: random.Random) -> Any:
    """A thread backend."""
    return ThreadPoolTaskBackend(
        work.tasks,
        max_workers=rng.choice((1, 2, 8)),
        stuck_after_seconds=rng.choice((None, None, 0.1)),
        keep_ended=rng.choice((0, 0, 50)),
        cancel_grace_seconds=GRACE,
        **_pressure(rng),
    )


def _pressure(rng: random.Random) -> dict[str, Any]:
    if rng.random() < 0.6:
        return {}
    return {"max_queued": rng.choice((5, 200)), "when_full": rng.choice(("wait", "reject", "shed"))}


def _over(pool: Callable[[], Executor]) -> Callable[[random.Random], Any]:
    return lambda rng: ExecutorTaskBackend(work.tasks, pool=pool, cancel_grace_seconds=GRACE)


def _stock(method: str) -> Callable[[], Executor]:
    return lambda: ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method))


def _loky() -> Executor:
    import loky

    found: Executor = loky.ProcessPoolExecutor(2)
    return found


PLACES: Final = (
    Place("processes", kinds.PROCESS, 10, processes),
    Place("threads", kinds.THREADS, 3, threads),
    Place("asyncio", kinds.LOOP, 2, lambda rng: AsyncFireAndTrackBackend(work.tasks, cancel_grace_seconds=GRACE)),
    Place("inline", kinds.INLINE, 0.7, lambda rng: SyncTaskBackend(work.tasks, cancel_grace_seconds=GRACE)),
    Place("over threads", kinds.THREADS, 1, _over(functools.partial(ThreadPoolExecutor, 3))),
    Place("over our threads", kinds.THREADS, 1, _over(functools.partial(ThreadPool, 3))),
    Place("over processes", kinds.FOREIGN, 1, _over(_stock("spawn"))),
    Place("over loky", kinds.FOREIGN, 0.3, _over(_loky)),
    Place("process pool", kinds.POOL, 3, lambda rng: ProcessPool(2, max_tasks_per_child=rng.choice((None, 1, 20)))),
    Place("process pool by streams", kinds.POOL, 1, lambda rng: ByStreams(2)),
    Place("thread pool", kinds.THREAD_POOL, 1, lambda rng: ThreadPool(3)),
)


def guardian_of(subject: Any) -> int | None:
    """The guardian of a backend or pool of ours, if it has one now."""
    found: int | None = getattr(getattr(subject, "_guardian", None), "pid", None)
    return found


def workers_of(subject: Any) -> list[int]:
    """The worker processes that there are just now."""
    guardian = guardian_of(subject)
    if guardian is not None:
        return descendants.children(guardian)
    pool = getattr(subject, "_pool", None)
    return list(getattr(pool, "_processes", None) or ()) if pool is not None else []
