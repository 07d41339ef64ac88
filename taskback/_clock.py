"""The clock and the ids: monotonic inside, epoch outside.

All waiting is done on the monotonic clock. Epoch times that callers see are that clock plus one offset taken
when the module is loaded, so that a stepped system clock cannot put an end before its start.
"""

import itertools
import math
import os
import time

_OFFSET_NS = time.time_ns() - time.monotonic_ns()

monotonic = time.monotonic
monotonic_ns = time.monotonic_ns


def epoch_ns(at_monotonic_ns: int) -> int:
    """A reading of the monotonic clock as nanoseconds since the epoch."""
    return at_monotonic_ns + _OFFSET_NS


def epoch(at_monotonic_ns: int | None) -> float | None:
    """A reading of the monotonic clock as seconds since the epoch; None stays None."""
    return None if at_monotonic_ns is None else (at_monotonic_ns + _OFFSET_NS) / 1e9


def deadline_after(timeout: float | None) -> float:
    """Turn a caller's timeout into a point on the monotonic clock.

    Args:
        timeout (float | None): Seconds; None means no limit.

    Returns:
        float: The deadline, `math.inf` without a limit.

    Raises:
        TypeError: `timeout` is no number.
        ValueError: `timeout` is negative or NaN.
    """
    return math.inf if timeout is None else monotonic() + checked_seconds("timeout", timeout)


def checked_seconds(name: str, value: object) -> float:
    """A number of seconds, at least 0 (infinity included), or an error that names it."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    if not value >= 0:  # NaN compares false
        raise ValueError(f"{name} must be at least 0 seconds, not {value!r}")
    return float(value)


def checked_limit(name: str, value: object) -> float | None:
    """A time limit: None, or a positive number of seconds; anything else is an error that names it."""
    if value is None:
        return None
    seconds = checked_seconds(name, value)
    if seconds == 0:
        raise ValueError(f"{name} must be more than 0 seconds; None means no limit")
    return None if math.isinf(seconds) else seconds


_counter = itertools.count()
_process_part = os.urandom(4).hex()


def _reseed_after_fork() -> None:
    global _process_part
    _process_part = os.urandom(4).hex()  # parent and child count on from the same number


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reseed_after_fork)


def new_task_id() -> str:
    """A task id: 30 characters, in order of time, unlike any other of this or another process."""
    count = next(_counter) & 0xFFFFFF
    return f"{monotonic_ns() + _OFFSET_NS:016x}{count:06x}{_process_part}"
