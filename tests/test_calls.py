"""perform() gives bytes whatever the handler does, and what crosses is bounded."""

from __future__ import annotations

import asyncio
import io
import os
import pickle
from collections.abc import Iterator
from typing import Any

import pytest

from taskback import ProgressNotSerializableError, ResultNotSerializableError, TaskState, current_task
from taskback._call import Handler
from taskback._codec import dumps
from taskback._progress import Progress
from taskback.pools.child import calls


@pytest.fixture(autouse=True)
def _no_handlers_kept() -> Iterator[None]:
    calls._handlers.clear()
    yield
    calls._handlers.clear()
    runner, calls._runner = calls._runner, None
    if runner is not None:
        runner.close()


def request(handler: Handler, number: int = 1) -> bytes:
    """A call of `handler`, as it is sent."""
    data = dumps((handler, ()))
    return calls.Request(1, "id", "type", 1, None, {}, dumps({"n": 1}), ("test", number), data).pack()


class Odd(Exception):
    """Cannot be pickled, and has no text."""

    def __reduce__(self) -> Any:
        raise KeyboardInterrupt

    def __str__(self) -> str:
        raise ValueError


def raising(error: BaseException) -> Handler:
    """A handler that raises it."""

    def handler(task: Any) -> None:
        raise error

    return handler


@pytest.mark.parametrize("make", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit, Odd])
def test_whatever_a_handler_raises_comes_back_as_bytes(make):
    """Also what cannot be pickled, nor be told in words."""
    calls._handlers[("test", 1)] = (raising(make()), ())

    reply = calls.unpack_reply(calls.perform(request(len)))

    assert reply.state is TaskState.FAILED
    assert reply.outcome().error is not None
    assert reply.pid == os.getpid()


class Kind(str):
    """Text of a class that the parent may not have."""

    __slots__ = ()

    def __str__(self) -> str:
        return self


def speaks_oddly(task: Any) -> None:
    """Reports and raises text of a class of its own."""

    class Error(Exception):
        def __str__(self) -> str:
            return Kind("text")

    current_task().report(stage=Kind("stage"))
    raise Error


def test_a_reply_is_read_without_any_class_of_the_programs():
    """What crosses is made of built-in types, whatever the handler raised and reported."""
    calls._handlers[("test", 1)] = (speaks_oddly, ())

    data = calls.perform(request(len))

    assert not {name for name, _ in named_in(data)}


def test_a_request_is_read_without_any_class_of_the_programs():
    """The task and the handler are bytes in it."""
    sent = calls.Request(1, "id", "type", 1, None, {"a": "b"}, dumps({"n": Kind("x")}), ("test", 1), dumps(Kind)).pack()

    assert not {name for name, _ in named_in(sent)}


def named_in(data: bytes) -> list[tuple[str, str]]:
    """What an unpickler would look up."""
    found: list[tuple[str, str]] = []

    class Notes(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            found.append((module, name))
            return super().find_class(module, name)

    Notes(io.BytesIO(data)).load()
    return found


def refuses_to_be_pickled(task: Any) -> None:
    """Reports what ends the process that pickles it."""
    current_task().report(thing=Odd())


def test_a_last_report_that_cannot_be_pickled_costs_its_data_alone():
    """Nobody refused it in time; the call's outcome stands."""
    calls._handlers[("test", 1)] = (refuses_to_be_pickled, ())

    reply = calls.unpack_reply(calls.perform(request(len)))

    assert reply.state is TaskState.SUCCEEDED
    assert reply.progress == (None, None, None, None)


class NotRebuilt:
    """Pickles, and raises something without words where it is rebuilt."""

    def __reduce__(self) -> Any:
        return raise_odd, ()


def raise_odd() -> None:
    """What the parent is made to call."""
    raise Odd


def test_a_result_that_cannot_be_rebuilt_fails_its_call():
    """The error says that it was not rebuilt, and why as far as that can be said."""
    calls._handlers[("test", 1)] = (lambda task: NotRebuilt(), ())

    outcome = calls.unpack_reply(calls.perform(request(len))).outcome()

    assert outcome.state is TaskState.FAILED
    assert isinstance(outcome.error, ResultNotSerializableError)
    assert isinstance(outcome.error.__cause__, Odd)


def test_a_call_that_is_called_off_never_begins():
    """Its reply says so."""
    called: list[Any] = []
    calls._handlers[("test", 1)] = (called.append, ())

    reply = calls.unpack_reply(calls.perform(request(len), begin=lambda request, call: False))

    assert reply.state is TaskState.CANCELLED
    assert called == []


async def in_loop(task: Any) -> int:
    """The loop it runs in."""
    return id(asyncio.get_running_loop())


def test_async_handlers_of_a_process_share_its_one_loop():
    """It is made once, and is not the next call's to pay for."""
    calls._handlers[("test", 1)] = (in_loop, ())

    loops = {calls.unpack_reply(calls.perform(request(len))).outcome().value for _ in range(3)}

    assert len(loops) == 1


def test_a_result_that_cannot_be_pickled_fails_its_call():
    """The error names the part."""
    calls._handlers[("test", 1)] = (lambda task: {"a": [open], "b": (n for n in "x")}, ())

    error = calls.unpack_reply(calls.perform(request(len))).outcome().error

    assert isinstance(error, ResultNotSerializableError)
    assert error.path == 'result["b"]'


def test_a_task_or_handler_that_cannot_be_read_fails_its_call():
    """It is a reply like any other."""
    broken = calls.Request(1, "id", None, 1, None, {}, b"junk", ("test", 2), dumps((len, ()))).pack()
    unsent = calls.Request(1, "id", None, 1, None, {}, dumps({}), ("test", 3), None).pack()

    for data in (broken, unsent):
        assert calls.unpack_reply(calls.perform(data)).state is TaskState.FAILED


def test_progress_has_a_largest_size():
    """Up to it all arrives; above it report() raises, and what cannot be pickled is named."""
    packed = calls.pack_progress(Progress(1, 2, "half", {"x": "y" * 1000}))
    assert dict(calls.unpack_progress(packed).data) == {"x": "y" * 1000}

    with pytest.raises(ValueError, match="at most 8192 bytes"):
        calls.pack_progress(Progress(data={"x": "y" * calls.MAX_PROGRESS_BYTES}))
    with pytest.raises(ProgressNotSerializableError, match="report"):
        calls.pack_progress(Progress(data={"x": (n for n in "x")}))


def test_the_last_report_arrives_with_the_reply():
    """Nobody has to have announced it."""
    calls._handlers[("test", 1)] = (lambda task: current_task().report(3, 4), ())

    reply = calls.unpack_reply(calls.perform(request(len)))

    assert reply.progress == (3, 4, None, None)


def test_a_process_keeps_so_many_handlers_and_no_more():
    """The one that came first goes, and is loaded again when it is sent again."""
    for number in range(calls.MAX_HANDLERS + 1):
        calls.perform(request(len, number))

    assert len(calls._handlers) == calls.MAX_HANDLERS
    assert ("test", 0) not in calls._handlers
    assert calls.unpack_reply(calls.perform(request(len, 0))).outcome().value == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_of_a_handler_leaves_without_an_answer():
    """The parent answers; the child ends with status 0."""
    calls._handlers[("test", 1)] = (lambda task: os.fork(), ())

    reply = calls.unpack_reply(calls.perform(request(len)))

    child = reply.outcome().value
    assert os.waitpid(child, 0) == (child, 0)
