"""Events come in order and never back in time; a slow or broken listener costs nobody but itself."""

from __future__ import annotations

import threading
import time
from typing import Any

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
