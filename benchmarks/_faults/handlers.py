"""Handlers that die, hang and leave children behind, for real.

Workers import this file, so it stays light.
"""

import ctypes
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any, Final, NoReturn

CHILDREN: Final = 3  # that a task with "tell" starts
SLEEP: Final = ("sleep", "600")


def handle(task: dict[str, Any]) -> Any:
    """Do what the task says; with "tell", start children first, and tell who and since when."""
    began = time.monotonic()
    if "tell" in task:
        tell(task["tell"], {"do": task["do"], "began": began, "pids": [os.getpid(), *start_children()]})
    return DOES[task["do"]](task)


def tell(path: str, fact: object) -> None:
    """Append a line to a file, or write it on a pipe: whole, whoever else does."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, f"{json.dumps(fact)}\n".encode())
    finally:
        os.close(fd)


def start_children() -> list[int]:
    """A plain child, one with a session of its own, and a daemon, whose father has ended."""
    plain = subprocess.Popen(SLEEP)
    session = subprocess.Popen(SLEEP, start_new_session=True)
    reading, writing = os.pipe()
    father = os.fork()
    if not father:
        os.setsid()
        daemon = os.fork()
        if not daemon:
            os.execvp(SLEEP[0], SLEEP)
        os.write(writing, b"%d" % daemon)
        os._exit(0)
    os.waitpid(father, 0)
    daemon = int(os.read(reading, 32))
    os.close(reading)
    os.close(writing)
    return [plain.pid, session.pid, daemon]


def note(task: dict[str, Any]) -> int:
    """Write down that the task runs, then end as it says."""
    tell(task["notes"], task["n"])
    if task["dies"]:
        os.kill(os.getpid(), signal.SIGKILL)
    return int(task["n"])


def return_at_once(task: dict[str, Any]) -> int:
    """An idle worker's."""
    return os.getpid()


def sleep(task: dict[str, Any]) -> NoReturn:
    """Let itself be stopped."""
    while True:
        time.sleep(0.01)


def spin(task: dict[str, Any]) -> NoReturn:
    """Compute, and let itself be stopped."""
    while True:
        pass


def hold_gil(task: dict[str, Any]) -> None:
    """A call in C that keeps the GIL, so that no Python code runs in this process any more, and that no signal ends."""
    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
    ctypes.PyDLL(None).sleep(600)


def swallow(task: dict[str, Any]) -> NoReturn:
    """Never end, whatever is raised."""
    while True:
        try:
            while True:
                time.sleep(0.001)
        except BaseException:
            continue


DOES: Final[dict[str, Callable[[dict[str, Any]], Any]]] = {
    "note": note,
    "return": return_at_once,
    "sleep": sleep,
    "spin": spin,
    "hold the GIL": hold_gil,
    "swallow": swallow,
}
