"""A task goes to the one handler of its type; what nobody would take is refused, and no policy makes no sense."""

from __future__ import annotations

import enum
import math
import pickle
from typing import Any

import pytest

from taskback import Policy, TaskRouter, UnknownTaskTypeError, _codec


def note(task: Any) -> str:
    """A handler that can be pickled by name."""
    return f"note {task['n']}"


def other(task: Any) -> str:
    """Another one."""
    return "other"


class Kind(str, enum.Enum):  # noqa: UP042  # the older form, whose members do not print as their text
    """Task types as a program writes them down."""

    NOTE = "note"


def test_a_task_goes_to_the_handler_of_its_type():
    """However that was written down: as a decorator, or with the function at hand."""
    router = TaskRouter()
    assert router.handler("note", note) is note
    assert router.handler("other")(other) is other

    assert router({"type": "note", "n": 1}) == "note 1"
    assert router({"type": "other"}) == "other"
    assert router.types == ("note", "other")
    assert repr(router) == "<TaskRouter note, other>"


@pytest.mark.parametrize("task_type", ["nope", None, "NOTE"])
def test_what_nobody_takes_is_refused_with_what_is_known(task_type):
    """Before anything is accepted, by check(); and by the call itself."""
    router = TaskRouter()
    router.handler("note", note)
    router.handler("a", other)

    with pytest.raises(UnknownTaskTypeError, match="known types: a, note") as caught:
        router.check(task_type)
    with pytest.raises(UnknownTaskTypeError):
        router({} if task_type is None else {"type": task_type})

    assert caught.value.task_type == task_type
    assert caught.value.known == ("a", "note")
    router.check("note")


def test_a_fallback_takes_what_has_no_handler_of_its_own():
    """Tasks without a type, too."""
    router = TaskRouter(fallback=other)
    router.handler("note", note)

    assert router({"type": "note", "n": 2}) == "note 2"
    assert router({"type": "made up"}) == router({}) == "other"
    router.check(None)


def test_a_type_has_one_handler():
    """A second one is refused, naming the first, and changes nothing."""
    router = TaskRouter()
    router.handler("note", note, timeout=5)

    with pytest.raises(ValueError, match=r"'note' has a handler already: <function note"):
        router.handler("note", other, timeout=7)

    assert router({"type": "note", "n": 1}) == "note 1"
    assert router.policy("note") == Policy(timeout=5)


@pytest.mark.parametrize("timeout", [0, -1, math.nan])
def test_a_limit_that_makes_no_sense_is_refused_where_it_is_written_down(timeout):
    """Not when the first task arrives; and the type has no handler then."""
    router = TaskRouter()

    with pytest.raises(ValueError, match="timeout"):
        router.handler("note", timeout=timeout)
    with pytest.raises(ValueError, match="timeout"):
        Policy(timeout=timeout)

    assert router.types == ()


def test_what_is_no_handler_or_no_type_is_refused():
    """Of the router's own functions, too."""
    router = TaskRouter()

    with pytest.raises(TypeError, match="a handler must be callable, not a int"):
        router.handler("note", 5)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="a task type is a string"):
        router.handler(5, note)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="a handler must be callable"):
        TaskRouter(fallback="note")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a handler must be callable"):
        TaskRouter(policy_for={})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="timeout must be a number"):
        router.handler("note", timeout="5")  # type: ignore[call-overload]

    assert router.types == ()


def test_policies_of_types_that_are_made_at_run_time_are_asked_for():
    """What is written down wins; a task without a type has none."""
    router = TaskRouter(fallback=other, policy_for=lambda name: Policy(timeout=len(name)))
    router.handler("note", note)

    assert router.policy("note") == Policy()
    assert router.policy("seconds") == Policy(timeout=7.0)
    assert router.policy(None) == Policy()
    assert TaskRouter().policy("any") == Policy()


def test_a_limit_is_seconds_or_none():
    """Infinity is no limit."""
    assert Policy(timeout=3).timeout == 3.0
    assert Policy(timeout=math.inf).timeout is None


@pytest.mark.parametrize(("written", "asked"), [(Kind.NOTE, "note"), ("note", Kind.NOTE), (Kind.NOTE, Kind.NOTE)])
def test_a_member_of_an_enum_of_strings_is_its_text(written, asked):
    """A member's hash is its name's; the type that a program means is the text."""
    router = TaskRouter()
    router.handler(written, note, timeout=4)

    router.check(asked)

    assert router({"type": asked, "n": 3}) == "note 3"
    assert router.policy(asked) == Policy(timeout=4)
    assert [type(each) for each in router.types] == [str]


def test_it_travels_to_a_process():
    """By name where its handlers have names, by value where they have none."""
    router = TaskRouter(fallback=other)
    router.handler("note", note)
    assert pickle.loads(pickle.dumps(router))({"type": "note", "n": 1}) == "note 1"
    number = 5
    router.handler("value", lambda task: number)

    assert _codec.loads(_codec.dumps(router))({"type": "value"}) == 5
