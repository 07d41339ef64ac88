"""What was captured where a task was submitted is in place where it runs, and gone after."""

from __future__ import annotations

import enum
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

import pytest

from taskback import _context
from taskback._context import add_context, captured, restored, restores


@pytest.fixture(autouse=True)
def _nothing_stays(monkeypatch):
    """Whatever a test registers is taken out again."""
    monkeypatch.setattr(_context, "_pairs", ())
    monkeypatch.setattr(_context, "_restores", ())


def no_restore(context: Mapping[str, str]) -> None:
    """Restores nothing."""


def journal(log: list[str], name: str) -> Callable[[Mapping[str, str]], AbstractContextManager[None]]:
    """A restore that writes down when it is entered and left."""

    @contextmanager
    def restore(context: Mapping[str, str]) -> Iterator[None]:
        log.append(f"enter {name} {context['trace']}")
        try:
            yield
        finally:
            log.append(f"leave {name}")

    return restore


def test_a_later_capture_wins_and_the_submissions_own_wins_over_all():
    """What travels is merged from all who capture, in their order."""
    add_context(lambda: {"a": "1", "b": "1"}, no_restore)
    add_context(lambda: {"b": "2", "c": "2"}, no_restore)

    found = captured({"c": "3"})

    assert found == {"a": "1", "b": "2", "c": "3"}


def test_what_was_taken_out_captures_and_restores_no_more():
    """Taking it out twice does no harm, nor to the same pair that was registered again."""
    remove = add_context(lambda: {"a": "1"}, no_restore)
    add_context(lambda: {"b": "1"}, no_restore)

    remove()
    remove()

    assert captured(None) == {"b": "1"}
    assert restores() == (no_restore,)


@pytest.mark.parametrize("context", [{"a": 1}, {1: "a"}, {"a": None}])
def test_what_is_no_text_is_refused_by_name(context):
    """Both by the capture's own and by the submission's."""
    with pytest.raises(TypeError, match="context must map strings to strings, not"):
        captured(context)
    add_context(lambda: context, no_restore)
    with pytest.raises(TypeError, match="context must map strings to strings, not"):
        captured(None)


def test_what_travels_is_plain_text():
    """A member of an enum of strings becomes its text, which any process can read."""

    class Name(enum.StrEnum):
        TRACE = "trace"

    found = captured({Name.TRACE: Name.TRACE})

    assert {type(each) for pair in found.items() for each in pair} == {str}
    assert found == {"trace": "trace"}


@pytest.mark.parametrize("pair", [(None, no_restore), (dict, None), ("capture", "restore")])
def test_what_cannot_be_called_is_refused(pair):
    """Where it is written down, not at the first task."""
    with pytest.raises(TypeError, match="takes two callables"):
        add_context(*pair)
    assert restores() == ()


def test_what_is_restored_is_left_in_reverse():
    """Around the handler, the first one outermost."""
    log: list[str] = []

    with restored((journal(log, "a"), no_restore, journal(log, "b")), {"trace": "t1"}):
        log.append("handler")

    assert log == ["enter a t1", "enter b t1", "handler", "leave b", "leave a"]


def test_what_was_entered_is_left_where_a_later_one_raises():
    """The handler is not called, and nothing stays in place."""
    log: list[str] = []

    def broken(context: Mapping[str, str]) -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        restored((journal(log, "a"), broken), {"trace": "t1"})

    assert log == ["enter a t1", "leave a"]


def test_what_a_handler_raises_passes_through():
    """And everything is left."""
    log: list[str] = []

    with pytest.raises(KeyError), restored((journal(log, "a"),), {"trace": "t1"}):
        raise KeyError

    assert log == ["enter a t1", "leave a"]


def test_pairs_of_many_threads_are_all_kept():
    """Threads that register at the same time lose none."""
    together = threading.Barrier(8)

    def register(number: int) -> None:
        together.wait(10)
        for _ in range(100):
            add_context(dict, no_restore)()
            add_context(dict, no_restore)

    threads = [threading.Thread(target=register, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(restores()) == 800
    assert captured(None) == {}
