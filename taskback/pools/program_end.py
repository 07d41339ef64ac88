"""Tells executors of the end of the program, and of forks.

The rule is the stock executors': a call that was accepted is made, and the program ends after that. The hook is of
`threading`, not of `atexit`: it comes before the program's own threads are waited for, which may wait for a call.

Locks: _lock is a leaf.
Holds: the hooks that came last run first. Backends hook themselves up after this, so that theirs, which ends tasks in
time, comes first: a call that waits for a task ends with it.
"""

import os
import threading
import weakref
from typing import Protocol


class Pool(Protocol):
    """An executor of ours."""

    def _program_ends(self) -> None:
        """Accept nothing more, and let the workers end after what was accepted."""
        ...

    def _forked(self) -> None:
        """This is a fork, without the threads that the pool had: begin afresh, and touch nothing of the parent's."""
        ...


_lock = threading.Lock()
_pools: "weakref.WeakSet[Pool]" = weakref.WeakSet()
_threads: "weakref.WeakSet[threading.Thread]" = weakref.WeakSet()  # of pools that are gone, too
_hooked = False
_over = False


def tell(pool: Pool) -> None:
    """Have a pool told, at once if the program is ending already."""
    hook_up()
    with _lock:
        _pools.add(pool)
        over = _over
    if over:
        pool._program_ends()


def wait_for(thread: threading.Thread) -> None:
    """Have the end of the program wait for this thread."""
    with _lock:
        _threads.add(thread)


def hook_up() -> None:
    """Have the hooks in place; a second call does nothing."""
    global _hooked, _over
    with _lock:
        if _hooked:
            return
        _hooked = True
        try:
            threading._register_atexit(_end)  # type: ignore[attr-defined]  # which the stock executors use
        except RuntimeError:  # the program is ending
            _over = True
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_forked)


def _end() -> None:
    global _over
    with _lock:
        _over = True
        pools = list(_pools)
    for pool in pools:
        pool._program_ends()
    with _lock:
        threads = list(_threads)
    for thread in threads:
        thread.join()


def _forked() -> None:
    global _lock
    _lock = threading.Lock()
    _threads.clear()
    for pool in list(_pools):
        pool._forked()
