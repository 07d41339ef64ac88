"""Programs that have backends, so that something can befall them: python -m benchmarks._faults.parents NAME PIPE ...

Each ends at the end of its standard input, so that none is left when whoever started it is gone.
"""

import asyncio
import os
import sys
import time
from contextlib import suppress
from typing import Final

from benchmarks._faults import handlers
from taskback import ProcessPoolTaskBackend, TaskTimeoutError

BUSY: Final = 0.002  # seconds that a callback holds the loop


def doomed(pipe: str) -> None:
    """Has workers that are busy, idle, in C code and, by its killer, stopped; at a line of input, some that start."""
    backend = ProcessPoolTaskBackend(handlers.handle, max_workers=4)
    for what in ("spin", "hold the GIL", "sleep"):
        backend.submit_sync({"do": what, "tell": pipe})
    backend.run_sync({"do": "return", "tell": pipe})
    while sys.stdin.readline():
        starting = ProcessPoolTaskBackend(handlers.handle, max_workers=2)
        starting.submit_sync({"do": "sleep"})
        print("starting", flush=True)


def busy(pipe: str, limit: float, grace: float) -> None:
    """Has a task in C code with a time limit and, from one line of input to the next, a loop that is never free."""
    asyncio.run(_busy(pipe, limit, grace))


async def _busy(pipe: str, limit: float, grace: float) -> None:
    # By the loop itself: a thread that reads would hardly get the GIL, for this loop lets go of it every two
    # milliseconds, too briefly for anyone to wake and take it, and too often for CPython to make it yield.
    lines = asyncio.Queue[bytes]()
    loop = asyncio.get_running_loop()
    loop.add_reader(0, lambda: lines.put_nowait(os.read(0, 1)))

    async with ProcessPoolTaskBackend(
        handlers.handle, max_workers=1, timeout=limit, cancel_grace_seconds=grace
    ) as backend:
        while await lines.get():
            await backend.run({"do": "return"})  # a worker is there, and takes the next one from this thread
            handle = await backend.submit({"do": "hold the GIL", "tell": pipe})
            while lines.empty():
                until = time.monotonic() + BUSY
                while time.monotonic() < until:
                    pass
                await asyncio.sleep(0)
            await lines.get()
            with suppress(TaskTimeoutError):
                await handle
            print(handle.state.name, flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "doomed":
        doomed(sys.argv[2])
    else:
        busy(sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
