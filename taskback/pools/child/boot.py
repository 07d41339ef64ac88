"""How a guardian, or a worker that cannot be forked, begins: a fresh interpreter made like the parent.

It is started with `-c BOOT` and one socket, on which it is told its `sys.path` before it imports anything of ours. The
main script is never imported. Each step in `prepare` has bitten someone: what is inherited through exec (a mask of
signals, an ignored SIGCHLD), and what an import must find in place.
"""

import gc
import importlib
import logging
import marshal
import multiprocessing.process
import os
import pickle
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from taskback import _role
from taskback._leave import flush
from taskback.pools import _os
from taskback.pools.child import lifeline, stderr
from taskback.pools.child.limits import WorkerLimits

logger = logging.getLogger(__name__)

BOOT: Final = (  # it ends without a word where its parent is gone before it has said anything
    "import marshal, socket, sys; s = socket.socket(fileno=int(sys.argv[1])); "
    "b = marshal.loads(s.recv(1 << 18) or sys.exit()); "
    "sys.path[:] = b['path']; from taskback.pools.child import boot; boot.begin(s, b)"
)
BY_VALUE: Final = "cloudpickle"  # reads what travels by value
THREAD_CAPS: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")


def description(modules: "tuple[str, ...]", streams: bool, limits: WorkerLimits) -> dict[str, Any]:
    """What a new process is told: how this one is, and what to import.

    Args:
        modules (tuple[str, ...]): Imported once, by the guardian.
        streams (bool): Whether workers are spoken to by streams, not by packets.
        limits (WorkerLimits): How long workers are kept.
    """
    return {
        "role": "guardian",
        "path": [str(entry) for entry in sys.path],
        "argv": [str(argument) for argument in sys.argv],
        "cwd": _directory(),
        "filters": _filters(),
        "authkey": bytes(multiprocessing.process.current_process().authkey),
        "modules": [*modules, *([BY_VALUE] if BY_VALUE in sys.modules else [])],
        "streams": streams,
        "limits": tuple(limits),
    }


def _directory() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it has been removed
        return None


def _filters() -> bytes:
    try:
        return pickle.dumps(warnings.filters)
    except Exception:  # of a category that cannot be found by its name
        return b""


def packed(described: dict[str, Any]) -> bytes:
    """A description as one message."""
    return marshal.dumps(described)


def begin(sock: socket.socket, described: dict[str, Any]) -> None:
    """Become what is described; does not return."""
    prepare(described)
    if described["role"] == "guardian":
        from taskback.pools.child import guardian

        # While it imports it cannot see that its parent is gone. Later it must not die of that at once. Its parent has
        # done this, too, unless that was gone before it could.
        if not lifeline.arm(described["lifeline"]):
            os._exit(0)
        threads = imported(described["modules"])
        lifeline.rouse(described["lifeline"])
        run: Callable[[], None] = guardian.Guardian(sock, described, threads).run
    else:
        from taskback.pools.child import loop

        imported(described["modules"])
        limits = WorkerLimits(*described["limits"])
        run = loop.Worker(loop.Descriptors(*described["fds"]), described["streams"], limits).live
        sock.close()
    try:
        run()
    finally:
        os._exit(0)


def prepare(described: dict[str, Any]) -> None:
    """Signals, directory, arguments, warning filters, key: as the parent has them, and as children need them."""
    _os.shrug_off_signals()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, it would keep every exit status from us
    for number in (_os.CANCEL_SIGNAL, _os.STACK_SIGNAL):
        if number is not None:
            signal.signal(number, _os.do_nothing)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    stderr.tap()
    sys.argv[:] = described["argv"]
    if described["cwd"] is not None:
        with suppress(OSError):
            os.chdir(described["cwd"])
    if described["filters"]:
        # A category is looked up by its name: its module is imported here, numpy for one.
        with suppress(Exception), _role.importing("a category of warnings"):
            warnings.filters[:] = pickle.loads(described["filters"])  # type: ignore[index]  # it is a list
    # What a multiprocessing.Manager gives answers only those who have its maker's.
    multiprocessing.process.current_process().authkey = described["authkey"]


def imported(modules: "list[str]") -> list[str]:
    """Import what workers are to find imported; the names of threads that came of it, which no fork has."""
    for name in modules:
        try:
            with _role.importing(name):
                importlib.import_module(name)
        except BaseException:  # whoever needs it tries again, in a worker, and its call has the error
            logger.warning("the guardian cannot import %s", name, exc_info=True)
    gc.collect()
    gc.freeze()  # a collection in a worker would otherwise make all of this memory its own
    flush()
    return _other_threads()


def _other_threads() -> list[str]:
    names = [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()]
    with suppress(OSError):
        bare = len(os.listdir("/proc/self/task")) - 1 - len(names)
        names += ["a thread that is not Python's"] * bare
    return names
