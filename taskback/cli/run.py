"""One run: the feed submits, the main thread writes results, shows progress and answers signals.

Threads: everything here is on the main thread. It waits for messages, with a time limit for the next showing of
progress, and never for the backend, but for its shutdown.
Locks: none.
"""

import enum
import math
import queue
import time
from dataclasses import dataclass
from typing import Final, assert_never

from taskback import BackendClosedError, TaskBackend, TaskState
from taskback.cli.complaints import SOME_FAILED, CommandError, tasks
from taskback.cli.feed import Feed
from taskback.cli.interrupts import Interrupts
from taskback.cli.messages import Ended, InputOver, Interrupted, Message, Messages, Refused, Withdrawn
from taskback.cli.progress import Progress
from taskback.cli.result_line import ResultLine, of_handle, of_refusal
from taskback.cli.results_file import Results
from taskback.cli.source import Source
from taskback.cli.summary import Ending
from taskback.cli.tally import Tally
from taskback.cli.window import Window

STRAGGLERS: Final = 1.0  # seconds; for the messages of tasks that the shutdown has ended

# Ended so by our own cancelling, a task has no result: it is to be run again.
_STOPPED_BY_US: Final = frozenset({TaskState.CANCELLED, TaskState.LOST, TaskState.ABANDONED})


class Phase(enum.Enum):
    """Where a run is; it only moves down."""

    FEEDING = "feeding"  # lines are taken until the input ends
    DRAINING = "draining"  # no more lines; those in flight may end in peace, until the deadline
    CANCELLING = "cancelling"  # what is left is cancelled, then killed


@dataclass(frozen=True, slots=True)
class Parts:
    """What a run is made of."""

    backend: TaskBackend
    feed: Feed
    window: Window
    messages: Messages
    results: Results
    tally: Tally
    progress: Progress
    interrupts: Interrupts
    input_bytes: int | None
    shutdown_timeout: float


class Run:
    """One run, from the first line to the shutdown of the backend."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._phase = Phase.FEEDING
        self._deadline = math.inf
        self._input_over = False
        self._feed_ended = False
        self._failure: CommandError | None = None
        self._unfinished: list[int] = []
        self._next_show = time.monotonic() + parts.progress.interval

    def execute(self) -> Ending:
        """Run all there is to run, or as much as signals and errors allow."""
        self._parts.feed.start()
        while not self._settled():
            self._take(self._next_message())
            self._show()
        return self._finish()

    def _settled(self) -> bool:
        if self._phase is Phase.CANCELLING or time.monotonic() >= self._deadline:
            return True
        may_come = self._phase is Phase.FEEDING and not self._feed_ended
        return not may_come and not self._parts.window.in_flight

    def _next_message(self) -> Message | None:
        until = min(self._next_show, self._deadline)
        try:
            message = self._parts.messages.get(timeout=max(0.0, until - time.monotonic()))
        except queue.Empty:
            return None
        return message

    def _take(self, message: Message | None) -> None:
        match message:
            case None:
                pass
            case Ended(source, handle):
                if self._phase is Phase.CANCELLING and handle.state in _STOPPED_BY_US:
                    self._give_up(source)
                else:
                    self._write(source, of_handle(source, handle))
            case Refused(source, error):
                self._write(source, of_refusal(source, error))
            case Withdrawn(source):
                self._give_up(source)
            case InputOver(complete, error):
                self._feed_ended = True
                self._input_over = complete
                self._look_at(error)
            case Interrupted():
                self._interrupt()
            case _:
                assert_never(message)

    def _write(self, source: Source, line: ResultLine) -> None:
        if self._failure is not None and self._phase is Phase.CANCELLING:  # after a failed write, a line may be torn
            self._give_up(source)
            return
        try:
            self._parts.results.append(line.data)
        except CommandError as error:
            self._failure = error
            self._phase = Phase.CANCELLING
            self._give_up(source)
            return
        self._parts.tally.count(line.state, line.problem)
        self._parts.window.leave(source)

    def _give_up(self, source: Source) -> None:
        self._unfinished.append(source.line)
        self._parts.window.leave(source)

    def _look_at(self, error: BaseException | None) -> None:
        """What ended the feed, if it was anything but the input's end or our own shutdown."""
        if error is None or (isinstance(error, BackendClosedError) and self._parts.window.closed):
            return
        if isinstance(error, CommandError):
            self._failure = error
        else:
            self._failure = CommandError(f"cannot go on: {type(error).__name__}: {error}", SOME_FAILED)
            self._failure.__cause__ = error
        self._drain(str(self._failure))

    def _interrupt(self) -> None:
        if self._phase is Phase.FEEDING:
            self._drain("interrupted")
        elif self._phase is Phase.DRAINING:
            self._phase = Phase.CANCELLING
            self._parts.progress.say("interrupted again: cancelling")

    def _drain(self, why: str) -> None:
        if self._phase is not Phase.FEEDING:
            return
        self._phase = Phase.DRAINING
        self._parts.feed.stop()
        self._deadline = time.monotonic() + self._parts.shutdown_timeout
        if in_flight := self._parts.window.in_flight:
            limit = f"up to {self._parts.shutdown_timeout:g} s for {tasks(in_flight)} in flight"
            self._parts.progress.say(f"{why}: waiting {limit}; Ctrl-C cancels them")
        else:
            self._parts.progress.say(why)

    def _show(self) -> None:
        now = time.monotonic()
        if now < self._next_show:
            return
        self._next_show = now + self._parts.progress.interval
        running = self._parts.backend.stats().running
        figures = self._parts.tally.figures(total=self._total(), exact=self._input_over, running=running)
        self._parts.progress.show(figures)

    def _total(self) -> int | None:
        """The number of tasks in the input; before it was read to its end, as its bytes let expect."""
        feed = self._parts.feed
        if self._input_over:
            return feed.tasks_read
        if self._parts.input_bytes is None or not feed.bytes_read:
            return None
        return round(feed.tasks_read * self._parts.input_bytes / feed.bytes_read)

    def _finish(self) -> Ending:
        """Shut the backend down, write what ended meanwhile, and tell what did not."""
        parts = self._parts
        parts.feed.stop()
        if parts.window.in_flight:
            if self._phase is Phase.DRAINING:
                parts.progress.say(f"the time is up: cancelling {tasks(parts.window.in_flight)}")
            self._phase = Phase.CANCELLING
        report = parts.backend.shutdown_sync(0 if self._phase is Phase.CANCELLING else parts.shutdown_timeout)
        deadline = time.monotonic() + STRAGGLERS
        parts.feed.join(STRAGGLERS)
        self._collect(deadline)
        parts.results.sync()
        return Ending(
            interrupted=parts.interrupts.count > 0,
            failure=self._failure,
            unfinished=sorted([*self._unfinished, *parts.window.lines()]),
            lines_read=parts.feed.lines_read,
            input_over=self._input_over,
            threads_left=bool(report.abandoned or report.stuck or parts.feed.is_alive() or self._abandoned()),
        )

    def _abandoned(self) -> int:
        """How many tasks have left a thread behind at their time limit."""
        return self._parts.tally.now[TaskState.ABANDONED.value]

    def _collect(self, deadline: float) -> None:
        """Take the messages that came during the shutdown.

        The tasks are over by now, but the threads that ended them may be about to say so.
        """
        while self._parts.window.in_flight or not self._parts.messages.empty():
            try:
                self._take(self._parts.messages.get(timeout=max(0.0, deadline - time.monotonic())))
            except queue.Empty:
                return
