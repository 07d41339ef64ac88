"""What the pools are made of, each tried by itself. All of it runs in a process of its own; see trial."""

import ctypes
import faulthandler
import os
import select
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from typing import Final

from taskback.cli.doctor.finding import ALL, Check, Finding, limited, ok
from taskback.pools import _os
from taskback.pools.child import descendants, lifeline, packets

PATIENCE: Final = 5.0  # seconds that the kernel has for what takes it milliseconds


class NotGrantedError(Exception):
    """What was tried did not do what it should; the text says what came instead."""


def _ensure(holds: object, otherwise: str) -> None:
    if not holds:
        raise NotGrantedError(otherwise)


def _readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], PATIENCE)[0])


def processes() -> Finding:
    """A fork, and a fresh interpreter with the null device for its input."""
    pid = os.fork()
    if pid == 0:
        os._exit(7)
    _ensure(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7, "a fork did not end as it should")
    done = subprocess.run(
        [sys.executable, "-I", "-c", "import sys; print(7, sys.stdin.read())"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    _ensure(done.stdout.split() == [b"7"], f"{sys.executable} cannot be run: exit status {done.returncode}")
    return ok("fork, and a fresh interpreter", interpreter=sys.executable)


def packet_sockets() -> Finding:
    """Whole messages, a descriptor beside one, and the end of file; then how large one may be."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    socket.send_fds(near, [b"one"], [0])
    near.send(b"two")
    first, fds, _, _ = socket.recv_fds(far, 100, 1)
    for fd in fds:
        os.close(fd)
    _ensure((first, len(fds), far.recv(100)) == (b"one", 1, b"two"), "messages do not arrive as they were sent")
    least, most = 0, 1 << 24  # the largest that is taken lies between
    while most - least > 1:
        size = (least + most) // 2
        try:
            near.send(bytes(size), socket.MSG_DONTWAIT)
        except OSError:
            most = size
        else:
            least = size
            far.recv(size)
    near.close()
    _ensure(far.recv(1) == b"", "the end is not told")
    seen = f"SOCK_SEQPACKET, {least:,} bytes a packet"
    if least < packets.INLINE + 100:
        return limited(seen, "what is larger goes through memory: slower, as certain", packet_bytes=least)
    return ok(seen, packet_bytes=least)


def memory() -> Finding:
    """Memory without a name that cannot be shrunk, mapped twice."""
    _ensure(_os.HAS_PACKETS, "this Python lacks memfd_create, seals or ctypes")
    fd = _os.unnamed_memory(1 << 20)
    one, two = (_os.map_memory(fd, 1 << 20, private=False) for _ in range(2))
    one[5] = b"x"
    _ensure(two[5] == b"x", "it is not shared")
    try:
        os.ftruncate(fd, 0)
    except PermissionError:
        return ok("memfd_create, sealed and shared")
    raise NotGrantedError("its seal does not hold")


def pidfd() -> Finding:
    """Tells of a child's death, and takes a signal for it."""
    _ensure(hasattr(os, "pidfd_open"), "this Python or system has none")
    pid = os.fork()
    if pid == 0:
        signal.pause()
    watch = os.pidfd_open(pid)
    signal.pidfd_send_signal(watch, signal.SIGKILL)
    _ensure(_readable(watch), "it does not tell of a death")
    os.waitpid(pid, 0)
    return ok("tells of a death, takes signals")


def subreaper() -> Finding:
    """What loses its parent comes to us, with a session of its own too, and is found below us."""
    _ensure(_os.adopt_orphans(), "prctl refuses")
    told, tell = os.pipe()
    if (child := os.fork()) == 0:
        if os.fork() == 0:
            os.setsid()
            os.write(tell, f"{os.getpid()}\n".encode())
            signal.pause()
        os._exit(0)
    os.waitpid(child, 0)
    _ensure(_readable(told), "a daemon could not begin")
    orphan = int(os.read(told, 100))
    found = orphan in descendants.children(os.getpid())
    os.kill(orphan, signal.SIGKILL)
    _ensure(found, "an orphan is not found below whoever adopts it")
    return ok("adopts orphans, and finds them")


def line_of_life() -> Finding:
    """The kernel kills a process in C code that holds the GIL, when the other end closes."""
    _ensure(lifeline.AVAILABLE, "this system has no F_SETOWN or O_ASYNC")
    reading, writing = os.pipe()
    told, tell = os.pipe()
    if (pid := os.fork()) == 0:
        try:
            os.close(writing)
            os.setsid()
            lifeline.arm(reading)
            os.write(tell, b"x")
            ctypes.PyDLL(None).sleep(600)
        finally:
            os._exit(3)
    os.close(tell)
    watch = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else -1
    _ensure(_readable(told) and os.read(told, 1), "F_SETSIG is refused")
    since = time.monotonic()
    os.close(writing)
    if watch >= 0:
        _readable(watch)
    else:
        time.sleep(0.5)
    ended, status = os.waitpid(pid, os.WNOHANG)
    _ensure(ended and os.waitstatus_to_exitcode(status) == -signal.SIGKILL, "the kernel does not kill")
    return ok(f"kills after {(time.monotonic() - since) * 1000:.1f} ms")


def stop_signals() -> Finding:
    """One raises out of a loop of Python code, the other has the stack written, without ptrace."""
    cancel, stack = _os.CANCEL_SIGNAL, _os.STACK_SIGNAL
    if cancel is None or stack is None:
        raise NotGrantedError("this system has no real-time signals")

    def strike(*_: object) -> None:
        raise NotGrantedError("struck")

    before = signal.signal(cancel, strike)
    struck = False
    try:
        os.kill(os.getpid(), cancel)
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            pass
    except NotGrantedError:
        struck = True
    finally:
        signal.signal(cancel, before)
    _ensure(struck, "it is not delivered")
    fd = _os.unnamed_file("taskback-doctor")
    faulthandler.register(stack, file=fd, all_threads=True)
    os.kill(os.getpid(), stack)
    faulthandler.unregister(stack)
    _ensure(b"stop_signals" in os.pread(fd, 65536, 0), "no stack is written")
    return ok(f"real-time signals {cancel} and {stack}; stacks without ptrace")


def bell() -> Finding:
    """Wakes who waits."""
    rung = _os.Bell()
    rung.ring()
    _ensure(_readable(rung.fileno()), "it is not heard")
    return ok("eventfd" if hasattr(os, "eventfd") else "a pipe in place of eventfd")


def oom_score() -> Finding:
    """A worker offers itself to the kernel."""
    _os.be_first_to_go()
    with open("/proc/self/oom_score_adj", encoding="ascii") as file:
        score = int(file.read())
    _ensure(score >= 300, f"oom_score_adj stays {score}")
    return ok("workers go before the program")


def clock() -> Finding:
    """One monotonic clock for all processes."""
    told, tell = os.pipe()
    before = time.monotonic_ns()
    if (pid := os.fork()) == 0:
        with suppress(OSError):
            os.write(tell, str(time.monotonic_ns()).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    theirs = int(os.read(told, 100))
    _ensure(before <= theirs <= time.monotonic_ns(), "processes disagree on it")
    return ok(f"monotonic, to {time.get_clock_info('monotonic').resolution * 1e9:g} ns")


CHECKS: Final = (
    Check("processes", processes, "no worker can be started: ProcessPoolTaskBackend does not work here", ALL),
    Check("packets", packet_sockets, "nothing can be said to a worker: ProcessPoolTaskBackend does not work here", ALL),
    Check("memory", memory, "a worker cannot be looked at: ProcessPoolTaskBackend does not work here", ALL),
    Check("bell", bell, "no lane can be woken: ProcessPoolTaskBackend does not work here", ALL),
    Check(
        "pidfd",
        pidfd,
        "the guardian alone tells of a death; if it died too, that may be told late",
        ("survives_worker_death",),
    ),
    Check(
        "subreaper",
        subreaper,
        "daemons that a handler starts may outlive it, and the program",
        ("kills_detached", "no_orphans"),
    ),
    Check(
        "lifeline",
        line_of_life,
        "where guardian and program are killed together, workers may live on",
        ("no_orphans", "no_orphans_in_c_code"),
    ),
    Check(
        "signals",
        stop_signals,
        "a task is stopped by killing its worker alone, and its stack is not told",
        ("timeout", "cancels_running", "stacks"),
    ),
    Check(
        "oom_score",
        oom_score,
        "where memory runs out, the kernel may take the program before a worker",
        ("survives_worker_death",),
    ),
    Check("clock", clock, "begins and time limits are told wrongly", ("exact_start", "timeout")),
)
