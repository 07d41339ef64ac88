"""Workers that crash, hang, lie or are killed: each costs its own task alone, and leaves nothing."""

from __future__ import annotations

import contextlib
import os
import pickle
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from typing import Any

import psutil
import pytest

from taskback import (
    ProcessPoolTaskBackend,
    TaskHandle,
    TaskState,
    TaskTimeoutError,
    WorkerDied,
    WorkerDiedError,
)
from tests import faults
from tests.faults import LIMIT, await_gone
from tests.helpers import is_running, outcomes, process_backends

Make = Callable[..., ProcessPoolTaskBackend]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes backends that are shut down whatever the test does."""
    with process_backends(faults.handler, 0.3) as make:
        yield make


def await_end(handle: TaskHandle) -> BaseException | None:
    """Wait for a handle, whatever it ends as; what it ended with."""
    assert not wait([handle], LIMIT).not_done, f"{handle} did not end"
    return None if handle.cancelled() else handle.exception(0)


def assert_sums(backend: ProcessPoolTaskBackend) -> None:
    """The figures account for every task."""
    stats = backend.stats()
    assert stats.accepted == outcomes(stats)
    assert stats.queued == stats.running == 0


@pytest.mark.parametrize(("how", "exitcode"), faults.CRASHES)
def test_a_task_that_crashes_its_worker_is_lost_and_names_how(make, how, exitcode):
    """The error tells pid and exit status, and the next task runs in a new worker."""
    backend = make()
    first = backend.run_sync({"do": "pid"}, wait=LIMIT)

    handle = backend.submit_sync({"do": how})
    error = await_end(handle)
    second = backend.run_sync({"do": "pid"}, wait=LIMIT)

    assert handle.state is TaskState.LOST
    assert isinstance(error, WorkerDiedError)
    assert (error.pid, error.exitcode) == (first, exitcode)
    assert error.signal_name == (signal.Signals(-exitcode).name if exitcode < 0 else None)
    assert error.ran is not None
    assert handle.worker_pid == first
    assert second != first
    assert_sums(backend)


def test_an_idle_worker_that_is_killed_is_replaced_and_costs_no_task(make):
    """Nobody's task is charged with the death of a worker that had none."""
    backend = make()
    died: list[Any] = []
    seen = threading.Event()
    backend.subscribe(lambda event: (died.append(event), seen.set()) if isinstance(event, WorkerDied) else None)
    first = backend.run_sync({"do": "pid"}, wait=LIMIT)

    os.kill(first, signal.SIGKILL)
    handles = [backend.submit_sync({"do": "pid"}) for _ in range(10)]  # some may be sent to the dying one
    pids = {handle.result(LIMIT) for handle in handles}

    assert len(pids) == 1
    assert first not in pids
    assert seen.wait(LIMIT)
    assert (died[0].pid, died[0].exitcode, died[0].task_id) == (first, -signal.SIGKILL, None)
    assert backend.stats().succeeded == 11


def test_a_busy_worker_that_is_killed_loses_its_task_alone(make, channel):
    """The task that ran is LOST with pid and signal; the one that waited for it runs."""
    backend = make()
    handle = backend.submit_sync({"do": "sleep", "tell": channel.path})
    waiting = backend.submit_sync({"do": "echo", "n": 5})
    (pid,) = channel.numbers()

    os.kill(pid, signal.SIGKILL)

    error = await_end(handle)
    assert isinstance(error, WorkerDiedError)
    assert (error.pid, error.signal_name) == (pid, "SIGKILL")
    assert waiting.result(LIMIT) == 5


@pytest.mark.parametrize("how", ["sleep", "swallow", "spin", "gil"])
def test_a_time_limit_ends_a_handler_whatever_it_does(make, channel, how):
    """What does not stop when told is killed after the grace, and the worker is replaced."""
    backend = make()
    began = time.monotonic()
    handle = backend.submit_sync({"do": how, "tell": channel.path}, timeout=0.2)
    (pid,) = channel.numbers()

    error = await_end(handle)

    assert isinstance(error, TaskTimeoutError)
    assert handle.state is TaskState.TIMED_OUT
    assert handle.finished_at - handle.started_at < 0.2 + 0.3 + 1, time.monotonic() - began
    assert backend.run_sync({"do": "echo", "n": 1}, wait=LIMIT) == 1
    if how != "sleep":
        await_gone(pid)
    assert_sums(backend)


def test_a_stopped_worker_is_ended_by_a_time_limit_and_by_cancel(make, channel):
    """SIGSTOP holds off neither."""
    backend = make(max_workers=2)
    limited = backend.submit_sync({"do": "sleep", "tell": channel.path}, timeout=0.5)
    (one,) = channel.numbers()
    called_off = backend.submit_sync({"do": "sleep", "tell": channel.path})
    (two,) = channel.numbers()

    os.kill(one, signal.SIGSTOP)
    os.kill(two, signal.SIGSTOP)
    assert called_off.cancel()

    assert isinstance(await_end(limited), TaskTimeoutError)
    await_end(called_off)
    assert called_off.state is TaskState.CANCELLED
    await_gone(one, two)


@pytest.mark.parametrize("end", ["timeout", "cancel", "kill", "crash", "shutdown", "return"])
def test_what_a_handler_started_is_gone_with_it(make, channel, end):
    """Plain children and grandchildren do not outlive the worker, however it ends."""
    backend = make()
    then = {"timeout": "swallow", "cancel": "swallow", "crash": "segfault", "return": "echo"}.get(end, "forever")
    task = {"do": "children", "then": then, "tell": channel.path}
    handle = backend.submit_sync(task, timeout=2 if end == "timeout" else None)
    pid, *children = channel.numbers()
    if then == "swallow":
        channel.line()  # from here on nothing stops it

    if end == "cancel":
        handle.cancel()
    elif end == "kill":
        os.kill(pid, signal.SIGKILL)
    elif end == "shutdown":
        backend.shutdown_sync(0)
    await_end(handle)
    if end == "return":
        assert all(map(is_running, children)), "what a handler leaves running on purpose goes on"
        report = backend.shutdown_sync(5)
        assert not any(map(is_running, (pid, *children))), "what shutdown leaves to die it names"
        assert report.dying == []

    await_gone(pid, *children)


def test_a_handler_that_forks_answers_once(make):
    """Its child does not return into the worker's loop, and the worker goes on."""
    backend = make()

    pids = [backend.run_sync({"do": "fork"}, wait=LIMIT) for _ in range(20)]

    assert len(set(pids)) == 1
    assert backend.run_sync({"do": "pid"}, wait=LIMIT) == pids[0]
    assert psutil.Process(pids[0]).is_running()
    assert_sums(backend)


@pytest.mark.parametrize("how", ["close_all", "close_all_and_stay"])
def test_a_handler_that_closes_every_descriptor_costs_itself_alone(make, channel, how):
    """Its worker can neither answer nor be told to stop any more; that task is LOST, the next one runs."""
    backend = make()

    error = await_end(backend.submit_sync({"do": how, "tell": channel.path}))

    assert isinstance(error, WorkerDiedError)
    assert backend.run_sync({"do": "echo", "n": 3}, wait=LIMIT) == 3


def test_a_handler_that_changes_its_process_leaves_the_worker_usable(make):
    """Directory, signal handlers, environment, threads: tasks still run, and are still stopped."""
    backend = make()

    assert backend.run_sync({"do": "change"}, wait=LIMIT) == "/"
    assert backend.run_sync({"do": "echo", "n": 4}, wait=LIMIT) == 4
    with pytest.raises(TaskTimeoutError):
        backend.run_sync({"do": "forever"}, timeout=0.1, wait=LIMIT)
    assert isinstance(await_end(backend.submit_sync({"do": "kill"})), WorkerDiedError)
    assert backend.run_sync({"do": "echo", "n": 5}, wait=LIMIT) == 5


def test_a_thread_that_a_handler_left_does_not_hold_up_shutdown(make):
    """The worker cannot end by itself, and is killed after the grace."""
    backend = make()
    backend.run_sync({"do": "thread"}, wait=LIMIT)

    report = backend.shutdown_sync(1)

    assert report.seconds < 0.3 + 1
    assert not report.dying
    assert not report.stuck


def test_a_handler_that_prints_a_lot_is_no_trouble(capfd, make):
    """4 MB on the worker's streams."""
    backend = make()

    assert backend.run_sync({"do": "print"}, wait=LIMIT) == 2000


@pytest.mark.parametrize("junk", [b"A" * 100, b"A", b"\x00\x00\x00\x05abcde", b"\xff" * 12, b"\x00\x00\x00\x64abc"])
def test_garbage_on_its_connection_costs_its_own_task_alone(make, channel, junk):
    """The parent trusts no packet; a worker that talks nonsense is killed."""
    backend = make(max_workers=2)
    handle = backend.submit_sync({"do": "garbage", "bytes": junk}, timeout=1)

    error = await_end(handle)

    assert isinstance(error, WorkerDiedError)
    assert "no packet" in str(error)
    assert backend.run_sync({"do": "echo", "n": 1}, wait=LIMIT) == 1
    assert backend.shutdown_sync(1).seconds < 1 + 0.3 + 1


def test_a_reply_that_cannot_be_read_costs_its_own_task_alone(make):
    """The task fails with the reason; its worker goes on, and what it says of a task that is over is not heard."""
    backend = make()

    handle = backend.submit_sync({"do": "garbage_reply"})
    error = await_end(handle)

    assert handle.state is TaskState.FAILED
    assert isinstance(error, pickle.UnpicklingError)
    assert backend.run_sync({"do": "echo", "n": 1}, wait=LIMIT) == 1


def test_a_hundred_megabytes_travel_both_ways(make):
    """Tasks and results may be huge."""
    backend = make()
    size = 100 * 2**20

    assert backend.run_sync({"do": "size", "data": bytes(size)}, wait=LIMIT) == size
    assert len(backend.run_sync({"do": "big", "size": size}, wait=LIMIT)) == size


@pytest.mark.parametrize("how", ["die_while_packing", "die_while_answering"])
def test_a_worker_that_dies_while_it_answers_is_replaced(make, channel, how):
    """A result is whole or not at all: its task is LOST, for its handler has been called, and nobody waits for more."""
    backend = make()

    error = await_end(backend.submit_sync({"do": how, "tell": channel.path}))

    assert channel.line() == "ran"
    assert channel.poll_line(0) is None, "it ran twice"
    assert isinstance(error, WorkerDiedError)
    assert error.signal_name == "SIGKILL"
    assert backend.run_sync({"do": "echo", "n": 1}, wait=LIMIT) == 1
    report = backend.shutdown_sync(1)
    assert not report.stuck
    assert report.seconds < 1


def test_a_worker_that_dies_while_it_reads_a_huge_task_is_replaced(make):
    """The task cannot have started: it runs in the next worker."""
    backend = make()
    first = backend.run_sync({"do": "pid"}, wait=LIMIT)
    os.kill(first, signal.SIGSTOP)
    handle = backend.submit_sync({"do": "size", "data": bytes(50 * 2**20)})

    os.kill(first, signal.SIGKILL)

    assert handle.result(LIMIT) == 50 * 2**20
    report = backend.shutdown_sync(1)
    assert not report.stuck


def test_the_guardian_may_die(make, channel):
    """Who runs then goes on, and is still stopped by its time limit; other workers take their place."""
    backend = make(max_workers=2)
    limited = backend.submit_sync({"do": "swallow", "tell": channel.path}, timeout=1)
    (one,) = channel.numbers()
    held = backend.submit_sync({"do": "sleep", "tell": channel.path})
    (two,) = channel.numbers()
    (guardian,) = {psutil.Process(pid).ppid() for pid in (one, two)}

    os.kill(guardian, signal.SIGKILL)
    error = await_end(limited)
    third = backend.run_sync({"do": "pid"}, wait=LIMIT)

    assert isinstance(error, TaskTimeoutError)
    assert error.ran < 1 + 0.3 + 1
    assert third not in (one, two)
    assert held.cancel()
    await_end(held)
    await_gone(one, two)
    assert backend.shutdown_sync(1).dying == []


def test_of_200_tasks_20_kill_their_worker_and_the_others_run_once(make, tmp_path):
    """20 LOST, each with pid and signal; 180 SUCCEEDED; every one ran exactly once."""
    backend = make(max_workers=2)
    lines = tmp_path / "lines"
    handles = [
        backend.submit_sync({"do": "line", "n": n, "lines": str(lines), "dies": n % 10 == 3}) for n in range(200)
    ]

    _done, not_done = wait(handles, 60)

    assert not not_done
    lost = [handle for handle in handles if handle.state is TaskState.LOST]
    assert [handle.task["n"] for handle in lost] == list(range(3, 200, 10))
    errors = [handle.exception() for handle in lost]
    assert all(isinstance(error, WorkerDiedError) and error.signal_name == "SIGKILL" for error in errors)
    assert len({error.pid for error in errors if isinstance(error, WorkerDiedError)}) == 20
    assert [handle.result() for handle in handles if handle not in lost] == [n for n in range(200) if n % 10 != 3]
    assert Counter(map(int, lines.read_text().split())) == Counter(range(200))
    assert_sums(backend)


@pytest.mark.timeout(120)
def test_random_kills_lose_only_what_ran_and_run_nothing_twice(make, tmp_path):
    """Kill -9 at any moment: every task ends once, what SUCCEEDED ran once, and nothing ran twice."""
    backend = make(max_workers=2)
    lines = tmp_path / "lines"
    seed = os.urandom(8).hex()
    chance = random.Random(seed)
    handles = [backend.submit_sync({"do": "line", "n": n, "lines": str(lines)}) for n in range(2500)]
    over = threading.Event()
    kills = 0

    while any(not handle.done() for handle in handles[-2:]) and kills < 25:
        workers = backend.stats().workers
        if workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(chance.choice(workers).pid, signal.SIGKILL)
            kills += 1
        over.wait(chance.uniform(0, 0.12))
    _done, not_done = wait(handles, 60)

    told = f"seed {seed}, {kills} kills"
    assert not not_done, told
    states = Counter(handle.state for handle in handles)
    assert set(states) <= {TaskState.SUCCEEDED, TaskState.LOST}, told
    assert states[TaskState.LOST] <= kills, told
    ran = Counter(map(int, lines.read_text().split()))
    assert max(ran.values()) == 1, told
    assert all(ran[handle.result()] == 1 for handle in handles if handle.state is TaskState.SUCCEEDED), told
    assert_sums(backend)


def test_a_module_that_a_worker_cannot_import_fails_the_task_with_the_reason(make, tmp_path, monkeypatch):
    """The import's own error is the task's; the worker lives on."""
    (tmp_path / "here_only.py").write_text("def handler(task):\n    return 1\n")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        import here_only  # type: ignore[import-not-found]  # written a moment ago
    (tmp_path / "here_only.py").unlink()
    backend = make(here_only.handler, warm=False)

    errors = [await_end(backend.submit_sync({})) for _ in range(3)]

    assert all(isinstance(error, ModuleNotFoundError) for error in errors)
    assert backend.stats().failed == 3


def test_workers_that_cannot_start_are_told_and_not_tried_for_ever(make, tmp_path, monkeypatch):
    """A handler whose import ends its process: its tasks are LOST, and say that no worker could be started."""
    tries = tmp_path / "tries"
    (tmp_path / "deadly.py").write_text(
        "import os\n"
        f"if os.getpid() != {os.getpid()}:\n"
        f"    os.write(os.open({str(tries)!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND), b'x')\n"
        "    os._exit(3)\n"
        "def handler(task):\n    return 1\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    import deadly  # type: ignore[import-not-found]  # written a moment ago

    backend = make(deadly.handler, max_workers=2, warm=False)

    errors = [await_end(backend.submit_sync({})) for _ in range(2)]

    assert all(isinstance(error, WorkerDiedError) for error in errors)
    assert all("could not be started" in str(error) for error in errors)
    assert len(tries.read_bytes()) <= 2 * 2 * 3, "two lanes, told twice, after three tries each"
