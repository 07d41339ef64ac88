"""The thread that reads lines and gives their tasks to the backend.

A thread of its own, since reading may wait for a pipe, the window for room, and `--backend sync` for the handler,
while the main thread writes results, shows progress and answers signals.

Threads: run() alone moves anything here; the main thread reads the three counts, and calls stop().
Locks: none of its own.
"""

import threading
from collections.abc import Callable
from typing import Any

from taskback import BackendClosedError, TaskBackend, TaskHandle
from taskback.cli.complaints import CommandError
from taskback.cli.messages import Ended, InputOver, Messages, Refused, Withdrawn
from taskback.cli.resume import Finished
from taskback.cli.source import Source, check_id, source_of
from taskback.cli.tasks_file import BadLineError, Input, Line, ReadingStoppedError, parse_task, read_lines
from taskback.cli.window import Window


class Feed(threading.Thread):
    """Reads, skips what is finished, and submits the rest as the window has room.

    Attributes:
        lines_read (int): Lines so far that were submitted, or skipped, or empty.
        tasks_read (int): Those that were not empty.
        bytes_read (int): What they take in the input.
    """

    def __init__(
        self,
        stream: Input,
        name: str,
        backend: TaskBackend,
        *,
        window: Window,
        finished: Finished,
        messages: Messages,
    ) -> None:
        # A daemon: when the command ends early, `--backend sync` may still be in a handler that does not stop.
        super().__init__(name="taskback-feed", daemon=True)
        self._stream = stream
        self._input_name = name
        self._backend = backend
        self._window = window
        self._finished = finished
        self._messages = messages
        self.lines_read = 0
        self.tasks_read = 0
        self.bytes_read = 0

    def run(self) -> None:
        """Feed until the input ends or the window is closed; the last message says how it went."""
        try:
            if not self._window.closed:
                self._start()
            self._messages.put(InputOver(complete=self._feed()))
        except BaseException as error:  # the main thread decides what becomes of the run
            self._messages.put(InputOver(complete=False, error=error))

    def _start(self) -> None:
        """Have the workers ready; what keeps them from it ends the run, and not each of its tasks."""
        try:
            self._backend.initialize_sync()
        except BackendClosedError:  # the run is over already
            raise
        except BaseException as error:  # the handler's module may call sys.exit() in a worker
            raise CommandError(f"the workers cannot be started: {type(error).__name__}: {error}") from error

    def stop(self) -> None:
        """Take no more lines; ends this thread's wait for the window or the input."""
        self._window.close()
        self._stream.stop()

    def _feed(self) -> bool:
        """Take line after line; False if there may be more."""
        try:
            return all(self._take(line) for line in read_lines(self._stream))
        except ReadingStoppedError:
            return False

    def _take(self, line: Line) -> bool:
        """Do with one line what is to be done; False if the window is closed."""
        if line.data:
            return self._take_task(line)
        self._count(line, tasks=0)
        return not self._window.closed

    def _take_task(self, line: Line) -> bool:
        task, problem = _parse(line)
        source = source_of(line, self._input_name, task, self._window.has_id)
        if self._finished.has(source):
            self._count(line, tasks=1)
            return not self._window.closed
        if not self._window.enter(source):
            return False
        self._count(line, tasks=1)
        if task is None or problem is not None:
            self._messages.put(Refused(source, problem or BadLineError()))
        else:
            self._submit(source, task)
        return True

    def _count(self, line: Line, *, tasks: int) -> None:
        self.lines_read = line.number
        self.tasks_read += tasks
        self.bytes_read += line.size_bytes

    def _submit(self, source: Source, task: dict[str, Any]) -> None:
        try:
            handle = self._backend.submit_sync(task, id=source.handle_id)
        except BackendClosedError:
            self._messages.put(Withdrawn(source))
            raise
        except Exception as error:  # an unknown type, say: the error of this line, and the others still run
            self._messages.put(Refused(source, error))
        else:
            handle.add_done_callback(self._announce(source))

    def _announce(self, source: Source) -> Callable[[Any], None]:
        def announce(handle: TaskHandle) -> None:  # on the thread that ended the task: as short as can be
            self._messages.put(Ended(source, handle))

        return announce


def _parse(line: Line) -> tuple[dict[str, Any] | None, BadLineError | None]:
    """The task of a line, and what is wrong with it; a task whose id will not do is both."""
    task = None
    try:
        task = parse_task(line)
        check_id(task)
    except BadLineError as error:
        return task, error
    return task, None
