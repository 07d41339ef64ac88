"""A program with a `DurableTaskBackend`, to be killed at any moment; and what its handlers do.

`python -m tests.durable_program FOLDER INNER live` submits without end; with `drain` it submits nothing, and ends when
nothing is left. What was accepted, and what was done, it writes line by line into two files, whole lines at once.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import threading
import time
from typing import Any, Final

from taskback import (
    AsyncFireAndTrackBackend,
    DurableTaskBackend,
    ProcessPoolTaskBackend,
    SyncTaskBackend,
    TaskBackend,
    ThreadPoolTaskBackend,
    current_task,
)

IN_FLIGHT: Final = 150  # tasks; then it waits, so that what is left does not grow from life to life
JOURNAL: Final = "tasks.db"


def note(folder: str, name: str, line: str) -> None:
    """Append a line to a file, in one step, where it survives this process."""
    fd = os.open(os.path.join(folder, name), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, f"{line}\n".encode())
    finally:
        os.close(fd)


def do(task: dict[str, Any]) -> int:
    """Take a moment, and say that it is done."""
    time.sleep(task["seconds"])
    note(task["folder"], "done", current_task().id)
    return len(task["filler"])


async def do_async(task: dict[str, Any]) -> int:
    """The same, beside others."""
    await asyncio.sleep(task["seconds"])
    note(task["folder"], "done", current_task().id)
    return len(task["filler"])


def inner(name: str) -> TaskBackend:
    """What runs the tasks."""
    if name == "processes":
        return ProcessPoolTaskBackend(do, max_workers=2, max_queued=50)
    if name == "loop":
        return AsyncFireAndTrackBackend(do_async)
    if name == "inline":
        return SyncTaskBackend(do)
    assert name == "threads"
    return ThreadPoolTaskBackend(do, max_workers=2)


def new_task(folder: str) -> dict[str, Any]:
    """A task of some length and size."""
    size = random.choice((10, 200, 5_000))
    return {"type": "work", "folder": folder, "seconds": random.choice((0, 0, 0.001, 0.01)), "filler": "x" * size}


def submit_from_here(backend: DurableTaskBackend, folder: str) -> None:
    """A thread of the program's."""
    while True:
        if backend.inflight_count < IN_FLIGHT:
            note(folder, "accepted", backend.submit_sync(new_task(folder)).id)
        else:
            time.sleep(0.001)


async def submit_from_loop(backend: DurableTaskBackend, folder: str) -> None:
    """Some coroutines of the program's."""

    async def submit() -> None:
        while True:
            if backend.inflight_count < IN_FLIGHT:
                note(folder, "accepted", (await backend.submit(new_task(folder))).id)
            else:
                await asyncio.sleep(0.001)

    await asyncio.gather(*(submit() for _ in range(4)))


def main(folder: str, name: str, what: str) -> None:
    """Live until it is killed, or drain."""
    backend = DurableTaskBackend(inner(name), os.path.join(folder, JOURNAL), max_crashes=10_000)
    backend.initialize_sync()
    if what == "drain":
        while backend.inflight_count:
            time.sleep(0.01)
        backend.shutdown_sync()
        return
    print("up", flush=True)
    for _ in range(2):
        threading.Thread(target=submit_from_here, args=(backend, folder), daemon=True).start()
    asyncio.run(submit_from_loop(backend, folder))


if __name__ == "__main__":
    main(*sys.argv[1:])
