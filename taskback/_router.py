"""Handlers by task type, each with its policy."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, overload

from taskback import _clock
from taskback._call import Handler
from taskback._errors import UnknownTaskTypeError
from taskback._task import Task, plain

H = TypeVar("H", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How tasks of one type are treated.

    Attributes:
        timeout (float | None): Seconds that a task may run, then it is stopped. None leaves it to the backend.

    Raises:
        TypeError: A field has the wrong type.
        ValueError: A field makes no sense.
    """

    timeout: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "timeout", _clock.checked_limit("timeout", self.timeout))


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
        self._policies: dict[str, Policy] = {}
        self._fallback = None if fallback is None else _checked(fallback)
        self._policy_for = None if policy_for is None else _checked(policy_for)

    @property
    def types(self) -> tuple[str, ...]:
        """The types that have a handler of their own.

        Returns:
            tuple[str, ...]: Sorted.
        """
        return tuple(sorted(self._handlers))

    @overload
    def handler(self, type: str, function: None = None, *, timeout: float | None = None) -> Callable[[H], H]: ...

    @overload
    def handler(self, type: str, function: H, *, timeout: float | None = None) -> H: ...

    def handler(self, type: str, function: Any = None, *, timeout: float | None = None) -> Any:
        """Write down the handler of a type, as a decorator or with the function at hand.

        Args:
            type (str): The task's `"type"`.
            function (Callable[[dict], Any] | None): The handler, sync or async; None makes this a decorator.
            timeout (float | None): Seconds that such a task may run; None leaves it to the backend.

        Returns:
            Callable[[dict], Any]: The function, unchanged.

        Raises:
            TypeError: `type` is no string, or the handler not callable.
            ValueError: The type has a handler already, or the policy makes no sense.
        """
        if not isinstance(type, str):
            raise TypeError(f"a task type is a string, not {type!r}")
        type = plain(type)
        policy = Policy(timeout=timeout)

        def write_down(handler: H) -> H:
            if type in self._handlers:
                raise ValueError(f"task type {type!r} has a handler already: {self._handlers[type]!r}")
            self._handlers[type] = _checked(handler)
            self._policies[type] = policy
            return handler

        return write_down if function is None else write_down(function)

    def policy(self, type: str | None) -> Policy:
        """The policy of a type.

        Args:
            type (str | None): The task's `"type"`.

        Returns:
            Policy: An empty one for a type that nothing is written down for.
        """
        if type is None:
            return Policy()
        type = plain(type)
        if type in self._policies:
            return self._policies[type]
        return Policy() if self._policy_for is None else self._policy_for(type)

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


def _checked(function: Any) -> Any:
    if not callable(function):
        raise TypeError(f"a handler must be callable, not a {type(function).__name__}")
    return function
