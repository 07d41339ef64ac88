"""What is public is listed, documented, and names taskback as its home."""

from __future__ import annotations

import ast
import importlib
import inspect
import pickle
import typing
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Final

import pytest

import taskback
from taskback import pools
from tests.helpers import run_python

PUBLIC: Final = {name: getattr(taskback, name) for name in taskback.__all__}
CLASSES: Final = {name: value for name, value in PUBLIC.items() if isinstance(value, type)}
FUNCTIONS: Final = {name: value for name, value in PUBLIC.items() if isinstance(value, FunctionType)}
EXCEPTIONS: Final = {name: value for name, value in CLASSES.items() if issubclass(value, BaseException)}

# How to make one of each, by class name, from plain facts: every public exception has its line.
EXAMPLES: Final[dict[str, Callable[[], BaseException]]] = {
    "BackendClosedError": lambda: taskback.BackendClosedError("ThreadPoolTaskBackend", "stopped"),
    "Defer": lambda: taskback.Defer(until=datetime(2026, 1, 1, tzinfo=UTC)),
    "ForeignHandleError": lambda: taskback.ForeignHandleError("t1", 42),
    "HandlerNotSerializableError": lambda: taskback.HandlerNotSerializableError("handler", "function", "it is odd"),
    "JournalError": lambda: taskback.JournalError("/a/path", "it is damaged"),
    "JournalHeldError": lambda: taskback.JournalHeldError("/a/path", 17),
    "NoHandlerError": lambda: taskback.NoHandlerError("SyncTaskBackend", "note"),
    "NotSerializableError": lambda: taskback.NotSerializableError("value", "lock", "it cannot be pickled"),
    "ProgressNotSerializableError": lambda: taskback.ProgressNotSerializableError("report", "lock", "no"),
    "QueueFullError": lambda: taskback.QueueFullError("ThreadPoolTaskBackend", "3 tasks wait"),
    "RemoteError": lambda: taskback.RemoteError("lib.OddError", "what went wrong", "Traceback ..."),
    "RemoteTraceback": lambda: taskback.RemoteTraceback("Traceback ..."),
    "ResultNotSerializableError": lambda: taskback.ResultNotSerializableError("result", "socket", "no"),
    "ShedError": lambda: taskback.ShedError("t1", "ThreadPoolTaskBackend"),
    "Retry": lambda: taskback.Retry(2.5),
    "TaskAbandonedError": lambda: taskback.TaskAbandonedError("t1", 2.0, "time limit"),
    "TaskCancelled": lambda: taskback.TaskCancelled("the task is to stop"),
    "TaskNotSerializableError": lambda: taskback.TaskNotSerializableError('task["conn"]', "socket", "no"),
    "TaskTimeoutError": lambda: taskback.TaskTimeoutError("t1", 1.5, 1.501, "File ..."),
    "TaskbackError": lambda: taskback.TaskbackError("something"),
    "UnknownTaskError": lambda: taskback.UnknownTaskError("t1", 10),
    "UnknownTaskTypeError": lambda: taskback.UnknownTaskTypeError("note", ["b", "a"]),
    "UnsupportedOptionError": lambda: taskback.UnsupportedOptionError("SyncTaskBackend", "delay", "it does not wait"),
    "WorkerDiedError": lambda: taskback.WorkerDiedError(42, -9, 1.25, 2**20, "it was killed"),
}


def is_foreign(value: object) -> bool:
    """Whether a name is bound only because a module, or something of one, was imported."""
    return isinstance(value, ModuleType) or not str(getattr(value, "__module__", "taskback")).startswith("taskback")


def methods_of(cls: type) -> Iterator[tuple[str, object]]:
    """The public methods and properties of a class that are written in taskback."""
    for base in cls.__mro__:
        if base.__module__.split(".")[0] == "taskback":
            for name, value in vars(base).items():
                if not name.startswith("_") and isinstance(value, FunctionType | property | classmethod | staticmethod):
                    yield name, value


def test_the_pools_are_public_by_their_own_list():
    """They say that they live in taskback.pools, and each method is documented."""
    assert list(pools.__all__) == sorted(set(pools.__all__))
    for name in pools.__all__:
        kind = getattr(pools, name)
        assert (kind.__module__, kind.__qualname__) == ("taskback.pools", name)
        assert kind.__doc__
        assert [method for method, _ in methods_of(kind) if not inspect.getdoc(getattr(kind, method))] == []


@pytest.mark.parametrize("package", [taskback, pools], ids=lambda package: package.__name__)
def test_a_type_checker_is_told_the_same(package):
    """What a name is when it is looked up is what a checker reads, and each name of the list is there for both."""
    source = ast.parse(Path(package.__file__).read_text("utf-8"))
    read = {
        alias.name: getattr(importlib.import_module(str(node.module)), alias.name)
        for branch in source.body
        if isinstance(branch, ast.If)
        for node in branch.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    assert sorted(read) == list(package.__all__)
    assert [name for name, value in read.items() if getattr(package, name) is not value] == []
    assert set(package.__all__) <= set(dir(package))


def test_what_is_not_there_is_no_attribute():
    """As of any module."""
    with pytest.raises(AttributeError, match=r"module 'taskback' has no attribute 'Nothing'") as refused:
        taskback.Nothing  # noqa: B018  # to look it up is what is tested

    assert (refused.value.name, refused.value.obj) == ("Nothing", taskback)
    assert not hasattr(pools, "Nothing")


HEAVY: Final = ("asyncio", "cloudpickle", "concurrent.futures.process", "dataclasses", "inspect", "psutil", "random")


@pytest.mark.parametrize("what", ["taskback", "taskback.pools", "taskback.pools.child.guardian"])
def test_what_takes_long_to_import_is_not_imported(what):
    """Neither by the package, nor by a guardian, whose start is for the greater part its imports."""
    found = run_python("-c", f"import sys, {what}; print(*sorted(set(sys.modules) & {set(HEAVY)!r}))")

    assert (found.returncode, found.stdout.split()) == (0, []), found.stderr


RESOLVE_IN_A_FRESH_PROGRAM = """if True:
    import pickle, typing
    from taskback._errors import TaskTimeoutError
    copy = pickle.loads(pickle.dumps(TaskTimeoutError("t1", 1.0, 1.5)))
    assert type(copy) is TaskTimeoutError and type(copy).__module__ == "taskback", type(copy)
    import taskback
    for name in taskback.__all__:
        if isinstance(getattr(taskback, name), type):
            typing.get_type_hints(getattr(taskback, name))
"""


def test_names_are_found_where_none_was_looked_up_before():
    """By pickle, and by who resolves annotations."""
    done = run_python("-c", RESOLVE_IN_A_FRESH_PROGRAM)

    assert done.returncode == 0, done.stderr


def test_all_is_sorted():
    """A name is found where one looks for it."""
    assert list(taskback.__all__) == sorted(set(taskback.__all__))


def test_all_is_complete():
    """What has a public name in taskback is listed; what is listed is there."""
    bound = {name for name, value in vars(taskback).items() if not name.startswith("_") and not is_foreign(value)}

    listed = {name for name, value in PUBLIC.items() if not name.startswith("_") and not is_foreign(value)}
    assert bound == listed


@pytest.mark.parametrize("name", sorted({**CLASSES, **FUNCTIONS}))
def test_it_says_that_it_lives_in_taskback(name):
    """Errors and pickles name `taskback.X`, so that private files can move."""
    assert PUBLIC[name].__module__ == "taskback"
    assert PUBLIC[name].__qualname__ == name


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_its_annotations_resolve(name):
    """They are looked up in the module that the class claims to live in."""
    typing.get_type_hints(CLASSES[name])


@pytest.mark.parametrize("name", sorted({**CLASSES, **FUNCTIONS}))
def test_it_has_a_docstring(name):
    """Its own one, not what a dataclass makes up."""
    doc = vars(PUBLIC[name]).get("__doc__") if name in CLASSES else PUBLIC[name].__doc__

    assert doc
    assert not doc.startswith(f"{name}(")


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_its_methods_have_docstrings(name):
    """Their own ones, or those of what they override."""
    undocumented = [
        method for method, _ in methods_of(CLASSES[name]) if not inspect.getdoc(getattr(CLASSES[name], method))
    ]

    assert undocumented == []


def test_every_exception_has_an_example():
    """A new exception comes with a line in EXAMPLES."""
    assert sorted(EXAMPLES) == sorted(EXCEPTIONS)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_it_survives_pickle(name, protocol):
    """An exception that crossed to another process has the same text and the same facts."""
    error = EXAMPLES[name]()
    assert type(error) is EXCEPTIONS[name]

    copy = pickle.loads(pickle.dumps(error, protocol))

    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert copy.args == error.args
    assert vars(copy) == vars(error)
