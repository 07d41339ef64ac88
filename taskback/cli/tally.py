"""How a run stands: counts, rate, time left."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from taskback import TaskState

SUCCEEDED: Final = TaskState.SUCCEEDED.value
PROBLEMS_KEPT: Final = 5  # of the many failures a run may have, these are shown at its end


@dataclass(frozen=True, slots=True)
class Figures:
    """What a progress display shows.

    Attributes:
        done (int): Tasks with a result, those of earlier runs included.
        total (int | None): Tasks in all; None if nobody knows.
        exact (bool): The whole input has been read, so that `total` is no estimate.
        failed (int): Those of `done` that did not succeed.
        running (int): Tasks that run now.
        rate (float): Results a second, in this run.
    """

    done: int
    total: int | None
    exact: bool
    failed: int
    running: int
    rate: float

    @property
    def seconds_left(self) -> float | None:
        """At the present rate; None if that cannot be said."""
        if self.total is None or self.rate <= 0:
            return None
        return max(0, self.total - self.done) / self.rate


class Tally:
    """Counts results. Used on the main thread alone."""

    def __init__(self, earlier: Mapping[str, int], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self.earlier = Counter(earlier)
        self.now: Counter[str] = Counter()
        self.problems: list[str] = []

    def count(self, state: str, problem: str | None) -> None:
        """Count one result."""
        self.now[state] += 1
        if problem is not None and len(self.problems) < PROBLEMS_KEPT:
            self.problems.append(problem)

    @property
    def seconds(self) -> float:
        """How long this run has lasted."""
        return self._clock() - self._began

    @property
    def all(self) -> Counter[str]:
        """The counts of all runs on this results file."""
        return self.earlier + self.now

    @property
    def all_succeeded(self) -> bool:
        """Whether every result there is, earlier runs' included, is a success."""
        return set(self.all) <= {SUCCEEDED}

    def figures(self, *, total: int | None, exact: bool, running: int) -> Figures:
        """What to show now."""
        done = self.all.total()
        return Figures(
            done=done,
            total=total if total is None else max(total, done),
            exact=exact,
            failed=done - self.all[SUCCEEDED],
            running=running,
            rate=self.now.total() / max(self.seconds, 1e-9),
        )
