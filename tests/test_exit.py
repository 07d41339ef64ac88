"""How programs end that use a backend: they do, in time, with the right status, quietly, and with no worker left."""

from __future__ import annotations

import os
import signal
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults import await_gone
from tests.helpers import is_running
from tests.running import PRELUDE, Program, Programs, programs


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Programs]:
    """Starts programs and ends them."""
    with programs(tmp_path) as started:
        yield started


def guarded(body: str) -> str:
    """A script that does this under its main guard."""
    return PRELUDE + "if __name__ == '__main__':\n" + textwrap.indent(textwrap.dedent(body), "    ")


def assert_quiet(program: Program) -> None:
    """Nothing of ours stands on standard error: no traceback, no complaint of the interpreter."""
    for word in ("Traceback", "Exception ignored", "Error", "leaked"):
        assert word not in program.err, program.err


ALL = ("processes", "threads", "loops", "inline", "in_threads_of_another", "in_processes_of_another")


def test_a_program_that_forgets_an_idle_backend_ends(start):
    """On every backend: at once, with status 0, silent."""
    code = """
        backend = {make}(echo)
        assert backend.run_sync({{"n": 3}}) == 3
        tell("done")
        while not os.path.exists("go"): time.sleep(0.005)
    """
    running = [start(guarded(code.format(make=make))) for make in ALL]
    for program in running:
        assert program.line() == "done"

    for program in running:  # one by one: six that end at once would have to share the processors
        (program.directory / "go").touch()
        told = time.monotonic()
        assert program.end() == 0, program.err
        assert time.monotonic() - told < 3
        assert program.err.count("\n") <= 1, program.err  # that initialize was forgotten
        assert_quiet(program)


@pytest.mark.parametrize(
    ("make", "handler", "busy"),
    [
        ("processes", "loop", 2),
        ("processes", "swallow", 2),
        ("processes", "gil", 2),
        ("threads", "loop", 2),
        ("threads", "swallow", 2),
        ("loops", "loop_async", 2),
        ("in_threads_of_another", "loop", 2),
        ("in_processes_of_another", "swallow", 2),
    ],
)
def test_a_program_that_forgets_a_busy_backend_ends(start, make, handler, busy):
    """With tasks running and a hundred more queued: within the grace and a bit, status 0, no worker left."""
    program = start(
        guarded(
            f"""
            import logging; logging.disable(logging.CRITICAL)
            backend = {make}({handler})
            backend.initialize_sync()
            handles = [backend.submit_sync({{}}, id=f"t{{n}}") for n in range({102 if make != "loops" else 2})]
            while sum(handle.state.value == "running" for handle in handles) < {busy}:
                assert not any(handle.done() for handle in handles), [handle.exception(0) for handle in handles[:2]]
                time.sleep(0.005)
            while not os.path.exists("go"): time.sleep(0.005)  # another's pool says that a task runs before it does
            """
        )
    )
    pids = set(program.pids(busy)) - {program.process.pid}
    (program.directory / "go").touch()
    began = time.monotonic()

    status = program.end()

    assert status == 0, program.err
    assert time.monotonic() - began < 1 + 0.5 + 1
    assert not any(map(is_running, pids))
    assert_quiet(program)


def test_the_log_of_forgotten_tasks_has_no_traceback(start):
    """A program that forgets workers in an endless loop, and logs, gets a line for what was stopped."""
    program = start(
        guarded(
            """
            backend = processes(spin)
            handles = [backend.submit_sync({}) for _ in range(50)]
            while backend.stats().running < 2: time.sleep(0.005)
            """
        )
    )
    pids = program.pids(2)

    assert program.end() == 0, program.err

    assert "Traceback" not in program.err
    assert not any(map(is_running, pids))


def test_a_program_ends_while_a_thread_of_its_own_waits_on_a_handle(start):
    """The wait ends with CancelledError, of which the thread can make what it likes."""
    program = start(
        guarded(
            """
            import logging; logging.disable(logging.CRITICAL)
            backend = processes(loop)
            handle = backend.submit_sync({})
            def wait():
                try:
                    handle.result()
                except CancelledError:
                    print("cancelled", handle.state.value)
            threading.Thread(target=wait).start()
            while handle.progress is None: time.sleep(0.005)
            """
        )
    )
    (pid,) = program.pids(1)

    assert program.end() == 0, program.err

    assert program.out == "cancelled cancelled\n"
    assert not is_running(pid)
    assert_quiet(program)


@pytest.mark.parametrize("where", ["run_sync", "with", "shutdown_sync", "asyncio.run", "asyncio shutdown"])
def test_one_interrupt_ends_a_program(start, where):
    """Ctrl-C comes out where the program waits, as KeyboardInterrupt, and all ends in time."""
    bodies = {
        "run_sync": "backend = processes(loop); backend.run_sync({})",
        "with": """
            with processes(loop, shutdown_timeout_seconds=0.1) as backend:
                backend.run_sync({})
            """,
        "shutdown_sync": "backend = processes(loop); backend.submit_sync({}); backend.shutdown_sync(60)",
        "asyncio.run": """
            async def main():
                async with processes(loop, shutdown_timeout_seconds=0.1) as backend:
                    await backend.run({})
            asyncio.run(main())
            """,
        "asyncio shutdown": """
            async def main():
                backend = processes(loop)
                await backend.submit({})
                await backend.shutdown(60)
            asyncio.run(main())
            """,
    }
    program = start(guarded("import logging; logging.disable(logging.CRITICAL)\n" + textwrap.dedent(bodies[where])))
    (pid,) = program.pids(1)
    began = time.monotonic()

    program.interrupt()
    status = program.end()

    assert status == -signal.SIGINT, program.err
    assert time.monotonic() - began < 3
    assert program.err.count("Traceback (most recent call last)") <= 2, program.err  # asyncio shows two, for itself
    assert program.err.rstrip().endswith("KeyboardInterrupt")
    assert "Exception ignored" not in program.err
    assert not is_running(pid)


def test_a_second_interrupt_ends_a_program_at_once(start):
    """The first one starts a patient shutdown; the second leaves it, and the exit kills what will not stop."""
    body = """
        import logging; logging.disable(logging.CRITICAL)
        try:
            with processes(swallow, shutdown_timeout_seconds=60, cancel_grace_seconds=30) as backend:
                def watch():
                    while backend._state.value == "running": time.sleep(0.001)
                    tell("leaving")
                threading.Thread(target=watch, daemon=True).start()
                backend.run_sync({})
        finally:
            tell("left")
    """
    program = start(guarded(body))
    (pid,) = program.pids(1)
    program.interrupt()
    assert program.line() == "leaving"
    began = time.monotonic()

    program.interrupt()
    assert program.line() == "left"
    status = program.end()

    assert status == -signal.SIGINT, program.err
    assert time.monotonic() - began < 1 + 0.5 + 1
    assert "Exception ignored" not in program.err, program.err
    assert not is_running(pid)


def test_an_interrupt_during_the_exit_itself_does_no_harm(start):
    """Who presses Ctrl-C while the program clears up gets no traceback, no hook is left out, and no worker is left."""
    body = """
        import logging; logging.disable(logging.CRITICAL)
        def stubborn(task):
            tell(os.getpid())
            try:
                while True: time.sleep(0.005)
            except BaseException:
                tell("is to stop")
                swallow(task)
        backend = processes(stubborn)
        backend.submit_sync({})
        while backend.stats().running < 1: time.sleep(0.005)
    """
    program = start(guarded(body))
    (pid,) = program.pids(1)
    assert program.line() == "is to stop"
    began = time.monotonic()

    program.interrupt()
    status = program.end()

    assert status == 0, program.err
    assert time.monotonic() - began < 1 + 0.5 + 1
    assert not is_running(pid)
    assert_quiet(program)


def test_an_interrupt_while_workers_start_makes_no_noise_in_them(start):
    """Ctrl-C at a terminal reaches the whole group, workers that have not left it yet too."""
    body = """
        import logging; logging.disable(logging.CRITICAL)
        if True:
            backend = processes(echo, max_workers=4)
            try:
                backend.initialize_sync()
                handle = backend.submit_sync({"n": 1})
                while not all(lane.starting for lane in backend._processes): time.sleep(0.001)
                tell("starting")
                time.sleep(60)
            except KeyboardInterrupt:
                print(handle.result(20))
                backend.shutdown_sync(5)
    """
    program = start(guarded(body))
    assert program.line() == "starting"

    program.interrupt()

    assert program.end() == 0, program.err
    assert program.out == "1\n"
    assert_quiet(program)


@pytest.mark.parametrize(("how", "status"), [("sys.exit(5)", 5), ("raise ValueError('mine')", 1)])
def test_the_exit_status_is_the_programs_own(start, how, status):
    """sys.exit in `async with`, an exception in main: the backend changes neither status nor words."""
    inside = start(
        guarded(
            f"""
            import logging; logging.disable(logging.CRITICAL)
            async def main():
                async with processes(loop, shutdown_timeout_seconds=0) as backend:
                    await backend.submit({{}})
                    {how}
            asyncio.run(main())
            """
        )
    )
    outside = start(
        guarded(
            f"""
            import logging; logging.disable(logging.CRITICAL)
            backend = processes(loop)
            backend.submit_sync({{}})
            {how}
            """
        )
    )

    for program in (inside, outside):
        assert program.end() == status, program.err
        assert "Exception ignored" not in program.err
        assert program.err.count("Traceback") == ("raise" in how)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_worker_outlives_a_killed_program(start, number):
    """Busy in Python code, idle or just starting, with what they have started: all end with the parent."""
    busy = start(guarded("backend = processes(spin); [backend.submit_sync({}) for _ in range(2)]; time.sleep(60)"))
    parents = start(
        guarded(
            """
            def parent(task):
                import subprocess
                tell(os.getpid()); tell(subprocess.Popen(["sleep", "600"]).pid); swallow_all()
            def swallow_all():
                while True:
                    try: time.sleep(0.01)
                    except BaseException: pass
            backend = processes(parent, max_workers=1); backend.submit_sync({}); time.sleep(60)
            """
        )
    )
    idle = start(
        guarded("backend = processes(echo); backend.run_sync({}); tell(backend.stats().workers[0].pid); time.sleep(60)")
    )
    starting = start(
        guarded(
            """
            backend = processes(echo); backend.initialize_sync()
            while not all(lane.starting for lane in backend._processes): time.sleep(0.001)
            for lane in backend._processes: tell(lane.starting)
            time.sleep(60)
            """
        )
    )
    running = ((busy, 2), (parents, 2), (idle, 1), (starting, 2))
    pids = {program: program.pids(count) for program, count in running}

    for program in pids:
        program.process.send_signal(number)
    statuses = [program.end() for program in pids]

    assert statuses == [-number] * 4
    await_gone(*(pid for each in pids.values() for pid in each))


@pytest.mark.parametrize("make", ["processes", "threads"])
@pytest.mark.parametrize(
    ("how", "status"),
    [
        ("os._exit(3)", 3),
        ("threading.Thread(target=sys.exit, args=(4,)).start(); sys.exit(5)", 5),
        ("threading.Thread(target=lambda: backend.run_sync({'ends': True})).start(); sys.exit(5)", 5),
        ("raise KeyError('mine')", 1),
        ("threading.Thread(target=os._exit, args=(6,)).start(); time.sleep(60)", 6),
    ],
)
def test_a_program_may_end_anyhow(start, make, how, status):
    """Without its exit hooks, from a thread, by an exception: in time, with its own status, and nothing is left."""
    program = start(
        guarded(
            f"""
            import logging; logging.disable(logging.CRITICAL)
            def work(task):
                if not task.get("ends"):
                    swallow(task)
            backend = {make}(work)
            handles = [backend.submit_sync({{}}) for _ in range(4 if "{make}" == "processes" else 1)]
            while backend.stats().running < 1: time.sleep(0.005)
            while not os.path.exists("go"): time.sleep(0.005)
            {how}
            """
        )
    )
    pids = set(program.pids(2 if make == "processes" else 1)) - {program.process.pid}
    (program.directory / "go").touch()
    began = time.monotonic()

    assert program.end() == status, program.err

    assert time.monotonic() - began < 1 + 0.5 + 1
    await_gone(*pids)
    assert "Exception ignored" not in program.err, program.err


def test_a_program_that_becomes_another_leaves_no_worker(start):
    """`exec` closes what workers wait on, and the process goes on without them."""
    program = start(
        guarded(
            """
            def parent(task):
                import subprocess
                tell(subprocess.Popen(["sleep", "600"], start_new_session=True).pid)
                swallow(task)
            backend = processes(parent, max_workers=1)
            backend.submit_sync({})
            while not os.path.exists("go"): time.sleep(0.005)
            code = "import os, time\\nwhile not os.path.exists('end'): time.sleep(0.005)\\nprint(os.getpid())"
            os.execv(sys.executable, [sys.executable, "-c", code])
            """
        )
    )
    pids = program.pids(2)

    (program.directory / "go").touch()
    await_gone(*pids)

    (program.directory / "end").touch()
    assert program.end() == 0, program.err
    assert program.out == f"{program.process.pid}\n"


def test_a_program_ends_while_a_callback_runs(start):
    """The callback of a task, and that of a pool's call, which end when they do; no hook waits for either for ever."""
    body = """
        import logging; logging.disable(logging.CRITICAL)
        from taskback.pools import ProcessPool
        def hold(future):
            tell("holds")
            time.sleep({seconds})
            print("called back", flush=True)
        if "{what}" == "pool":
            pool = ProcessPool(1, exit_grace_seconds=0.5)
            future = pool.submit(time.sleep, 0.3)
        else:
            pool = processes(lambda task: time.sleep(0.3), max_workers=1)
            future = pool.submit_sync({{}})
        future.add_done_callback(hold)
        while not os.path.exists("go"): time.sleep(0.005)
    """
    running = {
        (what, seconds): start(guarded(body.format(what=what, seconds=seconds)))
        for what in ("pool", "backend")
        for seconds in (0.2, 600)
    }

    for (what, seconds), program in running.items():
        assert program.line() == "holds"
        (program.directory / "go").touch()
        began = time.monotonic()
        assert program.end() == 0, program.err
        assert time.monotonic() - began < 5, what
        assert program.out == ("called back\n" if seconds == 0.2 else "")
        assert_quiet(program)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT, signal.SIGABRT])
def test_the_end_of_its_terminal_leaves_no_worker(start, number):
    """What comes to a whole group when its terminal is closed, and what a watchdog sends."""
    program = start(
        guarded(
            """
            import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            for number in (signal.SIGHUP, signal.SIGQUIT):  # ignored where the tests run under nohup
                signal.signal(number, signal.SIG_DFL)
            def parent(task):
                import subprocess
                tell(subprocess.Popen(["sleep", "600"], start_new_session=True).pid)
                swallow(task)
            backend = processes(parent, max_workers=1)
            backend.submit_sync({})
            time.sleep(60)
            """
        )
    )
    pids = program.pids(2)

    os.killpg(program.process.pid, number)

    assert program.end() == -number, program.err
    await_gone(*pids)


def test_a_daemonic_process_may_have_a_backend(start):
    """And when its parent ends it, by SIGTERM, without any of its exit hooks, nothing of it is left."""
    top = """
        import multiprocessing
        def inside():
            backend = processes(swallow, max_workers=1)
            backend.submit_sync({})
            time.sleep(60)
    """
    body = """
        process = multiprocessing.get_context("spawn").Process(target=inside, daemon=True)
        process.start()
        tell(process.pid)
        while not os.path.exists("go"): time.sleep(0.005)
    """
    program = start(guarded(body).replace("if __name__", textwrap.dedent(top) + "\nif __name__"))
    pids = program.pids(2)

    (program.directory / "go").touch()

    assert program.end() == 0, program.err
    await_gone(*pids)
    assert_quiet(program)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("where", ["plain", "asyncio"])
def test_ctrl_c_ends_a_program_that_forgets_its_backend(start, where, times):
    """Once and twice, in a loop and without one: in time, and what has left its worker's group is gone, too."""
    bodies = {
        "plain": "backend = processes(parent, max_workers=1); backend.submit_sync({}); tell('up'); time.sleep(60)",
        "asyncio": """
            async def main():
                backend = processes(parent, max_workers=1)
                await backend.submit({})
                tell("up")
                await asyncio.sleep(60)
            asyncio.run(main())
            """,
    }
    head = """
        import logging; logging.disable(logging.CRITICAL)
        def parent(task):
            import subprocess
            tell(subprocess.Popen(["sleep", "600"], start_new_session=True).pid)
            swallow(task)
    """
    program = start(guarded(textwrap.dedent(head) + textwrap.dedent(bodies[where])))
    lines = [program.line() for _ in range(3)]
    pids = [int(line) for line in lines if line != "up"]
    began = time.monotonic()

    for _ in range(times):
        program.interrupt()
    status = program.end()

    assert time.monotonic() - began < 1 + 0.5 + 1
    await_gone(*pids)
    if times == 1:  # the second one may strike the interpreter anywhere on its way out
        assert status == -signal.SIGINT, program.err
        assert "Exception ignored" not in program.err, program.err
