"""Handlers by task type, each with its policy."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar, overload

from taskback import _clock
from taskback._call import Handler
from taskback._errors import UnknownTaskTypeError
from taskback._public import lives_in
from taskback._task import Task, plain
from taskback.scheduler.rules import Rules, read_rules

H = TypeVar("H", bound=Callable[..., Any])


@lives_in("taskback")
@dataclass(frozen=True, slots=True, kw_only=True)
class Policy(Rules):
    """How tasks of one type are treated.

    Attributes:
        timeout (float | None): Seconds that a task may run, then it is stopped. None leaves it to the backend.
        idle_timeout (float | None): Seconds that a task may run without a `report()`, then it is stopped. None sets no
            limit.
        queue_timeout (float | None): Seconds that a task may wait before it is first begun, from its submission or,
            where it was delayed, from its time. None sets no limit.
        max_attempts (int): How many attempts may fail by raising; the last one's error is the task's.
        retry_on (type[Exception] | tuple[type[Exception], ...] | None): After which errors it is tried again; None
            says all.
        backoff (Backoff): How long it waits for that.
        max_crashes (int): How many workers it may take along; the last one makes it LOST.
        priority (int): Higher first; a submission may say another.
        fair_by (str | None): A field of the task; its values take turns, within a priority.
        max_running (int | None): How many may run at a time; None sets no cap.
        reserved (int): How many may run before others get a worker. Others may borrow what is idle of it; it is given
            back with the first worker that is free.
        key (str | Callable[[dict], Hashable] | None): A field of the task, or a function of it. Of those with the same
            key one runs at a time, in order of submission. A task whose key is None has none.
        coalesce (str | Callable[[dict, dict], dict] | None): What becomes of a task whose key has one waiting that
            never began. "drop" joins that; "rerun" too, and its contents are then the new ones; a function makes one
            dict of the one that waits and the new one. One that has begun is never joined: the new task runs after it.

    Raises:
        TypeError: A field has the wrong type.
        ValueError: A field makes no sense, by itself or beside another.
    """

    timeout: float | None = None
    idle_timeout: float | None = None

    def __post_init__(self) -> None:
        Rules.__post_init__(self)  # not super(): a class with slots is made anew, and super() knows the old one
        object.__setattr__(self, "timeout", _clock.checked_limit("timeout", self.timeout))
        object.__setattr__(self, "idle_timeout", _clock.checked_limit("idle_timeout", self.idle_timeout))


NO_POLICY: Final = Policy()


@lives_in("taskback")
class TaskRouter:
    """A handler that passes each task on by its `"type"`.

    Args:
        fallback (Callable[[dict], Any] | None): Takes the tasks of types that no handler is written down for.
        policy_for (Callable[[str], Policy] | None): Gives the policy of such types, which are made at run time.

    Example:
        ```python
        tasks = TaskRouter()

        @tasks.handler("consolidation", timeout=120)
        def consolidate(task: dict) -> dict: ...
        ```
    """

    def __init__(self, *, fallback: Handler | None = None, policy_for: Callable[[str], Policy] | None = None) -> None:
        self._handlers: dict[str, Handler] = {}
        self._policies: dict[str | None, Policy] = {None: NO_POLICY}  # None: of whatever has none of its own
        self._fallback = None if fallback is None else _checked(fallback)
        self._policy_for = None if policy_for is None else _checked(policy_for)
        self._defaults: dict[str, Any] = {}

    @property
    def types(self) -> tuple[str, ...]:
        """The types that have a handler of their own.

        Returns:
            tuple[str, ...]: Sorted.
        """
        return tuple(sorted(self._handlers))

    @overload
    def handler(self, type: str, function: None = None, **policy: Any) -> Callable[[H], H]: ...

    @overload
    def handler(self, type: str, function: H, **policy: Any) -> H: ...

    def handler(self, type: str, function: Any = None, **policy: Any) -> Any:
        """Write down the handler of a type, as a decorator or with the function at hand.

        Args:
            type (str): The task's `"type"`.
            function (Callable[[dict], Any] | None): The handler, sync or async; None makes this a decorator.
            **policy (Any): The fields of a `Policy`.

        Returns:
            Callable[[dict], Any]: The function, unchanged.

        Raises:
            TypeError: `type` is no string, or the handler not callable.
            ValueError: The type has a handler already, or the policy makes no sense or has unknown fields.
        """
        if not isinstance(type, str):
            raise TypeError(f"a task type is a string, not {type!r}")
        type = plain(type)
        written = read_rules(Policy, {**self._defaults, **policy})

        def write_down(handler: H) -> H:
            if type in self._handlers:
                raise ValueError(f"task type {type!r} has a handler already: {self._handlers[type]!r}")
            self._handlers[type] = _checked(handler)
            self._policies[type] = NO_POLICY if written == NO_POLICY else written
            return handler

        return write_down if function is None else write_down(function)

    def policy(self, type: str | None) -> Policy:
        """The policy of a type.

        Args:
            type (str | None): The task's `"type"`.

        Returns:
            Policy: An empty one for a type that nothing is written down for.
        """
        found = self._policies.get(None if type is None else plain(type))
        if found is not None:
            return found
        if type is None or self._policy_for is None:
            return self._policies[None]
        policy = self._policy_for(type)
        if not isinstance(policy, Policy):
            raise TypeError(f"policy_for({type!r}) must give a Policy, not a {policy.__class__.__name__}")
        return _filled(policy, self._defaults)

    @property
    def policies(self) -> dict[str, Policy]:
        """The policies that are written down.

        Returns:
            dict[str, Policy]: By type; a copy.
        """
        return {type: policy for type, policy in self._policies.items() if type is not None}

    def with_defaults(self, **policy: Any) -> "TaskRouter":
        """The same handlers, with policies for whatever says nothing of its own: types without them, tasks without one.

        Args:
            **policy (Any): Fields of a `Policy`.

        Returns:
            TaskRouter: Another router; this one stays as it is.

        Raises:
            TypeError: A field has the wrong type.
            ValueError: A field makes no sense, by itself or beside one of a type's, or is unknown.
        """
        read_rules(Policy, policy)
        made = TaskRouter(fallback=self._fallback, policy_for=self._policy_for)
        made._handlers = dict(self._handlers)
        made._defaults = {**self._defaults, **policy}
        made._policies = {type: _filled(each, policy) for type, each in self._policies.items()}
        return made

    def check(self, type: str | None) -> None:
        """Refuse a type that nobody would take.

        Args:
            type (str | None): The task's `"type"`.

        Raises:
            UnknownTaskTypeError: There is no handler for it, and no fallback.
        """
        self._find(type)

    def __call__(self, task: Task) -> Any:
        return self._find(task.get("type"))(task)

    def _find(self, type: str | None) -> Handler:
        found = self._handlers.get(plain(type), self._fallback) if type is not None else self._fallback
        if found is None:
            raise UnknownTaskTypeError(type, self._handlers)
        return found

    def __repr__(self) -> str:
        return f"<TaskRouter {', '.join(self.types) or 'without types'}>"


def _filled(policy: Policy, defaults: dict[str, Any]) -> Policy:
    """The policy, with these values in the fields that say nothing."""
    return replace(
        policy, **{name: value for name, value in defaults.items() if getattr(policy, name) == getattr(NO_POLICY, name)}
    )


def _checked(function: Any) -> Any:
    if not callable(function):
        raise TypeError(f"a handler must be callable, not a {type(function).__name__}")
    return function
