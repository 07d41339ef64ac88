"""What the command says on standard error, and the errors that end it."""

import contextlib
import os
import sys
from typing import Final

from taskback.cli.streams import write_text

OK: Final = 0
SOME_FAILED: Final = 1
USAGE: Final = 2
INTERRUPTED: Final = 130


class CommandError(Exception):
    """Ends the command with a message instead of a traceback, and with this exit status."""

    def __init__(self, message: str, status: int = USAGE) -> None:
        super().__init__(message)
        self.status = status


def say(text: str) -> None:
    """Write a line to standard error; the run does not depend on somebody reading it."""
    if sys.stderr is None:  # it was closed when Python began
        return
    try:
        write_text(sys.stderr, f"taskback: {text}\n")
    except (OSError, ValueError):  # its reader is gone (`2>&1 | head`), or it was closed
        _mute()


def tasks(count: int) -> str:
    """So many tasks, in words."""
    return f"{count:,} task" if count == 1 else f"{count:,} tasks"


def _mute() -> None:
    """Let standard error end nowhere: what is stuck in its buffer would make Python exit with status 120."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stderr.fileno())
        os.close(nowhere)
