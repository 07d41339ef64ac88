"""The rules of a task type: what may run next, how often, and what the rest waits for.

A rule that makes no sense is refused where it is written: a wrong type is a TypeError, all else a ValueError.
"""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, TypeVar

from taskback import _clock
from taskback._options import checked_count
from taskback._task import Task
from taskback.scheduler.backoff import Backoff

_BACKOFF: Final = Backoff()

Merge = Callable[[Task, Task], Task]  # the dict that waits, and the new one


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How the tasks of one type are scheduled.

    Attributes:
        priority (int): Higher first; a submission may say another.
        fair_by (str | None): A field of the task; its values take turns, within a priority. Those without it share one.
        max_running (int | None): How many may run at a time; None sets no cap.
        reserved (int): How many may run before others get a worker. Others may borrow what is idle of it; it is given
            back with the first worker that is free.
        key (str | Callable[[dict], Hashable] | None): A field of the task, or a function of it. Of those with the same
            key one runs at a time, in order of submission. A task whose key is None has none.
        coalesce (str | Callable[[dict, dict], dict] | None): What becomes of a task whose key has one waiting that
            never began. "drop" joins that; "rerun" too, and its contents are then the new ones; a function makes one
            dict of the one that waits and the new one. One that has begun is never joined: the new task runs after it.
        queue_timeout (float | None): Seconds that a task may wait before it is first begun, from its submission or,
            where it was delayed, from its time.
        max_attempts (int): How many attempts may fail by raising; the last one's error is the task's.
        retry_on (type[Exception] | tuple[type[Exception], ...] | None): After which errors it is tried again; None
            says all.
        backoff (Backoff): How long it waits for that.
        max_crashes (int): How many workers it may take along; the last one makes it LOST.

    Raises:
        TypeError: A field has the wrong type.
        ValueError: A field makes no sense, by itself or beside another.
    """

    priority: int = 0
    fair_by: str | None = None
    max_running: int | None = None
    reserved: int = 0
    key: str | Callable[[Task], Hashable] | None = None
    coalesce: str | Merge | None = None
    queue_timeout: float | None = None
    max_attempts: int = 1
    retry_on: type[Exception] | tuple[type[Exception], ...] | None = None
    backoff: Backoff = _BACKOFF
    max_crashes: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.priority, bool) or not isinstance(self.priority, int):
            raise TypeError(f"priority must be a whole number, not {type(self.priority).__name__}")
        _check_field("fair_by", self.fair_by)
        self._check_capacity()
        self._check_key()
        object.__setattr__(self, "queue_timeout", _clock.checked_limit("queue_timeout", self.queue_timeout))
        self._check_attempts()

    def _check_capacity(self) -> None:
        checked_count("reserved", self.reserved, least=0)
        if self.max_running is None:
            return
        checked_count("max_running", self.max_running, least=1)
        if self.reserved > self.max_running:
            raise ValueError(f"reserved={self.reserved} is above max_running={self.max_running}")

    def _check_key(self) -> None:
        if not callable(self.key):
            _check_field("key", self.key)
        if self.coalesce is None:
            return
        if isinstance(self.coalesce, str):
            if self.coalesce not in ("drop", "rerun"):
                raise ValueError(f'coalesce must be "drop", "rerun" or a function, not {self.coalesce!r}')
        elif not callable(self.coalesce):
            raise TypeError(f'coalesce must be "drop", "rerun" or a function, not a {type(self.coalesce).__name__}')
        if self.key is None:
            raise ValueError("coalesce needs a key: without one no task is known to be the same as another")

    def _check_attempts(self) -> None:
        checked_count("max_attempts", self.max_attempts, least=1)
        checked_count("max_crashes", self.max_crashes, least=1)
        if not isinstance(self.backoff, Backoff):
            raise TypeError(f"backoff must be a Backoff, not a {type(self.backoff).__name__}")
        if self.retry_on is None:
            return
        kinds: tuple[object, ...] = self.retry_on if isinstance(self.retry_on, tuple) else (self.retry_on,)
        for kind in kinds:
            if not (isinstance(kind, type) and issubclass(kind, Exception)):
                raise TypeError(f"retry_on takes types of exceptions, not {kind!r}")
        if self.max_attempts == 1:
            raise ValueError("retry_on without max_attempts: with one attempt nothing is tried again")
        object.__setattr__(self, "retry_on", kinds)

    def retries_after(self, error: BaseException) -> bool:
        """Whether such an error is tried again, if an attempt is left. Runs no user code, as `except` does not."""
        kinds = (Exception,) if self.retry_on is None else self.retry_on
        assert isinstance(kinds, tuple)
        return any(kind in type(error).__mro__ for kind in kinds)


def _check_field(name: str, value: object) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        raise TypeError(f"{name} must name a field of the task, not be a {type(value).__name__}")
    if not value:
        raise ValueError(f"{name} must name a field of the task, not be empty")


R = TypeVar("R", bound=Rules)
PLAIN: Final = Rules()  # of a type that nothing is written down for


def read_rules(kind: type[R], given: Mapping[str, Any]) -> R:
    """The rules that were written down by name; a name that there is not is a ValueError."""
    names = [field.name for field in fields(kind)]
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise ValueError(f"unknown policy {unknown[0]!r}; a type takes {', '.join(names)}")
    return kind(**given)


def check_floors(rules: Mapping[str, Rules], workers: int) -> None:
    """Refuse floors that cannot all be kept.

    Raises:
        ValueError: More is reserved than there are workers.
    """
    floors = {type: each.reserved for type, each in rules.items() if each.reserved}
    if sum(floors.values()) > workers:
        told = ", ".join(f"{floor} for {type!r}" for type, floor in sorted(floors.items()))
        raise ValueError(f"reserved adds up to {sum(floors.values())} of {workers} workers: {told}")
