"""What workers are made to do. They import this file, so it stays light.

A function that is given a path tells there, as soon as it has begun, its process's number and what it has started.
"""

import itertools
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, NoReturn

FOREVER: Final = 600.0  # seconds; longer than any probe
LIMIT: Final = 60.0  # seconds; the net under waits for a file


def handle(task: dict[str, Any]) -> Any:
    """The handler of the backends: a call that travels as a task."""
    return task["do"](*task["args"])


async def called(function: Callable[..., Any], *args: Any) -> Any:
    """The same for workers that run coroutine functions alone."""
    return function(*args)


def tell(path: str, *numbers: int) -> None:
    """Write down this process's number, and others; whoever finds the file finds it whole."""
    unfinished = f"{path}.{os.getpid()}.{threading.get_ident()}"
    with open(unfinished, "w", encoding="ascii") as file:
        file.write(" ".join(map(str, (os.getpid(), *numbers))))
    os.rename(unfinished, path)


def await_file(path: str) -> None:
    """Wait until there is such a file."""
    deadline = time.monotonic() + LIMIT
    while not os.path.exists(path):
        if time.monotonic() > deadline:
            raise TimeoutError(path)
        time.sleep(0.001)


# --- what is harmless ---


def pid() -> int:
    """Which process this is."""
    return os.getpid()


def give(value: Any) -> Any:
    """What it is given."""
    return value


def size(value: bytes) -> int:
    """How much it is given."""
    return len(value)


def noted(notes: str, number: int, gate: str) -> int:
    """Write down that it runs, wait until the gate is open, and give the number."""
    fd = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(fd, f"{number} ".encode())
    os.close(fd)
    await_file(gate)
    return number


# --- what does not end ---


def sleep(path: str) -> None:
    """In C code without the GIL, which a signal interrupts."""
    tell(path)
    time.sleep(FOREVER)


def spin(path: str) -> None:
    """In Python code."""
    tell(path)
    while True:
        pass


def swallow(path: str) -> None:
    """In Python code that takes no exception for an answer."""
    tell(path)
    while True:
        try:
            while True:
                pass
        except BaseException:
            pass


def hold_the_gil(path: str) -> None:
    """In C code that computes and never lets go of the GIL, so no handler of a signal is ever called."""
    tell(path)
    sum(itertools.repeat(0, 2**62))


# --- what ends its process ---


def overflow() -> None:
    """Recurse in C code until the stack is used up, in a thread that has little of it."""
    sys.setrecursionlimit(10**6)

    def deeper(_: Any) -> Any:
        return list(map(deeper, (None,)))

    threading.stack_size(64 * 1024)
    thread = threading.Thread(target=deeper, args=(None,))
    thread.start()
    thread.join()


def die() -> NoReturn:
    """Kill the process that it is called in."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


class Deadly:
    """Kills whoever unpickles it."""

    def __reduce__(self) -> tuple[Callable[[], NoReturn], tuple[()]]:
        return die, ()


# --- what does not travel ---


def fail_to_rebuild() -> NoReturn:
    """For whoever unpickles it."""
    raise ValueError("cannot be rebuilt")


class Unrebuildable:
    """Fails in whoever unpickles it."""

    def __reduce__(self) -> tuple[Callable[[], NoReturn], tuple[()]]:
        return fail_to_rebuild, ()


class Unpicklable:
    """Fails in whoever pickles it."""

    def __reduce__(self) -> NoReturn:
        raise ValueError("cannot be pickled")


def make(kind: str) -> Any:
    """A result of that kind."""
    return {"lock": threading.Lock, "unpicklable": Unpicklable, "unrebuildable": Unrebuildable}[kind]()


def large(size_bytes: int) -> bytes:
    """A large result, with something at its end."""
    return bytes(size_bytes - 1) + b"x"


# --- odd exceptions ---


class TwoArgumentsError(Exception):
    """Pickle calls it with one argument, so it cannot be rebuilt."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(f"{text} {code}")
        self.code = code


class HoldsALockError(Exception):
    """Has an attribute that cannot be pickled."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class RebuildRaisesError(Exception):
    """Raises while it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[], NoReturn], tuple[()]]:
        return fail_to_rebuild, ()


class NoTextError(Exception):
    """Has no text: `str` of it raises."""

    def __str__(self) -> str:
        raise ValueError("has no text")


class OddBaseException(BaseException):
    """No `Exception`."""


EXCEPTIONS: Final[dict[str, Callable[[], BaseException]]] = {
    "two arguments": lambda: TwoArgumentsError("odd", 7),
    "lock": lambda: HoldsALockError("odd 7"),
    "rebuild raises": lambda: RebuildRaisesError("odd 7"),
    "no text": NoTextError,
    "base": lambda: OddBaseException("odd 7"),
    "SystemExit": lambda: SystemExit("odd 7"),
    "KeyboardInterrupt": lambda: KeyboardInterrupt("odd 7"),
}


def throw(kind: str) -> NoReturn:
    """Raise an exception of that kind."""
    raise EXCEPTIONS[kind]()


# --- memory ---


def take_within_a_limit(limit_bytes: int) -> int:
    """Allow the process so much more address space than it has, and take twice that."""
    with open("/proc/self/statm", encoding="ascii") as file:
        has = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (has + limit_bytes, resource.RLIM_INFINITY))
    return len(bytes(2 * limit_bytes))


def take(size_bytes: int) -> int:
    """Have so much memory, and write to all of it."""
    return len(bytearray(b"x") * size_bytes)


# --- children ---

DAEMON: Final = """
import os, sys
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
with open(sys.argv[1] + ".new", "w") as file:
    file.write(str(os.getpid()))
os.rename(sys.argv[1] + ".new", sys.argv[1])
os.execvp("sleep", ["sleep", "600"])
"""


def have_children(path: str, then: str) -> int:
    """Start a child, one with a session of its own and a daemon, tell their numbers, and go on so."""
    quiet: dict[str, Any] = {
        "stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "close_fds": True
    }  # fmt: skip
    child = subprocess.Popen(["sleep", "600"], **quiet)
    session = subprocess.Popen(["sleep", "600"], start_new_session=True, **quiet)
    subprocess.run([sys.executable, "-S", "-c", DAEMON, f"{path}.daemon"], check=True, **quiet)
    await_file(f"{path}.daemon")
    with open(f"{path}.daemon", encoding="ascii") as file:
        daemon = int(file.read())
    tell(path, child.pid, session.pid, daemon)
    while then == "stay":
        time.sleep(0.01)
    return os.getpid()


# --- mischief ---


def close_all() -> None:
    """Close all descriptors but the standard ones."""
    os.closerange(3, 4096)


def write_at_length(count: int) -> int:
    """Write so many long lines to standard output and error."""
    for number in range(count):
        print(f"{number:999}")
        print(f"{number:999}", file=sys.stderr)
    return count


def change_directory(path: str) -> str:
    """Go elsewhere, and have that removed."""
    os.mkdir(path)
    os.chdir(path)
    os.rmdir(path)
    return path


def handle_signals(path: str) -> None:
    """Install handlers that do nothing, for every signal that can have one, and go on."""
    for number in signal.valid_signals():
        with suppress(OSError, ValueError):
            signal.signal(number, lambda *_: None)
    tell(path)
    while True:
        time.sleep(0.01)


def leave_threads(count: int) -> int:
    """Leave threads that never end, and that hold up the end of their process."""
    for _ in range(count):
        threading.Thread(target=time.sleep, args=(FOREVER,)).start()
    return os.getpid()


def write_garbage(path: str) -> None:
    """Write garbage to every socket and pipe that this worker has, and stay for a second."""
    found = []
    for fd in map(int, os.listdir("/proc/self/fd")):
        with suppress(OSError):
            kind = os.fstat(fd).st_mode
            if fd > 2 and (stat.S_ISSOCK(kind) or stat.S_ISFIFO(kind)):
                found.append(fd)
    tell(path, len(found))  # before it, for the worker may be ended for what it writes
    for fd in found:
        with suppress(OSError):
            os.set_blocking(fd, False)
            os.write(fd, b"\xff" * 64)
            os.set_blocking(fd, True)
    time.sleep(1)
