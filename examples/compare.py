"""How long does a CPU-heavy job take inline, in threads and in processes, and how long is the loop held up?

From the checkout's root, with the library installed:
    python -m examples.compare

Writes to --out: tasks.jsonl, the tasks, for `taskback run`; consolidated.jsonl, a result a line.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from examples.consolidation import STDLIB, consolidate
from examples.stdlib_banks import stdlib_tasks
from taskback import ProcessPoolTaskBackend, SyncTaskBackend, TaskBackend, ThreadPoolTaskBackend

TICK: Final = 0.005  # seconds between two looks at the event loop
GLIMPSE: Final = 8  # statements shown


@dataclass(frozen=True, slots=True)
class Run:
    """One backend's run over all tasks; times in seconds, results in the order of the tasks."""

    name: str
    seconds: float
    longest_stall: float
    results: list[dict[str, Any]]


class StallMeter:
    """Measures, while it is entered, by how much the event loop was late at worst."""

    def __init__(self) -> None:
        self.longest = 0.0  # seconds

    async def __aenter__(self) -> StallMeter:
        self._last = time.perf_counter()
        self._ticker = asyncio.create_task(self._tick())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._look()  # a stall that lasts until now has kept the ticker from seeing it
        self._ticker.cancel()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            self._look()

    def _look(self) -> None:
        now = time.perf_counter()
        self.longest = max(self.longest, now - self._last - TICK)
        self._last = now


async def measure(name: str, backend: TaskBackend, tasks: Sequence[dict[str, Any]]) -> Run:
    """Run the tasks; the wall time has the backend's start and its shutdown in it."""
    gc.collect()  # what earlier runs left is not to be collected, and felt, in this one
    async with StallMeter() as meter:
        began = time.perf_counter()
        async with backend:
            handles = [await backend.submit(task) for task in tasks]
            results = await asyncio.gather(*handles)
        seconds = time.perf_counter() - began
    return Run(name, seconds, meter.longest, results)


async def compare(tasks: Sequence[dict[str, Any]], workers: int) -> list[Run]:
    """Run the tasks on each backend in turn, inline first."""
    backends: dict[str, TaskBackend] = {
        "inline": SyncTaskBackend(consolidate),
        f"{workers} threads": ThreadPoolTaskBackend(consolidate, max_workers=workers),
        f"{workers} processes": ProcessPoolTaskBackend(consolidate, max_workers=workers),
    }
    runs = []
    for name, backend in backends.items():
        print(f"running {len(tasks)} tasks: {name} ...", flush=True)
        runs.append(await measure(name, backend, tasks))
    return runs


def table(runs: Sequence[Run]) -> str:
    """Set the runs beside the first of them."""
    first = runs[0]
    rows = [f"{'':14}{'wall time':>11}{'of inline':>11}{'longest stall':>16}  results"]
    for run in runs:
        verdict = "same" if run.results == first.results else "DIFFERENT"
        rows.append(
            f"{run.name:14}{run.seconds:9.2f} s{run.seconds / first.seconds:11.2f}"
            f"{run.longest_stall * 1000:13.1f} ms  {'-' if run is first else verdict}"
        )
    return "\n".join(rows)


def glimpse(results: Iterable[dict[str, Any]]) -> str:
    """Show the statements that were found in the most places."""
    entries = [(result["bank_id"], entry) for result in results for entry in result["merged"]]
    entries.sort(key=lambda pair: (-len(pair[1]["sources"]), pair[0], pair[1]["text"]))
    return "\n".join(
        f"{len(entry['sources']):4} x  {entry['text'][:80]}\n        from {entry['sources'][0]}"
        for _, entry in entries[:GLIMPSE]
    )


def write_lines(path: Path, values: Iterable[dict[str, Any]]) -> None:
    """Write one JSON value a line."""
    path.write_text("".join(f"{json.dumps(value)}\n" for value in values), encoding="utf-8")


def cpu_count() -> int:
    """Give the CPUs that this process may use: in a container often fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.compare", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, default=Path(".demo"), help="folder for the output (%(default)s)")
    parser.add_argument("--workers", type=int, default=cpu_count(), help="of either kind (%(default)s)")
    return parser.parse_args()


def main() -> int:
    """Compare, print, write; 1 if the backends disagree about the results."""
    options = _options()

    tasks = stdlib_tasks(STDLIB)
    if not tasks:
        sys.exit("this Python has no standard library in source form")
    options.out.mkdir(parents=True, exist_ok=True)
    write_lines(options.out / "tasks.jsonl", tasks)

    runs = asyncio.run(compare(tasks, options.workers))
    results = runs[0].results
    write_lines(options.out / "consolidated.jsonl", results)

    print(f"\n{table(runs)}\n")
    found, distinct = (sum(result[key] for result in results) for key in ("statements", "distinct"))
    print(f"{found} statements in {len(results)} banks, {distinct} once merged. The most repeated:")
    print(glimpse(results))
    return 0 if all(run.results == results for run in runs) else 1


if __name__ == "__main__":
    sys.exit(main())
