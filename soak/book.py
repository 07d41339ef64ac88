"""The tasks of one backend's life: who was handed over, how each ended, and what must hold of all of them.

Threads: any add; _ended() runs on whichever thread ends a task.
Locks: _lock is a leaf.
Holds: a task is in `open` from before it is handed over until its end has been judged. So what is there when nothing is
in flight any more was lost.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import itertools
import re
import threading
import time
from collections import Counter
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Final

from soak import effects
from soak.kinds import Expected
from taskback import TaskHandle, TaskState, WorkerDiedError

_NO_ROOM: Final = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
NO_WORKER: Final = "a worker could not be started"
TRIES: Final = 3  # starts in a row that may fail, before tasks are told
MOST_TOLD: Final = 20  # violations of one life; one is enough to fail, and thousands tell no more


class Ticket:
    """One task that was handed over.

    Attributes:
        number (int): Its own, in the whole run.
        kind (str): What it is.
        expected (Expected): How it may end.
        stopped (bool): Whether somebody may have cancelled it; set before they do.
        ends (int): How often its end was told.
        handle (Any): The handle or future, until the end has been judged.
    """

    __slots__ = ("ends", "expected", "handle", "kind", "number", "state", "stopped")

    def __init__(self, number: int, kind: str, expected: Expected) -> None:
        self.number = number
        self.kind = kind
        self.expected = expected
        self.stopped = False
        self.ends = 0
        self.handle: Any = None
        self.state: TaskState | None = None


class Book:
    """See the top of the file.

    Args:
        path (str): Of the effects' file.
        numbers (Iterator[int]): The run's.
        crosses (bool): Whether tasks go to processes.
        forgives (bool): Whether a dead worker may take others' tasks along: a stock pool's does.

    Attributes:
        open (dict[int, Ticket]): Those that have not ended.
        outcomes (Counter[TaskState]): Of those that have.
        violations (list[str]): What was broken.
        kills (int): Workers that were killed from outside.
        given_up (int): Tasks that were told that no worker could be started, one start after another being foiled.
        closing (bool): Whether a shutdown may cancel what is in flight.
        sheds (bool): Whether the backend drops tasks where its queue is full.
        spares_guardian (bool): Whether its guardian is not to be killed.
        guardians_killed (int): How often it was.
        starved (bool): Whether descriptors or memory have been short.
        forgives (bool): See the argument; set where all workers are killed, too.
    """

    def __init__(self, path: str, numbers: itertools.count[int], crosses: bool, forgives: bool = False) -> None:
        self.path = path
        self.open: dict[int, Ticket] = {}
        self.outcomes: Counter[TaskState] = Counter()
        self.kinds: Counter[str] = Counter()
        self.violations: list[str] = []
        self.kills = 0
        self.closing = False
        self.starved = False
        self.sheds = False
        self.spares_guardian = False
        self.guardians_killed = 0
        self.submitted = 0
        self._numbers = numbers
        self._crosses = crosses
        self.forgives = forgives
        self._lock = threading.Lock()
        self.given_up = 0  # tasks that were told that no worker could be started
        self._innocent = 0  # tasks that were lost by no fault of theirs
        self._reasons: Counter[str] = Counter()  # as these are told, numbers left out
        self._suspects = 0  # workers that tasks may have taken along
        self._all: dict[int, Ticket] = {}

    # --- handing over ---

    def new(self, kind: str) -> Ticket:
        """A ticket for a task that is to be made."""
        return Ticket(next(self._numbers), kind, _UNKNOWN)

    def hands_over(self, ticket: Ticket, expected: Expected) -> None:
        """It is about to be handed over; comes before `took` or `refused`."""
        ticket.expected = expected
        with self._lock:
            self.open[ticket.number] = self._all[ticket.number] = ticket
            self._suspects += expected.faults
            self.submitted += 1
            self.kinds[ticket.kind] += 1

    def took(self, ticket: Ticket, handle: Any) -> Any:
        """It was taken; gives the handle."""
        ticket.handle = handle
        handle.add_done_callback(functools.partial(self._ended, ticket))
        return handle

    def refused(self, ticket: Ticket) -> None:
        """It was not: its handler must never be called."""
        with self._lock:
            del self.open[ticket.number]
            self.submitted -= 1
            self.kinds[ticket.kind] -= 1
        ticket.state = TaskState.CANCELLED

    def gave(self, ticket: Ticket, outcome: Any) -> None:
        """Of a task of `map`, which has no handle: its result, or its error."""
        ticket.ends += 1
        if isinstance(outcome, BaseException):
            state = _state_of_error(outcome)
            self._judge(ticket, state, outcome)
        else:
            self._judge(ticket, TaskState.SUCCEEDED, outcome)

    def gave_none(self, ticket: Ticket) -> None:
        """Of a task of `map` that was called off: nobody will know."""
        ticket.ends += 1
        ticket.stopped = True
        self._judge(ticket, TaskState.CANCELLED, None)

    # --- ends ---

    def _ended(self, ticket: Ticket, handle: Any) -> None:
        ticket.ends += 1
        if ticket.ends > 1:
            self.violation(ticket, "its end was told more than once")
            return
        try:
            state, value = outcome_of(handle)
            self._judge(ticket, state, value)
        except BaseException as error:
            self.violation(ticket, f"its end cannot be judged: {error!r}")

    def _judge(self, ticket: Ticket, state: TaskState, value: Any) -> None:
        wrong = self._what_is_wrong(ticket, state, value)
        if wrong:
            self.violation(ticket, wrong)
        ticket.state = state
        ticket.handle = None
        with self._lock:
            self.outcomes[state] += 1
            if state is TaskState.LOST and NO_WORKER in str(value) and self.kills + self.guardians_killed >= TRIES:
                self.given_up += 1  # as is right where one start after the other was foiled
            elif state is TaskState.LOST and not ticket.expected.faults:
                self._innocent += 1
                self._reasons[re.sub(r"\d+(\.\d+)?", "N", str(value))] += 1
            self.open.pop(ticket.number, None)
        ticket.expected = _ENDED[ticket.expected.again, ticket.expected.joins]

    def _what_is_wrong(self, ticket: Ticket, state: TaskState, value: Any) -> str:
        expected = ticket.expected
        if not state.final:
            return f"its end was told while it was {state.name}"
        if state is TaskState.SUCCEEDED:
            if state not in expected.states:
                return f"it went well, with {_short(value)}"
            return "" if expected.result(value) else f"its result is wrong: {_short(value)}"
        if state in expected.states:
            right = state is not TaskState.FAILED or expected.error(value)
            return "" if right or self._is_excused(value) else f"its error is wrong: {_short(value)}"
        if state is TaskState.FAILED:
            return "" if self._is_excused(value) else f"it failed: {_short(value)}"
        if state is TaskState.LOST:
            return (
                ""
                if self.kills or self.guardians_killed or self._suspects or self.forgives
                else f"it was lost: {_short(value)}"
            )
        if state in (TaskState.CANCELLED, TaskState.ABANDONED) and (ticket.stopped or self.closing):
            return ""
        if state is TaskState.CANCELLED and self.sheds:
            return ""
        if state is TaskState.ABANDONED and not self._crosses:
            return ""  # told to stop by its limit, and not quick enough
        return f"it ended {state.name}: {_short(value)}"

    def _is_excused(self, error: Any) -> bool:
        """Whether it is for want of descriptors, where there was such."""
        seen: set[int] = set()
        while self.starved and isinstance(error, BaseException) and id(error) not in seen:
            seen.add(id(error))
            if isinstance(error, OSError) and error.errno in _NO_ROOM:
                return True
            if "Too many open files" in str(error) or "descriptor" in str(error) or "payload" in str(error):
                return True
            error = error.__cause__ or error.__context__
        return False

    def violation(self, ticket: Ticket | None, what: str) -> None:
        """Something that must hold does not."""
        if len(self.violations) < MOST_TOLD:
            about = "" if ticket is None else f"task {ticket.number} ({ticket.kind}): "
            self.violations.append(about + what)

    # --- at the end of a life ---

    def wait(self, seconds: float) -> bool:
        """Wait until no task is open; False if some still are."""
        deadline = time.monotonic() + seconds
        while self.open and time.monotonic() < deadline:
            time.sleep(0.005)
        return not self.open

    def close(self, never_started: list[Any]) -> None:
        """Hold what was told against what was done; nothing is in flight any more."""
        for ticket in list(self.open.values())[:MOST_TOLD]:
            told = describe(ticket)
            self.violation(ticket, f"it never ended, and nothing is in flight any more; {told}")
        # What a task takes along beside itself comes on top: a worker that it leaves without descriptors.
        if self._innocent > self.kills + self._suspects and not self.forgives:
            reasons = "; ".join(f"{count} x {reason}" for reason, count in self._reasons.most_common(5))
            self.violation(None, f"{self._innocent} innocent tasks were lost by {self.kills} kills: {reasons}")
        called = effects.read(self.path)
        numbers = {number for number, _ in called}
        for (number, attempt), times in called.items():
            called_one = self._all.get(number)
            if called_one is None:
                self.violation(None, f"task {number} was called, and never handed over")
            elif not called_one.ends and called_one.state is not None:
                self.violation(called_one, "it was refused, and it was called")
            elif times > 1 and not called_one.expected.again:
                self.violation(called_one, f"attempt {attempt} was called {times} times")
        for number, ticket in self._all.items():
            if ticket.state is TaskState.SUCCEEDED and number not in numbers and not ticket.expected.joins:
                self.violation(ticket, "it went well, and its handler was never called")
        for handle in never_started:
            number = handle.task.get("n")  # a chunk of `map` has none
            if number in numbers and not self._all[number].expected.joins:
                told = f"{handle!r}, started {handle.started_at}, worker {handle.worker_pid}, {handle.attempts}"
                self.violation(self._all[number], f"the shutdown says that it never started, and it was called: {told}")


_UNKNOWN: Final = Expected()
# What is still to be known of a task that has ended; the rest, its payload above all, is let go of.
_ENDED: Final = {
    (again, joins): Expected(again=again, joins=joins) for again in (False, True) for joins in (False, True)
}


def outcome_of(handle: Any) -> tuple[TaskState, Any]:
    """How a handle or a future has ended, and its result or error."""
    if handle.cancelled():
        return TaskState.CANCELLED, None
    error = handle.exception(0)
    if isinstance(handle, TaskHandle):
        return handle.state, handle.result(0) if error is None else error
    return (TaskState.SUCCEEDED, handle.result(0)) if error is None else (_state_of_error(error), error)


def _state_of_error(error: BaseException) -> TaskState:
    if isinstance(error, (WorkerDiedError, BrokenProcessPool)):
        return TaskState.LOST
    if isinstance(error, (CancelledError, asyncio.CancelledError)):
        return TaskState.CANCELLED
    return TaskState.FAILED


def describe(ticket: Ticket) -> str:
    """What can be told of a task that has not ended."""
    handle = ticket.handle
    if not isinstance(handle, TaskHandle):
        return f"its future: {handle!r}"
    facts = [f"{handle!r}", f"attempt {handle.attempt}", f"worker {handle.worker_pid}"]
    return ", ".join(facts)


def _short(value: Any) -> str:
    text = repr(value)
    cause = getattr(value, "__cause__", None)
    if cause is not None:
        text += f" from {str(cause)[-600:]}"
    return text if len(text) < 900 else f"{text[:600]}…{text[-300:]}"
