"""What a durable submission costs: `DurableTaskBackend` beside SQLite with a commit for each task, in turns in one run.

Each round submits the same small tasks to a backend of two worker processes whose handler does nothing, and counts
how many were accepted a second: written, and on the disk where a commit waits for that. The plain row writes the same
bytes as a row of the same kind of file, in a commit each, and does nothing else with them.

    scripts/bench durable [--rounds 5] [--tasks 3000] [--check]
"""

import argparse
import asyncio
import pickle
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any, Final

from benchmarks.work import nothing
from taskback import DurableTaskBackend, ProcessPoolTaskBackend

THREADS: Final = 32
MIN_RATE: Final = 5_000.0  # a second, awaited concurrently, with a disk that is waited for
TASK: Final[dict[str, Any]] = {"type": "note", "n": 1, "text": "x" * 100}


def plain(folder: Path, tasks: int, fsync: bool) -> float:
    """A commit for each."""
    with closing(sqlite3.connect(folder / "plain.db", isolation_level=None)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA synchronous = {'FULL' if fsync else 'NORMAL'}")
        db.execute("CREATE TABLE tasks (seq INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, task BLOB NOT NULL)")
        began = time.perf_counter()
        for number in range(tasks):
            db.execute("INSERT INTO tasks (id, task) VALUES (?, ?)", (b"%d" % number, pickle.dumps(TASK)))
        return tasks / (time.perf_counter() - began)


def awaited(backend: DurableTaskBackend, tasks: int) -> float:
    """Submissions that are all awaited together, in one event loop."""

    async def submit_all() -> float:
        began = time.perf_counter()
        handles = await asyncio.gather(*(backend.submit(TASK) for _ in range(tasks)))
        taken = time.perf_counter() - began
        await asyncio.gather(*handles)
        return tasks / taken

    return asyncio.run(submit_all())


def from_threads(backend: DurableTaskBackend, tasks: int) -> float:
    """Submissions of several threads, one after the other in each."""
    handles: list[Any] = []

    def submit() -> None:
        handles.extend([backend.submit_sync(TASK) for _ in range(tasks // THREADS)])

    threads = [threading.Thread(target=submit) for _ in range(THREADS)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = time.perf_counter() - began
    for handle in handles:
        handle.result()
    return len(handles) / taken


def one_by_one(backend: DurableTaskBackend, tasks: int) -> float:
    """Submissions of one thread, which waits for each."""
    began = time.perf_counter()
    handles = [backend.submit_sync(TASK) for _ in range(tasks // 10)]
    taken = time.perf_counter() - began
    for handle in handles:
        handle.result()
    return len(handles) / taken


ROWS: Final[dict[str, Callable[[DurableTaskBackend, int], float]]] = {
    "awaited together": awaited,
    f"from {THREADS} threads": from_threads,
    "from one thread": one_by_one,
}


def measure(rounds: int, tasks: int, fsync: bool) -> dict[str, float]:
    """Tasks a second, the median of the rounds."""
    found: dict[str, list[float]] = {"plain": [], **{name: [] for name in ROWS}}
    with tempfile.TemporaryDirectory() as folder:
        inner = ProcessPoolTaskBackend(nothing, max_workers=2)
        with DurableTaskBackend(inner, Path(folder) / "tasks.db", fsync=fsync) as backend:
            awaited(backend, 200)
            for number in range(rounds):
                turn = Path(folder) / str(number)
                turn.mkdir()
                found["plain"].append(plain(turn, tasks // 10, fsync))
                for name, row in ROWS.items():
                    found[name].append(row(backend, tasks))
    return {name: median(rates) for name, rates in found.items()}


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="scripts/bench durable")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tasks", type=int, default=3_000)
    parser.add_argument("--check", action="store_true", help=f"fail below {MIN_RATE:,.0f} a second awaited together")
    given = parser.parse_args()
    ok = True
    for fsync in (True, False):
        rates = measure(given.rounds, given.tasks, fsync)
        print(f"fsync={fsync}: SQLite, a commit for each task: {rates['plain']:,.0f}/s")
        for name in ROWS:
            print(f"  {name}: {rates[name]:,.0f}/s, {rates[name] / rates['plain']:.1f} times that", flush=True)
        ok = ok and (not fsync or rates["awaited together"] >= MIN_RATE)
    return int(given.check and not ok)


if __name__ == "__main__":
    sys.exit(main())
