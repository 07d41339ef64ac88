"""Events come in order and never back in time; a slow or broken listener costs nobody but itself."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from taskback import WorkerStarted, _clock, _events
from taskback._events import Listeners


def test_time_never_goes_backwards(monkeypatch):
    """Even where the clock does."""
    readings = iter([5, 3, 9])
    monkeypatch.setattr(_clock, "monotonic_ns", lambda: next(readings))
    listeners, heard = Listeners("test"), list[Any]()
    listeners.subscribe(heard.append)

    for pid in range(3):
        listeners.emit(WorkerStarted, pid=pid)
    assert listeners.stop(time.monotonic() + 10)

    assert [event.pid for event in heard] == [0, 1, 2]
    assert heard[0].time_ns == heard[1].time_ns < heard[2].time_ns


def test_a_listener_that_raises_is_logged_and_the_others_hear(caplog):
    """Each of them gets each event."""
    listeners, heard = Listeners("test"), list[Any]()
    listeners.subscribe(lambda event: 1 / 0)
    listeners.subscribe(heard.append)

    listeners.emit(WorkerStarted, pid=1)
    assert listeners.stop(time.monotonic() + 10)

    assert len(heard) == 1
    assert "ZeroDivisionError" in caplog.text


def test_a_slow_listener_loses_events_that_are_counted(monkeypatch):
    """emit() does not wait for it."""
    monkeypatch.setattr(_events, "MAX_WAITING_EVENTS", 2)
    listeners, began, gate = Listeners("test"), threading.Event(), threading.Event()
    listeners.subscribe(lambda event: (began.set(), gate.wait(10)))
    listeners.emit(WorkerStarted, pid=1)
    assert began.wait(5), "the listener was never called"

    for pid in range(5):
        listeners.emit(WorkerStarted, pid=pid)
    gate.set()

    assert listeners.stop(time.monotonic() + 10)
    assert listeners.dropped == 3


def test_one_function_may_listen_twice_and_be_taken_out_once():
    """A subscription is one entry; taking it out twice does no harm."""
    listeners, heard = Listeners("test"), list[Any]()
    first, second = (listeners.subscribe(heard.append) for _ in range(2))

    first()
    first()
    assert listeners.listening
    listeners.emit(WorkerStarted, pid=1)
    assert listeners.stop(time.monotonic() + 10)
    second()

    assert len(heard) == 1
    assert not listeners.listening


def test_what_cannot_be_called_does_not_listen():
    """It is refused where it subscribes, and nothing listens then."""
    listeners = Listeners("test")

    with pytest.raises(TypeError, match="a listener must be callable, not a str"):
        listeners.subscribe("listener")  # type: ignore[arg-type]

    assert not listeners.listening


def test_events_of_many_threads_are_in_one_order():
    """Their times never go backwards from one to the next, and each thread's stand in its order."""
    listeners, heard = Listeners("test"), list[Any]()
    listeners.subscribe(heard.append)

    def emit(poster: int) -> None:
        for number in range(300):
            listeners.emit(WorkerStarted, pid=poster * 1000 + number)

    threads = [threading.Thread(target=emit, args=(poster,)) for poster in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert listeners.stop(time.monotonic() + 10)

    assert len(heard) == 1200
    assert [event.time_ns for event in heard] == sorted(event.time_ns for event in heard)
    for poster in range(4):
        assert [event.pid for event in heard if event.pid // 1000 == poster] == [
            poster * 1000 + number for number in range(300)
        ]


def test_a_listener_that_holds_its_thread_is_told_of():
    """stop() does not wait beyond its deadline, and the thread ends when the listener lets go."""
    listeners, began, gate = Listeners("test"), threading.Event(), threading.Event()
    listeners.subscribe(lambda event: (began.set(), gate.wait(10)))
    listeners.emit(WorkerStarted, pid=1)
    assert began.wait(5), "the listener was never called"

    stopped = listeners.stop(time.monotonic())
    gate.set()

    assert not stopped
    assert listeners.stop(time.monotonic() + 10)


def test_in_a_fork_the_same_listeners_hear_on_a_thread_of_its_own():
    """With counts that begin anew, and a lock that nobody else holds."""
    listeners, heard = Listeners("test"), list[Any]()
    listeners.subscribe(heard.append)
    listeners.dropped = 5
    listeners._lock.acquire()

    mine = listeners.afresh()
    mine.emit(WorkerStarted, pid=1)

    assert mine.stop(time.monotonic() + 10)
    assert len(heard) == 1
    assert mine.listening
    assert mine.dropped == 0
