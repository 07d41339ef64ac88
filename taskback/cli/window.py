"""The lines in flight, bounded: a million lines take no more memory than a thousand.

Threads: the feed enters, the main thread leaves and closes.
Locks: _changed is a leaf; while it is held no other lock is taken, no user code runs.
Holds: a line that was given to the backend is in _inside until its result was written or given up.
"""

import threading

from taskback.cli.source import Source


class Window:
    """Lets so many tasks, of so many bytes together, be in flight; one is always let in."""

    def __init__(self, max_tasks: int, max_bytes: int) -> None:
        self._max_tasks = max_tasks
        self._max_bytes = max_bytes
        self._changed = threading.Condition()
        self._inside: dict[int, Source] = {}
        self._ids: set[str] = set()
        self._bytes = 0
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether no line is let in any more."""
        return self._closed

    @property
    def in_flight(self) -> int:
        """How many lines are inside."""
        return len(self._inside)

    def has_id(self, task_id: str) -> bool:
        """Whether a task of this id is inside; exact for the feed, which alone puts tasks in."""
        return task_id in self._ids

    def enter(self, source: Source) -> bool:
        """Wait for room and go in; False if the window was closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._has_room(source))
            if self._closed:
                return False
            self._inside[source.line] = source
            self._ids.add(source.handle_id)
            self._bytes += source.size_bytes
            return True

    def _has_room(self, source: Source) -> bool:
        fits = len(self._inside) < self._max_tasks and self._bytes + source.size_bytes <= self._max_bytes
        return fits or not self._inside

    def leave(self, source: Source) -> None:
        """Make room."""
        with self._changed:
            del self._inside[source.line]
            self._ids.discard(source.handle_id)
            self._bytes -= source.size_bytes
            self._changed.notify()

    def close(self) -> None:
        """Let nobody in from now on; who waits is turned away."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def lines(self) -> list[int]:
        """The numbers of the lines that are inside."""
        with self._changed:
            return sorted(self._inside)
