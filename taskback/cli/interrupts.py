"""Ctrl-C and SIGTERM: the first drains, the second cancels, the third kills the command the default way."""

import signal
import socket
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Final, Self

from taskback.cli.messages import Interrupted, Messages

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """The signal handlers, for as long as the context lasts.

    Until `arm`, a signal raises `KeyboardInterrupt`: there is nothing yet that would have to be drained.

    Threads: the handlers run on the main thread, between any two of its bytecodes; they take no lock. A thread of
    its own wakes the main thread, so that there is a next bytecode.

    Race: a signal and the main thread's wait. The system may deliver the signal to another thread, or just before
    the wait begins; then nothing interrupts the wait, and Python's handler would run only after it. But before
    either, C writes a byte to the wakeup socket; the waker thread reads it and puts a message, which ends the wait.
    """

    def __init__(self, messages: Messages) -> None:
        self._messages = messages
        self._hurry: Callable[[], None] | None = None
        self._last_words: Callable[[], None] | None = None
        self._previous: dict[int, Any] = {}
        self._previous_fd = -1
        self._waker: threading.Thread | None = None
        self.count = 0

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python refuses them
            self._start_waker()
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # `nohup`, or `command &` in a script
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def _start_waker(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._previous_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._waker = threading.Thread(target=self._wake, name="taskback-waker", daemon=True)
        self._waker.start()

    def _wake(self) -> None:
        while self._reader.recv(64):
            self._messages.put(None)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)
        if self._waker is not None:
            signal.set_wakeup_fd(self._previous_fd)
            self._writer.close()  # the end of file ends the waker
            self._waker.join()
            self._reader.close()

    def arm(self, hurry: Callable[[], None], last_words: Callable[[], None]) -> None:
        """From here on there are tasks: signals become messages.

        Args:
            hurry (Callable[[], None]): Called by the second signal, in its handler.
            last_words (Callable[[], None]): Called by the third, just before the process ends.
        """
        self._hurry = hurry
        self._last_words = last_words

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.count += 1
        if self._hurry is None or self._last_words is None:
            raise KeyboardInterrupt
        if self.count > 2:
            self._last_words()
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        if self.count == 2:
            self._hurry()  # for a shutdown under way, in which the main thread does not look at its messages
        self._messages.put(Interrupted())
