"""What crosses is bytes that the other side can read, and what cannot cross is named by its path."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import pytest

from taskback import RemoteError, RemoteTraceback, TaskNotSerializableError, _codec
from tests.helpers import run_python

MAIN = """
import pickle, sys
from taskback import _codec
class Mine: pass
data = _codec.dumps({"mine": Mine()})
del Mine
sys.modules["__main__"].__dict__.pop("Mine", None)
print(type(_codec.loads(data)["mine"]).__name__)
"""


class NoWords(Exception):
    """Its text cannot be had."""

    def __str__(self) -> str:
        raise ValueError


class TwoArguments(Exception):
    """Pickles, and cannot be rebuilt."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} {two}")


def test_what_is_defined_in_main_travels_by_value():
    """It is read where no such name is."""
    assert run_python("-c", MAIN).stdout == "Mine\n"


def test_closures_travel_by_value_and_plain_data_by_plain_pickle():
    """The dearer way is taken only where it must be."""
    number = 5

    assert _codec.loads(_codec.dumps(lambda: number))() == 5
    assert _codec.dumps({"a": 1}) == pickle.dumps({"a": 1}, _codec.PROTOCOL)


@pytest.mark.parametrize(
    ("task", "path"),
    [
        ({"a": {"b": [1, threading.Lock()]}}, 'task["a"]["b"][1]'),
        ({"a": (n for n in "x")}, 'task["a"]'),
        ({"f": (lambda lock: lambda: lock)(threading.Lock())}, 'task["f"] closes over lock'),
    ],
)
def test_the_culprit_is_named_by_its_path(task, path):
    """Down to the smallest part that cannot cross by itself."""
    with pytest.raises(TaskNotSerializableError) as caught:
        _codec.dumps_task(task)

    assert caught.value.path == path


def test_a_packed_mapping_is_read_when_somebody_looks():
    """And behaves as the mapping does."""
    packed = _codec.PackedMapping(_codec.dumps({"a": 1}))

    assert (packed["a"], list(packed), len(packed), dict(packed), repr(packed)) == (1, ["a"], 1, {"a": 1}, "{'a': 1}")
    with pytest.raises(TypeError):
        len(_codec.PackedMapping(_codec.dumps(5)))


@pytest.mark.parametrize("error", [NoWords(), TwoArguments(1, 2)], ids=["no words", "not rebuilt"])
def test_an_odd_error_arrives_somehow(error):
    """As itself or in words, with the remote traceback as its cause."""
    arrived = _codec.unpack_error(_codec.pack_error(error))

    assert isinstance(arrived, (RemoteError, type(error)))
    assert _codec.error_type(arrived) == f"{__name__}.{type(error).__name__}"
    assert isinstance(arrived.__cause__, RemoteTraceback)


class NoWordsAtAll(Exception):
    """Its text ends the process that asks for it."""

    def __str__(self) -> str:
        raise SystemExit(3)


class Text(str):
    """Text of a class of its own."""

    __slots__ = ()


class OwnWords(Exception):
    """Its text is of a class that the other side may not have."""

    def __str__(self) -> str:
        return Text("own words")


class Frozen(Exception):
    """Takes no attributes."""

    def __setattr__(self, name: str, value: object) -> None:
        raise TypeError("frozen")


@pytest.mark.parametrize("error", [NoWords(), NoWordsAtAll(), OwnWords(), Frozen(), ValueError()])
def test_what_is_said_of_an_error_is_plain_text(error):
    """Whatever its text does: it is read without any class of the program's."""
    name, text, trace, _ = _codec.pack_error(error)

    assert {type(name), type(text), type(trace)} == {str}
    assert type(error).__name__ in trace


def test_a_frozen_error_has_its_cause():
    """Also an exception that refuses attributes arrives as itself, with the worker's traceback."""
    arrived = _codec.unpack_error(_codec.pack_error(Frozen("no")))

    assert type(arrived) is Frozen
    assert isinstance(arrived.__cause__, RemoteTraceback)


class OddReduce:
    """Says in odd ways that it cannot be pickled."""

    def __reduce__(self) -> Any:
        raise NoWords


def test_a_culprit_without_words_is_named():
    """The refusal tells the type where there is no text."""
    with pytest.raises(TaskNotSerializableError) as caught:
        _codec.dumps_task({"a": OddReduce()})

    assert (caught.value.path, caught.value.type_name) == ('task["a"]', "OddReduce")


def test_what_is_nested_too_deeply_is_refused():
    """The refusal says that it is the depth."""
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]

    with pytest.raises(TaskNotSerializableError, match="deep recursion"):
        _codec.dumps_task({"a": nested})

    while nested:  # taken apart here: its deletion in one go goes too deep
        nested = nested[0]


def test_a_remote_traceback_begins_with_the_programs_frames():
    """Ours, which called the handler, tell nobody anything."""
    error = ValueError("deep")
    source = "def theirs(error): raise error"
    ours: dict[str, Any] = {"__name__": "taskback.pools.child.calls"}
    exec(compile("def call(function, error): function(error)", "ours.py", "exec"), ours)
    theirs: dict[str, Any] = {"__name__": "program"}
    exec(compile(source, "theirs.py", "exec"), theirs)
    with pytest.raises(ValueError, match="deep"):
        ours["call"](theirs["theirs"], error)
    error.__traceback__ = error.__traceback__.tb_next  # type: ignore[union-attr]  # without this test's own frame

    text = _codec.traceback_text(error)

    assert "ours.py" not in text
    assert "theirs.py" in text


def test_an_error_that_cannot_be_pickled_arrives_in_words():
    """Type, text and traceback are kept."""
    error: Any = ValueError(threading.Lock())

    arrived = _codec.unpack_error(_codec.pack_error(error))

    assert isinstance(arrived, RemoteError)
    assert arrived.type_name == "ValueError"
    assert "lock" in arrived.text
