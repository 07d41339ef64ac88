"""What may befall a pool of processes: each fault costs its own call, and leaves nothing."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from taskback import WorkerDiedError
from taskback.pools import ProcessPool
from taskback.pools.child import loop
from taskback.pools.guardian_client import Guard
from tests import faults
from tests.faults import LIMIT, await_gone
from tests.helpers import ROOT, few_descriptors, is_running, run_python

Make = Callable[..., ProcessPool]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes pools that are closed whatever the test does."""
    made: list[ProcessPool] = []

    def make(max_workers: int = 1, **options: Any) -> ProcessPool:
        made.append(ProcessPool(max_workers, **options))
        return made[-1]

    yield make
    for pool in made:
        pool.kill_workers()
        pool.shutdown()


def does(pool: ProcessPool, what: str, **task: Any) -> Any:
    """Have one of the faults done."""
    return pool.submit(faults.handler, {"do": what, **task})


@pytest.mark.parametrize(("how", "exitcode"), faults.CRASHES)
def test_a_crash_costs_its_own_call_and_says_how(make, how, exitcode):
    """Pid, exit status, signal by name, run time and peak memory; the next call runs in a new worker."""
    pool = make()
    first = does(pool, "pid").result(LIMIT)

    crashed, behind = does(pool, how), does(pool, "pid")
    error = crashed.exception(LIMIT)

    assert isinstance(error, WorkerDiedError)
    assert (error.pid, error.exitcode) == (first, exitcode)
    assert error.signal_name == (signal.Signals(-exitcode).name if exitcode < 0 else None)
    assert error.ran is not None
    assert error.peak_rss_bytes > 2**20
    assert behind.result(LIMIT) != first


def test_of_a_thousand_calls_fifty_kill_their_worker(make, tmp_path):
    """Exactly those fail; each of the others runs once."""
    pool = make(2)
    lines = str(tmp_path / "lines")

    futures = [does(pool, "line", lines=lines, n=n, dies=n % 20 == 7) for n in range(1000)]
    assert not wait(futures, LIMIT).not_done

    failed = {n for n, future in enumerate(futures) if future.exception() is not None}
    assert failed == set(range(7, 1000, 20))
    assert {type(futures[n].exception()) for n in failed} == {WorkerDiedError}
    assert {futures[n].exception().signal_name for n in failed} == {"SIGKILL"}
    assert len({futures[n].exception().pid for n in failed}) == 50
    assert [futures[n].result() for n in range(1000) if n not in failed] == sorted(set(range(1000)) - failed)
    assert Counter(Path(lines).read_text().split()) == Counter(map(str, range(1000)))


def test_a_call_that_its_worker_has_not_read_runs_elsewhere(make):
    """Sent to a worker that is stopped, and then killed: nobody is charged."""
    pool = make()
    first = does(pool, "pid").result(LIMIT)
    os.kill(first, signal.SIGSTOP)
    _await_stopped(first)

    future = does(pool, "pid")
    assert future.running(), "it was not sent"
    os.kill(first, signal.SIGKILL)

    assert future.result(LIMIT) != first


def _await_stopped(pid: int) -> None:
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED:
        os.sched_yield()


def test_a_call_that_only_the_kernel_has_read_runs_elsewhere(make):
    """The worker died with it in hand, before it could begin; its page says so."""
    pool = make()
    for _ in range(50):
        first = does(pool, "pid").result(LIMIT)
        os.kill(first, signal.SIGKILL)  # it wakes, and may find the call before it dies
        assert does(pool, "pid").result(LIMIT) != first


def test_idle_workers_that_are_killed_cost_nothing(make):
    """Whatever is submitted at that moment."""
    pool = make(2)
    for _ in range(20):
        pids = {does(pool, "pid").result(LIMIT) for _ in range(4)}
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        futures = [does(pool, "pid") for _ in range(10)]
        assert pids.isdisjoint({future.result(LIMIT) for future in futures})


def test_a_function_that_forks_answers_once(make):
    """Its child does not come back into the worker's loop."""
    pool = make()

    pids = [does(pool, "fork").result(LIMIT) for _ in range(20)]

    assert len(set(pids)) == 1
    assert does(pool, "pid").result(LIMIT) == pids[0]


def fork_and_stay(path: str) -> int:
    """Leave a fork that lives on, made by C, so that no hook of Python's runs in it; its number."""
    pid = int(ctypes.PyDLL(None).fork())
    if pid == 0:
        ctypes.PyDLL(None).sleep(600)
        os._exit(0)
    faults.tell(path, pid)
    os._exit(5)


def test_a_fork_that_holds_the_worker_s_sockets_hides_no_death(make, channel):
    """The guardian tells; and kills what was left."""
    pool = make()

    error = pool.submit(fork_and_stay, channel.path).exception(LIMIT)

    assert error.exitcode == 5
    await_gone(*channel.numbers())


@pytest.mark.parametrize("how", ["close_all", "close_all_and_stay"])
def test_a_function_that_closes_every_descriptor_costs_itself_alone(make, channel, how):
    """Its worker cannot answer any more, and is ended."""
    pool = make()

    error = does(pool, how, tell=channel.path).exception(LIMIT)

    assert isinstance(error, WorkerDiedError)
    assert does(pool, "echo", n=3).result(LIMIT) == 3


def test_a_function_that_changes_its_process_leaves_the_worker_usable(make):
    """Directory, signal handlers, environment, threads."""
    pool = make()
    first = does(pool, "pid").result(LIMIT)

    assert does(pool, "change").result(LIMIT) == "/"
    assert does(pool, "pid").result(LIMIT) == first
    assert does(pool, "kill").exception(LIMIT).signal_name == "SIGKILL"
    assert does(pool, "echo", n=4).result(LIMIT) == 4


def write_on_replies(data: bytes) -> None:
    """Write on the worker's own connection, and go on."""
    assert loop.this is not None
    os.write(loop.this._fds.replies, data)
    while True:
        time.sleep(0.01)


@pytest.mark.parametrize("data", [b"x", b"\xff" * 40, bytes(70_000), b"\x12" + bytes(7)])
def test_a_worker_that_replies_garbage_is_ended(make, data):
    """Its call says why, and the next one runs."""
    pool = make()

    error = pool.submit(write_on_replies, data).exception(LIMIT)

    assert isinstance(error, WorkerDiedError)
    assert "no packet" in str(error)
    assert does(pool, "echo", n=3).result(LIMIT) == 3


def reply_to_another(number: int) -> str:
    """Send a reply to a call that there is not."""
    assert loop.this is not None
    loop.this._replies.send(18, number, b"N.", wait=True)
    return "mine"


def test_a_reply_that_nobody_waits_for_is_dropped(make, caplog):
    """And logged; the call's own reply counts."""
    pool = make()

    assert pool.submit(reply_to_another, 10**9).result(LIMIT) == "mine"

    assert "nobody waits for" in caplog.text


def test_a_worker_that_is_stopped_can_be_killed(make, channel):
    """SIGSTOP holds nothing off."""
    pool = make()
    future = does(pool, "sleep", tell=channel.path)
    (pid,) = channel.numbers()
    os.kill(pid, signal.SIGSTOP)

    pool.kill_workers()

    assert isinstance(future.exception(LIMIT), WorkerDiedError)
    await_gone(pid)


def test_a_worker_that_does_not_end_is_killed_at_shutdown(make):
    """It has a thread that keeps it from ending."""
    pool = make()
    does(pool, "thread").result(LIMIT)
    pid = does(pool, "pid").result(LIMIT)

    began = time.monotonic()
    pool.shutdown()

    assert time.monotonic() - began < 5
    await_gone(pid)


def test_the_guardian_may_die(make, channel, tmp_path):
    """Who is at work finishes; then workers and guardian are replaced."""
    pool = make()
    gate = str(tmp_path / "gate")
    os.mkfifo(gate)
    future = does(pool, "wait", tell=channel.path, gate=gate, n=1)
    (worker,) = channel.numbers()
    first = pool._guardian.pid

    os.kill(first, signal.SIGKILL)
    await_gone(first)
    behind = does(pool, "pid")
    with open(gate, "wb", buffering=0) as file:
        file.write(b"x")

    assert future.result(LIMIT) == 1
    assert behind.result(LIMIT) != worker
    assert pool._guardian.pid != first
    await_gone(worker)


def test_worker_and_guardian_may_die_together(make, channel):
    """The call is lost, and nobody can tell how; the next one runs."""
    pool = make()
    future = does(pool, "children", then="forever", tell=channel.path)
    pid, *children = channel.numbers()

    os.kill(pool._guardian.pid, signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)

    error = future.exception(LIMIT)
    assert (error.pid, error.exitcode) in ((pid, None), (pid, -signal.SIGKILL))
    assert does(pool, "echo", n=3).result(LIMIT) == 3
    await_gone(*children)


def test_a_guardian_that_is_stopped_and_full_is_replaced(make, monkeypatch):
    """A request that nobody takes is not waited for without end; not even where telling it to go on is in vain."""
    monkeypatch.setattr(Guard, "prod", lambda self: None)
    pool = make(1)
    does(pool, "pid").result(LIMIT)
    guard = pool._guardian._guard
    os.kill(guard.pid, signal.SIGSTOP)
    while guard.ask("limit", 0, 0, 0, 0):
        pass

    future = does(pool, "kill")

    assert isinstance(future.exception(LIMIT), WorkerDiedError)
    assert does(pool, "echo", n=3).result(LIMIT) == 3
    await_gone(guard.pid)


FAMILY: Final = """if True:
    import os, subprocess, sys, time
    def family(tell, then):
        child = subprocess.Popen(["sleep", "600"]).pid
        session = subprocess.Popen(["sleep", "600"], start_new_session=True).pid
        reading, writing = os.pipe()
        middle = os.fork()
        if middle == 0:
            os.setsid()
            daemon = os.fork()
            if daemon:
                os.write(writing, str(daemon).encode())
                os._exit(0)
            os.closerange(3, 100)
            time.sleep(600)
        os.waitpid(middle, 0)
        daemon = int(os.read(reading, 32))
        with open(tell, "a") as file:
            file.write(f"{os.getpid()} {child} {session} {daemon}\\n")
        if then == "gil":
            import ctypes
            ctypes.PyDLL(None).sleep(600)
        elif then == "busy":
            while True: pass
        return os.getpid()
"""


def test_what_a_worker_started_ends_with_it(make, channel):
    """A child, one in a session of its own, and a daemon; while the worker lives, they do."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec(FAMILY, namespace)
    pool = make()
    pool.submit(namespace["family"], channel.path, "return").result(LIMIT)
    worker, *below = channel.numbers()
    assert all(map(is_running, below)), "what a function leaves running on purpose goes on"

    error = does(pool, "kill").exception(LIMIT)

    assert error.pid == worker
    await_gone(*below)


PROGRAM: Final = (
    FAMILY
    + """
    from taskback.pools import ProcessPool
    tell, state = sys.argv[1:]
    pool = ProcessPool(2)
    if state != "starting":
        futures = [pool.submit(family, tell, state) for _ in range(2)]
        if state == "idle":
            [future.result() for future in futures]
    else:
        pool.submit(time.sleep, 600)
    while not pool._guardian.pid: time.sleep(0.001)
    if state == "starting":
        with open(tell, "a") as file:
            file.write(f"{pool._guardian.pid}\\n")
    print(pool._guardian.pid, flush=True)
    time.sleep(600)
"""
)


@contextlib.contextmanager
def program(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A program that has a pool."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


STATES: Final = ("idle", "busy", "gil", "stopped")
KILLED: Final = [(state, guardian) for state in STATES for guardian in ("lives", "stopped")]


@pytest.mark.parametrize(("state", "guardian"), [*KILLED, ("starting", "lives")])  # who is stopped starts nobody
def test_when_the_parent_is_killed_nothing_of_it_lives(channel, state, guardian):
    """Workers and all that they started, daemons too, whatever they are doing."""
    with program(channel.path, "busy" if state == "stopped" else state) as process:
        assert process.stdout is not None
        guarding = int(process.stdout.readline())
        families = [channel.numbers()] if state == "starting" else [channel.numbers(), channel.numbers()]
        if guardian == "stopped":  # then the lifeline is all there is, for worker and group
            os.kill(guarding, signal.SIGSTOP)
            families = [family[:2] for family in families]
        if state == "stopped":
            for family in families:
                os.kill(family[0], signal.SIGSTOP)
        watches = [os.pidfd_open(pid) for family in families for pid in family]

        process.kill()
        began = time.monotonic()

        late = []
        for watch in watches:
            if not select.select([watch], [], [], 5)[0]:
                late.append(watch)
            os.close(watch)
        took = time.monotonic() - began
        if guardian == "stopped":
            os.kill(guarding, signal.SIGCONT)
        await_gone(guarding)
    assert not late
    assert took < 1.0, "it takes some 10 ms where the machine is quiet"


EXITS: Final = """if True:
    import sys, threading, time
    from concurrent.futures import wait
    from taskback.pools import ProcessPool
    how, tell = sys.argv[1:]
    pool = ProcessPool(1, exit_grace_seconds=0.3)
    print(pool.submit(pow, 2, 3).result(20), flush=True)
    if how == "idle":
        sys.exit()
    def forever():
        import ctypes, os
        with open(tell, "a") as file:
            file.write(f"{os.getpid()}\\n")
        ctypes.PyDLL(None).sleep(600)
    if how == "short":
        pool.submit(print, "made", flush=True)
        sys.exit()
    future = pool.submit(forever)
    behind = pool.submit(pow, 1, 1)
    if how == "waits":
        def waiter():
            wait([future, behind])
            print(type(future.exception()).__name__, behind.cancelled(), flush=True)
        threading.Thread(target=waiter).start()
    open(tell).readline()
    if how == "error":
        raise SystemExit(3)
"""


@pytest.mark.parametrize(
    ("how", "status", "said"),
    [
        ("idle", 0, "8"),
        ("short", 0, "8 made"),
        ("busy", 0, "8"),
        ("waits", 0, "8 WorkerDiedError True"),
        ("error", 3, "8"),
    ],
)
def test_a_program_that_forgets_its_pool_exits(tmp_path, how, status, said):
    """What is under way gets the grace; then it is killed, and who waits for it is told."""
    tell = tmp_path / "tell"
    os.mkfifo(tell)
    began = time.monotonic()

    ran = run_python("-c", EXITS, how, str(tell))

    assert ran.returncode == status, ran.stderr
    assert ran.stdout.split() == said.split()
    assert time.monotonic() - began < 10


def test_ctrl_c_reaches_no_worker():
    """They are in sessions of their own; the program ends by it, and takes them with it."""
    code = """if True:
        import os, signal, time
        from taskback.pools import ProcessPool
        pool = ProcessPool(1)
        future = pool.submit(time.sleep, 0.3)
        pool.submit(os.getpid)
        os.setpgid(0, 0)
        try:
            os.killpg(0, signal.SIGINT)
            time.sleep(10)
        except KeyboardInterrupt:
            print(future.result(20), pool.submit(pow, 2, 3).result(20))
        pool.shutdown()
    """

    ran = run_python("-c", code)

    assert ran.stdout == "None 8\n", ran.stderr


def test_sigterm_to_every_process_ends_no_worker(make, channel):
    """As a process manager's stop does: the parent decides what becomes of them."""
    pool = make()
    future = does(pool, "sleep", tell=channel.path)
    (worker,) = channel.numbers()

    for pid in (worker, pool._guardian.pid):
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGHUP)
        os.kill(pid, signal.SIGINT)

    assert not wait([future], 0.2).done
    assert is_running(worker)
    pool.kill_workers()


def test_a_fork_of_the_program_has_a_pool_of_its_own(make, tmp_path):
    """It starts afresh there, and holds nothing of the parent's."""
    pool = make()
    first = does(pool, "pid").result(LIMIT)
    reading, writing = os.pipe()

    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            other = does(pool, "pid").result(LIMIT)
            os.write(writing, f"{other} {os.getppid()}".encode())
            pool.shutdown()
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    _, status = os.waitpid(pid, 0)
    other = int(os.read(reading, 100).split()[0])
    os.close(reading)

    assert status == 0
    assert other != first
    await_gone(other)
    assert does(pool, "pid").result(LIMIT) == first


def test_a_fork_that_lives_on_keeps_no_worker_of_its_parent(channel):
    """It holds no end of theirs: they notice when the parent is gone."""
    code = PROGRAM.replace(
        "print(pool._g", "fork = os.fork()\n    if fork == 0: time.sleep(600)\n    print(fork, pool._g"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, channel.path, "idle"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        fork, guardian = map(int, process.stdout.readline().split())
        pids = channel.numbers() + channel.numbers()

        process.kill()

        await_gone(guardian, *pids)
        assert is_running(fork)
        os.kill(fork, signal.SIGKILL)
        await_gone(fork)


def test_forks_at_any_moment_harm_nothing(make):
    """Also while workers are being started."""
    pool = make(2)
    ended = threading.Event()
    wrong: list[BaseException] = []

    def use() -> None:
        try:
            while not ended.is_set():
                assert isinstance(does(pool, "kill").exception(LIMIT), WorkerDiedError)
                assert does(pool, "echo", n=1).result(LIMIT) == 1
        except BaseException as error:
            wrong.append(error)

    users = [threading.Thread(target=use) for _ in range(2)]
    for user in users:
        user.start()
    with contextlib.suppress(BaseException):
        for _ in range(60):
            pid = _fork_quietly()
            os.waitpid(pid, 0)
    ended.set()
    for user in users:
        user.join(LIMIT)

    assert not wrong


def _fork_quietly() -> int:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # this process has threads, which is the point
        pid = os.fork()
    if pid == 0:
        os._exit(0)
    return pid


def test_a_parent_with_thousands_of_descriptors_can_have_a_pool(make):
    """Their numbers do not fit into a select()."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(6000, hard), hard))
    held = []
    try:
        held = [os.dup(0) for _ in range(4200)]
        pool = make(2)
        assert does(pool, "echo", n=5).result(LIMIT) == 5
        assert does(pool, "kill").exception(LIMIT).signal_name == "SIGKILL"
        assert does(pool, "echo", n=bytes(10**6)).result(LIMIT) == bytes(10**6)
    finally:
        for fd in held:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("free", [0, 3, 6, 9, 12])
def test_without_descriptors_a_call_says_so(make, free):
    """It fails with the reason, nothing is left half open, and with descriptors the same pool works."""
    pool = make()

    with few_descriptors(free):
        future = _submitted(pool)
        error = future if isinstance(future, BaseException) else future.exception(LIMIT)

    assert error is None or "Too many open files" in str(error)
    assert error is not None or free > 6
    assert does(pool, "echo", n=5).result(LIMIT) == 5


def _submitted(pool: ProcessPool) -> Any:
    try:
        return does(pool, "echo", n=1)
    except OSError as error:
        return error


def test_an_idle_pool_wakes_nobody(make):
    """No context switch in lanes, workers or guardian, over two seconds."""
    pool = make(2)
    wait([does(pool, "pid") for _ in range(20)])
    guardian = psutil.Process(pool._guardian.pid)
    processes = [guardian, *guardian.children()]
    lanes = [lane.thread.native_id for lane in pool._queue.lanes()]
    assert len(processes) == 3
    _await_quiet(processes, lanes)

    before = _switches(processes, lanes)
    threading.Event().wait(2)

    assert _switches(processes, lanes) == before


def _switches(processes: list[psutil.Process], lanes: list[int]) -> list[str]:
    paths = [
        *(f"/proc/{process.pid}/status" for process in processes),
        *(f"/proc/self/task/{lane}/status" for lane in lanes),
    ]
    return [line for path in paths for line in Path(path).read_text().splitlines() if line.startswith("voluntary")]


def _await_quiet(processes: list[psutil.Process], lanes: list[int]) -> None:
    """Wait until what the last call set off has come to rest."""
    deadline, before = time.monotonic() + 5, _switches(processes, lanes)
    while time.monotonic() < deadline:
        threading.Event().wait(0.2)
        now = _switches(processes, lanes)
        if now == before:
            return
        before = now


def test_a_lane_that_fails_starts_anew(make, monkeypatch, caplog):
    """An error of ours fails the call that the lane had, and no other."""
    pool = make()
    first = does(pool, "pid").result(LIMIT)
    finished = pool._queue.finished

    def fail(*_: Any) -> None:
        monkeypatch.setattr(pool._queue, "finished", finished)
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(pool._queue, "finished", fail)
    failed, behind = does(pool, "pid"), does(pool, "pid")

    assert behind.result(LIMIT) != first
    assert isinstance(failed.exception(LIMIT), ZeroDivisionError)
    assert "starts anew" in caplog.text


class ShutsDown:
    """Ends the process that rebuilds it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (9,)


def test_arguments_that_kill_their_worker_are_charged_to_their_call(make):
    """Nobody else is; it had not begun, so it ran for no time."""
    pool = make()

    error = pool.submit(len, ShutsDown()).exception(LIMIT)

    assert (error.exitcode, error.ran) == (9, None)
    assert does(pool, "echo", n=1).result(LIMIT) == 1


HANGING: Final = """if True:
    import os, sys, time
    from taskback.pools import ProcessPool
    sys.path.insert(0, sys.argv[1])
    pool = ProcessPool(1, preload=["hanging"])
    pool.submit(pow, 2, 3)
    print(open(sys.argv[2]).readline(), flush=True)
    time.sleep(600)
"""


def test_a_guardian_whose_import_hangs_does_not_outlive_its_parent(tmp_path):
    """It cannot see the end of file meanwhile; the kernel ends it."""
    tell = tmp_path / "tell"
    os.mkfifo(tell)
    (tmp_path / "hanging.py").write_text(
        f"import os, time\nwith open({str(tell)!r}, 'w') as file: file.write(str(os.getpid()))\ntime.sleep(600)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", HANGING, str(tmp_path), str(tell)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with process:
        assert process.stdout is not None
        guardian = int(process.stdout.readline())
        assert is_running(guardian)

        process.kill()

        await_gone(guardian)
