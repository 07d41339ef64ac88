"""Ids are unlike each other across threads and forks, and grow with time; numbers that make no sense are refused."""

from __future__ import annotations

import math
import os
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from taskback import _clock


def test_ids_grow_and_are_unlike_each_other():
    """In one thread each id is greater than the last."""
    ids = [_clock.new_task_id() for _ in range(10_000)]

    assert ids == sorted(set(ids))
    assert {len(each) for each in ids} == {30}


def test_ids_of_many_threads_are_unlike_each_other():
    """Threads that make ids at the same time make no two alike."""
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: [_clock.new_task_id() for _ in range(2_000)], range(8)))

    assert len({each for ids in made for each in ids}) == 16_000
    assert all(ids == sorted(ids) for ids in made)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_makes_ids_of_its_own():
    """Parent and child count on from the same number, and their ids differ in the part of the process."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing, _clock.new_task_id().encode())
        os._exit(0)
    os.close(writing)
    os.waitpid(pid, 0)
    with os.fdopen(reading) as pipe:
        theirs = pipe.read()

    mine = _clock.new_task_id()

    assert len(theirs) == 30
    assert theirs[-8:] != mine[-8:]
    assert theirs[16:22] == mine[16:22]  # the same count


def test_epoch_times_are_the_monotonic_clock_plus_one_offset():
    """They agree with the system's clock, and a distance is the same on both."""
    now = _clock.monotonic_ns()

    assert abs(_clock.epoch_ns(now) / 1e9 - time.time()) < 5
    assert _clock.epoch_ns(now + 7) - _clock.epoch_ns(now) == 7
    assert _clock.epoch(now) == pytest.approx(_clock.epoch_ns(now) / 1e9)
    assert _clock.epoch(None) is None


def test_a_timeout_becomes_a_deadline(monkeypatch):
    """On the monotonic clock; none is infinitely far off."""
    monkeypatch.setattr(_clock, "monotonic", lambda: 100.0)

    assert _clock.deadline_after(2) == 102.0
    assert _clock.deadline_after(0) == 100.0
    assert _clock.deadline_after(None) == math.inf


@pytest.mark.parametrize("value", [True, "1", None, 1j, [1]])
def test_what_is_no_number_of_seconds_is_a_type_error(value):
    """The error names what was given."""
    with pytest.raises(TypeError, match=f"patience must be a number of seconds, not {type(value).__name__}"):
        _clock.checked_seconds("patience", value)


@pytest.mark.parametrize("value", [-1, -0.001, math.nan, -math.inf])
def test_negative_seconds_are_a_value_error(value):
    """NaN, which compares with nothing, too."""
    with pytest.raises(ValueError, match="patience must be at least 0 seconds"):
        _clock.checked_seconds("patience", value)


def test_a_limit_is_positive_or_none():
    """0 is refused; infinity is no limit."""
    assert _clock.checked_limit("timeout", None) is None
    assert _clock.checked_limit("timeout", math.inf) is None
    assert _clock.checked_limit("timeout", 2) == 2.0
    with pytest.raises(ValueError, match="timeout must be more than 0 seconds"):
        _clock.checked_limit("timeout", 0)
