"""`ProcessPool` as an executor: what it runs, in what, and how it ends."""

from __future__ import annotations

import asyncio
import contextvars
import importlib
import logging
import multiprocessing.util
import os
import pickle
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import psutil
import pytest

from taskback import RemoteError, ResultNotSerializableError, WorkerDiedError
from taskback.pools import ProcessPool
from tests import faults
from tests.faults import LIMIT, await_gone
from tests.helpers import run_python

Make = Callable[..., ProcessPool]


@pytest.fixture(params=[False, True], ids=["packets", "streams"])
def make(request, monkeypatch) -> Iterator[Make]:
    """Makes pools that are closed whatever the test does."""
    made: list[ProcessPool] = []
    monkeypatch.setattr(ProcessPool, "_by_streams", request.param)

    def make(max_workers: int | None = 1, *args: Any, **options: Any) -> ProcessPool:
        made.append(ProcessPool(max_workers, *args, **options))
        return made[-1]

    yield make
    for pool in made:
        pool.kill_workers()
        pool.shutdown()


def echo(value: Any = None, **keywords: Any) -> Any:
    """Give back what came."""
    return keywords or value


def pid(_: Any = None) -> int:
    """The worker's number."""
    return os.getpid()


def raises(message: str) -> None:
    """Raise."""
    raise LookupError(message)


def leave_a_finalizer(path: str) -> None:
    """Have something done when this process ends, as a semaphore of multiprocessing's has its name removed."""
    multiprocessing.util.Finalize(None, Path(path).write_text, ("done",), exitpriority=0)


class Odd(Exception):
    """An exception that does not survive pickling."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__("odd")


def raise_odd() -> None:
    """Raise what cannot be rebuilt."""
    raise Odd(1, 2)


class Unreadable:
    """Cannot be rebuilt where it arrives."""

    def __reduce__(self) -> tuple[Any, ...]:
        return raises, ("not here",)


def unreadable() -> Unreadable:
    """Give what the parent cannot rebuild."""
    return Unreadable()


def unpicklable() -> Any:
    """Give what cannot be pickled."""
    return threading.Lock()


def test_a_call_returns_what_its_function_does(make):
    """Positional and keyword arguments, results large and small."""
    pool = make()

    assert pool.submit(echo, 5).result(LIMIT) == 5
    assert pool.submit(echo, a=1, b=None).result(LIMIT) == {"a": 1, "b": None}
    assert pool.submit(echo, bytes(2_000_000)).result(LIMIT) == bytes(2_000_000)
    assert pool.submit(pid).result(LIMIT) != os.getpid()


def test_an_exception_comes_with_the_worker_s_traceback(make):
    """As its cause, as text."""
    error = make().submit(raises, "what").exception(LIMIT)

    assert isinstance(error, LookupError)
    assert "in raises" in str(error.__cause__)


@pytest.mark.parametrize("preload", [(), ("multiprocessing.util",)], ids=["worker's import", "guardian's import"])
def test_a_worker_finalizes_what_multiprocessing_made_in_it(make, tmp_path, preload):
    """Whoever has imported that."""
    pool = make(preload=preload)
    pool.submit(leave_a_finalizer, str(tmp_path / "end")).result(LIMIT)
    assert not (tmp_path / "end").exists()

    pool.shutdown()

    assert (tmp_path / "end").read_text() == "done"


@pytest.mark.parametrize(
    ("function", "kind", "text"),
    [
        (raise_odd, RemoteError, "odd"),
        (unreadable, ResultNotSerializableError, "not here"),
        (unpicklable, TypeError, "lock"),
        (sys.exit, SystemExit, ""),
    ],
)
def test_what_cannot_cross_fails_its_own_call(make, function, kind, text):
    """The worker and the pool go on."""
    pool = make()
    first = pool.submit(pid).result(LIMIT)

    error = pool.submit(function).exception(LIMIT)

    assert isinstance(error, kind)
    assert text in str(error)
    assert pool.submit(pid).result(LIMIT) == first


def test_arguments_that_cannot_be_pickled_fail_the_future(make):
    """As with the stock pool, submit itself raises nothing."""
    future = make().submit(echo, threading.Lock())

    with pytest.raises(TypeError, match="lock"):
        future.result(LIMIT)


def test_a_function_by_value_is_sent_once_a_worker(make):
    """Its globals live as long as the worker does."""
    pool = make()
    count = 0

    def up() -> int:
        nonlocal count
        count += 1
        return count

    assert [pool.submit(up).result(LIMIT) for _ in range(3)] == [1, 2, 3]
    assert count == 0
    many = [lambda n=n: n for n in range(200)]  # more than a worker keeps
    assert [pool.submit(each).result(LIMIT) for each in (*many, *many)] == [*range(200), *range(200)]


def test_two_workers_work_at_the_same_time(make, channel):
    """Each has a call, and the third waits."""
    pool = make(2)
    futures = [pool.submit(faults.handler, {"do": "sleep", "tell": channel.path}) for _ in range(3)]

    pids = {channel.numbers()[0], channel.numbers()[0]}

    assert len(pids) == 2
    assert not futures[2].running()
    assert futures[2].cancel()
    pool.kill_workers()
    assert {future.exception(LIMIT).pid for future in futures[:2]} == pids


def test_a_running_call_cannot_be_cancelled(make, channel):
    """The stock rule."""
    pool = make()
    future = pool.submit(faults.handler, {"do": "sleep", "tell": channel.path})
    channel.numbers()

    assert future.running()
    assert not future.cancel()


def test_calls_start_in_the_order_of_their_submission(make, tmp_path):
    """One worker, first come first served."""
    pool = make()
    lines = str(tmp_path / "lines")

    wait([pool.submit(faults.handler, {"do": "line", "lines": lines, "n": n}) for n in range(100)], LIMIT)

    assert Path(lines).read_text().split() == [str(n) for n in range(100)]


def add(one: int, two: int) -> int:
    """A sum."""
    return one + two


@pytest.mark.parametrize("options", [{}, {"chunksize": 3}, {"buffersize": 2}, {"chunksize": 2, "buffersize": 1}])
def test_map_gives_results_in_order(make, options):
    """With chunks and with few results ahead."""
    pool = make(2)

    assert list(pool.map(add, range(10), range(10, 25), **options)) == [n + n + 10 for n in range(10)]


def test_map_takes_no_more_arguments_than_its_buffer(make):
    """So an endless iterable is possible."""
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        while True:
            taken.append(len(taken))
            yield taken[-1]

    results = make().map(echo, numbers(), buffersize=3)

    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert len(taken) <= 3 + 5


@pytest.mark.parametrize(
    ("options", "error"),
    [({"chunksize": 0}, ValueError), ({"buffersize": 0}, ValueError), ({"buffersize": 1.5}, TypeError)],
)
def test_map_refuses_what_makes_no_sense(make, options, error):
    """At once, not at the first result."""
    with pytest.raises(error):
        make().map(echo, [1], **options)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"max_workers": 0}, ValueError),
        ({"max_workers": "2"}, TypeError),
        ({"initializer": 5}, TypeError),
        ({"max_tasks_per_child": 0}, ValueError),
        ({"max_tasks_per_child": 1.5}, TypeError),
        ({"exit_grace_seconds": -1}, ValueError),
    ],
)
def test_a_pool_that_makes_no_sense_is_refused(options, error):
    """Before anything is started."""
    with pytest.raises(error):
        ProcessPool(**options)


_set: Any = None


def set_it(value: Any) -> None:
    """An initializer."""
    global _set
    if value == "fail":
        raise ValueError("cannot begin")
    _set = value


def get_it() -> Any:
    """What the initializer left."""
    return _set


def test_the_initializer_runs_first_in_each_worker(make):
    """In replacements, too."""
    pool = make(1, set_it, ("there",))

    assert pool.submit(get_it).result(LIMIT) == "there"
    assert pool.submit(os._exit, 1).exception(LIMIT)
    assert pool.submit(get_it).result(LIMIT) == "there"


def test_an_initializer_that_fails_breaks_the_pool(make):
    """It would fail in every worker; its error is the cause."""
    pool = make(2, set_it, ("fail",))

    error = pool.submit(get_it).exception(LIMIT)

    assert isinstance(error, BrokenProcessPool)
    assert isinstance(error.__cause__, ValueError)
    with pytest.raises(BrokenProcessPool):
        pool.submit(get_it)


def test_workers_are_replaced_after_their_calls(make):
    """max_tasks_per_child counts calls, and each worker ends by itself."""
    pool = make(1, max_tasks_per_child=2)

    pids = [pool.submit(pid).result(LIMIT) for _ in range(6)]

    assert pids[0] == pids[1] != pids[2] == pids[3] != pids[4] == pids[5]
    await_gone(*pids[:4])


def at_exit(path: str) -> None:
    """Leave a line when this process ends."""
    import atexit

    atexit.register(faults.tell, path, "left")


def test_a_worker_leaves_as_a_program_does(make, channel):
    """Its own exit hooks run, none of the guardian's."""
    pool = make()
    pool.submit(at_exit, channel.path).result(LIMIT)

    pool.shutdown()

    assert channel.line() == "left"


def test_shutdown_makes_what_was_submitted(make):
    """And refuses more."""
    pool = make(2)
    futures = [pool.submit(echo, n) for n in range(50)]

    pool.shutdown()

    assert [future.result(0) for future in futures] == list(range(50))
    with pytest.raises(RuntimeError, match="after shutdown"):
        pool.submit(echo)


def test_shutdown_can_cancel_what_has_not_begun(make, channel, tmp_path):
    """What runs goes on to its end."""
    pool = make()
    gate = str(tmp_path / "gate")
    os.mkfifo(gate)
    running = pool.submit(faults.handler, {"do": "wait", "tell": channel.path, "gate": gate, "n": 1})
    waiting = [pool.submit(echo, n) for n in range(10)]
    channel.numbers()

    pool.shutdown(wait=False, cancel_futures=True)
    assert all(future.cancelled() for future in waiting)
    with open(gate, "wb", buffering=0) as file:
        file.write(b"x")

    assert running.result(LIMIT) == 1
    pool.shutdown()
    with pytest.raises(CancelledError):
        waiting[0].result(0)


def test_shutdown_of_a_pool_that_was_never_used_starts_nothing(make):
    """Nor does making one."""
    pool = make()

    pool.shutdown()

    assert pool._guardian.pid is None


def test_a_callback_may_shut_the_pool_down(make):
    """It runs on the lane's thread, which does not wait for itself."""
    pool = make()
    ended = threading.Event()

    def close(_: Future[Any]) -> None:
        pool.shutdown()
        ended.set()

    pool.submit(time.sleep, 0.1).add_done_callback(close)

    assert ended.wait(LIMIT)
    pool.shutdown()


@pytest.mark.parametrize("how", ["terminate_workers", "kill_workers"])
@pytest.mark.parametrize("do", ["sleep", "swallow", "gil"])
def test_workers_can_be_ended_at_once(make, channel, monkeypatch, how, do):
    """Whatever they do; what ran is lost, what waited is cancelled."""
    monkeypatch.setattr("taskback.pools.process_pool.TERMINATE_GRACE", 0.3)
    pool = make()
    running = pool.submit(faults.handler, {"do": do, "tell": channel.path})
    waiting = pool.submit(echo)
    (worker,) = channel.numbers()

    getattr(pool, how)()

    assert isinstance(running.exception(LIMIT), WorkerDiedError)
    assert waiting.cancelled()
    await_gone(worker)
    with pytest.raises(RuntimeError):
        pool.submit(echo)


def test_a_pool_that_nobody_refers_to_ends(make):
    """Its lanes, its workers and its guardian with it; what was submitted is still made."""
    pool = ProcessPool(1)
    future = pool.submit(pid)
    lanes = pool._queue.lanes()
    guardian = pool._guardian

    del pool

    worker = future.result(LIMIT)
    for lane in lanes:
        lane.thread.join(LIMIT)
        assert not lane.thread.is_alive()
    await_gone(worker)
    assert guardian.pid is None


def test_an_event_loop_can_run_calls_in_it(make):
    """As in any executor."""
    pool = make(2)

    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(pool, echo, n) for n in range(20)))

    assert asyncio.run(main()) == list(range(20))


_variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)


def change_variable() -> int:
    """Change a context variable of the calling context."""
    _variable.set(_variable.get() + 1)
    return _variable.get()


def test_a_call_leaves_no_context_to_the_next(make):
    """Each has a context of its own."""
    pool = make()

    assert [pool.submit(change_variable).result(LIMIT) for _ in range(3)] == [1, 1, 1]


def test_many_threads_may_submit(make):
    """Each future gets its own call's result."""
    pool = make(2)
    wrong: list[tuple[int, int]] = []

    def submit(start: int) -> None:
        futures = [(n, pool.submit(echo, n)) for n in range(start, start + 300)]
        wrong.extend((n, future.result(LIMIT)) for n, future in futures if future.result(LIMIT) != n)

    threads = [threading.Thread(target=submit, args=(1000 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT)

    assert not wrong


SCRIPT = """
from taskback.pools import ProcessPool
print("imported")
class Point:
    def __init__(self, x): self.x = x
def double(point): return Point(2 * point.x)
with ProcessPool(2) as pool:
    result = pool.submit(double, Point(21)).result(20)
    print(type(result) is Point, result.x, list(pool.map(lambda n: n + 1, range(3))))
"""


@pytest.mark.parametrize("how", ["file", "-c", "stdin"])
def test_a_main_script_needs_no_guard(tmp_path, how):
    """It is never imported again; what it defines travels by value, and keeps its identity."""
    import subprocess

    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    arguments = {"file": [str(script)], "-c": ["-c", SCRIPT], "stdin": ["-"]}[how]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}

    ran = subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        input=SCRIPT if how == "stdin" else "",
        capture_output=True,
        text=True,
        timeout=30,
        env=environment,
        check=False,
    )

    assert ran.stdout.splitlines() == ["imported", "True 42 [1, 2, 3]"], ran.stderr
    assert ran.stderr == ""


def test_a_daemonic_process_may_have_a_pool():
    """The stock pool refuses that."""
    code = """if True:
        import multiprocessing
        def work(sender):
            from taskback.pools import ProcessPool
            with ProcessPool(1) as pool:
                sender.send(pool.submit(pow, 2, 8).result(20))
        context = multiprocessing.get_context("fork")
        receiver, sender = context.Pipe(False)
        process = context.Process(target=work, args=(sender,), daemon=True)
        process.start()
        print(receiver.recv())
        process.join()
    """

    ran = run_python("-c", code)

    assert ran.stdout == "256\n", ran.stderr


def environment_of_a_worker() -> dict[str, Any]:
    """What hygiene is about."""
    import warnings

    return {
        "stdin": sys.stdin.read() if sys.stdin else None,
        "leads": os.getsid(0) == os.getpid() == os.getpgrp(),
        "blocked": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "SIGCHLD": signal.getsignal(signal.SIGCHLD),
        "ignored": [name for name in ("SIGINT", "SIGTERM", "SIGHUP") if signal.getsignal(getattr(signal, name)) == 1],
        "argv": sys.argv,
        "path": sys.path,
        "cwd": os.getcwd(),
        "filters": len(warnings.filters),
        "capped": os.environ.get("OMP_NUM_THREADS"),
        "flags": (sys.flags.dev_mode, sys.flags.optimize),
        "oom": Path("/proc/self/oom_score_adj").read_text().strip(),
        "threads": threading.active_count(),
        "descriptors": sorted(os.listdir("/proc/self/fd")),
    }


def test_a_worker_begins_as_a_process_should(make):
    """Own session, nothing blocked or ignored, nothing on standard input, the parent's arguments and paths."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    try:
        found = make().submit(environment_of_a_worker).result(LIMIT)
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    assert found["stdin"] == ""
    assert found["leads"]
    assert found["blocked"] == set()
    assert found["SIGCHLD"] == signal.SIG_DFL
    assert found["ignored"] == []
    assert found["argv"] == sys.argv
    assert found["path"] == sys.path
    assert found["cwd"] == os.getcwd()
    assert found["capped"] == os.environ.get("OMP_NUM_THREADS", "1")
    assert found["flags"] == (sys.flags.dev_mode, sys.flags.optimize)
    assert found["threads"] == 1
    assert int(found["oom"]) >= 300
    # Three streams, calls, replies, lifeline, page, stack, records, and the one that lists the directory.
    assert len(found["descriptors"]) <= 10


def test_what_a_manager_gives_can_travel():
    """The queue or event of a `multiprocessing.Manager` works in a worker, as it does in the stock pool's."""
    program = """if True:
        import multiprocessing
        from taskback.pools import ProcessPool
        with multiprocessing.get_context("spawn").Manager() as manager, ProcessPool(1) as pool:
            queue = manager.Queue()
            pool.submit(queue.put, "it travelled").result()
            print(queue.get(timeout=5))
    """

    done = run_python("-c", program)

    assert (done.stdout, done.stderr) == ("it travelled\n", "")


def draw() -> float:
    """A random number."""
    return random.random()


def test_workers_draw_different_random_numbers(make):
    """They are copies of one process."""
    pool = make(1, max_tasks_per_child=1)

    assert len({pool.submit(draw).result(LIMIT) for _ in range(4)}) == 4


def thread_alive() -> bool:
    """Whether the thread of a module runs."""
    return bool(sys.modules["threaded"].thread.is_alive())


def test_a_module_that_starts_a_thread_is_not_forked(make, tmp_path, monkeypatch, caplog):
    """A fork would lack the thread: workers start as fresh interpreters, which is said once."""
    (tmp_path / "threaded.py").write_text(
        "import threading\n"
        "thread = threading.Thread(target=threading.Event().wait, name='exporter', daemon=True)\n"
        "thread.start()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    with caplog.at_level(logging.WARNING):
        pool = make(1, preload=["threaded"], max_tasks_per_child=1)
        assert [pool.submit(thread_alive).result(LIMIT) for _ in range(2)] == [True, True]

    assert [record.getMessage().count("exporter") for record in caplog.records] == [1]


def imported(name: str) -> bool:
    """Whether a worker finds a module imported."""
    return name in sys.modules


def test_what_is_preloaded_is_imported_in_every_worker(make):
    """And an import that fails is no harm."""
    pool = make(1, preload=["colorsys", "no_such_module_anywhere"])

    assert pool.submit(imported, "colorsys").result(LIMIT)


def test_nothing_can_start_a_pool_while_a_worker_imports(make, tmp_path, monkeypatch):
    """A module that does so when it is imported would start pools in workers without end."""
    (tmp_path / "starter.py").write_text(
        "import multiprocessing, os\n"
        "from taskback.pools import ProcessPool\n"
        "def nothing(): pass\n"
        "if os.environ.get('STARTER') != 'parent':\n"
        "    ProcessPool(1).submit(pow, 1, 1)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("STARTER", "parent")
    starter = importlib.import_module("starter")

    def clear() -> None:
        del os.environ["STARTER"]

    pool = make()
    pool.submit(clear).result(LIMIT)

    with pytest.raises(RuntimeError, match="while a worker imports"):
        pool.submit(starter.nothing).result(LIMIT)


def test_futures_of_the_pool_are_known_by_their_errors(make):
    """What befell a worker survives pickling."""
    error = make().submit(os._exit, 3).exception(LIMIT)

    again = pickle.loads(pickle.dumps(error))

    assert (again.pid, again.exitcode, str(again)) == (error.pid, 3, str(error))


def test_a_worker_is_a_process_of_the_guardian(make):
    """The parent's only child is the guardian."""
    pool = make(2)
    worker = pool.submit(pid).result(LIMIT)

    assert psutil.Process(worker).ppid() == pool._guardian.pid


def test_quick_calls_are_sent_ahead_and_slow_ones_taken_back(make, channel, tmp_path):
    """What a worker has not read when its call takes long is done by another; nothing is lost or done twice."""
    pool = make(2)
    lines = str(tmp_path / "lines")
    total, slow = 3000, {500, 501}

    def run(n: int) -> int:
        if n in slow:
            faults.tell(channel.path, os.getpid())
            time.sleep(0.5)
        faults.tell(lines, n)
        return n

    futures = [pool.submit(run, n) for n in range(total)]
    assert [future.result(LIMIT) for future in futures] == list(range(total))

    assert sorted(map(int, Path(lines).read_text().split())) == list(range(total))


def test_a_call_behind_a_slow_one_does_not_wait_for_it(make, tmp_path):
    """Of two workers one is held; all that it had been sent ahead is done by the other meanwhile."""
    pool = make(2)
    gate = str(tmp_path / "gate")
    os.mkfifo(gate)
    wait([pool.submit(pow, 2, 3) for _ in range(500)], LIMIT)  # by now they are sent ahead

    def held() -> str:
        with open(gate, "rb", buffering=0) as file:
            file.read(1)
        return "held"

    futures = [pool.submit(pow, 2, 3) for _ in range(100)]
    slow = pool.submit(held)
    futures += [pool.submit(pow, 2, 3) for _ in range(300)]

    assert not wait(futures, LIMIT).not_done
    assert not slow.done()
    with open(gate, "wb", buffering=0) as file:
        file.write(b"x")
    assert slow.result(LIMIT) == "held"


def test_workers_that_are_stopped_for_a_while_lose_nothing(make):
    """All that they were sent may come back, or some of it; each call has its own result."""
    pool = make(2)
    pids = {pool.submit(pid).result(LIMIT) for _ in range(50)}
    futures = []
    for round_ in range(20):
        futures += [(n, pool.submit(echo, n)) for n in range(1000 * round_, 1000 * round_ + 200)]
        for each in pids:
            os.kill(each, signal.SIGSTOP)
        threading.Event().wait(0.005)
        for each in pids:
            os.kill(each, signal.SIGCONT)

    assert [n for n, future in futures if future.result(LIMIT) != n] == []


def test_a_limited_worker_makes_no_more_calls_than_it_may(make):
    """Sent ahead or not."""
    pool = make(1, max_tasks_per_child=7)

    pids = [future.result(LIMIT) for future in [pool.submit(pid) for _ in range(70)]]

    assert max(pids.count(each) for each in set(pids)) <= 7


@pytest.mark.parametrize("how", ["kill_workers", "terminate_workers"])
def test_ending_the_workers_ends_every_call_and_the_pool(make, how):
    """A call that no worker has read is not sent to one after the other, each of which is killed before it reads it."""
    for number in range(10):
        pool = make()
        futures = [pool.submit(time.sleep, 0.001) for _ in range(20)]
        if number % 2:
            futures[0].result(LIMIT)

        getattr(pool, how)()

        assert not wait(futures, LIMIT).not_done
        pool.shutdown()
        for future in futures:
            assert future.cancelled() or future.exception() is None or isinstance(future.exception(), WorkerDiedError)
