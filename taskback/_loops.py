"""What other threads say to an event loop. It needs no asyncio, which a worker without async handlers never imports."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio


def call_in(loop: "asyncio.AbstractEventLoop", function: Callable[..., Any], *args: Any) -> bool:
    """Have it called on a loop's thread, from any; False if the loop has closed, as one does one day."""
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:
        return False
    return True
