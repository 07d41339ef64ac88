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
            for n in range(40):
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
