"""Chosen context variables reach the handler, wherever it runs, as they were where its task was submitted."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextvars import ContextVar
from multiprocessing import get_context
from types import ModuleType
from typing import Any, Final

import pytest

from taskback import (
    AsyncFireAndTrackBackend,
    ExecutorTaskBackend,
    ProcessPoolTaskBackend,
    TaskNotSerializableError,
    TaskState,
    ThreadPoolTaskBackend,
)
from taskback._propagate import Propagated, context_with
from tests.helpers import run_python

LIMIT: Final = 20.0  # seconds; the net under every wait

user: ContextVar[Any] = ContextVar("user")
tenant: ContextVar[Any] = ContextVar("the tenant", default="nobody's")
other: ContextVar[Any] = ContextVar("other", default="unset")


class Holder:
    """Has one that no module has for a global."""

    inner: ContextVar[Any] = ContextVar("inner", default=0)


def look(task: dict[str, Any]) -> Any:
    """What the variables are here; fails the first time if the task says so."""
    if task.get("fails"):
        task["fails"] = False
        raise LookupError
    found = user.get("unset"), tenant.get(), other.get()
    user.set("changed")
    return found


async def look_async(task: dict[str, Any]) -> Any:
    """The same in a coroutine."""
    await asyncio.sleep(0)
    return look(task)


def submitted(backend: Any, task: dict[str, Any], **values: Any) -> Any:
    """Submit in a context of its own with these values; gives the result."""

    def submit() -> Any:
        for name, value in values.items():
            globals()[name].set(value)
        return backend.submit_sync(task)

    return contextvars.Context().run(submit).result(LIMIT)


def _foreign(handler: Callable[..., Any], **options: Any) -> ExecutorTaskBackend:
    return ExecutorTaskBackend(
        handler, pool=lambda: ProcessPoolExecutor(1, mp_context=get_context("forkserver")), **options
    )


@pytest.mark.parametrize("handler", [look, look_async])
@pytest.mark.parametrize("kind", [ProcessPoolTaskBackend, _foreign])
def test_they_reach_a_process(kind, handler):
    """What is set, as it is at submit; what is not set, or not chosen, stays as it is there, and no task changes it."""
    options = {} if kind is _foreign else {"max_workers": 1}
    with kind(handler, propagate=[user, "tests.test_propagate:tenant"], **options) as backend:
        found = [
            submitted(backend, {}, user={"name": "ann"}, tenant="t1", other="x"),
            submitted(backend, {}, tenant="t2"),
            submitted(backend, {}),
        ]

    assert found == [({"name": "ann"}, "t1", "unset"), ("unset", "t2", "unset"), ("unset", "nobody's", "unset")]


@pytest.mark.parametrize("kind", [ThreadPoolTaskBackend, AsyncFireAndTrackBackend])
def test_all_of_them_reach_threads_and_event_loops(kind):
    """The whole context travels there."""
    with kind(look) as backend:
        assert submitted(backend, {}, user="ann", tenant="t1", other="x") == ("ann", "t1", "x")


def test_they_are_there_in_each_attempt_and_in_many_at_once():
    """Tasks that are submitted together share the submitter's; one that is tried again finds its own."""
    from taskback import TaskRouter

    router = TaskRouter()
    router.handler("retried", max_attempts=2)(fail_once)

    def submit() -> list[Any]:
        user.set("ann")
        handles = backend.submit_many_sync([{"type": "retried"}] * 2)
        return [handle.result(LIMIT) for handle in handles]

    with ProcessPoolTaskBackend(router, max_workers=1, propagate=[user]) as backend:
        assert contextvars.Context().run(submit) == ["ann 2", "ann 2"]


def fail_once(_: dict[str, Any]) -> str:
    """Fail in the first attempt."""
    from taskback import current_task

    found = user.get()
    user.set("changed")
    if current_task().attempt == 1:
        raise LookupError
    return f"{found} {current_task().attempt}"


def test_they_reach_the_tasks_of_map():
    """Which then have a call each."""

    def results() -> list[Any]:
        user.set("ann")
        return [result[0] for result in backend.map([{}] * 3)]

    with ProcessPoolTaskBackend(look, max_workers=1, propagate=[user]) as backend:
        assert contextvars.Context().run(results) == ["ann"] * 3


def test_a_value_that_cannot_be_pickled_is_refused_by_name():
    """By submit, which has then accepted nothing."""
    with ProcessPoolTaskBackend(look, max_workers=1, propagate=[user, tenant]) as backend:
        with pytest.raises(TaskNotSerializableError, match=r'context\["tests.test_propagate:tenant"\] is a lock'):
            submitted(backend, {}, user="ann", tenant=threading.Lock())

        assert backend.stats().accepted == 0


class OnlyHere:
    """Can be pickled, and not be rebuilt."""

    def __reduce__(self) -> Any:
        return int, ("no number",)


def test_a_value_that_cannot_be_rebuilt_fails_its_task_alone():
    """With what that raised."""
    with ProcessPoolTaskBackend(look, max_workers=1, propagate=[user]) as backend:
        with pytest.raises(ValueError, match="no number"):
            submitted(backend, {}, user=OnlyHere())

        assert submitted(backend, {}, user="ann")[0] == "ann"


def test_a_variable_is_named_by_the_module_that_defines_it(monkeypatch):
    """Not by one that imports it, which was begun before."""
    importer, definer = ModuleType("importer"), ModuleType("definer")
    for module in (importer, definer):
        module.__spec__ = object()  # type: ignore[assignment]  # as an import would set one
        module.inner = Holder.inner  # type: ignore[attr-defined]
        monkeypatch.setitem(__import__("sys").modules, module.__name__, module)

    assert Propagated([Holder.inner]).modules == {"definer"}


def test_an_attribute_of_a_class_is_found_by_its_name():
    """A path below the module."""
    chosen = Propagated(["tests.test_propagate:Holder.inner"])

    packed = contextvars.copy_context().run(lambda: (Holder.inner.set(7), chosen.packed())[1])

    assert context_with(packed).run(Holder.inner.get) == 7


@pytest.mark.parametrize(
    ("propagate", "error", "words"),
    [
        ([ContextVar("lost")], ValueError, "'lost' cannot be found by a worker, for no module has it"),
        (["tests.test_propagate"], ValueError, '"package.module:name", not'),
        (["tests.test_propagate:missing"], ValueError, "there is no context variable"),
        (["tests.no_such_module:x"], ValueError, "there is no context variable"),
        (["tests.test_propagate:look"], TypeError, "is a function, not a context variable"),
        (["__main__:x"], ValueError, "never imports the main script"),
        ([7], TypeError, "not a int"),
        (user, TypeError, "a list of context variables"),
        ("tests.test_propagate:user", TypeError, "a list of context variables"),
    ],
)
def test_what_no_worker_could_find_is_refused_when_the_backend_is_made(propagate, error, words):
    """And says what would mend it."""
    with pytest.raises(error, match=words):
        ProcessPoolTaskBackend(look, propagate=propagate)


def test_one_of_the_main_script_is_refused():
    """Workers never import that."""
    code = (
        "from contextvars import ContextVar\nfrom taskback import ProcessPoolTaskBackend\nmine = ContextVar('mine')\n"
        "try:\n    ProcessPoolTaskBackend(print, propagate=[mine])\nexcept ValueError as error:\n    print(error)"
    )

    assert "only the main script has it, which workers never import" in run_python("-c", code).stdout


def test_nothing_set_costs_no_message_of_its_own():
    """The task is sent as plainly as without."""
    with ProcessPoolTaskBackend(look, max_workers=1, propagate=[user]) as backend:
        handle = contextvars.Context().run(backend.submit_sync, {})

        assert handle._run.variables is None
        handle.result(LIMIT)
        assert handle.state is TaskState.SUCCEEDED
