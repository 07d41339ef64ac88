"""What test_clients has done in workers, which import this file by name."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any

import joblib
import joblib.externals.loky  # as numerical packages do: the guardian imports it, workers inherit it
import numpy as np
import psutil

from tests import gates


def rosenbrock(x: Any) -> float:
    """The valley that optimizers are tried on; its lowest point is at (1, 1, …)."""
    return float(np.sum(100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2))


def where(_: Any = None) -> tuple[int, str]:
    """The process and the thread that this runs in."""
    return os.getpid(), threading.current_thread().name


def die(_: Any = None) -> None:
    """Take the worker along."""
    os.kill(os.getpid(), signal.SIGKILL)


def fail(text: str) -> None:
    """Raise."""
    raise LookupError(text)


def double(array: Any) -> Any:
    """Change what came, and give it back."""
    array *= 2
    return array


def plus(a: int, b: int) -> int:
    """Add."""
    return a + b


def in_parallel(task: dict[str, Any]) -> tuple[float, int, list[int]]:
    """Use joblib in a handler; the sum, this process, and those below it."""
    array = np.ones(task["size"])
    sums = joblib.Parallel(n_jobs=2, backend=task["backend"], max_nbytes=1000)(
        joblib.delayed(np.sum)(array) for _ in range(4)
    )
    return float(sum(sums)), os.getpid(), [child.pid for child in psutil.Process().children(recursive=True)]


def hold_or_fail(task: dict[str, Any]) -> None:
    """Stand at the gate, and say how that ended; or raise."""
    if task["type"] == "fails":
        raise LookupError("a sibling")
    try:
        gates.hold(task["gate"])
    finally:
        gates.say(task["gate"], "ended")


async def hold_or_fail_async(task: dict[str, Any]) -> None:
    """The same, without blocking the loop."""
    if task["type"] == "fails":
        raise LookupError("a sibling")
    try:
        await gates.hold_async(task["gate"])
    finally:
        gates.say(task["gate"], "ended")


def echo(task: dict[str, Any]) -> Any:
    """Give back what came."""
    return task.get("value")
