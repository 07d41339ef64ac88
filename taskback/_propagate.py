"""Chosen context variables travel beside a task to a process, where the handler finds them set.

A variable cannot be pickled. It travels by the name of a module that has it, and of its attribute there, for the worker
to import; its value, as it is when the task is submitted, is pickled with that name. What is not set stays so.
"""

import contextvars
import importlib
import sys
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from typing import Any, Final

from taskback import _codec, _role
from taskback._errors import TaskNotSerializableError

_UNSET: Final = object()
_MAIN: Final = ("__main__", "__mp_main__")  # which no worker imports

_found: dict[str, ContextVar[Any]] = {}  # in a worker, by name


class Propagated:
    """The variables that a backend's tasks take along.

    Args:
        variables (Iterable[ContextVar | str]): Each itself, or as "package.module:name".

    Attributes:
        modules (frozenset[str]): Those that have them.

    Raises:
        TypeError: This is no context variable.
        ValueError: No module that a worker could import has it.
    """

    def __init__(self, variables: Iterable[ContextVar[Any] | str]) -> None:
        if isinstance(variables, (str, ContextVar)):
            raise TypeError(f"propagate takes a list of context variables, not a single one: [{variables!r}]")
        self._variables = tuple(
            (name, _variable(name)) if isinstance(name, str) else _named(name) for name in variables
        )
        self.modules = frozenset(name.partition(":")[0] for name, _ in self._variables)

    def packed(self) -> bytes | None:
        """What they are set to here; None if none is.

        Raises:
            TaskNotSerializableError: A value cannot be pickled; it names the variable.
        """
        values = {}
        for name, variable in self._variables:
            value = variable.get(_UNSET)
            if value is not _UNSET:
                values[name] = value
        return _codec.dumps_or_refuse(values, "context", TaskNotSerializableError) if values else None


def propagated(variables: Iterable[ContextVar[Any] | str]) -> Propagated | None:
    """The same; None if they are none."""
    found = Propagated(variables)
    return found if found.modules else None


def _named(variable: Any) -> tuple[str, ContextVar[Any]]:
    """A variable and the name that a worker finds it by.

    Several modules may have it. A module that imports it from another was begun before that one, as a rule, so the last
    one is taken: the one that defines it, which costs a worker the least.
    """
    if not isinstance(variable, ContextVar):
        raise TypeError(f"propagate takes context variables and names of some, not a {type(variable).__name__}")
    names = list(_names(variable))
    for name in reversed(names):
        if name.partition(":")[0] not in _MAIN:
            return name, variable
    where = "only the main script has it, which workers never import" if names else "no module has it for a global"
    raise ValueError(
        f"the context variable {variable.name!r} cannot be found by a worker, for {where}: make it a global of a "
        'module, or say where it is, as "package.module:name"'
    )


def _names(variable: ContextVar[Any]) -> Iterator[str]:
    for name, module in list(sys.modules.items()):
        content = getattr(module, "__dict__", None)
        importable = getattr(module, "__spec__", None) is not None or name in _MAIN
        for attribute, value in list(content.items()) if isinstance(content, dict) and importable else ():
            if value is variable:
                yield f"{name}:{attribute}"


def _variable(name: str) -> ContextVar[Any]:
    """The variable of a name."""
    module, _, path = name.partition(":")
    if not module or not path:
        raise ValueError(f'the name of a context variable is "package.module:name", not {name!r}')
    if module in _MAIN:
        raise ValueError(f"{name!r} cannot be found by a worker, which never imports the main script")
    try:
        found: Any = importlib.import_module(module)
        for attribute in path.split("."):
            found = getattr(found, attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"there is no context variable {name!r}: {error}") from error
    if not isinstance(found, ContextVar):
        raise TypeError(f"{name!r} is a {type(found).__name__}, not a context variable")
    return found


def context_with(packed: bytes | None) -> contextvars.Context:
    """A context in which nothing is set but what was packed; raises whatever importing or unpickling raises."""
    context = contextvars.Context()
    if packed is not None:
        for name, value in _codec.loads(packed).items():
            variable = _found.get(name)
            if variable is None:
                with _role.importing(name):
                    variable = _found[name] = _variable(name)
            context.run(variable.set, value)
    return context
