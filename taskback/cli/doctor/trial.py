"""Tries a check in a process of its own, for a limited time.

The process adopts what is orphaned below it, ends all of that before it tells what was found, and is stopped before it
is killed where it hangs: so nothing of what the check has started is left. A fork of this program, which has one thread
and no backend.
"""

import logging
import os
import pickle
import select
import signal
import struct
import time
from contextlib import suppress

from taskback.cli.doctor.finding import Check, Finding, Mark
from taskback.pools import _os, trees
from taskback.pools.child import descendants

_LENGTH = struct.Struct("!I")


def tried(check: Check, seconds: float) -> Finding:
    """What the check finds within so many seconds."""
    try:
        reading, writing = os.pipe()
    except OSError as error:
        return Finding(Mark.UNKNOWN, f"could not be tried: {error.strerror}")
    try:
        pid = os.fork()
    except OSError as error:
        os.close(reading)
        os.close(writing)
        return Finding(Mark.UNKNOWN, f"could not be tried, for no process can be started: {error.strerror}")
    if pid == 0:
        _try(check, writing)
    os.close(writing)
    try:
        return _heard(reading, time.monotonic() + seconds, seconds)
    finally:
        os.close(reading)
        _end(pid)


def _try(check: Check, writing: int) -> None:
    """In the child; does not return."""
    try:
        logging.disable(logging.CRITICAL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        _os.leave_the_terminal()
        with suppress(OSError):
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (0, 1, 2):
                os.dup2(null, fd)
        _os.adopt_orphans()
        try:
            found = check.look()
        except Exception as error:
            found = Finding(Mark.MISSING, str(error) or type(error).__name__)
        descendants.end_all()  # before it is told: with this process gone they would be nobody's
        data = pickle.dumps(found)
        os.write(writing, _LENGTH.pack(len(data)) + data)  # some hundred bytes, which a pipe takes as they are
    finally:
        os._exit(0)


def _heard(reading: int, deadline: float, seconds: float) -> Finding:
    poll = select.poll()
    poll.register(reading, select.POLLIN)
    data = b""
    while len(data) < _LENGTH.size or len(data) < _LENGTH.size + _LENGTH.unpack_from(data)[0]:
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            return Finding(Mark.UNKNOWN, f"did not end within {seconds:g} s")
        more = os.read(reading, 65536)
        if not more:
            return Finding(Mark.UNKNOWN, "its process died")
        data += more
    found = pickle.loads(data[_LENGTH.size :])
    assert isinstance(found, Finding)
    return found


def _end(pid: int) -> None:
    """End the process with all below it, and reap it."""
    _os.send_signal(pid, "SIGSTOP")
    for _ in range(100):  # until nothing is below it but what is dead
        below = descendants.below(descendants.children(pid))
        if not trees.alive(below):
            break
        descendants.kill(below, signal.SIGKILL)
        time.sleep(0.01)
    _os.send_signal(pid, "SIGKILL")
    os.waitpid(pid, 0)
    _os.kill_group(pid)
