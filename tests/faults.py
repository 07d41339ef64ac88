"""Handlers that misbehave for real, and the channel on which they tell a test what they do.

Workers import this file, so it stays light.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn

from taskback.pools import _os

LIMIT: Final = 20.0  # seconds; the net under every wait


# What ends a process, and the exit status that tells of it.
CRASHES: Final = (
    ("kill", -signal.SIGKILL),
    ("segfault", -signal.SIGSEGV),
    ("abort", -signal.SIGABRT),
    ("exit", 7),
    ("overflow", -signal.SIGSEGV),
)


class Channel:
    """A named pipe: handlers, and what they start, write lines on it, the test waits for them."""

    def __init__(self, directory: Path, name: str = "channel") -> None:
        self.path = str(directory / name)
        os.mkfifo(self.path)
        self._fd = os.open(self.path, os.O_RDWR | os.O_NONBLOCK)  # both ways: never at its end
        self._rest = b""

    def line(self, timeout: float = LIMIT) -> str:
        """The next line; fails the test if none comes."""
        line = self.poll_line(timeout)
        assert line is not None, f"nothing was told within {timeout:g} s; so far {self._rest!r}"
        return line

    read_line = line  # what the tests of the command call it

    def poll_line(self, timeout: float) -> str | None:
        """The next line, or None if none comes in time."""
        deadline = time.monotonic() + timeout
        while b"\n" not in self._rest:
            if not select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return None
            self._rest += os.read(self._fd, 65536)
        found, _, self._rest = self._rest.partition(b"\n")
        return found.decode()

    def numbers(self) -> list[int]:
        """The next line, as numbers."""
        return [int(word) for word in self.line().split()]

    def release(self, count: int = 1) -> None:
        """Let so many go on that wait for a byte from it."""
        os.write(self._fd, b"." * count)

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)


def tell(path: str, text: object) -> None:
    """Write a line on a channel, or append it to a file."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, f"{text}\n".encode())
    finally:
        os.close(fd)


def await_gone(*pids: int) -> None:
    """Wait until these processes, which are about to, have ended; fails the test if they do not."""
    deadline = time.monotonic() + 5
    for pid in pids:
        assert has_ended(pid, deadline), f"{pid} lives"


def has_ended(pid: int, deadline: float) -> bool:
    """Whether a process ends in time. A zombie has: who is to reap an orphan, and when, is not ours to say."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([pidfd], [], [], max(0.0, deadline - time.monotonic()))[0])
    finally:
        os.close(pidfd)


def handler(task: dict[str, Any]) -> Any:
    """Does what the task says."""
    return ACTIONS[task["do"]](task)


def _echo(task: dict[str, Any]) -> Any:
    return task.get("n")


def _pid(task: dict[str, Any]) -> int:
    return os.getpid()


def _line(task: dict[str, Any]) -> Any:
    tell(task["lines"], task["n"])
    if task.get("dies"):
        os.kill(os.getpid(), signal.SIGKILL)
    return task["n"]


def _sleep(task: dict[str, Any]) -> None:
    """Goes on until it is stopped, and lets itself be stopped."""
    tell(task["tell"], os.getpid())
    while True:
        time.sleep(0.01)


def _segfault(task: dict[str, Any]) -> None:
    ctypes.string_at(0)


def _abort(task: dict[str, Any]) -> None:
    os.abort()


def _exit(task: dict[str, Any]) -> None:
    os._exit(7)


def _kill(task: dict[str, Any]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _overflow(task: dict[str, Any]) -> None:
    """Overflow the C stack, in a thread that has little of it."""
    sys.setrecursionlimit(10**6)

    def down(_: Any) -> Any:
        return list(map(down, (None,)))

    threading.stack_size(64 * 1024)
    thread = threading.Thread(target=down, args=(None,))
    thread.start()
    thread.join()


def swallow(path: str) -> NoReturn:
    """Never end, whatever is raised."""
    told = False
    while True:
        try:
            if not told:
                told = True
                tell(path, os.getpid())
            while True:
                time.sleep(0.01)
        except BaseException:
            continue


def _swallow(task: dict[str, Any]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    swallow(task["tell"])


def _spin(task: dict[str, Any]) -> None:
    told = False
    while True:
        try:
            if not told:
                told = True
                tell(task["tell"], os.getpid())
            while True:
                pass
        except BaseException:
            continue


def _gil(task: dict[str, Any]) -> None:
    """A C call that keeps the GIL, and that no signal makes return."""
    signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())  # first: who is told may send one at once
    tell(task["tell"], os.getpid())
    ctypes.PyDLL(None).sleep(600)


def _deaf(task: dict[str, Any]) -> None:
    """C code that keeps the GIL, and that no signal ends."""
    if _os.CANCEL_SIGNAL is not None:  # which could come before it is there
        signal.pthread_sigmask(signal.SIG_BLOCK, {_os.CANCEL_SIGNAL})
    tell(task["tell"], os.getpid())
    sum(itertools.repeat(0, 2**62))


def _children(task: dict[str, Any]) -> Any:
    """Start processes, two deep, tell their numbers, and do what comes `then`."""
    # It waits for no pipe, which would end when the handler returns.
    grandchild = "import subprocess; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); p.wait()"
    one = subprocess.Popen(["sleep", "600"])
    two = subprocess.Popen([sys.executable, "-c", grandchild], stdout=subprocess.PIPE, text=True)
    assert two.stdout is not None
    below = int(two.stdout.readline())
    tell(task["tell"], f"{os.getpid()} {one.pid} {two.pid} {below}")
    return ACTIONS[task["then"]](task)


def _wait(task: dict[str, Any]) -> Any:
    """Wait until the test opens the gate (a pipe) for writing."""
    tell(task["tell"], os.getpid())
    with open(task["gate"], "rb", buffering=0) as gate:
        gate.read(1)
    return task.get("n")


def _forever(task: dict[str, Any]) -> None:
    while True:
        time.sleep(0.01)


def _fork(task: dict[str, Any]) -> int:
    """Return in both processes."""
    os.fork()
    return os.getpid()


def _close_all(task: dict[str, Any]) -> None:
    os.closerange(3, 4096)


def _close_all_and_stay(task: dict[str, Any]) -> None:
    tell(task["tell"], os.getpid())
    os.closerange(3, 4096)
    _forever(task)


def _change(task: dict[str, Any]) -> str:
    """Leave the process other than it was found."""
    os.chdir("/")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    os.environ.clear()
    sys.setswitchinterval(0.5)
    return os.getcwd()


def _thread(task: dict[str, Any]) -> None:
    """Leave a thread that keeps the process from ending."""
    threading.Thread(target=time.sleep, args=(600,)).start()


def _print(task: dict[str, Any]) -> int:
    for _ in range(2000):
        print("x" * 1000)
        print("y" * 1000, file=sys.stderr)
    return 2000


def _worker() -> Any:
    from taskback.pools.child import loop

    assert loop.this is not None
    return loop.this


def _garbage(task: dict[str, Any]) -> None:
    """Write what is no packet on our connection to the parent."""
    os.write(_worker()._fds.replies, task["bytes"])
    _forever(task)


def _garbage_reply(task: dict[str, Any]) -> None:
    """Send a reply that nobody can read."""
    from taskback.pools.child import packets

    number, _ = _worker()._running
    _worker()._replies.send(packets.DONE, number, b"no pickle", wait=True)


def _big(task: dict[str, Any]) -> bytes:
    return bytes(task["size"])


def _size(task: dict[str, Any]) -> int:
    return len(task["data"])


class _Deadly:
    """Kills whoever pickles it."""

    def __reduce__(self) -> NoReturn:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def _die_while_packing(task: dict[str, Any]) -> Any:
    """Give a result that kills its worker when most of it is packed."""
    tell(task["tell"], "ran")
    return [bytes(1_000_000), _Deadly()]


def _die_while_answering(task: dict[str, Any]) -> None:
    """Have the worker killed where it is about to send the answer."""
    tell(task["tell"], "ran")
    _worker()._reply = lambda *_: os.kill(os.getpid(), signal.SIGKILL)


class Blocks:
    """Blocks whoever unpickles it until the file is gone."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return _block_while_there, (self.path,)


def _block_while_there(path: str) -> str:
    deadline = time.monotonic() + 60
    while os.path.exists(path) and time.monotonic() < deadline:
        time.sleep(0.01)
    return path


def _blocks(task: dict[str, Any]) -> Blocks:
    return Blocks(task["path"])


ACTIONS: Final[dict[str, Callable[[dict[str, Any]], Any]]] = {
    "abort": _abort,
    "big": _big,
    "blocks": _blocks,
    "change": _change,
    "children": _children,
    "close_all": _close_all,
    "close_all_and_stay": _close_all_and_stay,
    "deaf": _deaf,
    "die_while_answering": _die_while_answering,
    "die_while_packing": _die_while_packing,
    "echo": _echo,
    "exit": _exit,
    "forever": _forever,
    "fork": _fork,
    "garbage": _garbage,
    "garbage_reply": _garbage_reply,
    "gil": _gil,
    "kill": _kill,
    "line": _line,
    "overflow": _overflow,
    "pid": _pid,
    "print": _print,
    "segfault": _segfault,
    "size": _size,
    "sleep": _sleep,
    "spin": _spin,
    "swallow": _swallow,
    "thread": _thread,
    "wait": _wait,
}
