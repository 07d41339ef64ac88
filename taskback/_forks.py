"""Forks of the program: they come when nothing is half made, and what is ours does not run on in them.

A fork that comes while a worker is being started has pipes that nobody knows of, so that the worker never notices its
parent's death, and `multiprocessing` with a lock that a thread holds which the fork does not have. So forks wait.

A fork that user code makes on a thread of ours (a handler, a callback, a listener) returns in both processes. In the
child that thread would go on with what is the parent's: take its tasks, tell its outcomes. So whoever has called user
code looks at `pid` afterwards; only the thread that forked is there to see it changed, and it ends its process.

Locks: _lock is held while a worker is started (some milliseconds) and while the program forks. Whoever holds it takes
no lock of ours.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from taskback._leave import leave as leave  # beside `pid`, which tells when to

PATIENCE: Final = 5.0  # seconds that a fork waits; then it is made all the same

pid = os.getpid()  # of this process, without a system call


def _renumber() -> None:
    global pid
    pid = os.getpid()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renumber)

_lock = threading.RLock()  # a worker's start may start its guardian
_forking = False
_in_child: list[Callable[[], object]] = []


def watch(in_child: Callable[[], object]) -> None:
    """From now on hold forks back, and call this in each."""
    with _lock:
        if not _in_child and hasattr(os, "register_at_fork"):  # held back once, whoever asks for it
            os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_afresh)
        if in_child not in _in_child:
            _in_child.append(in_child)


@contextmanager
def held_back() -> Iterator[None]:
    """Around what a fork must not come into."""
    with _lock:
        yield


def _before() -> None:
    global _forking
    _forking = _lock.acquire(timeout=PATIENCE)


def _after() -> None:
    global _forking
    if _forking:
        _forking = False
        _lock.release()


def _afresh() -> None:
    global _lock, _forking
    _lock, _forking = threading.RLock(), False
    for function in _in_child:
        function()
