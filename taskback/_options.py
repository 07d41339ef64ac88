"""The options of one submission, checked."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from taskback import _clock
from taskback._errors import UnsupportedOptionError
from taskback._promises import Promises
from taskback._task import plain

UNSET: Final = object()  # `timeout=None` means no limit, which is not the same as not saying
MAX_ID_CHARACTERS: Final = 64
_NAMES: Final = ("id", "delay", "not_before", "priority", "timeout", "context")


@dataclass(frozen=True, slots=True)
class Options:
    """What a submission asks for beside its task; `ready_at` is on the monotonic clock, 0 for at once.

    A `priority` of None leaves it to the type's policy.
    """

    id: str | None = None
    ready_at: float = 0.0
    priority: int | None = None
    timeout: object = UNSET
    context: Mapping[str, str] | None = None


NO_OPTIONS: Final = Options()


def read_options(backend: str, promises: Promises, given: Mapping[str, Any]) -> Options:
    """Check the options of a submission against their own rules and against what the backend keeps."""
    if not given:
        return NO_OPTIONS
    unknown = sorted(set(given) - set(_NAMES))
    if unknown:
        raise TypeError(f"unknown option {unknown[0]!r}; a submission takes {', '.join(_NAMES)}")
    return Options(
        id=_id(given.get("id")),
        ready_at=_ready_at(backend, promises, given.get("delay"), given.get("not_before")),
        priority=_priority(backend, promises, given.get("priority")),
        timeout=_timeout(backend, promises, given.get("timeout", UNSET)),
        context=_context(given.get("context")),
    )


def _id(value: Any) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise TypeError(f"id must be a string, not {type(value).__name__}")
    if not 0 < len(value) <= MAX_ID_CHARACTERS:
        raise ValueError(f"id must have 1 to {MAX_ID_CHARACTERS} characters, not {len(value)}")
    return plain(value)


def _ready_at(backend: str, promises: Promises, delay: Any, not_before: Any) -> float:
    if delay is None and not_before is None:
        return 0.0
    if delay is not None and not_before is not None:
        raise ValueError("delay and not_before exclude each other")
    if not promises.delay:
        raise UnsupportedOptionError(backend, "delay", "it runs a task as it is submitted")
    if delay is not None:
        seconds = _clock.checked_seconds("delay", delay)
        if math.isinf(seconds):
            raise ValueError("delay must be finite")
        return _clock.monotonic() + seconds
    return _clock.monotonic() + _seconds_until(not_before)


def _seconds_until(moment: Any) -> float:
    """How far off a moment is: an aware datetime, or seconds since the epoch."""
    if isinstance(moment, datetime):
        if moment.tzinfo is None:
            raise ValueError("not_before needs a time zone; a naive datetime could mean anything")
        moment = moment.timestamp()
    return max(0.0, _finite("not_before", moment) - _clock.epoch_ns(_clock.monotonic_ns()) / 1e9)


def _finite(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a datetime or seconds since the epoch, not {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, not {value!r}")
    return float(value)


def _priority(backend: str, promises: Promises, value: Any) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"priority must be a whole number, not {type(value).__name__}")
    if value and not promises.priority:
        raise UnsupportedOptionError(backend, "priority", "its pool has a queue of its own, first come first served")
    return value


def _timeout(backend: str, promises: Promises, value: Any) -> object:
    if value is UNSET:
        return UNSET
    limit = _clock.checked_limit("timeout", value)
    if limit is not None and not promises.timeout:
        raise UnsupportedOptionError(backend, "timeout", "it has no way to stop a task of its pool")
    return limit


def _context(value: Any) -> Mapping[str, str] | None:
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(f"context must map strings to strings, not be a {type(value).__name__}")
    return value


def checked_count(name: str, value: object, least: int) -> int:
    """A whole number of at least `least`, or an error that names it."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")
    return value
