"""Handlers of the contract tests: `do` passes a task on by its `"do"`. Workers import this file by name."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, NoReturn

from taskback import Defer, TaskCancelled, current_task
from tests import gates

Task = dict[str, Any]

trace: ContextVar[str] = ContextVar("trace", default="none")


def do(task: Task) -> Any:
    """Do what the task says; sync or async."""
    return DOES[task["do"]](task)


# --- plain ones ---


def echo(task: Task) -> Any:
    return task.get("value")


async def echo_async(task: Task) -> Any:
    await asyncio.sleep(0)
    return task.get("value")


def clear(task: Task) -> Any:
    """Change the task beyond recognition."""
    task["value"] = "the handler's"
    del task["do"]


def call(task: Task) -> Any:
    return task["function"]()


def fail(task: Task) -> NoReturn:
    raise ValueError(task.get("text", "no good"))


async def fail_async(task: Task) -> NoReturn:
    fail(task)


def pid(task: Task) -> int:
    return os.getpid()


def compute(task: Task) -> int:
    """Compute for a while in one call of C code, which holds the interpreter lock throughout."""
    gates.say(task["gate"])
    return sum(range(task["steps"]))


def die(task: Task) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fail_until(task: Task) -> int:
    """Succeed with the given attempt, and raise before it: what the task says, or a ValueError."""
    attempt = current_task().attempt
    if attempt < task["attempt"]:
        raise task.get("raises", ValueError(f"attempt {attempt}"))
    return attempt


def die_until(task: Task) -> int:
    """Succeed with the given attempt, and take the worker along before it."""
    if current_task().attempt < task["attempt"]:
        die(task)
    return current_task().attempt


def note(task: Task) -> Any:
    """Write a line; stand at the gate, if there is one; write another."""
    with open(task["log"], "a") as file:
        file.write(f"begin {task['n']}\n")
    if "gate" in task:
        gates.hold(task["gate"], task["n"])
    with open(task["log"], "a") as file:
        file.write(f"end {task['n']}\n")
    return task.get("value")


async def note_async(task: Task) -> Any:
    with open(task["log"], "a") as file:
        file.write(f"begin {task['n']}\n")
    if "gate" in task:
        await gates.hold_async(task["gate"], task["n"])
    with open(task["log"], "a") as file:
        file.write(f"end {task['n']}\n")
    return task.get("value")


def note_or_defer(task: Task) -> Any:
    """Write a line, and put the task off as often as it says."""
    note(task)
    with open(task["log"]) as file:
        if file.read().count(f"end {task['n']}\n") <= task["defers"]:
            raise Defer(task["seconds"])
    return current_task().attempt


def report_and_hold(task: Task) -> None:
    """Report some times, and then no more."""
    for step in range(task["times"]):
        current_task().report(step, stage=f"step {step}")
        time.sleep(task["every"])
    gates.hold(task["gate"])


async def report_and_hold_async(task: Task) -> None:
    for step in range(task["times"]):
        current_task().report(step, stage=f"step {step}")
        await asyncio.sleep(task["every"])
    await gates.hold_async(task["gate"])


def seconds_left(task: Task) -> float | None:
    deadline = current_task().deadline
    return None if deadline is None else deadline - time.monotonic()


def who(task: Task) -> tuple[str, str | None, int, bool]:
    current = current_task()
    return current.id, current.type, current.attempt, current.cancelled


# --- at the gate ---


def hold(task: Task) -> Any:
    gates.hold(task["gate"], task.get("value", "begun"))
    return task.get("value")


async def hold_async(task: Task) -> Any:
    await gates.hold_async(task["gate"], task.get("value", "begun"))
    return task.get("value")


def hold_in_c(task: Task) -> None:
    gates.hold_in_c(task["gate"])


async def hold_stubbornly(task: Task) -> None:
    await gates.hold_stubbornly(task["gate"])


def hold_and_swallow(task: Task) -> str:
    """Take the exception for nothing, and return."""
    with contextlib.suppress(TaskCancelled):
        gates.hold(task["gate"])
    return "all the same"


async def hold_and_swallow_async(task: Task) -> str:
    with contextlib.suppress(TaskCancelled, asyncio.CancelledError):
        await gates.hold_async(task["gate"])
    return "all the same"


def hold_with_pid(task: Task) -> None:
    gates.hold(task["gate"], os.getpid())


async def hold_and_fail_async(task: Task) -> NoReturn:
    await gates.hold_async(task["gate"])
    fail(task)


def look_at_the_flag(task: Task) -> None:
    """Say what `cancelled` says before and after, then leave by `raise_if_cancelled`."""
    current = current_task()
    current.raise_if_cancelled()
    try:
        gates.hold(task["gate"], current.cancelled)
    except TaskCancelled:
        gates.say(task["gate"], current.cancelled)
    try:
        current.raise_if_cancelled()
    except TaskCancelled:
        gates.say(task["gate"], "left")
        raise


async def look_at_the_flag_async(task: Task) -> None:
    current = current_task()
    current.raise_if_cancelled()
    try:
        await gates.hold_async(task["gate"], current.cancelled)
    except (TaskCancelled, asyncio.CancelledError):
        gates.say(task["gate"], current.cancelled)
    try:
        current.raise_if_cancelled()
    except TaskCancelled:
        gates.say(task["gate"], "left")
        raise


def report(task: Task) -> None:
    """Report twice, before and after the gate."""
    current_task().report(1, 4, "half", bank="b1")
    gates.hold(task["gate"])
    current_task().report(done=4)


async def report_async(task: Task) -> None:
    current_task().report(1, 4, "half", bank="b1")
    await gates.hold_async(task["gate"])
    current_task().report(done=4)


# --- context ---


def capture_trace() -> dict[str, str]:
    return {"trace": trace.get()}


@contextlib.contextmanager
def restore_trace(context: Mapping[str, str]) -> Iterator[None]:
    token = trace.set(context["trace"])
    try:
        yield
    finally:
        trace.reset(token)


def see_trace(task: Task) -> str:
    return trace.get()


async def see_trace_async(task: Task) -> str:
    await asyncio.sleep(0)
    return trace.get()


# --- odd ones ---


class TwoArguments(Exception):
    """Cannot be rebuilt: pickle calls it with the message alone."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


class HoldsALock(Exception):
    """Cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("holds a lock")
        self.lock = threading.Lock()


def _refuse() -> NoReturn:
    raise RuntimeError("not here")


class RefusesToReturn(Exception):
    """Is pickled, and raises when it is rebuilt."""

    def __reduce__(self) -> Any:
        return _refuse, ()


class NoException(BaseException):
    """Is not caught by `except Exception`."""


class ResultThatRefuses:
    """Is pickled, and raises when it is rebuilt."""

    def __reduce__(self) -> Any:
        return _refuse, ()


ODD: dict[str, Callable[[], BaseException]] = {
    "two arguments": lambda: TwoArguments("one", "two"),
    "a lock": HoldsALock,
    "refuses": lambda: RefusesToReturn("not rebuilt"),
    "no exception": lambda: NoException("odd"),
    "exit": lambda: SystemExit(3),
    "generator exit": lambda: GeneratorExit("odd"),
    "interrupt": lambda: KeyboardInterrupt("the handler's"),
}


def fail_oddly(task: Task) -> NoReturn:
    raise ODD[task["kind"]]()


async def fail_oddly_async(task: Task) -> NoReturn:
    fail_oddly(task)


def give_a_lock(task: Task) -> Any:
    return {"rows": [1, threading.Lock()]}


def give_what_refuses(task: Task) -> Any:
    return ResultThatRefuses()


# --- those that know their backend, in this process ---


def submit_more(task: Task) -> str:
    """Submit another task, once the gate is open, and give the name of what that raises."""
    gates.hold(task["gate"])
    try:
        task["backend"].submit_sync({"do": "echo"})
    except Exception as error:
        return type(error).__name__
    return "taken"


async def submit_more_async(task: Task) -> str:
    await gates.hold_async(task["gate"])
    try:
        await task["backend"].submit({"do": "echo"})
    except Exception as error:
        return type(error).__name__
    return "taken"


DOES: dict[str, Callable[[Task], Any]] = {
    name: function
    for name, function in list(globals().items())
    if callable(function) and getattr(function, "__module__", None) == __name__ and name.islower() and name != "do"
}
