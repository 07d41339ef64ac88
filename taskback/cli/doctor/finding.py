"""What a check is, and what it finds."""

import enum
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, Final

from taskback import ProcessPoolTaskBackend, Promises

# What a process backend promises at all; what it lacks here, it lacks everywhere.
ALL: Final = tuple(each.name for each in fields(Promises) if getattr(ProcessPoolTaskBackend.promises, each.name))


class Mark(enum.Enum):
    """How a check went."""

    OK = "ok"
    LIMITED = "limited"  # there, and less of it than would be good
    MISSING = "missing"  # not granted
    UNKNOWN = "unknown"  # could not be tried, or did not end


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found.

    Attributes:
        mark (Mark): How it went.
        seen (str): What was seen.
        means (str): What follows from it; empty takes what the check says of what it looks for.
        weakens (tuple[str, ...] | None): The promises that do not stand; None takes the check's, unless all is well.
        facts (dict[str, Any]): The same for machines.
    """

    mark: Mark
    seen: str
    means: str = ""
    weakens: tuple[str, ...] | None = None
    facts: dict[str, Any] = field(default_factory=dict)


def ok(seen: str, **facts: Any) -> Finding:
    """All is well."""
    return Finding(Mark.OK, seen, weakens=(), facts=facts)


def limited(seen: str, means: str, *weakens: str, **facts: Any) -> Finding:
    """There is less than would be good."""
    return Finding(Mark.LIMITED, seen, means, weakens, facts)


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that is tried.

    Attributes:
        name (str): What it is called.
        look (Callable[[], Finding]): Tries it; an exception says that it is not granted.
        means (str): What follows where it is not.
        weakens (tuple[str, ...]): The promises that do not stand then.
    """

    name: str
    look: Callable[[], Finding]
    means: str
    weakens: tuple[str, ...] = ()
