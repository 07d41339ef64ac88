"""Rules that make no sense are refused where they are written, and fields are read from tasks."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime

import pytest

from taskback._again import Defer, Retry
from taskback.scheduler.backoff import Backoff
from taskback.scheduler.fields import fair_value_of, key_of
from taskback.scheduler.rules import Rules, check_floors, read_rules


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"max_runing": 2}, "unknown policy 'max_runing'; a type takes priority, fair_by, max_running"),
        ({"max_running": 0}, "max_running must be at least 1"),
        ({"reserved": -1}, "reserved must be at least 0"),
        ({"reserved": 3, "max_running": 2}, "reserved=3 is above max_running=2"),
        ({"key": ""}, "key must name a field"),
        ({"fair_by": ""}, "fair_by must name a field"),
        ({"coalesce": "drop"}, "coalesce needs a key"),
        ({"coalesce": "merge", "key": "k"}, 'coalesce must be "drop", "rerun" or a function'),
        ({"queue_timeout": 0}, "queue_timeout must be more than 0"),
        ({"max_attempts": 0}, "max_attempts must be at least 1"),
        ({"max_crashes": 0}, "max_crashes must be at least 1"),
        ({"retry_on": ValueError}, "retry_on without max_attempts"),
    ],
)
def test_what_makes_no_sense_is_refused(fields, error):
    """With what would mend it."""
    with pytest.raises(ValueError, match=error):
        read_rules(Rules, fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"priority": 1.5},
        {"priority": True},
        {"max_running": "2"},
        {"reserved": None},
        {"key": 3},
        {"fair_by": len},
        {"coalesce": 3, "key": "k"},
        {"queue_timeout": "1"},
        {"max_attempts": 2.0},
        {"retry_on": "ValueError", "max_attempts": 2},
        {"retry_on": (ValueError, KeyboardInterrupt), "max_attempts": 2},
        {"backoff": 3.0},
    ],
)
def test_what_has_the_wrong_type_is_refused(fields):
    """As a TypeError that names it."""
    name = next(iter(fields))

    with pytest.raises(TypeError, match=name):
        read_rules(Rules, fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"initial": -1.0},
        {"initial": 10.0, "maximum": 5.0},
        {"maximum": float("inf")},
        {"factor": 0.5},
        {"factor": float("nan")},
        {"jitter": 1.5},
        {"jitter": float("nan")},
    ],
)
def test_waits_that_make_no_sense_are_refused(fields):
    """As the rest is."""
    with pytest.raises(ValueError):
        Backoff(**fields)


def test_waits_have_a_limit_however_often_a_task_fails():
    """No number is too large for it."""

    class Never:
        def random(self):
            return 0.0

    assert Backoff(1.0, 2.0, 60.0).seconds(10_000, Never()) == 60.0
    assert Backoff(0.0, 2.0, 60.0).seconds(10_000, Never()) == 0.0


def test_floors_are_held_against_the_workers():
    """All of them together."""
    rules = {"a": Rules(reserved=2), "b": Rules(reserved=1), "c": Rules()}

    check_floors(rules, workers=3)
    with pytest.raises(ValueError, match="reserved adds up to 3 of 2 workers: 2 for 'a', 1 for 'b'"):
        check_floors(rules, workers=2)


def test_a_key_is_a_field_or_a_function():
    """None says that the task has none."""
    assert key_of(Rules(), {"bank": 1}) is None
    assert key_of(Rules(key="bank"), {"bank": "b1"}) == "b1"
    assert key_of(Rules(key="bank"), {"bank": None}) is None
    assert key_of(Rules(key=lambda task: (task["bank"], task["doc"])), {"bank": 1, "doc": 2}) == (1, 2)


def test_a_task_without_the_field_of_its_key_is_refused():
    """To run it beside others of its key would be a silent fault."""
    with pytest.raises(ValueError, match="no field 'bank'"):
        key_of(Rules(key="bank"), {"bnak": 1})


def test_a_key_that_cannot_be_hashed_is_refused():
    """The value of turns, too."""
    with pytest.raises(TypeError, match=r"key .* not a list"):
        key_of(Rules(key="bank"), {"bank": [1]})
    with pytest.raises(TypeError, match=r"fair_by .* not a dict"):
        fair_value_of(Rules(fair_by="tenant"), {"tenant": {}})


def test_tasks_without_the_field_of_turns_share_one():
    """It costs nobody more than a turn."""
    rules = Rules(fair_by="tenant")

    assert [fair_value_of(rules, task) for task in ({"tenant": "x"}, {}, {"tenant": None})] == ["x", None, None]
    assert fair_value_of(Rules(), {"tenant": "x"}) is None


@pytest.mark.parametrize("wrong", [-1.0, float("nan"), float("inf")])
def test_a_request_for_no_time_at_all_is_refused(wrong):
    """In the handler that raises it."""
    with pytest.raises(ValueError):
        Retry(after=wrong)
    with pytest.raises(ValueError):
        Defer(wrong)


def test_a_deferral_says_one_time():
    """With a time zone where it is a time of day."""
    moment = datetime(2026, 1, 1, tzinfo=UTC)
    for arguments in ({}, {"seconds": 1.0, "until": moment}, {"until": 3.0}):
        with pytest.raises(TypeError):
            Defer(**arguments)
    with pytest.raises(ValueError, match="time zone"):
        Defer(until=datetime(2026, 1, 1))


def test_requests_come_back_from_a_process():
    """As they were raised."""
    retry, plain, defer, until = (
        pickle.loads(pickle.dumps(each))
        for each in (Retry(after=2.0), Retry(), Defer(3.0), Defer(until=datetime(2026, 1, 1, tzinfo=UTC)))
    )

    assert (retry.after, plain.after, defer.seconds) == (2.0, None, 3.0)
    assert until.until == datetime(2026, 1, 1, tzinfo=UTC)
    assert defer.delay(0.0) == 3.0
    assert str(retry) == "asked to be tried again after 2 s"
