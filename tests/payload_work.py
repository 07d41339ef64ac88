"""What workers do with large payloads in the tests: functions for a pool, which a backend's handler calls by name."""

from __future__ import annotations

import os
import resource
import signal
from typing import Any

import numpy

from taskback.pools.child import layout
from tests.gates import hold

kept: list[Any] = []  # what a call has kept beyond its end


def handler(task: dict[str, Any]) -> Any:
    """Does what the task names with what it holds."""
    return globals()[task["do"]](*task["with"])


def echo(*values: Any) -> Any:
    """What came."""
    return values[0] if len(values) == 1 else values


def total(array: Any) -> float:
    """A number from all of it."""
    return float(array.sum())


def overwrite(array: Any) -> tuple[float, bool]:
    """What it found, before it wrote over that; and whether it could."""
    found = float(array.sum())
    array[:] = -1
    return found, bool((array == -1).all())


def a_slice(array: Any) -> Any:
    """A part of its argument."""
    return array[: len(array) // 2]


def keep(array: Any) -> float:
    """Have its argument for good."""
    kept.append(array)
    return float(array.sum())


def of_kept() -> list[float]:
    """A number from each that was kept."""
    return [float(array.sum()) for array in kept]


def filled(number: int, count: int) -> Any:
    """An array with that number everywhere."""
    return numpy.full(count, float(number))


def stand(gate: str, *values: Any) -> Any:
    """Wait until the test lets it go."""
    hold(gate)
    return echo(*values)


def memory_left() -> tuple[int, int]:
    """How many mappings and descriptors of payloads this process has."""
    with open("/proc/self/maps", encoding="ascii", errors="replace") as file:
        mappings = sum("taskback-payload" in line for line in file)
    descriptors = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            descriptors += "taskback-payload" in os.readlink(f"/proc/self/fd/{name}")
        except OSError:  # the directory's own
            continue
    return mappings, descriptors


def die_reading() -> None:
    """Have this worker be killed when it reads its next payload."""

    def find(memory: memoryview) -> Any:
        bytes(memory[: len(memory) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    layout.find = find


def die_writing() -> None:
    """Have this worker be killed when it is half done with writing its next payload."""

    def fill(memory: memoryview, parts: Any) -> None:
        half = len(memory) // 2
        memory[:half] = b"\xee" * half
        os.kill(os.getpid(), signal.SIGKILL)

    layout.fill = fill


def die() -> None:
    """Be killed."""
    os.kill(os.getpid(), signal.SIGKILL)


def fails_once(path: str, array: Any) -> float:
    """Spoil its argument and fail; the second time, give a number from it."""
    found = float(array.sum())
    array[:] = -1
    if not os.path.exists(path):
        with open(path, "wb"):
            raise LookupError("the first time")
    return found


def open_no_more() -> int:
    """Have this worker's descriptors run out."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.dup(0)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe, hard))
    return soft


def open_again(soft: int) -> None:
    """Let it have as many as before."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))


def fork_and_drop(array: Any) -> float:
    """Fork, have the fork write into the argument and let go of all that it has; then a number from it."""
    pid = os.fork()
    if not pid:
        array[:] = -1
        kept.clear()
        os._exit(0)
    os.waitpid(pid, 0)
    return float(array.sum()) + sum(of_kept())


def pid() -> int:
    """The worker's number."""
    return os.getpid()
