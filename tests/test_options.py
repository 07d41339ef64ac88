"""An option that makes no sense, or that this backend cannot keep, is refused by name before anything is accepted."""

from __future__ import annotations

import dataclasses
import enum
import math
import time
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from taskback import Promises, UnsupportedOptionError, _clock
from taskback._options import UNSET, Options, read_options

ALL = Promises(delay=True, priority=True, timeout=True)


def read(promises: Promises = ALL, **given: Any) -> Options:
    """The options as a backend that keeps `promises` reads them."""
    return read_options("TestBackend", promises, given)


@pytest.fixture
def now(monkeypatch) -> float:
    """A monotonic clock that stands still."""
    at = time.monotonic()
    monkeypatch.setattr(_clock, "monotonic", lambda: at)
    monkeypatch.setattr(_clock, "monotonic_ns", lambda: int(at * 1e9))
    return at


def test_nothing_said_is_nothing_asked_for():
    """No limit is not the same as not saying, nor is priority 0."""
    assert read() == Options(id=None, ready_at=0.0, priority=None, timeout=UNSET, context=None)
    assert read(timeout=None).timeout is None
    assert read(timeout=math.inf).timeout is None
    assert read(delay=None, not_before=None, id=None, context=None) == Options()


def test_what_is_said_is_read():
    """Each option in the form that the backend works with."""
    found = read(id="mine", priority=-3, timeout=2, context={"a": "b"})

    assert found == Options(id="mine", priority=-3, timeout=2.0, context={"a": "b"})


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"dealy": 1}, TypeError, "unknown option 'dealy'; a submission takes id, delay"),
        ({"id": 5}, TypeError, "id must be a string, not int"),
        ({"id": ""}, ValueError, "id must have 1 to 64 characters, not 0"),
        ({"id": "x" * 65}, ValueError, "not 65"),
        ({"delay": 1, "not_before": 2}, ValueError, "exclude each other"),
        ({"delay": -1}, ValueError, "delay must be at least 0"),
        ({"delay": math.nan}, ValueError, "delay must be at least 0"),
        ({"delay": math.inf}, ValueError, "delay must be finite"),
        ({"delay": "1"}, TypeError, "delay must be a number"),
        ({"not_before": "tomorrow"}, TypeError, "not_before must be a datetime or seconds"),
        ({"not_before": True}, TypeError, "not_before must be a datetime or seconds"),
        ({"not_before": math.inf}, ValueError, "not_before must be finite"),
        ({"not_before": datetime(2030, 1, 1)}, ValueError, "not_before needs a time zone"),
        ({"priority": 1.0}, TypeError, "priority must be a whole number"),
        ({"priority": True}, TypeError, "priority must be a whole number"),
        ({"timeout": 0}, ValueError, "timeout must be more than 0"),
        ({"timeout": -1}, ValueError, "timeout must be at least 0"),
        ({"timeout": "1"}, TypeError, "timeout must be a number"),
        ({"context": [("a", "b")]}, TypeError, "context must map strings to strings"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(given, error, words):
    """The message says which option, what was given and what would do."""
    with pytest.raises(error, match=words):
        read(**given)


def test_the_longest_id_is_taken():
    """64 characters, of any kind."""
    assert read(id="ü" * 64).id == "ü" * 64


def test_an_id_is_plain_text():
    """A member of an enum of strings becomes its text."""

    class Name(enum.StrEnum):
        JOB = "job-1"

    found = read(id=Name.JOB).id

    assert type(found) is str
    assert found == "job-1"


def test_a_delay_counts_from_now(now):
    """On the monotonic clock; none at all is from now, too."""
    assert read(delay=2.5).ready_at == now + 2.5
    assert read(delay=0).ready_at == now


@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=-5))])
def test_a_moment_is_the_same_in_every_form(now, zone):
    """An aware datetime, in whatever zone, and seconds since the epoch mean the same point."""
    epoch = _clock.epoch_ns(_clock.monotonic_ns()) / 1e9 + 100

    assert read(not_before=epoch).ready_at == pytest.approx(now + 100, abs=1e-3)
    assert read(not_before=datetime.fromtimestamp(epoch, zone)).ready_at == pytest.approx(now + 100, abs=1e-3)


def test_a_moment_that_has_passed_is_now(now):
    """It is not before the task was submitted."""
    assert read(not_before=0).ready_at == now
    assert read(not_before=datetime(1971, 1, 1, tzinfo=UTC)).ready_at == now


@pytest.mark.parametrize("given", [{"delay": 1}, {"not_before": 5}, {"priority": 1}, {"timeout": 5}])
def test_what_the_backend_cannot_keep_is_refused(given):
    """With the backend's name, the option's, and the reason."""
    (name,) = given
    lacking = dataclasses.replace(ALL, **{"delay" if name == "not_before" else name: False})

    with pytest.raises(UnsupportedOptionError) as caught:
        read(lacking, **given)

    assert caught.value.backend == "TestBackend"
    assert caught.value.option == ("delay" if name == "not_before" else name)
    assert caught.value.why
    assert read(ALL, **given) != Options()


def test_what_asks_for_nothing_is_kept_by_all():
    """Priority 0 and no limit are what every backend does anyway."""
    assert read(Promises(), priority=0, timeout=None, id="a") == Options(id="a", priority=0, timeout=None)
