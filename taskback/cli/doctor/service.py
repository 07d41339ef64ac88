"""The whole of it: a real backend, its guardian and workers. Runs in a process of its own; see trial."""

import os
import signal
import time
from typing import Final

from taskback import ProcessPoolTaskBackend, TaskState, WorkerDiedError
from taskback.cli.doctor.finding import ALL, Check, Finding, ok
from taskback.cli.doctor.handlers import act
from taskback.cli.doctor.mechanism import PATIENCE, NotGrantedError
from taskback.pools import trees

LIMIT: Final = 0.1  # seconds that the tasks get which do not end


def round_trip() -> Finding:
    """As many workers as there are by default: a result, and word of a worker that was killed."""
    begun = time.monotonic()
    with ProcessPoolTaskBackend(act) as backend:
        started = time.monotonic() - begun
        workers = len(backend.stats().workers)
        began = time.monotonic()
        pid = backend.run_sync({"do": "tell"})
        trip = time.monotonic() - began
        handle = backend.submit_sync({"do": "hold"})
        while (victim := handle.worker_pid) is None:
            time.sleep(0.001)
        killed = time.monotonic()
        os.kill(victim, signal.SIGKILL)
        error = handle.exception(PATIENCE)
        told = time.monotonic() - killed
    if not isinstance(error, WorkerDiedError) or error.pid != victim:
        raise NotGrantedError(f"the death of worker {victim} was told as {error!r}")
    if trees.alive([pid, victim]):
        raise NotGrantedError("a worker outlived its backend")
    seen = f"{workers} workers after {started * 1000:.0f} ms, a result after {trip * 1000:.1f} ms, a death after "
    return ok(seen + f"{told * 1000:.1f} ms", workers=workers, started=started, round_trip=trip, told=told)


def limits_kept() -> Finding:
    """A loop of Python code is stopped, C code that holds the GIL is killed."""
    with ProcessPoolTaskBackend(act, max_workers=1, timeout=LIMIT, cancel_grace_seconds=LIMIT) as backend:
        for what in ("loop", "hold"):
            handle = backend.submit_sync({"do": what})
            error = handle.exception(PATIENCE)
            if handle.state is not TaskState.TIMED_OUT:
                raise NotGrantedError(f"a task that does {what} ended as {handle.state.value}: {error!r}")
            if "handlers.py" not in str(getattr(error, "stack", "")):
                raise NotGrantedError("no stack is told")
    return ok("a loop and a call of C code are stopped, with their stacks told")


def nothing_left() -> Finding:
    """A daemon of a handler ends with its worker."""
    with ProcessPoolTaskBackend(act, max_workers=1) as backend:
        worker, daemon = backend.run_sync({"do": "daemon"})
        os.kill(worker, signal.SIGKILL)
        end = time.monotonic() + PATIENCE
        while trees.alive([daemon]):
            if time.monotonic() > end:
                raise NotGrantedError("a daemon that a handler started outlives its worker")
            time.sleep(0.002)
    return ok("a daemon of a handler dies with its worker")


CHECKS: Final = (
    Check("round_trip", round_trip, "ProcessPoolTaskBackend does not work here", ALL),
    Check("time_limits", limits_kept, "tasks may run on", ("timeout", "stops_anything", "stacks")),
    Check("daemons", nothing_left, "what handlers start may outlive them", ("kills_detached", "kills_children")),
)
