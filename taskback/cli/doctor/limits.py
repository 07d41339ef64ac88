"""How much of everything there is: descriptors, processes, memory, CPUs. Runs in a process of its own; see trial."""

import errno
import os
import resource
import signal
import sys
import sysconfig
from contextlib import suppress
from typing import Final

from taskback import _cgroup
from taskback.cli.doctor.finding import Check, Finding, limited, ok
from taskback.pools import _os

FDS_A_WORKER: Final = 11  # in the program
SPARE: Final = 32  # descriptors and processes that the guardian, payloads and the program's own need
MOST_TRIED: Final = 256  # processes that are started to see whether so many may be


def python() -> Finding:
    """The interpreter, and whether it is one that this was run on."""
    seen = f"{sys.implementation.name} {'.'.join(map(str, sys.version_info[:3]))}"
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return limited(f"{seen}, free-threaded", "taskback was never run without the GIL")
    if sys.implementation.name != "cpython":
        return limited(seen, "taskback was never run on anything but CPython")
    return ok(seen)


def cpus() -> Finding:
    """What `max_workers` is where nobody says."""
    count, quota = _os.available_cpus(), _cgroup.cpu_quota()
    seen = f"max_workers is {count}: {os.cpu_count()} CPUs, quota {'none' if quota is None else f'{quota:g}'}"
    return ok(seen, max_workers=count, cpus=os.cpu_count(), quota=quota)


def descriptors() -> Finding:
    """Opens as many as all workers need."""
    workers = _os.available_cpus()
    needed = FDS_A_WORKER * workers + SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened: list[int] = []
    try:
        while len(opened) < needed:
            opened.append(os.dup(1))
    except OSError as error:
        if error.errno not in (errno.EMFILE, errno.ENFILE):
            raise
    for fd in opened:
        os.close(fd)
    seen = f"RLIMIT_NOFILE {soft:,} of {hard:,}"
    if len(opened) == needed:
        return ok(seen, soft=soft, hard=hard)
    room = max(0, (len(opened) - SPARE) // FDS_A_WORKER)
    means = f"with {SPARE} for the program itself, room for {room} of {workers} workers: "
    means += "raise the limit (ulimit -n), or set max_workers"
    return limited(seen, means, "uses_cores", "survives_worker_death", soft=soft, hard=hard, room=room)


def process_count() -> Finding:
    """Starts as many processes as all workers and their threads are."""
    workers = _os.available_cpus()
    needed = min(2 * workers + SPARE, MOST_TRIED)
    started: list[int] = []
    reading, writing = os.pipe()
    why = ""
    try:
        while len(started) < needed:
            pid = os.fork()
            if pid == 0:
                with suppress(BaseException):
                    os.close(writing)
                    os.read(reading, 1)  # until this is over, however
                os._exit(0)
            started.append(pid)
    except OSError as error:
        why = error.strerror or str(error)
    finally:
        os.close(writing)
        for pid in started:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    soft = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    most = _cgroup.pids_max()
    limit = "unlimited" if soft == resource.RLIM_INFINITY else f"{soft:,}"
    seen = f"RLIMIT_NPROC {limit}, pids.max {'none' if most is None else f'{most:,}'}; {len(started)} more started"
    facts = {"rlimit": None if soft == resource.RLIM_INFINITY else soft, "pids_max": most, "started": len(started)}
    if not why:
        return ok(seen, **facts)
    means = f"{needed} processes and threads for {workers} workers were tried: {why}"
    return limited(seen, means, "uses_cores", "survives_worker_death", **facts)


def memory_limits() -> Finding:
    """What the control group allows."""
    found = _cgroup.group("memory")
    if found is None:
        return limited("no control group is mounted", "limits of memory that are set for this process are not seen")
    most, high = _cgroup.memory_max(), _cgroup.memory_high()
    words = {"memory.max": most, "memory.high": high}
    said = ", ".join(f"{name} {'none' if size is None else f'{size / 2**20:,.0f} MiB'}" for name, size in words.items())
    return ok(f"version {found.version}, {found.path}: {said}", path=found.path, memory_max=most, memory_high=high)


def oom_group() -> Finding:
    """Whether the kernel kills one process or all."""
    found = _cgroup.oom_group()
    if found is None:
        return ok("memory.oom.group is not set: a worker is killed alone")
    means = "where memory runs out the kernel kills the program with its workers, and nobody is told"
    return limited(f"memory.oom.group is 1 in {found}", means, "survives_worker_death", group=found)


def shared_memory() -> Finding:
    """Nothing of ours; but what handlers use, multiprocessing and joblib for two."""
    try:
        found = os.statvfs("/dev/shm")
    except OSError as error:
        return limited(f"/dev/shm: {error.strerror}", "taskback needs none; multiprocessing and joblib in handlers do")
    size = found.f_frsize * found.f_bavail
    return ok(f"/dev/shm has {size / 2**20:,.0f} MiB free; taskback needs none", free_bytes=size)


CHECKS: Final = (
    Check("python", python, "nothing is known of this Python"),
    Check("cpus", cpus, "max_workers has to be set"),
    Check("descriptors", descriptors, "descriptors cannot be counted", ("uses_cores",)),
    Check("process_count", process_count, "processes cannot be counted", ("uses_cores",)),
    Check("memory_limits", memory_limits, "limits of memory are not seen"),
    Check("oom_group", oom_group, "who is killed where memory runs out is not known"),
    Check("shared_memory", shared_memory, "taskback needs none"),
)
