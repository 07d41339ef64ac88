"""A lock that is found taken is left to its owner for a while; nobody who waits owns it meanwhile."""

from __future__ import annotations

import threading
import time

from taskback._give_way import TRIES, give_way


def test_a_lock_that_is_held_on_is_given_up_on(monkeypatch):
    """Its owner is held up by something: whoever wants it waits as for any lock."""
    yields: list[float] = []
    monkeypatch.setattr(time, "sleep", yields.append)
    lock = threading.Lock()

    with lock:
        give_way(lock)

    assert yields == [0] * TRIES


def test_as_soon_as_it_is_free_nobody_gives_way_any_more(monkeypatch):
    """And it is free after that: this took it not."""
    lock = threading.Lock()
    lock.acquire()
    yields = 0

    def owner_goes_on(seconds: float) -> None:
        nonlocal yields
        yields += 1
        if yields == 3:
            lock.release()

    monkeypatch.setattr(time, "sleep", owner_goes_on)

    give_way(lock)

    assert yields == 3
    assert not lock.locked()
