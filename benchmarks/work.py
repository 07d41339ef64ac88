"""What the workers are given to do: functions of a task, and nothing that takes long to import."""

import os
import time
from typing import Any


def nothing(task: dict[str, Any]) -> Any:
    """A call that does nothing."""
    return task["n"]


def echo(task: dict[str, Any]) -> Any:
    """Give back what came."""
    return task["data"]


def begun(task: dict[str, Any]) -> float:
    """When it began, on the clock that all processes of a machine share; then sleep, where the task says so."""
    at = time.monotonic()
    seconds = task.get("seconds")
    if seconds:
        time.sleep(seconds)
    return at


def whose(task: dict[str, Any]) -> int:
    """Which process this is, after some seconds, so that the next one goes to another worker."""
    time.sleep(task["seconds"])
    return os.getpid()


def hold(task: dict[str, Any]) -> float:
    """Where the task names a gate: tell so, and wait there. Gives when it began."""
    at = time.monotonic()
    if "gate" in task:
        with open(task["told"], "w", encoding="utf-8") as told:
            told.write(f"{os.getpid()}\n")
        with open(task["gate"], "rb", buffering=0) as gate:
            gate.read(1)
    return at


async def called(function: Any, task: dict[str, Any]) -> Any:
    """For pools that call coroutine functions alone."""
    return function(task)
