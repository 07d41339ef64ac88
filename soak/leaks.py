"""What the program holds: descriptors, threads, processes, files, memory; and whether that grows.

Between two rounds nothing is in flight, and only what lives for the whole run is there, so each of these is held
against what it was after the warm-up. At the very end everything is shut down, and nothing at all may be left.

RSS is flat if the median of the last quarter of the rounds after the warm-up is at most GROWTH of the median of their
first quarter, or at most ROOM bytes, above it. The warm-up is the first fifth of the run, three rounds at least.
"""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from soak.work import SLEEPER
from tests import leftovers

GROWTH: Final = 0.10
ROOM: Final = 12 << 20  # bytes
LEAST_ROUNDS: Final = 12  # after the warm-up, or medians of quarters say nothing
SETTLE: Final = 5.0  # seconds that what is on its way out gets to vanish


@dataclass(frozen=True, slots=True)
class Held:
    """How much there is at one moment."""

    descriptors: int
    threads: int
    processes: int
    files: int

    def exceeds(self, other: Held) -> bool:
        """Whether there is more of anything."""
        return any(getattr(self, name) > getattr(other, name) for name in Held.__slots__)


def held(directory: str) -> Held:
    """What there is now."""
    return Held(
        descriptors=len(os.listdir("/proc/self/fd")) - 1,
        threads=threading.active_count(),
        processes=len(leftovers.processes()),
        files=sum(len(files) for _, _, files in os.walk(directory)),
    )


def settled(directory: str, most: Held | None) -> Held:
    """The same, once there is no more than `most`, or it does not go."""
    deadline = time.monotonic() + SETTLE
    while True:
        gc.collect()
        found = held(directory)
        if most is None or not found.exceeds(most) or time.monotonic() > deadline:
            return found
        time.sleep(0.02)


def details(directory: str) -> str:
    """All of it, by name."""
    lines = leftovers.look().lines()
    lines += [f"file {path}" for path in Path(directory).rglob("*") if path.is_file()]
    return "\n  ".join(lines)


def shared_files(before: set[str], pids: set[int]) -> list[str]:
    """Names in /dev/shm that are new and ours: of the library, or made from the number of a process of this run."""
    try:
        now = set(os.listdir("/dev/shm"))
    except OSError:
        return []
    ours = ("taskback", *(f"-{pid}-" for pid in pids), *(f"_{pid}_" for pid in pids))
    return sorted(name for name in now - before if any(mark in name for mark in ours))


def end_escaped() -> int:
    """Kill what handlers have left and nobody has adopted; how many there were."""
    me = os.getpid()
    ours = {me, *(process.pid for process in psutil.Process(me).children(recursive=True))}
    escaped = 0
    for process in leftovers.processes():
        with suppress(psutil.NoSuchProcess):
            if process.cmdline() == list(SLEEPER) and process.pid not in ours and process.ppid() not in ours:
                process.kill()
                escaped += 1
    return escaped


def rss(pid: int) -> int:
    """Resident memory of a process, in bytes, without what files and shared memory have; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("RssAnon:"):
                    return int(line.split()[1]) << 10
    except OSError:
        return 0
    return psutil.Process(pid).memory_info().rss


def trim() -> None:
    """Give back what malloc keeps: it keeps what a payload needed for as long as it likes, which is no leak."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except AttributeError:  # another C library
        return


class Memory:
    """The memory of one process over the rounds."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.samples: list[int] = []

    def note(self, size: int) -> None:
        """A round is over."""
        if size:
            self.samples.append(size)

    def figures(self) -> tuple[int, int, int]:
        """At the start, after the warm-up, at the end."""
        warm, end = self._quarters()
        return self.samples[0] if self.samples else 0, warm, end

    def _quarters(self) -> tuple[int, int]:
        after = self.samples[max(3, len(self.samples) // 5) :]
        if not after:
            last = self.samples[-1] if self.samples else 0
            return last, last
        quarter = max(1, len(after) // 4)
        return int(statistics.median(after[:quarter])), int(statistics.median(after[-quarter:]))

    def what_is_wrong(self) -> str:
        """Whether it has grown; nothing is said of too few rounds."""
        if len(self.samples) - max(3, len(self.samples) // 5) < LEAST_ROUNDS:
            return ""
        warm, end = self._quarters()
        if end <= warm + max(ROOM, int(GROWTH * warm)):
            return ""
        return f"the memory of {self.name} grew from {warm >> 20} MiB after the warm-up to {end >> 20} MiB"
