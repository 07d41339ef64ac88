"""The backends that the contract is tested on, a line each, and how a test takes one.

`on(...)` makes a test run on all of them, or on those that keep some promise. A test that takes `backend` shares a
running one with others (two workers, the handler `handlers.do`); one that takes `entry` and `make` makes its own.
A task's type tells the figures of one test from those of others.
"""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
import tempfile
import threading
import uuid
import weakref
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import loky
import pytest

from taskback import (
    AsyncFireAndTrackBackend,
    DurableTaskBackend,
    ExecutorTaskBackend,
    ProcessPoolTaskBackend,
    Promises,
    SyncTaskBackend,
    TaskHandle,
    TaskState,
    ThreadPoolTaskBackend,
)
from tests import handlers
from tests.gates import PATIENCE, Gate

Make = Callable[..., Any]


@dataclass(frozen=True)
class Entry:
    """A backend: its name, what makes one, and whether handlers run in the event loop of who submits."""

    name: str
    make: Make
    in_loop: bool = False

    @functools.cached_property
    def promises(self) -> Promises:
        """What it promises."""
        promises: Promises = self.make().promises
        return promises


def _alone(kind: Make) -> Make:
    return lambda handler=None, workers=1, **options: kind(handler, **options)


def _pooled(kind: Make) -> Make:
    return lambda handler=None, workers=1, **options: kind(handler, max_workers=workers, **options)


def _over(pool: Callable[[int], Executor]) -> Make:
    return lambda handler=None, workers=1, **options: ExecutorTaskBackend(
        handler, pool=lambda: pool(workers), **options
    )


class _Durable(DurableTaskBackend):
    """One whose inner parts a test finds where they are in others."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_inner"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        target = self._inner if name == "ended" else super()
        target.__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._inner, name)


def _durable(kind: Make) -> Make:
    def make(handler: Any = None, workers: int = 1, **options: Any) -> DurableTaskBackend:
        folder = tempfile.mkdtemp()
        backend = _Durable(kind(handler, max_workers=workers, **options), os.path.join(folder, "tasks.db"), fsync=False)
        weakref.finalize(backend, shutil.rmtree, folder, ignore_errors=True)
        return backend

    return make


BACKENDS: Final = (
    Entry("sync", _alone(SyncTaskBackend), in_loop=True),
    Entry("async", _alone(AsyncFireAndTrackBackend), in_loop=True),
    Entry("thread", _pooled(ThreadPoolTaskBackend)),
    Entry("process", _pooled(ProcessPoolTaskBackend)),
    Entry("durable-process", _durable(ProcessPoolTaskBackend)),
    Entry("over-threads", _over(ThreadPoolExecutor)),
    Entry("over-processes", _over(functools.partial(ProcessPoolExecutor, mp_context=get_context("spawn")))),
    Entry("over-loky", _over(loky.ProcessPoolExecutor)),
)


def chosen(**kept: bool) -> list[Entry]:
    """The entries whose promises (and `in_loop`) are as given."""
    return [
        entry
        for entry in BACKENDS
        if all(getattr(entry if name == "in_loop" else entry.promises, name) is value for name, value in kept.items())
    ]


def on(**kept: bool) -> Callable[[Any], Any]:
    """Run a test on the chosen backends; it takes `backend` (shared) or `entry` (to make its own)."""

    def mark(test: Any) -> Any:
        entries = chosen(**kept)
        names = [entry.name for entry in entries]
        takes = test.__wrapped__ if hasattr(test, "__wrapped__") else test
        if "backend" in takes.__code__.co_varnames[: takes.__code__.co_argcount]:
            return pytest.mark.parametrize("backend", entries, ids=names, indirect=True, scope="session")(test)
        return pytest.mark.parametrize("entry", entries, ids=names)(test)

    return mark


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test that is a coroutine function in an event loop of its own."""

    @functools.wraps(test)
    def run(*args: Any, **options: Any) -> None:
        asyncio.run(test(*args, **options))

    return run


def flavour(entry_or_backend: Any, name: str) -> str:
    """The name of a handler that stands at a gate: the async one where a sync one would hold up the test's loop."""
    return f"{name}_async" if runs_in_loop(entry_or_backend) else name


def runs_in_loop(entry_or_backend: Any) -> bool:
    """Whether its handlers run in the event loop of who submits."""
    if isinstance(entry_or_backend, Entry):
        return entry_or_backend.in_loop
    return isinstance(entry_or_backend, tuple(_IN_LOOP))


_IN_LOOP: Final = {type(entry.make()) for entry in BACKENDS if entry.in_loop}
_submissions: set[Any] = set()
_submitters: list[threading.Thread] = []


async def begin(backend: Any, task: dict[str, Any], **options: Any) -> TaskHandle:
    """Submit a task without waiting for it, also where `submit` returns no sooner than it has run."""
    handle: TaskHandle
    if backend.promises.returns_before_run:
        handle = await backend.submit(task, **options)
        return handle
    options.setdefault("id", uuid.uuid4().hex)
    submission = asyncio.create_task(backend.submit(task, **options))
    _submissions.add(submission)
    submission.add_done_callback(_submissions.discard)
    await asyncio.sleep(0)  # the one step in which it is accepted
    handle = backend.handle(options["id"])
    return handle


def begin_sync(backend: Any, gate: Gate, task: dict[str, Any], **options: Any) -> TaskHandle:
    """Submit a task without a loop and wait until it stands at the gate, also where `submit_sync` runs it."""
    handle: TaskHandle
    if backend.promises.returns_before_run:
        handle = backend.submit_sync(task, **options)
        gate.wait_said()
        return handle
    options.setdefault("id", uuid.uuid4().hex)
    submitter = threading.Thread(target=backend.submit_sync, args=(task,), kwargs=options, name="submits")
    submitter.start()
    _submitters.append(submitter)
    gate.wait_said()
    handle = backend.handle(options["id"])
    return handle


def await_submitters() -> None:
    """Wait for the threads of `begin_sync`, whose tasks have ended."""
    while _submitters:
        _submitters.pop().join(PATIENCE)


async def until_running(handle: TaskHandle) -> None:
    """Wait for what the worker has said of its start to be read here; the handler's own word may overtake it."""
    async with asyncio.timeout(PATIENCE):
        while handle.state is TaskState.QUEUED:
            await asyncio.sleep(0.001)


# --- fixtures, which conftest takes over ---


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    """A gate, which opens at the end of the test."""
    made = Gate(tmp_path)
    yield made
    made.close()


@pytest.fixture
def kind() -> str:
    """A task type that no other test has."""
    return f"type-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def make(gate: Gate) -> Iterator[Make]:
    """Makes backends, which are shut down at the end of the test; the gate is opened for what stands there."""
    made: list[Any] = []

    def make_one(entry: Entry, handler: Any = handlers.do, **options: Any) -> Any:
        options = {"cancel_grace_seconds": 1.0, **options}
        backend = entry.make(handler, **options)
        made.append(backend)
        return backend

    yield make_one
    gate.open()
    for backend in made:
        backend.shutdown_sync(2)


@pytest.fixture(scope="session")
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A running backend that tests share, with all its lazily started threads."""
    entry: Entry = request.param
    # The grace is long: no test that shares this one may have a worker killed, for the next one would be new to it.
    shared = entry.make(handlers.do, workers=2, cancel_grace_seconds=PATIENCE, keep_ended=3)
    shared.initialize_sync()
    _warm(shared, tmp_path_factory.mktemp(entry.name))
    yield shared
    shared.shutdown_sync(2)


def _warm(shared: Any, directory: Path) -> None:
    """Have it start whatever it starts on demand, so that it is not taken for what a test leaves behind."""
    gate = Gate(directory)
    unsubscribe = shared.subscribe(lambda event: None)
    shared.keeper.start()
    shared._callbacks.post(list)
    if shared.promises.returns_before_run:
        held = [shared.submit_sync({"do": "hold_async", "gate": gate.path}) for _ in range(2)]
        gate.wait_said(2)
        gate.open()
        for handle in held:
            handle.result(PATIENCE)
    else:
        shared.run_sync({"do": "echo"})
    unsubscribe()
    gate.close()
