"""A run and a backend move as their tables say, and in no other way: every pair of states is tried."""

from __future__ import annotations

import itertools

import pytest

from taskback import BackendState, SyncTaskBackend, TaskState
from taskback._events import Listeners
from taskback._report import Tally
from taskback._run import Run
from taskback._state import BACKEND_MOVES, TASK_MOVES
from taskback.backends._ledger import Ledger

TASK_PAIRS = list(itertools.product(TaskState, TaskState))
BACKEND_PAIRS = list(itertools.product(BackendState, BackendState))


@pytest.mark.parametrize(("old", "new"), TASK_PAIRS)
def test_a_run_moves_as_the_table_says(old, new):
    """The ledger's one method that assigns takes the moves of the table and refuses all others."""
    ledger = Ledger(Listeners("test"), 0)
    run = Run("id", "type", {}, None, context={}, priority=0, ready_at=0.0, timeout=None)
    run.state = old
    run.tally = Tally()

    if new in TASK_MOVES[old]:
        ledger._move(run, new)
        assert run.state is new
    else:
        with pytest.raises(AssertionError):
            ledger._move(run, new)
        assert run.state is old


@pytest.mark.parametrize(("old", "new"), BACKEND_PAIRS)
def test_a_backend_moves_as_the_table_says(old, new):
    """The backend's one method that assigns takes the moves of the table and refuses all others."""
    backend = SyncTaskBackend()
    backend._state = old

    if new in BACKEND_MOVES[old]:
        backend._move(new)
        assert backend._state is new
    else:
        with pytest.raises(AssertionError):
            backend._move(new)
        assert backend._state is old


def test_the_tables_are_those_of_the_contract():
    """What is final is left by no move, and every state can be reached; QUEUED again by what is tried again."""
    assert {state for state in TaskState if state.final} == {state for state in TaskState if not TASK_MOVES[state]}
    assert set().union(*TASK_MOVES.values()) == set(TaskState)
    assert set(BACKEND_MOVES) == set(BackendState)
    assert set().union(*BACKEND_MOVES.values()) == set(BackendState) - {BackendState.NEW}
