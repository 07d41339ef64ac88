"""What an event loop is to be woken for: the first has it woken, the rest ride along.

A wake-up from another thread costs a system call and a turn of the loop, more than all else that an awaited task does
there. So what comes until the loop has its turn goes with that, and some hundreds at most, so that a burst of thousands
holds nobody up.

Threads: post() on any; what was posted is called on the loop's own.
Locks: none, so that it may be used in a signal handler. Appending to a deque and taking from it are one step each.
Holds: what was posted is called once, unless the loop closes first. A loop is not kept by its mailbox.

Race: post() and the turn that empties. Who posts appends and then looks at `_scheduled`; the turn clears that and then
takes. (1) The flag is still up: the turn has not taken yet, and finds what was appended. (2) It is down: another turn
is scheduled. Two that post at once may both find it down; the second turn then finds less to do.
"""

import asyncio
import weakref
from collections import deque
from collections.abc import Callable
from typing import Final

from taskback._loops import call_in

MOST: Final = 256  # called in one turn


class Mailbox:
    """See the top of the file."""

    __slots__ = ("_loop", "_scheduled", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = weakref.ref(loop)
        self._waiting: deque[Callable[[], object]] = deque()
        self._scheduled = False

    def post(self, wake: Callable[[], object]) -> None:
        """Have it called by the loop; nothing happens if that has closed, for nobody waits there any more."""
        self._waiting.append(wake)
        if self._scheduled:
            return
        self._scheduled = True
        loop = self._loop()
        if loop is None or not call_in(loop, self._empty):
            self._waiting.clear()

    def _empty(self) -> None:
        self._scheduled = False
        waiting, loop = self._waiting, self._loop()
        assert loop is not None
        for _ in range(min(MOST, len(waiting))):
            try:
                waiting.popleft()()
            except Exception as error:  # of a callback that asyncio has added
                loop.call_exception_handler({"message": "a callback of a task handle raised", "exception": error})
        if waiting and not self._scheduled:
            self._scheduled = True
            loop.call_soon(self._empty)


_mailboxes: "weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Mailbox]" = weakref.WeakKeyDictionary()


def mailbox_of(loop: asyncio.AbstractEventLoop) -> Mailbox:
    """The mailbox of a loop. On the loop's own thread."""
    found = _mailboxes.get(loop)
    if found is None:
        found = _mailboxes[loop] = Mailbox(loop)
    return found
