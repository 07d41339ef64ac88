"""The figures name every state, and a shutdown's one line names every list that is not empty."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from taskback import BackendStats, ShutdownReport, TaskState, TypeStats
from taskback._report import Tally

LISTS = [field.name for field in dataclasses.fields(ShutdownReport) if field.name not in ("seconds", "unfinished")]


def test_a_tally_gives_the_fields_of_the_figures():
    """Each state has its count, and no count is made of two."""
    tally = Tally()
    tally.accepted, tally.joined = 100, 200
    for number, state in enumerate(TaskState):
        tally.counts[state] = number

    stats = TypeStats(**tally.figures())

    assert (stats.accepted, stats.joined) == (100, 200)
    assert [getattr(stats, state.value) for state in TaskState] == list(range(len(TaskState)))
    told_by_the_scheduler = {name for name in TypeStats.__slots__ if name.startswith(("waiting_", "oldest_"))}
    assert {field.name for field in dataclasses.fields(TypeStats)} - told_by_the_scheduler == set(tally.figures())


def test_figures_have_names_and_cannot_be_changed():
    """They are as of then, and two readings can be compared."""
    stats = BackendStats(accepted=1, by_type={"note": TypeStats(accepted=1)})

    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.accepted = 2  # type: ignore[misc]
    assert stats == BackendStats(accepted=1, by_type={"note": TypeStats(accepted=1)})
    assert BackendStats().by_type is not BackendStats().by_type


@pytest.mark.parametrize("name", LISTS)
def test_a_list_that_is_not_empty_stands_in_the_line(name):
    """With its length, and no other list does."""
    report = ShutdownReport(seconds=1.5)
    entries: list[Any] = getattr(report, name)
    entries += [1, 2]

    assert str(report) == f"shut down in 1.50 s: 2 {name.replace('_', ' ')}"


def test_a_shutdown_of_nothing_says_so():
    """The line is never empty; and two reports share no list."""
    first, second = ShutdownReport(), ShutdownReport()

    assert str(first) == "shut down in 0.00 s: nothing was in flight"
    assert all(getattr(first, name) is not getattr(second, name) for name in [*LISTS, "unfinished"])


def test_the_lists_stand_in_the_order_of_how_bad_they_are():
    """All in one line."""
    report = ShutdownReport()
    for name in LISTS:
        getattr(report, name).append(1)

    assert str(report) == "shut down in 0.00 s: " + ", ".join(f"1 {name.replace('_', ' ')}" for name in LISTS)
