"""The kernel kills a worker and its group when the parent is gone, whatever the worker does.

A pipe a worker: the parent holds the writing end, the worker alone the reading one, armed so that the kernel sends
SIGKILL to the worker's whole process group when the other end closes. It needs no thread and no interpreter lock, and
reaches a stopped process too. It lies beneath the guardian, for the case that the guardian died first; what has left
the group, or runs on after its worker, it does not reach.

The guardian has one, too. While it imports that kills it; later it must not die at once, for it has workers to end. So
the kernel has it go on then: one that is stopped would not see that its parent is gone.

Holds: one reading end has one owner, so two workers never share one. Race: the parent died before the line was armed;
then nothing fires, and `arm` sees the end of file itself.
"""

import os
import select
import signal
from typing import Final

from taskback.pools._os import fcntl

_F_SETSIG: Final = 10  # Linux; the fcntl module does not name it
AVAILABLE: Final = hasattr(fcntl, "F_SETOWN") and hasattr(os, "O_ASYNC") and hasattr(os, "memfd_create")


def arm(fd: int, group: int | None = None) -> bool:
    """Bind a process group to the other end of a pipe.

    Args:
        fd (int): The reading end.
        group (int | None): The group that a new process leads which was given that end too, so that it is bound before
            it can do anything itself; None takes the caller's own, which it leads.

    Returns:
        bool: False if the other end is closed already.
    """
    if AVAILABLE:
        fcntl.fcntl(fd, fcntl.F_SETOWN, -(os.getpgrp() if group is None else group))
        fcntl.fcntl(fd, _F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC)
    return _is_held(fd)


def rouse(fd: int) -> None:
    """From now on the end of file on a line that is armed has the group go on, if it is stopped, and kills it not."""
    os.set_inheritable(fd, False)
    if AVAILABLE:
        fcntl.fcntl(fd, _F_SETSIG, signal.SIGCONT)


def _is_held(fd: int) -> bool:
    poll = select.poll()
    poll.register(fd, 0)  # the end of file alone, which is always told
    return not poll.poll(0)
