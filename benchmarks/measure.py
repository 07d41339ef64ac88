"""Rounds in turn: of a row, every contender's process measures one round, then every one the next.

So all meet the same machine, whatever else it does. A contender has a limit for each answer; one that exceeds it, or
that fails, is ended with all of its processes, and the row goes on without it. Between its rounds a contender is
stopped, for some poll: an idle one of mpire would take 6 % of a CPU from the others.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import psutil

from benchmarks._faults.watch import kill_all, mark_run
from benchmarks.bars import Result
from benchmarks.contenders import PACKAGED
from benchmarks.rows import ROWS

OPENING: Final = 90.0  # seconds for the first answer, warming up included
CLOSING: Final = 10.0  # seconds to end after the last one


class ArmError(Exception):
    """A contender's process gave no figures, for the reason that is its text."""


class Arm:
    """The parent's side of one `benchmarks.arm`.

    Args:
        row (str): The row.
        contender (str): The contender.
        scale (float): Of the numbers of tasks.
    """

    def __init__(self, row: str, contender: str, scale: float) -> None:
        self.contender = contender
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 # it is closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.program", "benchmarks.arm", row, contender, str(scale)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            bufsize=0,
            start_new_session=True,
        )
        self.pid = self._process.pid  # of its process group, too
        self._rest = b""

    def pause(self) -> None:
        """Stop it, and those of its workers that are in its process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGCONT)

    def begin(self) -> None:
        """Have it measure a round."""
        self.resume()
        stdin = self._process.stdin
        assert stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its end is told by the answer that does not come
            stdin.write(b"\n")

    def answer(self, seconds: float) -> dict[str, Any]:
        """What it answers within that time.

        Raises:
            ArmError: It says that it cannot, or says nothing.
        """
        stdout = self._process.stdout
        assert stdout is not None
        deadline = time.monotonic() + seconds
        while b"\n" not in self._rest:
            left = deadline - time.monotonic()
            # Workers that are forks of it may hold the pipe open after it has died: so its own end is looked for, too.
            if not select.select([stdout], [], [], max(0.0, min(left, 0.5)))[0]:
                if left <= 0:
                    raise ArmError(f"nothing came within {seconds:g} s")
                if self._process.poll() is not None:
                    raise ArmError(self._how_it_died())
                continue
            data = os.read(stdout.fileno(), 65536)
            if not data:
                raise ArmError(self._how_it_died())
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        facts: dict[str, Any] = json.loads(line)
        for key in ("cannot", "failed"):
            if key in facts:
                raise ArmError(" ".join(facts[key].split())[:200])  # some are pages long
        return facts

    def _how_it_died(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(CLOSING)
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return f"its process ended with {self._process.poll()}" + (f": {lines[-1][:200]}" if lines else "")

    def close(self) -> None:
        """Let it close its pool; end it if it does not."""
        self.resume()
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(CLOSING)
        except subprocess.TimeoutExpired:
            self.kill()
        self._let_go()

    def kill(self) -> None:
        """End it with all that is below it."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        self._let_go()

    def _let_go(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._errors.close()


def measure_row(name: str, rounds: int, scale: float, without_peers: bool) -> list[Result]:
    """Measure a row.

    Args:
        name (str): Of `ROWS`.
        rounds (int): How many.
        scale (float): Of the numbers of tasks.
        without_peers (bool): Only ours and what comes with Python.

    Returns:
        list[Result]: One for each of its lines.
    """
    row = ROWS[name]
    contenders = [each for each in row.contenders if not (without_peers and each in PACKAGED)]
    results = {line.name: Result(line, row.contenders[0], without_peers=without_peers) for line in row.lines}

    def absent(contender: str, why: str) -> None:
        for result in results.values():
            if not result.figures.get(contender):
                result.absent.setdefault(contender, why)

    with _arms() as arms:
        for contender in contenders:
            arm = Arm(name, contender, scale)
            arms.append(arm)
            try:
                opened = arm.answer(OPENING)
            except ArmError as error:
                absent(contender, str(error))
                arms.remove(arm)
                arm.kill()
                continue
            if row.pauses:
                arm.pause()
            for line, result in results.items():
                if opened["note"]:
                    result.notes[contender] = opened["note"]
                if line in opened["lacks"]:
                    result.absent[contender] = opened["lacks"][line]
        for _ in range(rounds):
            for arm in list(arms):
                arm.begin()
                try:
                    figures: dict[str, float] = arm.answer(row.seconds)["figures"]
                except ArmError as error:
                    for result in results.values():  # what it did until then is not comparable
                        result.figures.pop(arm.contender, None)
                    absent(arm.contender, str(error))
                    arms.remove(arm)
                    arm.kill()
                    continue
                if row.pauses:
                    arm.pause()
                for line, figure in figures.items():
                    results[line].figures.setdefault(arm.contender, []).append(figure)
        for arm in arms:
            absent(arm.contender, "it has no figure for this")
    return list(results.values())


@contextlib.contextmanager
def _arms() -> Iterator[list[Arm]]:
    """Whatever is in the list at the end is closed, or, where something went wrong, killed; none of it is left."""
    mark_run()
    arms: list[Arm] = []
    try:
        yield arms
        while arms:
            arms.pop().close()
    finally:
        for arm in arms:
            arm.kill()
        kill_all()


def measure(names: Sequence[str], rounds: int, scale: float, without_peers: bool) -> Iterator[list[Result]]:
    """The rows of these names, one after another."""
    for name in names:
        yield measure_row(name, rounds, scale, without_peers)
