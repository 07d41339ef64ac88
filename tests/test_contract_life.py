"""The contract, on every backend: the start, hosts' own subclasses, dead workers, the end of the program, forks."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import select
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import Future, wait
from typing import Any

import psutil
import pytest

from taskback import (
    DurableTaskBackend,
    SyncTaskBackend,
    TaskBackend,
    TaskState,
    UnknownTaskError,
    UnsupportedOptionError,
    WorkerDiedError,
    get_default_task_backend,
    set_default_task_backend,
)
from taskback.backends import default
from tests import handlers
from tests.backends import chosen, flavour, in_loop, on
from tests.gates import PATIENCE
from tests.helpers import ROOT, run_python

# --- what is kept ---


@on()
@in_loop
async def test_a_failure_goes_with_its_handle(entry, make, caplog):
    """Its traceback holds frames of ours; none of them leads back to it, so it needs no collector."""
    caplog.set_level(logging.CRITICAL, "taskback")  # pytest keeps what is logged
    backend = make(entry)
    await backend.initialize()
    gc.disable()

    try:
        by_handle = await backend.submit({"do": "fail_oddly", "kind": "two arguments"})
        await asyncio.wait([by_handle])
        failures = [weakref.ref(by_handle.exception())]
        del by_handle
        try:
            await backend.run({"do": "fail_oddly", "kind": "two arguments"})
        except Exception as error:
            failures.append(weakref.ref(error))
        await backend.run({"do": "echo"})  # the one worker has nothing left of those before

        assert [failure() for failure in failures] == [None, None]
    finally:
        gc.enable()


# --- the start ---


@on()
def test_a_task_that_comes_before_initialize_starts_the_backend(entry, make, caplog):
    """Both halves warn, once, and take it."""
    backend, other = make(entry), make(entry)

    async def submit() -> Any:
        return await (await backend.submit({"do": "echo", "type": "early", "value": 1}))

    results = [asyncio.run(submit()), other.run_sync({"do": "echo", "type": "early", "value": 2})]
    backend.run_sync({"do": "echo"})

    assert results == [1, 2]
    assert backend._initialized
    told = [record for record in caplog.records if "before initialize" in record.getMessage()]
    assert [record.levelname for record in told] == ["WARNING"] * 2
    assert all("early" in record.getMessage() for record in told)


@on(returns_before_run=True, delay=True)
@in_loop
async def test_a_delay_is_kept_after_a_shutdown_that_cut_one_short(entry, make):
    """A timer that went with the first life does not stand in the way of those of the second."""
    backend = make(entry)
    await backend.initialize()
    cut = await backend.submit({"do": "echo"}, delay=0.3)
    await backend.shutdown(0)
    await backend.initialize()

    handle = await backend.submit({"do": "echo", "value": "late"}, delay=0.35)

    assert await asyncio.wait_for(handle, PATIENCE) == "late"
    assert cut.cancelled()


@on()
@in_loop
async def test_initializing_again_changes_nothing(entry, make):
    """A second call, by either half, finds it started."""
    backend = make(entry)
    await backend.initialize()
    first = await backend.run({"do": "pid"})

    await backend.initialize()
    backend.initialize_sync()

    assert await backend.run({"do": "pid"}) == first
    assert backend.stats().accepted == 2


@on()
@in_loop
async def test_the_older_names_do_the_same(entry, make):
    """`set_executor` after construction, and `submit_task`, as callers of this interface know them."""
    backend = make(entry, None)
    backend.set_executor(handlers.echo_async)
    await backend.initialize()

    handle = await backend.submit_task({"value": 1}, id="own")
    nothing_read = await backend.submit_task({"value": 2})

    assert (await handle, handle.id) == (1, "own")
    assert await backend.wait_for_pending_tasks(PATIENCE)
    assert nothing_read.done()


@on(returns_before_run=False)
@in_loop
async def test_submit_has_run_the_task_where_it_promises_no_less(backend):
    """Callers of the inline backend rely on it, in both halves."""
    handle = await backend.submit({"do": "echo_async", "value": 1})
    failed = backend.submit_sync({"do": "fail"})

    assert (handle.done(), handle.result()) == (True, 1)
    assert (failed.done(), failed.state) == (True, TaskState.FAILED)


@on(returns_before_run=True)
@in_loop
async def test_submit_returns_before_the_task_has_run(backend, gate):
    """And promptly: a task that stands at a gate holds nobody up."""
    handle = await backend.submit({"do": flavour(backend, "hold"), "gate": gate.path, "value": 1})

    assert not handle.done()
    gate.open()
    assert await handle == 1


@on()
@pytest.mark.parametrize("handler", ["print", 5, ()], ids=repr)
def test_a_handler_must_be_callable(entry, make, handler):
    """Anything else is a `TypeError` where it is given, by either name, or at construction."""
    backend = make(entry, None)

    for give in (backend.set_handler, backend.set_executor, entry.make):
        with pytest.raises(TypeError, match="callable"):
            give(handler)


# --- what workers give ---


@on(frees_loop=True)
@in_loop
async def test_a_handler_that_computes_leaves_the_event_loop_free(backend, gate):
    """One call of C code that holds the interpreter lock: the loop ticks on."""
    handle = await backend.submit({"do": "compute", "gate": gate.path, "steps": 20_000_000})
    await gate.said()

    ticks = 0
    while not handle.done():
        await asyncio.sleep(0.005)
        ticks += 1

    assert await handle == sum(range(20_000_000))
    assert ticks > 5


@on(uses_cores=True)
@in_loop
async def test_handlers_run_in_several_processes_at_once(backend, gate):
    """Each worker is one, and none is ours."""
    handles = [await backend.submit({"do": "hold", "gate": gate.path}) for _ in range(2)]
    await gate.said(2)

    gate.open()
    await asyncio.gather(*handles)

    assert len({os.getpid(), *(handle.worker_pid for handle in handles)}) == 3


@on(live_objects=False)
def test_a_dead_worker_costs_the_task_that_it_ran(entry, make):
    """LOST, with what is known of the death; those that waited run in a new worker."""
    backend = make(entry)
    first = backend.run_sync({"do": "pid"})

    died = backend.submit_sync({"do": "die", "type": "deadly"})
    behind = [backend.submit_sync({"do": "echo", "value": value}) for value in range(3)]
    wait([died, *behind], PATIENCE)

    error = died.exception(0)
    assert died.state is TaskState.LOST
    assert isinstance(error, WorkerDiedError)
    if entry.promises.survives_worker_death:
        assert (error.pid, error.signal_name) == (first, "SIGKILL")
    assert [handle.result(0) for handle in behind] == [0, 1, 2]
    assert backend.run_sync({"do": "pid"}) != first
    figures = backend.stats()
    assert (figures.accepted, figures.succeeded, figures.lost) == (6, 5, 1)


@on(idle_costs_nothing=True)
def test_an_idle_backend_costs_nothing(entry, make):
    """Its processes and its threads here are not woken."""
    backend = make(entry)
    pid = backend.submit_sync({"do": "pid"}).result(PATIENCE)
    backend.subscribe(print)
    backend.submit_sync({"do": "echo"}, **({"timeout": 60} if entry.promises.timeout else {})).result(PATIENCE)
    give_up = time.monotonic() + PATIENCE
    before: dict[int, int] = {}
    while (now := switches(pid)) != before and time.monotonic() < give_up:  # what the tasks left to do is over
        before = now
        time.sleep(0.05)

    time.sleep(0.5)  # the time that is looked at
    after = switches(pid)

    changed = {thread: count - before.get(thread, 0) for thread, count in after.items() if count != before.get(thread)}
    assert sum(changed.values()) <= 2, changed


def switches(worker: int) -> dict[int, int]:
    """How often each thread here but the calling one, and the worker as a whole, gave up the processor by itself."""
    found = {}
    if worker != os.getpid():
        found[worker] = psutil.Process(worker).num_ctx_switches().voluntary
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and thread.native_id is not None:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
                with open(f"/proc/self/task/{thread.native_id}/status") as status:
                    lines = dict(line.split(":", 1) for line in status)
                found[thread.native_id] = int(lines["voluntary_ctxt_switches"])
    return found


# --- the program's end, and forks ---

FORGETFUL = """
import sys, threading
from tests import handlers
from tests.backends import BACKENDS

_, name, do, gate = sys.argv
entry = next(entry for entry in BACKENDS if entry.name == name)
backend = entry.make(handlers.do, exit_grace_seconds=0.5)
backend.initialize_sync()

def submit():
    handles = [backend.submit_sync({"do": do, "gate": gate}) for _ in range(3)]
    if entry.promises.returns_before_run:
        handles[0].exception()  # a thread of the program that waits for it

threading.Thread(target=submit).start()
sys.stdin.readline()
"""


FORGOTTEN = [
    *(pytest.param(entry, "hold", id=f"{entry.name}-hold") for entry in chosen()),
    *(
        pytest.param(entry, "hold_in_c", id=f"{entry.name}-hold_in_c")
        for entry in chosen(exits_without_shutdown=True, live_objects=False)
    ),
]


@pytest.mark.parametrize(("entry", "do"), FORGOTTEN)
def test_a_program_that_forgets_shutdown_still_exits(entry, gate, do):
    """Queued work is cancelled and workers are killed, while a thread of the program waits on a handle."""
    program = subprocess.Popen(
        [sys.executable, "-c", FORGETFUL, entry.name, do, gate.path],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        gate.wait_said()
        begun = time.monotonic()
        _, complaints = program.communicate("\n", PATIENCE)
    finally:
        program.kill()
        program.communicate()

    assert program.returncode == 0, complaints
    assert time.monotonic() - begun < 5
    assert gate.heard() == [], "what was queued began"


@on(no_orphans=True, live_objects=False)
def test_no_worker_outlives_a_killed_program(entry, gate):
    """However it went, and whatever the handler does in Python code."""
    program = subprocess.Popen(
        [sys.executable, "-c", FORGETFUL, entry.name, "hold_with_pid", gate.path],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    worker = int(gate.wait_said()[0])
    pidfd = os.pidfd_open(worker)

    program.kill()
    program.communicate()

    try:
        assert select.select([pidfd], [], [], PATIENCE)[0], "the worker lives on"
    finally:
        os.close(pidfd)


FORKED = """
import os, sys, warnings
warnings.simplefilter("ignore")
from taskback import ForeignHandleError, TaskState
from tests import handlers
from tests.backends import BACKENDS, Gate, begin_sync
from pathlib import Path

entry = next(entry for entry in BACKENDS if entry.name == sys.argv[1])
backend = entry.make(handlers.do)
backend.initialize_sync()
ended = backend.submit_sync({"do": "echo", "value": 1})
assert ended.result(20) == 1
gate = Gate(Path(sys.argv[2]), "other")
held = begin_sync(backend, gate, {"do": "hold_async", "gate": gate.path, "value": 2})
child = os.fork()
if child == 0:
    for block in (held.result, held.exception, held.cancel):
        try:
            block()
        except ForeignHandleError as error:
            assert error.pid == os.getppid()
        else:
            raise AssertionError("a foreign handle gave an answer")
    assert ended.result() == 1
    assert backend.inflight_count == 0
    assert backend.run_sync({"do": "echo", "value": 3}, wait=20) == 3
    backend.shutdown_sync(5)
    print("child well", flush=True)
else:
    assert os.waitpid(child, 0)[1] == 0
    gate.open()
    assert held.result(20) == 2
    assert backend.run_sync({"do": "echo", "value": 4}, wait=20) == 4
    backend.shutdown_sync(5)
    print("parent well", flush=True)
"""


@on()
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_a_forks_copy_of_a_backend_starts_afresh(entry, tmp_path):
    """The child runs tasks of its own; handles of the parent say that they are foreign; the parent goes on."""
    if isinstance(entry.make(), DurableTaskBackend):
        pytest.skip("its journal is the parent's; test_durable tells what becomes of the child's copy")
    ended = run_python("-c", FORKED, entry.name, str(tmp_path))

    assert (ended.returncode, ended.stdout.split("\n")[:2]) == (0, ["child well", "parent well"]), ended.stderr


# --- the default backend ---


def test_the_default_backend_runs_inline_until_it_is_set(monkeypatch):
    """One for the whole program; what is set is what is given from then on."""
    monkeypatch.setattr(default, "_default", {})
    before = get_default_task_backend()
    mine = SyncTaskBackend()

    set_default_task_backend(mine)

    assert type(before) is SyncTaskBackend
    assert get_default_task_backend() is mine
    with pytest.raises(TypeError, match="TaskBackend"):
        set_default_task_backend("sync")  # type: ignore[arg-type]  # that is the point


# --- a host's own subclass, as the seed of this interface has it ---


class HostsInline(TaskBackend):
    """Defines three methods and knows of three names."""

    async def initialize(self) -> None:
        self._initialized = True

    async def submit(self, task: dict[str, Any]) -> None:  # type: ignore[override]  # as hosts wrote it
        if not self._initialized:
            await self.initialize()
        await self._run(task)

    async def shutdown(self) -> None:
        self._initialized = False


class HostsTracking(HostsInline):
    """Fires and tracks."""

    def __init__(self) -> None:
        self.tasks: set[asyncio.Task[None]] = set()

    async def submit(self, task: dict[str, Any]) -> None:  # type: ignore[override]  # as hosts wrote it
        self.tasks.add(asyncio.create_task(self._run(task)))

    async def shutdown(self) -> None:
        await asyncio.gather(*self.tasks)
        await super().shutdown()


@pytest.fixture(params=[HostsInline, HostsTracking])
def host(request) -> Any:
    """A host's backend."""
    return request.param()


@in_loop
async def test_a_hosts_subclass_works_with_three_methods(host, caplog):
    """Its handler runs, sync or async; what that raises is logged and swallowed."""
    done = []

    async def handler(task):
        done.append(task["value"])
        if task["value"] == 2:
            raise ValueError("no good")

    host.set_executor(handler)
    async with host as entered:
        await host.submit_task({"type": "host", "value": 1})
        await host.run({"type": "host", "value": 2})
        await host.shutdown()  # one that tracks runs them no later than here
        host.set_handler(lambda task: done.append(-task["value"]))
        await host.submit({"type": "host", "value": 3})

    assert entered is host
    assert done == [1, 2, -3]
    assert not host._initialized
    (told,) = (record for record in caplog.records if "no good" in record.getMessage())
    assert told.levelname == "WARNING"
    assert "host" in told.getMessage()


@in_loop
async def test_a_hosts_subclass_that_tracks_runs_tasks_with_the_handler_of_their_turn():
    """`submit` returns before they run; `shutdown` waits for them."""
    host, done = HostsTracking(), list[int]()
    host.set_executor(lambda task: done.append(task["value"]))

    async with host:
        await host.submit({"value": 1})
        at_once = list(done)
        host.set_handler(lambda task: done.append(-task["value"]))

    assert (at_once, done) == ([], [-1])


def test_a_hosts_subclass_works_without_a_loop(host, caplog):
    """The sync half runs its coroutines on a thread of ours, which ends with it."""
    results: Future[int] = Future()
    host.set_executor(lambda task: results.set_result(task["value"]))

    with host as entered:
        assert host._initialized
        host.submit_sync({"value": 5}, wait=PATIENCE)
        assert results.result(PATIENCE) == 5
        host.run_sync({"value": 6})

    assert entered is host
    assert not host._initialized
    assert host.inflight_count == host.stats().running == 0
    assert "InvalidStateError" in caplog.text, "the second one raised, which is logged"


@in_loop
async def test_a_hosts_subclass_without_a_handler_drops_tasks(host, caplog):
    """With a warning that names the type."""
    async with host:
        await host.submit({"type": "orphan"})

    assert "orphan" in caplog.text


def test_a_hosts_subclass_says_what_it_does_not_know(host):
    """It promises nothing, finds no handle, tells no events, and has nothing to hurry."""
    with pytest.raises(UnknownTaskError):
        host.handle("any")
    with pytest.raises(UnsupportedOptionError):
        host.subscribe(print)
    with pytest.raises(TypeError, match="callable"):
        host.set_executor(5)

    host.hurry()
    assert host.inflight_count == 0
    assert not any(getattr(host.promises, name) for name in type(host.promises).__slots__)


def test_a_hosts_submit_that_blocks_is_bounded_by_wait(gate):
    """`wait` bounds the blocking, and what was waited for is cancelled."""
    host = HostsInline()
    host.set_executor(handlers.do)

    with host, pytest.raises(TimeoutError):
        host.submit_sync({"do": "hold_async", "gate": gate.path}, wait=0.05)

    assert host.inflight_count == 0
