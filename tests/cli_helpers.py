"""Runs the command as a user does, in a process of its own, and waits for what it writes, never for time to pass.

Every process that a `Command` starts, however far down and in whatever session, carries a mark in its environment;
the mark finds what a test would otherwise leave behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from tests.faults import Channel, has_ended

ROOT = Path(__file__).resolve().parents[1]
MARK = "TASKBACK_TEST_MARK"
LIMIT = 30.0  # seconds; the net under every wait

JOBS = '''\
import asyncio, os, sys, time
from taskback import TaskRouter

def tell(text):
    """Write a line to the test."""
    with open(os.environ["TELL"], "ab", buffering=0) as channel:
        channel.write(f"{text}\\n".encode())

def hold():
    """Wait until the test writes a byte."""
    with open(os.environ["GATE"], "rb", buffering=0) as gate:
        gate.read(1)

def echo(task):
    return task.get("n")

async def echo_async(task):
    await asyncio.sleep(0)
    return task.get("n")

def flaky(task):
    from taskback import current_task
    if current_task().attempt < task["attempt"]:
        raise ValueError(f"attempt {current_task().attempt}")
    return current_task().attempt

def alone(task):
    """Fail if another one of its bank is under way."""
    os.mkdir(f"{task['bank']}.lock")
    time.sleep(0.01)
    os.rmdir(f"{task['bank']}.lock")
    return task["n"]

def silent(task):
    time.sleep(60)

def count(task):
    tell(task["n"])
    return task["n"]

def work(task):
    tell(task["n"])
    hold() if task.get("holds") else time.sleep(0.002)
    return task["n"]

def gated(task):
    tell(task["n"])
    hold()
    return task["n"]

def stuck(task):
    tell(task["n"])
    while True:
        try:
            time.sleep(600)
        except BaseException:
            pass

def chosen(task):
    """Does what the task says."""
    match task["do"]:
        case "raise": raise ValueError(task["text"])
        case "set": return {1, 2}
        case "nan": return float("nan")
        case "surrogate": return "\\ud800 \\u2028"
        case "print": print("printed by the handler", flush=True)
        case "die": os.kill(os.getpid(), 9)
        case "loop":
            while True: pass
        case "peak": return peak_kib()
        case "path": return sys.path[0]
    return task["do"]

def peak_kib():
    """Greatest resident memory since this program was started; ru_maxrss would include the test's own."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))

careful = TaskRouter()

@careful.handler("flaky", max_attempts=2)
def careful_flaky(task):
    return flaky(task)

@careful.handler("alone", key="bank")
def careful_alone(task):
    return alone(task)

routed = TaskRouter()
routed.handler("echo", echo)
no_handler = 7
'''

# The command, with a line of progress fifty times a second.
OFTEN = """\
import sys
from taskback.cli import main
from taskback.cli.progress import Progress
Progress.interval = 0.02
if __name__ == "__main__":
    sys.exit(main())
"""


class Output:
    """What the command writes to one of its streams, read as it comes."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.ended = False
        self._data = b""
        os.set_blocking(fd, False)

    @property
    def text(self) -> str:
        """All that has come so far."""
        self.read()
        return self._data.decode(errors="replace")

    def wait_for(self, text: str, limit: float = LIMIT) -> None:
        """Read until the text has come; fails the test if it does not."""
        deadline = time.monotonic() + limit
        while text not in self.text:
            left = deadline - time.monotonic()
            ready = left > 0 and not self.ended and select.select([self.fd], [], [], left)[0]
            assert ready, f"no {text!r} in {self.text!r}"

    def read(self) -> None:
        """Take what has come."""
        try:
            while data := os.read(self.fd, 65536):
                self._data += data
            self.ended = True
        except BlockingIOError:
            pass
        except OSError:  # the other end of a terminal was closed
            self.ended = True

    def close(self) -> None:
        """Close the reading end."""
        os.close(self.fd)


class Command:
    """One `taskback ...` in a process and a session of its own."""

    def __init__(
        self,
        arguments: list[str],
        cwd: Path,
        *,
        env: Mapping[str, str] | None = None,
        program: list[str] | None = None,
        stdin: int | bytes = subprocess.DEVNULL,
        stdout: int | None = None,
        stderr_terminal: tuple[int, int] | None = None,
    ) -> None:
        self.mark = uuid.uuid4().hex
        out_read, out_write = os.pipe()
        err_read, err_write = stderr_terminal or os.pipe()
        self.process = subprocess.Popen(
            [*(program or [sys.executable, "-m", "taskback"]), *arguments],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": python_path(), MARK: self.mark, **(env or {})},
            stdin=subprocess.PIPE if isinstance(stdin, bytes) else stdin,
            stdout=out_write if stdout is None else stdout,
            stderr=err_write,
            start_new_session=True,
        )
        os.close(out_write)
        os.close(err_write)
        self.out, self.err = Output(out_read), Output(err_read)
        if isinstance(stdin, bytes):
            assert self.process.stdin is not None
            self.process.stdin.write(stdin)
            self.process.stdin.close()

    def finish(self, limit: float = LIMIT) -> int:
        """Wait for the end; gives the exit status, negative for a signal.

        Reads on meanwhile: the command must not wait for a full pipe.
        """
        deadline = time.monotonic() + limit
        pidfd = os.pidfd_open(self.process.pid)
        try:
            while True:
                streams = [stream.fd for stream in (self.out, self.err) if not stream.ended]
                left = max(0.0, deadline - time.monotonic())
                ready = select.select([pidfd, *streams], [], [], left)[0]
                assert ready, f"still runs after {limit} s: {self.err.text}"
                self.out.read()
                self.err.read()
                if pidfd in ready:
                    return self.process.wait()
        finally:
            os.close(pidfd)

    def signal(self, number: int, *, group: bool = False) -> None:
        """Send a signal to the command, or as a terminal does to its whole process group."""
        if group:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)

    def kill(self) -> None:
        """`kill -9`."""
        self.process.kill()
        self.process.wait(LIMIT)

    def survivors(self) -> list[psutil.Process]:
        """What is left of it."""
        return [process for process in psutil.process_iter() if _mark_of(process) == self.mark]

    def leaves_nothing(self, limit: float = 2.0) -> bool:
        """Whether all processes of it are gone; multiprocessing's helpers follow their parent after a moment."""
        return _wait_for_end(self.survivors(), limit) and not self.survivors()  # they may have started others

    def close_processes(self) -> None:
        """End all that is left of it."""
        while left := self.survivors():
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            self.process.poll()  # reaps it
            assert _wait_for_end(left, LIMIT), f"cannot be killed: {left}"

    def close(self) -> None:
        """Leave nothing behind."""
        self.close_processes()
        self.process.wait(LIMIT)
        self.out.close()
        self.err.close()


def _wait_for_end(processes: list[psutil.Process], limit: float) -> bool:
    """Whether all have ended in time."""
    deadline = time.monotonic() + limit
    return all(has_ended(process.pid, deadline) for process in processes)


def _mark_of(process: psutil.Process) -> str | None:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return process.environ().get(MARK)
    except (psutil.Error, OSError):
        return None


def python_path() -> str:
    """Where the command finds taskback, whether it is installed or not."""
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


class Desk:
    """A directory with a module of handlers, tasks, results, and the commands that were started in it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.tasks = directory / "tasks.jsonl"
        self.out = directory / "results.jsonl"
        (directory / "jobs.py").write_text(JOBS)
        self.told = Channel(directory, "tell")
        self.gate = Channel(directory, "gate")
        self._commands: list[Command] = []

    def write_tasks(self, *tasks: Any) -> None:
        """Write the input: a line a task; what is bytes goes in as it is."""
        lines = (task if isinstance(task, bytes) else json.dumps(task).encode() + b"\n" for task in tasks)
        self.tasks.write_bytes(b"".join(lines))

    def start(self, handler: str, *options: str, tasks: str = "tasks.jsonl", **more: Any) -> Command:
        """Start `taskback run HANDLER TASKS`."""
        return self.start_command("run", handler, tasks, *options, **more)

    def start_command(self, *arguments: str, env: Mapping[str, str] | None = None, **more: Any) -> Command:
        """Start the command with these arguments."""
        channels = {"TELL": self.told.path, "GATE": self.gate.path}
        command = Command(list(arguments), self.directory, env={**channels, **(env or {})}, **more)
        self._commands.append(command)
        return command

    def run(self, handler: str, *options: str, **more: Any) -> tuple[int, Command]:
        """Run to the end."""
        command = self.start(handler, *options, **more)
        return command.finish(), command

    def results(self) -> list[dict[str, Any]]:
        """The whole results file, in the order of the input; fails the test if a line has two."""
        return in_order(self.out.read_text())

    def close(self) -> None:
        """Leave nothing behind."""
        for command in self._commands:
            command.close()
        self.told.close()
        self.gate.close()


def in_order(text: str) -> list[dict[str, Any]]:
    """Result lines, sorted by the line of the input; fails the test if a line has two."""
    assert text == "" or text.endswith("\n"), f"the last line is torn: {text[-80:]!r}"
    records = sorted((json.loads(line) for line in text.splitlines()), key=lambda record: int(record["line"]))
    lines = [record["line"] for record in records]
    assert len(set(lines)) == len(lines), f"lines with several results: {lines}"
    return records


def make_desk(directory: Path) -> Iterator[Desk]:
    """The body of a fixture."""
    desk = Desk(directory)
    try:
        yield desk
    finally:
        desk.close()
