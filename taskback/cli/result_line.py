"""One result line: what became of the task of one line of the input."""

import json
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any

from taskback import TaskHandle, TaskState
from taskback.cli.source import Source


@dataclass(frozen=True, slots=True)
class ResultLine:
    """A line ready to be written.

    Attributes:
        state (str): The state that it tells.
        data (bytes): The line, its end included.
        problem (str | None): What went wrong, in one line; None if it succeeded.
    """

    state: str
    data: bytes
    problem: str | None


def of_handle(source: Source, handle: TaskHandle) -> ResultLine:
    """The line of a task that was run."""
    facts = {"seconds": _seconds(handle), "attempt": handle.attempt, "worker_pid": handle.worker_pid}
    try:
        error = handle.exception()
    except CancelledError as cancelled:
        error = cancelled
    if error is not None:
        return _failed(source, handle.state.value, _describe(error, _traceback(handle)), facts)
    try:
        return _line(source, handle.state.value, {"result": handle.result()}, facts, None)
    except Exception as why:  # whatever json says of values that are none of its own, or their own methods raise
        text = f"{source.where}: the result is no JSON: {_text(why)}"
        failure = {"type": type(why).__qualname__, "message": text, "traceback": None}
        return _failed(source, TaskState.FAILED.value, failure, facts)


def of_refusal(source: Source, error: Exception) -> ResultLine:
    """The line of a task that the backend did not take, or of a line that is none."""
    failure = {
        "type": type(error).__qualname__,
        "message": f"{source.where}: {_text(error)}",
        "traceback": None,
    }
    return _failed(source, TaskState.FAILED.value, failure, {"seconds": None, "attempt": 0, "worker_pid": None})


def _failed(source: Source, state: str, failure: dict[str, Any], facts: dict[str, Any]) -> ResultLine:
    message = failure["message"].strip().partition("\n")[0]
    where = "" if message.startswith(source.where) else f"{source.where}: "
    problem = f"{where}{state}: {failure['type']}: {message}" if where else f"{message} ({failure['type']})"
    return _line(source, state, {"error": failure}, facts, problem)


def _line(
    source: Source, state: str, outcome: dict[str, Any], facts: dict[str, Any], problem: str | None
) -> ResultLine:
    record = {"id": source.id, "line": source.line, "type": source.type, "state": state, **outcome, **facts}
    # ASCII alone: lone surrogates survive, and no reader finds a line end inside a line.
    return ResultLine(state, json.dumps(record, allow_nan=False).encode("ascii") + b"\n", problem)


def _describe(error: BaseException, traceback: str | None) -> dict[str, Any]:
    type_name, text = getattr(error, "type_name", None), getattr(error, "text", None)
    if isinstance(type_name, str) and isinstance(text, str):  # a RemoteError stands for another exception
        return {"type": type_name, "message": text, "traceback": traceback}
    return {"type": type(error).__qualname__, "message": _text(error), "traceback": traceback}


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as why:
        return f"(its text could not be made: {type(why).__qualname__})"


def _traceback(handle: TaskHandle) -> str | None:
    return handle.attempts[-1].traceback if handle.attempts else None


def _seconds(handle: TaskHandle) -> float | None:
    if handle.started_at is None or handle.finished_at is None:
        return None
    return round(handle.finished_at - handle.started_at, 6)
