"""Whether a task that did not succeed runs again, and when.

Holds: no budget is charged for another's fault. What a handler raises charges `max_attempts`, `Retry` too: it asks for
another attempt and says when, but cannot go on for ever. A dead worker charges `max_crashes`; a task that has used that
up is quarantined. `Defer` charges nothing. Time limits, cancellation and shutdown are ends, not failures: nobody asks
here about them.
"""

import random
from dataclasses import dataclass
from typing import Final

from taskback._again import Defer, Retry
from taskback.scheduler.entry import Budget, Place
from taskback.scheduler.rules import Rules

SHORTEST_DEFER: Final = 0.01  # seconds: a task that always defers itself for 0 s must let others have its worker


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a task that did not succeed.

    Attributes:
        again (Place | None): RETRY or DEFER: where it waits until it runs again; None if it is over.
        at (float): When it may run again, on the monotonic clock.
        why (str): Why it is over, as a clause; empty where its error says all.
    """

    again: Place | None = None
    at: float = 0.0
    why: str = ""


def after_error(
    rules: Rules, budget: Budget, error: BaseException, now: float, epoch: float, chance: random.Random
) -> Verdict:
    """The handler raised. `epoch` is the time now in seconds since the epoch, for `Defer(until=)`."""
    if isinstance(error, Defer):
        budget.defers += 1
        return Verdict(Place.DEFER, now + max(SHORTEST_DEFER, error.delay(epoch)))
    budget.failures += 1
    asked = isinstance(error, Retry)
    if not asked and not rules.retries_after(error):
        why = "" if rules.max_attempts == 1 else f"{type(error).__name__} is not in retry_on"
        return Verdict(why=why)
    if budget.failures >= rules.max_attempts:
        last = f"that was attempt {budget.failures} of {rules.max_attempts}"
        return Verdict(why=last if asked or rules.max_attempts > 1 else "")
    if isinstance(error, Retry) and error.after is not None:
        return Verdict(Place.RETRY, now + error.after)
    return Verdict(Place.RETRY, now + rules.backoff.seconds(budget.failures, chance))


def after_crash(rules: Rules, budget: Budget, now: float, chance: random.Random) -> Verdict:
    """Its worker died with it."""
    budget.crashes += 1
    if budget.crashes >= rules.max_crashes:
        return Verdict(
            why="" if rules.max_crashes == 1 else f"quarantined: it has taken {budget.crashes} workers along"
        )
    return Verdict(Place.RETRY, now + rules.backoff.seconds(budget.crashes, chance))
