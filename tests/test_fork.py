"""os.fork in a program whose backend is at work: neither process harms the other."""

from __future__ import annotations

import os
import signal
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import await_gone
from tests.helpers import is_running
from tests.running import PRELUDE, Programs, programs


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Programs]:
    """Starts programs and ends them."""
    with programs(tmp_path) as started:
        yield started


QUIET = "import logging, warnings; logging.disable(logging.CRITICAL); warnings.simplefilter('ignore')\n"


def guarded(body: str) -> str:
    """A script that does this under its main guard; 3.12 and later warn of forks beside threads."""
    return PRELUDE + "if __name__ == '__main__':\n" + textwrap.indent(QUIET + textwrap.dedent(body), "    ")


MAKES = ("processes", "threads", "loops", "in_threads_of_another")


def test_a_fork_has_a_backend_of_its_own(start):
    """It starts afresh at first use; handles of the parent are foreign; its end harms nothing in the parent."""
    body = """
        async def choose(task):
            if "gate" in task:
                tell("runs")
                while not os.path.exists(task["gate"]):
                    await asyncio.sleep(0.005)
            return task["n"]
        if "{make}" == "in_threads_of_another":
            backend = taskback.ExecutorTaskBackend(choose, pool=lambda: ThreadPoolExecutor(2))
        else:
            backend = {make}(choose)
        gate = os.path.join(os.getcwd(), "gate")
        handle = backend.submit_sync({{"gate": gate, "n": 1}})
        while handle.state.value != "running": time.sleep(0.005)
        ended = backend.submit_sync({{"n": 0}})
        assert ended.result(10) == 0
        child = os.fork()
        if child == 0:
            try:
                assert backend.inflight_count == 0 and not backend._initialized
                for call in (handle.result, handle.exception, handle.cancel):
                    try:
                        call()
                    except taskback.ForeignHandleError as error:
                        assert error.pid == os.getppid()
                    else:
                        raise AssertionError(call)
                assert ended.result() == 0  # what had ended can be read
                assert "of process" in repr(handle)
                assert backend.run_sync({{"n": 2}}, wait=10) == 2
                assert backend.stats().accepted == 1
                {end}
            except BaseException as error:
                print("child:", repr(error), file=sys.stderr, flush=True)
                os._exit(9)
        _, status = os.waitpid(child, 0)
        open(gate, "w").close()
        assert handle.result(10) == 1
        assert backend.run_sync({{"n": 3}}, wait=10) == 3
        assert not backend.shutdown_sync(5).stuck
        print(os.waitstatus_to_exitcode(status))
    """
    shut_down = "backend.shutdown_sync(5); os._exit(4)"
    running = [start(guarded(body.format(make=make, end=shut_down))) for make in MAKES]
    running.append(start(guarded(body.format(make="processes", end="os._exit(4)"))))

    for program in running:
        assert program.line() == "runs"
        assert program.end() == 0, program.err
        assert program.out == "4\n", program.err
        assert "Traceback" not in program.err
        assert "Exception ignored" not in program.err


@pytest.mark.parametrize("use", ["pass", "assert backend.run_sync({'n': 2}, wait=10) == 2"])
def test_a_fork_that_ends_as_programs_end_is_quiet_and_harmless(start, use):
    """Its exit hooks leave the parent's workers and threads alone, whether it used the backend or forgot it."""
    program = start(
        guarded(
            f"""
            backend = processes(echo)
            handles = [backend.submit_sync({{"n": n}}) for n in range(300)]
            child = os.fork()
            if child == 0:
                {use}
                sys.exit(4)
            _, status = os.waitpid(child, 0)
            assert [handle.result(10) for handle in handles] == list(range(300))
            assert not backend.shutdown_sync(5).stuck
            print(os.waitstatus_to_exitcode(status))
            """
        )
    )

    assert program.end() == 0, program.err

    assert program.out == "4\n", program.err
    assert "Traceback" not in program.err, program.err
    assert "Exception ignored" not in program.err, program.err


def test_forks_at_any_moment_harm_nothing(start):
    """Forks during submits, starts of workers and results: every one can end, every task of the parent does."""
    program = start(
        guarded(
            """
            backend = processes(echo)
            children, handles = [], []
            for n in range(20):
                handles += [backend.submit_sync({"n": n}) for _ in range(20)]
                child = os.fork()
                if child == 0:
                    backend.inflight_count
                    sys.exit(0)
                children.append(child)
                if n % 10 == 5 and backend.stats().workers:
                    os.kill(backend.stats().workers[0].pid, signal.SIGKILL)
            statuses = {os.waitpid(child, 0)[1] for child in children}
            ended = [handle.exception(10) for handle in handles]
            assert all(error is None or isinstance(error, taskback.WorkerDiedError) for error in ended)
            assert sum(error is not None for error in ended) <= 4
            assert not backend.shutdown_sync(5).stuck
            print(statuses)
            """
        )
    )

    assert program.end() == 0, program.err

    assert program.out == "{0}\n", program.err
    assert "Traceback" not in program.err, program.err


def test_workers_notice_the_death_of_their_parent_though_a_fork_of_it_lives(start):
    """The fork holds nothing that a worker waits on."""
    program = start(
        guarded(
            """
            backend = processes(swallow)
            handles = [backend.submit_sync({}) for _ in range(2)]
            while backend.stats().running < 2: time.sleep(0.005)
            child = os.fork()
            if child == 0:
                os.closerange(0, 3)
                time.sleep(60)
                os._exit(0)
            tell(f"child {child}")
            time.sleep(60)
            """
        )
    )
    lines = [program.line() for _ in range(3)]
    workers = [int(line) for line in lines if "child" not in line]
    (fork,) = (int(line.split()[1]) for line in lines if "child" in line)

    program.process.kill()
    program.process.wait()

    try:
        await_gone(*workers)
        assert is_running(fork)
    finally:
        os.kill(fork, signal.SIGKILL)


def test_a_fork_of_a_fork_serves_too(start):
    """Each has workers of its own."""
    program = start(
        guarded(
            """
            def where(task):
                import psutil
                return psutil.Process(os.getppid()).ppid()  # the guardian is between
            backend = processes(where, max_workers=1)
            def go(depth):
                assert backend.run_sync({}, wait=10) == os.getpid()
                if depth < 2:
                    child = os.fork()
                    if child == 0:
                        go(depth + 1)
                        os._exit(0)
                    assert os.waitpid(child, 0)[1] == 0
                backend.shutdown_sync(5)
            go(0)
            """
        )
    )

    assert program.end() == 0, program.err


@pytest.mark.parametrize("how", ["fork", "spawn"])
def test_a_process_of_multiprocessing_has_a_backend_of_its_own_and_ends(start, how):
    """It need not be shut down there either: `multiprocessing` would wait for the workers, which end only then."""
    top = """
        import multiprocessing
        backend = processes(echo, max_workers=1)
        def inside(shuts_down):
            assert backend.run_sync({"n": 2}, wait=10) == 2
            tell(backend.stats().workers[0].pid)
            if shuts_down:
                backend.shutdown_sync(5)
    """
    body = """
        assert backend.run_sync({"n": 1}, wait=10) == 1
        context = multiprocessing.get_context("%s")
        children = [context.Process(target=inside, args=(shuts_down,)) for shuts_down in (True, False)]
        for child in children:
            child.start()
        for child in children:
            child.join()
        assert backend.run_sync({"n": 3}, wait=10) == 3
        backend.shutdown_sync(5)
        print([child.exitcode for child in children])
    """
    program = start(guarded(body % how).replace("if __name__", textwrap.dedent(top) + "\nif __name__"))
    workers = program.pids(2)

    assert program.end() == 0, program.err

    assert program.out == "[0, 0]\n", program.err
    assert "Traceback" not in program.err, program.err
    assert not any(map(is_running, workers))


def test_a_fork_holds_nothing_of_its_parent(start):
    """No descriptor of workers, guardians, loops or what sleeps, whichever backends and pools have been used."""
    program = start(
        guarded(
            """
            from taskback.pools import ProcessPool, ThreadPool
            def held():
                return {(fd, os.readlink(f"/proc/self/fd/{fd}")) for fd in map(int, os.listdir("/proc/self/fd"))
                        if os.path.exists(f"/proc/self/fd/{fd}")}
            async def wait(task):
                await asyncio.sleep(0)
                return task.get("n")
            before = {target for _, target in held()}
            backends = [make(wait, timeout=60) for make in (processes, threads, loops, inline, in_threads_of_another)]
            for backend in backends:
                assert backend.run_sync({"n": bytes(1 << 20)}, wait=20) == bytes(1 << 20)
                backend.subscribe(lambda event: None)
            delayed = backends[0].submit_sync({}, delay=600)
            with ProcessPool(1) as pool, ThreadPool(1) as threads_of_ours:
                array = pool.submit(bytes, 1 << 20).result(20)
                assert threads_of_ours.submit(len, array).result(20) == 1 << 20
                assert len(held()) > len(before) + 10
                child = os.fork()
                if child == 0:
                    print(sorted(target for _, target in held() if target not in before), flush=True)
                    os._exit(0)
                os.waitpid(child, 0)
                for backend in backends:  # nor has its letting go done any harm
                    assert backend.run_sync({"n": 4}, wait=20) == 4
                    assert not backend.shutdown_sync(0).stuck
                assert pool.submit(len, b"four").result(20) == 4
            """
        )
    )

    assert program.end() == 0, program.err

    assert program.out == "[]\n", program.err


RETURNS = """
    def work(task):
        if task.get("forks"):
            child = os.fork()
            if child:
                return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            print("in the child", flush=True)
            return 9
        tell(f"ran {task['n']} in {os.getpid()}")
        return task["n"]
    async def work_async(task):
        return work(task)
"""


@pytest.mark.parametrize(
    "made",
    [
        "processes(work, max_workers=1)",
        "taskback.ThreadPoolTaskBackend(work, max_workers=1)",
        "taskback.ThreadPoolTaskBackend(work_async, max_workers=1)",
        "inline(work)",
        "inline(work_async)",
        "loops(work_async)",
        "taskback.ExecutorTaskBackend(work, pool=ThreadPoolExecutor(1))",
        "taskback.pools.ThreadPool(1)",
    ],
)
def test_a_fork_that_a_handler_makes_ends_where_the_handler_returns(start, made):
    """What is queued runs once, in the parent; nobody is told twice."""
    program = start(
        guarded(
            textwrap.dedent(RETURNS)
            + textwrap.dedent(
                f"""
                import taskback.pools
                backend = {made}
                submit = getattr(backend, "submit_sync", lambda task: backend.submit(work, task))
                handles = [submit({{"forks": True, "n": -1}})] + [submit({{"n": n}}) for n in range(3)]
                for handle in handles:
                    handle.add_done_callback(lambda handle: tell(f"told {{os.getpid()}}"))
                assert [handle.result(20) for handle in handles] == [0, 0, 1, 2]
                backend.shutdown_sync(5) if hasattr(backend, "shutdown_sync") else backend.shutdown()
                tell("over")
                """
            )
        )
    )
    told = []
    while (line := program.line()) != "over":
        told.append(line)

    assert program.end() == 0, program.err

    assert program.out == "in the child\n"
    assert sorted(line.split()[1] for line in told if line.startswith("ran")) == ["0", "1", "2"]
    assert [line for line in told if line.startswith("told")] == [f"told {program.process.pid}"] * 4
    assert "Traceback" not in program.err, program.err


@pytest.mark.parametrize(
    "made",
    [
        "processes(gated, max_workers=1)",
        "taskback.ThreadPoolTaskBackend(gated, max_workers=1)",
        "taskback.ExecutorTaskBackend(gated, pool=ThreadPoolExecutor(1))",
        "taskback.ExecutorTaskBackend(gated, pool=ProcessPoolExecutor(1))",
        "taskback.pools.ThreadPool(1)",
        "taskback.pools.ProcessPool(1)",
    ],
)
@pytest.mark.parametrize("where", ["callback", "listener"])
def test_a_fork_that_a_callback_makes_ends_where_that_returns(start, made, where):
    """On a thread of ours, or of a pool's: the child goes on with nothing of the parent's."""
    if where == "listener" and ".pools." in made:
        pytest.skip("pools have no listeners")
    program = start(
        guarded(
            f"""
            import taskback.pools
            def gated(task):
                while not os.path.exists("gate"): time.sleep(0.002)
                return task["n"]
            def forks(*_):
                assert threading.current_thread() is not threading.main_thread()
                child = os.fork()
                if child:
                    tell(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
            def hears(event):
                if isinstance(event, taskback.TaskFinished) and event.task_id == "last":
                    forks()
            backend = {made}
            if hasattr(backend, "submit_sync"):
                submit = backend.submit_sync
                backend.subscribe(hears if "{where}" == "listener" else lambda event: None)
            else:
                submit = lambda task, id: backend.submit(gated, task)
            handles = [submit({{"n": n}}, id=f"t{{n}}" if n < 99 else "last") for n in range(100)]
            if "{where}" == "callback":
                handles[-1].add_done_callback(forks)
            open("gate", "w").close()
            assert [handle.result(20) for handle in handles] == list(range(100))
            tell("results")
            while not os.path.exists("go"): time.sleep(0.005)
            backend.shutdown_sync(5) if hasattr(backend, "shutdown_sync") else backend.shutdown()
            print("over", os.getpid(), flush=True)
            """
        )
    )
    lines = {program.line(), program.line()}
    (program.directory / "go").touch()

    assert program.end() == 0, program.err

    assert lines == {"0", "results"}
    assert program.out == f"over {program.process.pid}\n"
    assert "Traceback" not in program.err, program.err


def test_a_future_of_the_parent_says_so(start):
    """Of the pools, too; `wait`, `as_completed` and asyncio never hang on one. What had ended can be read."""
    program = start(
        guarded(
            """
            from concurrent.futures import as_completed, wait
            from taskback.pools import ProcessPool, ThreadPool
            def hold(path):
                while not os.path.exists(path): time.sleep(0.005)
                return 1
            def held(task):
                return hold("gate")
            def tell_of(pid, name, call):
                try:
                    call()
                except taskback.ForeignHandleError as error:
                    assert error.pid == pid, error
                else:
                    raise AssertionError(name)
            with ProcessPool(1) as processes_of_ours, ThreadPool(1) as threads_of_ours, processes(held) as backend:
                pending = [pool.submit(hold, "gate") for pool in (processes_of_ours, threads_of_ours)]
                pending += [pool.submit(hold, "gate") for pool in (processes_of_ours, threads_of_ours)]  # queued
                pending.append(backend.submit_sync({}))
                early = ThreadPool(1)
                ended = early.submit(int, "7")
                assert ended.result(20) == 7
                cancelled = threads_of_ours.submit(int)
                assert cancelled.cancel()
                child = os.fork()
                if child == 0:
                    try:
                        parent = os.getppid()
                        for future in pending:
                            for name, call in {
                                "result": future.result,
                                "exception": lambda: future.exception(0.1),
                                "cancel": future.cancel,
                                "callback": lambda: future.add_done_callback(print),
                                "wait": lambda: wait([future]),
                                "as_completed": lambda: list(as_completed([ended, future])),
                                "asyncio": lambda: asyncio.run(asyncio.wait_for(asyncio.wrap_future(future), 20)),
                            }.items():
                                tell_of(parent, name, call)
                            assert not future.done()
                            assert f"of process {parent}" in repr(future), repr(future)
                        called = []
                        ended.add_done_callback(called.append)
                        assert called == [ended] and ended.result() == 7 and ended.exception() is None
                        assert wait([ended, cancelled]).not_done == set()
                        assert set(as_completed([ended, cancelled])) == {ended, cancelled}
                        assert cancelled.cancelled() and cancelled.cancel() and not ended.cancel()
                        for pool in (processes_of_ours, threads_of_ours, early):
                            assert pool.submit(int, "5").result(20) == 5
                            pool.shutdown()
                    except BaseException as error:
                        import traceback; traceback.print_exc()
                        os._exit(9)
                    os._exit(4)
                status = os.waitpid(child, 0)[1]
                open("gate", "w").close()
                assert [future.result(20) for future in pending] == [1] * 5
                early.shutdown()
            print(os.waitstatus_to_exitcode(status))
            """
        )
    )

    assert program.end() == 0, program.err

    assert program.out == "4\n", program.err


def test_a_fork_comes_while_other_threads_have_every_lock(start):
    """And while one submits and one shuts down: nobody lets go of those locks in the child, and it needs none."""
    program = start(
        guarded(
            """
            from taskback import _backend
            from taskback.pools import ProcessPool, ThreadPool, process_pool, program_end
            backends = [make(echo) for make in (processes, threads, inline)]
            backends.append(taskback.ExecutorTaskBackend(echo, pool=lambda: ThreadPoolExecutor(1)))
            backends.append(loops(lambda task: task.get("n")))
            pools = [ProcessPool(1), ThreadPool(1)]
            handles = [backend.submit_sync({"n": 1}) for backend in backends]
            futures = [pool.submit(int, "1") for pool in pools]
            assert [each.result(20) for each in handles + futures] == [1] * 7
            locks = [_backend._once_lock, program_end._lock, process_pool._watch_lock]
            for backend in backends:
                locks += [backend._ledger.lock, backend._ledger._states, backend._open_lock, backend.keeper._lock]
                locks += [backend._listeners._lock, backend._callbacks._lock]
            locks += [pools[0]._queue._lock, pools[0]._queue._states, pools[0]._guardian._lock]
            locks += [pools[1]._lock, pools[1]._states]
            locks += [handle._condition for handle in handles + futures]
            has_them, done = threading.Event(), threading.Event()
            def keep():
                for lock in locks:
                    lock.acquire()
                has_them.set()
                done.wait()
                for lock in reversed(locks):
                    lock.release()
            threading.Thread(target=keep).start()
            has_them.wait()
            half_way = threading.Thread(target=backends[1].submit_sync, args=({"n": 2},))
            closing = threading.Thread(target=backends[0].shutdown_sync)
            half_way.start(), closing.start()
            child = os.fork()
            if child == 0:
                try:
                    from concurrent.futures import as_completed, wait
                    assert [each.result() for each in as_completed(handles + futures)] == [1] * 7
                    assert not wait(handles + futures).not_done
                    called = []
                    for each in handles + futures:
                        each.add_done_callback(called.append)
                        each.cancel(), repr(each), each.running()
                    assert called == handles + futures
                    async def awaited(handle):
                        return await handle
                    for handle in handles:
                        assert asyncio.run(awaited(handle)) == 1
                    for backend in backends:
                        assert backend.run_sync({"n": 3}, wait=20) == 3
                        assert backend.stats().accepted == 1
                        assert not backend.shutdown_sync(5).stuck
                    for pool in pools:
                        assert pool.submit(int, "3").result(20) == 3
                        pool.shutdown()
                except BaseException as error:
                    import traceback; traceback.print_exc()
                    os._exit(9)
                os._exit(4)
            status = os.waitpid(child, 0)[1]
            done.set()
            half_way.join(), closing.join()
            for pool in pools:
                pool.shutdown()
            for backend in backends:
                assert not backend.shutdown_sync(5).stuck
            print(os.waitstatus_to_exitcode(status))
            """
        )
    )

    assert program.end() == 0, program.err

    assert program.out == "4\n", program.err
    assert "Traceback" not in program.err, program.err


def test_a_fork_waits_for_a_worker_that_is_being_started(start):
    """It comes when both ends are where they belong: the worker ends with its parent, though the child lives on."""
    program = start(
        guarded(
            """
            from taskback.pools.guardian_client import GuardianClient
            backend = processes(swallow, max_workers=1)
            in_between, go_on = threading.Event(), threading.Event()
            plainly = GuardianClient.start_worker
            def start_worker(self, fds):
                in_between.set()
                go_on.wait()
                return plainly(self, fds)
            GuardianClient.start_worker = start_worker
            backend.submit_sync({})
            in_between.wait()
            threading.Timer(0.2, go_on.set).start()  # the fork is held back until then
            child = os.fork()
            if child == 0:
                assert go_on.is_set()
                time.sleep(60)
                os._exit(0)
            tell(f"child {child}")
            time.sleep(60)
            """
        )
    )
    lines = [program.line(), program.line()]
    (worker,) = (int(line) for line in lines if "child" not in line)
    (fork,) = (int(line.split()[1]) for line in lines if "child" in line)

    program.process.kill()
    program.process.wait()

    try:
        await_gone(worker)
        assert is_running(fork)
    finally:
        os.kill(fork, signal.SIGKILL)


def test_a_fork_in_a_program_with_two_loops_serves_in_a_third(start):
    """Made within a coroutine, beside another loop that awaits a handle; and a fork of that fork does, too."""
    program = start(
        guarded(
            """
            backend = processes(echo, max_workers=1)
            async def hold():
                handle = await backend.submit({"n": 1}, delay=600)
                waiting.set()
                try:
                    await handle
                except asyncio.CancelledError:
                    return "cancelled"
            def beside():
                print(asyncio.run(hold()), os.getpid(), flush=True)
            async def serve(depth):
                assert await backend.run({"n": depth}) == depth
                if depth < 3:
                    child = os.fork()
                    if child == 0:
                        asyncio.run(serve(depth + 1))
                        sys.stdout.flush()
                        os._exit(depth)
                    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == depth
                assert await backend.run({"n": depth}) == depth
                assert not (await backend.shutdown(0)).stuck
            waiting = threading.Event()
            other = threading.Thread(target=beside)
            other.start()
            waiting.wait()
            asyncio.run(serve(0))
            other.join()
            """
        )
    )

    assert program.end() == 0, program.err

    assert program.out == f"cancelled {program.process.pid}\n", program.err
    assert "Traceback" not in program.err, program.err


def test_a_fork_that_becomes_another_program_has_inherited_nothing(start):
    """`exec` right after the fork, and by `subprocess` with a function to be called before it."""
    program = start(
        guarded(
            """
            import subprocess
            backend = processes(echo, max_workers=1)
            assert backend.run_sync({"n": bytes(1 << 20)}, wait=20)
            show = [sys.executable, "-c", "import os; print(sorted(os.readlink(f'/proc/self/fd/{fd}').split(':')[0]"
                    " for fd in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{fd}')"
                    " and int(fd) > 2), flush=True)"]
            child = os.fork()
            if child == 0:
                os.execv(sys.executable, show)
            os.waitpid(child, 0)
            subprocess.run(show, preexec_fn=lambda: None, check=True)
            assert backend.run_sync({"n": 4}, wait=20) == 4
            backend.shutdown_sync(0)
            """
        )
    )

    assert program.end() == 0, program.err

    assert program.out == "[]\n[]\n", program.out


def test_a_fork_has_no_use_for_the_pool_of_somebody_else(start):
    """A backend that was given a stock pool says so there; one that was given a pool of ours has it afresh."""
    program = start(
        guarded(
            """
            from taskback.pools import ProcessPool, ThreadPool
            stock = in_threads_of_another(echo)
            ours = [taskback.ExecutorTaskBackend(echo, pool=make(1)) for make in (ProcessPool, ThreadPool)]
            for backend in (stock, *ours):
                assert backend.run_sync({"n": 1}, wait=20) == 1
            child = os.fork()
            if child == 0:
                try:
                    stock.submit_sync({})
                except taskback.BackendClosedError as error:
                    print(error, flush=True)
                for backend in ours:
                    assert backend.run_sync({"n": 2}, wait=20) == 2
                    backend.shutdown_sync(5)
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            for backend in (stock, *ours):
                assert backend.run_sync({"n": 3}, wait=20) == 3
                backend.shutdown_sync(5)
            """
        )
    )

    assert program.end() == 0, program.err

    assert "in a fork, and its pool in the parent (give it what makes a pool instead)" in program.out
