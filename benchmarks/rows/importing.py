"""How long a program takes that imports a library and ends; and the same, less what a bare interpreter takes."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from statistics import median
from typing import Final

from benchmarks.bars import Bar, Line
from benchmarks.rows._row import Opened, Row, scaled

RUNS: Final = 5  # a round
BARE: Final = "bare-python"
CODE: Final = {
    "taskback": "import taskback",
    "stock-imports": "import concurrent.futures.process, asyncio",
    BARE: "pass",
}


def seconds_of(code: str) -> float:
    """Of one run."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


@contextlib.contextmanager
def opened(name: str, scale: float) -> Iterator[Opened]:
    """What it imports is in the page cache."""
    runs = min(RUNS, scaled(RUNS * 10, scale) // 10)

    def measure() -> dict[str, float]:
        pairs = [(seconds_of(CODE[name]), seconds_of(CODE[BARE])) for _ in range(runs)]
        found = {"import": median(whole for whole, _ in pairs)}
        if name != BARE:
            found["import-alone"] = median(whole - bare for whole, bare in pairs)
        return found

    measure()
    yield Opened(measure)


ROW: Final = Row(
    (
        Line("import", "`import taskback`, the whole program", bars=(Bar(1.3, "stock-imports"),)),
        Line("import-alone", "... less a bare interpreter", bars=(Bar(1.3, "stock-imports"),)),
    ),
    tuple(CODE),
    opened,
)
