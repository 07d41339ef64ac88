"""Context that travels beside a task: strings captured where it is submitted, restored where it runs.

Threads: any. Locks: _lock is a leaf; the registered functions are never called under it.
"""

import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Final

from taskback._public import lives_in
from taskback._task import plain

Capture = Callable[[], Mapping[str, str]]
Restore = Callable[[Mapping[str, str]], AbstractContextManager[object] | None]

_lock = threading.Lock()
_pairs: tuple[tuple[Capture, Restore], ...] = ()
_restores: tuple[Restore, ...] = ()
_NOTHING: Final[dict[str, str]] = {}  # shared by all tasks that nothing travels beside


@lives_in("taskback")
def add_context(capture: Capture, restore: Restore) -> Callable[[], None]:
    """Have something travel beside every task that is submitted from now on: a trace id, a log field.

    Args:
        capture (Callable[[], Mapping[str, str]]): Called in the submitter's context by every submit; gives what is
            to travel, under names of its own.
        restore (Callable[[Mapping[str, str]], AbstractContextManager | None]): Called where the handler is about to
            run, with all that travels beside the task. A context manager that it returns is entered around
            the handler. For a process it is pickled with the handler.

    Returns:
        Callable[[], None]: Takes the pair out again; calling it twice does no harm.

    Raises:
        TypeError: One of the two is not callable.
    """
    if not all(map(callable, (capture, restore))):
        raise TypeError("add_context takes two callables: capture() and restore(context)")
    pair = (capture, restore)
    with _lock:
        _register((*_pairs, pair))

    def remove() -> None:
        with _lock:
            _register(tuple(other for other in _pairs if other is not pair))

    return remove


def _register(pairs: tuple[tuple[Capture, Restore], ...]) -> None:
    global _pairs, _restores
    _pairs, _restores = pairs, tuple(restore for _, restore in pairs)


def restores() -> tuple[Restore, ...]:
    """The restoring halves of what is registered now; the same tuple until that changes."""
    return _restores


def captured(extra: Mapping[str, str] | None) -> dict[str, str]:
    """What travels beside a task submitted here and now; `extra` (the submission's own) wins. Not to be changed."""
    if not _pairs and not extra:
        return _NOTHING
    found: dict[str, str] = {}
    for capture, _ in _pairs:
        found.update(capture())
    if extra:
        found.update(extra)
    for name, value in found.items():
        if not all(isinstance(each, str) for each in (name, value)):
            raise TypeError(f"context must map strings to strings, not {name!r} to {type(value).__name__}")
    return {plain(name): plain(value) for name, value in found.items()}


def restored(functions: tuple[Restore, ...], context: Mapping[str, str]) -> AbstractContextManager[object]:
    """Around a handler: everything that travelled beside its task is in place.

    No generator, which would set a handler's exception its traceback: a frozen one refuses that, and would be lost.
    """
    if not functions:
        return nullcontext()
    with ExitStack() as stack:
        for restore in functions:
            manager = restore(context)
            if manager is not None:
                stack.enter_context(manager)
        return stack.pop_all()
