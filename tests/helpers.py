"""What several test files use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import psutil

ROOT: Final = Path(__file__).resolve().parent.parent  # of the checkout


def run_python(*arguments: str, timeout: float = 30.0) -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter at the top of the checkout, `run_python("-c", code)` say, to its end."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def is_running(pid: int) -> bool:
    """Whether there is a process with this number that has not ended; a zombie has."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
