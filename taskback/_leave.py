"""How a process ends that is a fork which has come back to where its parent goes on. Light, for workers import it."""

import os
import sys
from contextlib import suppress
from typing import NoReturn


def flush() -> None:
    """Write out what is buffered, where that can be done."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # closed, full, or none at all
            stream.flush()


def leave() -> NoReturn:
    """End this process, which is such a fork."""
    flush()
    os._exit(0)
