"""Where a handler of this process is, as text: of a thread, or of a coroutine that waits. From any thread.

What is looked at runs on meanwhile: a stack is what was true a moment ago.
"""

import sys
import traceback
from types import FrameType
from typing import Any


def of_thread(ident: int) -> str:
    """The stack of a thread, the innermost call last; empty if it has ended."""
    frame = sys._current_frames().get(ident)
    return "" if frame is None else "".join(traceback.format_stack(frame))


def of_coroutine(coroutine: Any) -> str:
    """Where a coroutine waits, down to what it waits for; empty if it does not wait just now.

    What has no frame of its own, such as a future, ends the way down.
    """
    frames: list[tuple[FrameType, int]] = []
    while coroutine is not None:
        frame = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
        if frame is None:
            break
        frames.append((frame, frame.f_lineno))
        coroutine = getattr(coroutine, "cr_await", None) or getattr(coroutine, "gi_yieldfrom", None)
    return "".join(traceback.StackSummary.extract(iter(frames)).format())
