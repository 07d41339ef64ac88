"""How a lock that is taken often is taken: who finds it taken lets its owner go on first.

Whoever waits for a lock gets it in the moment in which it is let go of, and is its owner while it waits for the GIL;
the thread that has the GIL runs into the lock again, waits in its turn, and so on: two threads that take it often
change places at every step, which costs ten times what they do. Here who finds it taken lets others have the GIL, its
owner above all, and looks again. The owner goes on, and often has taken it several times by then. So the lock is free
as a rule when it is asked for, which `with` then does, as of any lock: nothing depends on it that this was called.

    if lock.locked():
        give_way(lock)
    with lock:
        ...

It is for locks that are held briefly, and over nothing that waits.
"""

import threading
import time
from typing import Final

TRIES: Final = 64  # then it is waited for: its owner is held up


def give_way(lock: threading.Lock) -> None:
    """Let others go on until the lock is free, or for a while."""
    for _ in range(TRIES):
        time.sleep(0)
        if not lock.locked():
            return
