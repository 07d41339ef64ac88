"""Runs whole programs, as a user does: in a session of their own, and nothing of them outlives the test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests import leftovers
from tests.faults import LIMIT, Channel
from tests.helpers import ROOT

NOTHING: Final[Mapping[str, str]] = {}


class Program:
    """A Python program under way: a script with `code`, or `how` says how it is run; `beside` are files there.

    What it and its handlers `tell` comes by `line`; what they print is in `out` and `err` once it has ended.
    """

    def __init__(
        self, directory: Path, code: str, *how: str, stdin: bool = False, beside: Mapping[str, str] = NOTHING
    ) -> None:
        self.directory = directory  # where it runs
        self._channel = Channel(directory)
        script = directory / "program.py"
        script.write_text(code, encoding="utf-8")
        for name, content in beside.items():
            (directory / name).write_text(content, encoding="utf-8")
        self._streams = directory / "out", directory / "err"
        with self._streams[0].open("wb") as out, self._streams[1].open("wb") as err, script.open("rb") as source:
            self.process = subprocess.Popen(
                [sys.executable, *(how if how or stdin else (str(script),))],
                cwd=directory,
                env={
                    **os.environ,
                    "TELL": self._channel.path,
                    "PYTHONPATH": os.fspath(ROOT),
                    "PYTHONFAULTHANDLER": "1",
                },
                stdin=source if stdin else subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self.out = self.err = ""

    def line(self) -> str:
        """The next line that it tells."""
        try:
            return self._channel.line()
        except AssertionError as error:
            status = self.process.poll()
            self._abort()
            raise AssertionError(f"{error}; status: {status}; standard error: {self.err}") from None

    def pids(self, count: int) -> list[int]:
        """The next lines, each a process number."""
        return [int(self.line()) for _ in range(count)]

    def interrupt(self) -> None:
        """What Ctrl-C at a terminal does: SIGINT to the whole foreground group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self) -> int:
        """Wait for its end; its exit status. What still holds its streams is not waited for."""
        try:
            return self.process.wait(LIMIT)
        except subprocess.TimeoutExpired:
            self._abort()
            raise AssertionError(f"it did not end; standard error: {self.err}") from None
        finally:
            self._read()

    def _abort(self) -> None:
        """Have it, and what is in its group, say on standard error where all threads are."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGABRT)
            self.process.wait()
        self._read()

    def _read(self) -> None:
        self.out, self.err = (stream.read_text(encoding="utf-8") for stream in self._streams)

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()
        self._channel.close()


class Programs:
    """Starts programs, and ends them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._started: list[Program] = []

    def __call__(self, code: str, *how: str, stdin: bool = False, beside: Mapping[str, str] = NOTHING) -> Program:
        directory = self._directory / f"program-{len(self._started)}"
        directory.mkdir()
        program = Program(directory, code, *how, stdin=stdin, beside=beside)
        self._started.append(program)
        return program

    def close(self) -> None:
        """End them all."""
        for program in self._started:
            program.close()


@contextmanager
def programs(directory: Path) -> Iterator[Programs]:
    """What starts programs; when this ends, none of their processes is left, or it raises."""
    before = leftovers.processes()
    starts = Programs(directory)
    try:
        yield starts
    finally:
        starts.close()
        left = leftovers.kill_late(before)
    assert not left, left


PRELUDE: Final = '''\
import asyncio, ctypes, os, signal, sys, threading, time
from concurrent.futures import CancelledError, ProcessPoolExecutor, ThreadPoolExecutor
import taskback

def tell(text):
    fd = os.open(os.environ["TELL"], os.O_WRONLY)
    os.write(fd, f"{text}\\n".encode())
    os.close(fd)

def loop(task):
    """Ends when it is told to; what it has told is there once it has reported."""
    taskback.current_task().report(0)  # which imports something; there the exception that stops it could get lost
    tell(os.getpid())
    taskback.current_task().report(1)
    while True:
        time.sleep(0.005)

def swallow(task):
    """Never ends by itself."""
    told = False
    while True:
        try:
            if not told:
                told = True
                tell(os.getpid())
            while True:
                time.sleep(0.005)
        except BaseException:
            pass

def spin(task):
    """Never leaves Python code."""
    tell(os.getpid())
    while True:
        pass

async def loop_async(task):
    tell(os.getpid())
    await asyncio.sleep(600)

def gil(task):
    tell(os.getpid())
    ctypes.PyDLL(None).sleep(600)

def echo(task):
    return task.get("n")

def processes(handler, **options):
    return taskback.ProcessPoolTaskBackend(
        handler, **{"max_workers": 2, "exit_grace_seconds": 1.0, "cancel_grace_seconds": 0.3, **options})

def threads(handler, **options):
    return taskback.ThreadPoolTaskBackend(handler, max_workers=2, exit_grace_seconds=1.0, **options)

def loops(handler, **options):
    return taskback.AsyncFireAndTrackBackend(handler, **options)

def inline(handler, **options):
    return taskback.SyncTaskBackend(handler, **options)

def in_threads_of_another(handler, **options):
    return taskback.ExecutorTaskBackend(handler, pool=ThreadPoolExecutor(2), **options)

def in_processes_of_another(handler, **options):
    return taskback.ExecutorTaskBackend(handler, pool=ProcessPoolExecutor(2), exit_grace_seconds=1.0, **options)

'''
