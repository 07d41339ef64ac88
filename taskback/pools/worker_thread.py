"""One thread that we start and own, which performs what it takes from a queue.

`ThreadPool` has several over one queue; a lane of `ThreadPoolTaskBackend` has one, with a queue of its own. To give a
thread up is to close its queue and forget it: it ends when what holds it does, and nobody waits for it.

Threads: close() on any, in a signal handler and in `__del__` too; run() is the thread itself.
Locks: none; the queue is C code and may be used anywhere.
Holds: what was put in the queue before END is performed; what comes after it is not. No exception ends the thread.

It is a daemon thread, so that one which user code holds for ever does not hold up the end of the program. Whoever
wants its work done before that (a `ThreadPool` does) joins it in an exit hook. ARCHITECTURE.md says what that costs.
"""

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Final, Generic, TypeVar

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
END: Final = None  # in a queue: whoever takes it puts it back, for those that share the queue, and ends


class WorkerThread(threading.Thread, Generic[Item]):
    """See the top of the file; it runs from `start` to END.

    Args:
        name (str): The thread's name.
        items (SimpleQueue[Item | None]): What there is to do. It may be shared.
        perform (Callable[[Item], object]): Does it, and keeps no reference to it.
        prepare (Callable[[], bool] | None): Called first of all on the thread; it ends at once where that is False.
    """

    def __init__(
        self,
        name: str,
        items: "SimpleQueue[Item | None]",
        perform: Callable[[Item], object],
        prepare: Callable[[], bool] | None = None,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.performed = 0  # how many items; written by the thread alone
        self._items = items
        self._perform = perform
        self._prepare = prepare

    def close(self) -> None:
        """Let it end after what is in its queue by now."""
        self._items.put(END)

    def run(self) -> None:
        """Perform items until END."""
        if self._prepare is not None and not self._prepare():
            return
        items, perform = self._items, self._perform
        item: Item | None = END
        while True:
            try:
                item = items.get()
                if item is END:
                    break
                perform(item)
            except BaseException:  # ours, or one that a debugger sent
                logger.error("thread %s failed on an item and goes on", self.name, exc_info=True)
            item = END  # what was performed is not kept while this waits
            self.performed += 1
        items.put(END)
