"""What the rules of a type read from a task: its key, and the value that it takes turns by.

Threads: the submitter's, under no lock: a key may be a function of the program's, and hashing may be its code too.
"""

from collections.abc import Hashable
from typing import Any

from taskback._task import Task
from taskback.scheduler.rules import Rules


def key_of(rules: Rules, task: Task) -> Hashable:
    """A task's key, None if it has none. Its function is user code: never called under a lock.

    Raises:
        TypeError: The key cannot be hashed.
        ValueError: The task lacks the field. To run it beside others of its key would be a silent fault.
    """
    if rules.key is None:
        return None
    if callable(rules.key):
        return _hashable("key", rules.key(task))
    if rules.key not in task:
        raise ValueError(
            f"the task has no field {rules.key!r}, which is the key of its type; None says that it has none"
        )
    return _hashable("key", task[rules.key])


def fair_value_of(rules: Rules, task: Task) -> Hashable:
    """The value that a task takes turns by.

    Raises:
        TypeError: The value cannot be hashed.
    """
    return None if rules.fair_by is None else _hashable("fair_by", task.get(rules.fair_by))


def _hashable(name: str, value: Any) -> Hashable:
    try:
        hash(value)
    except TypeError as error:
        raise TypeError(f"{name} must give something that can be hashed, not a {type(value).__name__}") from error
    found: Hashable = value
    return found
