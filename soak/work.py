"""What the soak's tasks do: handlers that are quick, slow, large, odd, and ones that end their process.

`tasks` is the router; the `do` of a task says which, its type says by what policy. Workers import this file, so it
stays light.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from typing import Any, Final, NoReturn

from soak import effects
from taskback import Backoff, Defer, Retry, TaskCancelled, TaskRouter, current_task

Task = dict[str, Any]

QUICKLY: Final = Backoff(initial=0.002, factor=2, maximum=0.05)
SLEEPER: Final = ("sleep", "1000")  # what a handler leaves behind


def answer(number: int) -> int:
    """What a quick task returns, told from its number alone."""
    return number * 31 + 7


def do(task: Task) -> Any:
    """Write down that the task is called, and do what it says."""
    effects.of_task(task, current_task().attempt)
    return DOES[task["do"]](task)


# --- that go well ---


def quick(task: Task) -> int:
    return answer(task["n"])


def payload(task: Task) -> tuple[int, int, bytes]:
    """The check sum of what came, and something of the size that was asked for."""
    data = task["data"]
    return task["n"], zlib.crc32(data), filled(task["n"], task["back"])


def filled(number: int, size: int) -> bytes:
    """Bytes that are told from a task's number."""
    return hashlib.blake2b(number.to_bytes(8, "little")).digest() * (size // 64) + b"." * (size % 64)


def array(task: Task) -> Any:
    """The array, changed in place."""
    found = task["array"]
    found += task["n"]
    return found


def sleep(task: Task) -> int:
    time.sleep(task["seconds"])
    return answer(task["n"])


async def sleep_async(task: Task) -> int:
    await asyncio.sleep(task["seconds"])
    return answer(task["n"])


def compute(task: Task) -> int:
    until = time.perf_counter() + task["seconds"]
    while time.perf_counter() < until:
        pass
    return answer(task["n"])


def report(task: Task) -> int:
    for step in range(task["steps"]):
        current_task().report(step, task["steps"], stage=f"step {step}", filler="." * (step % 300))
        if task["seconds"]:
            time.sleep(task["seconds"])
    return answer(task["n"])


def alone(task: Task) -> int:
    """Fails where another task of its key runs."""
    fd = os.open(task["lock"], os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        time.sleep(task["seconds"])
    except BlockingIOError:
        raise AssertionError("two tasks of one key run at a time") from None
    finally:
        os.close(fd)
    return answer(task["n"])


def members(task: Task) -> list[int]:
    """Which tasks were joined in this one."""
    return list(task["members"])


def fork(task: Task) -> int:
    """Returns in two processes."""
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
    return answer(task["n"])


def leave_a_child(task: Task) -> int:
    """Start something that outlives its father: plain, with a session of its own, or as a daemon."""
    how = task["how"]
    if how == "daemon":
        father = os.fork()
        if not father:
            os.setsid()
            if not os.fork():
                os.execvp(SLEEPER[0], SLEEPER)
            os._exit(0)
        os.waitpid(father, 0)
    else:
        child = subprocess.Popen(SLEEPER, start_new_session=how == "session")
        child.returncode = 0  # or its end would warn of it
    return answer(task["n"])


# --- that fail, or ask to be called again ---


class TwoArgumentsError(Exception):
    """Plain pickle cannot rebuild it."""

    def __init__(self, first: int, second: str) -> None:
        super().__init__(f"{first} {second}")


class OddError(BaseException):
    """No Exception."""


class _RefusesToLeave:
    def __reduce__(self) -> NoReturn:
        raise RuntimeError("I stay here")


class _RefusesToArrive:
    def __reduce__(self) -> Any:
        return _explode, ()


def _explode() -> NoReturn:
    if "soak.__main__" in sys.modules or "soak.runner" in sys.modules:
        raise RuntimeError("I do not want to be here")
    raise RuntimeError("nor there")


def fail(task: Task) -> NoReturn:
    raise ValueError(task["n"])


def fail_oddly(task: Task) -> NoReturn:
    how = task["how"]
    if how == "two arguments":
        raise TwoArgumentsError(task["n"], "two")
    if how == "unpicklable":
        error = ValueError(task["n"])
        error.attribute = lambda: None  # type: ignore[attr-defined]
        error.stays = _RefusesToLeave()  # type: ignore[attr-defined]
        raise error
    if how == "no exception":
        raise OddError(task["n"])
    if how == "exit":
        sys.exit(task["n"])
    if how == "interrupt":
        raise KeyboardInterrupt
    if how == "recursion":
        _down()
    raise AssertionError(how)


def _down() -> NoReturn:
    _down()


def return_oddly(task: Task) -> Any:
    return _RefusesToLeave() if task["how"] == "stays" else _RefusesToArrive()


def retry(task: Task) -> int:
    """Goes well at the attempt that it says."""
    attempt = current_task().attempt
    if attempt < task["good_at"]:
        if task["asks"]:
            raise Retry(task["after"])
        raise ValueError(task["n"], attempt)
    return answer(task["n"])


def defer(task: Task) -> int:
    if time.time() < task["until"]:
        raise Defer(0.01)
    return answer(task["n"])


# --- that do not stop ---


def swallow(task: Task) -> int:
    """Take no notice of being told to stop, for a while."""
    until = time.monotonic() + task["seconds"]
    while time.monotonic() < until:
        try:
            time.sleep(0.01)
        except BaseException:
            continue
    return answer(task["n"])


def hold(task: Task) -> int:
    """Sleep in C code that keeps the GIL."""
    ctypes.PyDLL(None).usleep(ctypes.c_uint(int(task["seconds"] * 1e6)))
    return answer(task["n"])


def hide(task: Task) -> int:
    """Clean up for a while when told to stop."""
    try:
        time.sleep(task["seconds"])
    except TaskCancelled:
        time.sleep(0.05)
        raise
    return answer(task["n"])


# --- that end their process ---


def crash(task: Task) -> NoReturn:
    how = task["how"]
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "abort":
        os.abort()
    elif how == "segfault":
        ctypes.string_at(0)
    elif how == "close":
        os.closerange(3, 1024)
        time.sleep(0.002)
        os._exit(9)
    os._exit(7)


def crash_once(task: Task) -> int:
    """End the process at the first attempt."""
    if current_task().attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return answer(task["n"])


def close_descriptors(task: Task) -> int:
    """Close what is open, and go on."""
    os.closerange(3, 1024)
    return answer(task["n"])


DOES: Final[dict[str, Callable[[Task], Any]]] = {
    found.__name__: found
    for found in (
        *(quick, payload, array, sleep, sleep_async, compute, report, alone, members, fork, leave_a_child),
        *(fail, fail_oddly, return_oddly, retry, defer, swallow, hold, hide, crash, crash_once, close_descriptors),
    )
}


def _joined(waiting: Task, new: Task) -> Task:
    return {**waiting, "members": [*waiting["members"], *new["members"]]}


tasks: Final = TaskRouter()
_POLICIES: Final[dict[str, dict[str, Any]]] = {
    "plain": {},
    "limited": {"timeout": 0.15},
    "moving": {"idle_timeout": 0.15},
    "impatient": {"queue_timeout": 0.05},
    "retried": {"max_attempts": 3, "backoff": QUICKLY},
    "deferred": {},
    "crashing": {"max_crashes": 2},
    "keyed": {"key": "key"},
    "dropped": {"key": "key", "coalesce": "drop"},
    "rerun": {"key": "key", "coalesce": "rerun"},
    "joined": {"key": "key", "coalesce": _joined},
    "capped": {"max_running": 1},
    "fair": {"fair_by": "tenant"},
    "urgent": {"priority": 10},
    "odd": {},
}
for _type, _policy in _POLICIES.items():
    tasks.handler(_type, do, **_policy)


def call(task: Task) -> Any:
    """For pools, which know of no attempts: what the task says, in a plain call."""
    effects.of_task(task, 1)
    return DOES[task["do"]](task)
