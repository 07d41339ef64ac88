"""Wrongs that are done on purpose, to show that the soak finds them; `--sabotage` names one.

Each is done for real: a task that is dropped, called twice or answered wrongly by a backend, a descriptor or process
that stays open, a shutdown that takes too long, and a pool of somebody else's in the place of ours.
"""

from __future__ import annotations

import itertools
import os
import random
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Final

from soak import kinds, work
from soak.places import GRACE, Place
from taskback import ProcessPoolTaskBackend, ShutdownReport, ThreadPoolTaskBackend
from taskback._run import End

_counter: Final = itertools.count(1)


class Loses(ThreadPoolTaskBackend):
    """Forgets that a task has ended, now and then."""

    def ended_all(self, ends: list[End]) -> None:
        """Tell of ends, but for some."""
        super().ended_all([end for end in ends if next(_counter) % 100])


class CallsTwice(ThreadPoolTaskBackend):
    """Does some tasks twice."""

    def submit_sync(self, task: dict[str, Any], **options: Any) -> Any:
        """Submit it, and perhaps once more."""
        if next(_counter) % 20 == 0:
            super().submit_sync(task, **options)
        return super().submit_sync(task, **options)


class MixesUp(ThreadPoolTaskBackend):
    """Gives some tasks another's result."""

    def submit_sync(self, task: dict[str, Any], **options: Any) -> Any:
        """Submit it, or something like it."""
        if task["do"] == "quick" and next(_counter) % 20 == 0:
            task = {**task, "n": task["n"] - 1}
        return super().submit_sync(task, **options)


class Hangs(ThreadPoolTaskBackend):
    """Never comes back from its shutdown once it has forgotten that a task has ended."""

    def ended_all(self, ends: list[End]) -> None:
        """Tell of no ends."""

    def shutdown_sync(self, timeout: float | None = None) -> ShutdownReport:
        """Wait for what will not be."""
        time.sleep(3600)
        raise AssertionError


class Lingers(ThreadPoolTaskBackend):
    """Takes longer to shut down than it may."""

    def shutdown_sync(self, timeout: float | None = None) -> ShutdownReport:
        """Shut down, late."""
        report = super().shutdown_sync(timeout)
        time.sleep((timeout or 0.0) + GRACE + 4.0)
        return report


_BACKENDS: Final = {"lose": Loses, "twice": CallsTwice, "mix-up": MixesUp, "linger": Lingers, "hang": Hangs}
WAYS: Final = (*_BACKENDS, "stock-pool", "leak-descriptor", "leak-process", "leak-thread", "leak-file")


def backend(way: str) -> Callable[..., Any]:
    """What makes the residents: nothing is wrong with these."""
    return lambda **options: ProcessPoolTaskBackend(work.tasks, cancel_grace_seconds=GRACE, **options)


def subject(way: str, place: Place, rng: random.Random) -> Any:
    """What is made for a place, or what is put in its stead."""
    if way in _BACKENDS and place.where == kinds.THREADS:
        return _BACKENDS[way](work.tasks, max_workers=2, cancel_grace_seconds=GRACE)
    if way == "stock-pool" and place.where == kinds.POOL:
        return ProcessPoolExecutor(2)
    return place.make(rng)


def wants(way: str) -> str:
    """The place that a way of sabotage needs; empty if any will do."""
    if way in _BACKENDS:
        return "threads"
    return "process pool" if way == "stock-pool" else ""


def once_a_round(way: str) -> None:
    """Leave something behind."""
    if way == "leak-descriptor":
        os.dup(0)
    elif way == "leak-process":
        subprocess.Popen(work.SLEEPER).returncode = 0
    elif way == "leak-thread":
        threading.Thread(target=time.sleep, args=(3600,), daemon=True).start()
    elif way == "leak-file":
        os.close(tempfile.mkstemp()[0])
