"""The backend of the whole program.

Threads: any. Locks: none. Of two threads that make the first one at once both get the one that was there first; the
other was never started.
"""

from typing import Final

from taskback._backend import TaskBackend
from taskback._public import lives_in
from taskback.backends.inline import SyncTaskBackend

_default: Final[dict[None, TaskBackend]] = {}  # one item at most: setting one that is missing is a single step


@lives_in("taskback")
def get_default_task_backend() -> TaskBackend:
    """The backend of the whole program.

    Returns:
        TaskBackend: A `SyncTaskBackend` until `set_default_task_backend` has been called.
    """
    found = _default.get(None)
    return _default.setdefault(None, SyncTaskBackend()) if found is None else found


@lives_in("taskback")
def set_default_task_backend(backend: TaskBackend) -> None:
    """Set the backend of the whole program.

    Args:
        backend (TaskBackend): What `get_default_task_backend` gives from now on. The old one is not shut down.

    Raises:
        TypeError: `backend` is no `TaskBackend`.
    """
    if not isinstance(backend, TaskBackend):
        raise TypeError(f"the default backend must be a TaskBackend, not a {type(backend).__name__}")
    _default[None] = backend
