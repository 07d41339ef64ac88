"""How far a handler says that it is; apart from the rest of what it sees, so that a worker starts sooner.

(`dataclasses` imports `inspect`, which takes as long as all of ours.)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from taskback._public import lives_in


@lives_in("taskback")
@dataclass(frozen=True, slots=True)
class Progress:
    """How far a handler says that it is.

    Attributes:
        done (float | None): Units of work done, in the handler's own unit.
        total (float | None): Units in all, or None if not known.
        stage (str | None): What it is doing now.
        data (Mapping[str, Any]): Whatever else the last report gave.
    """

    done: float | None = None
    total: float | None = None
    stage: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict)
