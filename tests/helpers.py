"""What several test files use."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import psutil

from taskback import ProcessPoolTaskBackend
from tests.gates import PATIENCE

ROOT: Final = Path(__file__).resolve().parent.parent  # of the checkout


def run_python(*arguments: str, timeout: float = 30.0) -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter at the top of the checkout, `run_python("-c", code)` say, to its end."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def is_running(pid: int) -> bool:
    """Whether there is a process with this number that has not ended; a zombie has."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def process_backends(usual: Callable[..., Any], grace: float) -> Iterator[Callable[..., ProcessPoolTaskBackend]]:
    """Makes running backends of one worker, with this handler and grace if it is not told others; shuts them down."""
    made: list[ProcessPoolTaskBackend] = []

    def make(handler: Callable[..., Any] = usual, *, warm: bool = True, **options: Any) -> ProcessPoolTaskBackend:
        backend = ProcessPoolTaskBackend(handler, **{"max_workers": 1, "cancel_grace_seconds": grace, **options})
        made.append(backend)
        backend.initialize_sync(warm=warm)
        return backend

    try:
        yield make
    finally:
        for backend in made:
            backend.shutdown_sync(0)


def until(what: Callable[[], object]) -> None:
    """Wait for something that nobody tells."""
    deadline = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def outcomes(figures: Any) -> int:
    """How many tasks have ended, by the figures of a backend or of a type."""
    names = ("succeeded", "failed", "timed_out", "cancelled", "lost", "abandoned")
    return sum(getattr(figures, name) for name in names)


@contextmanager
def session_leaders() -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Starts interpreters that run some code, each in a session of its own; ends them with all of their group."""
    made: list[subprocess.Popen[str]] = []

    def start(code: str) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        made.append(child)
        return child

    try:
        yield start
    finally:
        for child in made:
            if hasattr(os, "killpg"):
                with suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
            child.kill()
            child.wait()
            assert child.stdout is not None
            child.stdout.close()  # unread: what has left the group may still hold its other end


@contextmanager
def few_descriptors(free: int) -> Iterator[None]:
    """This process can open so many more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.dup(0)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe + free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def write_files(folder: Path, files: dict[str, str]) -> None:
    """Write what is told, by its path below the folder."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
