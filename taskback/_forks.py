"""Holds forks of the program back while something is half made that they would inherit so.

A fork that comes while a worker is being started has pipes that nobody knows of, so that the worker never notices its
parent's death, and `multiprocessing` with a lock that a thread holds which the fork does not have.

Locks: _lock is held while a worker is started (some milliseconds) and while the program forks. Whoever holds it takes
no lock of ours.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

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
    if not _in_child and hasattr(os, "register_at_fork"):  # held back once, whoever asks for it
        os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_afresh)
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
