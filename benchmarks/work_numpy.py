"""What workers do with arrays; importing it takes as long as importing numpy."""

from typing import Any

import numpy

from benchmarks import work

PAGE: int = 512  # float64s


def total(task: dict[str, Any]) -> float:
    """A number from each page of an array."""
    return float(task["data"][::PAGE].sum())


def negative(task: dict[str, Any]) -> Any:
    """A new array of the same size."""
    return numpy.negative(task["data"])


def hold(task: dict[str, Any]) -> float:
    """As `work.hold`."""
    return work.hold(task)
