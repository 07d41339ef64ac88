"""A handler whose module takes its time to import."""

import time
from typing import Any

import numpy


def handle(task: dict[str, Any]) -> tuple[int, int]:
    """When it was called, on the monotonic clock, and what numpy makes of a few numbers."""
    called_ns = time.monotonic_ns()
    if task["do"] == "sleep":
        time.sleep(600)
    return called_ns, int(numpy.arange(10).sum())
