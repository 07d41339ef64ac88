"""What a row is, and what several rows do."""

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final

from benchmarks.bars import Line
from benchmarks.contenders import Contender

PROCESSES: Final = (  # ours first
    *("backend", "pool", "stock", "mp.Pool", "loky", "pebble", "deadpool", "mpire"),
    *("aiomultiprocess", "anyio", "trio-parallel", "joblib"),
)
AWAITABLE: Final = tuple(name for name in PROCESSES if name not in ("mp.Pool", "mpire", "joblib"))
WARMING: Final = 200  # tasks that a rate is first told from


@dataclass(frozen=True, slots=True)
class Opened:
    """A contender that is ready.

    Attributes:
        round (Callable[[], dict[str, float]]): Measures a round; gives figures by line.
        note (str): Something to say of it.
        lacks (dict[str, str]): Lines that it has no figures for, and why.
    """

    round: Callable[[], dict[str, float]]
    note: str = ""
    lacks: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Row:
    """Lines of the table that are measured together.

    Attributes:
        lines (tuple[Line, ...]): Those.
        contenders (tuple[str, ...]): Who is measured; the bars are for the first one.
        opened (Callable): Given a contender's name and a scale, what makes it ready.
        seconds (float): That a round may take.
        pauses (bool): Contenders are stopped between their rounds.
    """

    lines: tuple[Line, ...]
    contenders: tuple[str, ...]
    opened: Callable[[str, float], AbstractContextManager[Opened]]
    seconds: float = 60.0
    pauses: bool = True


def scaled(count: int, scale: float) -> int:
    """So many of them at that scale, but some."""
    return max(10, int(count * scale))


def affordable(seconds_for: Callable[[int], float], full: int, seconds: float) -> int:
    """How many tasks a contender gets: all, or, if it is slow, what it does in some seconds. Warms it up.

    Args:
        seconds_for (Callable[[int], float]): Has so many done.
        full (int): All.
        seconds (float): What a slow one may take.
    """
    few = min(full, WARMING)
    seconds_for(few)  # workers start
    took = seconds_for(few)
    if took * full / few > 2 * seconds:  # the first ones are the slowest
        few = min(full, 4 * few)
        took = seconds_for(few)
    return max(few, min(full, int(few / took * seconds)))


def shortened(count: int, full: int) -> str:
    """The note of one that gets fewer."""
    return "" if count == full else f"{count:,} of them"


def numbered(count: int) -> list[dict[str, Any]]:
    """No-op tasks."""
    return [{"type": "nothing", "n": number} for number in range(count)]


def check(results: Sequence[Any], count: int) -> None:
    """No-ops gave their numbers, in order."""
    if list(results) != list(range(count)):
        raise AssertionError("results are wrong")


def together(contender: Contender, tasks: Sequence[dict[str, Any]]) -> list[Any]:
    """The results of tasks that are all under way at once, in whatever way the contender has for that."""
    if "submit" in contender.can:
        return [result() for result in [contender.submit(task) for task in tasks]]
    if "gather" in contender.can:
        return contender.run(lambda: contender.gather(tasks))
    return list(contender.map(tasks, None))


def told_by(module: str, *arguments: str) -> float:
    """The figure that a module's `main` prints, in a program of its own."""
    command = [sys.executable, "-m", "benchmarks.program", module, *arguments]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"its program failed: {' '.join(done.stderr.split()[-20:])}")
    return float(done.stdout.split()[-1])


def trips(
    contender: Contender, task: dict[str, Any], most: int, seconds: float, first: dict[str, Any] | None = None
) -> list[float]:
    """Seconds that a task takes, there and back, one at a time, from a thread or else in the contender's own loop.

    Args:
        contender (Contender): Open.
        task (dict): What is handed over.
        most (int): So many of them.
        seconds (float): But no more after that time.
        first (dict | None): What is handed over three times before, so that workers are there; None for the same.
    """
    if "call" not in contender.can:
        return awaited_trips(contender, task, most, seconds, first)
    for _ in range(3):
        contender.call(task if first is None else first)
    times = list[float]()
    end = time.perf_counter() + seconds
    while len(times) < most and (began := time.perf_counter()) < end:
        contender.call(task)
        times.append(time.perf_counter() - began)
    return times


def awaited_trips(
    contender: Contender, task: dict[str, Any], most: int, seconds: float, first: dict[str, Any] | None = None
) -> list[float]:
    """The same in an event loop."""

    async def main() -> list[float]:
        await contender.gather([task if first is None else first] * 3)
        times = list[float]()
        end = time.perf_counter() + seconds
        while len(times) < most and (began := time.perf_counter()) < end:
            await contender.gather([task])
            times.append(time.perf_counter() - began)
        return times

    return contender.run(main)
