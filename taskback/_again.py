"""What a handler raises to be called again later.

They are no errors of ours: they say what is to become of the task, and end as its error only where it may not run
again.
"""

import math
from datetime import datetime
from typing import Any

from taskback import _clock
from taskback._public import lives_in


@lives_in("taskback")
class Retry(Exception):  # not an error: a request, by name
    """Raised by a handler: this attempt has failed, try again.

    It charges an attempt, whatever `retry_on` says; where no attempt is left, the task ends FAILED with it.

    Args:
        after (float | None): Seconds until then; None takes the type's `backoff`.

    Raises:
        TypeError: `after` is no number.
        ValueError: `after` is negative, infinite or NaN.
    """

    def __init__(self, after: float | None = None) -> None:
        self.after = None if after is None else _finite_seconds("after", after)
        super().__init__("asked to be tried again" + ("" if after is None else f" after {after:g} s"))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.after,)


@lives_in("taskback")
class Defer(Exception):
    """Raised by a handler: not now. The task goes back to the queue, and no attempt is charged.

    Args:
        seconds (float | None): How long it is to wait.
        until (datetime | None): Until when, with a time zone. One of the two is given.

    Raises:
        TypeError: An argument has the wrong type, or not exactly one is given.
        ValueError: `seconds` is negative, infinite or NaN, or `until` has no time zone.
    """

    def __init__(self, seconds: float | None = None, *, until: datetime | None = None) -> None:
        if (seconds is None) == (until is None):
            raise TypeError("Defer takes either seconds or until=")
        if until is not None and not isinstance(until, datetime):
            raise TypeError(f"until must be a datetime, not {type(until).__name__}")
        if until is not None and until.tzinfo is None:
            raise ValueError("until needs a time zone; a naive datetime could mean anything")
        self.seconds = None if seconds is None else _finite_seconds("seconds", seconds)
        self._until_epoch = None if until is None else until.timestamp()  # a time zone is user code: asked here, once
        self.until = until
        super().__init__(f"deferred for {seconds:g} s" if until is None else f"deferred until {until.isoformat()}")

    def delay(self, epoch: float) -> float:
        """How long it is to wait.

        Args:
            epoch (float): The time now, in seconds since the epoch.

        Returns:
            float: Seconds, at least 0.
        """
        if self._until_epoch is not None:
            return max(0.0, self._until_epoch - epoch)
        assert self.seconds is not None
        return self.seconds

    def __reduce__(self) -> tuple[Any, ...]:
        return _defer, (type(self), self.seconds, self.until)


def _defer(kind: type[Defer], seconds: float | None, until: datetime | None) -> Defer:
    return kind(seconds, until=until)  # pickle passes no keywords


def _finite_seconds(name: str, value: object) -> float:
    seconds = _clock.checked_seconds(name, value)
    if math.isinf(seconds):
        raise ValueError(f"{name} must be finite")
    return seconds
