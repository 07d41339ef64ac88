"""The kinds of tasks: how one is made, and how it may end, told from what was put into it.

A kind says what its tasks look like, what they give, and which outcomes are right for it where nothing is done to it
from outside. What a kill, a cancel or a shutdown may do to any task is `book`'s to know.
"""

from __future__ import annotations

import random
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from soak import work
from taskback import TaskState

OK: Final = frozenset((TaskState.SUCCEEDED,))
FAILS: Final = frozenset((TaskState.FAILED,))
LATE: Final = frozenset(
    (TaskState.TIMED_OUT,)
)  # beside OK, for who keeps the limit may be stopped or starved just then
DIES: Final = frozenset((TaskState.LOST,))

PROCESS: Final = "process"  # ProcessPoolTaskBackend
THREADS: Final = "threads"  # ThreadPoolTaskBackend, and ExecutorTaskBackend on threads
LOOP: Final = "loop"  # AsyncFireAndTrackBackend
INLINE: Final = "inline"  # SyncTaskBackend
FOREIGN: Final = "foreign"  # ExecutorTaskBackend on processes
POOL: Final = "pool"  # taskback.pools.ProcessPool
THREAD_POOL: Final = "thread pool"  # taskback.pools.ThreadPool
EVERYWHERE: Final = frozenset((PROCESS, THREADS, LOOP, INLINE, FOREIGN, POOL, THREAD_POOL))
IN_PROCESSES: Final = frozenset((PROCESS, FOREIGN, POOL))
BY_POLICY: Final = frozenset((PROCESS, THREADS, LOOP))  # where policies are kept, time limits too
MAY_SLEEP: Final = EVERYWHERE - {LOOP, INLINE}


@dataclass(slots=True)
class Expected:
    """What one task may come to.

    Attributes:
        states (frozenset[TaskState]): The outcomes that are right.
        result (Callable[[Any], bool]): Whether a result is right.
        error (Callable[[BaseException], bool]): Whether the error of one that FAILED is.
        again (bool): Whether an attempt may be called several times: it defers itself, or may be joined.
        joins (bool): Whether it may be joined to another one, and never be called by itself.
        options (dict): Of its submission.
        faults (int): How many workers it takes along.
    """

    states: frozenset[TaskState] = OK
    result: Callable[[Any], bool] = lambda result: True
    error: Callable[[BaseException], bool] = lambda error: True
    again: bool = False
    joins: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    faults: int = 0


Made = tuple[dict[str, Any], Expected]


@dataclass(frozen=True, slots=True)
class Context:
    """What a kind may need to know.

    Attributes:
        rng (random.Random): Seeded.
        directory (str): For lock files.
        where (str): One of the constants above.
        most_bytes (int): That a task or result may have.
        bunches (dict): By key, the numbers of the tasks that may be joined.
    """

    rng: random.Random
    directory: str
    where: str
    most_bytes: int
    bunches: dict[str, set[int]]


def quick(c: Context, n: int) -> Made:
    return {"do": "quick"}, Expected(result=_answers(n))


def payload(c: Context, n: int) -> Made:
    data, back = work.filled(n + 1, _size(c)), _size(c)
    right = (n, zlib.crc32(data), back)

    def is_right(result: Any) -> bool:
        return (*result[:2], len(result[2])) == right and result[2] == work.filled(n, back)

    return {"do": "payload", "data": data, "back": back}, Expected(result=is_right)


def array(c: Context, n: int) -> Made:
    import numpy

    base, count = float(c.rng.randrange(1000)), max(1, _size(c) // 8)
    made = numpy.full(count, base)

    def is_right(result: Any) -> bool:
        # Of the caller's array nothing may have changed, though the handler writes into its own.
        return bool(len(result) == count and (result == base + n).all())

    return {"do": "array", "array": made}, Expected(result=is_right)


def sleep(c: Context, n: int) -> Made:
    return {"do": "sleep", "seconds": c.rng.expovariate(100)}, Expected(result=_answers(n))


def sleep_async(c: Context, n: int) -> Made:
    return {"do": "sleep_async", "seconds": c.rng.expovariate(100)}, Expected(result=_answers(n))


def compute(c: Context, n: int) -> Made:
    return {"do": "compute", "seconds": c.rng.uniform(0, 0.005)}, Expected(result=_answers(n))


def report(c: Context, n: int) -> Made:
    steps = c.rng.randrange(1, 30)
    seconds = c.rng.choice((0, 0.001)) if c.where in MAY_SLEEP else 0
    return {"do": "report", "steps": steps, "seconds": seconds}, Expected(result=_answers(n))


def delayed(c: Context, n: int) -> Made:
    return {"do": "quick"}, Expected(result=_answers(n), options={"delay": c.rng.uniform(0, 0.2)})


def prioritized(c: Context, n: int) -> Made:
    return {"do": "quick", "type": c.rng.choice(("urgent", "plain"))}, Expected(
        result=_answers(n), options={"priority": c.rng.randrange(-3, 4)}
    )


def fail(c: Context, n: int) -> Made:
    return {"do": "fail"}, Expected(FAILS, error=lambda error: type(error) is ValueError and error.args == (n,))


def fail_oddly(c: Context, n: int) -> Made:
    ways = ["two arguments", "unpicklable", "recursion"]
    if c.where in (PROCESS, POOL):
        ways += ["no exception", "exit", "interrupt"]
    return {"do": "fail_oddly", "how": c.rng.choice(ways), "type": "odd"}, Expected(FAILS)


def return_oddly(c: Context, n: int) -> Made:
    states = FAILS if c.where in IN_PROCESSES else OK
    return {"do": "return_oddly", "how": c.rng.choice(("stays", "does not arrive")), "type": "odd"}, Expected(states)


def retry(c: Context, n: int) -> Made:
    good_at, asks = c.rng.randrange(1, 5), c.rng.random() < 0.5
    task = {"do": "retry", "type": "retried", "good_at": good_at, "asks": asks, "after": c.rng.choice((None, 0, 0.01))}
    return task, Expected(OK if good_at <= 3 else FAILS, result=_answers(n))


def defer(c: Context, n: int) -> Made:
    until = time.time() + c.rng.uniform(0, 0.05)
    return {"do": "defer", "type": "deferred", "until": until}, Expected(result=_answers(n), again=True)


def keyed(c: Context, n: int) -> Made:
    key = c.rng.randrange(6)
    task = {"do": "alone", "type": "keyed", "key": key, "lock": f"{c.directory}/key-{key}", "seconds": 0.0005}
    return task, Expected(result=_answers(n))


def coalesced(c: Context, n: int) -> Made:
    kind = c.rng.choice(("dropped", "rerun", "joined"))
    key = f"{kind}-{c.rng.randrange(4)}"
    bunch = c.bunches.setdefault(key, set())
    bunch.add(n)

    def is_right(result: Any) -> bool:
        mine = n in result if kind == "joined" else len(result) == 1
        return mine and bunch.issuperset(result)

    task = {"do": "members", "type": kind, "key": key, "members": [n]}
    return task, Expected(result=is_right, joins=True)


def capped(c: Context, n: int) -> Made:
    task = {"do": "alone", "type": "capped", "lock": f"{c.directory}/capped", "seconds": 0.0005}
    return task, Expected(result=_answers(n))


def fair(c: Context, n: int) -> Made:
    return {"do": "quick", "type": "fair", "tenant": c.rng.randrange(5)}, Expected(result=_answers(n))


def impatient(c: Context, n: int) -> Made:
    return {"do": "sleep", "type": "impatient", "seconds": 0.002}, Expected(OK | LATE, result=_answers(n))


def too_long(c: Context, n: int) -> Made:
    """Has a limit of 0.15 s, and takes less or much more than that."""
    seconds = c.rng.choice((0.0, 0.0, 0.01, 0.4))
    return {"do": "sleep", "type": "limited", "seconds": seconds}, Expected(OK | LATE, result=_answers(n))


def limited(c: Context, n: int) -> Made:
    """Has a limit of its own submission, against which it may do all that it can."""
    how = c.rng.choice(("swallow", "hide", "hold") if c.where == PROCESS else ("swallow", "hide"))
    task = {"do": how, "type": "odd", "seconds": 0.25}
    return task, Expected(OK | LATE, result=_answers(n), options={"timeout": c.rng.uniform(0.02, 0.1)})


def moving(c: Context, n: int) -> Made:
    """Stops reporting, or goes on."""
    if c.rng.random() < 0.5:
        return {"do": "sleep", "type": "moving", "seconds": 0.5}, Expected(OK | LATE)
    return {"do": "report", "type": "moving", "steps": 20, "seconds": 0.002}, Expected(OK | LATE, result=_answers(n))


def fork(c: Context, n: int) -> Made:
    return {"do": "fork", "type": "odd"}, Expected(result=_answers(n))


def leave_a_child(c: Context, n: int) -> Made:
    how = c.rng.choice(("plain", "session", "daemon"))
    return {"do": "leave_a_child", "type": "odd", "how": how}, Expected(result=_answers(n))


def crash(c: Context, n: int) -> Made:
    how = c.rng.choice(("kill", "abort", "segfault", "exit", "exit", "close"))
    return {"do": "crash", "type": "odd", "how": how}, Expected(DIES, faults=1)


def crash_once(c: Context, n: int) -> Made:
    return {"do": "crash_once", "type": "crashing"}, Expected(result=_answers(n), faults=1)


def close_descriptors(c: Context, n: int) -> Made:
    return {"do": "close_descriptors", "type": "odd"}, Expected(DIES | OK, result=_answers(n), faults=1)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of tasks, where it makes sense, and how often it comes among the others."""

    make: Callable[[Context, int], Made]
    where: frozenset[str]
    weight: float

    @property
    def name(self) -> str:
        """As it stands in the summary."""
        return self.make.__name__


_CRASHES: Final = frozenset((PROCESS, POOL))
KINDS: Final = (
    Kind(quick, EVERYWHERE, 20),
    Kind(payload, EVERYWHERE, 6),
    Kind(array, EVERYWHERE, 3),
    Kind(sleep, MAY_SLEEP, 6),
    Kind(sleep_async, EVERYWHERE - {POOL, THREAD_POOL, INLINE}, 6),
    Kind(compute, EVERYWHERE, 4),
    Kind(report, EVERYWHERE - {POOL, THREAD_POOL}, 3),
    Kind(delayed, EVERYWHERE - {POOL, THREAD_POOL, INLINE}, 4),
    Kind(prioritized, EVERYWHERE - {POOL, THREAD_POOL, INLINE, FOREIGN}, 4),
    Kind(fail, EVERYWHERE, 4),
    Kind(fail_oddly, EVERYWHERE - {INLINE, LOOP}, 2),
    Kind(return_oddly, EVERYWHERE, 2),
    Kind(retry, EVERYWHERE - {POOL, THREAD_POOL, INLINE}, 4),
    Kind(defer, EVERYWHERE - {POOL, THREAD_POOL, INLINE}, 3),
    Kind(keyed, BY_POLICY | {FOREIGN}, 6),
    Kind(coalesced, BY_POLICY | {FOREIGN}, 6),
    Kind(capped, BY_POLICY | {FOREIGN}, 3),
    Kind(fair, BY_POLICY | {FOREIGN}, 4),
    Kind(impatient, frozenset((PROCESS, THREADS)), 3),
    Kind(too_long, frozenset((PROCESS, THREADS)), 2),
    Kind(limited, frozenset((PROCESS, THREADS)), 1.5),
    Kind(moving, frozenset((PROCESS, THREADS)), 1),
    Kind(fork, _CRASHES, 1.5),
    Kind(leave_a_child, _CRASHES, 0.3),
    Kind(crash, _CRASHES, 2),
    Kind(crash_once, frozenset((PROCESS,)), 1),
    Kind(close_descriptors, _CRASHES, 0.5),
)


def _answers(n: int) -> Callable[[Any], bool]:
    return lambda result: bool(result == work.answer(n))


def _size(c: Context) -> int:
    """Bytes: none, few, or very many, each size about as likely as the next."""
    if c.rng.random() < 0.1:
        return 0
    return int(2 ** c.rng.uniform(0, c.most_bytes.bit_length() - 1))
