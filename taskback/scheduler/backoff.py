"""How long a task waits before it is tried again."""

import math
import random
from dataclasses import dataclass

from taskback import _clock
from taskback._public import lives_in


@lives_in("taskback")
@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits that grow from one to the next, up to a limit, and differ from task to task.

    Attributes:
        initial (float): Seconds before the second attempt.
        factor (float): How many times longer each further wait is; 1 keeps it.
        maximum (float): Seconds that no wait exceeds.
        jitter (float): By which part a wait may be shorter, from 0 to 1, at random, so that tasks that failed together
            do not come back together. Shorter alone, so that those at the maximum differ too.

    Raises:
        TypeError: A field is no number.
        ValueError: A field makes no sense.
    """

    initial: float = 1.0
    factor: float = 2.0
    maximum: float = 300.0
    jitter: float = 0.1

    def __post_init__(self) -> None:
        initial = _clock.checked_seconds("initial", self.initial)
        maximum = _clock.checked_seconds("maximum", self.maximum)
        if math.isinf(maximum):
            raise ValueError("maximum must be finite")
        if initial > maximum:
            raise ValueError(f"initial={initial:g} is above maximum={maximum:g}")
        for name, value in (("factor", self.factor), ("jitter", self.jitter)):
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                raise TypeError(f"{name} must be a number, not {type(value).__name__}")
        if not 1 <= self.factor < math.inf:
            raise ValueError(f"factor must be at least 1 and finite, not {self.factor!r}")
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"jitter must be from 0 to 1, not {self.jitter!r}")

    def seconds(self, number: int, chance: random.Random) -> float:
        """The wait after a failure.

        Args:
            number (int): Which failure of the task it was, from 1.
            chance (random.Random): Where the jitter comes from; seeded alike, it gives the same waits.

        Returns:
            float: Seconds.
        """
        try:
            wait = min(self.maximum, self.initial * self.factor ** (number - 1))
        except OverflowError:
            wait = self.maximum if self.initial else 0.0
        return wait * (1 - self.jitter * chance.random())
