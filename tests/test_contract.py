"""The contract, on every backend: what becomes of a task, from its acceptance to its outcome.

The other subjects stand beside it: test_contract_waiting (handles among futures and in event loops),
test_contract_stopping (cancel, time limits), test_contract_telling (events, figures, progress, context),
test_contract_shutdown, and test_contract_life (the start, hosts' own subclasses, the end of the program, forks).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import UserDict
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from taskback import (
    HandlerNotSerializableError,
    NoHandlerError,
    Policy,
    RemoteError,
    RemoteTraceback,
    ResultNotSerializableError,
    TaskNotSerializableError,
    TaskRouter,
    TaskState,
    UnknownTaskError,
    UnknownTaskTypeError,
    UnsupportedOptionError,
)
from tests import handlers
from tests.backends import begin, flavour, in_loop, on, until_running
from tests.gates import PATIENCE
from tests.helpers import outcomes

# --- a task is a dict, and taken over ---


@on()
@in_loop
async def test_changing_the_dict_after_submit_changes_no_task(backend, gate):
    """The handler and the handle get the task as it was when it was submitted."""
    task = {"do": "hold_async", "gate": gate.path, "value": "before"}
    handle = await begin(backend, task)
    await gate.said()

    task["value"] = "after"
    task.clear()
    gate.open()

    assert await handle == "before"
    assert handle.task == {"do": "hold_async", "gate": gate.path, "value": "before"}


@on()
def test_a_handler_that_changes_its_task_changes_no_one_elses(backend):
    """What the handler does to the dict is seen neither by the caller nor on the handle."""
    task = {"do": "clear", "value": "mine"}

    handle = backend.submit_sync(task)

    handle.result(PATIENCE)
    handle.task["value"] = "a copy's"
    assert task == handle.task == {"do": "clear", "value": "mine"}


@on()
@pytest.mark.parametrize("task", [None, "text", [("do", "echo")], UserDict(do="echo")], ids=repr)
@in_loop
async def test_what_is_no_dict_is_a_type_error(backend, task):
    """Neither half takes anything but a dict, and nothing counts as accepted."""
    before = backend.stats().accepted

    with pytest.raises(TypeError, match="a task is a dict"):
        await backend.submit(task)
    with pytest.raises(TypeError, match="a task is a dict"):
        backend.submit_sync(task)

    assert backend.stats().accepted == before


@on(live_objects=True)
def test_a_task_may_hold_live_objects(backend):
    """In this process, the handler gets the very object that the task holds."""
    lock = threading.Lock()

    assert backend.run_sync({"do": "echo", "value": lock}) is lock


@on(live_objects=False)
@in_loop
async def test_a_task_that_cannot_be_pickled_is_refused_by_path(backend, kind):
    """`submit` raises and names the path and the type; nothing was accepted."""
    task = {"do": "echo", "type": kind, "payload": {"id": 1, "conn": threading.Lock()}}

    with pytest.raises(TaskNotSerializableError) as caught:
        await backend.submit(task)

    assert caught.value.path == 'task["payload"]["conn"]'
    assert caught.value.type_name == "lock"
    assert kind not in backend.stats().by_type


@on()
def test_functions_travel_in_tasks_by_value(backend):
    """A lambda and a closure reach the handler, wherever it runs."""
    number = 41

    results = [
        backend.run_sync({"do": "call", "function": lambda: 42}),
        backend.run_sync({"do": "call", "function": lambda: number + 1}),
    ]

    assert results == [42, 42]


@on()
def test_a_handler_may_be_a_closure_and_be_replaced(entry, make):
    """A sync and an async closure travel by value; the one that was set last counts."""
    factor = 3

    async def times(task):
        return task["value"] * factor

    backend = make(entry, lambda task: task["value"] + factor)
    with backend:
        added = backend.run_sync({"value": 5})
        backend.set_handler(times)
        multiplied = backend.run_sync({"value": 5})

    assert (added, multiplied) == (8, 15)


@on(live_objects=False)
def test_a_handler_that_cannot_travel_is_refused_by_path(entry, make):
    """`set_handler` names what a closure drags along and cannot travel."""
    lock = threading.Lock()

    with pytest.raises(HandlerNotSerializableError, match="closes over lock"):
        make(entry, lambda task: lock.locked())


@on(live_objects=False)
def test_a_backend_in_a_handler_travels_as_a_stub(entry, make):
    """A handler that drags its backend along works until it uses it, which raises in the worker."""
    backend = make(entry, None)
    backend.set_handler(lambda task: backend.submit_sync({}) if task.get("use") else "unused")

    with backend:
        unused = backend.run_sync({})
        error = backend.submit_sync({"use": True}).exception(PATIENCE)

    assert unused == "unused"
    assert isinstance(error, RuntimeError)
    assert "lives in the parent process" in str(error)


# --- fire and forget ---


@on()
@pytest.mark.parametrize("do", ["fail", "fail_async"])
@in_loop
async def test_a_failure_is_logged_once_and_kept_on_the_handle(backend, kind, do, caplog):
    """The submitter does not hear of it by itself: one warning with type and id, and the handle."""
    handle = await backend.submit({"do": do, "type": kind})

    await asyncio.wait([handle], timeout=PATIENCE)

    assert handle.state is TaskState.FAILED
    assert isinstance(handle.exception(), ValueError)
    async with asyncio.timeout(PATIENCE):
        # The handle ends first, and may wake us before the thread that ended it has logged.
        while not (told := [record for record in caplog.records if handle.id in record.getMessage()]):
            await asyncio.sleep(0.001)
    assert [record.levelname for record in told] == ["WARNING"]
    assert kind in told[0].getMessage()


@on()
@in_loop
async def test_without_a_handler_the_handle_holds_the_error(entry, make, caplog):
    """Submitting raises nothing: a warning, and a FAILED handle with `NoHandlerError`."""
    backend = make(entry, None)
    await backend.initialize()

    handle = await backend.submit({"type": "orphan"})

    assert isinstance(handle.exception(PATIENCE), NoHandlerError)
    assert handle.state is TaskState.FAILED
    assert handle.started_at is None
    assert [record.levelname for record in caplog.records if handle.id in record.getMessage()] == ["WARNING"]
    assert backend.stats().accepted == outcomes(backend.stats()) == backend.stats().failed == 1


@on()
@in_loop
async def test_a_router_refuses_types_that_it_lacks(entry, make):
    """`submit` raises and names the known types; a fallback takes them, with the policy made for them."""
    router = TaskRouter()
    router.handler("known", handlers.who)
    router.handler("other", handlers.echo)
    backend = make(entry, router)
    await backend.initialize()

    with pytest.raises(UnknownTaskTypeError) as caught:
        await backend.submit({"type": "unheard"})
    with pytest.raises(UnknownTaskTypeError):
        await backend.submit({})

    assert caught.value.known == ("known", "other")
    assert backend.stats().accepted == 0
    assert (await backend.run({"type": "known"}))[1] == "known"

    asked = []
    tolerant = TaskRouter(fallback=handlers.who, policy_for=lambda type: asked.append(type) or Policy(timeout=60))
    backend.set_handler(tolerant if not backend.crosses else TaskRouter(fallback=handlers.who, policy_for=minute))
    assert (await backend.run({"type": "unheard"}))[1] == "unheard"
    assert backend.crosses or asked == ["unheard"]


def minute(type: str) -> Policy:
    """The policy of a type that is made at run time."""
    return Policy(timeout=60)


# --- what comes back ---


@on()
def test_an_exception_arrives_as_it_was_raised(backend, kind):
    """Type, text and the handler's own traceback: the worker's as the cause, where there is a worker."""
    handle = backend.submit_sync({"do": "fail", "type": kind, "text": "seen"})

    error = handle.exception(PATIENCE)

    assert type(error) is ValueError
    assert error.args == ("seen",)
    attempt = handle.attempts[0]
    assert (attempt.outcome, attempt.error_type, attempt.error_text) == (TaskState.FAILED, "ValueError", "seen")
    assert "in fail\n" in attempt.traceback
    if not backend.promises.live_objects:
        assert isinstance(error.__cause__, RemoteTraceback)
        assert "in fail\n" in str(error.__cause__)
    with pytest.raises(ValueError, match="seen"):
        handle.result()


@on()
@pytest.mark.parametrize("do", ["fail_oddly", "fail_oddly_async"])
@pytest.mark.parametrize("odd", ["two arguments", "a lock", "refuses"])
def test_an_exception_that_cannot_be_rebuilt_arrives_in_words(backend, odd, do):
    """It comes as `RemoteError` with type, text and traceback; where nothing crosses, as it is."""
    handle = backend.submit_sync({"do": do, "kind": odd})

    error = handle.exception(PATIENCE)

    original = handlers.ODD[odd]()
    assert handle.state is TaskState.FAILED
    assert handle.attempts[0].error_type == f"tests.handlers.{type(original).__name__}"
    assert handle.attempts[0].error_text == str(original)
    if backend.promises.live_objects:
        assert type(error) is type(original)
    else:
        assert isinstance(error, RemoteError)
        assert (error.type_name, error.text) == (handle.attempts[0].error_type, str(original))
        assert "fail_oddly" in error.traceback
    assert backend.run_sync({"do": "echo", "value": 1}) == 1


@on()
@pytest.mark.parametrize("do", ["fail_oddly", "fail_oddly_async"])
@pytest.mark.parametrize("odd", ["no exception", "exit", "generator exit"])
def test_what_is_no_exception_fails_its_task_alone(backend, odd, do):
    """A handler's SystemExit and the like end neither a worker, nor a loop, nor the program."""
    handle = backend.submit_sync({"do": do, "kind": odd})

    error = handle.exception(PATIENCE)

    assert type(error) is type(handlers.ODD[odd]())
    assert handle.state is TaskState.FAILED
    assert backend.run_sync({"do": "echo", "value": 1}) == 1


@on(in_loop=False)
@pytest.mark.parametrize("do", ["fail_oddly", "fail_oddly_async"])
def test_a_handlers_keyboard_interrupt_fails_its_task_alone(backend, do):
    """In a worker it is nobody's Ctrl-C."""
    handle = backend.submit_sync({"do": do, "kind": "interrupt"})

    assert type(handle.exception(PATIENCE)) is KeyboardInterrupt
    assert backend.run_sync({"do": "echo", "value": 1}) == 1


@on(in_loop=True)
@pytest.mark.parametrize("do", ["fail_oddly", "fail_oddly_async"])
def test_a_keyboard_interrupt_in_the_programs_own_thread_reaches_the_program(backend, do, kind):
    """Ctrl-C in a handler that runs in the caller's thread means the program; the task has failed all the same."""

    async def main():
        await backend.run({"do": do, "kind": "interrupt", "type": kind})

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(main())

    assert backend.stats().by_type[kind].failed == 1
    assert backend.inflight_count == 0


@on()
def test_a_result_that_cannot_be_pickled_fails_its_own_task(backend):
    """The error names the part; where nothing crosses, the result arrives as it is."""
    handle = backend.submit_sync({"do": "give_a_lock"})

    if backend.promises.live_objects:
        assert handle.result(PATIENCE)["rows"][0] == 1
    else:
        with pytest.raises(ResultNotSerializableError) as caught:
            handle.result(PATIENCE)
        assert caught.value.path == 'result["rows"][1]'
    assert backend.run_sync({"do": "echo", "value": 1}) == 1


@on()
def test_a_result_that_cannot_be_rebuilt_fails_its_own_task(backend):
    """Unpickling it here raises: its task is told so, and the pool goes on."""
    handle = backend.submit_sync({"do": "give_what_refuses"})

    if backend.promises.live_objects:
        assert isinstance(handle.result(PATIENCE), handlers.ResultThatRefuses)
    else:
        with pytest.raises(ResultNotSerializableError, match="not here"):
            handle.result(PATIENCE)
    assert backend.run_sync({"do": "echo", "value": 1}) == 1


@on()
@pytest.mark.parametrize("do", ["echo", "echo_async"])
@pytest.mark.parametrize("value", [None, 0, "text", [1, {"a": (2, 3)}], datetime(2026, 1, 1, tzinfo=UTC)], ids=repr)
def test_results_arrive_as_they_are(backend, do, value):
    """Sync or async handler, the result is what it returned."""
    assert backend.run_sync({"do": do, "value": value}, wait=PATIENCE) == value


# --- exactly one outcome ---


@on()
@in_loop
async def test_every_task_reaches_one_outcome_and_the_sum_says_so(backend, kind):
    """Ended well, badly, cancelled or out of time: accepted is the sum of the outcomes, over all and a type."""
    many = [
        await begin(backend, {"do": do, "type": kind})
        for do in ("echo", "fail", "echo_async", "fail_async", "give_a_lock", "echo")
    ]
    if backend.promises.delay:
        waiting = await backend.submit({"do": "echo", "type": kind}, delay=3600)
        assert backend.stats().by_type[kind].queued >= 1
        assert waiting.cancel()
        many.append(waiting)
    await asyncio.wait(many, timeout=PATIENCE)

    figures = backend.stats()
    of_type = figures.by_type[kind]

    assert of_type.accepted == outcomes(of_type) == len(many)
    assert of_type.queued == of_type.running == 0
    assert of_type.cancelled == int(backend.promises.delay)
    assert of_type.succeeded == sum(handle.state is TaskState.SUCCEEDED for handle in many)
    assert figures.accepted == outcomes(figures)
    assert figures.accepted == sum(each.accepted for each in figures.by_type.values())


@on()
def test_many_threads_may_submit_at_once(backend, kind):
    """No task is lost or counted twice, and each gets its own result."""

    def submit_some(first):
        return [backend.submit_sync({"do": "echo", "type": kind, "value": first + step}) for step in range(20)]

    with ThreadPoolExecutor(8) as callers:
        handles = [handle for some in callers.map(submit_some, range(0, 160, 20)) for handle in some]
    results = [handle.result(PATIENCE) for handle in handles]

    assert sorted(results) == list(range(160))
    assert len({handle.id for handle in handles}) == 160
    assert backend.stats().by_type[kind].accepted == backend.stats().by_type[kind].succeeded == 160


# --- ids ---


@on()
@in_loop
async def test_ids_grow_with_time_or_are_the_callers_own(backend, kind):
    """Generated ones are strings of at most 64 characters in the order of submission."""
    handles = [await backend.submit({"do": "echo", "type": kind}) for _ in range(5)]
    own = await backend.submit({"do": "who", "type": kind}, id=f"own-{kind}")

    ids = [handle.id for handle in handles]
    assert ids == sorted(ids)
    assert len(set(ids)) == 5
    assert all(len(each) <= 64 for each in ids)
    assert own.id == f"own-{kind}"
    assert await own == (own.id, kind, 1, False)


@on()
@in_loop
async def test_a_second_submit_with_a_live_id_joins_the_run(backend, gate, kind):
    """Each submitter has a handle of its own on one run; the second counts in `joined` alone."""
    task = {"do": "hold_async", "gate": gate.path, "type": kind, "value": "shared"}
    first = await begin(backend, task, id=kind)
    await gate.said()
    joining = asyncio.create_task(backend.submit({"do": "fail", "type": kind}, id=kind))
    await asyncio.sleep(0)  # its first step

    gate.open()
    second = await joining

    assert second is not first
    assert (second.id, second.task) == (first.id, task)
    assert await asyncio.gather(first, second) == ["shared", "shared"]
    figures = backend.stats().by_type[kind]
    assert (figures.accepted, figures.succeeded, figures.joined) == (1, 1, 1)


@on()
@in_loop
async def test_cancelling_one_who_joined_lets_the_others_go_on(backend, gate, kind):
    """It ends its own handle, at once; the run goes on for who is left."""
    task = {"do": "hold_async", "gate": gate.path, "type": kind, "value": "kept"}
    first = await begin(backend, task, id=kind)
    await gate.said()
    await until_running(first)
    with pytest.raises(TimeoutError):  # cancelling who awaits is cancelling that handle alone
        await asyncio.wait_for(backend.run(task, id=kind), 0.01)

    second_gone = backend.stats().by_type[kind]
    gate.open()

    assert second_gone.joined == second_gone.running == 1
    assert await first == "kept"
    figures = backend.stats().by_type[kind]
    assert (figures.accepted, figures.succeeded, figures.cancelled) == (1, 1, 0)


@on(returns_before_run=True, cancels_running=True)
@pytest.mark.parametrize("stays", [0, 1])
@in_loop
async def test_the_run_stops_when_the_last_has_let_go(backend, gate, kind, stays):
    """Whoever lets go first, the first submitter or the second, the last one stops the run."""
    task = {"do": "hold_async", "gate": gate.path, "type": kind}
    both = [await backend.submit(task, id=kind), await backend.submit(task, id=kind)]
    await gate.said()
    await until_running(both[0])
    last, other = both[stays], both[1 - stays]

    assert other.cancel()
    assert other.done()
    assert other.state is TaskState.CANCELLED
    assert last.state is TaskState.RUNNING
    assert last.cancel()
    await asyncio.wait([last], timeout=PATIENCE)

    assert last.state is TaskState.CANCELLED
    assert backend.stats().by_type[kind].cancelled == 1


@on()
def test_an_id_whose_task_has_ended_is_free_again(backend, kind):
    """Only a live id is joined."""
    results = [backend.run_sync({"do": "echo", "type": kind, "value": value}, id=kind) for value in (1, 2)]

    assert results == [1, 2]
    assert backend.stats().by_type[kind].joined == 0


@on()
@in_loop
async def test_handle_finds_tasks_in_flight_and_the_last_that_ended(backend, gate, kind):
    """Those in flight, and `keep_ended` (here 3) that have ended; any other is an `UnknownTaskError`."""
    held = await begin(backend, {"do": "hold_async", "gate": gate.path}, id=f"{kind}-held")
    await gate.said()
    found = backend.handle(held.id)
    gate.open()
    await held
    for number in range(3):
        await backend.run({"do": "echo"}, id=f"{kind}-{number}")

    assert found is held
    assert [backend.handle(f"{kind}-{number}").result() for number in range(3)] == [None] * 3
    for forgotten in (held.id, "never"):
        with pytest.raises(UnknownTaskError):
            backend.handle(forgotten)


@on()
def test_ended_tasks_are_forgotten_unless_asked_for(entry, make):
    """`keep_ended` is 0 by default, for results may be large."""
    with make(entry, handlers.echo) as backend:
        handle = backend.submit_sync({})
        handle.result(PATIENCE)

        with pytest.raises(UnknownTaskError):
            backend.handle(handle.id)


# --- options ---


@on()
@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"id": ""}, ValueError),
        ({"id": "x" * 65}, ValueError),
        ({"id": 5}, TypeError),
        ({"delay": -1}, ValueError),
        ({"delay": 1, "not_before": 2}, ValueError),
        ({"timeout": 0}, ValueError),
        ({"timeout": float("nan")}, ValueError),
        ({"timeout": "1"}, TypeError),
        ({"priority": 1.5}, TypeError),
        ({"context": "text"}, TypeError),
        ({"context": {"a": 1}}, TypeError),
        ({"unheard": 1}, TypeError),
    ],
    ids=str,
)
def test_an_option_that_makes_no_sense_is_refused_at_once(backend, kind, options, error):
    """The submission raises, and nothing was accepted."""
    with pytest.raises(error):
        backend.submit_sync({"do": "echo", "type": kind}, **options)

    assert kind not in backend.stats().by_type


@on()
def test_an_option_that_the_backend_cannot_keep_is_refused_at_once(backend, kind):
    """What `promises` denies is an `UnsupportedOptionError`; what it grants is taken."""
    for promise, options in {
        "delay": {"delay": 0.001},
        "priority": {"priority": 1},
        "timeout": {"timeout": 60},
    }.items():
        task = {"do": "echo", "type": f"{kind}-{promise}", "value": promise}
        if getattr(backend.promises, promise):
            assert backend.run_sync(task, **options) == promise
        else:
            with pytest.raises(UnsupportedOptionError) as caught:
                backend.submit_sync(task, **options)
            assert caught.value.option == promise
            assert task["type"] not in backend.stats().by_type


@on(delay=True)
@in_loop
async def test_a_delayed_task_starts_when_its_time_has_come(backend):
    """`delay` counts from now, `not_before` is an aware datetime or an epoch; others do not wait for them."""
    now = time.time()
    moment = datetime.now(UTC) + timedelta(seconds=0.15)
    first = await backend.submit({"do": "echo"}, delay=0.2)
    second = await backend.submit({"do": "echo"}, not_before=now + 0.1)
    third = await backend.submit({"do": "echo"}, not_before=moment)
    past = await backend.submit({"do": "echo"}, not_before=now - 3600)
    with pytest.raises(ValueError, match="time zone"):
        await backend.submit({"do": "echo"}, not_before=datetime.now())

    states = [handle.state for handle in (first, second, third)]
    await past
    ended_before_past = [handle.done() for handle in (first, second, third)]
    await asyncio.gather(first, second, third)

    assert states == [TaskState.QUEUED] * 3
    assert ended_before_past == [False] * 3
    slack = 0.001  # the system's clock and ours may run apart by that much
    assert first.started_at >= now + 0.2 - slack
    assert second.started_at >= now + 0.1 - slack
    assert third.started_at >= moment.timestamp() - slack


@on(priority=True, in_loop=False)
def test_higher_priority_goes_first_and_equals_in_order(entry, make, gate):
    """Behind a busy worker tasks wait by priority, then first come first served."""
    with make(entry, workers=1) as backend:
        busy = backend.submit_sync({"do": "hold", "gate": gate.path})
        gate.wait_said()
        handles = {
            name: backend.submit_sync({"do": "hold", "gate": gate.path, "value": name}, priority=priority)
            for name, priority in {"low": -1, "plain": 0, "plain too": 0, "high": 5, "higher": 9}.items()
        }

        gate.open()
        for handle in (busy, *handles.values()):
            handle.result(PATIENCE)

        assert gate.wait_said(5) == ["higher", "high", "plain", "plain too", "low"]


# --- what a handle says ---


@on()
@in_loop
async def test_a_handle_tells_where_its_task_is(backend, gate, kind):
    """State, attempts, times and pid, before the task's end and after it."""
    handle = await begin(backend, {"do": flavour(backend, "hold"), "gate": gate.path, "type": kind})
    await gate.said()
    await until_running(handle)

    assert (handle.type, handle.attempt, handle.attempts) == (kind, 1, ())
    assert handle.queued_at <= handle.started_at <= time.time() + 0.001
    assert handle.finished_at is None
    assert handle.running()
    assert not handle.done()
    gate.open()
    await handle

    assert handle.state is TaskState.SUCCEEDED
    assert handle.state.final
    assert handle.queued_at <= handle.started_at <= handle.finished_at
    (attempt,) = handle.attempts
    assert (attempt.number, attempt.pid, attempt.outcome) == (1, handle.worker_pid, TaskState.SUCCEEDED)
    assert (attempt.started_at, attempt.finished_at) == (handle.started_at, handle.finished_at)
    assert attempt.error_type is attempt.error_text is attempt.traceback is None


@on()
def test_worker_pid_is_where_the_handler_ran(backend):
    """The handler's own process."""
    handle = backend.submit_sync({"do": "pid"})

    assert handle.result(PATIENCE) == handle.worker_pid
