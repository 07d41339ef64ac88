"""A worker's `sys.stderr`, whose end is kept where the parent finds it after the worker's death.

What is written goes where it went before, at once and unchanged; the rest is a copy of at most 4 KiB into memory. It is
laid before any import of the user's, so that a logging handler which an import makes writes to it, too. What code in C
writes to the descriptor itself is not seen here: to see that, a pipe would have to take the descriptor's place, and
somebody to empty it, on whom each of these lines would depend.
"""

import io
import sys
from collections.abc import Callable
from typing import Any

_keep: "Callable[[memoryview[int]], None] | None" = None


class _Tapped(io.FileIO):
    """The descriptor."""

    def write(self, data: Any, /) -> int:
        written = super().write(data)
        if _keep is not None and written:
            _keep(memoryview(data).cast("B")[:written])  # no copy: it may be a gigabyte
        return written


def tap() -> None:
    """Put it in the place of `sys.stderr`, if there is one."""
    stock = sys.stderr
    if stock is None:
        return
    try:
        raw = _Tapped(stock.fileno(), "wb", closefd=False)
    except (OSError, ValueError):  # closed
        return
    raw.name = stock.name
    through = getattr(stock, "write_through", False)  # -u
    tapped: Any = io.TextIOWrapper(
        io.BufferedWriter(raw), stock.encoding, stock.errors, line_buffering=True, write_through=through
    )
    tapped.mode = stock.mode
    sys.stderr = sys.__stderr__ = tapped  # type: ignore[misc]  # Final in typeshed


def keep(where: "Callable[[memoryview[int]], None]") -> None:
    """In a worker: what is written from now on goes there, too."""
    global _keep
    _keep = where
